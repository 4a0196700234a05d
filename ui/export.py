"""`ragblame export`: traces with their verdicts as OpenInference spans, for a team that has a tracer already.

One trace becomes a chain span with a retriever and a model below it, and a span that carries what was found
out: verdict, cause and every chunk's share for each piece of the answer. A trace that was imported goes back
under the trace id it came with, so that its verdicts stand beside the tracer's own spans.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import UUID

import psycopg

from ragblame.attribution.jobs.faults import database_faults
from ragblame.attribution.jobs.stored import read_explanation
from ragblame.errors import InputError
from ragblame.records import Attribution, Chunk, Explanation, Method, Support, Trace, TraceStatus, Verdict
from ragblame.traces import read_trace

PAGE: Final = 200  # trace ids read at once
OWN: Final = "ragblame"  # the prefix of our attributes
_TRACER_ROLES: Final = {"human": "user", "ai": "assistant"}
_PAGE: Final = """
SELECT id FROM ragblame.trace
WHERE (%(after)s::uuid IS NULL OR id > %(after)s::uuid)
    AND (%(app)s::text IS NULL OR app = %(app)s::text)
    AND (%(since)s::timestamptz IS NULL OR id >= ragblame.uuid_floor(%(since)s::timestamptz))
ORDER BY id LIMIT %(limit)s
"""

Span = dict[str, Any]  # as Phoenix's API has it; attributes are flat and of OpenTelemetry's types


def export_traces(
    conn: psycopg.Connection[Any],
    *,
    app: str | None = None,
    since: datetime | None = None,
    limit: int | None = None,
    only_verdicts: bool = False,
) -> Iterator[list[Span]]:
    """The spans of each trace, the oldest trace first; one list per trace.

    ``since`` is the earliest start, with a time zone. With ``only_verdicts`` a trace gives the one span with
    what was found out, and nothing when it was not attributed yet. Raises ``DatabaseError``.
    """
    after: UUID | None = None
    earliest = None if since is None else max(since, datetime(1970, 1, 1, tzinfo=UTC))
    left = limit
    while left is None or left > 0:
        size = PAGE if left is None else min(PAGE, left)
        with database_faults("export"):
            wanted = {"after": after, "app": app, "since": earliest, "limit": size}
            ids = [row[0] for row in conn.execute(_PAGE, wanted).fetchall()]
        for trace_id in ids:
            try:
                explanation = read_explanation(conn, trace_id, with_heats=False)
                trace = read_trace(conn, trace_id) if explanation is None else explanation.trace
            except InputError:
                continue  # it was removed in the meantime
            found = spans_of(trace, explanation)
            spans = [span for span in found if not only_verdicts or span["span_kind"] == "EVALUATOR"]
            if spans:
                yield spans
        if len(ids) < size:
            return
        after = ids[-1]
        left = None if left is None else left - len(ids)


def spans_of(trace: Trace, explanation: Explanation | None) -> list[Span]:
    """The spans of one trace; the last one holds the verdicts, when there are any."""
    started, ended = trace.started_at, trace.started_at + timedelta(milliseconds=trace.duration_ms)
    origin = trace.metadata.get("import")
    origin = origin if isinstance(origin, Mapping) else {}
    is_traced = trace.origin == "import" and _is_hex(origin.get("trace"), 32)
    trace_id = str(origin["trace"]) if is_traced else trace.id.hex
    above = str(origin["root"]) if is_traced and _is_hex(origin.get("root"), 16) else None
    root = _span_id(trace.id, "chain")

    def span(name: str, kind: str, parent: str | None, attributes: Mapping[str, Any]) -> Span:
        is_root = parent != root
        return {
            "name": name,
            "context": {
                "trace_id": trace_id,
                "span_id": root if kind == "CHAIN" else _span_id(trace.id, name),
            },
            "span_kind": kind,
            "parent_id": parent,
            "start_time": started.isoformat(),
            "end_time": ended.isoformat(),
            "status_code": "ERROR" if is_root and trace.status is TraceStatus.ERROR else "OK",
            "status_message": (trace.error or "") if is_root else "",
            "attributes": {
                "openinference.span.kind": kind,
                **{key: value for key, value in attributes.items() if value is not None},
            },
            "events": [],
        }

    spans = [span(trace.app, "CHAIN", above, _chain(trace))]
    searches: dict[UUID | None, list[Chunk]] = {}
    for chunk in trace.chunks:
        searches.setdefault(chunk.retriever_run, []).append(chunk)
    for number, chunks in enumerate(searches.values(), 1):
        name = "retriever" if len(searches) == 1 else f"retriever {number}"
        spans.append(span(name, "RETRIEVER", root, _search(trace, chunks)))
    if trace.prompt or trace.model or trace.generated or not trace.chunks:
        spans.append(span("model", "LLM", root, _model(trace)))
    if explanation is not None:
        # beside the tracer's own spans when it has them, so that it may be sent without ours
        spans.append(span("ragblame", "EVALUATOR", above or root, _findings(explanation)))
    return spans


def to_otlp(spans: Sequence[Span]) -> dict[str, Any]:
    """One OTLP export request in its JSON form, as a collector reads it."""
    return {
        "resourceSpans": [
            {
                "resource": {"attributes": _pairs({"service.name": OWN})},
                "scopeSpans": [{"scope": {"name": OWN}, "spans": [_otlp_span(span) for span in spans]}],
            }
        ]
    }


def _chain(trace: Trace) -> dict[str, Any]:
    metadata = {key: value for key, value in trace.metadata.items() if key != "import"}
    return {
        "input.value": trace.question,
        "output.value": trace.answer,
        "session.id": trace.session_id,
        "tag.tags": list(trace.tags) or None,
        "metadata": _dumps(metadata) if metadata else None,
        f"{OWN}.trace_id": str(trace.id),
        f"{OWN}.app": trace.app,
        f"{OWN}.status": trace.status.value,
    }


def _search(trace: Trace, chunks: Sequence[Chunk]) -> dict[str, Any]:
    found: dict[str, Any] = {"input.value": trace.query if trace.query is not None else trace.question}
    for number, chunk in enumerate(chunks):
        at = f"retrieval.documents.{number}"
        found |= {
            f"{at}.document.id": chunk.source_id,
            f"{at}.document.content": chunk.text,
            f"{at}.document.score": chunk.score,
            f"{at}.document.metadata": _dumps(chunk.metadata) if chunk.metadata else None,
            f"{at}.{OWN}.position": chunk.position,
            f"{at}.{OWN}.rank": chunk.rank,
            f"{at}.{OWN}.score_name": chunk.score_name,
            f"{at}.{OWN}.source_table": chunk.source_table,
            f"{at}.{OWN}.truncated_from": chunk.truncated_from,
        }
    return found


def _model(trace: Trace) -> dict[str, Any]:
    said = trace.generated if trace.generated is not None else trace.answer
    found: dict[str, Any] = {
        "llm.model_name": trace.model,
        "llm.provider": trace.provider,
        "output.value": said,
        "llm.output_messages.0.message.role": "assistant",
        "llm.output_messages.0.message.content": said,
    }
    for number, message in enumerate(trace.prompt):
        at = f"llm.input_messages.{number}.message"
        found[f"{at}.role"] = _TRACER_ROLES.get(message.role, message.role)
        found[f"{at}.content"] = message.text
    return found


def _findings(explanation: Explanation) -> dict[str, Any]:
    """What was found out: counts to filter by, then one group of attributes per span of the answer."""
    trace, verdicts = explanation.trace, {one.span: one for one in explanation.verdicts}
    supports = {one.span: one for one in explanation.supports}
    shapley = {one.span: one for one in explanation.attributions if one.method is Method.SHAPLEY}
    flagged = [one for one in explanation.verdicts if one.is_flagged]
    scorer = explanation.scorer
    found: dict[str, Any] = {
        "input.value": trace.answer,
        "output.value": "; ".join(one.explanation for one in flagged) or "nothing is flagged",
        f"{OWN}.trace_id": str(trace.id),
        f"{OWN}.flagged": len(flagged),
        f"{OWN}.causes": sorted({one.cause.value for one in flagged if one.cause is not None}) or None,
        f"{OWN}.severity": max((one.severity for one in explanation.verdicts), default=0.0),
        f"{OWN}.scorer": scorer.name if scorer is not None else None,
        f"{OWN}.scorer_is_own_model": scorer.is_own_model if scorer is not None else None,
        f"{OWN}.notes": list(explanation.notes) or None,
    }
    for verdict in explanation.verdicts:
        count = f"{OWN}.verdicts.{verdict.verdict.value.replace(' ', '_')}"
        found[count] = found.get(count, 0) + 1
    for span in explanation.spans:
        at = f"{OWN}.spans.{span.index}"
        found |= {
            f"{at}.start": span.start,
            f"{at}.end": span.end,
            f"{at}.text": trace.answer[span.start : span.end],
            f"{at}.kind": span.kind.value,
            **_finding(at, verdicts.get(span.index), supports.get(span.index), shapley.get(span.index)),
        }
    return found


def _finding(
    at: str, verdict: Verdict | None, support: Support | None, attribution: Attribution | None
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if verdict is not None:
        found |= {
            f"{at}.verdict": verdict.verdict.value,
            f"{at}.cause": verdict.cause.value if verdict.cause is not None else None,
            f"{at}.basis": verdict.basis.value,
            f"{at}.confidence": verdict.confidence,
            f"{at}.severity": verdict.severity,
            f"{at}.explanation": verdict.explanation,
            f"{at}.fix": verdict.fix,
            f"{at}.evidence": list(verdict.evidence) or None,
            f"{at}.corpus_evidence": [f"{row.table} {row.row_id}" for row in verdict.corpus_evidence] or None,
        }
    if support is not None:
        found[f"{at}.support"] = support.state.value
    if attribution is not None:
        found |= {
            f"{at}.reliance": attribution.reliance,
            f"{at}.shares": list(attribution.shares) or None,
            f"{at}.standard_errors": list(attribution.standard_errors or ()) or None,
        }
    return found


# OTLP's JSON -------------------------------------------------------------------------------------------


def _otlp_span(span: Span) -> dict[str, Any]:
    found = {
        "traceId": span["context"]["trace_id"],
        "spanId": span["context"]["span_id"],
        "name": span["name"],
        "kind": 1,
        "startTimeUnixNano": _nanoseconds(span["start_time"]),
        "endTimeUnixNano": _nanoseconds(span["end_time"]),
        "attributes": _pairs(span["attributes"]),
        "status": {"code": 2, "message": span["status_message"]}
        if span["status_code"] == "ERROR"
        else {"code": 1},
    }
    return found if span["parent_id"] is None else found | {"parentSpanId": span["parent_id"]}


def _nanoseconds(moment: str) -> str:
    """Since 1970, exact, as text: JSON's numbers are too short for it."""
    since = datetime.fromisoformat(moment) - datetime.fromisoformat("1970-01-01T00:00:00+00:00")
    return str(((since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds) * 1_000)


def _pairs(attributes: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _any_value(value)} for key, value in attributes.items()]


def _any_value(value: Any) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    if isinstance(value, float):
        return {"doubleValue": value}
    if isinstance(value, list):
        return {"arrayValue": {"values": [_any_value(one) for one in value]}}
    return {"stringValue": str(value)}


def _span_id(trace_id: UUID, name: str) -> str:
    """Eight bytes that are the same on every export, so that sending twice shows nothing twice."""
    return hashlib.sha256(f"{trace_id} {name}".encode()).hexdigest()[:16]


def _is_hex(value: Any, digits: int) -> bool:
    return (
        isinstance(value, str) and len(value) == digits and all(sign in "0123456789abcdef" for sign in value)
    )


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=dict)  # a record's mapping may be of any class
