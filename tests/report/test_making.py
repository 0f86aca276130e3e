"""The whole way from a parameters file to the pages, on a small text, killed once on the way.

Trusted: the files left on disk, their times and contents, and an uninterrupted training of the same runs.
"""

import io
import json
import re
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path

import nbformat
import numpy as np
import papermill
import pyarrow.parquet
import pytest
import torch
import yaml
from limits import kill_when
from pandas.testing import assert_frame_equal
from transformers import GPTNeoXForCausalLM

from reptrace.measures.spectra import geometry as geometry_of_states
from reptrace.models.hidden_states import FINAL, last_token_states
from reptrace.models.loading import from_pretrained
from reptrace.report import capabilities, making, profiles
from reptrace.report.archive import pack
from reptrace.report.executing import execute, page_of
from reptrace.report.profiles import ROOT, Profile
from reptrace.training import pretrain
from reptrace.training.pretrain import Suite

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
OF_SOME_PAGES = {"items", "texts", "text_sequences", "subset_sequences"}
HUB = {"suites", "checkpoints", "refine"}  # parameters of notebooks that can show suites of the hub instead
TINY = yaml.safe_load((ROOT / "notebooks/params/tiny.yaml").read_text())


# Within the first test the report is made: a minute on a quiet machine, and a busy one is five times slower.
pytestmark = pytest.mark.timeout(900)
# Some pages of the book, one of which reads records and one none: all of them are made by `make smoke`, in CI, where a
# link to none is an error.
CONTENTS = ["method", "notebooks/fig03_capabilities", "notebooks/trace_real_suite", "own_model", "refused", "glossary",
            "references"]
PAGES = [Path(name).name for name in CONTENTS if name.startswith("notebooks/")]
COMMAND = """
import sys
from pathlib import Path
from reptrace.report import making
from reptrace.training import pretrain
if __name__ == "__main__":
    making.BOOK = Path(sys.argv[1])
    pretrain.cores = lambda: 1  # so that the longest run is trained before the others, whatever machine this is
    print("report:", making.make_report(Path(sys.argv[2])))
"""


@contextmanager
def small_report(project):
    """The small book in place of the project's, and one worker: to start another takes longer than all it would do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(making, "BOOK", project / "book")
        for module in (making, profiles, capabilities, pretrain):
            patch.setattr(module, "cores", lambda: 1)
        yield patch


def make(parameters):
    """The report's first page, and what was printed."""
    with small_report(parameters.parent), redirect_stdout(io.StringIO()) as printed:
        return making.make_report(parameters), printed.getvalue()


def geometry(project):
    """Files of the records that hold a spectrum."""
    return {path for path in project.glob("build/records/*.parquet")
            if "eigenvalues" in pyarrow.parquet.read_schema(path).names}


