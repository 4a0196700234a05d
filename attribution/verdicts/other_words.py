"""Evidence in words that no rule can match, told by what the model writes where it reads it.

"Gives up after 4877 ms" is the timeout, and no list of words says so; the model that writes answers knows.
Whatever it would write in the span's place must stand in the text, word for word, and differ from the span:
then the text speaks of what was asked, and says otherwise.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Final

from ragblame.attribution.sentences import split_sentences
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.support import examine_apart
from ragblame.records import Chunk, Span, Support, SupportState, Trace

RULE: Final = "the model would write it from this text"
MOST_WORDS: Final = 6  # of a value

# For each text: the words the model writes in the span's place once it may read it; None: it was not asked.
Reader = Callable[[Sequence[str]], Sequence[str | None]]


def place_of(words: str, text: str) -> tuple[int, int] | None:
    """Where these words stand in a text as whole words, whatever their case and spaces; None: nowhere."""
    parts = r"\s+".join(re.escape(word) for word in words.split())
    found = re.search(rf"(?<!\w){parts}(?!\w)", text, re.IGNORECASE) if parts else None
    return None if found is None else found.span()


def evidence_in(text: str, written: str | None, said: str, finding: Finding) -> Finding | None:
    """The finding on a text from which the model writes other words than the span's; None: it does not.

    ``finding``: what the rules made of the text. ``said``: the span's own words.
    """
    place = None if written is None or _is_same(written, said) else place_of(written, text)
    if place is None:
        return None
    start, end = next(
        ((low, high) for low, high in split_sentences(text) if low <= place[0] < high), (0, len(text))
    )
    support = Support(
        span=finding.support.span,
        state=SupportState.CONTRADICTED,
        rule=RULE,
        position=finding.support.position,
        evidence_start=start + len(text[start:end]) - len(text[start:end].lstrip()),
        evidence_end=start + len(text[start:end].rstrip()),
        stated=text[place[0] : place[1]],
    )
    return replace(finding, support=support, is_sure=True)


def with_reading(
    finding: Finding, trace: Trace, span: Span, seen: Sequence[Chunk], hidden: Sequence[Chunk], read: Reader
) -> Finding:
    """The finding on a span that no rule supports, with the chunks from which the model alone would have
    written something else.

    ``seen``: chunks that stood whole in the prompt, one of which then contradicts the span; ``hidden``: the
    others, which then were dropped. A chunk about another subject is not read: the model might borrow from
    it. Nor is anything for a span of more than ``MOST_WORDS``, which is no value that a chunk repeats.
    """
    if len(trace.answer[span.start : span.end].split()) > MOST_WORDS:
        return finding
    was = finding.support
    if was.state is not SupportState.CONTRADICTED or not finding.is_sure:
        against = next(_telling(trace, span, seen, read), None)
        if against is not None:
            support = replace(against.support, model=was.model, probability=was.probability)
            return replace(finding, support=support, is_sure=True)
    dropped = [found.support.position for found in _telling(trace, span, hidden, read)]
    return replace(finding, dropped=(*finding.dropped, *(place for place in dropped if place is not None)))


def _telling(trace: Trace, span: Span, chunks: Sequence[Chunk], read: Reader) -> Iterator[Finding]:
    """Findings on the chunks about the span's subject from which the model writes other words."""
    apart = [Chunk(position=place, text=chunk.text) for place, chunk in enumerate(chunks)]
    findings = examine_apart(trace.question, trace.answer, span, apart, trace.chunks) if apart else ()
    said = trace.answer[span.start : span.end]
    for chunk, finding in zip(chunks, findings, strict=True):
        if not finding.is_about:
            continue
        (written,) = read([chunk.text])
        found = evidence_in(chunk.text, written, said, finding)
        if found is not None:
            yield replace(found, support=replace(found.support, position=chunk.position))


def with_conflicts(finding: Finding, written: str | None, said: str, chunks: Sequence[Chunk]) -> Finding:
    """The finding with the doubtful chunks that state what the model writes without the supporting ones.

    ``written``: these words; None: it was not asked.
    """
    if written is None or _is_same(written, said):
        return finding
    found = [
        (position, written)
        for position in finding.may_conflict
        if place_of(written, chunks[position].text) is not None
    ]
    return replace(finding, conflicts=tuple(sorted((*finding.conflicts, *found))))


def _is_same(written: str, said: str) -> bool:
    return " ".join(written.split()).casefold() == " ".join(said.split()).casefold()
