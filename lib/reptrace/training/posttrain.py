"""After pretraining: a stage of SFT, DPO or RLVR by TRL's trainers, its checkpoints revisions of a local repository.

A stage begins from a checkpoint and ends as another, so that stages follow each other, and whatever opens or traces a
pretrained model by name and revision does so with these. One that was interrupted, however, goes on from its last
checkpoint and ends with the weights that it would have had: on a CPU, bit for bit.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import math
import random
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from filelock import FileLock

from reptrace.checkpoints import hub as hubs
from reptrace.checkpoints import weights
from reptrace.checkpoints.listing import Checkpoint, revisions, step_of
from reptrace.models.generation import check_can_write
from reptrace.models.positions import context
from reptrace.records.store import write_atomically
from reptrace.support import arguments
from reptrace.support.fingerprints import files_fingerprint, fingerprint
from reptrace.training.pretrain import publish

SFT, DPO, RLVR = KINDS = ("SFT", "DPO", "RLVR")
COLUMNS = {SFT: ("prompt", "completion"), DPO: ("prompt", "chosen", "rejected"), RLVR: ("prompt", "answer")}
STATE = "trainer_state.json"  # the trainer's log, in each revision
LAST = "last"  # in the folder of an unfinished stage: name of the checkpoint that it goes on from
# Settings that a stage itself decides, and with other values could not go on from its checkpoints.
OWN = ("output_dir", "max_steps", "per_device_train_batch_size", "learning_rate", "seed", "logging_strategy")


@dataclass(frozen=True)
class Stage:
    """One training after pretraining: all that is set for it, but where it begins and its data.

    Parameters
    ----------
    kind : "SFT", "DPO" or "RLVR" (by GRPO)
    steps : int, optimizer steps
    every : int, steps between the checkpoints that are kept, of which `steps` is a multiple
    batch : int, examples a step: pairs, preference pairs, or drawn answers (prompts x `num_generations`)
    learning_rate : float, peak; what comes before and after it is set by `settings`
    seed : int, default 0; of the order of the data, and of what is drawn
    settings : mapping, default none
        More of TRL's SFTConfig, DPOConfig or GRPOConfig, plain values. With `logging_steps`, a divisor of `every`, the
        log has more rows than checkpoints; with `gradient_accumulation_steps` a batch is passed through in parts.

    Raises
    ------
    ValueError, TypeError
        Another kind; steps that are no multiple of `every`; a batch that holds no whole group of answers, or no whole
        parts; settings that are no plain values, that the stage itself decides, or with which it could not go on from
        a checkpoint.
    """

    kind: str
    steps: int
    every: int
    batch: int
    learning_rate: float
    seed: int = 0
    settings: Mapping = field(default_factory=dict)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"a stage is one of {', '.join(KINDS)}, got {self.kind!r}.")
        for name in ("steps", "every", "batch", "seed"):
            object.__setattr__(self, name, arguments.whole(getattr(self, name), name, int(name != "seed")))
        object.__setattr__(self, "learning_rate", float(self.learning_rate))
        object.__setattr__(self, "settings", _plain(self.settings))
        if self.steps % self.every:
            raise ValueError(f"steps must be a multiple of every: {self.steps} is none of {self.every}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}.")
        if own := [name for name in self.settings if name in OWN or name.startswith("save_")]:
            raise ValueError(f"{', '.join(own)} can't be among the settings: the stage's own fields decide that.")
        if self.batch % self.parts:
            raise ValueError(f"a batch of {self.batch} has no {self.parts} equal parts (gradient_accumulation_steps).")
        if self.kind == RLVR and (self.group < 2 or self.batch % self.group):
            raise ValueError(f"a batch of RLVR holds whole groups of two answers or more: {self.batch} is no multiple "
                             f"of num_generations, {self.group}.")
        self._check_resumable()

    def _check_resumable(self) -> None:
        """ValueError where a checkpoint would not hold all that training goes on with."""
        if self.every % (rows := arguments.whole(self.settings.get("logging_steps", 1), "logging_steps")):
            raise ValueError(f"a row of the log, a mean over logging_steps ({rows}), would span a checkpoint: every "
                             f"({self.every}) must be a multiple of it.")
        if self.kind == RLVR and self.every % self.used:
            raise ValueError(f"answers are used for {self.used:g} steps (num_iterations, steps_per_generation), which "
                             f"would span a checkpoint: every ({self.every}) must be a multiple of that.")
        if self.settings.get("sync_ref_model"):
            raise ValueError("sync_ref_model moves the reference, which no checkpoint holds: a stage can't go on then.")

    @property
    def group(self) -> int:
        """Answers drawn to a prompt in RLVR."""
        return self.settings.get("num_generations", 8)

    @property
    def written(self) -> int:
        """Tokens of an answer at most, in RLVR."""
        return self.settings.get("max_completion_length", 512)

    @property
    def parts(self) -> int:
        """Passes of a step, each of an equal part of the batch."""
        return arguments.whole(self.settings.get("gradient_accumulation_steps", 1), "gradient_accumulation_steps")

    @property
    def drawn(self) -> int:
        """Answers that are drawn at a time, in RLVR."""
        given = self.settings.get("generation_batch_size")
        return given or self.batch // self.parts * self.settings.get("steps_per_generation", self.parts)

    @property
    def used(self) -> float:
        """Steps that are taken with the answers drawn at a time."""
        return self.settings.get("num_iterations", 1) * self.drawn / self.batch

    @property
    def checkpoint_steps(self) -> list[int]:
        return list(range(self.every, self.steps + 1, self.every))

    def repository(self, start: Checkpoint, data, reward: Callable | None = None) -> str:
        """Name of the stage's repository: it holds a hash of all that is set, of where it begins, of the data, and of
        the source of a reward of one's own (of what that calls it knows nothing)."""
        facts = {**asdict(self), "start": _identity(start), "data": data_fingerprint(data)}
        if reward is not None:
            facts["reward"] = _source(reward)
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        # a name that a hub allows
        model = re.sub(r"[^A-Za-z0-9_]+", "-", Path(start.model).absolute().name.split("-after-")[0])[:48].strip("-")
        return f"reptrace/{model or 'model'}-after-{self.kind.lower()}-{digest[:8]}"


