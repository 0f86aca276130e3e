"""The project's own files: that they say the same thing, and that nothing is in git which should not be.

Trusted: `packaging` for what a version specifier allows, `importlib.metadata` for what a package needs, git for what is
tracked and ignored, PyYAML and tomllib for reading. Published values are checked against what must hold of them (a
binomial standard error, a share, RankMe below the width), and against facts of paper.md stated apart from the tables.
"""

from __future__ import annotations

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from importlib import metadata
from pathlib import Path

import pandas as pd
import pytest
import yaml
from limits import run
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

import reptrace
from reptrace.report import times as report_times
from reptrace.support.marked import MARKED
from reptrace.texts import corpora

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "data/published"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
UNLOCKED = {"pip", "setuptools", "wheel"}  # `pip freeze` leaves these out
OF_CUDA = {("torch", start) for start in ("cuda", "nvid", "trit")}  # what torch needs where it is no CPU build
LARGEST_FILE = 1_000_000
# In pieces, so that this file does not match itself.
MACHINE_PATH = re.compile(r"(?<![\w.~])/(?:" + "|".join(["work", "root", "home", "Users"]) + r")/\w")

WIDTHS = {"pythia-1b": 2048, "pythia-1.4b": 2048, "pythia-2.8b": 2560, "pythia-6.9b": 4096, "pythia-12b": 5120,
          "OLMo-2-7B": 4096, "tulu-3.1-8b": 4096}
PYTHIA_SIZES = {f"pythia-{size}" for size in ("70m", "160m", "410m", "1b", "1.4b", "2.8b", "6.9b", "12b")}
QUESTIONS = {"sciq": 1000, "lambada_openai": 5153}  # of the two test sets


# Requirements


def requirements() -> list[Requirement]:
    """What pyproject.toml asks for, extras included."""
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(line) for line in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]]


def pins() -> dict[str, Version]:
    lines = [line for line in LOCK.splitlines() if line.strip() and not line.startswith("#")]
    pairs = [re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!+]+)", line) or pytest.fail(f"not name==version: {line!r}")
             for line in lines]
    return {canonicalize_name(pair[1]): Version(pair[2]) for pair in pairs}


def imports_of(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    parts = [node.module for node in nodes if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in plain + parts}


def needed_here() -> set[str]:
    """Names of all that the project's requirements bring on this machine, by the installed packages' own metadata."""
    found: set[tuple[str, str]] = set()
    pending = [(canonicalize_name(r.name), extra) for r in requirements() for extra in ("", *r.extras)]
    while pending:
        name, extra = pending.pop()
        if (name, extra) in found or name in UNLOCKED:
            continue
        found.add((name, extra))
        needs = [Requirement(line) for line in metadata.requires(name) or [] if (name, line[:4]) not in OF_CUDA]
        pending += [(canonicalize_name(need.name), inner) for need in needs for inner in ("", *need.extras)
                    if need.marker is None or need.marker.evaluate({"extra": extra})]
    return {name for name, _ in found}


def test_every_requirement_is_pinned_at_a_version_it_allows():
    locked = pins()
    missing = [str(r) for r in requirements() if canonicalize_name(r.name) not in locked]
    outside = [f"{r} is pinned at {locked[canonicalize_name(r.name)]}" for r in requirements()
               if canonicalize_name(r.name) in locked and locked[canonicalize_name(r.name)] not in r.specifier]
    assert (missing, outside) == ([], [])


def test_every_requirement_has_a_lower_bound_or_is_exact():
    assert [str(r) for r in requirements() if not {s.operator for s in r.specifier} & {">=", "=="}] == []


def test_the_lock_pins_each_package_once_and_torch_exactly():
    names = [canonicalize_name(line.split("==")[0]) for line in LOCK.splitlines() if line and not line.startswith("#")]
    assert sorted(names) == sorted(pins())
    assert pins()["torch"] == Version("2.13.0")
    assert "torch==2.13.0" in PROJECT["dependencies"]


@pytest.mark.skipif(sys.platform != "linux", reason="the lock was made on Linux; markers choose others elsewhere")
def test_the_lock_holds_all_that_is_needed_and_nothing_else():
    assert set(pins()) == needed_here()


def test_the_lock_says_why_each_directly_chosen_package_was_chosen():
    reasons = re.findall(r"^#   ([\w-]+): \w.{10,}$", LOCK, flags=re.MULTILINE)
    assert sorted(map(canonicalize_name, reasons)) == sorted(canonicalize_name(r.name) for r in requirements())


def test_pyproject_names_every_package_the_library_imports():
    providers = metadata.packages_distributions()
    modules = set().union(*(imports_of(path) for path in (ROOT / "lib/reptrace").rglob("*.py")))
    outside = {canonicalize_name(providers[name][0]) if name in providers else name
               for name in modules - sys.stdlib_module_names - {"reptrace"}}
    assert {"torch", "numpy", "transformers"} <= outside, "the search for imports found too few"
    named = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["report"]]
    assert outside <= {canonicalize_name(Requirement(line).name) for line in named}


