"""Tasks on models in memory and on checkpoints.

Trusted: log-softmax written out one answer at a time, without batch or padding, on prompts written by hand from the
tasks' own YAML; transformers' own loss and generation; lm-eval's published YAML of sciq, lambada_openai and triviaqa,
each with a few rows in the form of its data set on the hub. Models are tiny and random, in float64 where numbers are
compared: any two orders of summing then agree to 1e-10, and no two answers are as near as that.
"""

import copy
import dataclasses
import json
import logging
import math
import os
import threading
from pathlib import Path

import accelerate
import architectures
import datasets
import lm_eval
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from limits import SOON, in_background
from test_hidden_states import hooks
from test_loading import files_of
from tokenizers import processors
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, T5Config

from reptrace.__main__ import main
from reptrace.checkpoints.downloads import weights_cache
from reptrace.checkpoints.listing import Checkpoint
from reptrace.memorization.questions import Questions
from reptrace.models.eigendirections import Projection, directions, projected
from reptrace.models.hidden_states import NonFiniteError, last_token_states
from reptrace.models.loading import load
from reptrace.models.scoring import score
from reptrace.records.store import Store
from reptrace.sweeps import jobs
from reptrace.sweeps.evaluation import evaluate_checkpoints
from reptrace.sweeps.located import open_at
from reptrace.tasks import evaluation, harness
from reptrace.tasks.evaluation import evaluate, loss
from reptrace.texts.corpora import Corpus, probe, train_tokenizer
from reptrace.texts.ngrams import NgramModel
from reptrace.texts.probes import first_tokens

CONTEXT, WIDTH = 48, 16
# Our own tasks, and which part of an item each asks
LOCAL = {"continuation": "passage", "cloze": "passage", "cloze_near": "near", "copy": "passage", "copy_near": "near"}
STOCK = Path(lm_eval.__file__).parent / "tasks"
WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "the", "dog", "ran", "to", "one", "red", "barn", "over", "green",
         "hills", "when", "rain", "fell"]


def text(rng, length):
    return " ".join(rng.choice(WORDS, length))


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    return Corpus("made", [text(rng, 40) for _ in range(80)])


@pytest.fixture(scope="module")
def tokenizer(corpus):
    return train_tokenizer(corpus.documents, 300)


def tiny(tokenizer, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    config = GPTNeoXConfig(vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2,
                           intermediate_size=32, max_position_embeddings=CONTEXT, initializer_range=0.3,
                           bos_token_id=0, eos_token_id=0, pad_token_id=1)
    return GPTNeoXForCausalLM(config).to(dtype).eval()


@pytest.fixture
def model(tokenizer):
    return tiny(tokenizer)


@pytest.fixture(scope="module")
def questions():
    rng = np.random.default_rng(1)
    return [{"passage": text(rng, rng.integers(3, 9)), "near": text(rng, 2), "answer": int(rng.integers(4)),
             "choices": [text(rng, rng.integers(1, 4)) for _ in range(4)]} for _ in range(25)]


def lines(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture
def data(questions, tmp_path):
    return dict.fromkeys(LOCAL, lines(tmp_path / "items.jsonl", questions))


@torch.no_grad()
def log_likelihood(model, tokenizer, prompt, answer):
    """ln P(answer | prompt), and whether each of its tokens is the most probable one: one pass, nothing padded."""
    context, whole = (tokenizer(words, add_special_tokens=False)["input_ids"] for words in (prompt, prompt + answer))
    scores = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    pairs = [(k, whole[k + 1]) for k in range(len(context) - 1, len(whole) - 1)]
    return sum(float(scores[k, token]) for k, token in pairs), all(int(scores[k].argmax()) == t for k, t in pairs)


def by_hand(model, tokenizer, questions, passage="passage", space=" "):
    """1 for each question whose true choice has the highest log-likelihood, else 0."""
    found = []
    for q in questions:
        scores = [log_likelihood(model, tokenizer, q[passage], f"{space}{choice}")[0] for choice in q["choices"]]
        found.append(float(np.argmax(scores) == q["answer"]))
    return found


# Against log-softmax by hand


def test_lm_evals_log_likelihoods_are_sums_of_log_softmax(model, tokenizer, questions):
    from lm_eval.api.instance import Instance

    pairs = [(q["passage"], f" {choice}") for q in questions for choice in q["choices"]]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    found = harness._language_model(model, tokenizer, 7).loglikelihood(requests, disable_tqdm=True)
    expected = [log_likelihood(model, tokenizer, *pair) for pair in pairs]
    np.testing.assert_allclose([score for score, _ in found], [score for score, _ in expected], rtol=0, atol=1e-10)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


@pytest.mark.parametrize(("task", "passage"), LOCAL.items())
def test_a_local_tasks_accuracy_is_the_share_of_true_choices_that_score_highest(task, passage, model, tokenizer,
                                                                                questions, data):
    expected = by_hand(model, tokenizer, questions, passage, "" if "copy" in task else " ")
    assert 0 < np.mean(expected) < 1
    [row] = evaluate(model, tokenizer, [task], 16, data=data)
    assert row.pop("items") == expected
    assert row == {"task": task, "version": "1.0", "metric": "acc", "filter": "none",
                   "value": pytest.approx(np.mean(expected)),
                   "stderr": pytest.approx(np.std(expected, ddof=1) / np.sqrt(len(expected))),
                   "samples": 25, "available": 25, "shots": 0, "truncated": 0, "higher_is_better": True}


@pytest.mark.parametrize("batch_size", [1, 3, 1000])
def test_batch_size_does_not_matter(batch_size, model, tokenizer, data):
    assert evaluate(model, tokenizer, ["cloze"], batch_size, data=data) == evaluate(model, tokenizer, ["cloze"], 16,
                                                                                   data=data)


def with_more_tokens(tokenizer):
    tokenizer.add_tokens(["cat", " cat", "dog", " barn", " hills", "the"])


def with_a_token_before(tokenizer):
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])