def tune(start: Checkpoint, stage: Stage, data, hub: str | Path, work: str | Path,
         reward: Callable[..., Sequence[float]] | None = None,
         report: Callable[[int], None] = lambda step: None) -> list[Checkpoint]:
    """Train a stage, or what is left of it; the checkpoints along it, in order of steps.

    Nothing is printed or sent, and random states are left as they were.

    Parameters
    ----------
    start : Checkpoint, a causal LM with its tokenizer
    stage : Stage
    data : datasets.Dataset
        Columns prompt and completion (SFT), prompt, chosen and rejected (DPO), prompt and answer (RLVR); all texts. TRL
        puts the end token after completions, and after chosen and rejected ones. A reward may read further columns.
    hub : folder of the repository, `Stage.repository`: revisions `step{n}`, and `main` when the stage is at its end
    work : folder for what an interrupted stage goes on from; what it holds of this stage is removed at its end
    reward : function for RLVR, as TRL's; default `exactly_right`
    report : function that is given each step done

    Raises
    ------
    ValueError
        Missing columns, no rows, or none for a whole batch of RLVR; values that are no texts; a prompt without tokens;
        a chosen equal to the rejected; a row that does not fit the model's context; a tokenizer without an end token,
        without a pad token that is another, or that ends a prompt by itself; a reward where none is earned; a model
        without an LM head, or whose files are damaged.
    TypeError
        A model that can't generate; data of another type.
    FileNotFoundError
        No such start.

    Warns
    -----
    UserWarning
        Every answer of some steps earned the same as the others of its group: there was nothing to learn.
    """
    if reward is not None and stage.kind != RLVR:
        raise ValueError(f"a reward belongs to RLVR: {stage.kind} earns none.")
    check_columns(data, stage)
    repository, hub = stage.repository(start, data, reward), str(hub)
    own = Path(work) / repository.split("/")[1]
    own.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(own.with_name(f"{own.name}.lock")):  # another process on the same stage waits, then finds it done
        if "main" not in revisions(repository, hub):
            with _as_if_nothing_happened():
                _train(start, stage, data, repository, hub, own, reward, report)
        shutil.rmtree(own, ignore_errors=True)
    return along(repository, start, hub)


