"""The breath a busy background thread takes, so that the host's threads need not wait for it.

A thread that computes for milliseconds keeps the interpreter until Python's switch interval (5 ms) is over,
and a chain that starts meanwhile waits as long. So our thread steps aside between two traces.
"""

import time
from typing import Final

BREATH_SECONDS: Final = 0.000_02  # with what the kernel adds, about 0.1 ms


def breathe() -> None:
    """Let the host's threads have the interpreter."""
    time.sleep(BREATH_SECONDS)
