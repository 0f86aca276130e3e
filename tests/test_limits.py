"""Nothing in the tests waits for ever: the time limit works, servers cannot be held up, and no wait lacks an end.

Trusted: pytest, run on a file of tests that hang; Python's own parser; sockets and processes of the operating system.
"""

import ast
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import limits
import pytest
from limits import SOON, NeverWaiting, check_resets, in_background, line, run, serve, serving, stop

TESTS = Path(__file__).parent
HANGING = """
import ctypes, threading
import pytest

def beside():
    threading.Event().wait()

@pytest.fixture
def never_cleaned_up():
    yield
    threading.Event().wait()

def test_that_hangs():
    threading.Thread(target=beside, daemon=True).start()
    threading.Event().wait()

def test_that_fails_and_then_hangs(never_cleaned_up):
    assert False

def test_that_hangs_in_c():
    libc, mutex = ctypes.CDLL(None), ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)

def test_that_runs():
    pass
"""


def pytest_on_hanging(folder, *options):
    """What pytest prints of these tests under the project's own configuration, but for shorter limits."""
    (folder / "test_hanging.py").write_text(HANGING)
    return run([sys.executable, "-m", "pytest", "-c", TESTS.parent / "pyproject.toml", "--rootdir", folder, folder,
                "-p", "no:cacheprovider", "-p", "limits", "--timeout", "1", *options],
               env={**os.environ, "PYTHONPATH": str(TESTS)}, cwd=folder)


# The time limit


def test_a_test_or_its_clean_up_that_hangs_fails_with_every_stack_and_the_next_one_runs(tmp_path):
    said = pytest_on_hanging(tmp_path, "-k", "not in_c").stdout
    assert "= 2 failed, 1 passed, 1 deselected, 1 error in" in said
    assert len(re.findall(r"^E +Failed: Timeout \(>1.0s\) from pytest-timeout\.$", said, re.M)) == 2
    assert ">       threading.Event().wait()" in said and "in beside" in said  # its own stack and the other thread's


def test_under_xdist_a_test_that_hangs_in_c_ends_its_process_alone(tmp_path):
    done = pytest_on_hanging(tmp_path, "-n", "1", "--dist", "loadfile", "-o", "faulthandler_timeout=3", "-k",
                             "not fails")
    assert "= 2 failed, 1 passed in" in done.stdout
    assert "crashed while running 'test_hanging.py::test_that_hangs_in_c'" in done.stdout
    assert "in test_that_hangs_in_c" in done.stderr and "in beside" in done.stderr


def test_no_test_may_take_longer_than_the_second_limit_allows(pytestconfig):
    markers = [float(call.args[0].value) for _, call in calls() if ast.unparse(call.func) == "pytest.mark.timeout"]
    first, second = float(pytestconfig.getini("timeout")), float(pytestconfig.getini("faulthandler_timeout"))
    assert 0 < first < second and all(first < seconds < second for seconds in markers)
    assert pytestconfig.getini("faulthandler_exit_on_timeout")


# What helps tests to end