def tracked():
    return {path: path.stat().st_mtime_ns for path in (ROOT / "data").rglob("*")}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A small text and the parameters of a small suite on it."""
    folder = tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(0)
    letters = np.array(list("abcdefghij"))
    words = np.array(["w" + "".join(letters[[int(digit) for digit in str(k)]]) for k in range(300)])
    texts = [" ".join(words[rng.zipf(1.3, 40) % 300]) for _ in range(1500)]
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    small = TINY | {"sizes": [{"width": 16, "layers": 1, "tokens": 4e4, "seeds": [0, 1]},
                              {"width": 32, "layers": 1, "tokens": 1e5, "seeds": [0]}],
                    "vocabulary": 512, "context": 32, "batch": 16, "corpus": str(folder / "text.jsonl"),
                    "sequences": 100, "min_length": 8, "items": 40, "build": str(folder / "build")}
    shutil.copytree(ROOT / "book", folder / "book")
    contents = {"format": "jb-book", "root": "index", "chapters": [{"file": name} for name in CONTENTS]}
    (folder / "book/_toc.yml").write_text(yaml.safe_dump(contents))
    config = yaml.safe_load((ROOT / "book/_config.yml").read_text())
    config["sphinx"]["config"]["suppress_warnings"] = ["myst.xref_missing"]
    (folder / "book/_config.yml").write_text(yaml.safe_dump(config))
    (folder / "book/index.md").write_text("# reptrace\n")
    (folder / "make.py").write_text(COMMAND)
    (folder / "small.yaml").write_text(yaml.safe_dump(small))
    return folder


@pytest.fixture(scope="module")
def made(project):
    """The report, made in two goes: its process killed at the first checkpoints of its training, then called here."""
    small, data = project / "small.yaml", tracked()
    command = [sys.executable, str(project / "make.py"), str(project / "book"), str(small)]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    kill_when(first, lambda: list(project.glob("build/hub/*/refs/step16")))
    time.sleep(1)  # its children end when they next report
    assert not list(project.glob("build/hub/*/refs/main")), "killed too late to show anything"
    second = make(small)
    assert tracked() == data, "times and archive are tracked of the default suite alone"
    return second


def test_the_report_ends_with_its_first_page_and_the_times(made):
    page, printed = made
    assert page.name == "index.html" and "reptrace" in page.read_text()
    assert {path.stem for path in (page.parent / "notebooks").glob("*.html")} == set(PAGES)
    for name in PAGES:
        assert f"notebook {name}.ipynb: done in " in printed and f"  {name}  " in printed


def test_the_pages_fetch_nothing_and_bring_mathjax_along(made):
    html = made[0].parent
    assert (html / "_static/mathjax/tex-chtml.js").exists()
    for page in [*html.glob("*.html"), *html.glob("notebooks/*.html")]:
        for tag in ("<script src=\"http", "<script async=\"async\" src=\"http", "<link rel=\"stylesheet\" href=\"http"):
            assert tag not in page.read_text(), page.name


def test_pages_end_with_what_made_them_and_show_the_parameters_used(made, project):
    page = nbformat.read(project / "build/book/source/notebooks/fig03_capabilities.ipynb", 4)
    last = page.cells[-1].outputs[0].data["text/markdown"]
    assert "What made this page" in last and "torch 2.13.0" in last and '"vocabulary": 512' in last
    settings = [cell for cell in page.cells if "parameters" in " ".join(cell.metadata.get("tags", []))]
    assert len(settings) == 1 and "vocabulary = 512" in settings[0].source
    figures = [o for cell in page.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert figures


def test_a_killed_report_ends_with_the_weights_of_one_never_stopped(made, project, tmp_path):
    profile = Profile.of(yaml.safe_load((project / "small.yaml").read_text()))
    run = profile.runs[-1]  # the longest, so the one that was killed
    straight = Suite([run], profile.texts[0], tmp_path)
    straight.train_here(run, lambda step: None)  # no process of its own, which takes longer to start than to train
    torch.set_flush_denormal(False)
    one, other = (from_pretrained(GPTNeoXForCausalLM, run.repository, "main", suite.hub).state_dict()
                  for suite in (profile.suite, straight))
    assert all((one[name] == other[name]).all() for name in one)


def test_a_second_call_redoes_nothing(made, project):
    before = {path: path.stat().st_mtime_ns for path in project.glob("build/**/*") if path.is_file()}
    page, printed = make(project / "small.yaml")
    assert page == made[0] and printed.count("done already") == len(PAGES)
    assert "nothing changed" in printed
    after = {path: path.stat().st_mtime_ns for path in project.glob("build/**/*") if path.is_file()}
    assert after == before


def outputs(page):
    """What a page shows, pictures included, without where and when that was, and the random names of styled tables."""
    for output in (each for cell in nbformat.read(page, 4).cells for each in cell.get("outputs", [])):
        if output.get("name") != "stderr":  # the book removes it
            text = json.dumps(output.get("data", output.get("text")), sort_keys=True)
            yield re.sub("T_[0-9a-f]{5}|0x[0-9a-f]+", "", text).partition("**What made this page.**")[0]


def opens_a_profile(name):
    return "corpus" in papermill.inspect_notebook(str(ROOT / "notebooks" / f"{name}.ipynb"))


def test_pages_made_from_an_archive_show_what_the_report_s_show_without_text_and_models(made, project):
    parameters = yaml.safe_load((project / "small.yaml").read_text())
    pack(Profile.of(parameters).answers, project / "archive")
    (project / "elsewhere.yaml").write_text(yaml.safe_dump(parameters | {"build": str(project / "elsewhere")}))
    report, archive = project / "build/book/source/notebooks", project / "elsewhere/from_archive/source/notebooks"
    archive.mkdir(parents=True)
    others = [name for name in PAGES if not opens_a_profile(name)]
    for name in others:  # as they read no record, they are not made again
        shutil.copy(report / f"{name}.ipynb", archive)
    (project / "text.jsonl").rename(project / "gone.jsonl")
    try:
        with small_report(project) as patch, redirect_stdout(io.StringIO()) as printed:
            # what Sphinx makes of these pages the report's own show, if they are the same
            patch.setattr(making, "build_book", lambda folder, *found: folder / "first page")
            first = making.make_book(project / "elsewhere.yaml", project / "archive")
    finally:
        (project / "gone.jsonl").rename(project / "text.jsonl")
    assert first == project / "elsewhere/from_archive/first page"
    assert {path.name for path in (project / "elsewhere").iterdir()} == {"from_archive"}
    for name in PAGES:
        assert f"notebook {name}.ipynb: done {'already' if name in others else 'in '}" in printed.getvalue()
        ours, theirs = (list(outputs(folder / f"{name}.ipynb")) for folder in (archive, report))
        assert len(ours) > 2 and ours == theirs, name
    page = nbformat.read(archive / "fig03_capabilities.ipynb", 4)
    assert "its records are those of the archive" in page.cells[-1].outputs[0].data["text/markdown"]


def test_what_is_kept_holds_the_geometry_of_the_averaged_weights(made, project):
    profile = Profile.of(yaml.safe_load((project / "small.yaml").read_text()))
    kept = replace(profile, archive=str(profile.answers.folder)).trace_averaged()
    assert {run: list(table.step) for run, table in kept.items()} == {run: run.averaged_steps for run in profile.runs}
    run = profile.runs[-1]
    model = from_pretrained(GPTNeoXForCausalLM, run.averaged_repository, "main", profile.suite.hub).eval()
    states = last_token_states(model, profile.probe(run).sequences, (FINAL,))[FINAL]
    # other batches: float32 rounding
    assert kept[run].rankme.iloc[-1] == pytest.approx(geometry_of_states(states, None).rankme, rel=1e-4)


def test_all_that_pages_ask_of_a_profile_is_in_the_archive_as_it_was(made, project):
    profile = Profile.of(yaml.safe_load((project / "small.yaml").read_text()))
    kept = replace(profile, archive=str(profile.answers.folder))
    states = np.random.default_rng(0).normal(size=(40, 8))
    found, again = profile.measured("mine", lambda: geometry_of_states(states, (2, 6))), kept.measured("mine", None)
    assert (again.rankme, again.alpha, again.samples) == (found.rankme, found.alpha, found.samples)
    assert again.eigenvalues.tolist() == found.eigenvalues.tolist()
    profile.answers.remove("mine")
    for run in profile.runs:
        assert_frame_equal(kept.log(run), profile.log(run), check_dtype=False)
        assert kept.points(run) == [replace(point, cache_dir=None) for point in profile.points(run)]
    for asked in ("trace", "trace_averaged"):
        told, measured = (getattr(each, asked)(progress=False) for each in (kept, profile))
        assert told.keys() == measured.keys() and len(told)
        for run, table in told.items():
            columns = ["step", "tokens", "status", "rankme", "rankme_stderr", "alpha", "alpha_stderr"]
            assert_frame_equal(table[columns], measured[run][columns])


def test_an_archive_of_another_suite_is_refused(made, project, monkeypatch):
    parameters = yaml.safe_load((project / "small.yaml").read_text())
    monkeypatch.setenv("REPTRACE_ARCHIVE", str(Profile.of(parameters).answers.folder))
    assert len(Profile.of(parameters).runs) == 3
    with pytest.raises(ValueError, match=r"the archive in .* is of the suite"):
        _ = Profile.of(parameters | {"learning_rate": 0.3}).runs


def test_a_changed_parameter_redoes_only_what_depends_on_it(made, project):
    changed = yaml.safe_load((project / "small.yaml").read_text()) | {"alpha_ranks": [3, 12]}
    (project / "changed.yaml").write_text(yaml.safe_dump(changed))
    refs = {path: path.stat().st_mtime_ns for path in project.glob("build/hub/*/refs/*")}
    records, spectra = set(project.glob("build/records/*.parquet")), geometry(project)

    def execute(pages, *others):
        raise InterruptedError(" ".join(sorted(page.name for page in pages)))

    with small_report(project) as patch, pytest.raises(InterruptedError) as asked:
        patch.setattr(making, "execute", execute)
        making.make_report(project / "changed.yaml")
    assert {path: path.stat().st_mtime_ns for path in project.glob("build/hub/*/refs/*")} == refs
    assert len(geometry(project) - spectra) == len(spectra)
    new = set(project.glob("build/records/*.parquet")) - records
    assert new == geometry(project) - spectra, "no task is asked again"
    assert str(asked.value).split() == sorted(filter(opens_a_profile, PAGES))


@pytest.fixture
def small_book(tmp_path, monkeypatch):
    """A book of one page and one notebook, in place of the project's."""
    (tmp_path / "book").mkdir()
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "book/_toc.yml").write_text("format: jb-book\nroot: index\nchapters:\n- file: notebooks/one\n")
    (tmp_path / "book/_config.yml").write_text(
        'title: t\nonly_build_toc_files: true\nexecute:\n  execute_notebooks: "off"\n')
    (tmp_path / "book/index.md").write_text("# A page\n")
    cells = [nbformat.v4.new_markdown_cell("# One"), nbformat.v4.new_code_cell("n / (n - 7)")]
    cells.insert(1, nbformat.v4.new_code_cell("n = 1", metadata={"tags": ["parameters"]}))
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "notebooks/one.ipynb")
    monkeypatch.setattr(making, "BOOK", tmp_path / "book")
    (tmp_path / "requirements.lock").write_text("")
    monkeypatch.setattr(making, "ROOT", tmp_path)
    return tmp_path


