"""A real worker process whose explainer does what the trace's question says: the fault is injected by data.

Run by test_worker.py: ``python worker_process.py URL [--once]``.
"""

import os
import signal
import sys
import time
from collections.abc import Callable

from ragblame.attribution.jobs.worker import run_worker
from ragblame.errors import ModelError, RagblameError
from ragblame.records import (
    Basis,
    Cause,
    Explanation,
    Span,
    SpanKind,
    Support,
    SupportState,
    Trace,
    Verdict,
    VerdictKind,
)
from ragblame.suppression import is_suppressed

STALLED_SECONDS = 1.5


class Obedient:
    """Explains every answer as one fabricated span, unless the question asks for a fault."""

    def explain_trace(
        self,
        trace: Trace,
        *,
        should_abort: Callable[[], bool] | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> Explanation:
        """Obey the question, then explain."""
        assert is_suppressed(), "the worker's own work must never be captured"
        order, _, seconds = trace.question.partition(" ")
        if order == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if order == "raise":
            raise ZeroDivisionError("no such luck\nsecond line")
        if order == "refuse":
            raise ModelError("the prompt is too long; use a scorer with a longer context")
        if order == "sleep":
            print("sleeping", flush=True)
            until = time.monotonic() + float(seconds)
            while time.monotonic() < until:
                if should_abort is not None and should_abort():
                    raise RagblameError("stopped")
                time.sleep(0.02)
        if order == "burn":  # deaf to should_abort
            print("burning", flush=True)
            time.sleep(float(seconds))
        end = len(trace.answer)
        span = Span(index=0, start=0, end=end, kind=SpanKind.CLAUSE, sentence_start=0, sentence_end=end)
        return Explanation(
            trace=trace,
            scorer=None,
            fitness=None,
            alignments=(),
            spans=(span,),
            attributions=(),
            heats=(),
            supports=(Support(span=0, state=SupportState.ABSENT, rule="none"),),
            verdicts=(
                Verdict(
                    span=0,
                    verdict=VerdictKind.FABRICATED,
                    cause=Cause.NO_EVIDENCE_IN_PROMPT,
                    basis=Basis.SUPPORT_ONLY,
                    confidence=None,
                    severity=1.0,
                    explanation="No chunk says it.",
                ),
            ),
            coalitions=None,
        )


def say(line: str) -> None:
    """One line, at once: the test reads along."""
    print(line, flush=True)


if __name__ == "__main__":
    run_worker(
        sys.argv[1],
        once="--once" in sys.argv,
        load=Obedient,
        report=say,
        heartbeat_seconds=0.3,
        stalled_seconds=STALLED_SECONDS,
    )
