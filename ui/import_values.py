"""Questions, answers, messages, documents and times as tracers write them, read by shape.

Tracers keep inputs and outputs as JSON or as text that holds JSON, messages in four spellings and times in
five. All of it is a stranger's data: what has no known shape is nothing, never an error.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from ragblame.plugin.payloads import ANSWER_KEYS, QUESTION_KEYS, message_text
from ragblame.records import Message

MAX_DEPTH: Final = 4  # nesting followed in inputs and outputs
MAX_SCANNED: Final = 50  # entries looked at in one object
TEXT_KEYS: Final = ("page_content", "pageContent", "content", "text", "chunk", "document", "body")
SCORE_KEYS: Final = ("score", "relevance_score", "similarity", "distance", "_score")
ID_KEYS: Final = ("id", "source_id", "chunk_id", "langchain_id", "row_id", "_id", "document_id")
_RESULT_KEYS: Final = ("generations", "choices", "message")  # of a model's raw result
_ROLES: Final = {
    "user": "human",
    "assistant": "ai",
    "model": "ai",
    "function": "tool",
    "developer": "system",
    "HumanMessage": "human",
    "AIMessage": "ai",
    "AIMessageChunk": "ai",
    "SystemMessage": "system",
    "ToolMessage": "tool",
}
_NANOSECONDS, _MICROSECONDS, _MILLISECONDS = 1e17, 1e14, 1e11  # a number of this size counts those


class Document(NamedTuple):
    """One retrieved passage as a tracer wrote it."""

    text: str
    identity: str | None
    score: float | None
    score_name: str | None
    metadata: Mapping[str, Any]
    own: Mapping[str, Any]  # what an export of ours added


def decoded(value: Any) -> Any:
    """The value that a text holds as JSON, if it does; else the value itself."""
    if not isinstance(value, str) or value[:1].strip() not in ("{", "[", '"'):
        return value
    try:
        return json.loads(value, parse_constant=lambda name: None)
    except (ValueError, RecursionError):
        return value


def text_of(value: Any) -> str | None:
    """A non-empty text, or nothing."""
    return value if isinstance(value, str) and value else None


def number_of(value: Any) -> float | None:
    """A finite number, also one written as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def time_of(value: Any) -> datetime | None:
    """A moment: ISO 8601 (UTC when it names no zone), or a count of seconds to nanoseconds since 1970."""
    if isinstance(value, str) and not value.strip().lstrip("-").isdigit():
        try:
            found = datetime.fromisoformat(value.strip())
            found = found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
        except (ValueError, OverflowError):
            return None
        return found if found.year >= 1970 else None
    number = number_of(value)
    if number is None or number < 0:
        return None
    scale = next(
        (
            scale
            for least, scale in ((_NANOSECONDS, 1e9), (_MICROSECONDS, 1e6), (_MILLISECONDS, 1e3))
            if number >= least
        ),
        1.0,
    )
    try:
        return datetime.fromtimestamp(number / scale, UTC)
    except (ValueError, OverflowError, OSError):
        return None


# Messages ----------------------------------------------------------------------------------------------


def message_of(value: Any) -> Message | None:
    """A chat message: role and content, LangChain's two forms, or a pair; None for anything else."""
    if isinstance(value, list | tuple):
        is_pair = len(value) == 2 and isinstance(value[0], str)
        value = {"role": value[0], "content": value[1]} if is_pair else None
    if not isinstance(value, Mapping):
        return None
    body: Any = value
    for key in ("kwargs", "data", "message"):  # dumped by LangChain, message_to_dict, nested OpenInference
        if isinstance(value.get(key), Mapping) and ("content" in value[key] or "contents" in value[key]):
            body = value[key]
            break
    content = body.get("content")
    if content is None and isinstance(body.get("contents"), list):
        content = [_content_block(block) for block in body["contents"]]
    if not isinstance(content, str | list):
        return None
    role = body.get("role") or body.get("type") or value.get("type") or value.get("role")
    if role in (None, "constructor"):
        path = value.get("id")
        role = path[-1] if isinstance(path, list) and path else None
    if not isinstance(role, str) or not role:
        return None
    return Message(role=_ROLES.get(role, role), text=message_text(content, placeholders=True))


def _content_block(block: Any) -> Any:
    """A part of an OpenInference message as a part of a LangChain one."""
    body = block.get("message_content") if isinstance(block, Mapping) else None
    return body if isinstance(body, Mapping) else block


def messages_of(value: Any, depth: int = 0) -> tuple[Message, ...]:
    """The messages of a prompt: a list of them, a batch of such lists, or an object that holds one."""
    if depth > MAX_DEPTH:
        return ()
    if isinstance(value, Mapping):
        if (single := message_of(value)) is not None:
            return (single,)
        found = next((value[key] for key in ("messages", "prompt", "input") if value.get(key)), None)
        return () if found is None or isinstance(found, str) else messages_of(found, depth + 1)
    if not isinstance(value, list) or not value:
        return ()
    if isinstance(value[0], list) and message_of(value[0]) is None:
        return messages_of(value[0], depth + 1)
    found = [message_of(entry) for entry in value]
    return tuple(message for message in found if message is not None)


