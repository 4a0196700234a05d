"""What LangChain's events say in words (prompts, answers, questions, errors), read as they pass.

Everything is read by shape, not by class: importing LangChain's classes would cost the host seconds, and
hosts pass subclasses, dictionaries and objects of other versions. Strings are immutable, so keeping them is
the snapshot; everything else is copied.
"""

import json
import re
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from ragblame.json_values import clean_json
from ragblame.plugin.passages import text_of
from ragblame.trace_records import Json, Message

MAX_MESSAGES: Final = 1_000  # read of one prompt: the first and the latest
_MAX_SCANNED: Final = 50  # values looked at in one dictionary
_MAX_DEPTH: Final = 4  # nesting followed in inputs and outputs
_MAX_ERROR: Final = 2_000  # code points kept of an exception's message
_MAX_NAME: Final = 500  # code points kept of a model's name

QUESTION_KEYS: Final = ("question", "input", "query", "user_input", "prompt", "text", "content", "messages")
ANSWER_KEYS: Final = (
    "answer", "output", "result", "response", "final_answer", "output_text", "generation", "text", "content",
    "messages",
)  # fmt: skip
# Tuples, because a union in a test is made anew at every event.
_LISTS: Final = (list, tuple)
_NAMES: Final = (str, int)
_ROLES: Final = {"AIMessageChunk": "ai", "HumanMessageChunk": "human", "SystemMessageChunk": "system"}
_AI_ROLES: Final = ("ai", "assistant")
_HUMAN_ROLES: Final = ("human", "user")
_TEXT_BLOCKS: Final = ("text", "output_text", "text-plain", "input_text")
_MODEL_KEYS: Final = ("model_name", "model")

_SESSION_KEYS = ("session_id", "thread_id", "conversation_id", "chat_id")
_FOREIGN_PREFIXES = (
    "ls_",
    "lc_",
    "langgraph_",
    "checkpoint_",
    "ragblame_",
    "__",
)  # written by frameworks, not by the host
_MAX_TAGS: Final = 50
_MAX_TAG: Final = 200  # code points
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


def read_messages(messages: Sequence[Any]) -> tuple[Message, ...]:
    """The messages of one prompt, in order: the first and the latest of more than ``MAX_MESSAGES``.

    Tuples and dictionaries of role and content are read too.
    """
    if len(messages) > MAX_MESSAGES:
        messages = [messages[0], *messages[1 - MAX_MESSAGES :]]
    return tuple([_read_message(message) for message in messages])


def _read_message(message: Any) -> Message:
    if isinstance(message, str):
        return Message(role="human", text=message)
    if isinstance(message, Mapping):
        content = message.get("content")
    elif isinstance(message, tuple) and len(message) == 2:
        content = message[1]
    else:
        content = getattr(message, "content", None)
    return Message(role=_role_of(message), text=message_text(content, placeholders=True))


def _role_of(message: Any) -> str:
    if isinstance(message, Mapping):
        role = message.get("role") or message.get("type")
    elif isinstance(message, tuple):
        role = message[0]
    else:
        kind = getattr(message, "type", None)
        role = getattr(message, "role", None) if kind == "chat" else kind
    role = str(role) if role else "human"
    return _ROLES.get(role, role)


def is_message(value: Any) -> bool:
    """Whether the value looks like a LangChain message."""
    return isinstance(getattr(value, "content", None), str | list) and isinstance(
        getattr(value, "type", None), str
    )


class Generation(NamedTuple):
    """What a model said."""

    text: str
    is_tool_call: bool = False  # it asked for a tool, or answered through one: then the text is its arguments
    model: str | None = None  # name as answered
    ignored: int = 0  # further generations: only the first is looked at


def read_generation(response: Any) -> Generation:
    """The first generation of an ``LLMResult``."""
    batches = getattr(response, "generations", None) or ((),)
    first = next(iter(batches[0]), None)
    ignored = max(0, sum(len(batch) for batch in batches) - 1)
    message = getattr(first, "message", None)
    model = text_of(getattr(message, "response_metadata", None), _MODEL_KEYS)
    model = model or text_of(getattr(response, "llm_output", None), _MODEL_KEYS)
    model = model[:_MAX_NAME] if model else None
    if message is None:
        return Generation(str.__str__(getattr(first, "text", "") or ""), False, model, ignored)
    text = message_text(message.content)
    calls = getattr(message, "tool_calls", None) or ()
    if not text and calls:  # structured output: the arguments are what the model wrote
        text = json.dumps(clean_json(calls[0].get("args")), ensure_ascii=False)
    return Generation(text, bool(calls), model, ignored)