def test_a_missing_or_unexecuted_notebook_fails_the_build(small_book):
    with pytest.raises(FileNotFoundError, match=r"one\.ipynb"):
        making.build_book(small_book / "out")
    target = small_book / "out/source/notebooks/one.ipynb"
    target.parent.mkdir(parents=True)
    target.write_text((small_book / "notebooks/one.ipynb").read_text())
    with pytest.raises(ValueError, match="holds no outputs"):
        making.build_book(small_book / "out")


def test_a_changed_stylesheet_is_built_and_a_sphinx_warning_fails_the_build(small_book):
    page = page_of(small_book / "notebooks/one.ipynb", {"n": 8}, small_book / "out/source/notebooks/one.ipynb", [])
    list(execute([page]))
    (small_book / "book/_static").mkdir()
    for style in "a { color: red }", "a { color: blue }":  # the pages themselves stay as they are
        (small_book / "book/_static/own.css").write_text(style)
        built = making.build_book(small_book / "out")
        assert built.exists() and (built.parent / "_static/own.css").read_text() == style
    (small_book / "book/index.md").write_text("# A page\n\n[nowhere](nowhere.md)\n")
    with pytest.raises(RuntimeError, match="did not build"):
        making.build_book(small_book / "out")


def test_a_table_in_data_decides_whether_notebooks_run_again_but_what_the_report_itself_writes_does_not(small_book):
    (small_book / "data/results").mkdir(parents=True)

    def keys():
        return [page.key for page in making.pages_of({}, small_book / "out", "")]

    before = keys()
    for name in ("report_times.csv", "verdicts.csv"):
        (small_book / "data/results" / name).write_text("a\n1\n")
    assert keys() == before
    (small_book / "data/results/other.csv").write_text("a\n1\n")
    assert keys() != before


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_parameters_cell_holds_the_tiny_profile(notebook):
    (cell,) = [c for c in nbformat.read(notebook, 4).cells if "parameters" in c.metadata.get("tags", [])]
    values: dict = {}
    exec(cell.source, values)
    shared = {key: value for key, value in values.items() if key in TINY}
    assert shared == {key: TINY[key] for key in shared}
    if "sizes" in values:
        assert set(TINY) - set(values) - OF_SOME_PAGES in (set(), HUB)
    assert len([c for c in nbformat.read(notebook, 4).cells if c.cell_type == "code"]) <= 18


def test_smoke_parameters_are_those_of_tiny_and_parameters_that_lack_one_are_refused():
    smoke = yaml.safe_load((ROOT / "notebooks/params/smoke.yaml").read_text())
    assert set(smoke) == set(TINY) - HUB
    with pytest.raises(KeyError, match="context"):
        Profile.of({key: value for key, value in TINY.items() if key != "context"})
