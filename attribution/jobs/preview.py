"""What other thresholds would have said of stored history: decided again from what was kept, nothing changed.

A threshold is a promise to people who look at a queue every day; before it moves, they see which spans would
come and which would go. No model and no corpus is asked: a thousand traces take less than a second.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from ragblame.attribution.jobs.faults import database_faults
from ragblame.attribution.jobs.stored_premises import premises_from_json
from ragblame.attribution.jobs.thresholds import find_thresholds
from ragblame.attribution.verdicts.premises import carry_corpus, decide_again
from ragblame.attribution.verdicts.thresholds import Thresholds
from ragblame.records import (
    Attribution,
    Basis,
    Cause,
    Chunk,
    Explanation,
    Message,
    Method,
    Premises,
    Span,
    SpanKind,
    Support,
    SupportState,
    Trace,
    Verdict,
    VerdictKind,
)

if TYPE_CHECKING:
    import psycopg

WINDOWS: Final = (7, 30)  # days back that are counted apart
MAX_TRACES: Final = 50_000  # newest; more would take minutes
MAX_EXAMPLES: Final = 20
_BATCH: Final = 500  # traces read at once

_TRACES = """
SELECT t.id, t.app, t.answer, t.question, t.started_at,
       (SELECT array_agg(c.truncated_from ORDER BY c.position) FROM ragblame.trace_chunk c
        WHERE c.trace_id = t.id)
FROM ragblame.trace t
WHERE t.id < %s AND t.id >= ragblame.uuid_floor(%s)
  AND EXISTS (SELECT FROM ragblame.verdict v WHERE v.trace_id = t.id)
ORDER BY t.id DESC LIMIT %s
"""
_VERDICTS = """
SELECT v.trace_id, v.span, v.verdict, v.cause, v.basis, v.severity, v.confidence, v.other_causes,
       v.thresholds_version, v.support, v.support_rule, v.evidence_position, v.stated, v.support_positions,
       v.support_model, v.support_probability, v.premises, s.start_at, s.end_at, s.kind,
       (SELECT array_agg(h.value ORDER BY h.position) FROM ragblame.share h
        WHERE h.trace_id = v.trace_id AND h.method = 'shapley'
          AND h.span = coalesce((v.premises ->> 'measured_at')::int, v.span)),
       CASE WHEN v.premises ?| ARRAY['copied_from', 'told_by']
            THEN ragblame.whole_prompt(t.id, t.prompt) END
