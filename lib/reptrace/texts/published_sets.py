"""Published sets of questions and answers, from the hub or a copy here: AMC-23, AlpacaEval, Anthropic-HH, AlpacaFarm.

Each is read file by file, as its repository holds them, at the commit that its main branch stands for now: two of the
four are described by a Python script, which the `datasets` library no longer runs. The name of what was read says the
commit, or a hash of the files.

Whatever the set, an instruction is put to a model as Anthropic's dialogues put it ("\\n\\nHuman: ...\\n\\nAssistant:"),
so that models tuned on one set and on another are asked alike. The paper does not say in which form it asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from reptrace.checkpoints.hub import ANSWER, asked
from reptrace.support import arguments
from reptrace.support.fingerprints import files_fingerprint, files_in, order_key
from reptrace.texts.text_files import shown_name

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
KINDS = {".parquet": "parquet", ".json": "json", ".jsonl": "json", ".csv": "csv"}  # suffix -> builder of `datasets`
PACKED = (".gz", ".zst")
HH_PARTS = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")  # without red teaming


@dataclass(frozen=True)
class Source:
    """A data set: its repository, the files of each split (patterns), and the columns that a row must have; of these,
    which may be empty."""

    repository: str
    splits: Mapping[str, tuple[str, ...]]
    columns: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def files(self, names: Sequence[str], split: str, where: str) -> list[str]:
        """Those of a split, of the names of all files that there are."""
        if split not in self.splits:
            raise ValueError(f"{self.repository} has no split {split!r}; it has {', '.join(self.splits)}.")
        patterns = self.splits[split]
        found = [name for pattern in patterns for name in sorted(names) if fnmatchcase(name, pattern)]
        if not found:
            raise FileNotFoundError(f"{where} has no file {' or '.join(patterns)}, as {self.repository} has for its "
                                    f"split {split!r}; it has {', '.join(sorted(names)[:5]) or 'none'}. A file by "
                                    "another name can be named itself.")
        return found


AMC23 = Source("math-ai/amc23", {"test": ("test-*.parquet",)}, ("question", "answer"))
ALPACA_EVAL = Source("tatsu-lab/alpaca_eval", {name: (f"{name}.json",) for name in
                                               ("alpaca_eval", "alpaca_eval_gpt4_baseline")},
                     ("instruction", "output", "generator", "dataset"))
ANTHROPIC_HH = Source("Anthropic/hh-rlhf", {split: tuple(f"{part}/{split}.jsonl.gz" for part in HH_PARTS)
                                            for split in ("train", "test")}, ("chosen", "rejected"),
                      ("rejected",))
ALPACA_FARM = Source("tatsu-lab/alpaca_farm", {split: (f"alpaca_instructions/{split}.json",) for split in
                                               ("sft", "preference", "unlabeled", "val")},
                     ("instruction", "input", "output"), ("input",))


@dataclass(frozen=True)
class Rows:
    """Plain rows of a data set; `left_out` counts, by reason, rows that hold nothing to use."""

    name: str
    rows: list[dict[str, str]] = field(repr=False)
    left_out: Mapping[str, int]

    def first(self, most: int) -> list[dict[str, str]]:
        """So many rows at most, in an order set by their content alone: a fair draw, the same everywhere."""
        return sorted(self.rows, key=lambda row: order_key("row", repr(sorted(row.items()))))[:most]


def amc23(place: str | Path | None = None) -> Rows:
    """The 40 problems of AMC 12 of 2023 with an answer that is a number: question, answer.

    Parameters
    ----------
    place : of this function and the others: a local copy, the repository's folder or one file; default the hub

    Raises
    ------
    FileNotFoundError
        No such file or folder, or no file of that split in it.
    ValueError
        A row without one of the columns, or with something else than text in it; no row that can be used; a file that
        the `datasets` library cannot read.
    """
    return _read(AMC23, "test", place, lambda row: {"question": row["question"], "answer": str(row["answer"])})


def alpaca_eval(config: str = "alpaca_eval", place: str | Path | None = None) -> Rows:
    """The 805 instructions of AlpacaEval: prompt; instruction, output (of its reference), generator, dataset.

    The reference is text-davinci-003, and GPT-4 Turbo in the config "alpaca_eval_gpt4_baseline", that of AlpacaEval 2.
    """
    return _read(ALPACA_EVAL, config, place, lambda row: {"prompt": asked_as(row["instruction"]),
                                                          **{name: row[name] for name in ALPACA_EVAL.columns}})


def anthropic_hh(split: str = "train", place: str | Path | None = None) -> Rows:
    """Anthropic's dialogues on help and harm, the chosen ones: prompt (all up to the last answer), completion."""
    return _read(ANTHROPIC_HH, split, place, lambda row: _parted(row["chosen"]))


