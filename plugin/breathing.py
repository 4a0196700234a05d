"""The breath a busy background thread takes, so that the host's threads need not wait for it.

A thread that computes keeps the interpreter until Python's switch interval (5 ms) is over, and a chain that
comes back from its search or its model meanwhile waits as long. So ours steps aside every half millisecond.
"""

import time
from typing import Final

BUSY_SECONDS: Final = 0.0005  # of work between two breaths, at most one trace more
BREATH_SECONDS: Final = 0.000_02  # with what the kernel adds, about 0.1 ms


class _Breath:
    """When the last one was; only the recorder's thread breathes, so nothing is locked."""

    def __init__(self) -> None:
        self._last = 0.0

    def take(self) -> None:
        """Let the host's threads have the interpreter, if we had it for a while."""
        if time.perf_counter() - self._last > BUSY_SECONDS:
            time.sleep(BREATH_SECONDS)
            self._last = time.perf_counter()


breathe: Final = _Breath().take
