"""Notebooks -> executed pages, side by side: each by papermill in a process of its own, with one thread.

A page is written whole or not at all, and made again when the hash of what it depends on changes.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from reptrace.records.store import write_atomically
from reptrace.report.verdicts import stated
from reptrace.support.marked import plain

ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True, eq=False)
class Page:
    """A notebook, those parameters of the report that it declares, its page, and the hash of what that depends on."""

    notebook: Path
    parameters: dict
    target: Path
    key: str

    @property
    def name(self) -> str:
        return self.notebook.stem

    @property
    def done(self) -> bool:
        return (self.target.exists()
                and json.loads(self.target.read_text())["metadata"].get("reptrace_key") == self.key)


@dataclass(frozen=True)
class Spent:
    """Wall time and processor time, in seconds; child processes included."""

    seconds: float
    processor_seconds: float


def page_of(notebook: Path, parameters: dict, target: Path, made_from: Sequence[Path], state: str = "") -> Page:
    """The page of a notebook under a parameters file.

    `made_from`: files that every page depends on; `state` stands for the text and the records, for the notebooks that
    open a profile (which declare `corpus`). Where the parameters name suites of the hub, a notebook that is about a
    suite trained here keeps its own parameters.
    """
    import papermill

    declared = papermill.inspect_notebook(str(notebook))
    foreign = bool(parameters.get("suites")) and "suites" not in declared
    own = {} if foreign else {name: value for name, value in parameters.items() if name in declared}
    read = state if "corpus" in declared else ""
    return Page(notebook, own, target, hash_of(notebook, *made_from, extra=json.dumps([own, read])))


def execute(pages: Sequence[Page], workers: int = 1, environment: Mapping[str, str] | None = None
            ) -> Iterator[tuple[Page, Spent]]:
    """Execute notebooks in the order given, `workers` at a time; each is told when it has ended.

    One thread each, also where one runs alone, so that the same numbers come out; `environment`: further variables.

    Raises
    ------
    RuntimeError
        A notebook failed: which, in which cell, and the cell's error. Those that run beside it are ended, and leave no
        page.
    """
    children, pool = _Children({**os.environ, **ONE_THREAD, **(environment or {})}), ThreadPoolExecutor(workers)
    try:
        futures = {pool.submit(_execute, page, children): page for page in pages}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:  # nothing is left to end unless one failed, or the caller stopped
        pool.shutdown(wait=False, cancel_futures=True)
        children.end()
        pool.shutdown()


class _Children:
    """Processes that execute notebooks, to be ended at once, those that were about to start too."""

    def __init__(self, environment: Mapping[str, str]):
        self._environment = environment
        self._lock, self._running, self._ended = threading.Lock(), set(), False

    def run(self, order: dict) -> tuple[int, str]:
        """Exit code of a process, and what it wrote."""
        with self._lock:
            if self._ended:
                return 1, "ended with the others"
            child = subprocess.Popen(
                [sys.executable, "-m", "reptrace.report.executing", json.dumps(order)],
                env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                text=True)
            self._running.add(child)
        with child:
            # not communicate(): that closes the pipe whose end tells the child that this process has ended
            said, code = child.stdout.read(), child.wait()
        with self._lock:
            self._running.discard(child)
        return code, said

    def end(self) -> None:
        with self._lock:
            self._ended = True
            for child in self._running:
                child.kill()


def _execute(page: Page, children: _Children) -> Spent:
    print(f"notebook {page.notebook.name}: executing\n", end="", flush=True)  # in one piece, from several threads
    started, unfinished = time.perf_counter(), page.target.with_suffix(".unfinished.ipynb")
    page.target.parent.mkdir(parents=True, exist_ok=True)
    code, said = children.run({"input_path": str(page.notebook), "output_path": str(unfinished),
                               "parameters": page.parameters, "cwd": str(page.notebook.parent)})
    if code:
        raise RuntimeError(f"the notebook {page.notebook.name} failed (code {code}): {said.strip()}")
    content = json.loads(unfinished.read_text())
    del content["metadata"]["papermill"]  # paths of this machine
    content["metadata"]["reptrace_key"] = page.key
    content["cells"] = _with_answer(_with_captions(_with_parameters_used(content["cells"])))
    write_atomically(page.target, json.dumps(content).encode())
    unfinished.unlink()
    return Spent(time.perf_counter() - started, float(said.splitlines()[-1]))


def _with_parameters_used(cells: list[dict]) -> list[dict]:
    """The cells without the default parameters where papermill put others after them; those are folded instead."""
    injected = [cell for cell in cells if "injected-parameters" in cell["metadata"].get("tags", [])]
    for cell in injected:
        cell["metadata"]["tags"].append("hide-input")
    return [cell for cell in cells if not injected or "parameters" not in cell["metadata"].get("tags", [])]


def _with_captions(cells: list[dict]) -> list[dict]:
    """The cells, with the caption and the alternative text of a figure (`figures.show`) where the book looks."""
    for cell in cells:
        for output in cell.get("outputs", []):
            said = output.get("metadata", {}).pop("reptrace", None)
            if said:
                cell["metadata"]["mystnb"] = {"figure": {"caption": said["caption"]}, "image": {"alt": said["alt"]}}
    return cells


def _with_answer(cells: list[dict]) -> list[dict]:
    """The cells, with what the page concludes (`verdicts.conclude`) under its title."""
    said = [kept["answer"] for kept in stated(cells)]
    if said and cells[0]["cell_type"] == "markdown":
        title, _, rest = "".join(cells[0]["source"]).partition("\n")
        cells[0]["source"] = f"{title}\n\n:::{{div}} answer\n{plain(said[0])}\n:::\n{rest}"
    return cells


def hash_of(*paths: Path, extra: str = "") -> str:
    """SHA-256 of the names and contents of files, and of a string."""
    digest = hashlib.sha256(extra.encode())
    for path in paths:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def processor_seconds() -> float:
    """Processor time of this process so far, and of its children that have ended."""
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in spent)


def main() -> None:
    """A child of `execute`: runs one notebook and prints its processor time. It ends when its standard input does, and
    its kernel, which looks after its parent, with it."""
    import papermill
    from papermill.exceptions import PapermillExecutionError

    # os.read, because a thread inside of sys.stdin would hold up the interpreter's end
    threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
    try:
        papermill.execute_notebook(**json.loads(sys.argv[1]), kernel_name="python3", progress_bar=False,
                                   log_output=False)
    except PapermillExecutionError as error:
        sys.exit(f"cell {error.exec_count}, {error.ename}: {error.evalue}{error}")
    print(processor_seconds())


if __name__ == "__main__":
    main()
