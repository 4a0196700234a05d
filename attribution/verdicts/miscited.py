"""Whether an answer says that a thing is from one passage while it stands in another.

A right value under a wrong number sends whoever checks it to a document that does not say it. Numbers mean
what the prompt says that they mean: where it does not number its chunks, nothing is claimed.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from ragblame.attribution.citations import NOUN, Cited, cited_sentences, find_citations
from ragblame.attribution.verdicts.finding import Finding
from ragblame.attribution.verdicts.support import examine_apart
from ragblame.records import Alignment, Span, SupportState, Trace

_HEAD = 160  # code points before a chunk in which its number is looked for
_NUMBER = re.compile(  # the line that a chunk stands in or under: "passage 2:", "[2] ", '<doc index="2">'
    rf"(?:^|\n)[^\w\n]*(?:(?:{NOUN}|index|id|number|no)[^\w\n]*)*(\d{{1,3}})\b[^\n]{{0,80}}\n?[^\w]*$",
    re.IGNORECASE,
)


def with_citations(
    trace: Trace, spans: Sequence[Span], findings: Sequence[Finding], alignments: Sequence[Alignment]
) -> tuple[Finding, ...]:
    """The findings; those of supported spans with what the answer cites for them and does not say it.

    ``alignments``: where the chunks stand in ``trace.prompt``. Never raises on any text.
    """
    sentences = cited_sentences(trace.answer)
    numbered = numbered_chunks(trace, alignments) if sentences else {}
    if not numbered:
        return tuple(findings)
    texts = [chunk.text for chunk in trace.chunks]
    found = []
    for span, finding in zip(spans, findings, strict=True):
        support = finding.support
        numbers = _cited(span, sentences)
        if numbers and support.state is SupportState.ENTAILED and support.position is not None:
            cited = tuple(sorted(numbered[number] for number in numbers if number in numbered))
            if cited:
                finding = replace(finding, miscited=_miscited(trace, span, finding, cited))
            elif not any(_names(text, numbers) for text in texts):
                finding = replace(finding, cites_none=tuple(sorted(numbers)))
        found.append(finding)
    return tuple(found)


def numbered_chunks(trace: Trace, alignments: Sequence[Alignment]) -> Mapping[int, int]:
    """Positions of the chunks in the prompt by the numbers that it gives them; empty where it gives none."""
    placed = sorted(
        (alignment.message, alignment.start, alignment.end, alignment.position)
        for alignment in alignments
        if alignment.message is not None and alignment.start is not None and alignment.end is not None
    )
    before = [(-1, 0, 0, 0), *placed]
    found: dict[int, int] = {}
    for (last_message, _, last_end, _), (message, start, _, position) in pairwise(before):
        low = max(start - _HEAD, last_end if last_message == message else 0)
        number = _NUMBER.search(trace.prompt[message].text[low:start])
        if number is None or int(number[1]) in found:
            return {}
        found[int(number[1])] = position
    return found if len(found) > 1 else {}


def _cited(span: Span, sentences: Sequence[Cited]) -> frozenset[int]:
    """The numbers that the span's sentence names."""
    for sentence in sentences:
        if sentence.start <= span.start < sentence.end:
            return sentence.numbers
    return frozenset()


def _names(text: str, numbers: frozenset[int]) -> bool:
    """Whether a chunk names such a number itself: then the answer may only repeat it."""
    return any(not numbers.isdisjoint(citation.numbers) for citation in find_citations(text))


def _miscited(trace: Trace, span: Span, finding: Finding, cited: tuple[int, ...]) -> tuple[int, ...]:
    support = finding.support
    if {support.position, *support.other_positions} & set(cited):
        return ()
    chunks = [replace(trace.chunks[position], position=at) for at, position in enumerate(cited)]
    others = [chunk for chunk in trace.chunks if chunk.position not in cited]
    alone = examine_apart(trace.question, trace.answer, span, chunks, others)
    is_nowhere = all(one.support.state in (SupportState.ABSENT, SupportState.CONTRADICTED) for one in alone)
    return cited if is_nowhere else ()
