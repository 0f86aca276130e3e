"""A local folder of data -> documents: all its files in their order, by `text_files`; refused where it is not plain
which files, or which of them, are meant.

No cache: what was read once can then never stand for what the files hold now.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from reptrace.support.fingerprints import files_in, is_hidden
from reptrace.texts import text_files
from reptrace.texts.text_files import Documents, Rows, shown_name

# Files that speak of the data; dataset_infos.json lay beside them in older repositories
ABOUT = re.compile(r"(?i:readme|license|licence)(?i:\.txt|\.md|\.rst)?|dataset_infos\.json")
# What a README may say of a config without changing how its files are read
DESCRIBED = {"config_name", "data_files", "data_dir", "default", "description", "drop_labels", "features", "version"}


class Read(NamedTuple):
    """The documents, and the names of the files that they come from."""

    found: Documents
    files: list[str]


def read(folder: Path, field: str, most: int, config: str | None = None, split: str | None = None) -> Read:
    """The first `most` documents of a folder's files, those of subfolders too, sorted by path; or of a saved dataset.

    Where the folder's README names the data files of a config and split, as of a repository fetched from the hub, these
    are read. Where it names none, `split` stands for the files whose names speak of it, in the words that the
    `datasets` library knows; "all" stands for all of them.

    Raises
    ------
    ValueError
        No files; files of more than one kind, or of one that cannot be read; several configs or splits, or files of a
        split and of none, of which none is named; a config to be read with options; a link to another folder; what
        `text_files.read` refuses in any file.
    """
    several = (folder / "dataset_dict.json").is_file()
    saved = folder / split if split and several else folder
    if config and (several or (folder / "state.json").is_file()):
        raise ValueError(f"{config!r} of {shown_name(folder)}: a dataset saved by save_to_disk has no configs. A split "
                         f"is named as hub:{shown_name(folder)}::SPLIT.")
    if (saved / "state.json").is_file():
        return _saved(saved, field, most, None if several else split)
    if several:
        parts = ", ".join(sorted(each.parent.name for each in folder.glob("*/state.json")))
        raise ValueError(f"{shown_name(folder)} holds the splits {parts}, saved by save_to_disk: name one of them, as "
                         f"hub:{shown_name(folder)}::SPLIT.")
    documents, passed_over, names = [], 0, []
    files = _files(folder, config, split)
    sizes = [path.stat().st_size for path in files]
    with tqdm(total=sum(sizes), desc=f"reading {shown_name(folder.name)}", unit="B", unit_scale=True,
              leave=False) as bar:
        for path, size in zip(files, sizes, strict=True):
            found = text_files.read(path, field)
            documents += found.documents[: most - len(documents)]
            passed_over += found.passed_over
            names.append(Path(os.path.relpath(path, folder)).as_posix())
            bar.update(size)
            if len(documents) >= most:
                break
    return Read(Documents(documents, passed_over), names)


def _files(folder: Path, config: str | None, split: str | None) -> list[Path]:
    """The data files of a folder, each of them of one kind."""
    name = shown_name(folder)
    configs = _configs(folder)
    files = _of_card(folder, configs, config, split) if configs else _of_names(folder, config, split)
    try:
        kinds = [text_files.kind_of(path)[0] for path in files]
    except ValueError as error:
        raise ValueError(f"the folder {name} does not hold data alone: {error} Or move it elsewhere.") from error
    if len({text_files.READERS.get(kind, kind) for kind in kinds}) > 1:
        counts = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(kinds).items()))
        raise ValueError(f"the folder {name} holds files of different kinds ({counts}), so it is not plain which are "
                         "the data: move the others out of it, or name one file.")
    return files


def _configs(folder: Path) -> list:
    """What a card says of configs and their data files: a file of its own goes before it, as in `datasets`."""
    from huggingface_hub import metadata_load
    from yaml import YAMLError, safe_load

    said = {}
    for path, load in ((folder / "README.md", metadata_load),
                       (folder / ".huggingface.yaml", lambda path: safe_load(path.read_text(encoding="utf-8")))):
        try:
            said |= (load(path) if path.is_file() else None) or {}
        except (YAMLError, ValueError, TypeError) as error:
            raise ValueError(f"the head of {shown_name(path)}, which may name data files, cannot be read: "
                             f"{error}") from error
    return said.get("configs") or []


def _of_card(folder: Path, configs: list, config: str | None, split: str | None) -> list[Path]:
    """The files that a folder's card names for a config and a split, by default the one that there is, or train."""
    from datasets import load_dataset_builder
    from datasets.exceptions import DatasetsError

    name = shown_name(folder)
    try:
        chosen = load_dataset_builder(str(folder), config).config
        found = {str(part): list(map(Path, paths)) for part, paths in chosen.data_files.items()}
    except (ValueError, TypeError, AttributeError, OSError, DatasetsError) as error:
        raise ValueError(f"the README of {name} names the data files of its configs, and they cannot be told (name a "
                         f"config, as hub:{name}:CONFIG): {' '.join(str(error).split())}") from error
    said = [each for each in configs if each["config_name"] == chosen.name]
    options = ", ".join(sorted(set(map(str, chain.from_iterable(said))) - DESCRIBED))
    if options:
        raise ValueError(f"the config {chosen.name!r} of {name} is to be read with the options {options}, which are "
                         f"not known here: read it with datasets.load_dataset({name!r}, {chosen.name!r}) and pass its "
                         "texts as documents, or write them into a .jsonl.")
    if split == "all":
        return list(chain.from_iterable(found.values()))
    part = split or ("train" if "train" in found or len(found) > 1 else next(iter(found), "train"))
    if part not in found:
        raise ValueError(f"the README of {name} names files of the splits {', '.join(found) or 'none'}, not of "
                         f"{part!r}: name one, as hub:{name}:{config or ''}:SPLIT.")
    return found[part]


