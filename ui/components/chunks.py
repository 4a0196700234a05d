"""Chunk cards in the order of the prompt: where each came from, what it contributed, what it really says."""

from collections.abc import Iterator, Mapping, Sequence

from ragblame.records import Alignment, AlignmentState, Chunk, Method, Support, SupportState, TokenHeat
from ragblame.ui.components.answer import elision, window
from ragblame.ui.components.nodes import Node, el
from ragblame.ui.components.segments import cut_segments
from ragblame.ui.components.wording import cut, nats, plural, source_of
from ragblame.ui.reads import RELIED
from ragblame.ui.reads_trace import TracePage

TEXT_WINDOW = 6_000  # code points of one chunk drawn at once; less when there are many chunks
ALL_TEXT = 240_000  # code points of all chunks together
MAX_HEATED = 5_000  # tokens of one chunk drawn with heat
MAX_LOST = 200  # parts of one chunk drawn as not in the prompt
QUOTED = 90  # code points of a missing part that are quoted
STEPS = 4  # strengths of heat besides none

_PLACE = {
    AlignmentState.EXACT: None,
    AlignmentState.NORMALISED: ("in the prompt, white space changed", ""),
    AlignmentState.PARTIAL: ("only a part is in the prompt", "warn"),
    AlignmentState.MISSING: ("not in the prompt", "bad"),
}


def prompt_order(page: TracePage) -> list[Chunk]:
    """Chunks as they stand in the prompt; those that do not stand there come last, in retrieval order."""

    def place(chunk: Chunk) -> tuple[bool, int, int, int]:
        found = page.alignments.get(chunk.position)
        if found is None or found.message is None or found.start is None:
            return True, 0, 0, chunk.position
        return False, found.message, found.start, chunk.position

    return sorted(page.trace.chunks, key=place)


