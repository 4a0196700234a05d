"""Langfuse's traces and observations, as its API, its downloads and its blob storage export write them.

Names come in camel and in snake case; inputs and outputs as JSON, or as text that holds it. Observations
stand inside their trace, beside it, or alone.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ragblame.plugin.payloads import read_metadata
from ragblame.ui.import_steps import Step, StepKind
from ragblame.ui.import_values import (
    answer_of,
    decoded,
    documents_of,
    message_of,
    messages_of,
    passed_documents,
    text_of,
    time_of,
)

SOURCE: Final = "langfuse"
_KINDS: Final = {
    "GENERATION": StepKind.MODEL,
    "RETRIEVER": StepKind.RETRIEVER,
    "TOOL": StepKind.TOOL,
    "EVALUATOR": StepKind.JUDGE,
    "GUARDRAIL": StepKind.JUDGE,
}
_TYPES: Final = frozenset({"SPAN", "EVENT", "AGENT", "CHAIN", "EMBEDDING", *_KINDS})
_HANDLERS_OWN: Final = ("tags", "is_langchain_root")  # metadata that Langfuse's handler adds
_MAX_DEPTH: Final = 6


def read(value: Any, trace: str | None = None, depth: int = 0) -> Iterator[Step | str]:
    """The steps of one line: a trace with its observations, either alone, or a list or page of them.

    ``trace`` is the id for observations that name none. Text says what is wrong.
    """
    if depth > _MAX_DEPTH:
        yield "nested too deeply: write one trace or observation per line"
    elif isinstance(value, list):
        for entry in value:
            if not isinstance(entry, str):  # a list of traces names its observations only
                yield from read(entry, trace, depth + 1)
    elif not isinstance(value, Mapping):
        yield "not a JSON object: write one trace or observation per line"
    elif isinstance(value.get("observations"), list):
        record = value["trace"] if isinstance(value.get("trace"), Mapping) else value
        found = _record(record)
        yield found
        if isinstance(found, Step):
            yield from read(value["observations"], found.trace, depth + 1)
    elif isinstance(value.get("data"), list):
        yield from read(value["data"], trace, depth + 1)
    elif isinstance(kind := value.get("type"), str) and kind.upper() in _TYPES:
        yield _observation(value, kind.upper(), trace)
    elif "value" in value and _get(value, "traceId") is not None:
        yield "a score: only traces and observations are imported"
    elif _get(value, "traceId") is not None:
        yield f"an observation of unknown type {value.get('type')!r}: known are {', '.join(sorted(_TYPES))}"
    else:
        yield _record(value)


def _record(value: Mapping[str, Any]) -> Step | str:
    """The trace itself: a step above its observations."""
    identity = text_of(value.get("id"))
    if identity is None:
        return 'no "id": give Langfuse traces or observations'
    session, metadata = read_metadata(_metadata(value))
    return Step(
        trace=identity,
        id=_record_id(identity),
        is_record=True,
        name=text_of(value.get("name")) or "",
        input=_io(value.get("input")),
        output=_io(value.get("output")),
        started=time_of(value.get("timestamp")),
        session=text_of(_get(value, "sessionId")) or session,
        tags=_tags(value),
        metadata=metadata,
    )


def _observation(value: Mapping[str, Any], type_: str, trace: str | None) -> Step | str:
    identity, trace = text_of(value.get("id")), text_of(_get(value, "traceId")) or trace
    if identity is None or trace is None:
        return 'an observation without "id" or "traceId": export it with both'
    given, made = _io(value.get("input")), _io(value.get("output"))
    kind = _KINDS.get(type_, StepKind.CHAIN)
    if type_ == "SPAN" and isinstance(given, str) and isinstance(made, list) and passed_documents(made):
        kind = StepKind.RETRIEVER  # older handlers know no other type for it
    is_ok = str(value.get("level") or "").upper() != "ERROR"
    session, metadata = read_metadata(_metadata(value))
    said = message_of(made) if kind is StepKind.MODEL else None
    return Step(
        trace=trace,
        id=identity,
        parent=text_of(_get(value, "parentObservationId")) or _record_id(trace),
        kind=kind,
        name=text_of(_get(value, "traceName")) or text_of(value.get("name")) or "",
        input=given,
        output=made,
        documents=documents_of(made) if kind is StepKind.RETRIEVER else (),
        prompt=messages_of(given) if kind is StepKind.MODEL else (),
        text=(said.text if said is not None else answer_of(made)) if kind is StepKind.MODEL else None,
        is_tool_call=isinstance(made, Mapping) and bool(made.get("tool_calls")),
        model=text_of(value.get("model")) or text_of(_get(value, "providedModelName")),
        provider=text_of(_metadata(value).get("ls_provider")),
        is_ok=is_ok,
        error=None if is_ok else text_of(_get(value, "statusMessage")) or "error",
        started=time_of(_get(value, "startTime")),
        ended=time_of(_get(value, "endTime")),
        session=text_of(_get(value, "sessionId")) or session,
        tags=_tags(value),
        metadata=metadata,
    )


def _record_id(trace: str) -> str:
    return f"trace {trace}"


def _get(value: Mapping[str, Any], name: str) -> Any:
    """A field in camel case, or in the snake case of the blob storage export."""
    if value.get(name) is not None:
        return value[name]
    return value.get("".join(f"_{sign.lower()}" if sign.isupper() else sign for sign in name))


def _io(value: Any) -> Any:
    """An input or output; the export writes nothing as an empty text."""
    value = decoded(value)
    return None if value == "" else value


def _metadata(value: Mapping[str, Any]) -> Mapping[str, Any]:
    found = decoded(value.get("metadata"))
    if not isinstance(found, Mapping):
        return {}
    return {key: entry for key, entry in found.items() if key not in _HANDLERS_OWN}


def _tags(value: Mapping[str, Any]) -> tuple[str, ...]:
    found = decoded(value.get("tags") or value.get("trace_tags"))
    return tuple(tag for tag in found if isinstance(tag, str)) if isinstance(found, list) else ()
