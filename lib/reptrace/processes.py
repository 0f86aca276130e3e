"""Processor cores to use, and child processes that end with their parent."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def end_with_parent() -> None:
    """End this child process when its parent has, however that came: a killed parent's pool would wait for ever."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)
