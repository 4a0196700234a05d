"""Does some chunk say it? Checks every span against every sentence of the chunks, by rules one can read.

A value must stand with its subject: the same number in a sentence about a sibling is not support but a
borrowed value, and a sentence about the right subject with another value of the same kind contradicts. What
has no value is measured by how much of it one sentence says. Every result names the rule that made it.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import pairwise

from ragblame.attribution.verdicts.evidence import Entity, Evidence, Sentence, find_entities
from ragblame.attribution.verdicts.normalise import Word, content_stems, fold, is_negated, words
from ragblame.attribution.verdicts.quantities import (
    Quantity,
    find_quantities,
    is_same_kind,
    is_same_value,
)
from ragblame.records import Alignment, Chunk, Span, SpanKind, Support, SupportState

ENOUGH = 0.60  # weighted share of a clause that one sentence must say
TOO_LITTLE = 0.35  # below it nobody says it; between the two nobody can tell
RELATED = 0.20  # share of a value's own sentence that must come with the value
SAME_ATTRIBUTE = 0.50  # share of the asked words that makes another value a contradiction
FAINT = 0.15  # below it a sentence is about another attribute
MINIMAL = 2  # a sentence with at most so many further words states one thing about its subject
NEIGHBOURS = 12  # words on each side of a value that say what it is the value of
SHORT_VALUE = 4  # words; a span with at most so many is compared as a value, not as a clause
TOGETHER = 3  # sentences that may say a clause together
ENOUGH_TOGETHER = 0.80
CANDIDATES = 30  # sentences looked at for each span besides those that hold its value
ROUNDED = 0.05  # relative; what "about" forgives

_COPULAS = frozenset(("is", "are", "was", "were", "be", "equals"))
_LINKS = _COPULAS | {"at", "in", "to", "by", "as", "after"}
_ROUNDING = re.compile(
    r"(?:\b(?:about|around|approximately|approx\.?|roughly|nearly|almost|some|over|under|more than|less than"
    r"|up to|at least|at most|close to)|[~≈])\s*$",
    re.IGNORECASE,
)
_ABSTENTION = re.compile(
    r"\b(?:not|n't|never|no|nothing|neither|without)\b[^.!?]{0,60}\b(?:mention|state|provide|specif|give|contain"
    r"|inform|answer|tell|know|sure|clear|indicat|describe|include|say|says|discuss|address|context|passage)"
    r"|\b(?:unable|cannot|can't|impossible|insufficient|unclear)\b[^.!?]{0,60}\b(?:answer|tell|determin|say|know"
    r"|find|provide|information|based)",
    re.IGNORECASE,
)


class Match(Enum):
    """Who a sentence is about, compared with who the span is about."""

    SAME = "same"
    LOOSE = "loose"  # a part of the name, or the chunk names it elsewhere
    UNKNOWN = "unknown"  # one of the two names nobody
    OTHER = "other"
    RIVAL = "rival"  # shares the name, is another thing: the sibling trap


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A support record with what the causes need beyond it."""

    support: Support
    conflicts: tuple[
        tuple[int, str], ...
    ] = ()  # chunks in the prompt that state another value, and that value
    borrowed_from: tuple[int, ...] = ()  # chunks where the value stands with another subject
    dropped: tuple[int, ...] = ()  # chunks outside the prompt that say it, or state the value it should have


@dataclass(frozen=True, slots=True)
class _Claim:
    """One span with the words around it."""

    span: Span
    text: str
    items: tuple[Word, ...]
    stems: frozenset[str]  # content words of the span
    around: frozenset[str]  # content words near it, and of the question when the answer is only a value
    asked: frozenset[str]  # of them, those that say which attribute: neither the subject nor the value
    subject: Entity | None
    quantities: tuple[Quantity, ...]
    tolerance: float
    stands_alone: bool  # the only span of its sentence
    leads_to_value: bool  # ends in "is", and the value is a span of its own
    is_value: bool  # a few words behind "is", or the whole answer
    counted: str | None  # the noun that a bare number counts
    abstains: bool


