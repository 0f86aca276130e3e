"""From a parameters file to the book: suite, records, executed notebooks, pages. Redoes only what something changed.

A stage is done again when the hash of what it depends on changes: a run, when its settings or its text do (`pretrain`);
a measurement, when weights, probe or settings do (`sweep`); a notebook, when its source, its own parameters, the
library, a table in data/, the lock, the text or a record do (`executing`); the pages, when the book's prose, an
executed notebook or what they found (`findings`) does. Each stage is written whole or not at all, so one that was cut
short is simply not there.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml
from filelock import FileLock

from reptrace.measures.phases import phases_of
from reptrace.records.store import Store, write_atomically
from reptrace.report import capabilities, figures, findings, times
from reptrace.report.archive import VARIABLE, pack
from reptrace.report.executing import Page, execute, hash_of, page_of
from reptrace.report.pages import check, mend
from reptrace.report.profiles import ALWAYS, CORPORA, ROOT, HubProfile, Profile
from reptrace.support.processes import cores
from reptrace.training.pretrain import STATE

BOOK = ROOT / "book"
DEFAULT = ROOT / "notebooks/params/tiny.yaml"
TIMES, ARCHIVE = ROOT / "data/results" / times.NAME, ROOT / "data/archive"


def make_report(parameters_file: Path) -> Path:
    """Make everything the report needs, build it and print the times; returns its first page.

    With the default parameters, the times of what was done whole and the verdicts are tracked in data/results, what the
    pages were told of the suite in data/archive, and what they found in README.
    """
    parameters = yaml.safe_load(parameters_file.read_text())
    profile, spent = Profile.of(parameters), times.Times()
    folder = profile.folder / "book"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):  # a second call waits for the first and finds everything done
        print("suite: training and measuring what is missing", flush=True)
        traced, new = _suite(profile, spent)
        state = state_of(profile, pd.concat(traced.values()))
        pages = pages_of(parameters, folder, state)
        if any("items" in page.parameters for page in pages):
            _tasks(profile, parameters["items"], spent)
        if isinstance(profile, Profile) and not any(page.done for page in pages):
            for name in set(profile.answers.names) - set(ALWAYS):  # so that none stays that no page asks for
                profile.answers.remove(name)
        _execute(pages, spent, new)
        verdicts = findings.collect(pages_of(parameters, folder, state), parameters_file.name)  # none may be stale
        picture = _picture(profile, traced)
        first = _book(folder, spent, verdicts, picture)
    table = spent.table(times.read(TIMES), [page.name for page in pages])
    if parameters == yaml.safe_load(DEFAULT.read_text()):
        pack(profile.answers, ARCHIVE)
        times.write(table, TIMES)
        findings.track(verdicts, picture, ROOT)
    print(spent.shown(), flush=True)
    return first


def make_book(parameters_file: Path, archive: Path | None = None) -> Path:
    """Build the report's pages from an archive (default data/archive), with no training and no model opened, in a
    folder of their own; returns the first page. From the default archive, what they found is tracked as by
    `make_report`."""
    archive, parameters = archive or ARCHIVE, yaml.safe_load(parameters_file.read_text())
    if parameters.get("suites") or not any(archive.glob("*.parquet")):
        raise FileNotFoundError(f"{str(archive)!r} holds no records of a suite trained here: make report.")
    folder, spent = ROOT / parameters["build"] / "from_archive", times.Times()
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        state = hash_of(*sorted(archive.glob("*.parquet")))
        _execute(pages_of(parameters, folder, state), spent, False, {VARIABLE: str(archive.resolve())})
        verdicts = findings.collect(pages_of(parameters, folder, state), parameters_file.name)  # none may be stale
        profile = replace(Profile.of(parameters), archive=str(archive))
        picture = _picture(profile, profile.trace())
        first = _book(folder, spent, verdicts, picture)
    if parameters == yaml.safe_load(DEFAULT.read_text()) and archive == ARCHIVE:
        findings.track(verdicts, picture, ROOT)
    print(spent.shown(), flush=True)
    return first


def _suite(profile: Profile | HubProfile, spent: times.Times) -> tuple[dict, bool]:
    """Train and measure what is missing; the geometry by run, and whether none of it was there before."""
    if isinstance(profile, Profile):
        with spent.stage("text") as stage:
            tokens = [profile.suite.tokens(vocabulary) for vocabulary in {run.vocabulary for run in profile.runs}]
            stage.whole = stage.made(tokens) and any(map(stage.made, ([path] for path in CORPORA.glob("*"))))
        with spent.stage("training") as stage:
            begun = any((profile.folder / "training").glob(f"*/{STATE}"))
            profile.train()
            logs = Store(profile.folder / "logs")
            stage.whole = not begun and stage.made(logs.path(run.identity) for run in profile.runs)
    with spent.stage("measuring") as stage:
        traced = profile.trace()
        tables = [*traced.values(), *profile.trace_averaged().values()]
        stage.whole = stage.made(_records(profile.store, pd.concat(tables)))
    return traced, stage.whole


def _tasks(profile: Profile | HubProfile, items: int, spent: times.Times) -> None:
    """Tasks and memorization, before the notebooks, of which several ask for them."""
    with spent.stage("tasks") as stage:
        asked = capabilities.evaluate(profile, capabilities.groups(profile, items), items)
        stage.whole = stage.made(_records(profile.store, pd.concat(asked.values())))


def _records(store: Store, table: pd.DataFrame) -> Iterable[Path]:
    return (store.path(json.loads(identity)) for identity in table["identity"].dropna().unique())


def state_of(profile: Profile | HubProfile, traced: pd.DataFrame) -> str:
    """What stands for the text and the records."""
    return json.dumps([profile.text, traced[["identity", "status"]].to_dict("records")])


def pages_of(parameters: Mapping, folder: Path, state: str) -> list[Page]:
    """The pages of the book's notebooks, in the order of its contents."""
    made_by_this = (times.NAME, findings.NAME)
    tables = (path for pattern in ("**/*.csv", "results/**/*.parquet") for path in sorted((ROOT / "data").glob(pattern))
              if path.name not in made_by_this)
    made_from = [*sorted((ROOT / "lib").rglob("*.py")), *tables, ROOT / "requirements.lock"]
    return [page_of(notebook, parameters, folder / "source" / "notebooks" / notebook.name, made_from, state)
            for notebook in chapters()]