@pytest.mark.parametrize("change", [with_more_tokens, with_a_token_before])
def test_a_tokenizer_that_was_changed_between_two_calls_is_read_as_it_is(change, tokenizer, data, questions):
    tokenizer = copy.deepcopy(tokenizer)
    model = tiny(tokenizer)
    model.resize_token_embeddings(len(tokenizer) + 8, mean_resizing=False)
    rows = []
    for _ in range(2):
        rows.append(scores(model, tokenizer, questions))
        np.testing.assert_allclose(rows[-1], scores(model, copy.deepcopy(tokenizer), questions), rtol=0, atol=1e-10)
        change(tokenizer)
    assert np.abs(np.subtract(*rows)).max() > 1e-3


@pytest.mark.parametrize("answerer", ["model", "n-gram"])
def test_a_tokenizer_that_drops_merges_reads_questions_as_it_does_without(answerer, model, tokenizer, data, corpus):
    dropping = copy.deepcopy(tokenizer)
    dropping.backend_tokenizer.model.dropout = 0.7
    assert dropping(corpus.documents[0]) != dropping(corpus.documents[0])
    counted = np.concatenate([tokenizer(text)["input_ids"] for text in corpus.documents])
    answers = model if answerer == "model" else NgramModel(counted, len(tokenizer), 3)
    expected = evaluate(answers, tokenizer, "cloze", 16, data=data)
    harness._encoded_by.cache_clear()
    assert evaluate(answers, dropping, "cloze", 16, data=data) == expected
    assert dropping.backend_tokenizer.model.dropout == pytest.approx(0.7)  # float32 in Rust


def scores(model, tokenizer, questions):
    """lm-eval's log-likelihoods of all choices."""
    from lm_eval.api.instance import Instance

    pairs = [(q["passage"], f" {choice}") for q in questions for choice in q["choices"]]
    requests = [Instance("loglikelihood", {}, pair, 0) for pair in pairs]
    found = harness._language_model(model, tokenizer, 7).loglikelihood(requests, disable_tqdm=True)
    return [score for score, _ in found]


@pytest.mark.parametrize("architecture", ["GPT-2", "OPT", "GPT-J", "Llama"])
def test_an_answer_that_ends_with_the_context_is_scored(architecture):
    """One token more than the context: the last is scored, and not read."""
    answering, rng = architectures.build(architecture), np.random.default_rng(0)
    sequences = [rng.integers(3, 90, length).tolist() for length in (10, 20, architectures.CONTEXT + 1)]
    found = score(answering, sequences, [5, 5, 5], 2).log_probability
    for sequence, value in zip(sequences, found, strict=True):
        with torch.no_grad():
            scores = answering(torch.tensor([sequence[:-1]])).logits[0].log_softmax(-1)
        expected = sum(float(scores[k - 1, sequence[k]]) for k in range(5, len(sequence)))
        assert value == pytest.approx(expected, rel=1e-5)  # float32, in a batch


@pytest.mark.parametrize("architecture", ["GPT-NeoX", "Llama", "OLMo 2", "GPT-2"])
def test_answers_to_one_question_are_scored_as_each_alone(architecture):
    """Architectures that let them share a row, and one that does not."""
    answering, rng = architectures.build(architecture), np.random.default_rng(0)
    questions = [rng.integers(3, 90, length).tolist() for length in (1, 12, 12, 30)]
    answers = [rng.integers(3, 90, length).tolist() for length in (1, 2, 9, 1, 5, 3)]
    sequences = [[*question, *answer] for answer in answers for question in questions]
    starts, passed = [len(question) for _ in answers for question in questions], []
    handle = answering.get_input_embeddings().register_forward_hook(lambda module, args, out: passed.append(len(out)))
    found = score(answering, sequences, starts, 4)
    handle.remove()
    assert (sum(passed) < len(sequences)) == (architecture != "GPT-2")
    for sequence, start, value, greedy in zip(sequences, starts, *found, strict=True):
        with torch.no_grad():
            scores = answering(torch.tensor([sequence])).logits[0].log_softmax(-1)[start - 1 : -1]
        answer = torch.tensor(sequence[start:])
        assert value == pytest.approx(float(scores.gather(1, answer[:, None]).sum()), rel=1e-5)  # float32, in a batch
        assert greedy == bool((scores.argmax(-1) == answer).all())


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_a_model_whose_weights_wait_elsewhere_gives_the_same_loss_and_scores(where, tmp_path):
    waiting, rng = architectures.build("Llama"), np.random.default_rng(0)
    sequences = [rng.integers(3, 90, int(length)).tolist() for length in rng.integers(9, 60, 12)]
    expected = loss(waiting, sequences, 4)["items"], score(waiting, sequences, [3] * 12, 4).log_probability.tolist()
    if where == "cpu":
        accelerate.cpu_offload(waiting, torch.device("cpu"))
    else:
        accelerate.disk_offload(waiting, tmp_path, torch.device("cpu"))
    assert loss(waiting, sequences, 4)["items"] == expected[0]
    assert score(waiting, sequences, [3] * 12, 4).log_probability.tolist() == expected[1]


