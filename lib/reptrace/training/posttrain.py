"""After pretraining: a stage of SFT, DPO or RLVR by TRL's trainers, its checkpoints revisions of a local repository.

A stage begins from a checkpoint and ends as another, so that stages follow each other, and whatever opens or traces a
pretrained model by name and revision does so with these. One that was interrupted, however, goes on from its last
checkpoint and ends with the weights that it would have had: on a CPU, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from filelock import FileLock

from reptrace.checkpoints.hub import repository_folder
from reptrace.checkpoints.listing import Checkpoint, revisions, step_of
from reptrace.models.generation import check_can_write
from reptrace.models.positions import context
from reptrace.records.store import write_atomically
from reptrace.support.fingerprints import fingerprint
from reptrace.training.pretrain import publish

SFT, DPO, RLVR = KINDS = ("SFT", "DPO", "RLVR")
COLUMNS = {SFT: ("prompt", "completion"), DPO: ("prompt", "chosen", "rejected"), RLVR: ("prompt", "answer")}
STATE = "trainer_state.json"  # the trainer's log, in each revision


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
        More of TRL's SFTConfig, DPOConfig or GRPOConfig, plain values.

    Raises
    ------
    ValueError
        Another kind; steps that are no multiple of `every`; a batch that holds no whole group of answers.
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
        if min(self.steps, self.every, self.batch) < 1 or self.steps % self.every:
            raise ValueError(f"steps must be a multiple of every, and both and batch be 1 or more; got {self}.")
        if self.kind == RLVR and (self.group < 2 or self.batch % self.group):
            raise ValueError(f"a batch of RLVR holds whole groups of two answers or more: {self.batch} are no multiple "
                             f"of num_generations, {self.group}.")

    @property
    def group(self) -> int:
        """Answers drawn to a prompt in RLVR."""
        return self.settings.get("num_generations", 8)

    @property
    def written(self) -> int:
        """Tokens of an answer at most, in RLVR."""
        return self.settings.get("max_completion_length", 256)

    @property
    def checkpoint_steps(self) -> list[int]:
        return list(range(self.every, self.steps + 1, self.every))

    def repository(self, start: Checkpoint, data) -> str:
        """Name of the stage's repository: it holds a hash of all that is set, of where it begins, and of its data."""
        facts = {**asdict(self), "start": f"{start.model}@{start.revision}", "data": data_fingerprint(data)}
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return f"reptrace/{Path(start.model).name.split('-after-')[0]}-after-{self.kind.lower()}-{digest[:8]}"


def tune(start: Checkpoint, stage: Stage, data, hub: str | Path, work: str | Path,
         reward: Callable[..., Sequence[float]] | None = None,
         report: Callable[[int], None] = lambda step: None) -> list[Checkpoint]:
    """Train a stage, or what is left of it; the checkpoints along it, in order of steps.

    Parameters
    ----------
    start : Checkpoint, a causal LM with its tokenizer
    stage : Stage
    data : datasets.Dataset
        Columns prompt and completion (SFT), prompt, chosen and rejected (DPO), prompt and answer (RLVR); all texts. TRL
        puts the end token after completions, and after chosen and rejected ones.
    hub : folder of the repository, `Stage.repository`: revisions `step{n}`, and `main` when the stage is at its end
    work : folder for what an interrupted stage goes on from; what it holds of this stage is removed at its end
    reward : function for RLVR, as TRL's; default 1 where the answer and the end token were written and nothing else, 0
        elsewhere
    report : function that is given each step done

    Raises
    ------
    ValueError
        Missing columns, no rows, a chosen equal to the rejected, a row that does not fit the model's context; a
        tokenizer without an end token, or without a pad token that is another.
    TypeError
        A model that can't generate.

    Warns
    -----
    UserWarning
        Every answer of some steps earned the same as the others of its group: there was nothing to learn.
    """
    repository, hub = stage.repository(start, data), str(hub)
    own = Path(work) / repository.split("/")[1]
    own.mkdir(parents=True, exist_ok=True)
    with FileLock(own.with_suffix(".lock")):
        if "main" not in revisions(repository, hub):
            _train(start, stage, data, repository, hub, own, reward, report)
        shutil.rmtree(own)
    return along(repository, start, hub)


def along(repository: str, start: Checkpoint, hub: str | Path) -> list[Checkpoint]:
    """What there is of a stage by now, in order of steps; tokens are those of the start."""
    steps = sorted(step for name in revisions(repository, str(hub)) if (step := step_of(name)) is not None)
    return [Checkpoint(repository, f"step{step}", step, start.tokens, str(hub)) for step in steps]


def log(checkpoint: Checkpoint) -> list[dict]:
    """The trainer's log up to a checkpoint of a stage: rows of TRL's own names, means since the row before."""
    return json.loads((folder_of(checkpoint) / STATE).read_text())["log_history"]


def folder_of(checkpoint: Checkpoint) -> Path:
    """Where a checkpoint's files lie; fetched, if they are not here."""
    from huggingface_hub import snapshot_download

    if Path(checkpoint.model).is_dir():
        return Path(checkpoint.model)
    return Path(snapshot_download(checkpoint.model, revision=checkpoint.revision, cache_dir=checkpoint.cache_dir,
                                  local_files_only=checkpoint.cache_dir is not None))


def data_fingerprint(data) -> str:
    return fingerprint(json.dumps(row, sort_keys=True).encode() for row in data)


