"""What capture did and could not do, counted per process, so that a silent fault shows in the doctor."""

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Final

logger = logging.getLogger("ragblame")

# What a batch takes place for is counted in memory only; the rest outlives the process, see spool.add_counts.
UNSAVED: Final = frozenset({"finished", "written"})
MAX_WARNINGS: Final = 3  # per process and kind of trouble: a broken host must not drown in our words


class Counters:
    """Named counts; safe in any thread and, with a re-entrant lock, inside a garbage collection."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._counts: Counter[str] = Counter()
        self._warnings: Counter[str] = Counter()
        self._saved: Counter[str] = Counter()

    def add(self, name: str, count: int = 1) -> None:
        """Count ``count`` more of ``name``; nothing for 0."""
        if count:
            with self._lock:
                self._counts[name] += count

    def snapshot(self) -> dict[str, int]:
        """The counts so far."""
        with self._lock:
            return dict(self._counts)

    def lost(self) -> int:
        """Traces of this process that will never be stored: dropped for any reason, or refused."""
        with self._lock:
            return lost(self._counts)

    def unsaved(self) -> dict[str, int]:
        """The counts that ``mark_saved`` has not been told of yet."""
        with self._lock:
            return {
                name: count - self._saved[name]
                for name, count in self._counts.items()
                if count > self._saved[name]
            }

    def mark_saved(self, counts: Mapping[str, int]) -> None:
        """These counts stand in the spool folder's totals now."""
        with self._lock:
            self._saved.update(counts)

    def note_fault(self, error: BaseException) -> None:
        """Count an exception of ours that was kept from the host, and say so a few times."""
        kind = type(error).__name__
        self.add("capture_faults")
        self.warn(f"fault {kind}", f"an event could not be captured ({kind}); the chain is not affected")

    def warn(self, kind: str, message: str) -> None:
        """Log a warning, at most ``MAX_WARNINGS`` times per kind."""
        with self._lock:
            self._warnings[kind] += 1
            count = self._warnings[kind]
        if count <= MAX_WARNINGS:
            logger.warning("ragblame: %s%s", message, " (not said again)" if count == MAX_WARNINGS else "")

    def after_fork(self) -> None:
        """Start from zero in a new process: the parent reports its own."""
        self._lock = threading.RLock()
        self._counts, self._warnings, self._saved = Counter(), Counter(), Counter()


def lost(counts: Mapping[str, int]) -> int:
    """How many traces these counts tell to be lost."""
    return sum(count for name, count in counts.items() if name.startswith("dropped") or name == "refused")


counters: Final = Counters()  # of this process
