"""The reference suite: larger models and longer runs than `make report` has time for; its tables are tracked.

    make reference                 # hours on a CPU; go on with it at any time
    make reference HOURS=2.5       # stops with a whole checkpoint
    .venv/bin/python studies/reference.py gpu --hours 0.13 --text FILE --out FOLDER

Settings: reference.yaml. At log-spaced steps the geometry of a held-out probe and the held-out loss are measured in the
same process, of the weights as they are and of their average (`training.lean`). After each checkpoint a table a size is
written anew, whole, so that a machine cut off at any second leaves what was done; the state to go on from is kept in
build/reference, every few minutes and at the end. `--pack FILE` writes the text alone, for a machine that lacks the
packages it is made of (as it is, or compressed: `zstd -9 --long=27 FILE`); `--trial` tells what each size would reach;
`--join FOLDER` puts the tables that another machine or another call has written into those of `--out`.
"""

from __future__ import annotations

import argparse
import io
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import torch
import yaml
from filelock import FileLock
from peak import matmul_peak, wait

from reptrace.measures import registry, within
from reptrace.measures.spectra import geometry
from reptrace.models import matrices
from reptrace.models.hidden_states import FINAL, NonFiniteError, extract, last_token_states
from reptrace.models.repetition import repetition, shuffled
from reptrace.records.store import provenance, write_atomically
from reptrace.support.fingerprints import fingerprint
from reptrace.training.lean import Averaging, Loop, check_same, head_loss, initial_model
from reptrace.training.runs import AVERAGED_FROM, Run, log_spaced

OF_TEXT = ("text", "vocabulary", "tokenizer_from", "sequences", "length", "held_out_tokens")  # settings it hangs on
PLAN = Path(__file__).with_suffix(".yaml")
DEFAULT = ("cpu", "docstrings")  # groups
ROOT = Path(__file__).parents[1]
OUT, BUILD = ROOT / "data" / "results" / "reference", ROOT / "build" / "reference"
SAVE_SECONDS = 300  # between two states on the disk
CHUNK_SECONDS = 2  # of training between two looks at the clock
KEY = ["seed", "step", "weights"]  # of a row
# columns of what is set beside a run's identity; another tokenizer is known by the number of tokens
ASKED = ["sequences", "length", "averaging", "unique_tokens"]
# Measures beside RankMe and alpha, of the weights as they are. Of CKA that with the untrained model alone: the last
# checkpoint is not there yet, and the previous one not where a run goes on.
READINGS = ("anisotropy", "cka", "readout", "weights", "prompt_entropy", "curvature", "sentence_erank",
            "intrinsic_dimension")
ABSENT = ("last", "previous")


@dataclass(frozen=True)
class Text:
    """What the runs are trained and measured on, in token ids (uint16).

    Attributes
    ----------
    train : array, shape (tokens,); documents, each followed by the end of text
    held_out, probe : arrays, shape (sequences, length); stretches from inside of held-out documents
    facts : dict; what the text is: its name, fingerprints, the vocabulary
    """

    train: np.ndarray
    held_out: np.ndarray
    probe: np.ndarray
    facts: dict

    def write(self, path: Path) -> None:
        """One .npz file."""
        buffer = io.BytesIO()
        np.savez(buffer, train=self.train, held_out=self.held_out, probe=self.probe, facts=json.dumps(self.facts))
        write_atomically(path, buffer.getbuffer())

    @classmethod
    def read(cls, path: Path) -> Text:
        """What `write` has written, as it is or compressed since (.zst)."""
        content = path.read_bytes()
        if path.suffix == ".zst":
            content = pyarrow.CompressedInputStream(pyarrow.BufferReader(content), "zstd").read()
        kept = np.load(io.BytesIO(content))
        return cls(kept["train"], kept["held_out"], kept["probe"], json.loads(str(kept["facts"])))


