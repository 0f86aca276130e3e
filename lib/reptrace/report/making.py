"""From a parameters file to the book: suite, records, executed notebooks, pages. Redoes only what something changed.

A stage is done again when the hash of what it depends on changes: a run, when its settings or its text do (`pretrain`);
a measurement, when weights, probe or settings do (`sweep`); a notebook, when its source, its own parameters, the
library, a table in data/, the lock, the text or a record do; the pages, when the book's prose or an executed notebook
does. Each stage is written whole or not at all, so one that was cut short is simply not there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import yaml
from filelock import FileLock

from reptrace.records.store import write_atomically
from reptrace.report.profiles import ROOT, Profile

BOOK = ROOT / "book"


def make_report(parameters_file: Path) -> Path:
    """Make everything the report needs and build it; returns its first page."""
    parameters = yaml.safe_load(parameters_file.read_text())
    profile = Profile.of(parameters)
    folder = profile.folder / "book"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # a second call waits for the first and finds everything done
        print("suite: training and measuring what is missing", flush=True)
        profile.train()
        tables = pd.concat(profile.trace().values())
        state = json.dumps([profile.text, tables[["identity", "status"]].to_dict("records")])
        for notebook in chapters():
            execute(notebook, parameters, folder / "source" / "notebooks" / notebook.name, state)
        return build_book(folder)


def chapters() -> list[Path]:
    """The notebooks that the book's contents list, in their order."""
    names = [entry["file"] for entry in yaml.safe_load((BOOK / "_toc.yml").read_text())["chapters"]]
    return [ROOT / f"{name}.ipynb" for name in names if name.startswith("notebooks/")]


def execute(notebook: Path, parameters: dict, target: Path, state: str = "") -> None:
    """Run a notebook by papermill with those of the parameters that it declares, unless that was done.

    `state` stands for the text and the records, for the notebooks that open a profile (which declare `corpus`). Where
    the parameters name suites of the hub, a notebook that is about a suite trained here keeps its own parameters.
    """
    import papermill

    declared = papermill.inspect_notebook(str(notebook))
    foreign = bool(parameters.get("suites")) and "suites" not in declared
    own = {} if foreign else {name: value for name, value in parameters.items() if name in declared}
    read = state if "corpus" in declared else ""
    made_from = [*sorted((ROOT / "lib").rglob("*.py")), *sorted((ROOT / "data").rglob("*.csv"))]
    key = _hash(notebook, *made_from, ROOT / "requirements.lock", extra=json.dumps([own, read]))
    if target.exists() and json.loads(target.read_text())["metadata"].get("reptrace_key") == key:
        print(f"notebook {notebook.name}: done already", flush=True)
        return
    print(f"notebook {notebook.name}: executing", flush=True)
    unfinished = target.with_suffix(".unfinished.ipynb")
    target.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(str(notebook), str(unfinished), own, kernel_name="python3", cwd=str(notebook.parent),
                               progress_bar=False, log_output=False)
    page = json.loads(unfinished.read_text())
    del page["metadata"]["papermill"]  # paths of this machine
    page["metadata"]["reptrace_key"] = key
    page["cells"] = _with_parameters_used(page["cells"])
    write_atomically(target, json.dumps(page).encode())
    unfinished.unlink()


def _with_parameters_used(cells: list[dict]) -> list[dict]:
    """The cells without the default parameters where papermill put others after them; those are folded instead."""
    injected = [cell for cell in cells if "injected-parameters" in cell["metadata"].get("tags", [])]
    for cell in injected:
        cell["metadata"]["tags"].append("hide-input")
    return [cell for cell in cells if not injected or "parameters" not in cell["metadata"].get("tags", [])]


def build_book(folder: Path) -> Path:
    """Build the pages with every Sphinx warning an error; returns the first page.

    The book is built from a copy, `folder/source`, in which the executed notebooks stand beside the prose.
    """
    source, stamp, first = folder / "source", folder / "key", folder / "_build" / "html" / "index.html"
    pages = [source / "notebooks" / notebook.name for notebook in chapters()]
    missing = [page.name for page in pages if not page.exists()]
    if missing:
        raise FileNotFoundError(f"the book lacks executed notebooks ({', '.join(missing)}): make report makes them.")
    for page in pages:
        if not any(cell.get("outputs") for cell in json.loads(page.read_text())["cells"]):
            raise ValueError(f"{page.name} holds no outputs: it was not executed. Delete {page} and run again.")
    # copytree keeps the times of files, by which Sphinx knows what changed
    shutil.copytree(BOOK, source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("notebooks", "_build"))
    key = _hash(*sorted(path for path in BOOK.rglob("*") if path.is_file()), *pages, ROOT / "requirements.lock")
    if first.exists() and stamp.exists() and stamp.read_text() == key:
        print("book: nothing changed", flush=True)
        return first
    if not stamp.exists():  # the last build was cut short: Sphinx would take a half-written page for a finished one
        shutil.rmtree(folder / "_build", ignore_errors=True)
    stamp.unlink(missing_ok=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(source), "--path-output", str(folder),
               "-W", "-n", "--keep-going", "-q"]
    done = subprocess.run(command, env={**os.environ, "PYTHONWARNINGS": "ignore"}, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"the book did not build (code {done.returncode}); what Sphinx says stands above.")
    write_atomically(stamp, key.encode())
    return first


def _hash(*paths: Path, extra: str = "") -> str:
    digest = hashlib.sha256(extra.encode())
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