def test_the_batch_size_is_passed_on(model, tokenizer, data):
    sizes = []
    handle = model.register_forward_pre_hook(lambda module, args, options: sizes.append(
        (args or list(options.values()))[0].shape[0]), with_kwargs=True)
    evaluate(model, tokenizer, ["cloze"], 8, data=data)
    handle.remove()
    assert sizes == [8, 8, 8, 8, 1]  # 25 questions: the choices of one share a row, or two where they are long


def test_a_limit_takes_the_first_items(model, tokenizer, data):
    first, every = (evaluate(model, tokenizer, ["cloze"], 16, limit, data)[0] for limit in (10, None))
    assert first["items"] == every["items"][:10] and (first["samples"], first["available"]) == (10, 25)


def test_prompts_longer_than_the_context_are_cut_and_counted(model, tokenizer, questions, tmp_path):
    rng = np.random.default_rng(2)
    long = [{**q, "passage": text(rng, 60)} for q in questions[:3]] + questions[3:]
    [row] = evaluate(model, tokenizer, ["cloze"], 16, data={"cloze": lines(tmp_path / "long.jsonl", long)})
    assert row["truncated"] == 12  # four choices each


def test_a_task_with_projected_states_is_that_of_projected_logits(model, tokenizer, questions, data, corpus):
    sequences = probe(corpus, tokenizer, 60, CONTEXT, 4).sequences
    mean, vectors = directions(last_token_states(model, sequences)["final"])
    with projected(model, mean, vectors, 3):
        expected = by_hand(model, tokenizer, questions)
        assert evaluate(model, tokenizer, ["cloze"], 16, data=data)[0]["items"] == expected
    plain = by_hand(model, tokenizer, questions)
    assert plain != expected and evaluate(model, tokenizer, ["cloze"], 16, data=data)[0]["items"] == plain
    with projected(model, mean, vectors, WIDTH):  # one set of logits for all tokens: the passage no longer matters
        rows = evaluate(model, tokenizer, ["cloze", "cloze_near"], 16, data=data)
    assert rows[0]["items"] == rows[1]["items"]


def test_an_ngram_model_answers_the_same_tasks(tokenizer, questions, data, corpus):
    ids = np.concatenate(tokenizer(corpus.documents, add_special_tokens=False)["input_ids"])
    ngrams = NgramModel(ids, len(tokenizer), 3)
    encoded = [tokenizer([q["passage"], *(f" {choice}" for choice in q["choices"])], add_special_tokens=False)
               ["input_ids"] for q in questions]
    expected = [float(ngrams.score([(context, choice) for choice in choices]).argmax() == q["answer"])
                for q, (context, *choices) in zip(questions, encoded, strict=True)]
    assert evaluate(ngrams, tokenizer, ["cloze"], 1, data=data)[0]["items"] == expected


# Stock tasks, with data in the hub's form


@pytest.fixture
def stock(monkeypatch):
    """lm-eval's own tasks, of three folders only: reading all of them takes 22 s."""
    some = [STOCK / name for name in ("sciq", "lambada", "triviaqa")]
    monkeypatch.setattr(harness, "_with_stock_tasks", lambda folders: lm_eval.tasks.TaskManager(
        include_path=[*some, *folders], include_defaults=False))


def test_sciq_asks_as_its_yaml_says(stock, model, tokenizer, tmp_path):
    rng = np.random.default_rng(3)
    rows = [{"question": text(rng, 3), "support": f" {text(rng, 4)}", "correct_answer": text(rng, 1),
             **{f"distractor{k}": text(rng, 1) for k in (1, 2, 3)}} for _ in range(20)]
    found = evaluate(model, tokenizer, ["sciq"], 8, data={"sciq": lines(tmp_path / "sciq.jsonl", rows)})
    scores = [[log_likelihood(model, tokenizer, f"{row['support'].lstrip()}\nQuestion: {row['question']}\nAnswer:",
                              f" {row[key]}")[0]
               for key in ("distractor1", "distractor2", "distractor3", "correct_answer")] for row in rows]
    assert [(row["metric"], row["version"], row["shots"]) for row in found] == [("acc", "1.0", 0),
                                                                               ("acc_norm", "1.0", 0)]
    assert found[0]["items"] == [float(np.argmax(row) == 3) for row in scores]


def test_lambada_gives_perplexity_and_accuracy(stock, model, tokenizer, tmp_path):
    rng = np.random.default_rng(4)
    rows = [{"text": text(rng, 6)} for _ in range(20)]
    found = evaluate(model, tokenizer, ["lambada_openai"], 8,
                     data={"lambada_openai": lines(tmp_path / "lambada.jsonl", rows)})
    pairs = [row["text"].rsplit(" ", 1) for row in rows]
    scores = [log_likelihood(model, tokenizer, prompt, f" {word}") for prompt, word in pairs]
    named = {row["metric"]: row for row in found}
    assert named["perplexity"]["value"] == pytest.approx(math.exp(-np.mean([score for score, _ in scores])), rel=1e-9)
    assert named["perplexity"]["stderr"] > 0 and not named["perplexity"]["higher_is_better"]
    assert named["acc"]["value"] == np.mean([greedy for _, greedy in scores])