class Silent(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass


class Server(NeverWaiting, ThreadingHTTPServer):
    pass


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(limits, "SOON", 0.3)


def test_the_check_for_resets_tells_a_server_that_waits_from_one_that_does_not():
    with Server(("127.0.0.1", 0), Silent) as server:
        check_resets(server)
    with ThreadingHTTPServer(("127.0.0.1", 0), Silent) as server:  # as Python has it
        check = in_background(check_resets, server)
        with pytest.raises(TimeoutError):
            check.result(0.3)
        with (socket.create_connection(server.server_address, timeout=SOON),  # which it then takes
              pytest.raises(AssertionError, match="waited for a client")):
            check.result(SOON)


def test_a_client_that_says_nothing_is_left_after_a_while(impatient):
    with (Server(("127.0.0.1", 0), Silent) as server, serving(server),
          socket.create_connection(server.server_address, timeout=20) as client):
        assert client.recv(1) == b""


def test_a_server_that_does_not_stop_is_an_error(impatient):
    class Stuck(Server):
        def service_actions(self):
            stuck.set()
            over.wait(60)

    stuck, over = threading.Event(), threading.Event()
    with Stuck(("127.0.0.1", 0), Silent) as server:
        thread = serve(server)
        assert stuck.wait(60)
        with pytest.raises(AssertionError, match=r"the thread 'Stuck' did not end within 0.3 s"):
            stop(server, thread)
        over.set()
        thread.join(60)


def test_a_process_that_prints_nothing_is_killed_and_one_that_has_ended_prints_an_empty_line():
    command = [sys.executable, "-c", "import time; print('one', flush=True); time.sleep(1000)"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert line(process) == "one\n"
        with pytest.raises(TimeoutError, match=r"printed nothing for 0.3 s"):
            line(process, 0.3)
        assert process.wait(SOON) == -9 and line(process) == ""


def test_work_in_the_background_gives_its_result_or_error_and_does_not_keep_python_from_ending():
    assert in_background(max, 1, 2).result(SOON) == 2
    with pytest.raises(KeyError):
        in_background({}.pop, "a").result(SOON)
    code = "import limits, threading; limits.in_background(threading.Event().wait); print('over')"
    assert run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(TESTS)}).stdout == "over\n"


# The tests' own waits

# Called without an argument these wait without end: of processes, threads, events, queues, futures, locks and sockets.
WAITS = {"wait", "join", "communicate", "result", "exception", "get", "acquire", "accept", "recv"}
# And these unless a time is given.
TIMED = {"subprocess.run", "subprocess.check_output", "subprocess.check_call", "urlopen", "create_connection",
         "wait_for_workers", "FileLock"}
# What limits.py has a better one for.
BARRED = {"ThreadPoolExecutor": "its threads keep Python from ending: limits.in_background",
          "serve_forever": "limits.serving", "readline": "limits.line", "waitpid": "limits.kill, or Popen.wait(SOON)",
          "stdout.read": "limits.run, or limits.line", "stderr.read": "limits.run"}


def calls():
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield path, node


def complaint(call):
    """Why a call may wait for ever, or ""."""
    whole = ast.unparse(call.func)
    name, given = whole.split(".")[-1], {keyword.arg for keyword in call.keywords}
    barred = {name, ".".join(whole.split(".")[-2:])} & BARRED.keys()
    if barred:
        return BARRED[barred.pop()]
    if name == "Thread":
        return "" if "daemon" in given else "not a daemon: it keeps Python from ending"
    if (name in WAITS and not call.args and not given) or ({name, whole} & TIMED and "timeout" not in given):
        return "no time limit"
    return ""


def test_no_test_waits_without_an_end():
    found = [f"{path.name}:{call.lineno}: {ast.unparse(call.func)}: {complaint(call)}" for path, call in calls()
             if path.name != "limits.py" and complaint(call)]
    assert found == []


@pytest.mark.parametrize(("code", "told"), [
    ("process.wait()", "no time"), ("process.wait(5)", ""), ("event.wait(timeout=5)", ""), ("','.join(names)", ""),
    ("future.result()", "no time"), ("subprocess.run(['ls'])", "no time"), ("subprocess.run(['ls'], timeout=5)", ""),
    ("run(['ls'])", ""), ("Thread(target=f)", "not a daemon"), ("threading.Thread(target=f, daemon=True)", ""),
    ("os.waitpid(child, 0)", "Popen.wait"), ("process.stdout.read()", "limits.run"), ("path.read()", ""),
    ("server.serve_forever()", "limits.serving"), ("ThreadPoolExecutor(1)", "limits.in_background")])
def test_a_wait_without_an_end_is_seen(code, told):
    found = complaint(ast.parse(code).body[0].value)
    assert told in found and bool(told) == bool(found)