@dataclass(frozen=True, slots=True)
class _Stated:
    """What a sentence says in place of a value."""

    text: str
    stems: frozenset[str]
    is_distinctive: (
        bool  # of a kind that is hardly met by chance: has a unit, a code's shape, ends the sentence
    )


@dataclass(frozen=True, slots=True)
class _Against:
    """A sentence that contradicts a claim."""

    sentence: Sentence
    stated: str
    attribute: float  # how much of what was asked it names, [0, 1]


@dataclass(frozen=True, slots=True)
class _Hit:
    """What one sentence does to a claim."""

    sentence: Sentence
    match: Match
    score: float  # how much of the claim's surroundings it says, [0, 1]


def check_support(
    question: str,
    answer: str,
    spans: Sequence[Span],
    chunks: Sequence[Chunk],
    alignments: Sequence[Alignment] | None = None,
) -> tuple[Support, ...]:
    """One ``Support`` per span, in order; evidence offsets are code points of the chunk's text.

    ``alignments``: only text that stood in the prompt counts as evidence; None when the prompt is not known.
    Never raises on any text.
    """
    return tuple(finding.support for finding in examine(question, answer, spans, chunks, alignments))


def examine(
    question: str,
    answer: str,
    spans: Sequence[Span],
    chunks: Sequence[Chunk],
    alignments: Sequence[Alignment] | None = None,
) -> tuple[Finding, ...]:
    """As ``check_support``, with what the causes need."""
    evidence = Evidence(chunks, alignments, about=(question, answer))
    checker = _Checker(question, evidence)
    findings = []
    for claim in _claims(question, answer, spans, evidence):
        finding = checker.check(claim, in_prompt=True)
        if finding.support.state is not SupportState.ENTAILED and checker.has_hidden:
            outside = checker.check(claim, in_prompt=False).support
            if (
                outside.state in (SupportState.ENTAILED, SupportState.CONTRADICTED)
                and outside.position is not None
            ):
                finding = Finding(
                    support=finding.support,
                    conflicts=finding.conflicts,
                    borrowed_from=finding.borrowed_from,
                    dropped=(outside.position, *outside.other_positions),
                )
        findings.append(finding)
    return tuple(findings)


def _claims(question: str, answer: str, spans: Sequence[Span], evidence: Evidence) -> Iterator[_Claim]:
    """Put every span in its surroundings: what it is the value of, and whose."""
    asked_items = words(question)
    asked_stems = content_stems(question)
    asked_entities = find_entities(asked_items, question, evidence.names)
    together: dict[int, int] = {}
    for span in spans:
        together[span.sentence_start] = together.get(span.sentence_start, 0) + 1
    last_subject: Entity | None = None
    sentence_at = -1
    items: list[Word] = []
    entities: tuple[Entity, ...] = ()
    for span in spans:
        if span.sentence_start != sentence_at:
            sentence_at = span.sentence_start
            sentence = answer[span.sentence_start : span.sentence_end]
            items = words(sentence)
            entities = find_entities(items, sentence, evidence.names)
        low, high = span.start - sentence_at, span.end - sentence_at
        first = next((i for i, word in enumerate(items) if word.end > low), len(items))
        last = next((i for i, word in enumerate(items) if word.start >= high), len(items))
        near = [*items[max(0, first - NEIGHBOURS) : first], *items[last : last + NEIGHBOURS]]
        own = frozenset(word.stem for word in items[first:last] if word.is_content)
        around = frozenset(word.stem for word in near if word.is_content) - own
        outside = [entity for entity in entities if not first <= entity.start < last]
        subject = _subject(outside, asked_entities, last_subject, first)
        if len(around) < 2:
            around |= asked_stems - own
        stems = frozenset() if subject is None else subject.stems
        text = answer[span.start : span.end]
        yield _Claim(
            span=span,
            text=text,
            items=tuple(items[first:last]),
            stems=own,
            around=around,
            asked=(around | (asked_stems - own)) - stems,
            subject=subject,
            quantities=tuple(find_quantities(text)),
            tolerance=ROUNDED if _ROUNDING.search(answer[max(0, span.start - 20) : span.start]) else 1e-6,
            is_value=_is_value(items, first, last, own & asked_stems),
            counted=next(
                (w.stem for w in items[first:] if w.is_content and not w.surface[0].isdigit()), None
            ),
            stands_alone=together[span.sentence_start] == 1,
            leads_to_value=0 < last < len(items) and items[last - 1].folded in _COPULAS,
            abstains=_ABSTENTION.search(answer[span.sentence_start : span.sentence_end][:400]) is not None,
        )
        last_subject = subject or last_subject