FROM ragblame.verdict v
JOIN ragblame.answer_span s ON s.trace_id = v.trace_id AND s.span = v.span
JOIN ragblame.trace t ON t.id = v.trace_id
WHERE v.trace_id = ANY(%s) ORDER BY v.trace_id DESC, v.span
"""
_LAST: Final = UUID(int=(1 << 128) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A stored verdict that would be another one."""

    trace_id: UUID
    app: str
    asked_at: datetime
    span: int
    words: str  # of the answer
    before: VerdictKind
    before_cause: Cause | None
    was_flagged: bool
    after: VerdictKind
    after_cause: Cause | None
    is_flagged: bool
    confidence: float | None  # under the new thresholds


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts over one stretch of history; causes and apps are of the spans that come or go."""

    days: int
    traces: int = 0
    verdicts: int = 0
    flagged_before: int = 0
    flagged_after: int = 0
    come: int = 0  # not flagged, and would be
    go: int = 0  # flagged, and would not be
    otherwise: int = 0  # another verdict or cause, in the queue or out of it as before
    undecidable: int = 0  # stored without premises: left as they are
    unread: int = 0  # the new thresholds weigh a model that has not read them: only their rules are decided
    come_by_cause: Counter[str] = field(default_factory=Counter)
    go_by_cause: Counter[str] = field(default_factory=Counter)
    come_by_app: Counter[str] = field(default_factory=Counter)
    go_by_app: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preview:
    """What would change; ``examples`` are the newest of each kind."""

    thresholds: Thresholds
    tallies: tuple[Tally, ...]  # one per window, shortest first
    examples: tuple[Change, ...]
    is_partial: bool  # only the newest MAX_TRACES were looked at


def preview(
    conn: "psycopg.Connection[Any]",
    thresholds: Thresholds,
    *,
    now: datetime | None = None,
    max_traces: int = MAX_TRACES,
) -> Preview:
    """Decide the last month again with ``thresholds``; only reads. Raises ``InputError``, ``DatabaseError``.

    ``now``: where the month ends, with time zone; None: now.
    """
    now = now or datetime.now(UTC)
    tallies = tuple(Tally(days=days) for days in WINDOWS)
    versions: dict[str, Thresholds | None] = {}
    kept: dict[tuple[bool, bool], list[Change]] = {}
    looked_at = 0
    last = _LAST
    with database_faults("history"):
        while looked_at < max_traces:
            size = min(_BATCH, max_traces - looked_at)
            traces = conn.execute(_TRACES, (last, now - timedelta(days=max(WINDOWS)), size)).fetchall()
            if not traces:
                break
            looked_at += len(traces)
            last = traces[-1][0]
            rows = conn.execute(_VERDICTS, ([row[0] for row in traces],)).fetchall()
            for tally in tallies:
                tally.traces += sum(row[4] >= now - timedelta(days=tally.days) for row in traces)
            for stored in _stored(traces, rows):
                version = stored.verdict.thresholds_version
                if version not in versions:
                    versions[version] = find_thresholds(conn, version)
                change = stored.decide(versions[version], thresholds)
                mine = [t for t in tallies if stored.trace.started_at >= now - timedelta(days=t.days)]
                for tally in mine:
                    _count(tally, stored, change, thresholds)
                if change is not None:
                    examples = kept.setdefault((change.was_flagged, change.is_flagged), [])
                    if len(examples) < MAX_EXAMPLES:
                        examples.append(change)
    order = sorted(kept, key=lambda flags: flags[0] == flags[1])  # what comes or goes before the rest
    return Preview(
        thresholds=thresholds,
        tallies=tallies,
        examples=tuple(change for flags in order for change in kept[flags]),
        is_partial=looked_at >= max_traces,
    )


@dataclass(frozen=True, slots=True)
class _Stored:
    """One verdict of history with what it followed from."""

    trace: Trace
    span: Span
    verdict: Verdict
    support: Support
    premises: Premises | None
    shares: tuple[float, ...]

    def decide(self, then: Thresholds | None, now: Thresholds) -> Change | None:
        """What would change; None: nothing, or it cannot be decided again."""
        if self.premises is None:
            return None
        explanation = self._explanation()
        after = decide_again(explanation, self.premises, self.support, self.span, now).verdict
        if then is not None:
            before = decide_again(explanation, self.premises, self.support, self.span, then).verdict
            after = carry_corpus(self.verdict, before, after)
        was = self.verdict
        if (was.verdict, was.cause, was.is_flagged) == (after.verdict, after.cause, after.is_flagged):
            return None
        return Change(
            trace_id=self.trace.id,
            app=self.trace.app,
            asked_at=self.trace.started_at,
            span=self.span.index,
            words=self.trace.answer[self.span.start : self.span.end],
            before=was.verdict,
            before_cause=was.cause,
            was_flagged=was.is_flagged,
            after=after.verdict,
            after_cause=after.cause,
            is_flagged=after.is_flagged,
            confidence=after.confidence,
        )

    def _explanation(self) -> Explanation:
        """Of the one span, with what deciding looks at and nothing else."""
        assert self.premises is not None
        at = self.span.index if self.premises.measured_at is None else self.premises.measured_at
        shapley = Attribution(span=at, method=Method.SHAPLEY, shares=self.shares)
        return Explanation(
            trace=self.trace,
            scorer=None,
            fitness=None,
            alignments=(),
            spans=(self.span,),
            attributions=(shapley,) if self.shares else (),
            heats=(),
            supports=(self.support,),
            verdicts=(self.verdict,),
            coalitions=None,
        )


def _count(tally: Tally, stored: _Stored, change: Change | None, thresholds: Thresholds) -> None:
    tally.verdicts += 1
    was = stored.verdict.is_flagged
    is_now = was if change is None else change.is_flagged
    tally.flagged_before += was
    tally.flagged_after += is_now
    tally.undecidable += stored.premises is None
    tally.unread += bool(thresholds.curve) and stored.support.model != thresholds.fitted_to
    if change is None:
        return
    if is_now and not was:
        tally.come += 1
        tally.come_by_cause[_name(change.after_cause)] += 1
        tally.come_by_app[change.app] += 1
    elif was and not is_now:
        tally.go += 1
        tally.go_by_cause[_name(change.before_cause)] += 1
        tally.go_by_app[change.app] += 1
    else:
        tally.otherwise += 1


def _name(cause: Cause | None) -> str:
    return "no cause" if cause is None else cause.value


def _stored(traces: list[tuple[Any, ...]], rows: list[tuple[Any, ...]]) -> Iterator[_Stored]:
    heads = {row[0]: row for row in traces}
    for row in rows:
        yield _one(heads[row[0]], row)


def _one(head: tuple[Any, ...], row: tuple[Any, ...]) -> _Stored:
    trace_id, app, answer, question, started_at, cuts = head
    _, index, kind, cause, basis, severity, confidence, others, version, *rest = row
    state, rule, position, stated, positions, model, probability, premises, start, end, *more = rest
    span_kind, shares, prompt = more
    trace = Trace(
        id=trace_id,
        app=app,
        question=question,
        answer=answer,
        chunks=tuple(Chunk(position=at, text="", truncated_from=cut) for at, cut in enumerate(cuts or ())),
        prompt=_prompt(prompt),
        started_at=started_at,
    )
    verdict = Verdict(
        span=index,
        verdict=VerdictKind(kind),
        cause=None if cause is None else Cause(cause),
        basis=Basis(basis),
        confidence=confidence,
        severity=severity,
        explanation="",
        other_causes=tuple(Cause(other) for other in others),
        thresholds_version=version,
    )
    support = Support(
        span=index,
        state=SupportState(state),
        rule=rule,
        position=position,
        stated=stated,
        other_positions=tuple(positions),
        model=model,
        probability=probability,
    )
    return _Stored(
        trace=trace,
        span=Span(
            index=index,
            start=start,
            end=end,
            kind=SpanKind(span_kind),
            sentence_start=start,
            sentence_end=end,
        ),
        verdict=verdict,
        support=support,
        premises=None if premises is None else premises_from_json(index, premises),
        shares=tuple(shares or ()),
    )


def _prompt(messages: list[Mapping[str, str]] | None) -> tuple[Message, ...]:
    return tuple(Message(role=message["role"], text=message["text"]) for message in messages or ())
