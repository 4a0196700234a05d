"""What a forked process needs: no half-done import, and nothing of its parent's queue, runs or connection.

A fork while another thread imports psycopg would leave the child a module lock that nobody ever releases, and
its first use of PostgreSQL would hang. So that import happens inside ``imports``, and a fork waits for it.
"""

import os
import threading
from collections.abc import Callable
from typing import Final

PATIENCE_SECONDS: Final = 10.0  # a fork waits no longer for an import


class ForkGuard:
    """A lock around imports that every fork takes, and the work of starting afresh in the child."""

    def __init__(self) -> None:
        self.imports = threading.Lock()
        self._is_held = False  # by the thread that is forking
        self._children: list[Callable[[], None]] = []
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before, after_in_parent=self._in_parent, after_in_child=self._in_child
            )

    def run_in_child(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` in every process forked from this one, first thing."""
        self._children.append(callback)

    def _before(self) -> None:
        self._is_held = self.imports.acquire(timeout=PATIENCE_SECONDS)

    def _in_parent(self) -> None:
        if self._is_held:
            self._is_held = False
            self.imports.release()

    def _in_child(self) -> None:
        self.imports = threading.Lock()
        self._is_held = False
        for callback in self._children:
            callback()


fork_guard: Final = ForkGuard()  # of this process