def test_triviaqa_generates_and_other_keys_than_its_yamls_can_be_set(stock, model, tokenizer, tmp_path):
    rng = np.random.default_rng(5)
    rows = [{"question": f"{text(rng, 3)}?", "answer": {"aliases": [text(rng, 1)]}} for _ in range(6)]
    spec = {"task": "triviaqa", "doc_to_text": "Question: {{question}}\nAnswer:",  # its own adds a second question mark
            "generation_kwargs": {"until": ["\n"], "do_sample": False, "max_gen_toks": 4}}
    prompts = [f"Question: {row['question']}\nAnswer:" for row in rows]
    said = []
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False)
        said.append(tokenizer.decode(out[0, ids.shape[1]:], skip_special_tokens=True).split("\n")[0].strip())
    for row in rows[:3]:  # half of them are answered as the model answers
        row["answer"]["aliases"] += [said[rows.index(row)] or "nothing"]
    assert all(said[:3])
    [found] = evaluate(model, tokenizer, [spec], 1, data={"triviaqa": lines(tmp_path / "trivia.jsonl", rows)})
    assert found["metric"] == "exact_match" and found["filter"] == "remove_whitespace"
    assert found["items"][:3] == [1, 1, 1]


def test_a_task_of_a_folder_of_ones_own_runs_by_its_name(model, tokenizer, questions, data, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    yaml = (evaluation.LOCAL / "cloze.yaml").read_text().replace("task: cloze", "task: mine")
    (folder / "mine.yaml").write_text(yaml)
    [row] = evaluate(model, tokenizer, ["mine"], 16, data={"mine": data["cloze"]}, include=[folder])
    assert row["task"] == "mine" and row["items"] == by_hand(model, tokenizer, questions)


def test_local_tasks_are_known_without_reading_lm_evals_own(monkeypatch):
    monkeypatch.setattr(harness, "_with_stock_tasks", None)
    assert {path.stem for path in evaluation.LOCAL.glob("*.yaml")} == set(LOCAL)
    harness.manager(LOCAL, [evaluation.LOCAL])


# Loss


def test_the_loss_is_transformers_own_weighted_by_tokens(model, tokenizer, corpus):
    sequences = [ids[:length] for ids, length in zip(
        tokenizer(corpus.documents[:9], add_special_tokens=False)["input_ids"], (2, 40, 7, 7, 3, 25, 12, 40, 5),
        strict=True)]
    with torch.no_grad():
        means = [float(model(torch.tensor([ids]), labels=torch.tensor([ids])).loss) for ids in sequences]
    counts = np.array([len(ids) - 1 for ids in sequences])
    found = loss(model, sequences, 4)
    mean = np.average(means, weights=counts)
    np.testing.assert_allclose(found["items"], means, rtol=5e-7)  # theirs is in float32, also of a float64 model
    assert found["value"] == pytest.approx(mean, rel=5e-7)
    spread = np.sqrt((counts**2 * (np.array(means) - mean) ** 2).sum() * 9 / 8) / counts.sum()
    assert found["stderr"] == pytest.approx(spread, rel=5e-6) and found["samples"] == 9
    assert loss(model, sequences, 100)["value"] == pytest.approx(found["value"], rel=1e-12)


def test_the_losss_standard_error_is_the_spread_of_its_values_over_draws_of_sequences(model, tokenizer, corpus, rng):
    ids = tokenizer(corpus.documents, add_special_tokens=False)["input_ids"]
    sequences = [sequence[: rng.integers(2, 40)] for sequence in ids for _ in range(10)]
    found = loss(model, sequences, 64)
    sums, counts = np.array(found["items"]), np.array(list(map(len, sequences))) - 1
    drawn = rng.integers(0, len(sequences), (2000, len(sequences)))
    values = (sums * counts)[drawn].sum(1) / counts[drawn].sum(1)
    assert found["stderr"] == pytest.approx(values.std(), rel=0.06)  # 2000 draws know it to 1.6 %


def test_a_loss_of_a_bfloat16_model_is_summed_in_wider_numbers(tokenizer, corpus):
    sequences = [ids[:30] for ids in tokenizer(corpus.documents[:20], add_special_tokens=False)["input_ids"]]
    narrow = tiny(tokenizer, torch.bfloat16)
    with torch.no_grad():
        logits = narrow(torch.tensor(sequences)).logits[:, :-1].double()
    exact = torch.nn.functional.cross_entropy(logits.transpose(1, 2), torch.tensor(sequences)[:, 1:])
    assert loss(narrow, sequences, 20)["value"] == pytest.approx(float(exact), rel=1e-5)  # float32 over 300 entries


# What is left behind


def test_model_tokenizer_generators_and_lm_evals_own_settings_stay_as_they_are(model, tokenizer, data, capfd):
    import copy

    from lm_eval import evaluator

    padless = copy.deepcopy(tokenizer)
    padless.pad_token = None
    model.train()
    model.gpt_neox.layers[0].eval()
    modes = [module.training for module in model.modules()]
    logger, information = logging.getLogger("lm_eval"), evaluator.add_env_info
    before = logger.handlers[:], logger.propagate, logger.level, os.environ.get("DISABLE_MULTIPROC")
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    evaluate(model, padless, ["cloze"], 16, data=data)
    assert (torch.rand(1), np.random.rand()) == expected
    assert [module.training for module in model.modules()] == modes and hooks(model) == 0
    assert padless.pad_token is None
    assert (logger.handlers, logger.propagate, logger.level, os.environ.get("DISABLE_MULTIPROC")) == before
    assert evaluator.add_env_info is information and not datasets.are_progress_bars_disabled()
    assert capfd.readouterr() == ("", "")


def test_two_threads_do_not_change_lm_evals_settings_at_once():
    from lm_eval import evaluator

    information, entered = evaluator.add_env_info, threading.Event()

    def quietly():
        with harness.quiet():
            entered.set()

    with harness.quiet():
        other = in_background(quietly)
        assert not entered.wait(0.5)
    other.result(SOON)
    assert entered.is_set() and evaluator.add_env_info is information


def test_progress_is_shown_when_asked_for(model, tokenizer, data, capfd):
    evaluate(model, tokenizer, ["cloze"], 16, data=data, progress=True)
    out, err = capfd.readouterr()
    assert out == "" and "scoring answers" in err


# Bad input


def test_a_task_that_does_not_exist_is_an_error_with_names_like_it(stock, model, tokenizer):
    with pytest.raises(KeyError, match=r"no task 'sciqq'.* Did you mean sciq"):
        evaluate(model, tokenizer, ["sciqq"], 16)


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"tasks": []}, ValueError, "no tasks to run"), ({"batch_size": 0}, ValueError, "batch_size"),
    ({"data": None}, ValueError, r"'cloze' asks what a file made by items.make holds"),
    ({"data": {"cloze": "nowhere.jsonl"}}, FileNotFoundError, "no file 'nowhere.jsonl'"),
    ({"include": ["nowhere"]}, FileNotFoundError, "no folder of tasks 'nowhere'")])
