"""Puts every span of an answer in its surroundings: what it is the value of, and of whom.

A value says nothing alone. Its subject is whom the question asks about or who was named last before it; its
attribute is what the words near it, or the question, call it.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ragblame.attribution.verdicts.evidence import Entity, Evidence, Sentence, find_entities
from ragblame.attribution.verdicts.normalise import Word, content_stems, words
from ragblame.attribution.verdicts.quantities import Quantity, find_quantities
from ragblame.records import Span

NEIGHBOURS = 12  # words on each side of a value that say what it is the value of
SHORT_VALUE = 4  # words; a span with at most so many is compared as a value, not as a clause
ROUNDED = 0.05  # relative; what "about" forgives
EXACT = 1e-6  # relative; what rounding in floating point needs
HEAD = 400  # code points of a sentence that are read for an abstention

_COPULAS = frozenset(("is", "are", "was", "were", "be", "equals"))
_LINKS = _COPULAS | {"at", "in", "to", "by", "as", "after"}
_ROUNDING = re.compile(
    r"(?:\b(?:about|around|approximately|approx\.?|roughly|nearly|almost|some|over|under|more than|less than"
    r"|up to|at least|at most|close to)|[~≈])\s*$",
    re.IGNORECASE,
)
_SOURCE = r"(?:passages?|contexts?|documents?|texts?|sources?|articles?|excerpts?|information|chunks?)"
_ABSTENTION = re.compile(
    rf"\b{_SOURCE}\b[^.!?]{{0,60}}\b(?:not|no|nothing|neither|don't|doesn't|didn't|isn't|lacks?)\b"
    rf"|\b(?:not|nothing|n't)\b[^.!?]{{0,60}}\b(?:in|by|from)\s(?:\w+\s){{0,3}}{_SOURCE}\b"
    r"|\b(?:unable|cannot|can't|not able|impossible|not possible|unclear|insufficient)\b[^.!?]{0,40}"
    r"\b(?:answer|determine|tell|say|find|know|information)"
    r"|\bno (?:mention|information)\b|\bnot enough information\b"
    r"|^\W*n/?a\W*$"
    r"|\b(?:i|we) (?:do not|don't|cannot|can't) (?:know|say|tell|find)\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One span with the words around it."""

    span: Span
    text: str
    items: tuple[Word, ...]  # offsets in the sentence
    stems: frozenset[str]  # content words of the span
    around: frozenset[str]  # content words near it, and the question's where nearly none are
    names: tuple[frozenset[str], ...]  # words for the attribute, as the answer and as the question put it
    said: frozenset[str]  # content words of the sentence, and of the question about the same subject
    subject: Entity | None
    is_asked: bool  # the question names the subject, so another one is another matter
    is_named: bool  # the span's own sentence names the subject: "the port of the Osprey cache is 2959"
    quantities: tuple[Quantity, ...]
    counted: str | None  # stem of the noun that a bare number counts
    tolerance: float  # relative
    is_value: bool  # a few words behind "is", or the whole answer
    before: tuple[str, ...]  # folded words on its left in the sentence, nearest last
    after: tuple[str, ...]  # folded words on its right
    stands_alone: bool  # the only span of its sentence
    leads_to_value: bool  # ends in "is", and the value is a span of its own
    abstains: bool  # the sentence says that the sources do not tell
    is_near_negation: bool

    @property
    def is_common(self) -> bool:
        """Whether the value is a bare number of one or two digits, met by chance in any text."""
        return bool(self.quantities) and all(not q.dimension and len(q.text) < 3 for q in self.quantities)

    @property
    def subject_stems(self) -> frozenset[str]:
        """Words of the subject; empty when nobody is named."""
        return frozenset() if self.subject is None else self.subject.stems

    @property
    def sought(self) -> frozenset[str]:
        """Words by which sentences about the subject's attribute are found."""
        return self.subject_stems.union(*self.names)


