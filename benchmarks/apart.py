"""One run in a forked process of its own, so that its peak memory is its own: CPU seconds, extra MB, result.

The parent must have run no backward pass: autograd's threads do not survive a fork.
"""

import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Run:
    """What one run cost and found."""

    seconds: float  # CPU, of the whole process
    extra_mb: float  # peak resident memory above what stood before the run, MiB
    result: Any  # plain values or arrays


def apart(work: Callable[[], Any]) -> Run:
    """Run ``work`` in a child and wait. Raises ``RuntimeError`` with its error, or if it was killed."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_measure, args=(work, there))
    child.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:
        found = "the process was killed, most likely for memory"
    child.join()
    if isinstance(found, str):
        raise RuntimeError(found)
    return Run(*found)


def _measure(work: Callable[[], Any], there: Connection) -> None:
    before, started = _memory("VmRSS"), time.process_time()
    try:
        result = work()
        there.send((time.process_time() - started, (_memory("VmHWM") - before) / 1024, result))
    except Exception as error:
        there.send(f"{type(error).__name__}: {error}")
        raise


def _memory(field: str) -> int:
    """A line of the kernel's account of this process, KiB; the peak of a forked child starts at its size."""
    for line in Path("/proc/self/status").read_text("utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise OSError(f"/proc/self/status has no {field}: memory is measured on Linux only")