def along(repository: str, start: Checkpoint, hub: str | Path) -> list[Checkpoint]:
    """What there is of a stage by now, in order of steps; tokens are those of the start."""
    steps = sorted(step for name in revisions(repository, str(hub)) if (step := step_of(name)) is not None)
    return [Checkpoint(repository, f"step{step}", step, start.tokens, str(hub)) for step in steps]


def log(checkpoint: Checkpoint) -> list[dict]:
    """The trainer's log up to a checkpoint of a stage: rows of TRL's own names, means since the row before."""
    return json.loads((folder_of(checkpoint) / STATE).read_text())["log_history"]


def folder_of(checkpoint: Checkpoint) -> Path:
    """Where a checkpoint's files lie; fetched, if they are not here. FileNotFoundError where there are none."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    weights.check_revision(checkpoint.model, checkpoint.revision)
    if Path(checkpoint.model).is_dir():
        return Path(checkpoint.model)
    revision, inside = hubs.parted(checkpoint.revision)
    try:
        found = snapshot_download(checkpoint.model, revision=revision, cache_dir=checkpoint.cache_dir,
                                  local_files_only=checkpoint.cache_dir is not None,
                                  allow_patterns=f"{inside}/*" if inside else None)
    except LocalEntryNotFoundError as error:
        there = revisions(checkpoint.model, checkpoint.cache_dir) if checkpoint.cache_dir else []
        raise FileNotFoundError(f"there is no {checkpoint.label} in {checkpoint.cache_dir or 'the cache of the hub'}; "
                                f"of that model there is {', '.join(there[:8]) or 'nothing'}.") from error
    return Path(found) / inside


def data_fingerprint(data) -> str:
    return fingerprint(json.dumps(row, sort_keys=True).encode() for row in data)


def _plain(settings: Mapping) -> dict:
    """A copy of what JSON can write."""
    try:
        return json.loads(json.dumps(dict(settings), allow_nan=False))
    except (TypeError, ValueError) as error:
        raise ValueError(f"settings are plain values, as they are part of a stage's name: {error}.") from error


def _identity(start: Checkpoint) -> str:
    """What was trained here (`Run`, `Stage`) is named by all that made it; any other model is known by its files, and
    not by its folder's or branch's name."""
    if start.cache_dir and re.fullmatch(r"reptrace/.*-[0-9a-f]{8}(-averaged)?", start.model):
        return start.label
    folder = folder_of(start)
    try:
        found = {*weights.weight_paths(folder), *(path for path in folder.iterdir()
                                                  if weights.SMALL.fullmatch(path.name) and path.name != STATE)}
    except (FileNotFoundError, weights.WeightsError) as error:
        raise type(error)(f"a stage can't begin from {start.label}: {error}") from error
    return files_fingerprint((path.name, path) for path in sorted(found))


def _source(reward: Callable) -> str:
    """What tells one reward from another: its source where there is some, and its name."""
    name = getattr(reward, "__qualname__", type(reward).__qualname__)
    try:
        return f"{name}\n{inspect.getsource(reward)}"
    except (OSError, TypeError):
        return name


def _train(start: Checkpoint, stage: Stage, data, repository: str, hub: str, work: Path, reward, report) -> None:
    refs = hubs.repository_folder(hub, repository) / "refs"
    if not (refs / f"step{stage.steps}").exists():  # else it ended where only its `main` was missing
        trainer = _trainer(start, stage, data, work, reward)
        trainer.add_callback(_callback(repository, hub, report))
        last = work / (work / LAST).read_text() if (work / LAST).exists() else None
        trainer.train(resume_from_checkpoint=str(last) if last and last.is_dir() else None)
    write_atomically(refs / "main", (refs / f"step{stage.steps}").read_bytes())


def _trainer(start: Checkpoint, stage: Stage, data, work: Path, reward):
    import torch
    from transformers import AutoConfig, PrinterCallback
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    from reptrace.models.loading import load, load_tokenizer

    folder, trainers = folder_of(start), {SFT: (SFTTrainer, SFTConfig), DPO: (DPOTrainer, DPOConfig),
                                          RLVR: (GRPOTrainer, GRPOConfig)}
    tokenizer = load_tokenizer(str(folder))
    check_can_write(load(str(folder), device="cpu", head=True), tokenizer)
    check_data(data, stage, tokenizer, folder)
    work.mkdir(exist_ok=True)
    make, config = trainers[stage.kind]
    device = {} if torch.cuda.is_available() else {"use_cpu": True}
    settings = {
        "max_steps": stage.steps, "per_device_train_batch_size": stage.batch // stage.parts,
        "learning_rate": stage.learning_rate, "seed": stage.seed, "logging_steps": stage.every,
        "save_steps": stage.every, "save_strategy": "steps",
        "report_to": "none", "disable_tqdm": True, "bf16": False, "dataloader_pin_memory": False,
        "activation_checkpointing": False, **({"max_length": None} if stage.kind != RLVR else {}), **device,
        **stage.settings}
    rewarded = {"reward_funcs": reward or exactly_right(tokenizer)} if stage.kind == RLVR else {}
    if stage.kind != RLVR:  # others, "text" for one, would mean something to TRL; here they are for a reward to read
        data = data.select_columns(COLUMNS[stage.kind])
    cached = getattr(AutoConfig.from_pretrained(folder), "use_cache", True)
    trainer = _amended(make, cached)(str(folder), args=config(str(work), **settings), train_dataset=data,
                             processing_class=tokenizer, **rewarded)
    trainer.remove_callback(PrinterCallback)  # the log is in each revision
    return trainer


def _amended(trainer_class: type, cached: bool) -> type:
    """A trainer of TRL that resumes as if it had never stopped, saves `use_cache` as it was configured, and keeps to
    itself what it does."""

    class Amended(trainer_class):
        def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
            # All weights: of GPT-NeoX the Trainer leaves out the output layer (transformers 48805). And TRL's count of
            # tokens, which it begins anew.
            from reptrace.models.loading import load

            saved = load(str(resume_from_checkpoint), device="cpu", dtype="float32", head=True)
            self.model.load_state_dict(saved.state_dict())
            rows = json.loads((Path(resume_from_checkpoint) / STATE).read_text())["log_history"]
            self._total_train_tokens = int(rows[-1]["num_tokens"])

        def save_model(self, *args, **kwargs):
            config, training = self.model.config, self.model.config.use_cache
            config.use_cache = cached  # the Trainer turns it off, and whoever opened the model would write slowly
            try:
                super().save_model(*args, **kwargs)
            finally:
                config.use_cache = training

        def create_model_card(self, *args, **kwargs):
            """None: it would lie among the work, and say little."""

        def _send_telemetry(self):
            """None: who trains what is nobody's concern."""

    return Amended


