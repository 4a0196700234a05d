"""The demo's worker: a process of its own, as in production, watched until it has attributed what was asked.

It exists because attribution belongs in another process than the chain: the demo shows the real arrangement,
and a worker that dies is told to the person watching instead of leaving a bar that never moves.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Collection
from types import TracebackType
from typing import Self
from uuid import UUID

import psycopg

from ragblame.errors import RagblameError
from ragblame.settings import load_settings
from ragblame.ui.demo.chat import MODEL_NAME

_POLL = 0.25  # seconds
_TAIL = 600  # characters of the worker's last words


class WorkerProcess:
    """``with WorkerProcess() as worker: worker.wait_for(...)``; stopped gracefully on leaving."""

    def __init__(self) -> None:
        self._log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - closed in __exit__
        # the small model wrote the demo's answers, so of these the scorer is the chain's own model
        wrote = {"RAGBLAME_SCORER_WROTE": json.dumps([MODEL_NAME])} if load_settings().scorer is None else {}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ragblame", "worker"],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            env=os.environ | wrote,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._log.close()

    def wait_for(
        self,
        conn: psycopg.Connection,
        trace_ids: Collection[UUID],
        *,
        timeout: float,
        on_progress: Callable[[int], None],
    ) -> int:
        """Until every trace has a finished or failed attribution; returns how many failed.

        ``conn`` must be in autocommit mode. Raises ``RagblameError`` with the worker's last words when it
        died, or when ``timeout`` seconds passed without a single trace being finished.
        """
        done = -1
        last_change = time.monotonic()
        while True:
            row = conn.execute(
                "SELECT count(*), count(*) FILTER (WHERE state = 'failed') FROM attribution_run"
                " WHERE trace_id = ANY(%s)",
                [list(trace_ids)],
            ).fetchone()
            finished, failed = row if row is not None else (0, 0)
            if finished != done:
                done, last_change = finished, time.monotonic()
                on_progress(finished)
            if finished >= len(trace_ids):
                return int(failed)
            if self._process.poll() is not None:
                raise RagblameError(f"the worker ended early: {self._last_words()}; run `ragblame doctor`")
            if time.monotonic() - last_change > timeout:
                raise RagblameError(
                    f"the worker finished nothing for {timeout:.0f} s: {self._last_words()}; "
                    "run `ragblame doctor`"
                )
            time.sleep(_POLL)

    def _last_words(self) -> str:
        self._log.seek(0)
        return " ".join(self._log.read()[-_TAIL:].split()) or "it said nothing"
