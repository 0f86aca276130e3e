"""An end to everything that a test waits for, so that no test can hang the suite.

pyproject.toml gives every test a time limit (pytest-timeout). Here is what keeps tests from needing it: waits that end
and say what was waited for, threads that do not keep Python from ending, and servers that nothing can hold up.
tests/test_limits.py proves the limit, and finds waits in the tests that have no end.
"""

from __future__ import annotations

import queue
import socket
import struct
import subprocess
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from socketserver import TCPServer

import pytest
from pytest_timeout import Settings

SOON = 60  # seconds in which a busy machine has done what a quiet one does in a few; what takes longer will not come


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Iterator[None]:
    """A limit for the clean-up, which may hang too: where a test has failed, pytest-timeout has lifted the test's."""
    given = item.config.getoption("timeout")
    seconds = float(item.config.getini("timeout") or 0) if given is None else given
    if seconds:
        item.config.hook.pytest_timeout_set_timer(item=item, settings=Settings(seconds, "signal", False, False))
    return (yield)


@pytest.hookimpl(optionalhook=True)  # xdist's
def pytest_handlecrashitem(crashitem: str, sched) -> None:
    """A test that ended its process is not run again: with --dist loadfile each new process would begin with it."""
    for tests in getattr(sched, "workqueue", {}).values():
        if crashitem in tests:
            tests[crashitem] = True  # done


# Processes and threads


def run(command: list, seconds: float = SOON, **options) -> subprocess.CompletedProcess:
    """`subprocess.run` of text, its output kept; a process that does not end in time is killed, and an error."""
    return subprocess.run(command, timeout=seconds, text=True, capture_output=True, **options)


def beside(function: Callable) -> BaseProcess:
    """A process of its own, from this one, so that nothing needs to be imported again; it ends when the function has.
    """
    process = get_context("fork").Process(target=function, daemon=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.12: under xdist there is another thread
        process.start()
    return process


def line(process: subprocess.Popen, seconds: float = SOON) -> str:
    """The next line that a process prints ("" if it has ended); one that prints none in time is killed, and an error.
    """
    printed = queue.Queue()
    threading.Thread(target=lambda: printed.put(process.stdout.readline()), daemon=True).start()
    try:
        return printed.get(timeout=seconds)
    except queue.Empty:
        process.kill()
        raise TimeoutError(f"the process {process.args} printed nothing for {seconds} s") from None


def kill(process: subprocess.Popen) -> None:
    """By SIGKILL, and wait until it is gone."""
    process.kill()
    process.wait(SOON)


def kill_when(process: subprocess.Popen, true: Callable[[], object], seconds: float = 2 * SOON) -> None:
    """Kill a process by SIGKILL once something is so; an error where it ends before, or it takes too long."""
    stop = time.monotonic() + seconds
    try:
        while not true():
            assert process.poll() is None, f"the process ended by itself, with code {process.returncode}"
            assert time.monotonic() < stop, f"waited {seconds} s in vain for the moment to kill the process"
            time.sleep(0.01)
    finally:
        kill(process)


def in_background(function: Callable, *arguments, **options) -> Future:
    """A future of what a function returns. Unlike a pool's, its thread does not keep Python from ending."""
    future = Future()

    def work() -> None:
        try:
            future.set_result(function(*arguments, **options))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future


def join(*threads: threading.Thread) -> None:
    """Wait for threads; one that does not end in time is an error that names it."""
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive(), f"the thread {thread.name!r} did not end within {SOON} s"


# Servers


class NeverWaiting:
    """For a socketserver: no client can hold it up, neither one that is gone before it is accepted nor a silent one."""

    daemon_threads = True

    def server_activate(self) -> None:
        super().server_activate()
        # A client was there when the loop looked; where it has reset since, accept would wait for the next one.
        self.socket.settimeout(0)

    def get_request(self) -> tuple[socket.socket, tuple]:
        connection, address = super().get_request()
        connection.settimeout(SOON)
        return connection, address


@contextmanager
def serving(server: TCPServer) -> Iterator[TCPServer]:
    """Serve in a thread until the block ends; a server that then goes on is an error."""
    thread = serve(server)
    try:
        yield server
    finally:
        stop(server, thread)


def serve(server: TCPServer) -> threading.Thread:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True, name=type(server).__name__)
    thread.start()
    return thread


def stop(server: TCPServer, thread: threading.Thread) -> None:
    """Stop serving and close."""
    threading.Thread(target=server.shutdown, daemon=True).start()  # it would wait for ever for a loop that hangs
    join(thread)
    server.server_close()


def check_resets(server: TCPServer) -> None:
    """That a server, listening but not serving yet, is not held up by a client that resets before it is accepted.

    Some systems hand out such a client all the same; others have none to accept any more. Both must come back.
    """
    with socket.create_connection(server.server_address, timeout=SOON) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # its close is a reset
    with suppress(OSError):
        server.get_request()[0].close()
    with suppress(BlockingIOError):
        server.get_request()[0].close()
        raise AssertionError(f"{type(server).__name__} waited for a client that was not there")