@contextmanager
def _as_if_nothing_happened() -> Iterator[None]:
    """Without progress bars and others' warnings; bars, filters and random states are then as before."""
    import torch
    from datasets.utils import logging as datasets
    from transformers.utils import logging as transformers

    shown = [each for each in (datasets, transformers) if each.is_progress_bar_enabled()]
    python, numpy = random.getstate(), np.random.get_state()
    with warnings.catch_warnings(), torch.random.fork_rng(range(torch.cuda.device_count())):
        # TRL's own calls
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)
        try:
            for each in shown:
                each.disable_progress_bar()
            yield
        finally:
            for each in shown:
                each.enable_progress_bar()
            random.setstate(python)
            np.random.set_state(numpy)


def check_columns(data, stage: Stage) -> None:
    """ValueError or TypeError where data is not what a stage reads: texts, in columns of these names."""
    from datasets import Dataset

    if not isinstance(data, Dataset):
        raise TypeError(f"data must be a datasets.Dataset, got {arguments.shown(data)}: of lists by column, "
                        "Dataset.from_dict(...).")
    wanted = COLUMNS[stage.kind]
    if missing := [name for name in wanted if name not in data.column_names]:
        raise ValueError(f"{stage.kind} needs the columns {', '.join(wanted)}; {', '.join(missing)} is missing among "
                         f"{', '.join(data.column_names)}: rename them (data.rename_columns).")
    if not len(data):
        raise ValueError(f"{stage.kind} was given no rows.")
    for name in wanted:
        for row, value in enumerate(data[name]):
            if not isinstance(value, str):
                raise ValueError(f"{name} of row {row} is no text but {arguments.shown(value)}.")


