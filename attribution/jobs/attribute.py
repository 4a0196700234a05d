"""Attributes one stored trace: read, explain, write. Shared by the worker and ``ragblame explain``.

No connection is held while the model works, and results that took minutes are not thrown away because
PostgreSQL restarts at the moment of writing.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar, runtime_checkable
from uuid import UUID

from ragblame import database
from ragblame.attribution.jobs.faults import database_faults
from ragblame.attribution.jobs.rescoring import Rescorer, write_scores
from ragblame.attribution.jobs.results import write_explanation, write_failure
from ragblame.attribution.jobs.thresholds import read_active
from ragblame.attribution.support_model.choice import load_support_reader
from ragblame.attribution.verdicts.thresholds import Thresholds
from ragblame.corpus import CorpusProbe
from ragblame.errors import DatabaseError, MissingExtraError, ModelError, RagblameError
from ragblame.records import Explanation, Trace
from ragblame.settings import ANY_MODEL, Settings
from ragblame.suppression import suppress_capture
from ragblame.traces import read_trace

if TYPE_CHECKING:
    from ragblame.attribution.debugger import Debugger

T = TypeVar("T")
Progress: TypeAlias = Callable[[str, float], None]  # name of the step, part of it done in [0, 1]

WAITS: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)  # seconds between tries while PostgreSQL is away
_TICK: Final = 0.25  # seconds between looks at should_abort


class Explainer(Protocol):
    """What explains a trace: the ``Debugger``, or a stand-in in a test."""

    def explain_trace(
        self,
        trace: Trace,
        *,
        should_abort: Callable[[], bool] | None = None,
        progress: Progress | None = None,
    ) -> Explanation:
        """Everything about one trace; polls ``should_abort`` between batches and then raises."""
        ...


@runtime_checkable
class Tunable(Protocol):
    """An explainer whose thresholds may change between two traces, as the ``Debugger``'s may."""

    thresholds: Thresholds


class AttributionAbortedError(RagblameError):
    """The caller asked to stop; nothing was written, so the trace must be attributed again."""


def load_debugger(settings: Settings, probe: CorpusProbe | None = None) -> "Debugger":
    """The debugger with the configured scorer; ``probe``: what causes ask the corpus through.

    Raises ``ModelError`` or ``MissingExtraError``.
    """
    try:
        from ragblame.attribution.debugger import Debugger
    except ImportError as error:
        if (error.name or "").startswith("ragblame"):
            raise
        raise MissingExtraError(
            f"attribution needs {error.name}: install it with pip install 'ragblame[attribution]'"
        ) from error
    try:
        return Debugger.from_pretrained(
            settings.scorer,
            is_own_model=ANY_MODEL in settings.scorer_wrote,
            wrote=settings.scorer_wrote,
            threads=settings.threads,
            batch_size=settings.batch_size,
            cache_bytes=settings.cache_bytes,
            max_exact_chunks=settings.max_exact_chunks,
            sampled_coalitions=settings.sampled_coalitions,
            sampled_precision=settings.sampled_precision,
            probe=probe,
            max_corpus_spans=settings.probe_spans,
            checks_freshness=settings.probe_freshness,
            support_reader=load_support_reader(settings.support_model),
        )
    except FileNotFoundError as error:  # the shipped model is not in this installation
        raise ModelError(str(error)) from error


def attribute_trace(
    url: str,
    explainer: Explainer,
    trace_id: UUID,
    *,
    should_abort: Callable[[], bool] = lambda: False,
    progress: Progress | None = None,
    rescorer: Rescorer | None = None,
) -> Explanation:
    """Explain the stored trace and replace its results; returns what was written.

    The thresholds that are active in the database decide. With ``rescorer``, chunks that came without a
    score get one, which is stored too.
    Raises ``InputError`` when there is no such trace, ``DatabaseError`` when PostgreSQL stays away longer
    than ``WAITS`` together, ``AttributionAbortedError`` when ``should_abort`` says so, and whatever the
    explainer raises.
    """
    trace, thresholds = patiently(lambda: _read(url, trace_id), should_abort)
    if isinstance(explainer, Tunable):
        explainer.thresholds = thresholds
    with suppress_capture():
        notes: list[str] = []
        if rescorer is not None:
            stored = trace
            trace, notes = patiently(lambda: rescorer.rescore(stored), should_abort)
        try:
            explanation = explainer.explain_trace(trace, should_abort=should_abort, progress=progress)
        except Exception as error:
            if should_abort():
                raise AttributionAbortedError(
                    f"attribution of trace {trace_id} was stopped; run it again"
                ) from error
            raise
    explanation = replace(explanation, notes=(*explanation.notes, *notes))
    return patiently(lambda: _write(url, explanation), should_abort)


def store_failure(
    url: str, trace_id: UUID, message: str, *, should_abort: Callable[[], bool] = lambda: False
) -> None:
    """Record why a trace was not attributed. Raises like ``attribute_trace``."""

    def write() -> None:
        with database.connect(url) as conn:
            write_failure(conn, trace_id, message)

    patiently(write, should_abort)


def patiently(work: Callable[[], T], should_abort: Callable[[], bool]) -> T:
    """Do database work, again while PostgreSQL is away.

    Raises the last ``DatabaseError``, or ``AttributionAbortedError`` when asked to stop while waiting.
    """
    for wait in WAITS:
        try:
            return work()
        except DatabaseError as error:
            until = time.monotonic() + wait
            while time.monotonic() < until:
                if should_abort():
                    raise AttributionAbortedError(f"stopped while waiting for PostgreSQL: {error}") from error
                time.sleep(_TICK)
    return work()


def _read(url: str, trace_id: UUID) -> tuple[Trace, Thresholds]:
    with database.connect(url, read_only=True) as conn, database_faults("trace", trace_id):
        return read_trace(conn, trace_id), read_active(conn)


def _write(url: str, explanation: Explanation) -> Explanation:
    with database.connect(url) as conn:
        with database_faults("scores", explanation.trace.id):
            write_scores(conn, explanation.trace)
        return write_explanation(conn, explanation)