def _execute(pages: list[Page], spent: times.Times, new: bool, environment: Mapping[str, str] | None = None) -> None:
    """Execute what is not done, the slowest first, as many at a time as there are cores.

    `new`: the suite was measured in this call. Otherwise the notebooks that open a profile may find records of their
    own, and their time is not a whole one.
    """
    missing = {page.name: page for page in pages if not page.done}
    for page in pages:
        if page.name not in missing:
            print(f"notebook {page.notebook.name}: done already", flush=True)
    order = times.slowest_first(missing, times.read(TIMES))
    with spent.stage("notebooks") as stage, closing(execute(
            [missing[name] for name in order], cores(), environment)) as ended:
        for number, (page, taken) in enumerate(ended, 1):
            spent.notebook(page.name, taken, new or "corpus" not in page.parameters)
            print(f"notebook {page.notebook.name}: done in {taken.seconds:.0f} s ({number} of {len(missing)})",
                  flush=True)
        stage.whole = new and len(missing) == len(pages)


def _picture(profile: Profile | HubProfile, traced: Mapping) -> bytes:
    """The opening page's figure, the phases of all runs, as SVG."""
    groups = [profile.labels[runs[0]] for runs in profile.sizes_of_runs for _ in runs]
    tables = [traced[run] for runs in profile.sizes_of_runs for run in runs]
    return figures.svg(figures.overview(tables, [phases_of(table) for table in tables], groups))


def _book(folder: Path, spent: times.Times, verdicts: pd.DataFrame, picture: bytes) -> Path:
    with spent.stage("book") as stage:
        stage.whole = not (folder / "_build").exists()
        return build_book(folder, verdicts, picture)


def chapters() -> list[Path]:
    """The notebooks that the book's contents list, in their order."""
    contents = yaml.safe_load((BOOK / "_toc.yml").read_text())
    names = [entry["file"] for part in contents.get("parts", [contents]) for entry in part["chapters"]]
    return [ROOT / f"{name}.ipynb" for name in names if name.startswith("notebooks/")]


def build_book(folder: Path, verdicts: pd.DataFrame | None = None, picture: bytes | None = None) -> Path:
    """Build the pages with every Sphinx warning an error; returns the first page.

    The book is built from a copy, `folder/source`, in which the executed notebooks stand beside the prose, and what
    they found (`findings.collect`; default: no verdicts, no picture) stands on the opening page and in Findings.
    """
    source, stamp, first = folder / "source", folder / "key", folder / "_build" / "html" / "index.html"
    pages = [source / "notebooks" / notebook.name for notebook in chapters()]
    missing = [page.name for page in pages if not page.exists()]
    if missing:
        raise FileNotFoundError(f"the book lacks executed notebooks ({', '.join(missing)}): make report makes them.")
    for page in pages:
        if not any(cell.get("outputs") for cell in json.loads(page.read_text())["cells"]):
            raise ValueError(f"{page.name} holds no outputs: it was not executed. Delete {page} and run again.")
        check(page)
    # copytree keeps the times of files, by which Sphinx knows what changed
    written = ("index.md", Path(findings.FIGURE).name)  # by `findings`
    shutil.copytree(BOOK, source, dirs_exist_ok=True, ignore=shutil.ignore_patterns("notebooks", "_build", *written))
    findings.write(source, (BOOK / "index.md").read_text(),
                   pd.DataFrame(columns=findings.COLUMNS) if verdicts is None else verdicts, picture)
    key = hash_of(*sorted(path for path in source.rglob("*") if path.is_file()), ROOT / "requirements.lock")
    if first.exists() and stamp.exists() and stamp.read_text() == key:
        print("book: nothing changed", flush=True)
        return first
    if not stamp.exists():  # the last build was cut short: Sphinx would take a half-written page for a finished one
        shutil.rmtree(folder / "_build", ignore_errors=True)
    stamp.unlink(missing_ok=True)
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(source), "--path-output", str(folder),
               "--all", "-W", "-n", "--keep-going", "-q"]  # else Sphinx leaves a changed stylesheet alone
    done = subprocess.run(command, env={**os.environ, "PYTHONWARNINGS": "ignore"}, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise RuntimeError(f"the book did not build (code {done.returncode}); what Sphinx says stands above.")
    mend(first.parent)
    write_atomically(stamp, key.encode())
    return first

