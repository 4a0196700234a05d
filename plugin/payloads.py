"""What LangChain's events carry, read as plain text and records at the moment they pass.

Everything is read by shape, not by class: importing LangChain's classes would cost the host seconds, and
hosts pass subclasses, dictionaries and objects of other versions. Strings are immutable, so keeping them is
the snapshot; everything else is copied.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Final
from uuid import UUID

from ragblame.json_values import clean_json
from ragblame.records import Chunk, Json, Message

MAX_DOCUMENTS: Final = 1_000  # read of one list; the recorder's own limit is lower
_MAX_SCANNED: Final = 50  # values looked at in one dictionary
_MAX_DEPTH: Final = 4  # nesting followed in inputs and outputs
_MAX_ERROR: Final = 2_000  # code points kept of an exception's message

QUESTION_KEYS: Final = ("question", "input", "query", "user_input", "prompt", "text", "content", "messages")
ANSWER_KEYS: Final = (
    "answer", "output", "result", "response", "final_answer", "output_text", "generation", "text", "content",
    "messages",
)  # fmt: skip
SCORE_KEYS: Final = ("score", "relevance_score", "similarity", "distance", "_score")
ID_KEYS: Final = ("source_id", "chunk_id", "langchain_id", "row_id", "id", "_id")
TABLE_KEY: Final = "source_table"  # in a document's or a retriever's metadata: where the row lives
_ROLES: Final = {"AIMessageChunk": "ai", "HumanMessageChunk": "human", "SystemMessageChunk": "system"}
_AI_TYPES: Final = ("ai", "AIMessageChunk")
_TEXT_BLOCKS: Final = ("text", "output_text", "text-plain", "input_text")

_SESSION_KEYS = ("session_id", "thread_id", "conversation_id", "chat_id")
_FOREIGN_PREFIXES = (
    "ls_",
    "lc_",
    "langgraph_",
    "checkpoint_",
    "__",
)  # written by frameworks, not by the host
_SECRET = re.compile(
    r"(?:^|[_\-. ])(?:key|token|auth|authorization|cookie|bearer)s?(?:$|[_\-. ])"
    r"|api_?key|secret|passw|credential|access_?token",
    re.IGNORECASE,
)


def message_text(content: Any, *, placeholders: bool = False) -> str:
    """The text of a message's content: a string, or the text blocks of a list.

    Reasoning is never part of it. With ``placeholders``, an image or a file stands as ``[image]``.
    """
    if isinstance(content, str):
        return str.__str__(content)
    parts: list[str] = []
    for block in content if isinstance(content, list | tuple) else ():
        if isinstance(block, str):
            parts.append(block)
        elif isinstance(block, Mapping):
            kind = block.get("type")
            text = block.get("text")
            if isinstance(text, str) and (kind is None or kind in _TEXT_BLOCKS):
                parts.append(text)
            elif placeholders and isinstance(kind, str) and kind not in ("reasoning", "thinking"):
                parts.append(f"[{kind}]")
    return "".join(parts)


def read_messages(messages: Any) -> tuple[Message, ...]:
    """The messages of one prompt, in order; tuples and dictionaries of role and content are read too."""
    return tuple(_read_message(message) for message in messages)


def _read_message(message: Any) -> Message:
    if isinstance(message, str):
        return Message(role="human", text=message)
    if isinstance(message, Mapping):
        role, content = message.get("role") or message.get("type"), message.get("content")
    elif isinstance(message, tuple) and len(message) == 2:
        role, content = message
    else:
        kind = getattr(message, "type", None)
        role = getattr(message, "role", None) if kind == "chat" else kind
        content = getattr(message, "content", None)
    role = str(role) if role else "human"
    return Message(role=_ROLES.get(role, role), text=message_text(content, placeholders=True))


def is_message(value: Any) -> bool:
    """Whether the value looks like a LangChain message."""
    return isinstance(getattr(value, "content", None), str | list) and isinstance(
        getattr(value, "type", None), str
    )


def read_generation(response: Any) -> tuple[str, bool, str | None]:
    """Text, whether it is only a tool call, and the model's name as answered, of an ``LLMResult``."""
    batches = getattr(response, "generations", None) or ((),)
    first = next(iter(batches[0]), None)
    message = getattr(first, "message", None)
    model = _text_of(getattr(message, "response_metadata", None), ("model_name", "model"))
    model = model or _text_of(getattr(response, "llm_output", None), ("model_name", "model"))
    if message is None:
        return str.__str__(getattr(first, "text", "") or ""), False, model
    text = message_text(message.content)
    calls = getattr(message, "tool_calls", None) or ()
    if not text and calls:  # structured output: the arguments are what the model wrote
        return json.dumps(clean_json(calls[0].get("args")), ensure_ascii=False), True, model
    return text, bool(calls), model