def check_data(data, stage: Stage, tokenizer, folder: Path) -> None:
    """ValueError where a stage can't learn from its texts with this tokenizer and model."""
    from transformers import AutoConfig

    end, prompts = tokenizer.eos_token, data["prompt"]
    asked = tokenizer(list(prompts))["input_ids"]
    if not all(asked):
        raise ValueError(f"the prompt of row {list(map(bool, asked)).index(False)} has no tokens: there is nothing to "
                         "answer.")
    if any(ids[-1] == tokenizer.eos_token_id for ids in asked):
        raise ValueError("the tokenizer puts its end token after every text, so that what is to be answered has ended: "
                         "use one that does not.")
    # as TRL does: the end token after each text that has none
    whole = [tokenizer([before + text.removesuffix(end) + end for before, text in zip(prompts, data[name], strict=True)]
                       )["input_ids"] for name in COLUMNS[stage.kind][1:]]
    if stage.kind == DPO and (alike := [row for row, (one, other) in enumerate(zip(*whole, strict=True))
                                        if one == other]):
        raise ValueError(f"chosen and rejected are equal in {len(alike)} of {len(data)} rows, the first is row "
                         f"{alike[0]}: such a pair prefers nothing; leave them out.")
    if stage.kind == RLVR and len(data) < (prompts_at_a_time := stage.drawn // stage.group):
        raise ValueError(f"answers are drawn to {prompts_at_a_time} prompts at a time, and there are {len(data)} rows.")
    reach, read = context(AutoConfig.from_pretrained(folder)), [asked] if stage.kind == RLVR else whole
    more, then = (stage.written, f", and with {stage.written} more it") if stage.kind == RLVR else (0, ": it")
    lengths = [max(map(len, row)) for row in zip(*read, strict=True)]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    if reach is not None and lengths[longest] + more > reach:
        raise ValueError(f"row {longest} has {lengths[longest]} tokens{then} does not fit the model's context of "
                         f"{reach}: leave out what is longer.")


def exactly_right(tokenizer) -> Callable[..., list[float]]:
    """A reward: 1 where the end token came last of what was drawn, and all before it reads as the `answer`; or 0.

    Read in one with the prompt, as some tokenizers leave out a text's first space; by tokens, as an end that is spelled
    in letters ends nothing.
    """
    def read(ids):
        return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def right(asked, drawn, answer):
        return drawn[-1:] == [tokenizer.eos_token_id] and read(asked + drawn[:-1]) == read(asked) + answer

    def reward(completion_ids, answer, prompts=None, **others):
        asked = [[]] * len(answer) if prompts is None else tokenizer(list(prompts))["input_ids"]
        texts = [text.removesuffix(tokenizer.eos_token) for text in answer]
        return [float(right(*each)) for each in zip(asked, completion_ids, texts, strict=True)]

    return reward


def _callback(repository: str, hub: str, report: Callable[[int], None]):
    """Publishes each checkpoint when the Trainer has written it whole, and warns where there is nothing to learn."""
    from transformers import TrainerCallback

    class Published(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            report(state.global_step)

        def on_log(self, args, state, control, logs=None, **kwargs):
            if (logs or {}).get("frac_reward_zero_std") == 1.0:
                warnings.warn(f"up to step {state.global_step}, all answers of every group earned the same (mean "
                              f"reward {logs['reward']:.3g}): there is nothing to learn from. Give easier problems, or "
                              "harder ones, or see whether the reward reads what is written.", stacklevel=2)

        def on_save(self, args, state, control, **kwargs):
            work, name = Path(args.output_dir), f"checkpoint-{state.global_step}"
            with tempfile.TemporaryDirectory(dir=work) as files:
                for path in (work / name).iterdir():  # not what training alone goes on with
                    if path.suffix not in (".pt", ".pth", ".bin"):
                        shutil.copy(path, files)
                publish(Path(files), repository, f"step{state.global_step}", hub)
            write_atomically(work / LAST, name.encode())  # whole, and published: this is what is gone on from
            for other in work.glob("checkpoint-*"):
                if other.name != name:
                    shutil.rmtree(other)

    return Published()
