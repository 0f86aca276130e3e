"""What a model answers to problems, drawn and by exact probability: kept beside a checkpoint's geometry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from reptrace.models.generation import Written, log_probability, write
from reptrace.models.scoring import score
from reptrace.texts.problems import Problem, right

BATCH = 512  # sequences


@dataclass(frozen=True)
class Answers:
    """Answers to problems.

    Attributes
    ----------
    written : Written, several answers to each problem
    right : bool, shape (problems, samples); whether the answer is the right one and ended
    log_probability : shape (problems,), nats; of the right answer and its end
    drawn : shape (problems, samples), nats; log-probability of each drawn answer, its end included where it came
    """

    written: Written
    right: np.ndarray
    log_probability: np.ndarray
    drawn: np.ndarray

    @property
    def accuracy(self) -> float:
        """pass@1: the mean probability of the right answer, which is the only one."""
        return float(np.exp(self.log_probability).mean())

    @property
    def flat_groups(self) -> float:
        """Share of the problems whose answers are all right or all wrong: as a group of GRPO they would teach nothing.
        """
        return float((self.right.all(1) | ~self.right.any(1)).mean())

    @property
    def distinct(self) -> float:
        """Different answers to a problem, as a share of those drawn, mean over problems."""
        return float(np.mean([len({(tuple(tokens), ended) for tokens, ended in zip(*each, strict=True)}) / len(each[0])
                              for each in zip(self.written.tokens, self.written.ended.tolist(), strict=True)]))

    @property
    def entropy(self) -> float:
        """Of the next token while answering, nats, estimated by what was drawn: -sum ln p over the tokens drawn."""
        tokens = sum(len(each) for its in self.written.tokens for each in its) + int(self.written.ended.sum())
        return float(-self.drawn.sum() / tokens)


def answers(model, tokenizer, problems: Sequence[Problem], tokens: int, samples: int, seed: int = 0) -> Answers:
    """Ask a model problems, by temperature 1 without cuts, so that what is drawn comes as often as its probability.

    Parameters
    ----------
    model : transformers causal LM, on its device
    tokenizer : its own
    problems : Problem, whose questions are asked
    tokens : int, of an answer at most
    samples : int, answers to each problem
    seed : int, default 0
    """
    prompts, due = [each.prompt() for each in problems], [each.answer for each in problems]
    made = write(model, tokenizer, prompts, tokens, samples, seed=seed, batch_size=BATCH)
    return Answers(made, rightly(made, problems), log_probability(model, tokenizer, prompts, due, BATCH),
                   of_drawn(model, tokenizer, prompts, made))


def rightly(made: Written, problems: Sequence[Problem]) -> np.ndarray:
    """Which of the texts are the right answer and ended, bool, shape (problems, samples)."""
    return made.ended & np.array([[right(problem, text) for text in texts]
                                  for problem, texts in zip(problems, made.texts, strict=True)])


def of_drawn(model, tokenizer, prompts: Sequence[str], made: Written) -> np.ndarray:
    """Log-probability (nats) by a model of answers that it or another drew, shape (prompts, samples)."""
    read = tokenizer(list(prompts))["input_ids"]
    sequences, starts = [], []
    for prompt, answers, ended in zip(read, made.tokens, made.ended, strict=True):
        for answer, end in zip(answers, ended, strict=True):
            sequences.append([*prompt, *answer, *[tokenizer.eos_token_id] * bool(end)])
            starts.append(len(prompt))
    return score(model, sequences, starts, BATCH).log_probability.reshape(made.ended.shape)


def kl(answers: Answers, reference: np.ndarray) -> tuple[float, float]:
    """KL divergence of the policy from a reference, nats an answer, and its standard error over problems.

    Parameters
    ----------
    answers : of the policy
    reference : shape (problems, samples); `of_drawn` by the reference model
    """
    by_problem = (answers.drawn - reference).mean(1)
    return float(by_problem.mean()), float(by_problem.std(ddof=1) / len(by_problem) ** 0.5)


def preferences(answers: Answers, problems: Sequence[Problem], tokenizer) -> list[dict[str, str]]:
    """A pair of a right and a wrong answer to each problem that got both: columns prompt, chosen and rejected.

    The wrong one is the first drawn that ended and that, written after the question, reads again as the tokens drawn.
    """
    found = []
    for k, problem in enumerate(problems):
        if answers.right[k].any():
            asked = tokenizer(problem.prompt())["input_ids"]
            for text, tokens, right, ended in zip(answers.written.texts[k], answers.written.tokens[k],
                                                  answers.right[k], answers.written.ended[k], strict=True):
                if ended and not right and tokens and tokenizer(problem.prompt() + text)["input_ids"] == asked + tokens:
                    found.append({"prompt": problem.prompt(), "chosen": problem.answer, "rejected": text})
                    break
    return found