def alpaca_farm(split: str = "sft", place: str | Path | None = None) -> Rows:
    """AlpacaFarm's instructions with answers: prompt, completion. Splits sft, preference, unlabeled, val."""
    return _read(ALPACA_FARM, split, place, lambda row: {"prompt": asked_as(row["instruction"], row["input"] or ""),
                                                         "completion": f" {row['output']}"})


def asked_as(instruction: str, context: str = "") -> str:
    """An instruction, and what it is about, as the beginning of a dialogue; an answer follows with a space."""
    return f"{HUMAN} {instruction}{f'{chr(10) * 2}{context}' if context.strip() else ''}{ASSISTANT}"


def _parted(dialogue: str) -> dict[str, str] | str:
    """Prompt and last answer of a dialogue; a reason where it has none."""
    prompt, found, completion = dialogue.rpartition(ASSISTANT)
    if not found or HUMAN in completion:
        return "does not end with the assistant"
    if not prompt.startswith(HUMAN):
        return "does not begin with the human"
    return {"prompt": prompt + found, "completion": completion} if completion.strip() else "the last answer is empty"


def _read(source: Source, split: str, place: str | Path | None, taken: Callable[[dict], dict | str]) -> Rows:
    """Rows of a split: what is taken of each, or the reason why nothing is."""
    name, paths = _fetched(source, split) if place is None else _local(source, split, Path(place))
    rows, left_out = [], Counter()
    for number, row in enumerate(_content(name, paths), 1):
        if missing := [column for column in source.columns if column not in row]:
            raise ValueError(f"{name}, row {number}: there is no column {' or '.join(missing)}, as {source.repository} "
                             f"has it; it has {', '.join(map(str, row))}.")
        found = _usable(source, row, f"{name}, row {number}") or taken(row)
        if isinstance(found, str):
            left_out[found] += 1
        else:
            rows.append(found)
    if not rows:
        raise ValueError(f"{name} has no row that can be used: {dict(left_out) or 'it is empty'}.")
    return Rows(name, rows, dict(left_out))


def _usable(source: Source, row: dict, where: str) -> str:
    """Why a row cannot be used, or "": a column is empty. An answer may be a number."""
    for column in source.columns:
        value = row[column]
        if value is None or not str(value).strip():
            if column not in source.optional:
                return f"no {column}"
        elif not isinstance(value, (str, int, float) if column == "answer" else str):
            raise ValueError(f"{where}: the column {column} should hold a text, got {arguments.shown(value)}.")
    return ""


def _fetched(source: Source, split: str) -> tuple[str, list[Path]]:
    """Name with the commit, and the files in the hub's cache."""
    from huggingface_hub import HfApi, hf_hub_download

    info = asked(source.repository, lambda: HfApi().dataset_info(source.repository, timeout=ANSWER))
    names = source.files([each.rfilename for each in info.siblings], split, source.repository)
    get = partial(hf_hub_download, source.repository, repo_type="dataset", revision=info.sha)
    return (f"{source.repository}@{info.sha[:12]} ({split})",
            [Path(asked(source.repository, partial(get, name))) for name in names])


def _local(source: Source, split: str, place: Path) -> tuple[str, list[Path]]:
    """Name with a hash, and the files of a copy."""
    if place.is_file():
        paths, part = [place], ""
    elif place.is_dir():
        there = {path.relative_to(place).as_posix(): path for path in files_in(place)}
        paths, part = [there[name] for name in source.files(list(there), split, f"the folder {str(place)!r}")], split
    else:
        raise FileNotFoundError(f"there is no file or folder {str(place)!r} to read {source.repository} from."
                                f"{arguments.near_folders(place)}")
    digest = files_fingerprint((path.name, path) for path in paths)
    return f"{shown_name(place.name)}@{digest[:12]}{f' ({part})' if part else ''}", paths


def _content(name: str, paths: Sequence[Path]) -> list[dict]:
    """The rows of files, in their order."""
    import pyarrow
    from datasets import load_dataset
    from datasets.exceptions import DatasetsError

    rows = []
    for path in paths:
        suffix = Path(path.name.removesuffix(path.suffix)).suffix if path.suffix in PACKED else path.suffix
        if suffix not in KINDS:
            raise ValueError(f"{name}: {path.name} cannot be read, known are {', '.join(KINDS)}, and these with "
                             f"{' or '.join(PACKED)}.")
        try:
            rows += load_dataset(KINDS[suffix], data_files=str(path), split="train", streaming=True)
        except (DatasetsError, pyarrow.ArrowException, UnicodeDecodeError, ValueError, EOFError, OSError) as error:
            raise ValueError(f"{name}: the datasets library cannot read {path.name}: {error!r}") from error
    return rows