def read_model(
    serialized: Any, metadata: Mapping[str, Any], parameters: Mapping[str, Any]
) -> tuple[str | None, str | None]:
    """Name and provider of the model as the host reports them. Nothing else of the parameters is kept."""
    name = _text_of(metadata, ("ls_model_name",)) or _text_of(
        parameters, ("model", "model_name", "model_id", "deployment_name")
    )
    path = serialized.get("id") if isinstance(serialized, Mapping) else None
    if name is None and isinstance(path, Sequence) and path:
        name = str(path[-1])  # the class: all a local or fake model says about itself
    return name, _text_of(metadata, ("ls_provider",))


def _text_of(mapping: Any, keys: Iterable[str]) -> str | None:
    if not isinstance(mapping, Mapping):
        return None
    return next((entry for key in keys if isinstance(entry := mapping.get(key), str) and entry), None)


def question_texts(inputs: Any, depth: int = 0) -> tuple[str, ...]:
    """Texts of a chain's input that may be the question, the likeliest first."""
    if isinstance(inputs, str):
        return (str.__str__(inputs),) if inputs else ()
    if depth > _MAX_DEPTH:
        return ()
    if is_message(inputs):
        return question_texts(message_text(inputs.content), depth + 1)
    if hasattr(inputs, "to_messages"):  # a prompt value: the prompt was rendered before the chain
        return question_texts(inputs.to_messages(), depth + 1)
    if isinstance(inputs, list | tuple):
        turns = read_messages(entry for entry in inputs[-_MAX_SCANNED:] if _is_turn(entry))
        return next(((turn.text,) for turn in reversed(turns) if turn.role in ("human", "user")), ())
    if not isinstance(inputs, Mapping):
        return ()
    known = [
        text for key in QUESTION_KEYS if key in inputs for text in question_texts(inputs[key], depth + 1)
    ]
    others = [
        str.__str__(entry)
        for key, entry in islice(inputs.items(), _MAX_SCANNED)
        if isinstance(entry, str) and entry and key not in QUESTION_KEYS
    ]
    return (*known, *others)


def _is_turn(entry: Any) -> bool:
    if isinstance(entry, Mapping):
        return "content" in entry
    return is_message(entry) or (isinstance(entry, tuple) and len(entry) == 2)


def answer_text(outputs: Any, depth: int = 0) -> str | None:
    """What the user was shown; None when the output does not say, and the model's text stands for it."""
    if outputs is None or isinstance(outputs, str):
        return None if outputs is None else str.__str__(outputs)
    if isinstance(outputs, bool | int | float):
        return str(outputs)
    if depth > _MAX_DEPTH or hasattr(outputs, "page_content"):
        return None
    if is_message(outputs):
        return message_text(outputs.content)
    if isinstance(outputs, Mapping):
        return _answer_in_mapping(outputs, depth)
    if isinstance(outputs, list | tuple):
        said = [entry for entry in outputs[-_MAX_SCANNED:] if getattr(entry, "type", None) in _AI_TYPES]
        if said:
            return message_text(said[-1].content)
        return next((str.__str__(entry) for entry in outputs[:2] if isinstance(entry, str)), None)
    if hasattr(outputs, "generations"):
        return read_generation(outputs)[0]
    for key in ANSWER_KEYS[:-1]:  # a structured answer: its field, else all of it
        if isinstance(entry := getattr(outputs, key, None), str):
            return str.__str__(entry)
    dump = getattr(outputs, "model_dump", None)
    return json.dumps(clean_json(dump()), ensure_ascii=False) if callable(dump) else None