def read_model(
    serialized: Any, metadata: Mapping[str, Any], parameters: Mapping[str, Any]
) -> tuple[str | None, str | None]:
    """Name and provider of the model as the host reports them. Nothing else of the parameters is kept."""
    name = text_of(metadata, ("ls_model_name",)) or text_of(
        parameters, ("model", "model_name", "model_id", "deployment_name")
    )
    path = serialized.get("id") if isinstance(serialized, Mapping) else None
    if name is None and isinstance(path, Sequence) and path:
        name = str(path[-1])  # the class: all a local or fake model says about itself
    return name[:_MAX_NAME] if name else None, text_of(metadata, ("ls_provider",))


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
    if isinstance(inputs, _LISTS):
        turns = read_messages([entry for entry in inputs[-_MAX_SCANNED:] if _is_turn(entry)])
        return next(((turn.text,) for turn in reversed(turns) if turn.role in _HUMAN_ROLES), ())
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
    if isinstance(outputs, _LISTS):
        return _answer_in_turns(outputs)
    if hasattr(outputs, "generations"):
        return read_generation(outputs).text
    for key in ANSWER_KEYS[:-1]:  # a structured answer: its field, else all of it
        if isinstance(entry := getattr(outputs, key, None), str):
            return str.__str__(entry)
    dump = getattr(outputs, "model_dump", None)
    return json.dumps(clean_json(dump()), ensure_ascii=False) if callable(dump) else None


def _answer_in_turns(turns: Sequence[Any]) -> str | None:
    """The last thing the model said to the last human turn; before it, it answered something else."""
    for entry in reversed(turns[-_MAX_SCANNED:]):
        if not (is_message(entry) or (isinstance(entry, Mapping) and "content" in entry)):
            continue
        role = _role_of(entry)
        if role in _AI_ROLES:
            content = entry["content"] if isinstance(entry, Mapping) else entry.content
            return message_text(content)
        if role in _HUMAN_ROLES:
            return None
    return next((str.__str__(entry) for entry in turns[:2] if isinstance(entry, str)), None)


def _answer_in_mapping(outputs: Mapping[Any, Any], depth: int) -> str | None:
    for key in ANSWER_KEYS:
        text = answer_text(outputs[key], depth + 1) if key in outputs else None
        if text is not None:
            return text
    texts = [
        entry
        for key, entry in islice(outputs.items(), _MAX_SCANNED)
        if isinstance(entry, str) and key not in QUESTION_KEYS  # a graph's state still holds its input
    ]
    return str.__str__(texts[0]) if len(texts) == 1 else None


def is_resumption(inputs: Any) -> bool:
    """Whether a root was called without a question of its own: a paused graph goes on."""
    return inputs is None or type(inputs).__name__ == "Command"


def says_paused(outputs: Any) -> bool:
    """Whether a graph's output says that it waits for somebody."""
    return isinstance(outputs, dict) and "__interrupt__" in outputs


def error_text(error: BaseException) -> str:
    """Class and message of the host's exception, bounded, even when its ``str`` fails."""
    try:
        message = str(error)
    except Exception:
        message = "(its message cannot be read)"
    return (f"{type(error).__name__}: {message}" if message else type(error).__name__)[:_MAX_ERROR]


def read_tags(tags: Any) -> tuple[str, ...]:
    """The run's tags, bounded."""
    return tuple(tag[:_MAX_TAG] for tag in islice(tags or (), _MAX_TAGS) if isinstance(tag, str))


def session_in(mapping: Any) -> str | None:
    """The session or conversation that a run's metadata or configuration names."""
    if not isinstance(mapping, Mapping):
        return None
    return next((str(mapping[key]) for key in _SESSION_KEYS if isinstance(mapping.get(key), _NAMES)), None)


def read_metadata(metadata: Mapping[str, Any]) -> tuple[str | None, dict[str, Json]]:
    """Session and the host's own metadata, without what looks like a credential or a framework's."""
    own = {
        key: value
        for key, value in metadata.items()
        if isinstance(key, str) and not key.startswith(_FOREIGN_PREFIXES) and not _SECRET.search(key)
    }
    kept = clean_json(own)
    return session_in(metadata), kept if isinstance(kept, dict) else {}