@dataclass(frozen=True)
class Planned:
    """A run, its group, and how long it may take in one go (seconds, or None)."""

    run: Run
    group: str
    seconds: float | None

    @property
    def table(self) -> str:
        return f"{self.group}-d{self.run.width}.parquet"

    def __str__(self) -> str:
        return f"{self.group}, width {self.run.width}, seed {self.run.seed}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", default=list(DEFAULT), help="of the plan; default " + ", ".join(DEFAULT))
    parser.add_argument("--plan", type=Path, default=PLAN, help="another file of settings")
    parser.add_argument("--hours", type=float, default=float("inf"), help="stop by then, with a whole checkpoint")
    parser.add_argument("--text", type=Path, help="a file that --pack has written (.npz or .npz.zst)")
    parser.add_argument("--out", type=Path, default=OUT, help="folder of the tables")
    parser.add_argument("--pack", type=Path, metavar="FILE", help="write the text to a file (.npz), and end")
    parser.add_argument("--trial", action="store_true", help="some steps of each size: its speed, and what it reaches")
    parser.add_argument("--join", type=Path, metavar="FOLDER", help="put the tables of a folder into --out, and end")
    asked = parser.parse_args(arguments)
    if asked.join:
        join(asked.join, asked.out)
        return
    if not asked.hours > 0:
        parser.error(f"--hours must be above 0, got {asked.hours:g}")
    deadline = time.perf_counter() + 3600 * asked.hours
    plan = yaml.safe_load(asked.plan.read_text())
    for group in asked.groups:
        if group not in plan["groups"]:
            parser.error(f"a group must be one of {', '.join(plan['groups'])}, got {group!r}")
    if len(asked.groups) > 1 and (asked.text or asked.pack):
        parser.error(f"--text and --pack are about the text of one group, got {', '.join(asked.groups)}")
    plans = {group: plan_of(plan, group) for group in asked.groups}
    texts = {group: Text.read(asked.text) if asked.text else default_text(its) for group, its in plans.items()}
    if asked.pack:
        texts[asked.groups[0]].write(asked.pack)
        return
    suites = [Reference(its, group, texts[group], asked.out) for group, its in plans.items()]
    if asked.trial:
        for suite in suites:
            suite.trial()
    else:
        train(suites, deadline)


def plan_of(plan: dict, group: str) -> dict:
    """The plan as a group has it, which may name a text of its own."""
    return {**plan, **{key: value for key, value in plan["groups"][group].items() if key in OF_TEXT}}


def train(suites: Sequence[Reference], deadline: float) -> None:
    """Go on with every run, what costs least first, until all are at their ends or the clock is past the deadline.

    `deadline` : seconds of time.perf_counter
    """
    runs = [(each, suite) for suite in suites for each in suite.planned]
    runs.sort(key=lambda pair: pair[0].run.training_tokens * pair[0].run.parameters)
    suites[0].build.mkdir(parents=True, exist_ok=True)
    with FileLock(suites[0].build / "lock"):  # two at a time would overwrite each other's rows
        for each, suite in runs:
            if time.perf_counter() >= deadline:
                print(f"time is up before {each}", flush=True)
                return
            suite.train(each, deadline)


def default_text(plan: dict) -> Text:
    """The text of the installed packages, made once for the settings that it hangs on, which its name holds a hash of.

    Other packages are not noticed: remove the file.
    """
    longest = max(group["context"] for group in plan["groups"].values())
    asked = {key: plan[key] for key in OF_TEXT} | {"longest": longest}
    kept = BUILD / f"text-{fingerprint([json.dumps(asked).encode()])}.npz"
    if not kept.exists():
        from reptrace.texts.corpora import open_text

        make_text(open_text(plan["text"]), plan).write(kept)
    return Text.read(kept)