def test_bad_input_is_refused(change, error, message, model, tokenizer, data):
    arguments = {"tasks": "cloze", "batch_size": 16, "data": data, **change}
    with pytest.raises(error, match=message):
        evaluate(model, tokenizer, **arguments)


def test_nan_is_an_error_and_no_answer(model, tokenizer, data, corpus):
    model.get_output_embeddings().weight.data[7] = torch.nan
    with pytest.raises(NonFiniteError, match=r"item 0 of 'cloze' is nan"):
        evaluate(model, tokenizer, ["cloze"], 16, data=data)
    with pytest.raises(NonFiniteError, match=r"loss of sequence 0 is NaN"):
        loss(model, first_tokens(tokenizer, corpus.documents[:3], CONTEXT), 16)


@pytest.mark.parametrize(("sequences", "told"), [
    ([], "no sequences"), ([[1, 2], [3]], "sequence 1 has 1 tokens, 2 are needed"),
    ([[1] * 49], "the model's context is 48"), ([[1, 2, 5000]], "another model's tokenizer"),
    ([[1, -2, 3]], "another model's tokenizer"), ([[1.0, 2.7]], "whole numbers"), ("text", "tokenized first"),
    (["one", "two"], "tokenized first"), ({"a": [1, 2]}, "got dict")])
def test_a_loss_of_what_the_model_cannot_read_is_refused(sequences, told, model):
    with pytest.raises((ValueError, TypeError), match=told):
        loss(model, sequences, 16)


# Checkpoints


@pytest.fixture
def run(tokenizer, tmp_path, hub_cache):
    """Two checkpoints of a run in a hub cache, and a name for one that is not there."""
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    words = {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()}
    revisions = {f"step{step}": {**files_of(tiny(tokenizer, torch.float32, step), tmp_path / str(step)), **words}
                 for step in (0, 8)}
    cache = str(hub_cache("me/run", revisions))
    return [Checkpoint("me/run", f"step{step}", step, step * 100, cache) for step in (0, 4, 8)]


@pytest.fixture
def held_out(corpus, tokenizer):
    return probe(corpus, tokenizer, 40, CONTEXT, 4)


def test_a_model_opens_with_its_lm_head_where_it_is_asked_for(run, tokenizer):
    opened = load(run[2].model, run[2].revision, run[2].cache_dir, "cpu", head=True)
    expected = tiny(tokenizer, torch.float32, 8).state_dict()
    assert not opened.training and opened.state_dict().keys() == expected.keys()
    assert all(torch.equal(weight, expected[key]) for key, weight in opened.state_dict().items())


def test_a_model_without_an_lm_head_is_refused(tokenizer, tmp_path):
    tiny(tokenizer, torch.float32).gpt_neox.save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"lack 1 tensors .* saved without its LM head"):
        load(str(tmp_path / "headless"), device="cpu", head=True)
    T5Config(d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="has no LM head: T5Config describes no causal language model"):
        load(str(tmp_path / "t5"), device="cpu", head=True)


def test_a_checkpoint_without_a_tokenizer_is_a_gap_that_says_how_to_name_one_and_is_measured_with_one_that_is_named(
        tokenizer, data, questions, tmp_path):
    folder = tmp_path / "model"
    tiny(tokenizer, torch.float32, 8).save_pretrained(folder)
    arguments = {"asked": ["cloze"], "store": Store(tmp_path / "records"), "batch_size": 16, "data": data,
                 "device": "cpu", "progress": False}
    gap = evaluate_checkpoints([Checkpoint(str(folder))], **arguments)
    assert gap.status[0] == "failed" and "it has none. Name one" in gap.reason[0] and "--tokenizer" in gap.reason[0]
    found = evaluate_checkpoints([Checkpoint(str(folder))], tokenizer=tokenizer, **arguments)
    assert found["items"][0].tolist() == by_hand(tiny(tokenizer, torch.float32, 8), tokenizer, questions)


