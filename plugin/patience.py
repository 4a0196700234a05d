"""A connection that gives up on a server which does not answer.

A frozen PostgreSQL keeps its sockets open, and so does a broken network: without a limit of our own the
recorder's thread would wait for ever in the middle of a batch, while memory fills.
"""

import time
from collections.abc import Callable, Generator
from typing import Any, Final

import psycopg

LIVE_SECONDS: Final = 3.0  # without a sign of the server while new traces are written
REPLAY_SECONDS: Final = 30.0  # while the spool is replayed: nothing is in a hurry then


class PatientConnection(psycopg.Connection[Any]):
    """Raises ``psycopg.OperationalError``, closed, when the server is silent for longer than ``patience``."""

    patience: float = LIVE_SECONDS  # seconds
    is_needed_elsewhere: Callable[[], bool] = staticmethod(lambda: False)  # ends a silence at once
    gave_up = False

    def wait(self, gen: Generator[Any, Any, Any], *args: Any, **kwargs: Any) -> Any:
        """As psycopg's, which comes by ten times a second while nothing happens."""
        return super().wait(self._watch(gen), *args, **kwargs)

    def _watch(self, gen: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        silent_since = time.monotonic()
        try:
            state = next(gen)
            while True:
                ready = yield state
                now = time.monotonic()
                if ready:
                    silent_since = now
                elif now - silent_since > self.patience or self.is_needed_elsewhere():
                    self.gave_up = True
                    self.pgconn.finish()  # so that nobody waits for a rollback on it
                    raise psycopg.OperationalError(
                        f"PostgreSQL does not answer ({now - silent_since:.0f} s of silence)"
                    )
                state = gen.send(ready)
        except StopIteration as end:
            return end.value
