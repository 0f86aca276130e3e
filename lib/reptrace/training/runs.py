"""A run of a small suite: its settings, its name, and the steps at which it is kept."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from functools import cached_property

import numpy as np

from reptrace.texts.frequencies import NATURAL, REMAPPINGS

HEAD_WIDTH = 16  # of an attention head; a model narrower than two of them has one
LOSSES = ("cross-entropy", "squared error")
# Came after runs had been trained and named: a run is named by these only where they differ from their defaults.
ADDED = ("loss", "frequencies", "head_width", "rotary", "decay_steps", "digits")
AVERAGED_FROM = 64  # steps; an average over fewer says nothing
DECAYING = "warmup_stable_decay"  # the schedule that decay_steps belong to


@dataclass(frozen=True)
class Run:
    """One model to train: all that is set for it. The name of its `repository` holds a hash of this.

    Parameters
    ----------
    width, layers : int
        Hidden size (a multiple of `head_width`, or half or one and a half of it with one head) and number of blocks.
    steps : int
        Optimizer steps of batch * context tokens each.
    seed : int
        Initial weights and order of the text.
    vocabulary, context, batch : int
        Entries of the tokenizer; tokens of a training sequence; sequences a step.
    learning_rate, warmup_steps, schedule, weight_decay
        Peak rate; linear warmup; transformers' name of the schedule after it; AdamW's decay (betas 0.9 and 0.95).
    gradient_clip : float
        Largest gradient norm; 0: any.
    corpus : str
        Fingerprint of the training text.
    recipe : int
        Raised by hand when `pretrain` trains differently from the same settings; older runs are then trained anew.
        1 was by transformers' Trainer, without averaged weights; 2 is by `lean`.
    loss : str, default "cross-entropy"
        Or "squared error", see `lean.squared_error`.
    frequencies : str, default "natural"
        Of the tokens: "flattened" or "swapped" remap the token ids, see `frequencies`. The tokenizer stays that of the
        text, so such a model's own ids are not its tokenizer's.
    head_width : int, default 16
        Of an attention head.
    rotary : float, default 0.25
        Share of each head that rotary embedding turns, in pairs of dimensions; 1: the whole head.
    decay_steps : int, default 0
        With the schedule "warmup_stable_decay" alone: the last steps, in which the rate falls linearly to 0.
    digits : bool, default False
        Whether the tokenizer has a token for each digit, see `corpora.train_tokenizer`.
    """

    width: int
    layers: int
    steps: int
    seed: int
    vocabulary: int
    context: int
    batch: int
    learning_rate: float
    warmup_steps: int
    schedule: str
    weight_decay: float
    corpus: str
    gradient_clip: float = 1.0
    recipe: int = 2
    loss: str = LOSSES[0]
    frequencies: str = NATURAL
    head_width: int = HEAD_WIDTH
    rotary: float = 0.25
    decay_steps: int = 0
    digits: bool = False

    def __post_init__(self):
        head = self.head_width
        if head < 1:
            raise ValueError(f"head_width must be positive, got {head}.")
        if self.width % head and self.width not in (head // 2, head * 3 // 2):
            raise ValueError(f"width must be a multiple of {head}, or {head // 2} or {head * 3 // 2}, got "
                             f"{self.width}.")
        if min(self.width, self.layers, self.steps, self.context, self.batch) < 1:
            raise ValueError(f"width, layers, steps, context and batch must be positive, got {self}.")
        if self.vocabulary > 2**16:
            raise ValueError(f"token ids are kept in 16 bits: a vocabulary of at most 65536, got {self.vocabulary}.")
        turned = self.width // self.heads * self.rotary
        if not 0 < self.rotary <= 1 or turned % 2:
            raise ValueError(f"rotary must be a share of a head, up to 1, that is a whole number of pairs of "
                             f"dimensions: {self.rotary} of {self.width // self.heads} is not.")
        if not ((1 <= self.decay_steps <= self.steps - self.warmup_steps) if self.schedule == DECAYING
                else self.decay_steps == 0):
            raise ValueError(f"decay_steps belong to the schedule {DECAYING}, at least one and all after the warmup's "
                             f"{self.warmup_steps} of {self.steps} steps, got {self.decay_steps} with {self.schedule}.")
        for name, known in (("loss", LOSSES), ("frequencies", (NATURAL, *REMAPPINGS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}.")

    @property
    def identity(self) -> dict:
        """All that is set, without what was added later and is at its default."""
        defaults = {field.name: field.default for field in fields(self)}
        return {key: value for key, value in asdict(self).items() if key not in ADDED or value != defaults[key]}

    @property
    def repository(self) -> str:
        digest = hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()
        return f"reptrace/neox-d{self.width}-seed{self.seed}-{digest[:8]}"

    @property
    def averaged_repository(self) -> str:
        """Of the averaged weights."""
        return f"{self.repository}-averaged"

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.context

    @property
    def training_tokens(self) -> int:
        return self.steps * self.tokens_per_step

    @property
    def checkpoint_steps(self) -> list[int]:
        return log_spaced(self.steps)

    @property
    def averaged_steps(self) -> list[int]:
        """Those of the checkpoints whose averaged weights are kept too; none of a run that is shorter."""
        return [step for step in self.checkpoint_steps if step >= AVERAGED_FROM]

    @property
    def save_every(self) -> int:
        """Steps between the states that an interrupted run resumes from."""
        return max(1, self.steps // 8)

    @property
    def heads(self) -> int:
        """Of a block."""
        return max(1, self.width // self.head_width)

    @cached_property
    def config(self):
        from transformers import GPTNeoXConfig

        return GPTNeoXConfig(
            vocab_size=self.vocabulary, hidden_size=self.width, num_hidden_layers=self.layers,
            num_attention_heads=self.heads, intermediate_size=4 * self.width,
            max_position_embeddings=self.context, bos_token_id=0, eos_token_id=0, pad_token_id=1,
            tie_word_embeddings=False, attention_dropout=0.0, hidden_dropout=0.0,
            rope_parameters={"partial_rotary_factor": self.rotary})

    @property
    def parameters(self) -> int:
        """Number of weights, embedding and unembedding included, as "70m" counts them in Pythia's own names."""
        d, feedforward = self.width, 4 * self.width
        block = 3 * d * d + 3 * d + d * d + d + 2 * d * feedforward + feedforward + d + 4 * d
        return 2 * self.vocabulary * d + self.layers * block + 2 * d


def blocks_of(ids: np.ndarray, run: Run) -> np.ndarray:
    """The text in stretches of a run's context, shape (blocks, context); ValueError if it is shorter than one."""
    blocks = ids[: len(ids) // run.context * run.context].reshape(-1, run.context)
    if len(blocks) == 0:
        raise ValueError(f"the training text has {len(ids)} tokens, less than one context of {run.context}.")
    return blocks


def block_order(blocks: int, run: Run) -> np.ndarray:
    """Which stretch of the text, of so many, each training sequence of a run is: shuffled anew in each pass.

    Returns
    -------
    array of int, shape (steps * batch,)
    """
    rng, needed = np.random.default_rng(run.seed), run.steps * run.batch
    passes = [rng.permutation(blocks) for _ in range(-(-needed // blocks))]
    return np.concatenate(passes)[:needed]


def log_spaced(steps: int, per_doubling: int = 3) -> list[int]:
    """0, 1, 2, 4, ..., 64, from there on `per_doubling` steps a doubling, and the last step."""
    powers = [2**k for k in range(7)]
    later = [round(64 * 2 ** (k / per_doubling)) for k in range(1, 64 * per_doubling)]
    return sorted({0, *(step for step in powers + later if step < steps), steps})