def chunk_cards(page: TracePage, span: int | None, heats: Mapping[int, TokenHeat]) -> Node:
    """One card per chunk; shares, evidence and heat belong to the selected span."""
    known = page.shares(span, Method.SHAPLEY) if span is not None else {}
    hottest = max((abs(value) for heat in heats.values() for value in heat.values), default=0.0)
    support = page.supports.get(span) if span is not None else None
    room = max(400, min(TEXT_WINDOW, ALL_TEXT // max(1, len(page.trace.chunks))))
    cards = [
        _card(
            chunk,
            page.alignments.get(chunk.position),
            _share_line(known, chunk.position) if known else None,
            support,
            heats.get(chunk.position),
            hottest,
            room,
        )
        for chunk in prompt_order(page)
    ]
    if not cards:
        cards = [el("p", "notice", "No chunk was captured: attach the callback where the retriever runs.")]
    return el("div", "cards scroll", *cards)


def _card(
    chunk: Chunk,
    alignment: Alignment | None,
    share: Node | None,
    support: Support | None,
    heat: TokenHeat | None,
    hottest: float,
    room: int,
) -> Node:
    is_missing = alignment is not None and alignment.state is AlignmentState.MISSING
    is_cited = support is not None and support.position == chunk.position
    note = _PLACE[alignment.state] if alignment else None
    meta = [
        f"rank {chunk.rank}" if chunk.rank is not None else None,
        f"{cut(chunk.score_name or 'score', 24)} {chunk.score:.3g}" if chunk.score is not None else None,
        cut(f"{chunk.source_table or 'id'} {chunk.source_id}", 64) if chunk.source_id else None,
        f"cut at capture, {chunk.truncated_from:,} characters in truth" if chunk.truncated_from else None,
    ]
    number = str(chunk.position + 1)
    return el(
        "article",
        f"card{' cited' if is_cited else ''}{' absent' if is_missing else ''}",
        el(
            "header",
            "",
            el("span", "place", number, attributes={"title": f"chunk {number}, in order of retrieval"}),
            el("span", "source untrusted clip", source_of(chunk), attributes={"title": source_of(chunk)}),
            el("span", f"chip {note[1]}", note[0]) if note else None,
        ),
        *([el("p", "lacks untrusted", line) for line in _place_lines(chunk, alignment)] if alignment else []),
        share,
        el("p", "meta untrusted", " · ".join(part for part in meta if part)),
        _text(chunk, support if is_cited else None, heat, hottest, room, _lost(alignment)),
        attributes={"aria-label": f"chunk {number}: {source_of(chunk)}"},
    )


def _lost(alignment: Alignment | None) -> Sequence[tuple[int, int]]:
    """Parts of the chunk's text that do not stand in the prompt, when others do."""
    is_partial = alignment is not None and alignment.state is AlignmentState.PARTIAL
    return alignment.absent[:MAX_LOST] if alignment is not None and is_partial else ()


def _place_lines(chunk: Chunk, alignment: Alignment) -> Iterator[str]:
    """In words: what is missing from the prompt, and whether the place was a choice."""
    parts = [part for start, end in alignment.absent if (part := " ".join(chunk.text[start:end].split()))]
    if alignment.state is AlignmentState.PARTIAL and parts:
        longest = max(parts, key=len)
        lost = sum(end - start for start, end in alignment.absent)
        more = f" and {plural(len(parts) - 1, 'other part', 'other parts')}" if len(parts) > 1 else ""
        yield (
            f"Not in the prompt: “{cut(longest, QUOTED)}”{more}, {lost:,} of {len(chunk.text):,} characters, "
            "struck through below."
        )
    if alignment.is_ambiguous:
        yield "This text stands in the prompt more than once: which place is this chunk's was a choice."


def _share_line(known: Mapping[int, float], position: int) -> Node:
    """A bar on a scale that all cards of the span share, with its zero where the sign turns."""
    if position not in known:
        return el("div", "share", el("div", "track"), el("span", "number quiet", "not computed"))
    low, high = min(0.0, *known.values()), max(0.0, *known.values())
    width = max(high - low, RELIED)  # shares far below a nat are noise to a reader and must look like it
    zero, value = -low / width, known[position]
    left = zero if value >= 0 else (value - low) / width
    positive = sum(share for share in known.values() if share > 0)
    part = " · against" if value < 0 else ""
    if value > 0 and positive >= RELIED:
        part = f" · {value / positive:.0%}"
    fill = f"fill{' against' if value < 0 else ''}"
    bar = el(
        "div",
        "track",
        el("div", fill, numbers={"left": left, "width": abs(value) / width}),
        el("div", "zero", numbers={"left": zero}) if low < 0 else None,
    )
    return el("div", "share", bar, el("span", "number", f"{nats(value)} nats{part}"))


def _text(
    chunk: Chunk,
    support: Support | None,
    heat: TokenHeat | None,
    hottest: float,
    room: int,
    lost: Sequence[tuple[int, int]],
) -> Node:
    """The chunk's words: the evidence sentence marked, what the prompt lacks struck through, token heat in
    five steps when it is asked for."""
    evidence = None
    if support is not None and support.evidence_start is not None and support.evidence_end is not None:
        evidence = (support.evidence_start, support.evidence_end)
    start, end = window(chunk.text, evidence[0] if evidence else 0, room)
    marks = [(evidence[0] - start, evidence[1] - start)] if evidence else [(0, 0)]
    css: list[str] = [_evidence_css(support)]
    if heat is not None and hottest > 0 and len(heat.values) <= MAX_HEATED:
        for left, right, value in zip(heat.starts, heat.ends, heat.values, strict=True):
            if step := heat_step(value, hottest):
                marks.append((left - start, right - start))
                css.append(step)
    marks += [(left - start, right - start) for left, right in lost]
    css += ["lost"] * len(lost)
    drawn: list[Node | str] = []
    is_revealed = False
    for piece in cut_segments(chunk.text[start:end], marks):
        if not piece.marks:
            drawn.append(piece.text)
            continue
        names = [css[mark] for mark in piece.marks]
        if 0 in piece.marks and not is_revealed:
            names.append("reveal")
            is_revealed = True
        title = {"title": "not in the prompt"} if "lost" in names else None
        drawn.append(el("mark", " ".join(names), piece.text, attributes=title))
    return el(
        "div",
        "text scroll untrusted",
        elision(start),
        *drawn,
        elision(len(chunk.text) - end),
        attributes={"dir": "auto"},
    )


def heat_step(value: float, hottest: float) -> str:
    """Class of one of five strengths (none and four) and the sign; "" for none."""
    step = min(STEPS, int(abs(value) / hottest * (STEPS + 1)))
    return f"heat h{step}{'' if value > 0 else ' cold'}" if step else ""


def _evidence_css(support: Support | None) -> str:
    against = support is not None and support.state is SupportState.CONTRADICTED
    return "evidence against" if against else "evidence"
