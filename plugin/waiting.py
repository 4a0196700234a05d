"""What waits in memory between the callbacks and the recorder's thread: bounded by count and by bytes.

Putting something in never blocks and is safe inside a garbage collection, whatever lock the interrupted code
holds; that rules out ``queue.Queue``.
"""

import queue
import threading
from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ragblame.plugin.run_tree import RunTree

BATCH: Final = 100  # trees taken at once
BATCH_BYTES: Final = 4_000_000  # while the batch's one statement is put together, the host's threads wait
# Traces that come in quick succession are written in one transaction: each costs a dozen round trips. Longer
# does not pay: what waits is thousands of objects, and Python's collector stops the host to look at them.
LINGER_SECONDS: Final = 0.03


@dataclass(slots=True)
class FlushMark:
    """A mark in the queue: everything before it has been dealt with once ``done`` is set."""

    done: threading.Event = field(default_factory=threading.Event)
    is_stored: bool = False
    is_last: bool = False  # the thread ends


Item: TypeAlias = "RunTree | FlushMark"


class Waiting:
    """Finished run trees and the marks between them, in order."""

    def __init__(self) -> None:
        self.max_traces, self.max_bytes = 10_000, 64_000_000  # until the settings are read
        self._lock = threading.RLock()  # re-entrant: a collection may deliver events while we hold it
        self._queue: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self._hurry = threading.Event()  # somebody waits in flush: no lingering, no pauses
        self._bytes = 0  # held by the trees

    @property
    def load(self) -> tuple[int, int]:
        """Items and bytes that wait now."""
        return self._queue.qsize(), self._bytes

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits."""
        return self._queue.empty()

    @property
    def is_pressed(self) -> bool:
        """Whether half of the room is taken, so that PostgreSQL is too slow for us."""
        return self._queue.qsize() * 2 >= self.max_traces or self._bytes * 2 >= self.max_bytes

    def put(self, tree: RunTree) -> bool:
        """Let a tree wait; False when there is no room."""
        if self._queue.qsize() >= self.max_traces or self._bytes >= self.max_bytes:
            return False
        with self._lock:
            self._bytes += tree.bytes
        self._queue.put(tree)
        return True

    def mark(self, mark: FlushMark) -> None:
        """Put a mark behind everything that waits. Not for code that may run inside a collection."""
        self._hurry.set()
        self._queue.put(mark)

    def take(self, timeout: float | None) -> list[Item]:
        """What waits, a batch at most and nothing behind a mark; waits so many seconds for the first."""
        items: list[Item] = []
        size = 0
        try:
            items.append(self._queue.get(timeout=timeout))
            if isinstance(items[0], RunTree):
                self.pause(LINGER_SECONDS)
            while len(items) < BATCH and size < BATCH_BYTES and not isinstance(items[-1], FlushMark):
                items.append(self._queue.get_nowait())
                size += items[-1].bytes if isinstance(items[-1], RunTree) else 0
        except queue.Empty:
            pass
        taken = sum(item.bytes for item in items if isinstance(item, RunTree))
        with self._lock:
            self._bytes = 0 if self._queue.empty() else max(0, self._bytes - taken)
        return items

    def drain(self) -> list[RunTree]:
        """Every tree that waits, at once."""
        trees: list[RunTree] = []
        while True:
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return trees
            trees += [item] if isinstance(item, RunTree) else []

    def pause(self, seconds: float) -> None:
        """Wait, unless somebody is in a hurry."""
        self._hurry.wait(seconds)

    def calm_down(self) -> None:
        """Those in a hurry are served."""
        self._hurry.clear()