def _train(start: Checkpoint, stage: Stage, data, repository: str, hub: str, work: Path, reward, report) -> None:
    trainer = _trainer(start, stage, data, work, reward)
    trainer.add_callback(_callback(repository, hub, report))
    kept = [step for name in revisions(repository, hub) if (step := step_of(name)) is not None]
    last = work / f"checkpoint-{max(kept, default=0)}"
    if last.is_dir():
        _put_back(trainer.model, last)
    with warnings.catch_warnings():
        # what transformers says of GPT-NeoX's output layer, which `_put_back` has put back
        warnings.filterwarnings("ignore", "There were missing keys", UserWarning)
        warnings.filterwarnings("ignore", ".*gradient_checkpointing.* is deprecated", FutureWarning)  # TRL's own call
        trainer.train(resume_from_checkpoint=str(last) if last.is_dir() else None)
    ref = repository_folder(hub, repository) / "refs" / f"step{stage.steps}"
    write_atomically(ref.with_name("main"), ref.read_bytes())


def _put_back(model, folder: Path) -> None:
    """A checkpoint's weights, all of them: of GPT-NeoX the Trainer leaves out the output layer (transformers 48805)."""
    from reptrace.models.loading import load

    saved = load(str(folder), device="cpu", dtype="float32", head=True)
    model.load_state_dict(saved.state_dict())


def _trainer(start: Checkpoint, stage: Stage, data, work: Path, reward):
    import torch
    from transformers import PrinterCallback
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # of each model that is written
    # what a stage trains on goes by its own seed, whatever was drawn before in this process
    torch.manual_seed(stage.seed)
    from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer

    from reptrace.models.loading import load, load_tokenizer

    folder, trainers = folder_of(start), {SFT: (SFTTrainer, SFTConfig), DPO: (DPOTrainer, DPOConfig),
                                          RLVR: (GRPOTrainer, GRPOConfig)}
    tokenizer = load_tokenizer(str(folder))
    check_can_write(load(str(folder), device="cpu", head=True), tokenizer)
    check_data(data, stage, tokenizer, folder)
    make, config = trainers[stage.kind]
    device = {} if torch.cuda.is_available() else {"use_cpu": True}
    settings = {
        "max_steps": stage.steps, "per_device_train_batch_size": stage.batch, "learning_rate": stage.learning_rate,
        "seed": stage.seed, "logging_steps": stage.every, "save_steps": stage.every, "save_strategy": "steps",
        "report_to": "none", "disable_tqdm": True, "bf16": False, "dataloader_pin_memory": False,
        "activation_checkpointing": False, **({"max_length": None} if stage.kind != RLVR else {}), **device,
        **stage.settings}
    rewarded = {"reward_funcs": reward or exactly_right(tokenizer)} if stage.kind == RLVR else {}
    tokenizer.padding_side = "left" if stage.kind == RLVR else "right"
    trainer = make(str(folder), args=config(str(work), **settings), train_dataset=data, processing_class=tokenizer,
                   **rewarded)
    trainer.remove_callback(PrinterCallback)  # the log is in each revision
    return trainer


def check_data(data, stage: Stage, tokenizer, folder: Path) -> None:
    """ValueError where a stage can't learn from data as it stands."""
    from transformers import AutoConfig

    wanted = COLUMNS[stage.kind]
    if missing := [name for name in wanted if name not in data.column_names]:
        raise ValueError(f"{stage.kind} needs the columns {', '.join(wanted)}; {', '.join(missing)} is missing among "
                         f"{', '.join(data.column_names)}: rename them (data.rename_columns).")
    if not len(data):
        raise ValueError(f"{stage.kind} was given no rows.")
    if stage.kind == DPO:
        alike = [row for row, pair in enumerate(data) if pair["chosen"] == pair["rejected"]]
        if alike:
            raise ValueError(f"chosen and rejected are equal in {len(alike)} of {len(data)} rows, the first is row "
                             f"{alike[0]}: such a pair prefers nothing; leave them out.")
    reach = context(AutoConfig.from_pretrained(folder))
    texts = [["".join((row["prompt"], row[name])) for row in data] for name in wanted[1:]]
    if stage.kind == RLVR:
        texts = [[row["prompt"] for row in data]]
    for column in texts:
        lengths = list(map(len, tokenizer(column)["input_ids"]))
        more = stage.written if stage.kind == RLVR else 1  # the end token
        longest = max(range(len(lengths)), key=lengths.__getitem__)
        if reach is not None and lengths[longest] + more > reach:
            raise ValueError(f"row {longest} has {lengths[longest]} tokens, and with {more} more it does not fit the "
                             f"model's context of {reach}: leave out what is longer.")


def exactly_right(tokenizer) -> Callable[..., list[float]]:
    """A reward: 1 where the tokens that were drawn read as the `answer` and the end token, and nothing else; or 0."""
    def reward(completion_ids, answer, **others):
        said = (tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
                for ids in completion_ids)
        return [float(text == right + tokenizer.eos_token) for text, right in zip(said, answer, strict=True)]

    return reward


def _callback(repository: str, hub: str, report: Callable[[int], None]):
    """Publishes each checkpoint when the Trainer has written it whole, and says what the trainer's log says ill."""
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
            saved = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            with tempfile.TemporaryDirectory(dir=args.output_dir) as files:
                for path in saved.iterdir():
                    if path.suffix in (".json", ".safetensors", ".jinja"):
                        shutil.copy(path, files)
                publish(Path(files), repository, f"step{state.global_step}", hub)
            for other in Path(args.output_dir).glob("checkpoint-*"):  # only now: this one is what is gone on from
                if other != saved:
                    shutil.rmtree(other)

    return Published()