def _is_value(items: Sequence[Word], first: int, last: int, echoed: frozenset[str]) -> bool:
    """Whether a few words answer for themselves: behind "is", or as the whole sentence."""
    if first > 0:
        return last - first <= SHORT_VALUE and items[first - 1].folded in _LINKS
    return last == len(items) <= SHORT_VALUE and not echoed


def _noun_behind(items: Sequence[Word]) -> str | None:
    """The noun that a bare number counts: 110 *requests*."""
    for word in items:
        if not word.surface[0].isdigit():
            return word.stem if word.is_content else None
    return None


def _subject(
    outside: Sequence[Entity], asked: Sequence[Entity], last: Entity | None, at: int
) -> Entity | None:
    """Who a span is about: whom the question asks about, else who was named last before it."""
    echoed = [entity for entity in outside if any(entity.stems & other.stems for other in asked)]
    before = [entity for entity in (echoed or outside) if entity.start < at]
    if before:
        return before[-1]
    if echoed:
        return echoed[0]
    if last is not None:
        return last
    return asked[0] if asked else None


class _Checker:
    """Applies the rules to one answer."""

    def __init__(self, question: str, evidence: Evidence) -> None:
        self.evidence = evidence
        self.echo = content_stems(question)
        self.has_hidden = any(not sentence.is_in_prompt for sentence in evidence.sentences)
        self._by_value: dict[tuple[object, ...], list[Sentence]] = defaultdict(list)
        for sentence in evidence.sentences:
            for key in {key for quantity in sentence.quantities for key in _keys(quantity)}:
                self._by_value[key].append(sentence)

    def check(self, claim: _Claim, *, in_prompt: bool) -> Finding:
        """The finding for one span, from the sentences inside or outside the prompt."""
        kind = claim.span.kind
        if claim.abstains and not claim.quantities:
            return _bare(claim, SupportState.ENTAILED, "no claim: the answer abstains")
        if kind is SpanKind.CLAUSE and not claim.stands_alone and claim.stems <= self.echo:
            return _bare(claim, SupportState.ENTAILED, "echo of the question")
        if kind is SpanKind.CLAUSE and claim.leads_to_value:
            return _bare(claim, SupportState.ENTAILED, "subject of a value")
        if not claim.stems and not claim.quantities:
            return self._check_literal(claim, in_prompt)
        if kind is SpanKind.QUOTE and (hits := self._literal(claim.text[1:-1], in_prompt)):
            return _found(claim, hits, "quotation")
        if claim.quantities:
            return self._check_value(claim, in_prompt, "date" if kind is SpanKind.DATE else "number")
        if kind is SpanKind.NAME or (kind is SpanKind.CLAUSE and claim.is_value):
            return self._check_value(claim, in_prompt, "name" if kind is SpanKind.NAME else "value")
        return self._check_clause(claim, in_prompt)

    def _check_literal(self, claim: _Claim, in_prompt: bool) -> Finding:
        hits = self._literal(claim.text, in_prompt)
        if hits:
            return _found(claim, hits, "same words")
        return _bare(claim, SupportState.UNCLEAR, "nothing to compare")

    def _literal(self, text: str, in_prompt: bool) -> list[_Hit]:
        """Sentences that hold a text word for word, folded."""
        wanted = " ".join(fold(text).split()).strip(" .,;:!?")
        if not wanted:
            return []
        stems = content_stems(text)
        near = self.evidence.holding(stems) if stems else self.evidence.sentences
        return [
            _Hit(sentence, Match.SAME, 1.0)
            for sentence in near
            if sentence.is_in_prompt is in_prompt and wanted in " ".join(fold(sentence.text).split())
        ]

    def _check_value(self, claim: _Claim, in_prompt: bool, noun: str) -> Finding:
        """A number, date, name or short value: it must stand with its subject."""
        hits = [
            self._hit(claim, sentence)
            for sentence in self._holding_value(claim)
            if sentence.is_in_prompt is in_prompt
        ]
        own = [hit for hit in hits if hit.match in (Match.SAME, Match.LOOSE, Match.UNKNOWN)]
        foreign = [hit for hit in hits if hit.match in (Match.RIVAL, Match.OTHER)]
        good = [hit for hit in own if hit.score >= RELATED or hit.match is Match.SAME or not claim.around]
        against = self._against(claim, in_prompt)
        borrowed = tuple(sorted({hit.sentence.position for hit in foreign}))
        if good:
            best = max(self._attribute(claim, hit.sentence) for hit in good)
            # The same number for another attribute of the subject does not help.
            beaten = [
                other for other in against if other.attribute >= SAME_ATTRIBUTE and best < TOO_LITTLE / 2
            ]
            if not beaten:
                sure = {hit.sentence.position for hit in good}
                found = _found(claim, good, f"{noun} with its subject")
                conflicts = tuple(
                    (other.sentence.position, other.stated)
                    for other in against
                    if other.attribute >= max(best, 0.8) and other.sentence.position not in sure
                )
                return Finding(support=found.support, conflicts=conflicts)
        if against:
            other = against[0]
            support = _support(
                claim,
                SupportState.CONTRADICTED,
                "another value for the subject",
                other.sentence,
                other.stated,
            )
            return Finding(support=support, borrowed_from=borrowed)
        if foreign:
            strongest = max(foreign, key=lambda hit: (hit.match is Match.RIVAL, hit.score))
            is_clear = (
                noun in ("number", "date")
                or strongest.match is Match.RIVAL
                or (self._attribute(claim, strongest.sentence) >= SAME_ATTRIBUTE)
            )
            if is_clear:
                rule = "value stands with another subject"
                support = _support(claim, SupportState.ABSENT, rule, strongest.sentence)
                return Finding(support=support, borrowed_from=borrowed)
            own.append(strongest)
        if own:
            best_hit = max(own, key=lambda hit: hit.score)
            rule = f"{noun} stands without its subject"
            return Finding(support=_support(claim, SupportState.UNCLEAR, rule, best_hit.sentence))
        return self._check_unmatched(claim, in_prompt, noun)

    def _check_unmatched(self, claim: _Claim, in_prompt: bool, noun: str) -> Finding:
        """No sentence holds the value; names may be spelled otherwise, so most of one leaves a doubt."""
        if noun in ("name", "value"):
            best = max(
                (
                    (self.evidence.coverage(claim.stems, sentence.stems), sentence)
                    for sentence in self.evidence.nearest(claim.stems, CANDIDATES)
                    if sentence.is_in_prompt is in_prompt
                ),
                key=lambda pair: pair[0],
                default=None,
            )
            if best is not None and best[0] >= TOO_LITTLE:
                rule = f"only a part of the {noun} is there"
                return Finding(support=_support(claim, SupportState.UNCLEAR, rule, best[1]))
        return _bare(claim, SupportState.ABSENT, f"{noun} in no chunk")

    def _holding_value(self, claim: _Claim) -> list[Sentence]:
        if not claim.quantities:
            return self.evidence.holding(claim.stems)
        first = claim.quantities[0]
        if claim.tolerance > 1e-3:
            near = self.evidence.sentences
        else:
            near = list({s.index: s for key in _keys(first) for s in self._by_value.get(key, ())}.values())
        return [
            sentence
            for sentence in near
            if all(
                any(is_same_value(wanted, q, tolerance=claim.tolerance) for q in sentence.quantities)
                for wanted in claim.quantities
            )
        ]

    def _hit(self, claim: _Claim, sentence: Sentence) -> _Hit:
        score = self.evidence.coverage(claim.around, sentence.reach)
        return _Hit(sentence, self._match(claim.subject, sentence), score)

    def _attribute(self, claim: _Claim, sentence: Sentence) -> float:
        return self.evidence.coverage(claim.asked, sentence.stems)

    def _match(self, subject: Entity | None, sentence: Sentence) -> Match:
        """Compare who a span and a sentence are about."""
        if subject is None:
            return Match.UNKNOWN
        reach = sentence.reach
        if subject.stems <= reach:
            return Match.SAME
        named = (*sentence.entities, *([sentence.subject] if sentence.subject else ()))
        if frozenset(subject.names) & reach:
            return Match.RIVAL if any(subject.is_rival(entity) for entity in named) else Match.LOOSE
        if frozenset(subject.names) & self.evidence.stems_of.get(sentence.position, frozenset()):
            return Match.LOOSE
        return Match.OTHER if named else Match.UNKNOWN

    def _against(self, claim: _Claim, in_prompt: bool) -> list[_Against]:
        """Sentences about the subject that state another value of the kind, closest first."""
        wanted = claim.asked | (claim.subject.stems if claim.subject else frozenset())
        found = []
        for sentence in self.evidence.nearest(wanted, CANDIDATES):
            if sentence.is_in_prompt is not in_prompt:
                continue
            match = self._match(claim.subject, sentence)
            related = self.evidence.coverage(claim.around, sentence.reach)
            if match is not Match.SAME and not (match is Match.UNKNOWN and related >= ENOUGH):
                continue
            stated = _other_value(claim, sentence, self.echo)
            if stated is None:
                continue
            attribute = self._attribute(claim, sentence)
            if attribute >= SAME_ATTRIBUTE or (
                stated.is_distinctive
                and match is Match.SAME
                and len(sentence.stems - wanted - self.echo - claim.stems - stated.stems) <= MINIMAL
            ):
                found.append(_Against(sentence, stated.text, attribute))
        return sorted(found, key=lambda each: -each.attribute)

    def _check_clause(self, claim: _Claim, in_prompt: bool) -> Finding:
        """How much of a clause one sentence says, weighted by how telling each word is."""
        wanted = frozenset(stem for stem in claim.stems if not stem.isdigit()) or claim.stems
        fresh = wanted - self.echo
        wanted = fresh if len(fresh) > 1 else wanted
        near = [
            sentence
            for sentence in self.evidence.nearest(wanted, CANDIDATES)
            if sentence.is_in_prompt is in_prompt
        ]
        if not near:
            return _bare(claim, SupportState.ABSENT, "clause in no chunk")
        scored = [(self.evidence.coverage(wanted, sentence.reach), sentence) for sentence in near]
        scored.sort(key=lambda pair: -pair[0])
        best, sentence = scored[0]
        if best >= ENOUGH:
            agreeing = [_Hit(s, Match.SAME, share) for share, s in scored if share >= ENOUGH]
            same = [hit for hit in agreeing if _polarity(claim.items) == self._polarity(wanted, hit.sentence)]
            if same:
                return _found(claim, same, "clause says the same")
            return Finding(
                support=_support(
                    claim, SupportState.CONTRADICTED, "negation differs", sentence, sentence.text[:200]
                )
            )
        together = frozenset().union(*(s.reach for _, s in scored[:TOGETHER]))
        if self.evidence.coverage(wanted, together) >= ENOUGH_TOGETHER:
            return Finding(
                support=_support(claim, SupportState.ENTAILED, "clause put together from sentences", sentence)
            )
        if best >= TOO_LITTLE:
            return Finding(
                support=_support(claim, SupportState.UNCLEAR, "clause is there only in part", sentence)
            )
        return _bare(claim, SupportState.ABSENT, "clause in no chunk")

    def _polarity(self, wanted: frozenset[str], sentence: Sentence) -> bool:
        """Whether the part of a sentence that says the clause is negated."""
        said = [index for index, word in enumerate(sentence.items) if word.stem in wanted]
        if not said:
            return False
        return _polarity(sentence.items[max(0, said[0] - 2) : said[-1] + 1])


