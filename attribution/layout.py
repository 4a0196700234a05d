"""One trace laid out for one tokenizer: the rendered prompt, each chunk's place in it, the answer's tokens.

This is what a scorer scores. ``prompt_ids(mask)`` is the only thing an engine needs to know about removal, so
enumeration can give way to a prefix tree without any estimator noticing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ragblame.attribution.regions import Region, Run, build_runs, remove
from ragblame.attribution.rendering import Rendering, default_prompt, render
from ragblame.attribution.written import Written, written
from ragblame.errors import AlignmentError, InputError, ModelError
from ragblame.records import Alignment, AlignmentState, Chunk, Message, Span, Trace

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ANCHOR = (
    "\n"  # merges with no letter in any tokenizer met, so what follows it is tokenised as in running text
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """Token ids with the code points ``[start, end)`` each one covers, leading white space trimmed."""

    ids: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layout:
    """The players of one answer and the prompt of every coalition of them. Build with ``build_layout``."""

    prompt: str  # all chunks present
    regions: tuple[Region, ...]  # one per player, by place in the prompt
    runs: tuple[Run, ...]
    chunks: tuple[Chunk, ...]  # all chunks of the trace, by position
    answer: str  # as it was shown; code points as in Trace.answer
    answer_ids: tuple[int, ...]  # of what the model wrote: of its own text where that differs
    answer_starts: tuple[int, ...]  # code points in the answer; empty places for what was not shown
    answer_ends: tuple[int, ...]
    notes: tuple[str, ...]  # what a reader of the result must know, one sentence each
    tokenizer: "PreTrainedTokenizerBase"
    has_special_tokens: bool  # the prompt text already holds them

    @property
    def players(self) -> tuple[int, ...]:
        """Chunk positions that stand in the prompt, in prompt order; bit i of a mask is ``players[i]``."""
        return tuple(region.position for region in self.regions)

    @property
    def full_mask(self) -> int:
        """The coalition of all players."""
        return (1 << len(self.regions)) - 1

    def prompt_text(self, mask: int) -> str:
        """The prompt as if the retriever had returned only the players of ``mask``."""
        self._check(mask)
        return remove(self.prompt, self.runs, mask)

    def prompt_ids(self, mask: int) -> tuple[int, ...]:
        """Token ids of ``prompt_text(mask)``, begin-of-text token included where the tokenizer has one.

        Never empty. Raises ``ModelError`` when the text is empty and the tokenizer has no first token.
        """
        return _encode_prompt(self.tokenizer, self.prompt_text(mask), self.has_special_tokens).ids

    def prompt_tokens(self) -> Tokens:
        """Ids and code-point offsets of the full prompt's tokens; special tokens cover nothing."""
        return _encode_prompt(self.tokenizer, self.prompt, self.has_special_tokens)

    def edited_ids(self, edits: Sequence[tuple[int, int, str]]) -> tuple[int, ...]:
        """Token ids of the full prompt in which each ``[start, end)`` of the edits reads otherwise; disjoint
        edits."""
        text, at = "", 0
        for start, end, new in sorted(edits):
            text += self.prompt[at:start] + new
            at = end
        return _encode_prompt(self.tokenizer, text + self.prompt[at:], self.has_special_tokens).ids

    def with_text(self, player: int, text: str) -> "Layout":
        """The same answer behind a prompt in which one player's chunk reads otherwise."""
        region = self.regions[player]

        def moved(at: int) -> int:
            if at >= region.end:
                return at + len(text) - (region.end - region.start)
            return min(at, region.start)

        prompt = self.prompt[: region.start] + text + self.prompt[region.end :]
        regions = tuple(
            replace(
                each,
                start=moved(each.start),
                end=moved(each.end),
                floor=moved(each.floor),
                ceiling=moved(each.ceiling),
            )
            for each in self.regions
        )
        return replace(self, prompt=prompt, regions=regions, runs=build_runs(prompt, regions))

    def span_tokens(self, span: Span) -> tuple[int, ...]:
        """Indices of the answer tokens that overlap a span; a token on a border belongs to both sides."""
        return tuple(
            index
            for index, (start, end) in enumerate(zip(self.answer_starts, self.answer_ends, strict=True))
            if start < span.end and end > span.start
        )

    def mask_of(self, positions: Sequence[int]) -> int:
        """The coalition of these chunks; positions that are no players are left out."""
        wanted = set(positions)
        return sum(1 << i for i, region in enumerate(self.regions) if region.position in wanted)

    def by_position(self, values: Sequence[float]) -> tuple[float, ...]:
        """One value per chunk of the trace from one per player; exactly 0 for chunks that are no players."""
        spread = [0.0] * len(self.chunks)
        for region, value in zip(self.regions, values, strict=True):
            spread[region.position] = float(value)
        return tuple(spread)

    def _check(self, mask: int) -> None:
        if not 0 <= mask <= self.full_mask:
            raise InputError(f"coalition {mask} names players beyond the {len(self.regions)} of this prompt")


