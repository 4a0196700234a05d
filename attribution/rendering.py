"""The messages that were sent, as the one string a causal LM reads, with the place of each message in it.

Chat templates strip, wrap and reorder, so the place of a message is not guessed: the template is rendered a
second time with markers instead of texts, which shows its fixed parts, and the two renderings must agree.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ragblame.errors import ModelError
from ragblame.records import Alignment, AlignmentState, Chunk, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

INSTRUCTION = "Answer the question from the context."
_ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "prompt": "user",
    "ai": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}
_FOLDED = "The scorer's chat template refuses these roles: system and tool messages went to the user's turn."
_STRIPS: tuple[Callable[[str], str], ...] = (str, str.strip, str.rstrip, str.lstrip)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one message's text stands in the rendered prompt."""

    start: int  # code points in the rendered prompt
    cut: int  # code points of white space that the template stripped from the message's start
    length: int  # code points that stand there


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """One prompt as a string."""

    text: str
    has_special_tokens: bool  # a chat template already wrote them, so the tokenizer must not add its own
    places: tuple[Place | None, ...]  # one per message; None: the template rewrote it beyond recognition
    joiner: str  # what stands between the prompt and an answer that begins without white space
    notes: tuple[str, ...]


def default_prompt(
    question: str, chunks: Sequence[Chunk], *, as_chat: bool
) -> tuple[tuple[Message, ...], tuple[Alignment, ...]]:
    """The prompt assumed when the one that was sent is unknown, and where each chunk stands in it.

    As chat: a system message with the instruction and one ``- chunk`` line each, then ``Question: …`` from
    the user. Otherwise one text of the same lines that ends in ``Answer:``. Empty chunks are left out.
    """
    text = INSTRUCTION
    alignments = []
    for chunk in chunks:
        if not chunk.text.strip():
            alignments.append(Alignment(position=chunk.position, state=AlignmentState.MISSING))
            continue
        text += "\n- "
        start = len(text)
        text += chunk.text
        alignments.append(
            Alignment(
                position=chunk.position,
                state=AlignmentState.EXACT,
                message=0,
                start=start,
                end=len(text),
                found=(0, len(chunk.text)),
            )
        )
    asked = f"Question: {question}"
    if as_chat:
        return (Message(role="system", text=text), Message(role="human", text=asked)), tuple(alignments)
    return (Message(role="prompt", text=f"{text}\n{asked}\nAnswer:"),), tuple(alignments)


def render(messages: Sequence[Message], tokenizer: "PreTrainedTokenizerBase") -> Rendering:
    """Render messages as the model would have been given them.

    A single plain prompt is used as it is. Everything else goes through the tokenizer's chat template;
    without a template several messages are joined by line breaks, which a note says.

    Raises ``ModelError`` when the chat template refuses every form of the messages.
    """
    texts = [message.text for message in messages]
    if len(messages) == 1 and (messages[0].role == "prompt" or not tokenizer.chat_template):
        return _plain(texts, ())
    if not tokenizer.chat_template:
        note = (
            f"The scorer's tokenizer has no chat template: {len(texts)} messages were joined by line breaks, "
            "without their roles."
        )
        return _plain(texts, (note,))
    return _templated(messages, texts, tokenizer)


def _plain(texts: Sequence[str], notes: tuple[str, ...]) -> Rendering:
    places = []
    at = 0
    for text in texts:
        places.append(Place(start=at, cut=0, length=len(text)))
        at += len(text) + 1
    whole = "\n".join(texts)
    joiner = "" if not whole or whole[-1].isspace() else " "
    return Rendering(
        text=whole, has_special_tokens=False, places=tuple(places), joiner=joiner, notes=tuple(notes)
    )