def _polarity(items: Sequence[Word]) -> bool:
    return is_negated(items)


def _other_value(claim: _Claim, sentence: Sentence, echo: frozenset[str]) -> _Stated | None:
    """What a sentence states in place of the claim's value; None when it states nothing of the kind."""
    if claim.quantities:
        wanted = claim.quantities[0]
        if any(is_same_value(wanted, q, tolerance=claim.tolerance) for q in sentence.quantities):
            return None
        for quantity in sentence.quantities:
            counted = _noun_behind([word for word in sentence.items if word.start >= quantity.end])
            if is_same_kind(wanted, quantity) and (wanted.dimension or claim.counted in (None, counted)):
                is_distinctive = bool(wanted.dimension) or claim.counted is not None
                stems = frozenset(word.stem for word in words(quantity.text))
                return _Stated(quantity.text, stems, is_distinctive)
        return None
    if claim.stems <= sentence.stems:
        return None
    return _same_shape(claim, sentence, echo)


def _same_shape(claim: _Claim, sentence: Sentence, echo: frozenset[str]) -> _Stated | None:
    """A run of words that could stand for a name: as many words, capitals and hyphens in the same places."""
    size = len(claim.items)
    if not size:
        return None
    shape = _shape(claim.items, claim.text, -claim.items[0].start)
    is_hyphened = "-" in shape
    known = echo | claim.around | claim.stems | (claim.subject.stems if claim.subject else frozenset())
    for at in range(len(sentence.items) - size, 0, -1):
        run = sentence.items[at : at + size]
        if any(word.stem in known or not word.is_content for word in run):
            continue
        if _shape(run, sentence.text) != shape:
            continue
        end = at + size
        goes_on = end < len(sentence.items) and sentence.items[end].is_capital
        is_led = not sentence.items[at - 1].is_content
        is_last = end == len(sentence.items)
        has_capital = any(word.is_capital for word in run)
        if is_hyphened or (is_led and not goes_on and (has_capital or is_last)):
            text = sentence.text[run[0].start : run[-1].end]
            return _Stated(text, frozenset(word.stem for word in run), is_last)
    return None