def find_claims(question: str, answer: str, spans: Sequence[Span], evidence: Evidence) -> Iterator[Claim]:
    """One claim per span, in order."""
    asked_stems = content_stems(question)
    asked = find_entities(words(question), question, evidence.names)
    per_sentence = Counter(span.sentence_start for span in spans)
    previous: Entity | None = None
    sentence, sentence_at = "", -1
    items: list[Word] = []
    entities: tuple[Entity, ...] = ()
    for span in spans:
        if span.sentence_start != sentence_at:
            sentence_at = span.sentence_start
            sentence = answer[sentence_at : span.sentence_end]
            items = words(sentence)
            entities = find_entities(items, sentence, evidence.names)
        low, high = span.start - sentence_at, span.end - sentence_at
        first = next((i for i, word in enumerate(items) if word.end > low), len(items))
        last = next((i for i, word in enumerate(items) if word.start >= high), len(items))
        near = [*items[max(0, first - NEIGHBOURS) : first], *items[last : last + NEIGHBOURS]]
        own = _content(items[first:last])
        beside = _content(near) - own
        subject = _subject(entities, asked, previous, first, last)
        whose = frozenset() if subject is None else subject.stems
        text = answer[span.start : span.end]
        yield Claim(
            span=span,
            text=text,
            items=tuple(items[first:last]),
            stems=own,
            around=beside if len(beside) > 1 else beside | (asked_stems - own),
            names=tuple(name for name in (beside - whose, asked_stems - own - whose) if name),
            said=_content(items) | _about(asked_stems, asked, whose),
            subject=subject,
            is_asked=any(whose & entity.stems for entity in asked),
            is_named=any(subject is entity for entity in entities),
            quantities=tuple(find_quantities(text)),
            counted=noun_behind(items[_number_at(items, first, last) :]),
            tolerance=ROUNDED if _ROUNDING.search(sentence[max(0, low - 20) : low]) else EXACT,
            is_value=_is_value(items, first, last, own & asked_stems),
            before=tuple(word.folded for word in items[max(0, first - NEIGHBOURS) : first]),
            after=tuple(word.folded for word in items[last : last + NEIGHBOURS]),
            stands_alone=per_sentence[sentence_at] == 1,
            leads_to_value=0 < last < len(items) and items[last - 1].folded in _COPULAS,
            abstains=_ABSTENTION.search(sentence[:HEAD]) is not None,
            is_near_negation=any(word.is_negation for word in near),
        )
        previous = subject or previous


def copied_run(claim: Claim, sentence: Sentence) -> tuple[int, int]:
    """The longest run of words ``[first, last)`` of a sentence that the answer repeats around the span.

    Empty when the span's own words do not stand there in a row.
    """
    own = [word.folded for word in claim.items]
    said = [word.folded for word in sentence.items]
    best = (0, 0)
    for at in range(len(said) - len(own) + 1):
        if not own or said[at : at + len(own)] != own:
            continue
        low, high = at, at + len(own)
        while low > 0 and at - low < len(claim.before) and said[low - 1] == claim.before[low - at - 1]:
            low -= 1
        while (
            high < len(said)
            and high - at - len(own) < len(claim.after)
            and said[high] == claim.after[high - at - len(own)]
        ):
            high += 1
        best = max(best, (low, high), key=lambda run: run[1] - run[0])
    return best


def noun_behind(items: Sequence[Word]) -> str | None:
    """Stem of the noun right behind a number: 110 *requests*."""
    for word in items:
        if not word.surface[0].isdigit():
            return word.stem if word.is_content else None
    return None


def _number_at(items: Sequence[Word], first: int, last: int) -> int:
    """Index of the span's first number: in "port 9999" the noun stands before it and counts nothing."""
    return next((at for at in range(first, last) if items[at].surface[0].isdigit()), first)


def _content(items: Sequence[Word]) -> frozenset[str]:
    return frozenset(word.stem for word in items if word.is_content)


def _subject(
    entities: Sequence[Entity], asked: Sequence[Entity], previous: Entity | None, first: int, last: int
) -> Entity | None:
    """Who a span is about: whom the question asks about, else who was named last before it."""
    outside = [entity for entity in entities if not first <= entity.start < last]
    inside = [entity for entity in entities if first <= entity.start < last]
    echoed = [entity for entity in outside if any(entity.stems & other.stems for other in asked)]
    before = [entity for entity in (echoed or outside) if entity.start < first]
    if before:
        return before[-1]
    if echoed:
        return echoed[0]
    if last - first > SHORT_VALUE and inside:
        return inside[0]  # a clause that names its own subject
    return previous or (asked[0] if asked else None)


def _about(asked_stems: frozenset[str], asked: Sequence[Entity], whose: frozenset[str]) -> frozenset[str]:
    """Words of the question without the other subjects it asks about."""
    return asked_stems.difference(*(entity.stems for entity in asked if not entity.stems & whose))


def _is_value(items: Sequence[Word], first: int, last: int, echoed: frozenset[str]) -> bool:
    """Whether a few words answer for themselves: behind "is", or as the whole sentence."""
    if first > 0:
        return last - first <= SHORT_VALUE and items[first - 1].folded in _LINKS
    return last == len(items) <= SHORT_VALUE and not echoed