def pythons() -> list[str]:
    """Versions of Python that pyproject.toml names, oldest first."""
    prefix = "Programming Language :: Python :: "
    return [line.removeprefix(prefix) for line in PROJECT["classifiers"] if line.startswith(prefix)]


def test_all_files_name_the_same_pythons():
    (made,) = re.findall(r"^PYTHONS := (.+)$", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    assert made.split() == pythons() and "{}.{}".format(*sys.version_info) in pythons()
    assert "{}.{}".format(*corpora.USUAL_PYTHON) == pythons()[0]
    said = f"Python {', '.join(pythons()[:-1])} or {pythons()[-1]}"
    for name in ("README.md", "CONTRIBUTING.md", "requirements.lock"):
        assert re.sub(r"[\s#]+", " ", (ROOT / name).read_text()).count(said) == 1, name
    allowed = SpecifierSet(PROJECT["requires-python"])
    assert all(Version(python) in allowed for python in pythons()) and Version("3.10") not in allowed


def fake_python(path: Path, version: str) -> Path:
    """A command that stands in for a Python: it evaluates `-c` as one of that version would, and makes no environment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    major, minor = version.split(".")
    path.write_text(f"""#!{sys.executable}
import sys
sys.version_info = ({major}, {minor}, 0, "final", 0)
if sys.argv[1] != "-c":
    sys.exit("this far")
exec(sys.argv[2])
""")
    path.chmod(0o755)
    return path


def set_up(folder: Path, *arguments: str, path: str = os.environ["PATH"]) -> str:
    """What `make setup` prints in a folder with the Makefile; it fails, at the latest where it makes .venv."""
    folder.mkdir(exist_ok=True)
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        (folder / name).write_bytes((ROOT / name).read_bytes())
    shutil.rmtree(folder / ".venv", ignore_errors=True)
    done = run(["make", "setup", *arguments], cwd=folder, env={**os.environ, "PATH": path})
    assert done.returncode
    return done.stdout + done.stderr


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_takes_the_known_pythons_and_refuses_others_with_advice(tmp_path):
    for version in pythons():
        assert "this far" in set_up(tmp_path / "project", f"PYTHON={fake_python(tmp_path / 'python', version)}")
    for version in ("3.10", "3.14", "2.7"):
        said = set_up(tmp_path / "project", f"PYTHON={fake_python(tmp_path / 'python', version)}")
        assert f"Python {' '.join(pythons())} are known to work, got {version}: make PYTHON=" in said
        assert not (tmp_path / "project/.venv").exists()


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_make_takes_the_oldest_known_python_that_runs(tmp_path):
    tools = tmp_path / "bin"  # what the Makefile calls, and no other Python
    tools.mkdir()
    for tool in ("sh", "make", "mkdir", "touch", "test", "rm"):
        (tools / tool).symlink_to(shutil.which(tool))
    for oldest in reversed(pythons()):
        fake_python(tools / f"python{oldest}", oldest)
        assert f"python{oldest} -m venv" in set_up(tmp_path / "project", path=str(tools))
    (tools / f"python{pythons()[0]}").write_text("#!/bin/sh\nexit 127\n")  # as pyenv's, where that version is not set
    assert f"python{pythons()[1]} -m venv" in set_up(tmp_path / "project", path=str(tools))


def test_environment_yml_installs_the_lock_and_the_package_on_the_usual_python():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    (pip,) = [entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict)]
    assert environment["name"] == PROJECT["name"]
    assert conda == [f"python={pythons()[0]}", "pip"]
    assert pip == ["-r requirements.lock", "-e ."]
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["ruff"]
    assert ruff["target-version"] == "py311"


# Metadata


def test_citation_pyproject_and_package_have_the_same_version_and_licence():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert str(citation["version"]) == PROJECT["version"] == reptrace.__version__
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == PROJECT["license"] == "MIT"
    assert (ROOT / "LICENSE").read_text().startswith("MIT License")


def test_citation_names_the_paper_with_all_its_authors():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(citation)  # what the format requires
    (paper,) = citation["references"]
    assert [author["family-names"] for author in paper["authors"]] == [
        "Li", "Agrawal", "Ghosh", "Teru", "Santoro", "Lajoie", "Richards"]
    assert "2509.23024" in paper["url"] and paper["year"] == 2025


def test_pre_commit_hooks_are_local_and_locked():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repository["repo"] for repository in hooks["repos"]] == ["local"]
    entries = [hook for repository in hooks["repos"] for hook in repository["hooks"]]
    assert {hook["language"] for hook in entries} == {"system"}
    assert {hook["entry"].split()[0] for hook in entries} == {"ruff", "nbstripout"} <= set(pins())


# Speed


def test_readmes_tables_of_speed_are_those_of_the_results_and_its_sentences_quote_no_number():
    sys.path.insert(0, str(ROOT / "studies"))
    import bench_tables

    text = (ROOT / "README.md").read_text()
    assert bench_tables.rewritten(text) == text, "python studies/bench_tables.py writes them anew"
    (section,) = re.findall(r"^## Speed\n(.*?)^## ", text, flags=re.MULTILINE | re.DOTALL)
    assert [mark[1] for mark in MARKED.findall(section)] == ["bench", "bench_gpu"]
    for name in ("bench", "bench_gpu"):
        results = pd.read_csv(ROOT / f"data/results/{name}.csv")
        (shown,) = re.findall(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", section, flags=re.DOTALL)
        cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines() if "|" in line][2:]
        assert [row[0] for row in cells] == list(results.what)
        faster = [float(row[3].replace(",", "")) for row, ratio in zip(cells, results.ratio, strict=True) if ratio > 0]
        assert faster == pytest.approx(list(results.ratio.dropna()), rel=0.05)  # two digits
    # Any other number would not follow a new measurement.
    assert re.findall(r"\b\d[\d.,]*", MARKED.sub("", section)) == []


# What is in git


def git(*arguments: str, expect: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess:
    done = run(["git", "-c", f"core.excludesFile={os.devnull}", "-C", str(ROOT), *arguments])
    assert done.returncode in expect, done.stderr
    return done


@cache
def tracked() -> list[Path]:
    """Files that git tracks or, before the first commit, would add."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = git("ls-files", "-z").stdout or git("ls-files", "-z", "--others", "--exclude-standard").stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    assert ROOT / "pyproject.toml" in files
    return [path for path in files if path.is_file()]


def text_of(path: Path) -> str:
    content = path.read_bytes()
    return "" if b"\0" in content else content.decode("utf-8", "replace")


def holds_output(notebook: dict) -> bool:
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return any(cell["outputs"] or cell["execution_count"] is not None for cell in cells)


def ignored(names: list[str]) -> set[str]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    # --no-index: git calls no tracked file ignored, but a new neighbour of it would be.
    return set(git("check-ignore", "--no-index", *names, expect=(0, 1)).stdout.splitlines())


def test_git_ignores_nothing_that_belongs_to_the_project():
    package = [str(path.relative_to(ROOT)) for path in (ROOT / "lib/reptrace").rglob("*.py")]
    assert "lib/reptrace/measures/spectra.py" in package
    others = [".ci/run", ".gitattributes", ".pre-commit-config.yaml", "Makefile", "README.md", "book/_config.yml",
              "book/images/schematic.svg", "book/intro.md", "data/published/landmarks.csv", "data/results/bench.csv",
              "environment.yml", "lib/reptrace/new.py", "lib/reptrace/new/__init__.py", "notebooks/params/tiny.yaml",
              "notebooks/start_here.ipynb", "requirements.lock", "studies/settings.yaml", "tests/test_new.py"]
    assert ignored(package + others) == set()


def test_git_ignores_what_is_made():
    made = [".ipynb_checkpoints/a.ipynb", ".pytest_cache/a", ".ruff_cache/a", ".venv/bin/python",
            "book/_build/html/a.html", "book/notebooks/start_here.ipynb", "build/records/a.parquet",
            "lib/reptrace.egg-info/PKG-INFO", "lib/reptrace/__pycache__/spectra.cpython-311.pyc", "model.safetensors",
            "out.ipynb"]
    assert ignored(made) == set(made)


def test_the_whole_package_is_tracked():
    package = set((ROOT / "lib/reptrace").rglob("*.py"))
    if not git("ls-files", "--", "lib").stdout:
        pytest.skip("nothing is committed yet")
    assert package - set(tracked()) == set()


def test_no_notebook_is_tracked_with_outputs():
    notebooks = [path for path in tracked() if path.suffix == ".ipynb"]
    if not notebooks:
        pytest.skip("there is no notebook yet")
    assert [path.name for path in notebooks if holds_output(json.loads(path.read_text()))] == []
    assert [str(path) for path in notebooks if path.parent != ROOT / "notebooks"] == []


def test_outputs_in_a_notebook_are_seen():
    empty = {"cell_type": "code", "outputs": [], "execution_count": None}
    prose = {"cell_type": "markdown"}
    assert not holds_output({"cells": [prose, empty]})
    assert holds_output({"cells": [empty, {**empty, "outputs": [{"output_type": "stream"}]}]})
    assert holds_output({"cells": [prose, {**empty, "execution_count": 3}]})


def test_no_tracked_file_is_large():
    assert [(str(path), path.stat().st_size) for path in tracked() if path.stat().st_size > LARGEST_FILE] == []


def test_no_tracked_file_names_a_path_of_somebodys_machine():
    found = [f"{path.relative_to(ROOT)}: {match.group()}" for path in tracked()
             for match in MACHINE_PATH.finditer(text_of(path))]
    assert found == []


@pytest.mark.parametrize("folder", ["work", "root", "home", "Users"])
def test_paths_of_somebodys_machine_are_seen(folder):
    assert MACHINE_PATH.search(f"open('/{folder}/x.txt')") and MACHINE_PATH.search(f"file:///{folder}/me")
    assert not MACHINE_PATH.search(f"docs/{folder}/x.txt ../{folder}/x.txt https://example.org/{folder}/x")


# Costs


def test_the_processor_times_that_readme_states_are_those_that_the_report_took():
    text, times = (ROOT / "README.md").read_text(), report_times.read(ROOT / "data/results/report_times.csv")
    seconds = times[times.notebook != ""].set_index("notebook").processor_seconds
    stated = dict(re.findall(r"^\| \[\w+\]\(notebooks/(\w+)\.ipynb\) \|.*\| (\d+ (?:s|min))\b", text, flags=re.M))
    assert set(stated) == {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    stated = {name: said for name, said in stated.items() if name in seconds}  # others were not taken whole yet
    whole = report_times.total(times).processor_seconds
    if whole == whole:
        (stated["all"],) = re.findall(r"takes (\d+ min)utes of processor time", text)
        (stated["suite"],) = re.findall(r"its suite and records (\d+ min)", text)
        (stated["tasks"],) = re.findall(r"its records (\d+ min)", text)
        stages = times[times.notebook == ""].set_index("stage").processor_seconds
        seconds["all"], seconds["tasks"] = whole, stages["tasks"]
        seconds["suite"] = stages[["text", "training", "measuring"]].sum()
    # Other programs on a machine slow its caches: the same work was seen to take up to 1.6 times the processor time.
    ratios = {name: seconds[name] / (int(number) * {"s": 1, "min": 60}[unit])
              for name, (number, unit) in ((name, said.split()) for name, said in stated.items())}
    assert {name: ratio for name, ratio in ratios.items() if not 1 / 1.6 <= ratio <= 1.6} == {}


# Tables


def catalogue() -> dict[str, set[str]]:
    """Columns that data/README.md explains, by the file's path in data/, and under "common" those of all results."""
    sections = re.split(r"^### ", (ROOT / "data/README.md").read_text(), flags=re.MULTILINE)[1:]
    columns = {}
    for section in sections:
        title, _, body = section.partition("\n")
        cells = re.findall(r"^\| (`[^|]*) \|", body, flags=re.MULTILINE)
        for name in re.findall(r"`([^`]+)`", title) or [title.strip()]:  # tables of the same columns share a section
            columns[name] = set(re.findall(r"`([^`]+)`", " ".join(cells)))
    columns["common"] = columns.pop("Common columns of results")
    columns["archive"] = columns.pop("Columns of the archive")
    return columns


def columns_of(path: Path) -> set[str]:
    return set((pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)).columns)


def test_the_catalogue_lists_every_data_file_with_its_columns():
    listed = catalogue()
    common = listed.pop("common")
    listed = {name: columns for name, columns in listed.items() if not name.startswith("archive")}
    files = {str(path.relative_to(ROOT / "data")): path for folder in ("published", "results")
             for path in (ROOT / "data" / folder).rglob("*")
             if path.is_file() and path.suffix != ".md" and not path.name.startswith(".")}
    assert set(files) <= set(listed), "files that data/README.md does not list"
    # A result may be listed before it is made.
    assert {name for name in set(listed) - set(files) if not name.startswith("results/")} == set()
    tables = {name: path for name, path in files.items() if path.suffix in (".csv", ".parquet")}
    for name, path in tables.items():
        there = columns_of(path)
        assert listed[name] <= there, name
        assert there - listed[name] <= (common if name.startswith("results/") else set()), name


def test_the_catalogue_lists_every_table_of_the_archive_and_explains_its_columns():
    listed = catalogue()
    names, explained = {name for name in listed if name.startswith("archive/")}, listed["archive"] | listed["common"]
    paths = list((ROOT / "data/archive").glob("*"))
    assert {f"archive/{path.name.split('.')[0]}.parquet" for path in paths} == names
    there = {path.name: columns_of(path) for path in paths}
    assert {name: columns - explained for name, columns in there.items() if columns - explained} == {}
    assert listed["archive"] <= set().union(*there.values())


def test_every_published_table_has_a_source():
    headings = re.findall(r"^## (\S+)$", (PUBLISHED / "SOURCES.md").read_text(), flags=re.MULTILINE)
    assert sorted(headings) == sorted(path.name for path in PUBLISHED.glob("*.csv"))


def test_landmarks_are_of_known_models_and_within_bounds():
    table = pd.read_csv(PUBLISHED / "landmarks.csv")
    assert set(table.model) == set(WIDTHS)
    assert set(table.metric) == {"rankme", "alpha", "pass_at_256"}
    assert not table.duplicated(["model", "metric", "landmark"]).any()
    assert (table.tokens.isna() == table.model.eq("tulu-3.1-8b")).all()
    assert table.tokens.dropna().between(1e7, 5e12).all()
    rankme = table[table.metric == "rankme"]
    assert rankme.value.between(1, rankme.model.map(WIDTHS)).all()
    assert table.value[table.metric == "alpha"].between(0.3, 3).all()
    assert table.value[table.metric == "pass_at_256"].between(0, 1).all()


def test_published_values_of_claims_are_those_of_the_published_tables():
    said = pd.read_csv(PUBLISHED / "claims.csv", index_col="id", keep_default_na=False).published
    table = pd.read_csv(PUBLISHED / "landmarks.csv").set_index(["model", "metric", "landmark"])
    marks, tokens = table.value, table.tokens.unstack([1, 2])
    rankme = marks.xs("rankme", level="metric").unstack()
    pythia, tulu = rankme[rankme.index.str.startswith("pythia")].index, marks["tulu-3.1-8b"]
    left = 100 * rankme.minimum / rankme["first"]
    assert (f"down to {left[pythia].min():.1f} to {left[pythia].max():.1f} % (Pythia) and {left['OLMo-2-7B']:.0f} % "
            "(OLMo-2 7B) of the first value drawn") in said["fig02-collapse"]
    late = tokens["alpha", "peak"] / tokens["rankme", "minimum"], tokens["alpha", "trough"] / tokens["rankme", "peak"]
    assert ("peak at {:.1f} to {:.1f} times the tokens of RankMe's minimum, trough at {:.1f} to {:.1f} times those of "
            "its peak").format(*(end for each in late for end in (each.min(), each.max()))) in said["fig02-alpha"]
    fall = 100 * (1 - rankme[["trough", "last"]].min(axis=1) / rankme.peak)
    assert f"falls of {fall.min():.0f} to {fall.max():.0f} % from the peak" in said["fig02-compression"]
    stages = [tulu["rankme", name] for name in ("sft_first", "sft_last", "dpo_last", "rlvr_last")]
    assert "{:.0f}, {:.0f} (SFT), {:.0f} (DPO), {:.0f} (RLVR)".format(*stages) in said["fig05-stages"]
    ends = [tulu[metric, f"rlvr_step_{step}"] for metric in ("pass_at_256", "rankme") for step in (0, 2400)]
    assert "pass@256 {:.3f} to {:.3f}, RankMe {:.0f} to {:.0f}".format(*ends) in said["fig05-pass-at-256"]
    table = pd.read_csv(PUBLISHED / "paper_tables.csv")
    suffix, both = table[table.table == 7].set_index("quantity").value, table[table.table == 9]
    assert f"{suffix['suffix_len_le3_percent'] + suffix['suffix_len_4_percent']:.0f} %" in said["tab07-short"]
    sciq = table[table.table == 8].pivot(index="model", columns="quantity", values="value")
    changes = pd.concat([sciq[f"sciq_top{k}_removed"] - sciq.sciq_original for k in (10, 50)])
    kept = pd.concat([sciq[f"sciq_top{k}_retained"] for k in (10, 50)])
    assert f"changes by {changes.min():.3f} to {changes.max():+.3f}" in said["tab08-remove"]
    assert f"accuracy {kept.min():.3f} to {kept.max():.3f}" in said["tab08-keep"]
    for name in ("alpha", "rankme"):
        values = both.value[both.quantity == f"corr_sciq_{name}"]
        assert f"{values.min():.2f} to {values.max():.2f}" == said[f"tab09-{name}"]


def test_model_sizes_follow_from_their_configurations():
    sizes = pd.read_csv(PUBLISHED / "models.csv").set_index("model").parameters
    layers = {"pythia-1b": 16, "pythia-1.4b": 24, "pythia-2.8b": 32, "pythia-6.9b": 32, "pythia-12b": 36}
    vocabulary = {"pythia-6.9b": 50432, "pythia-12b": 50688}  # padded further, for parallel training
    # GPT-NeoX: embedding and unembedding; a block's 12 d^2 weights, 9 d biases and two norms; the final norm.
    counted = {model: 2 * vocabulary.get(model, 50304) * d + layers[model] * (12 * d**2 + 13 * d) + 2 * d
               for model, d in WIDTHS.items() if model in layers}
    # OLMo-2: the same two tables; a block's attention, its gated feed-forward part and four norms; the final norm.
    d, feedforward = 4096, 11008
    counted["OLMo-2-7B"] = 2 * 100352 * d + 32 * (4 * d**2 + 3 * d * feedforward + 4 * d) + d
    assert sizes.to_dict() == counted


def test_landmarks_follow_one_another_as_their_names_say():
    table = pd.read_csv(PUBLISHED / "landmarks.csv")
    pretraining = table[table.tokens.notna()]
    for (_, metric), rows in pretraining.groupby(["model", "metric"]):
        assert rows.tokens.is_monotonic_increasing
        value = rows.set_index("landmark").value
        assert value["peak"] == value.max()
        if metric == "rankme":
            assert value["minimum"] == value.min()
            assert value["minimum"] < value["first"] / 2 and value["peak"] > 2 * value["minimum"] > 0
        else:
            assert value["trough"] == value.drop("first").min()


def test_paper_tables_hold_shares_correlations_and_percentages():
    table = pd.read_csv(PUBLISHED / "paper_tables.csv")
    accuracy, correlation, suffix = (table[table.table == number] for number in (8, 9, 7))
    assert len(accuracy) + len(correlation) + len(suffix) == len(table)
    assert accuracy.value.between(0, 1).all() and (accuracy.groupby("model").size() == 5).all()
    retained = accuracy[accuracy.quantity.str.endswith("retained")]
    assert (retained.value < 0.35).all(), "few directions alone leave SciQ near chance, 0.25"
    signs = correlation.value * correlation.quantity.map({"corr_sciq_alpha": 1, "corr_sciq_rankme": -1})
    assert signs.between(0, 1).all(), "positive with alpha, negative with RankMe"
    assert correlation.p_value.between(0, 0.05, inclusive="neither").all()
    # Seven percentages rounded to two decimals: at most 7 * 0.005 off in all.
    assert suffix.value.sum() == pytest.approx(100, abs=0.035)


def test_pythia_evaluations_are_whole_and_have_binomial_errors():
    table = pd.read_csv(PUBLISHED / "pythia_evals.csv")
    assert set(table.model) == PYTHIA_SIZES and set(table.metric) == {"acc"}
    assert (table.groupby(["model", "task"]).step.nunique() == 27).all() and len(table) == 8 * 2 * 27
    expected = [math.sqrt(p * (1 - p) / (QUESTIONS[task] - 1)) for p, task in zip(table.value, table.task, strict=True)]
    # The same formula in double precision, so only rounding in the last digits may differ.
    assert list(table.stderr) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_pythia_evaluations_show_the_known_facts():
    value = pd.read_csv(PUBLISHED / "pythia_evals.csv").set_index(["model", "step", "task"]).value
    assert value["pythia-2.8b", 1000, "sciq"] == pytest.approx(0.43, abs=0.005)  # given to two decimals
    for model in PYTHIA_SIZES:  # step0 serves the weights of step1 in every size
        assert value[model, 0, "sciq"] == value[model, 1, "sciq"]


def test_olmo2_steps_increase_and_end_where_stage_one_does():
    steps = pd.read_csv(PUBLISHED / "olmo2_steps.csv").groupby("model").step
    assert set(steps.groups) == {"OLMo-2-0425-1B", "OLMo-2-1124-7B"}
    assert all(rows.is_monotonic_increasing and rows.is_unique and rows.iloc[0] == 0 for _, rows in steps)
    # 3.9e12 tokens at the end of the 7B's curve, in landmarks.csv: two digits.
    assert steps.max()["OLMo-2-1124-7B"] * 4_194_304 == pytest.approx(3.9e12, rel=0.02)