def test_another_tokenizer_in_the_folder_is_another_measurement(tokenizer, data, questions, tmp_path):
    folder = tmp_path / "model"
    tiny(tokenizer, torch.float32, 8).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    arguments = {"asked": ["cloze"], "store": Store(tmp_path / "records"), "batch_size": 16, "data": data,
                 "device": "cpu", "progress": False}
    first = evaluate_checkpoints([Checkpoint(str(folder))], **arguments)
    other = train_tokenizer([" ".join(reversed(WORDS))] * 9, len(tokenizer))
    other.save_pretrained(folder)
    again = evaluate_checkpoints([Checkpoint(str(folder))], **arguments)
    assert first["items"][0].tolist() == by_hand(tiny(tokenizer, torch.float32, 8), tokenizer, questions)
    assert again["items"][0].tolist() == by_hand(tiny(tokenizer, torch.float32, 8), other, questions)
    assert again.identity[0] != first.identity[0]


def test_the_same_tokenizer_with_a_token_before_each_text_is_another_measurement(tokenizer, data, tmp_path):
    folder, other = tmp_path / "model", copy.deepcopy(tokenizer)
    tiny(tokenizer, torch.float32, 8).save_pretrained(folder)
    with_a_token_before(other)
    arguments = {"asked": ["cloze"], "batch_size": 16, "data": data, "device": "cpu", "progress": False}
    one, same, changed = (evaluate_checkpoints([Checkpoint(str(folder))], store=Store(tmp_path / "records"),
                                               tokenizer=each, **arguments).identity[0]
                          for each in (tokenizer, copy.deepcopy(tokenizer), other))
    assert one == same != changed


@pytest.mark.parametrize("wrong", [[[1, 2, 3]], "held-out.jsonl", {"sequences": [[1, 2]]}])
def test_what_is_no_probe_is_refused_before_anything_is_opened(wrong, tmp_path):
    with pytest.raises(TypeError, match=r"probe must be a Probe .*got (list|str|dict)"):
        evaluate_checkpoints([Checkpoint(str(tmp_path))], ["loss"], Store(tmp_path / "records"), 8, probe=wrong)


def test_checkpoints_are_measured_once_and_failures_are_gaps_that_are_tried_again(
        run, data, held_out, tokenizer, questions, tmp_path, monkeypatch):
    store, opened = Store(tmp_path / "records"), []
    monkeypatch.setattr(jobs, "open_at",
                        lambda point, *args, **kw: opened.append(point.revision) or open_at(point, *args, **kw))
    arguments = {"asked": ["cloze", "loss"], "store": store, "batch_size": 16, "data": data, "probe": held_out,
                 "device": "cpu", "dtype": "float32", "progress": False}
    first = evaluate_checkpoints(run, **arguments)
    assert first.status.tolist() == ["measured"] * 2 + ["failed"] * 2 + ["measured"] * 2
    assert first.task.tolist() == ["cloze", "loss"] * 3 and first.step.tolist() == [0, 0, 4, 4, 8, 8]
    assert first.reason[2].startswith("FileNotFoundError: cannot open model 'me/run' at revision 'step4'")
    expected = by_hand(tiny(tokenizer, torch.float32, 8), tokenizer, questions)
    assert first["items"][4].tolist() == expected and first.tokens[4] == 800
    assert opened == ["step0", "step4", "step8"]
    again = evaluate_checkpoints(run, **arguments)
    assert opened[3:] == ["step4"]  # the gap alone
    pd.testing.assert_frame_equal(again, first)
    other = lines(tmp_path / "other.jsonl", questions[:20])
    changed = evaluate_checkpoints(run[:1], **{**arguments, "data": {"cloze": other}})
    assert opened[4:] == ["step0"] and changed.samples.tolist() == [20, 40]  # other items: the loss is kept


