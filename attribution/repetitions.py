"""Finds where an answer gives a value a second time, so that the second mention is judged by the first.

It exists because a model copies what it has just written: the second mention shows no reliance on the
documents (prefix leakage), and what it depends on is what the first one depended on.
"""

import re
from collections.abc import Sequence

from ragblame.attribution.verdicts.normalise import content_stems, is_negated, words
from ragblame.records import Span, SpanKind

REPEATABLE = (SpanKind.NUMBER, SpanKind.DATE, SpanKind.NAME, SpanKind.QUOTE)  # values, not wordings
SHORT = 2  # a clause of so many words is a value: "crimson-beaver" has no capital and no digit
TELLING = 3  # digits that make a number alone tell which value it is a part of


def repetitions(answer: str, spans: Sequence[Span]) -> dict[int, int]:
    """Spans that say nothing but an earlier value of the answer or a part of it, each with the first mention.

    Both by their ``Span.index``. Words that carry no content ("once more") may stand around the value.
    """
    seen: list[tuple[frozenset[str], str, int]] = []
    found: dict[int, int] = {}
    for span in spans:
        text = " ".join(answer[span.start : span.end].split()).casefold()
        stems = content_stems(text) or frozenset((text,))
        is_said_plainly = not is_negated(words(text))
        first = next(
            (
                at
                for said, written, at in seen
                if text == written or (is_said_plainly and _is_part(stems, said))
            ),
            None,
        )
        if first is not None:
            found[span.index] = first
        elif span.kind in REPEATABLE or (len(text.split()) <= SHORT and is_said_plainly):
            seen.append((stems, text, span.index))
    return found


def _is_part(stems: frozenset[str], said: frozenset[str]) -> bool:
    """Whether these words are all of the value's; a small number stands in too many values to tell."""
    numbers = [digits for stem in stems for digits in re.findall(r"\d+", stem)]
    return stems <= said and all(len(digits) >= TELLING or stems == said for digits in numbers)