def _answer_in_mapping(outputs: Mapping[Any, Any], depth: int) -> str | None:
    for key in ANSWER_KEYS:
        text = answer_text(outputs[key], depth + 1) if key in outputs else None
        if text is not None:
            return text
    texts = [entry for entry in islice(outputs.values(), _MAX_SCANNED) if isinstance(entry, str)]
    return str.__str__(texts[0]) if len(texts) == 1 else None


def documents_in(value: Any) -> list[Any]:
    """The documents of a list, or of the first such list in a dictionary; pairs with a score count."""
    if isinstance(value, list | tuple):
        return [entry for entry in value[:MAX_DOCUMENTS] if _document_of(entry)[0] is not None]
    if isinstance(value, Mapping):
        for entry in islice(value.values(), _MAX_SCANNED):
            if isinstance(entry, list) and (found := documents_in(entry)):
                return found
    return []


def _document_of(entry: Any) -> tuple[Any, float | None]:
    score = None
    if isinstance(entry, tuple) and len(entry) == 2:
        entry, score = entry
        score = float(score) if _is_number(score) else None
    return (entry, score) if isinstance(getattr(entry, "page_content", None), str) else (None, None)


def read_chunks(documents: Sequence[Any], run_id: UUID | None, table: str | None) -> tuple[Chunk, ...]:
    """One chunk per document, as it is now: a later step that edits a document does not change the record."""
    chunks = []
    for rank, entry in enumerate(documents[:MAX_DOCUMENTS], start=1):
        document, paired = _document_of(entry)
        if document is None:
            continue
        metadata = getattr(document, "metadata", None)
        kept = clean_json(metadata) if metadata and isinstance(metadata, Mapping) else {}
        assert isinstance(kept, dict)
        score_name, score = _score_of(metadata) if kept else (None, None)
        if paired is not None:
            score_name, score = "score", paired
        chunks.append(
            Chunk(
                position=rank - 1,
                text=str.__str__(document.page_content),
                source_id=_identity_of(document, kept),
                source_table=_text_of(kept, (TABLE_KEY,)) or table,
                rank=rank,
                score=score,
                score_name=score_name,
                retriever_run=run_id,
                metadata=kept,
            )
        )
    return tuple(chunks)


def _identity_of(document: Any, metadata: Mapping[str, Json]) -> str | None:
    own = getattr(document, "id", None)
    if own is not None and own != "":
        return str(own)
    for key in ID_KEYS if metadata else ():
        candidate = metadata.get(key)
        if isinstance(candidate, str | int) and not isinstance(candidate, bool) and candidate != "":
            return str(candidate)
    return None


def _score_of(metadata: Any) -> tuple[str | None, float | None]:
    for key in SCORE_KEYS:
        value = metadata.get(key)
        if value is not None and _is_number(value):
            named = metadata.get("score_name")  # a retriever that says what its score is
            return named if key == "score" and isinstance(named, str) else key, float(value)
    return None, None


def _is_number(value: Any) -> bool:
    if isinstance(value, bool | str):
        return False
    try:  # numpy scalars are numbers too
        return isinstance(value, int | float) or (hasattr(value, "dtype") and float(value) is not None)
    except (TypeError, ValueError):
        return False


def error_text(error: BaseException) -> str:
    """Class and message of the host's exception, bounded, even when its ``str`` fails."""
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be read)"
    return (f"{type(error).__name__}: {message}" if message else type(error).__name__)[:_MAX_ERROR]


def read_metadata(metadata: Mapping[str, Any]) -> tuple[str | None, dict[str, Json]]:
    """Session and the host's own metadata, without what looks like a credential or a framework's."""
    session = next(
        (str(metadata[key]) for key in _SESSION_KEYS if isinstance(metadata.get(key), str | int)), None
    )
    own = {
        key: value
        for key, value in metadata.items()
        if isinstance(key, str) and not key.startswith(_FOREIGN_PREFIXES) and not _SECRET.search(key)
    }
    kept = clean_json(own)
    return session, kept if isinstance(kept, dict) else {}