def test_a_task_is_asked_again_once_a_file_that_it_is_made_from_has_changed(run, data, questions, tokenizer, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    yaml = (evaluation.LOCAL / "cloze.yaml").read_text()
    base = yaml.replace("task: cloze", "").replace("doc_to_text: passage", "doc_to_text: !function helpers.ask")
    (folder / "base.yaml").write_text(base)
    (folder / "mine.yaml").write_text("include: base.yaml\ntask: mine")

    def asked(name):
        (folder / "helpers.py").write_text(f"def ask(row):\n    return row[{name!r}]\n")
        return evaluate_checkpoints(run[2], "mine", Store(tmp_path / "records"), 16, data={"mine": data["cloze"]},
                                    include=folder, device="cpu", dtype="float32", progress=False)

    model = tiny(tokenizer, torch.float32, 8)
    near = [{**question, "passage": question["near"]} for question in questions]
    for name, expected in (("passage", questions), ("near", near)):
        assert asked(name)["items"].item().tolist() == by_hand(model, tokenizer, expected)
    assert len(list((tmp_path / "records").glob("*.parquet"))) == 2


def test_another_tokenizer_in_a_folder_with_the_same_weights_is_asked_anew(data, tokenizer, questions, tmp_path):
    folder = tmp_path / "model"
    tiny(tokenizer, torch.float32).save_pretrained(folder)
    for each in (tokenizer, train_tokenizer([text(np.random.default_rng(9), 40)], len(tokenizer))):
        each.save_pretrained(folder)
        found = evaluate_checkpoints(Checkpoint(str(folder)), "cloze", Store(tmp_path / "records"), 16, data=data,
                                     device="cpu", dtype="float32", progress=False)
        model = tiny(tokenizer, torch.float32)
        assert found["items"].item().tolist() == by_hand(model, each, questions)
    assert len(list((tmp_path / "records").glob("*.parquet"))) == 2


def test_a_data_file_of_the_same_age_with_other_items_is_read(model, tokenizer, questions, tmp_path):
    path = lines(tmp_path / "data.jsonl", questions[:10])
    times = os.stat(path)
    for items in (questions[:10], questions[10:20]):
        lines(path, items)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        [row] = evaluate(model, tokenizer, "cloze", 16, data={"cloze": path})
        assert row["items"] == by_hand(model, tokenizer, items)


def test_one_of_a_kind_counts_as_a_list_of_one_and_what_is_none_is_refused(run, data, tmp_path):
    store = Store(tmp_path / "records")
    options = {"data": data, "device": "cpu", "dtype": "float32", "progress": False}
    several = evaluate_checkpoints(run[2:], ["cloze"], store, 16, projections=[None], **options)
    one = evaluate_checkpoints(run[2], "cloze", store, 16, projections=None, **options)
    pd.testing.assert_frame_equal(one, several)
    for checkpoints in ("me/run", [str(run[2])], None):
        with pytest.raises(TypeError, match=r"expected checkpoints, got .*listing\.checkpoints\(name\)"):
            evaluate_checkpoints(checkpoints, "cloze", store, 16, **options)
    for change, told in (({"data": str(data["cloze"])}, "data says which file"), ({"trust": True}, "to trust, by name"),
                         ({"include": {"a": "b"}}, "folders of tasks, by name")):
        with pytest.raises(TypeError, match=told):
            evaluate_checkpoints(run[2], "cloze", store, 16, **options | change)


def test_a_name_is_trusted_as_a_whole_and_not_in_part(run, data, tmp_path, monkeypatch):
    trusted = []

    def opened(*args, trust_remote_code, **options):
        trusted.append(trust_remote_code)
        raise ValueError("as far as it goes")

    monkeypatch.setattr("reptrace.models.loading.load", opened)
    for trust in ("me/run-too", "me/run", ["me/run"], ("x", "me/run"), (), [Path("me/run")]):
        evaluate_checkpoints(run[2], "cloze", Store(tmp_path), 16, data=data, trust=trust, progress=False)
    assert trusted == [False, True, True, True, False, True]


def test_an_interrupted_evaluation_goes_on(run, data, tmp_path, monkeypatch):
    arguments = {"asked": ["cloze", "cloze_near"], "store": Store(tmp_path / "records"), "batch_size": 16, "data": data,
                 "device": "cpu", "progress": False}
    answered = []

    def interrupted(model, tokenizer, specs, *rest, **options):
        if len(answered) == 3:
            raise KeyboardInterrupt
        answered.append(specs[0]["task"])
        return evaluate(model, tokenizer, specs, *rest, **options)

    monkeypatch.setattr(evaluation, "evaluate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_checkpoints([run[0], run[2]], **arguments)
    monkeypatch.setattr(evaluation, "evaluate", lambda *args, **kw: answered.append("more") or evaluate(*args, **kw))
    found = evaluate_checkpoints([run[0], run[2]], **arguments)
    assert answered == ["cloze", "cloze_near", "cloze", "more"] and (found.status == "measured").all()


def test_projections_are_columns_and_a_k_beyond_the_width_is_a_gap(run, data, held_out, tokenizer, questions, tmp_path):
    kinds = [None, Projection(3), Projection(3, chosen="random", seed=5), Projection(WIDTH, "keep"),
             Projection(WIDTH + 1)]
    found = evaluate_checkpoints(run[2:], ["cloze"], Store(tmp_path / "records"), 16, data=data, probe=held_out,
                                 projections=kinds, device="cpu", progress=False)
    assert found.k.tolist()[1:] == [3, 3, WIDTH, WIDTH + 1] and pd.isna(found.k[0])
    assert found.chosen.tolist()[1:3] == ["leading", "random"] and found.direction_seed[2] == 5
    assert found.status.tolist() == ["measured"] * 4 + ["failed"]
    assert found.reason[4] == "ValueError: k must lie between 0 and the number of directions, 16, got 17."
    assert found["items"][3].tolist() == found["items"][0].tolist()
    model = tiny(tokenizer, torch.float32, 8)
    with projected(model, *directions(last_token_states(model, held_out.sequences)["final"]), 3):
        assert found["items"][1].tolist() == by_hand(model, tokenizer, questions)


def test_a_wrong_task_or_a_missing_probe_stops_before_any_checkpoint(stock, run, data, tmp_path):
    store = Store(tmp_path / "records")
    with pytest.raises(KeyError, match=r"no task 'clozes'.*Did you mean cloze"):
        evaluate_checkpoints(run, ["clozes"], store, 16, data=data, progress=False)
    with pytest.raises(ValueError, match="pass probe"):
        evaluate_checkpoints(run, ["loss"], store, 16, progress=False)
    with pytest.raises(ValueError, match="pass probe"):
        evaluate_checkpoints(run, ["cloze"], store, 16, data=data, projections=[Projection(1)], progress=False)
    assert not store.folder.exists()


def test_side_by_side_is_as_one_by_one(run, data, held_out, tmp_path, side_by_side):
    tables = []
    for workers in (1, 2):
        tables.append(evaluate_checkpoints(run, ["cloze", "loss"], Store(tmp_path / str(workers)), 16, data=data,
                                           probe=held_out, workers=workers, device="cpu", progress=False))
    first, second = (table.drop(columns="wall_seconds") for table in tables)
    assert first.status.tolist() == ["measured"] * 2 + ["failed"] * 2 + ["measured"] * 2
    pd.testing.assert_frame_equal(first, second, rtol=1e-6)  # another number of threads sums in another order


def test_memorization_of_a_checkpoint_is_the_rank_correlation_with_the_infinity_gram(run, tokenizer, questions,
                                                                                     tmp_path):
    prompts, answers = [q["passage"] for q in questions], [f" {q['choices'][0]}" for q in questions]
    reference = np.random.default_rng(5).normal(-5, 1, len(questions))
    reference[3] = -np.inf
    asked = Questions("recall", prompts, answers, reference, "made")
    [row] = evaluate_checkpoints(run[2:], [asked], Store(tmp_path / "records"), 4, device="cpu",
                                 progress=False).to_dict("records")
    model = tiny(tokenizer, torch.float32, 8)
    joint = [log_likelihood(model, tokenizer, prompt, answer)[0]
             for prompt, answer in zip(prompts, answers, strict=True)]
    np.testing.assert_allclose(row["items"], joint, rtol=1e-5)  # float32
    assert row["value"] == pytest.approx(scipy.stats.spearmanr(joint, reference).statistic)
    assert row["low"] < row["value"] < row["high"] and row["zeros_infgram"] == 1 and row["task"] == "recall"
    changed = Questions("recall", prompts, answers, reference + 1, "made")
    assert changed.fingerprint != asked.fingerprint


def test_a_known_fault_is_a_row_and_is_not_opened(run, data, tmp_path):
    wrong = dataclasses.replace(run[0], fault="serves others' weights")
    found = evaluate_checkpoints([wrong, run[2]], ["cloze"], Store(tmp_path / "records"), 16, data=data, device="cpu",
                                 progress=False)
    assert found.status.tolist() == ["quarantined", "measured"] and found.reason[0] == "serves others' weights"


def test_a_hub_checkpoint_is_fetched_checked_and_deleted(hub, tokenizer, data, tmp_path):
    tokenizer.save_pretrained(tmp_path / "words")
    words = {path.name: path.read_bytes() for path in (tmp_path / "words").iterdir()}
    commits = [hub.put("me/run", f"step{step}", words | files_of(tiny(tokenizer, torch.float32, step),
                                                                 tmp_path / str(step))) for step in (0, 8)]
    points = [Checkpoint("me/run", f"step{step}", step, step) for step in (0, 8)]
    found = evaluate_checkpoints(points, ["cloze"], Store(tmp_path / "records"), 16, data=data, device="cpu",
                                 progress=False)
    assert found.status.tolist() == ["measured"] * 2 and found.weights.tolist() == commits
    assert len(hub.fetched("model.safetensors")) >= 2 and not list(weights_cache().rglob("*.safetensors"))


def test_a_paired_change_has_the_interval_of_a_paired_test():
    rng = np.random.default_rng(0)
    before = rng.integers(0, 2, 300)
    after = np.where(rng.random(300) < 0.2, 1, before)
    change, low, high = evaluation.paired_change(before, after)
    expected = scipy.stats.ttest_rel(after, before).confidence_interval(0.95)
    assert change == pytest.approx((after - before).mean())
    # Student's t at 299 degrees of freedom is 0.4 % wider than the normal law
    np.testing.assert_allclose([low, high], [expected.low, expected.high], atol=0.004 * (expected.high - expected.low))
    with pytest.raises(ValueError, match="two items or more"):
        evaluation.paired_change([1], [0])


def test_the_command_line_writes_a_table_and_says_what_each_checkpoint_scored(stock, hub_cache, tokenizer, tmp_path,
                                                                              capsys, hub):
    tokenizer.save_pretrained(tmp_path / "words")
    words = {path.name: path.read_bytes() for path in (tmp_path / "words").iterdir()}
    for step in (0, 8):
        hub.put("me/run", f"step{step}", words | files_of(tiny(tokenizer, torch.float32, step), tmp_path / str(step)))
    rng = np.random.default_rng(3)
    rows = [{"question": text(rng, 3), "support": text(rng, 4), "correct_answer": text(rng, 1),
             **{f"distractor{k}": text(rng, 1) for k in (1, 2, 3)}} for _ in range(12)]
    split = "".join(f"{json.dumps(row)}\n" for row in rows).encode()
    hub.put("allenai/sciq", "main", {f"{name}.jsonl": split for name in ("train", "validation", "test")},
            kind="datasets")
    command = ["tasks", "--model", "me/run", "--revision", "step*", "--tasks", "sciq", "--limit", "10", "--device",
               "cpu", "--out", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == [f"me/run@step{step} sciq {metric}" for step in (0, 8)
                                                        for metric in ("acc", "acc_norm")]
    table = pd.read_csv(tmp_path / "out" / "tasks.csv")
    local = evaluate(tiny(tokenizer, torch.float32, 8), tokenizer, ["sciq"], 16, 10,
                     {"sciq": lines(tmp_path / "sciq.jsonl", rows)})
    assert table[table.revision == "step8"].value.tolist() == [row["value"] for row in local]
    assert main([*command[:6], "sciqq", *command[7:]]) == 1
    assert "there is no task 'sciqq'" in capsys.readouterr().err