def make_text(corpus, plan: dict) -> Text:
    """Token ids of a corpus, split by document, by a tokenizer that its training part has taught."""
    from reptrace.texts.corpora import train_tokenizer

    train, held_out = corpus.split()
    tokenizer = train_tokenizer(train.documents[:: plan["tokenizer_from"]], plan["vocabulary"])
    kept, end = [tokens(part.documents, tokenizer) for part in (train, held_out)], tokenizer.eos_token_id
    longest = max(group["context"] for group in plan["groups"].values())
    facts = {"text": corpus.name, "fingerprint": corpus.fingerprint, "train_fingerprint": train.fingerprint,
             "vocabulary": plan["vocabulary"], "train_documents": len(train.documents)}
    return Text(kept[0], stretches(kept[1], plan["held_out_tokens"] // longest, longest, end),
                stretches(kept[1], plan["sequences"], plan["length"], end), facts)


def tokens(documents: Sequence[str], tokenizer, together: int = 256) -> np.ndarray:
    """Their token ids one after the other, the end of text after each, uint16."""
    pieces = []
    for start in range(0, len(documents), together):
        for found in tokenizer.backend_tokenizer.encode_batch(documents[start : start + together],
                                                              add_special_tokens=False):
            pieces.append(np.array([*found.ids, tokenizer.eos_token_id], dtype=np.uint16))
    return np.concatenate(pieces)


def stretches(ids: np.ndarray, count: int, length: int, end: int) -> np.ndarray:
    """Stretches of a text that don't overlap and lie inside of its documents, drawn by a fixed seed, in random order.

    Raises
    ------
    ValueError
        There are not so many.
    """
    blocks = ids[: len(ids) // length * length].reshape(-1, length)
    inside = np.flatnonzero((blocks != end).all(1))
    if len(inside) < count:
        raise ValueError(f"the held-out text has {len(inside)} stretches of {length} tokens, less than {count}.")
    return blocks[np.random.default_rng(0).permutation(inside)[:count]]


class Reference:
    """The runs of a group: trained, measured, written down.

    Parameters
    ----------
    plan : dict, as in reference.yaml
    group : str
    text : Text
    out : Path
        Folder of the tables.
    build : Path
        Folder of the states to go on from.
    """

    def __init__(self, plan: dict, group: str, text: Text, out: Path, build: Path = BUILD):
        self.plan, self.text, self.out, self.build = plan, text, Path(out), Path(build)
        self.keep_state = plan["groups"][group]["keep_state"]
        self.planned = list(planned(plan, group, text.facts["train_fingerprint"]))
        self.averaging, self.probe = Averaging(**plan["averaging"]), text.probe[: plan["sequences"]]
        self.asked = dict(zip(ASKED, (*self.probe.shape, str(self.averaging), len(text.train)), strict=True))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        if self.device == "cpu":
            torch.set_num_threads(1)
            torch.set_flush_denormal(True)
        self.peak = matmul_peak(self.device, torch.bfloat16 if self.device == "cuda" else torch.float32)

    def train(self, each: Planned, deadline: float) -> None:
        """Go on with a run, if it is not at its end."""
        if self.rows(each).step.max() == each.run.steps:
            print(f"{each}: done", flush=True)
            return
        try:
            self.go_on(each, deadline)
        except NonFiniteError as error:  # its rows up to here are kept, and the others are trained
            print(f"{each} has diverged: {error}", flush=True)

    def go_on(self, each: Planned, deadline: float) -> None:
        """Train one run from where it stands, up to its end or the time."""
        run, loop = each.run, Loop(each.run, self.text.train, self.averaging, self.device)
        state = self.build / run.repository.replace("/", "-") / "state.pt"
        if state.exists():
            loop.load(state)
        deadline = min(deadline, time.perf_counter() + (each.seconds or float("inf")))
        measured, clock, saved = Measured(self, run), Clock(self, run), time.perf_counter()
        done = set(self.rows(each).step[lambda steps: steps <= loop.step])
        if lacking := [step for step in log_spaced(run.steps) if step < loop.step and step not in done]:
            raise ValueError(f"{each}: the state in {str(state)!r} is of step {loop.step}, and "
                             f"{str(self.out / each.table)!r} lacks checkpoints before it, from step {lacking[0]} on: "
                             "put that table back, or delete the state, and the run begins anew.")
        for step in [step for step in log_spaced(run.steps) if step >= loop.step and step not in done]:
            while loop.step < step and time.perf_counter() < deadline:
                clock.advance(loop, step)
                if self.keep_state and time.perf_counter() > saved + SAVE_SECONDS:
                    loop.save(state)
                    saved = time.perf_counter()
            if clock.steps or loop.step not in done:  # else its row is there, and knows of the training before it
                self.write(each, measured.rows(loop, clock.taken()))
            if time.perf_counter() >= deadline:
                break
        if loop.step == run.steps:
            state.unlink(missing_ok=True)
        elif self.keep_state:
            loop.save(state)

    def rows(self, each: Planned) -> pd.DataFrame:
        """What there is of a run; ValueError where it was made with other settings."""
        path = self.out / each.table
        table = pd.read_parquet(path) if path.exists() else pd.DataFrame({"seed": [], "step": [], "identity": []})
        table = table[table.seed == each.run.seed]
        for found in settings(table):
            check_same(found, {**each.run.identity, **self.asked}, f"{each} in {str(path)!r}")
        return table

    def write(self, each: Planned, rows: list[dict]) -> None:
        """Put rows into the table of a size, whole or not at all; an older row of the same checkpoint is replaced."""
        path, new = self.out / each.table, pd.DataFrame(rows)
        if path.exists():
            old = pd.read_parquet(path)
            again = old.set_index(KEY).index.isin(new.set_index(KEY).index)
            new = pd.concat([old[~again], new])
        write_table(path, new)
        for row in rows:
            left = each.run.training_tokens - row["tokens"]
            speed = row["tokens_per_second"]
            print(f"{each}, {row['weights']}: step {row['step']}, {row['tokens'] / 1e6:.2f} M tokens, held-out loss "
                  f"{row['held_out_loss']:.3f}, RankMe {row['rankme']:.1f} +- {row['rankme_stderr']:.1f}"
                  + (f", {speed / 1e3:.0f} k tokens/s, {row['peak_share']:.0%} of the peak, {left / speed / 60:.1f} "
                     "minutes to its end" if speed > 0 else "") + f"; measured in {row['measuring_seconds']:.1f} s",
                  flush=True)

    def trial(self) -> None:
        """Some steps of each size."""
        print(f"{self.device}: matmul peak {self.peak / 1e12:.1f} TFLOP/s", flush=True)
        for each in {each.run.width: each for each in reversed(self.planned)}.values():
            started = time.perf_counter()
            loop, clock = Loop(each.run, self.text.train, self.averaging, self.device), Clock(self, each.run)
            loop.advance(3)
            wait()
            compiled = time.perf_counter() - started
            started = time.perf_counter()
            loop.advance(40)
            wait()
            speed = 40 / (time.perf_counter() - started)
            row = Measured(self, each.run).rows(loop, {})[0]
            minutes = each.run.steps / speed / 60
            memory = torch.cuda.max_memory_allocated() / 1e9 if self.device == "cuda" else float("nan")
            print(f"{each}: {each.run.parameters / 1e6:.2f} M weights, {compiled:.1f} s until step 3, "
                  f"{speed:.2f} steps/s, {speed * each.run.tokens_per_step / 1e3:.0f} k tokens/s, "
                  f"{clock.share(speed):.1%} of the peak, measuring {row['measuring_seconds']:.2f} s, {each.run.steps} "
                  f"steps in {minutes:.1f} minutes, {memory:.1f} GB, held-out loss {row['held_out_loss']:.2f}",
                  flush=True)


class Clock:
    """What training took since the last checkpoint."""

    def __init__(self, reference: Reference, run: Run):
        self.reference, self.run, self.chunk = reference, run, 1
        self.steps, self.seconds, self.loss, self.last = 0, 0.0, 0.0, {}

    def advance(self, loop: Loop, until: int) -> None:
        """Train up to a step, or for a little while."""
        steps, started = min(self.chunk, until - loop.step), time.perf_counter()
        self.last = loop.advance(steps)
        taken = time.perf_counter() - started
        self.steps, self.seconds = self.steps + steps, self.seconds + taken
        self.loss += steps * self.last["loss"]
        self.chunk = max(1, min(4 * self.chunk, int(steps * CHUNK_SECONDS / taken)))

    def taken(self) -> dict:
        """Columns about the training since this was asked last."""
        steps, seconds, loss = self.steps, self.seconds, self.loss
        self.steps, self.seconds, self.loss = 0, 0.0, 0.0
        if not steps:
            return {}
        return {"train_loss": loss / steps, "gradient_norm": self.last["gradient_norm"],
                "learning_rate": self.last["learning_rate"], "train_seconds": seconds,
                "tokens_per_second": steps * self.run.tokens_per_step / seconds,
                "peak_share": self.share(steps / seconds)}

    def share(self, steps_per_second: float) -> float:
        """Of the device's best matrix product."""
        return steps_per_second * self.run.tokens_per_step * operations_per_token(self.run) / self.reference.peak


class Measured:
    """Geometry, held-out loss and copying of a run's weights, by a model of its own that is never compiled."""

    def __init__(self, reference: Reference, run: Run):
        self.reference, self.run = reference, run
        self.device = torch.device(reference.device)
        self.model = initial_model(run).to(self.device).eval()
        self.probe = reference.probe.astype(np.int64).tolist()
        held_out = reference.text.held_out.astype(np.int64).reshape(-1, run.context)
        self.held_out = torch.from_numpy(held_out).to(self.device)
        half = run.context // 2
        self.unordered = shuffled(self.held_out, self.held_out.numel() // half // 4, half)
        self.readings = [name for name in READINGS if registry.REGISTRY[name].least <= len(self.probe)]
        self.untrained = last_token_states(self.model, self.probe, batch_size="auto")[FINAL].to(self.device)

    def rows(self, loop: Loop, training: dict) -> list[dict]:
        """A row for the weights as they are, and one for their average."""
        kinds = {"raw": loop.parameters}
        if loop.step >= AVERAGED_FROM:
            kinds["averaged"] = loop.average
        return [self._row(loop.step, kind, weights, training) for kind, weights in kinds.items()]

    def _row(self, step: int, kind: str, weights: Sequence[torch.Tensor], training: dict) -> dict:
        run, text, started = self.run, self.reference.text, time.perf_counter()
        with torch.no_grad():
            torch._foreach_copy_(list(self.model.parameters()), list(weights))
        read = extract(self.model, self.probe, batch_size="auto", reductions=within.REDUCTIONS if kind == "raw" else {})
        states = read.features[FINAL].to(self.device)
        others = self._readings(states, read.reduced) if kind == "raw" else {}
        found = geometry(states, tuple(self.reference.plan["alpha_ranks"]), shorten=True)
        loss, copied = self._held_out_loss(), repetition(self.model, self.unordered)
        blank = dict.fromkeys(("train_loss", "gradient_norm", "learning_rate", "train_seconds", "tokens_per_second",
                               "peak_share"), float("nan"))
        first, last = found.alpha.ranks if found.alpha else (0, 0)
        return {"width": run.width, "layers": run.layers, "seed": run.seed, "step": step, "weights": kind,
                "parameters": run.parameters, "tokens": step * run.tokens_per_step,
                "rankme": found.rankme, "rankme_stderr": found.rankme_stderr,
                "alpha": found.alpha.alpha if found.alpha else float("nan"), "alpha_stderr": found.alpha_stderr,
                "alpha_first": first, "alpha_last": last, "largest_influence": found.largest_influence,
                "half_variance": found.half_variance, "eigenvalues": found.eigenvalues.astype(np.float32),
                "held_out_loss": loss, "first_copy_loss": copied.first_loss, "second_copy_loss": copied.second_loss,
                "copy_accuracy": copied.accuracy, **others, **{**blank, **(training if kind == "raw" else {})},
                "measuring_seconds": time.perf_counter() - started, "peak_tflops": self.reference.peak / 1e12,
                "device": device_name(self.device), "dtype": "bfloat16" if self.device.type == "cuda" else "float32",
                "measured_dtype": "float32", **self.reference.asked, "text": text.facts["text"],
                "text_fingerprint": text.facts["fingerprint"],
                "identity": json.dumps(run.identity, sort_keys=True), **provenance()}

    def _readings(self, states: torch.Tensor, reduced: dict) -> dict:
        """Columns of the other measures, as a sweep gives them."""
        found = registry.measured(self.readings, {
            "features": states, "first": self.untrained, **dict.fromkeys(ABSENT),
            "head": matrices.head_of(self.model), "matrices": matrices.spectra_of(self.model),
            **{name: each[FINAL] for name, each in reduced.items()}})
        return {name: value for name, value in found.items() if not name.startswith(tuple(f"cka_{k}" for k in ABSENT))}

    @torch.no_grad()
    def _held_out_loss(self) -> float:
        """Mean over the held-out stretches, in float32."""
        head, losses = self.model.get_output_embeddings().weight, []
        for ids in self.held_out.split(max(1, 16_384 // self.run.context)):
            losses.append(head_loss(self.model.gpt_neox(ids, use_cache=False).last_hidden_state, head, ids) * len(ids))
        return float(torch.stack(losses).sum() / len(self.held_out))


def planned(plan: dict, group: str, corpus: str) -> Iterator[Planned]:
    """The runs of a group."""
    common = plan["groups"][group]
    for size in common["sizes"]:
        for seed in size["seeds"]:
            steps = int(size["tokens"]) // (common["batch"] * common["context"])
            run = Run(width=size["width"], layers=size["layers"], steps=steps, seed=seed,
                      vocabulary=plan["vocabulary"], context=common["context"], batch=common["batch"],
                      learning_rate=plan["learning_rate"] * (32 / size["width"]) ** 0.5,
                      warmup_steps=plan["warmup_steps"], schedule=plan["schedule"],
                      weight_decay=plan["weight_decay"], corpus=corpus, head_width=common["head_width"],
                      recipe=plan["recipe"])
            yield Planned(run, group, size.get("seconds"))


def join(folder: Path, out: Path) -> None:
    """Put the tables of a folder into those of another; a run that is in both is replaced as a whole.

    Raises
    ------
    ValueError
        There is no table, or a size's runs differ in more than their seeds.
    """
    paths = sorted(folder.glob("*.parquet"))
    if not paths:
        raise ValueError(f"there is no table (*.parquet) in {str(folder)!r}.")
    for path in paths:
        table = pd.read_parquet(path)
        if (kept := out / path.name).exists():
            old = pd.read_parquet(kept)
            table = pd.concat([old[~old.seed.isin(table.seed)], table])
        first, *others = ({**found, "seed": "any"} for found in settings(table))
        for other in others:
            check_same(other, first, f"a run in {str(path)!r} or {str(kept)!r}")
        write_table(kept, table)


def settings(table: pd.DataFrame) -> list[dict]:
    """All that is set for the rows of a table, once each; a table from before there was a column lacks it."""
    kept = table[["identity", *(column for column in ASKED if column in table)]].drop_duplicates()
    return [{**json.loads(row.pop("identity")), **row} for row in kept.to_dict("records")]


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Rows in their order, whole or not at all."""
    table = table.sort_values(KEY, ignore_index=True)
    write_atomically(path, table.to_parquet(index=False, compression="zstd"))


def operations_per_token(run: Run) -> float:
    """Floating-point operations of training on a token: six for each weight but the embeddings, and the attention's.

    Of n tokens, causal, each product of width d takes n d operations a token in the forward pass, and there are two a
    block, and twice as many backward.
    """
    return 6.0 * (run.parameters - run.vocabulary * run.width) + 6.0 * run.layers * run.context * run.width


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name() if device.type == "cuda" else "cpu"


if __name__ == "__main__":
    main()