def _of_names(folder: Path, config: str | None, split: str | None) -> list[Path]:
    """All files of a folder, or those whose names speak of a split."""
    name = shown_name(folder)
    if config:
        raise ValueError(f"{config!r} of a folder: its README names no configs. Name one file, or a folder that holds "
                         f"the wanted ones alone; a split: hub:{name}::SPLIT; a field: hub:{name}:::FIELD.")
    linked = next((path for path in sorted(folder.rglob("*"))
                   if path.is_symlink() and path.is_dir() and not is_hidden(path, folder)), None)
    if linked:
        raise ValueError(f"{shown_name(linked)} is a link to a folder, which is not followed: name that folder itself, "
                         f"or take the link out of {name}.")
    files = [path for path in files_in(folder) if not ABOUT.fullmatch(path.name)]
    if not files:
        raise ValueError(f"the folder {name} holds no data files: hidden ones, README and LICENSE are not read.")
    return _of_split(folder, files, split)


def _of_split(folder: Path, files: list[Path], split: str | None) -> list[Path]:
    """The files of a split; all, where none is named and their names speak of none, or all of one and the same."""
    from datasets.data_files import SPLIT_KEYWORDS

    name, spoken = shown_name(folder), {}
    for path in files:
        words = set(re.split("[^a-z]+", str(path.relative_to(folder)).lower()))
        spoken[path] = {str(each) for each, names in SPLIT_KEYWORDS.items() if words & set(names)}
    splits = ", ".join(sorted(set().union(*spoken.values())))
    silent = [shown_name(path.relative_to(folder)) for path in files if not spoken[path]]
    if split is None and ("," in splits or (splits and silent)):
        beside = f", and {len(silent)} of {len(files)} of no split (as {silent[0]})" if silent else ""
        raise ValueError(f"the names of the files in {name} speak of {splits}{beside}, and all would be read: name "
                         f"one, as hub:{name}::SPLIT, or all files, as hub:{name}::all.")
    if split in (None, "all") or (split == "train" and not splits):  # as the datasets library has it
        return files
    wanted = next((str(each) for each, names in SPLIT_KEYWORDS.items() if split in names), split)  # dev: validation
    chosen = [path for path in files if wanted in spoken[path]]
    if not chosen:
        raise ValueError(f"no name of a file in {name} speaks of the split {split!r}; they speak of "
                         f"{splits or 'none'}. All files: hub:{name}::all.")
    return chosen


def _saved(folder: Path, field: str, most: int, split: str | None) -> Read:
    """Of a dataset saved by save_to_disk, with the split that it says it is of; train, where it says none."""
    import pyarrow
    from datasets import load_from_disk

    rows, values = Rows(shown_name(folder), field), []
    try:
        data = load_from_disk(folder)
        fields = data.column_names
        if field in fields:
            values = [row[field] for row in islice(data.select_columns([field]), most)]
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{rows.name} looks saved by save_to_disk, and cannot be read: {error!r}") from error
    own = str(data.split or "train")
    if split not in (None, "all", own):
        raise ValueError(f"{rows.name}, made by save_to_disk, is of the split {own}, not of {split!r}: name that or "
                         f"none, as hub:{rows.name}.")
    if field not in fields:
        raise ValueError(f'{rows.name}: expected a column "{field}", got {rows.other_fields(fields)}.')
    return Read(rows.documents(enumerate(values, 1)), sorted(path.name for path in folder.glob("*.arrow")))