def build_layout(
    trace: Trace, alignments: Sequence[Alignment], tokenizer: "PreTrainedTokenizerBase"
) -> Layout:
    """Lay a trace out for a tokenizer.

    ``alignments`` say where chunks stand in ``trace.prompt``; they are ignored, and the default prompt of
    ``rendering.default_prompt`` is used, when the trace recorded no prompt. Missing chunks are no players.

    Raises ``InputError`` for an empty answer, ``ModelError`` when the chat template refuses the prompt,
    ``AlignmentError`` when tokens and text disagree. The tokens are those of the model's own text where a
    later step made the shown answer of it.
    """
    if not trace.answer.strip():
        raise InputError("the answer is empty: there is nothing to attribute; check what was captured")
    for index, chunk in enumerate(trace.chunks):
        if chunk.position != index:
            raise InputError(f"chunk {index} has position {chunk.position}: number chunks from 0 in order")
    notes: list[str] = []
    messages = tuple(Message(role=m.role, text=encodable(m.text)) for m in trace.prompt)
    if not any(message.text.strip() for message in messages):
        chunks = tuple(_encodable_chunk(chunk) for chunk in trace.chunks)
        messages, alignments = default_prompt(
            encodable(trace.question), chunks, as_chat=bool(tokenizer.chat_template)
        )
        notes.append("The prompt that was sent is not known: a default prompt with all chunks was assumed.")
    rendering = render(messages, tokenizer)
    notes.extend(rendering.notes)
    regions = _regions(alignments, rendering)
    notes.extend(_shared_text_notes(regions))
    source = written(trace)
    notes.extend(source.notes)
    answer = encodable(trace.answer)
    tokens = _shown(_encode_answer(tokenizer, encodable(source.text), rendering.joiner), source)
    return Layout(
        prompt=rendering.text,
        regions=regions,
        runs=build_runs(rendering.text, regions),
        chunks=trace.chunks,
        answer=answer,
        answer_ids=tokens.ids,
        answer_starts=tokens.starts,
        answer_ends=tokens.ends,
        notes=tuple(notes),
        tokenizer=tokenizer,
        has_special_tokens=rendering.has_special_tokens,
    )


def encodable(text: str) -> str:
    """Lone surrogates cannot be encoded; their replacement has the same length, so offsets survive."""
    return (
        "".join("�" if "\ud800" <= char <= "\udfff" else char for char in text)
        if _has_surrogate(text)
        else text
    )


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _encodable_chunk(chunk: Chunk) -> Chunk:
    return Chunk(position=chunk.position, text=encodable(chunk.text))


def _regions(alignments: Sequence[Alignment], rendering: Rendering) -> tuple[Region, ...]:
    """Regions of the aligned chunks in the rendered prompt, by place."""
    regions = []
    for alignment in alignments:
        if alignment.state is AlignmentState.MISSING or alignment.message is None:
            continue
        if alignment.start is None or alignment.end is None or alignment.found is None:
            raise AlignmentError(
                f"chunk {alignment.position} is aligned without offsets: align the trace again"
            )
        place = rendering.places[alignment.message] if alignment.message < len(rendering.places) else None
        if place is None:
            raise AlignmentError(
                f"the chat template rewrites message {alignment.message}, so chunk {alignment.position} "
                "cannot be removed from it with certainty; use a scorer whose template keeps the text"
            )
        floor, ceiling = place.start, place.start + place.length
        start = max(floor, min(floor + alignment.start - place.cut, ceiling))
        end = max(floor, min(floor + alignment.end - place.cut, ceiling))
        if end <= start:
            continue  # the template stripped it: nothing of it stands in the prompt
        regions.append(
            Region(
                position=alignment.position,
                start=start,
                end=end,
                found=alignment.found,
                floor=floor,
                ceiling=ceiling,
            )
        )
    return tuple(sorted(regions, key=lambda region: (region.start, region.end, region.position)))


def _shared_text_notes(regions: Sequence[Region]) -> list[str]:
    notes = []
    for i, region in enumerate(regions):
        others = [o.position for o in regions[:i] if o.start < region.end and o.end > region.start]
        if others:
            named = ", ".join(str(position + 1) for position in others)
            notes.append(
                f"Chunk {region.position + 1} shares its place in the prompt with chunk {named}: "
                "shared text counts as removed only when all of them are."
            )
    return notes


