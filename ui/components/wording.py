"""How verdicts, causes, times and numbers are worded: the same words and letters on every page."""

from datetime import UTC, datetime
from typing import Final

from ragblame.records import Cause, Chunk, CorpusSearch, VerdictKind
from ragblame.ui.components.nodes import Node, el

# Class names of nodes.css; letters differ so that a verdict can be told in grey print.
VERDICT_CSS: Final = {
    VerdictKind.GROUNDED: "grounded",
    VerdictKind.DISTORTED: "distorted",
    VerdictKind.KNOWN_ALREADY: "known",
    VerdictKind.FABRICATED: "fabricated",
    VerdictKind.UNDETERMINED: "undetermined",
}
VERDICT_LETTER: Final = {kind: kind.value[0].upper() for kind in VerdictKind}
VERDICT_MEANING: Final = {
    VerdictKind.GROUNDED: "the documents made the model say it, and they say it too",
    VerdictKind.DISTORTED: "the documents made the model say it, but they say otherwise",
    VerdictKind.KNOWN_ALREADY: "the documents say it, but the model did not need them",
    VerdictKind.FABRICATED: "no document says it: memory or invention",
    VerdictKind.UNDETERMINED: "the numbers do not decide: a person should",
}

NOT_USED: Final = {  # why a row of the corpus was not in the prompt
    Cause.QUERY_REWRITING: "Not used: the question would have found it, the rewritten query did not.",
    Cause.RANKED_TOO_LOW: "Not used: other rows ranked before it.",
    Cause.INDEX_MISS: "Not used: it ranks within k, and the index did not return it.",
    Cause.FILTERED_OUT: "Not used: it does not pass the retriever's filter.",
    Cause.SEMANTIC_GAP: "Not used: the query's vector does not see it.",
    Cause.NOT_THERE_YET: "Not used: it did not say so yet when the answer was given.",
    Cause.CUT_APART: "Not used: only together with its neighbour it says so.",
}


def verdict_badge(kind: VerdictKind) -> Node:
    """Letter and word in the colours of the verdict."""
    letter = el("span", "letter", VERDICT_LETTER[kind], attributes={"aria-hidden": "true"})
    return el(
        "span", f"badge {VERDICT_CSS[kind]}", letter, kind.value, attributes={"title": VERDICT_MEANING[kind]}
    )


def source_of(chunk: Chunk) -> str:
    """The most telling name of where a chunk came from."""
    for key in ("source", "title", "path"):
        value = chunk.metadata.get(key)
        if isinstance(value, str) and value.strip():
            return value[:200]
    return (chunk.source_id or f"chunk {chunk.position + 1}")[:200]


def rank_of(rank: int | None, *, is_exact: bool) -> str:
    """A rank for the query, with what it is worth."""
    if rank is None:
        return "rank for the query not known"
    return (
        f"exact rank {rank} for the query" if is_exact else f"about rank {rank} for the query (approximate)"
    )


def exactness(search: CorpusSearch) -> str:
    """How far a search of the corpus can be trusted."""
    if not search.is_complete:
        return "not finished"
    return "exact" if search.is_exact else "approximate"


def ago(at: datetime, now: datetime | None = None) -> str:
    """Age in the largest unit that fits: "5 s", "3 min", "2 h", "4 d"."""
    return span_of_time(((now or datetime.now(UTC)) - at).total_seconds())


def span_of_time(seconds: float) -> str:
    """Seconds in the largest unit that fits."""
    seconds = max(0.0, seconds)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{int(seconds)} s"


def plural(count: int, one: str, many: str) -> str:
    """The count with the words that fit it: "1 trace waits", "2 traces wait"."""
    return f"{count:,} {one if count == 1 else many}"


def clock(at: datetime) -> str:
    """A point in time, to the second, in UTC: what logs of other machines are compared with."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def nats(value: float | None) -> str:
    """A signed number of nats, with a true minus sign."""
    if value is None:
        return "–"
    return f"{value:+.2f}".replace("-", "−")


def likelier(reliance: float) -> str:
    """What a reliance means: exp(reliance) times likelier with the documents."""
    if abs(reliance) < 0.05:
        return "the documents did not change how likely these words were"
    factor = 2.718281828459045 ** min(abs(reliance), 40.0)
    times = f"{factor:,.1f}" if factor < 10 else f"{factor:,.0f}" if factor < 1e6 else f"{factor:.0e}"
    word = "likelier" if reliance > 0 else "less likely"
    return f"the documents made these words {times} times {word}"


def cut(text: str, size: int) -> str:
    """At most ``size`` code points on one line, with an ellipsis where something is missing."""
    flat = " ".join(text.split())
    return flat if len(flat) <= size else flat[: size - 1] + "…"