def cut_messages(messages: Sequence[Message], longest: int) -> tuple[tuple[Message, ...], dict[str, int]]:
    """A prompt whose texts have ``longest`` code points at most, and a trace's note of the true lengths."""
    kept = tuple(Message(role=message.role, text=message.text[:longest]) for message in messages)
    lengths = {f"prompt[{index}]": len(message.text) for index, message in enumerate(messages)}
    return kept, {name: length for name, length in lengths.items() if length > longest}


def question_of(value: Any, depth: int = 0) -> str | None:
    """What was asked, in an input."""
    value = decoded(value)
    if isinstance(value, str):
        return value or None
    if depth > MAX_DEPTH or value is None:
        return None
    if isinstance(value, Mapping):
        if (message := message_of(value)) is not None:
            return message.text or None
        for key in QUESTION_KEYS:
            if key in value and (found := question_of(value[key], depth + 1)):
                return found
        return _only_text(value)
    asked = [message.text for message in messages_of(value) if message.role == "human"]
    if asked:
        return asked[-1] or None
    return question_of(value[0], depth + 1) if isinstance(value, list) and len(value) == 1 else None


def answer_of(value: Any, depth: int = 0) -> str | None:
    """What was answered, in an output."""
    value = decoded(value)
    if isinstance(value, str):
        return value
    if depth > MAX_DEPTH or value is None:
        return None
    if (message := message_of(value)) is not None:
        return message.text
    if isinstance(value, list):
        said = [message.text for message in messages_of(value) if message.role == "ai"]
        return said[-1] if said else next((entry for entry in value[:2] if isinstance(entry, str)), None)
    if not isinstance(value, Mapping):
        return None
    for key in (*ANSWER_KEYS, *_RESULT_KEYS):
        if key in value and (found := answer_of(_first_of(value[key]), depth + 1)) is not None:
            return found
    return _only_text(value) if value.keys().isdisjoint(_RESULT_KEYS) else None


def _first_of(value: Any) -> Any:
    """Of a batch of generations the first one."""
    while isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]
    return (
        value[0] if isinstance(value, list) and len(value) == 1 and isinstance(value[0], Mapping) else value
    )


def _only_text(value: Mapping[Any, Any]) -> str | None:
    texts = [entry for entry in list(value.values())[:MAX_SCANNED] if isinstance(entry, str) and entry]
    return texts[0] if len(texts) == 1 else None


# Documents ---------------------------------------------------------------------------------------------


def documents_of(value: Any, depth: int = 0) -> tuple[Document, ...]:
    """The passages of a retriever's output: a list of documents or texts, or an object that holds one."""
    value = decoded(value)
    if isinstance(value, Mapping) and depth <= MAX_DEPTH:
        for entry in list(value.values())[:MAX_SCANNED]:
            if isinstance(entry, list | Mapping) and (found := documents_of(entry, depth + 1)):
                return found
        return ()
    if not isinstance(value, list):
        return ()
    documents = [document_of(entry) for entry in value]
    return tuple(document for document in documents if document is not None)


def passed_documents(value: Any) -> tuple[Document, ...]:
    """LangChain documents that passed between steps: only lists whose entries name a page content."""
    value = decoded(value)
    entries: Iterable[Any] = (value,)
    if isinstance(value, Mapping):
        entries = list(value.values())[:MAX_SCANNED]
    for entry in entries:
        if isinstance(entry, list) and entry and all(_is_page(one) for one in entry):
            return documents_of(entry)
    return ()


def _is_page(value: Any) -> bool:
    body = value.get("kwargs", value) if isinstance(value, Mapping) else None
    return isinstance(body, Mapping) and isinstance(body.get("page_content"), str)


def document_of(value: Any) -> Document | None:
    """One passage: a text, a document in a tracer's spelling, or a pair of document and score."""
    paired = None
    if isinstance(value, list | tuple) and len(value) == 2 and number_of(value[1]) is not None:
        value, paired = value[0], number_of(value[1])
    if isinstance(value, str):
        return Document(value, None, paired, "score" if paired is not None else None, {}, {})
    if not isinstance(value, Mapping):
        return None
    own = value.get("ragblame")
    body: Any = value
    for key in ("document", "kwargs"):  # nested OpenInference, dumped by LangChain
        if isinstance(value.get(key), Mapping):
            body = value[key]
            break
    text = next((body[key] for key in TEXT_KEYS if isinstance(body.get(key), str)), None)
    if text is None:
        return None
    metadata = decoded(body.get("metadata"))
    metadata = metadata if isinstance(metadata, Mapping) else {}
    if isinstance(own, Mapping) and "position" in own:  # our own export: it says all there was to say
        name = text_of(own.get("score_name"))
        return Document(text, _identity_of((body,)), number_of(body.get("score")), name, metadata, own)
    name, score = _score_of(body, metadata) if paired is None else ("score", paired)
    return Document(text, _identity_of((body, metadata)), score, name, metadata, {})


def _score_of(*places: Mapping[Any, Any]) -> tuple[str | None, float | None]:
    for place in reversed(places):  # the metadata says what kind of score it is, the tracer's field does not
        for key in SCORE_KEYS:
            if (score := number_of(place.get(key))) is not None:
                return key, score
    return None, None


def _identity_of(places: Sequence[Mapping[Any, Any]]) -> str | None:
    for place in places:
        for key in ID_KEYS:
            found = place.get(key)
            if isinstance(found, str | int) and not isinstance(found, bool) and found != "":
                return str(found)
    return None