def _templated(
    messages: Sequence[Message], texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase"
) -> Rendering:
    roles = [_ROLES.get(message.role, "user") for message in messages]
    refusal = ""
    for fold in (False, True):
        turns = _turns(roles, fold=fold)
        try:
            text = _apply(tokenizer, turns, texts)
            markers = [f"ragblame0marker{number}x" for number in range(len(texts))]
            skeleton = _apply(tokenizer, turns, markers)
            places = _locate(text, skeleton, texts, markers)
            joiner = _joiner(tokenizer, turns, markers, skeleton)
        except Exception as error:  # templates are programs of the model's authors: they raise anything
            refusal = refusal or f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        notes = (_FOLDED,) if fold else ()
        return Rendering(text=text, has_special_tokens=True, places=places, joiner=joiner, notes=notes)
    raise ModelError(
        f"the chat template of {tokenizer.name_or_path or 'the scorer'} refuses this prompt ({refusal}); "
        "use a scorer whose template takes these roles"
    )


def _turns(roles: Sequence[str], *, fold: bool) -> list[tuple[str, list[int]]]:
    """Messages grouped into turns; folded, system and tool join the user and neighbours of one role merge."""
    turns: list[tuple[str, list[int]]] = []
    for number, role in enumerate(roles):
        spoken = "assistant" if role == "assistant" else "user"
        if fold and turns and turns[-1][0] == spoken:
            turns[-1][1].append(number)
        else:
            turns.append((spoken if fold else role, [number]))
    return turns


def _apply(
    tokenizer: "PreTrainedTokenizerBase",
    turns: Sequence[tuple[str, list[int]]],
    texts: Sequence[str],
    answer: str | None = None,
) -> str:
    conversation = [
        {"role": role, "content": "\n\n".join(texts[number] for number in numbers)} for role, numbers in turns
    ]
    if answer is not None:
        conversation.append({"role": "assistant", "content": answer})
    rendered = tokenizer.apply_chat_template(
        conversation, tokenize=False, add_generation_prompt=answer is None
    )
    if not isinstance(rendered, str):
        raise TypeError("the template did not give one text")
    return rendered


def _locate(
    text: str, skeleton: str, texts: Sequence[str], markers: Sequence[str]
) -> tuple[Place | None, ...]:
    """Places of the messages, proven by the template's fixed parts; else searched for in order."""
    order = sorted(range(len(markers)), key=lambda number: skeleton.find(markers[number]))
    if any(skeleton.count(marker) != 1 for marker in markers):
        raise ValueError("the template repeats or drops a message")
    places: list[Place | None] = [None] * len(texts)
    fixed = []
    rest = skeleton
    for number in order:
        piece, rest = rest.split(markers[number], 1)
        fixed.append(piece)
    fixed.append(rest)

    at = len(fixed[0]) if text.startswith(fixed[0]) else -1
    for number, following in zip(order, fixed[1:], strict=True):
        if at < 0:
            break
        for strip in _STRIPS:
            stripped = strip(texts[number])
            end = at + len(stripped)
            if text.startswith(stripped, at) and text.startswith(following, end):
                places[number] = Place(start=at, cut=_leading(texts[number], stripped), length=len(stripped))
                at = end + len(following)
                break
        else:
            at = -1
    if at == len(text):
        return tuple(places)

    at = 0
    for number in order:
        stripped = texts[number].strip()
        found = text.find(stripped, at)
        if found < 0 or text.find(stripped, found + 1) >= 0:
            places[number] = None  # gone or ambiguous: a chunk in it cannot be removed with certainty
            continue
        at = found + len(stripped)
        places[number] = Place(start=found, cut=_leading(texts[number], stripped), length=len(stripped))
    return tuple(places)


def _leading(text: str, stripped: str) -> int:
    return text.find(stripped) if stripped else 0


def _joiner(
    tokenizer: "PreTrainedTokenizerBase",
    turns: Sequence[tuple[str, list[int]]],
    markers: Sequence[str],
    prompt: str,
) -> str:
    """White space that the template puts between its generation prompt and the assistant's words."""
    probe = "ragblame0answer"
    try:
        spoken = _apply(tokenizer, turns, markers, answer=probe)
    except Exception:  # a template that refuses a finished turn says nothing about the space
        spoken = ""
    if spoken.startswith(prompt) and probe in spoken:
        between = spoken[len(prompt) : spoken.index(probe)]
        if not between.strip():
            return between
    ends_special = any(prompt.endswith(token) for token in tokenizer.all_special_tokens)
    return "" if ends_special or not prompt or prompt[-1].isspace() else " "
