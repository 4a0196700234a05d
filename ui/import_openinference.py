"""OpenInference spans in every form they leave a tracer in: OTLP, Phoenix's API and data frames, the SDK.

One attribute tree is made of all of them (flat keys, nested objects, OTLP key-value lists), and read by the
names of the OpenInference semantic conventions.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from typing import Any, Final

from ragblame.plugin.payloads import read_metadata
from ragblame.records import Message
from ragblame.ui.import_steps import Step, StepKind
from ragblame.ui.import_values import (
    Document,
    answer_of,
    decoded,
    document_of,
    documents_of,
    message_of,
    messages_of,
    text_of,
    time_of,
)

SOURCE: Final = "openinference"
_KINDS: Final = {
    "RETRIEVER": StepKind.RETRIEVER,
    "RERANKER": StepKind.RERANKER,
    "LLM": StepKind.MODEL,
    "TOOL": StepKind.TOOL,
    "EVALUATOR": StepKind.JUDGE,
    "GUARDRAIL": StepKind.JUDGE,
}
_AS_WRITTEN: Final = (
    "value",
    "metadata",
    "variables",
    "parameters",
)  # last parts of keys: not ours to take apart
_MAX_DEPTH: Final = 12
_MAX_ENTRIES: Final = 10_000  # of one list of documents or messages


def read(value: Any, depth: int = 0) -> Iterator[Step | str]:
    """The spans of one line: a span, a list or page of them, or an OTLP request; text says what is wrong."""
    if depth > _MAX_DEPTH:
        yield "nested too deeply: write one span per line"
    elif isinstance(value, list):
        for entry in value:
            yield from read(entry, depth + 1)
    elif not isinstance(value, Mapping):
        yield "not a JSON object: write one span per line"
    elif (resources := _either(value, "resourceSpans", "resource_spans")) is not None:
        yield from _requests(resources)
    elif isinstance(found := _either(value, "data", "spans"), list) and "context" not in value:
        yield from read(found, depth + 1)
    else:
        yield _span(value, None)


def _requests(resources: Any) -> Iterator[Step | str]:
    """The spans of an OTLP export request."""
    for resource in resources if isinstance(resources, list) else ():
        if not isinstance(resource, Mapping):
            yield "not OTLP: resourceSpans holds no objects"
            continue
        about = _tree(_mapping(resource.get("resource")).get("attributes"))
        project = text_of(_at(about, "openinference", "project", "name"))
        service = text_of(_at(about, "service", "name")) or ""
        for scope in _list(_either(resource, "scopeSpans", "scope_spans")):
            for span in _list(_mapping(scope).get("spans")):
                if isinstance(span, Mapping):
                    yield _span(span, project or (service if "unknown" not in service else None))
                else:
                    yield "not OTLP: spans holds no objects"


def _span(span: Mapping[str, Any], service: str | None) -> Step | str:
    context = _mapping(span.get("context"))
    trace_id = _identity(
        _either(context, "trace_id", "traceId") or _either(span, "context.trace_id", "traceId", "trace_id")
    )
    span_id = _identity(
        _either(context, "span_id", "spanId") or _either(span, "context.span_id", "spanId", "span_id")
    )
    if trace_id is None or span_id is None:
        return 'no trace id or span id: give OpenInference spans with "context" or "traceId" and "spanId"'
    attributes = _tree(span.get("attributes"))
    if not attributes:  # a data frame's columns
        columns = {key[11:]: entry for key, entry in span.items() if key.startswith("attributes.")}
        attributes = _tree({key: entry for key, entry in columns.items() if entry is not None})
    kind = _at(attributes, "openinference", "span", "kind") or _either(span, "span_kind", "spanKind")
    kind = _KINDS.get(kind.upper(), StepKind.CHAIN) if isinstance(kind, str) else StepKind.CHAIN
    is_ok, error = _outcome(span)
    session, metadata = read_metadata(_mapping(decoded(attributes.get("metadata"))))
    output = _at(attributes, "output", "value")
    said, is_tool_call = _said(attributes, output) if kind is StepKind.MODEL else (None, False)
    return Step(
        trace=trace_id,
        id=span_id,
        parent=_identity(_either(span, "parent_id", "parentSpanId", "parent_span_id")),
        kind=kind,
        name=text_of(span.get("name")) or "",
        input=_at(attributes, "input", "value"),
        output=output,
        documents=_documents(attributes, kind, output),
        prompt=_prompt(attributes) if kind is StepKind.MODEL else (),
        text=said,
        is_tool_call=is_tool_call,
        model=text_of(_at(attributes, "llm", "model_name")),
        provider=text_of(_at(attributes, "llm", "provider")) or text_of(_at(attributes, "llm", "system")),
        is_ok=is_ok,
        error=error,
        started=time_of(_either(span, "start_time", "startTimeUnixNano", "start_time_unix_nano")),
        ended=time_of(_either(span, "end_time", "endTimeUnixNano", "end_time_unix_nano")),
        session=text_of(_at(attributes, "session", "id")) or session,
        tags=tuple(tag for tag in _list(_at(attributes, "tag", "tags")) if isinstance(tag, str)),
        metadata=metadata,
        service=service,
        own=_mapping(attributes.get("ragblame")),
    )


def _documents(attributes: Mapping[str, Any], kind: StepKind, output: Any) -> tuple[Document, ...]:
    """Documents of a retriever or reranker; what the attributes leave out is taken from the output."""
    if kind is StepKind.RETRIEVER:
        entries = _entries(_at(attributes, "retrieval", "documents"))
    elif kind is StepKind.RERANKER:
        entries = _entries(_at(attributes, "reranker", "output_documents"))
    else:
        return ()
    found = tuple(document for document in map(document_of, entries) if document is not None)
    whole = documents_of(output) if any(document.identity is None for document in found) else ()
    if len(whole) != len(found):
        return found
    return tuple(
        document._replace(identity=document.identity or other.identity)
        if document.text == other.text
        else document
        for document, other in zip(found, whole, strict=True)
    )


def _prompt(attributes: Mapping[str, Any]) -> tuple[Message, ...]:
    entries = _entries(_at(attributes, "llm", "input_messages"))
    found = tuple(message for message in map(message_of, entries) if message is not None)
    if found:
        return found
    texts = [
        text_of(entry) or text_of(_at(entry, "prompt", "text"))
        for entry in _entries(_at(attributes, "llm", "prompts"))[:1]
    ]
    prompts = tuple(Message(role="prompt", text=text) for text in texts if text is not None)
    return prompts or messages_of(decoded(_at(attributes, "input", "value")))


def _said(attributes: Mapping[str, Any], output: Any) -> tuple[str | None, bool]:
    """What a model said, and whether it asked for a tool."""
    first = next(iter(_entries(_at(attributes, "llm", "output_messages"))), None)
    message = message_of(first) if first is not None else None
    is_tool_call = bool(_at(first, "message", "tool_calls"))
    return (message.text if message is not None else answer_of(output)), is_tool_call


def _outcome(span: Mapping[str, Any]) -> tuple[bool, str | None]:
    """Whether it went well, and the class and message of the exception when not."""
    status = _mapping(span.get("status"))
    code = span.get("status_code") or _either(status, "status_code", "code")
    if not (code == 2 or (isinstance(code, str) and code.upper().endswith("ERROR"))):
        return True, None
    for event in _list(span.get("events")):
        about = _tree(_mapping(event).get("attributes"))
        kind, message = text_of(_at(about, "exception", "type")), text_of(_at(about, "exception", "message"))
        if kind is not None:
            kind = kind.rpartition(".")[2]
            return False, f"{kind}: {message}" if message else kind
    said = text_of(span.get("status_message")) or text_of(_either(status, "message", "description"))
    return False, said.splitlines()[0] if said and said.strip() else "error"


# Attributes --------------------------------------------------------------------------------------------


def _tree(attributes: Any) -> dict[str, Any]:
    """Attributes in any form as nested objects and lists."""
    if isinstance(attributes, list):  # OTLP
        pairs = [
            entry for entry in attributes if isinstance(entry, Mapping) and isinstance(entry.get("key"), str)
        ]
        attributes = {entry["key"]: _any_value(entry.get("value"), 0) for entry in pairs}
    found = _listed(_nested(attributes, 0), 0)
    return found if isinstance(found, dict) else {}


def _nested(value: Any, depth: int) -> Any:
    if depth > _MAX_DEPTH:
        return value
    if isinstance(value, list):
        return [_nested(entry, depth + 1) for entry in value]
    if not isinstance(value, Mapping):
        return value
    found: dict[str, Any] = {}
    for key, entry in value.items():
        *path, last = str(key).split(".", 2 * _MAX_DEPTH)
        node = found
        for part in path:
            below = node.get(part)
            node = below if isinstance(below, dict) else node.setdefault(part, {})
            if not isinstance(node, dict):
                node = {}  # "a" and "a.b" contradict each other: the first one stays
        inner = entry if last in _AS_WRITTEN else _nested(entry, depth + 1)
        if isinstance(node.get(last), dict) and isinstance(inner, dict):
            node[last].update(inner)
        else:
            node.setdefault(last, inner)
    return found


def _listed(node: Any, depth: int) -> Any:
    """Objects whose keys are numbers as the lists that they were before somebody flattened them."""
    if not isinstance(node, dict) or depth > 2 * _MAX_DEPTH:
        return [_listed(entry, depth + 1) for entry in node] if isinstance(node, list) else node
    found = {key: entry if key in _AS_WRITTEN else _listed(entry, depth + 1) for key, entry in node.items()}
    if found and all(key.isdecimal() and len(key) < 7 for key in found):
        return [found[key] for key in sorted(found, key=int)]
    return found


def _any_value(value: Any, depth: int) -> Any:
    """An OTLP AnyValue as a plain one."""
    if not isinstance(value, Mapping) or depth > _MAX_DEPTH:
        return None
    for name, entry in value.items():
        kind = name.replace("_", "").lower()
        if kind == "intvalue":
            try:
                return int(entry)
            except (TypeError, ValueError):
                return None
        if kind == "arrayvalue":
            return [_any_value(one, depth + 1) for one in _list(_mapping(entry).get("values"))]
        if kind == "kvlistvalue":
            pairs = [one for one in _list(_mapping(entry).get("values")) if isinstance(one, Mapping)]
            return {str(one.get("key")): _any_value(one.get("value"), depth + 1) for one in pairs}
        if kind in ("stringvalue", "boolvalue", "doublevalue"):
            return entry
    return None


def _at(node: Any, *path: str) -> Any:
    for part in path:
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node


def _entries(node: Any) -> list[Any]:
    """The entries of a list, also of one that was written as text."""
    return _list(decoded(node))[:_MAX_ENTRIES]


def _identity(value: Any) -> str | None:
    """An id as lower-case hexadecimal digits, however it was written; None for none."""
    if not isinstance(value, str) or not value.strip():
        return None
    text = value.strip().lower().removeprefix("0x")
    if all(sign in "0123456789abcdef-" for sign in text):
        return text if text.strip("0") else None
    try:  # protobuf's own JSON writes bytes as base64
        data = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    return data.hex() if len(data) in (8, 16) else value.strip()


def _either(node: Mapping[str, Any], *keys: str) -> Any:
    return next((node[key] for key in keys if node.get(key) is not None), None)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
