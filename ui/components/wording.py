"""How verdicts, causes, times and numbers are worded: the same words and letters on every page."""

from datetime import UTC, datetime
from typing import Final

from ragblame.records import Chunk, VerdictKind
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
