"""Notebooks executed side by side.

Trusted: files that the notebooks write themselves, what their kernels see, and the operating system's processes.
"""

import json
import os
import subprocess
import sys
import time

import nbformat
import pytest
from limits import kill_when

from reptrace.report.executing import execute, page_of

KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
WAIT = ("import pathlib, time\nlimit = time.time() + 60\n"
        "while not pathlib.Path({!r}).exists() and time.time() < limit:\n    time.sleep(0.1)")


def notebook(folder, name, *cells, parameters=""):
    content = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells], metadata=KERNEL)
    if parameters:
        content.cells.insert(0, nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    nbformat.write(content, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def page(folder, name, *cells, parameters="", **given):
    made = notebook(folder, name, *cells, parameters=parameters)
    return page_of(made, given, folder / "pages" / made.name, [])


def outputs(page):
    return ["".join(output["data"]["text/plain"]) for cell in json.loads(page.target.read_text())["cells"]
            for output in cell["outputs"] if "data" in output]


def alive(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


def gone(number, seconds=30):
    limit = time.time() + seconds
    while alive(number) and time.time() < limit:
        time.sleep(0.1)
    return not alive(number)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three pages, executed two at a time."""
    folder = tmp_path_factory.mktemp("three")
    threads = "import os\n[os.environ[f'{name}_NUM_THREADS'] for name in ('OMP', 'MKL', 'OPENBLAS')]"
    # each of the first two goes on when the other has begun; the third begins when one of them has ended
    both = [page(folder, name, f"open({str(folder / name)!r}, 'w').close()", WAIT.format(str(folder / other)),
                 f"import os\nos.path.exists({str(folder / other)!r})", threads)
            for name, other in (("a", "b"), ("b", "a"))]
    third = page(folder, "c", f"import pathlib\nany(pathlib.Path({str(folder / 'pages')!r}).glob('[ab].ipynb'))",
                 "n + 1", parameters="n = 1\ncorpus = 'c'", n=2, other=3)
    return [*both, third], dict(execute([*both, third], workers=2))


def test_as_many_run_at_once_as_asked_for_in_the_order_given_on_one_thread_each(three):
    pages, ended = three
    for each in pages[:2]:
        assert outputs(each) == ["True", "['1', '1', '1']"]
    assert outputs(pages[2])[0] == "True" and set(ended) == set(pages)
    assert all(spent.processor_seconds > 0 for spent in ended.values())
    assert all(each.done for each in pages) and not list(pages[0].target.parent.glob("*unfinished*"))


def test_a_page_is_made_again_when_its_parameters_or_what_it_reads_change_and_not_otherwise(three):
    made = three[0][2]
    assert outputs(made)[1] == "3" and page_of(made.notebook, {"n": 2, "other": 4}, made.target, []).done
    assert not page_of(made.notebook, {"n": 3}, made.target, []).done
    assert not page_of(made.notebook, {"n": 2}, made.target, [], state="other records").done
    assert not page_of(made.notebook, {"n": 2}, made.target, [made.notebook]).done


def test_a_failing_notebook_is_named_with_its_error_ends_the_others_and_leaves_no_page(tmp_path):
    waits = page(tmp_path, "waits", f"import os\nopen({str(tmp_path / 'kernel')!r}, 'w').write(str(os.getpid()))",
                 "import time\ntime.sleep(600)")
    fails = page(tmp_path, "fails", WAIT.format(str(tmp_path / "kernel")), "n = 7\n1 / (n - 7)")
    later = page(tmp_path, "later", "1")
    with pytest.raises(RuntimeError, match=r"(?s)notebook fails\.ipynb failed.*cell 2, ZeroDivisionError: division by"):
        list(execute([waits, fails, later], workers=2))
    assert gone(int((tmp_path / "kernel").read_text())), "the kernel of the other notebook goes on"
    assert not any(each.target.exists() for each in (waits, fails, later))


def test_kernels_end_with_the_process_that_executes_them(tmp_path):
    notebook(tmp_path, "waits", f"import os\nopen({str(tmp_path / 'kernel')!r}, 'w').write(str(os.getpid()))",
             "import time\ntime.sleep(600)")
    code = (f"from pathlib import Path\nfrom reptrace.report.executing import execute, page_of\n"
            f"folder = Path({str(tmp_path)!r})\n"
            "list(execute([page_of(folder / 'waits.ipynb', {}, folder / 'page.ipynb', [])]))")
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    kill_when(parent, lambda: (tmp_path / "kernel").exists() and (tmp_path / "kernel").read_text())
    assert gone(int((tmp_path / "kernel").read_text()))