def _shape(items: Sequence[Word], text: str, shift: int = 0) -> str:
    """ "Maya Lind" is "X x", "coral-lynx" is "x-x": capitals and what stands between the words."""
    marks = ["X" if word.is_capital else "x" for word in items]
    for index, (before, after) in enumerate(pairwise(items)):
        marks[index] += text[before.end + shift : after.start + shift]
    return "".join(marks)


def _keys(quantity: Quantity) -> Iterator[tuple[object, ...]]:
    """Under what a quantity is filed: equal values share at least one key."""
    if quantity.code:
        yield "code", quantity.code
    if any(quantity.date):
        year, month, day = quantity.date
        yield "number", f"{float(year):.6g}"
        yield "month", month
        yield "day", month, day
    elif not quantity.code:
        yield "number", f"{quantity.bare:.6g}"
        yield "base", f"{quantity.low:.6g}"
        if quantity.dimension == "clock":
            yield "clock", quantity.low % 720


def _found(claim: _Claim, hits: Sequence[_Hit], rule: str) -> Finding:
    """Entailed by the best of several sentences; other chunks that say it too are listed."""
    best = max(hits, key=lambda hit: (hit.match is Match.SAME, hit.score, -hit.sentence.index))
    others = sorted({hit.sentence.position for hit in hits} - {best.sentence.position})
    return Finding(
        support=_support(claim, SupportState.ENTAILED, rule, best.sentence, other_positions=tuple(others))
    )


def _support(
    claim: _Claim,
    state: SupportState,
    rule: str,
    sentence: Sentence,
    stated: str | None = None,
    other_positions: tuple[int, ...] = (),
) -> Support:
    return Support(
        span=claim.span.index,
        state=state,
        rule=rule,
        position=sentence.position,
        evidence_start=sentence.start,
        evidence_end=sentence.end,
        stated=stated,
        other_positions=other_positions,
    )


def _bare(claim: _Claim, state: SupportState, rule: str) -> Finding:
    return Finding(support=Support(span=claim.span.index, state=state, rule=rule))