def _encode_prompt(tokenizer: "PreTrainedTokenizerBase", text: str, has_special_tokens: bool) -> Tokens:
    encoding = tokenizer(
        text,
        add_special_tokens=not has_special_tokens,
        return_offsets_mapping=True,
        truncation=False,
        verbose=False,
    )
    ids: list[int] = list(encoding["input_ids"])
    offsets: list[tuple[int, int]] = [(start, end) for start, end in encoding["offset_mapping"]]
    while ids and not has_special_tokens and offsets[-1] == (0, 0) and ids[-1] in tokenizer.all_special_ids:
        ids.pop()  # an end-of-text token closes documents; a prompt goes on
        offsets.pop()
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id and offsets[0] == (0, 0):
        ids.pop(0)  # the text began with the token already
        offsets.pop(0)
    if not ids:
        first = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
        if not isinstance(first, int):
            raise ModelError(
                "a coalition leaves an empty prompt and the tokenizer has no begin-of-text token; "
                "put an instruction or the question into the prompt"
            )
        ids, offsets = [first], [(0, 0)]
    return _trimmed(text, ids, offsets)


def _encode_answer(tokenizer: "PreTrainedTokenizerBase", answer: str, joiner: str) -> Tokens:
    """Answer tokens as they follow the prompt, checked by decoding them back.

    Tokenizers that put a space before every text (SentencePiece style) are asked behind an anchor, so that
    the tokens are those of running text.
    """
    if answer[0].isspace():
        joiner = ""
    probe = tokenizer.convert_ids_to_tokens(list(tokenizer("a", add_special_tokens=False)["input_ids"]))
    puts_space = bool(probe) and probe[0][:1] in ("▁", "Ġ")
    if puts_space:
        anchored = _encode_from(tokenizer, ANCHOR, joiner + answer)
        if anchored is not None:
            return _shifted(answer, *anchored, by=len(joiner))
        joiner = "" if joiner == " " else joiner
    encoded = _encode_from(tokenizer, "", joiner + answer)
    if encoded is None:
        raise AlignmentError(
            f"the tokenizer of {tokenizer.name_or_path or 'the scorer'} does not give the answer back when "
            "it decodes its own tokens, so offsets would be wrong; use a scorer with a byte-level tokenizer"
        )
    return _shifted(answer, *encoded, by=len(joiner))


def _shown(tokens: Tokens, source: Written) -> Tokens:
    """The model's tokens at their places in the shown answer."""
    if source.blocks is None:
        return tokens
    places = [source.place(start, end) for start, end in zip(tokens.starts, tokens.ends, strict=True)]
    moved = _trimmed(source.shown, tokens.ids, places)
    return Tokens(ids=tokens.ids, starts=moved.starts, ends=moved.ends)


def _encode_from(
    tokenizer: "PreTrainedTokenizerBase", anchor: str, text: str
) -> tuple[list[int], list[tuple[int, int]]] | None:
    """Ids and offsets of ``text`` behind ``anchor``; None without a token border or an exact decoding."""
    whole = anchor + text
    encoding = tokenizer(
        whole, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
    )
    ids: list[int] = list(encoding["input_ids"])
    offsets: list[tuple[int, int]] = [(start, end) for start, end in encoding["offset_mapping"]]
    decoded = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    if not isinstance(decoded, str) or not _same_text(tokenizer, decoded, whole):
        return None
    cut = len(anchor)
    first = next((index for index, (_, end) in enumerate(offsets) if end > cut), len(ids))
    if first < len(ids) and offsets[first][0] < cut:
        return None
    return ids[first:], [(start - cut, end - cut) for start, end in offsets[first:]]


def _same_text(tokenizer: "PreTrainedTokenizerBase", decoded: str, text: str) -> bool:
    """Equal, up to the space some tokenizers put first, or after the tokenizer's own normalisation."""
    if decoded in (text, " " + text) or " " + decoded == text:
        return True
    backend = getattr(tokenizer, "backend_tokenizer", None)
    normaliser = getattr(backend, "normalizer", None)
    if normaliser is None:
        return False
    form: str = normaliser.normalize_str(text)
    return decoded.lstrip(" ") == form.replace("▁", " ").lstrip(" ")


def _shifted(answer: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], *, by: int) -> Tokens:
    moved = [(max(0, start - by), max(0, end - by)) for start, end in offsets]
    return _trimmed(answer, ids, moved)


def _trimmed(text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]]) -> Tokens:
    """Move starts over leading white space, so that " 42" covers what a reader sees; blank tokens stay."""
    starts = []
    for start, end in offsets:
        visible = start
        while visible < end and text[visible].isspace():
            visible += 1
        starts.append(visible if visible < end else start)
    return Tokens(ids=tuple(ids), starts=tuple(starts), ends=tuple(end for _, end in offsets))
