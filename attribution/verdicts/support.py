"""Does some chunk say it? Checks every span against every sentence of the chunks, by rules one can read.

A value must stand with its subject: the same number in a sentence about a sibling is not support but a
borrowed value, and a sentence about the right subject with another value of the same kind contradicts. What
has no value is measured by how much of it one sentence says. Every result names the rule that made it.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

from ragblame.attribution.citations import only_cites
from ragblame.attribution.verdicts.claims import EXACT, Claim, find_claims
from ragblame.attribution.verdicts.denial import differs, is_denied, is_quoted
from ragblame.attribution.verdicts.direction import is_turned
from ragblame.attribution.verdicts.evidence import Evidence, Sentence
from ragblame.attribution.verdicts.finding import (
    SAME_ATTRIBUTE,
    SAME_WORDS,
    Against,
    Finding,
    Hit,
    entailed_by,
    is_parallel,
    support_of,
    without_evidence,
)
from ragblame.attribution.verdicts.normalise import content_stems, fold, stem
from ragblame.attribution.verdicts.quantities import find_quantities
from ragblame.attribution.verdicts.same_value import is_same_number, is_same_value
from ragblame.attribution.verdicts.stated import holds, in_doubt, keys, other_value
from ragblame.attribution.verdicts.subjects import Match, compare_subjects
from ragblame.records import Alignment, Chunk, Span, SpanKind, Support, SupportState

ENOUGH: Final = 0.55  # weighted share of a clause that one sentence must say
TOO_LITTLE: Final = 0.20  # below it nobody says it; between the two nobody can tell
TOGETHER: Final = 3  # sentences that may say a clause together
ENOUGH_TOGETHER: Final = 0.70  # share they must say
ENOUGH_TO_DENY: Final = 0.80  # share that a sentence must say before a negation counts against a clause
FEW_WORDS: Final = 3  # a clause with fewer telling words is judged with its neighbours
RELATED: Final = 0.20  # share of a value's surroundings that must come with the value
FAINT: Final = 0.17  # below it a sentence is about another attribute
MINIMAL: Final = 3  # a sentence with at most so many further words states one thing about its subject
PARTLY: Final = 0.35  # share of a name that leaves a doubt
CANDIDATES: Final = 30  # sentences looked at for each span besides those that hold its value
STATED: Final = 200  # code points of a sentence quoted as what the chunk says instead

_NOUNS: Final = {SpanKind.NUMBER: "number", SpanKind.DATE: "date", SpanKind.NAME: "name"}


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
    seen, hidden = _Checker(question, evidence, in_prompt=True), _Checker(question, evidence, in_prompt=False)
    has_hidden = any(not sentence.is_in_prompt for sentence in evidence.sentences)
    findings = []
    for claim in find_claims(question, answer, spans, evidence):
        finding = seen.check(claim)
        if has_hidden and finding.support.state is not SupportState.ENTAILED:
            outside = hidden.check(claim).support
            tells = outside.state in (SupportState.ENTAILED, SupportState.CONTRADICTED)
            if tells and outside.position is not None:
                finding = replace(finding, dropped=(outside.position, *outside.other_positions))
        findings.append(finding)
    return tuple(findings)


def examine_apart(
    question: str, answer: str, span: Span, chunks: Sequence[Chunk], beside: Sequence[Chunk] = ()
) -> tuple[Finding, ...]:
    """What each chunk alone says about a span, by position: would it be the evidence, were it retrieved?

    ``beside``: further chunks that only tell which words are common and which are names.
    """
    known = [*chunks, *(replace(chunk, position=len(chunks) + at) for at, chunk in enumerate(beside))]
    evidence = Evidence(known, None, about=(question, answer))
    claim = next(find_claims(question, answer, [span], evidence))
    own = defaultdict(list)
    for sentence in evidence.sentences:
        own[sentence.position].append(sentence)
    whose = claim.subject_stems
    return tuple(
        replace(
            _Checker(question, evidence, in_prompt=True, only=own[chunk.position]).check(claim),
            is_about=bool(whose) and any(whose <= sentence.reach for sentence in own[chunk.position]),
        )
        for chunk in chunks
    )


class _Checker:
    """Applies the rules to one answer, with the sentences that stood in the prompt or with the others."""

    def __init__(
        self, question: str, evidence: Evidence, *, in_prompt: bool, only: Sequence[Sentence] | None = None
    ) -> None:
        """``only``: the sentences of one chunk, and no other is looked at."""
        self.evidence = evidence
        self.in_prompt = in_prompt
        self.only = None if only is None else {sentence.index for sentence in only}
        self.echo = content_stems(question)
        self.asked = find_quantities(question)
        self._by_value: dict[tuple[object, ...], list[Sentence]] = defaultdict(list)
        self._folded: dict[int, str] = {}
        for sentence in evidence.sentences if only is None else only:
            if sentence.is_in_prompt is not in_prompt:
                continue
            for key in {key for quantity in sentence.quantities for key in keys(quantity)}:
                self._by_value[key].append(sentence)

    def check(self, claim: Claim) -> Finding:
        """The finding for one span."""
        kind = claim.span.kind
        if claim.abstains and kind not in (SpanKind.NUMBER, SpanKind.DATE):
            return without_evidence(claim, SupportState.ENTAILED, "no claim: the answer abstains")
        if kind is SpanKind.CLAUSE and only_cites(claim.text):
            return without_evidence(claim, SupportState.ENTAILED, "it only names passages")
        if kind is SpanKind.CLAUSE and claim.leads_to_value:
            return without_evidence(claim, SupportState.ENTAILED, "subject of a value")
        if not claim.stems and not claim.quantities:
            hits = self._literal(claim.text)
            if hits:
                return entailed_by(claim, hits, "same words")
            return without_evidence(claim, SupportState.UNCLEAR, "nothing to compare")
        if kind is SpanKind.CLAUSE and not claim.stands_alone and claim.stems <= self.echo:
            return without_evidence(claim, SupportState.ENTAILED, "echo of the question")
        if kind is SpanKind.QUOTE and (hits := self._literal(claim.text[1:-1])):
            return entailed_by(claim, hits, "quotation")
        if claim.quantities and kind not in (SpanKind.CLAUSE, SpanKind.NEGATION):
            return self._check_value(claim, _NOUNS.get(kind, "number"))
        if kind is SpanKind.NAME or (kind is SpanKind.CLAUSE and claim.is_value):
            return self._check_value(claim, _NOUNS.get(kind, "value"))
        return self._check_clause(claim)

    def _mine(self, sentences: Sequence[Sentence]) -> list[Sentence]:
        return [
            sentence
            for sentence in sentences
            if sentence.is_in_prompt is self.in_prompt and (self.only is None or sentence.index in self.only)
        ]

    def _nearest(self, stems: Iterable[str]) -> list[Sentence]:
        """The sentences that share most with these words, best first."""
        if self.only is None:
            return self._mine(self.evidence.nearest(stems, CANDIDATES))
        return self._mine(self.evidence.nearest(stems, len(self.evidence.sentences)))[:CANDIDATES]

    def _literal(self, text: str) -> list[Hit]:
        """Sentences that hold a text word for word, folded."""
        wanted = " ".join(fold(text).split()).strip(" .,;:!?")
        if not wanted:
            return []
        stems = content_stems(text)
        near = self._mine(self.evidence.holding(stems) if stems else self.evidence.sentences)
        for sentence in near:
            if sentence.index not in self._folded:
                self._folded[sentence.index] = " ".join(fold(sentence.text).split())
        return [Hit(s, Match.SAME, 1.0) for s in near if wanted in self._folded[s.index]]

    def _check_value(self, claim: Claim, noun: str) -> Finding:
        """A number, date, name or short value: it must stand with its subject."""
        hits = [self._hit(claim, sentence) for sentence in self._holding_value(claim)]
        foreign = [hit for hit in hits if hit.match in (Match.RIVAL, Match.OTHER)]
        own = [hit for hit in hits if hit not in foreign]
        good = [hit for hit in own if hit.score >= RELATED or hit.match is Match.SAME or not claim.around]
        against = self._against(claim)
        borrowed = tuple(sorted({hit.sentence.position for hit in foreign}))
        denied = [hit for hit in good if is_denied(claim, hit.sentence)]
        turned = [hit for hit in good if hit not in denied and is_turned(claim, hit.sentence)]
        if good and len(denied) + len(turned) == len(good):
            hit = max(good, key=lambda hit: (hit.match is Match.SAME, hit.score))
            rule = "negation differs" if hit in denied else "direction differs"
            stated = " ".join(hit.sentence.text.split())[:STATED]
            support = support_of(claim, SupportState.CONTRADICTED, rule, hit.sentence, stated)
            return Finding(support=support, borrowed_from=borrowed, is_sure=hit.match is Match.SAME)
        good = [hit for hit in good if hit not in denied and hit not in turned]
        if good and not self._is_beaten(claim, good, against):
            return self._entailed(claim, good, against, noun)
        if against:
            first = against[0]
            is_named = first.attribute >= SAME_ATTRIBUTE
            rule = (
                "another value for the subject" if is_named else "the subject has another value of this kind"
            )
            support = support_of(claim, SupportState.CONTRADICTED, rule, first.sentence, first.stated)
            return Finding(support=support, borrowed_from=borrowed, is_sure=is_named)
        if foreign:
            hit = max(foreign, key=lambda hit: (hit.match is Match.RIVAL, hit.score))
            is_sure = bool(claim.quantities) or hit.match is Match.RIVAL
            if is_sure or self._attribute(claim, hit.sentence) >= SAME_ATTRIBUTE:
                rule = "value stands with another subject"
                return Finding(
                    support=support_of(claim, SupportState.ABSENT, rule, hit.sentence),
                    borrowed_from=borrowed,
                )
        if hits:
            hit = max(hits, key=lambda hit: hit.score)
            rule = f"{noun} stands without its subject"
            support = support_of(claim, SupportState.UNCLEAR, rule, hit.sentence)
            return Finding(support=support, borrowed_from=() if own else borrowed)
        return self._check_unmatched(claim, noun)

    def _entailed(self, claim: Claim, good: Sequence[Hit], against: Sequence[Against], noun: str) -> Finding:
        """Said, perhaps with another chunk that says otherwise."""
        sure = {hit.sentence.position for hit in good}
        least = max(SAME_ATTRIBUTE, *(self._attribute(claim, hit.sentence) for hit in good))
        others = [other for other in reversed(against) if other.sentence.position not in sure]
        conflicts = {
            other.sentence.position: other.stated
            for other in others
            if other.attribute >= least or any(is_parallel(claim, hit.sentence, other) for hit in good)
        }
        open_ones = sorted({other.sentence.position for other in others} - conflicts.keys())
        rule = f"{noun} with its subject{', unit converted' if _is_converted(claim, good) else ''}"
        return replace(
            entailed_by(claim, good, rule),
            conflicts=tuple(sorted(conflicts.items())),
            may_conflict=tuple(open_ones),
        )

    def _is_beaten(self, claim: Claim, good: Sequence[Hit], against: Sequence[Against]) -> bool:
        """A small bare number of another attribute is no support where the asked one is stated."""
        if not claim.is_common or not any(other.attribute >= SAME_ATTRIBUTE for other in against):
            return False
        return max(self._attribute(claim, hit.sentence) for hit in good) < FAINT

    def _check_unmatched(self, claim: Claim, noun: str) -> Finding:
        """No sentence holds the value; names may be spelled otherwise, so a part of one leaves a doubt."""
        if claim.quantities:
            if (doubt := self._doubt(claim)) is not None:
                rule = f"{noun} cannot be compared: {doubt[1]}"
                return Finding(support=support_of(claim, SupportState.UNCLEAR, rule, doubt[0]))
            if all(any(is_same_value(own, q) for q in self.asked) for own in claim.quantities):
                return without_evidence(claim, SupportState.UNCLEAR, f"{noun} of the question, in no chunk")
        if not claim.quantities:
            shares = [
                (self.evidence.coverage(claim.stems, sentence.stems), sentence)
                for sentence in self._nearest(claim.stems)
                if self._match(claim, sentence) not in (Match.RIVAL, Match.OTHER)
            ]
            share, sentence = max(shares, key=lambda pair: pair[0], default=(0.0, None))
            if sentence is not None and share >= PARTLY:
                rule = f"only a part of the {noun} is there"
                return Finding(support=support_of(claim, SupportState.UNCLEAR, rule, sentence))
        return without_evidence(claim, SupportState.ABSENT, f"{noun} in no chunk")

    def _doubt(self, claim: Claim) -> tuple[Sentence, str] | None:
        """A sentence about the same that may state the value in another form, and why nobody can tell."""
        for sentence in self._nearest(claim.sought | claim.around):
            reason = in_doubt(claim, sentence) if sentence.quantities else None
            if reason is not None and self._match(claim, sentence) not in (Match.RIVAL, Match.OTHER):
                return sentence, reason
        return None

    def _holding_value(self, claim: Claim) -> list[Sentence]:
        if not claim.quantities:
            return self._mine(self.evidence.holding(claim.stems))
        if claim.tolerance > EXACT:
            near = self._mine(self.evidence.sentences)
        else:
            filed = [s for key in keys(claim.quantities[0]) for s in self._by_value.get(key, ())]
            if claim.quantities[0].code:  # "PlayStation3" may stand there in two words
                filed += self._mine(self.evidence.holding(_halves(claim.quantities[0].code)))
            near = sorted({s.index: s for s in filed}.values(), key=lambda s: s.index)
        return [sentence for sentence in near if holds(claim, sentence)]

    def _hit(self, claim: Claim, sentence: Sentence) -> Hit:
        score = self.evidence.coverage(claim.around, sentence.reach)
        match = self._match(claim, sentence)
        if match is Match.OTHER and score >= SAME_WORDS:
            match = Match.UNKNOWN  # it says nearly all that stands around the value
        if match in (Match.RIVAL, Match.OTHER) and is_quoted(claim, sentence):
            match = Match.LOOSE
        return Hit(sentence, match, score)

    def _attribute(self, claim: Claim, sentence: Sentence) -> float:
        """How much of the attribute's name a sentence holds, [0, 1]."""
        return max((self.evidence.coverage(name, sentence.stems) for name in claim.names), default=0.0)

    def _match(self, claim: Claim, sentence: Sentence) -> Match:
        return compare_subjects(claim, sentence, self.evidence)

    def _against(self, claim: Claim) -> list[Against]:
        """Sentences about the subject that state another value of the kind, closest first."""
        found = []
        for sentence in self._nearest(claim.sought):
            match = self._match(claim, sentence)
            related = self.evidence.coverage(claim.around, sentence.reach)
            if match is not Match.SAME and not (match is Match.UNKNOWN and related >= ENOUGH):
                continue
            stated = other_value(claim, sentence, self.echo)
            if stated is None:
                continue
            attribute = self._attribute(claim, sentence)
            # Prose names many things about one subject; only a sentence that says little else is about this.
            further = sentence.stems - claim.sought - self.echo - claim.stems - stated.stems
            is_minimal = len(further) <= MINIMAL
            is_named = attribute >= SAME_ATTRIBUTE and (is_minimal or bool(claim.quantities))
            if is_named or (stated.is_distinctive and match is Match.SAME and is_minimal):
                found.append(Against(sentence, stated.text, stated.stems, attribute))
        return sorted(found, key=lambda each: -each.attribute)

    def _check_clause(self, claim: Claim) -> Finding:
        """How much of a clause one sentence says, weighted by how telling each word is."""
        wanted = frozenset(stem for stem in claim.stems if not stem.isdigit()) or claim.stems
        fresh = wanted - self.echo
        wanted = fresh if len(fresh) > 1 else wanted
        if len(wanted) < FEW_WORDS:
            wanted |= claim.around  # "acquired" between two names says something only together with them
        near = self._nearest(wanted)
        scored = [(self.evidence.coverage(wanted, sentence.reach), sentence) for sentence in near]
        scored.sort(key=lambda pair: -pair[0])
        best, sentence = scored[0] if scored else (0.0, None)
        if sentence is None or best < TOO_LITTLE:
            return without_evidence(claim, SupportState.ABSENT, "clause in no chunk")
        if best >= ENOUGH:
            return self._check_said(claim, wanted, [pair for pair in scored if pair[0] >= ENOUGH])
        together = frozenset[str]().union(*(each.reach for _, each in scored[:TOGETHER]))
        if self.evidence.coverage(wanted, together) >= ENOUGH_TOGETHER:
            rule = "clause put together from sentences"
            return Finding(support=support_of(claim, SupportState.ENTAILED, rule, sentence), is_sure=False)
        rule = "clause is there only in part"
        return Finding(support=support_of(claim, SupportState.UNCLEAR, rule, sentence))

    def _check_said(
        self, claim: Claim, wanted: frozenset[str], scored: Sequence[tuple[float, Sentence]]
    ) -> Finding:
        """Sentences say the clause: about the same subject, and without denying it?"""
        hits = [Hit(sentence, self._match(claim, sentence), share) for share, sentence in scored]
        best = hits[0]
        own = [hit for hit in hits if hit.match is not Match.RIVAL or is_quoted(claim, hit.sentence)]
        if not own:
            borrowed = tuple(sorted({hit.sentence.position for hit in hits}))
            rule = "clause stands with another subject"
            support = support_of(claim, SupportState.ABSENT, rule, best.sentence)
            return Finding(support=support, borrowed_from=borrowed)
        same = [hit for hit in own if not differs(claim, wanted, hit.sentence)]
        if same:
            return entailed_by(claim, same, "clause says the same")
        if own[0].score < ENOUGH_TO_DENY:
            rule = "negation may differ"
            return Finding(support=support_of(claim, SupportState.UNCLEAR, rule, own[0].sentence))
        stated = " ".join(own[0].sentence.text.split())[:STATED]
        support = support_of(claim, SupportState.CONTRADICTED, "negation differs", own[0].sentence, stated)
        return Finding(support=support)


def _is_converted(claim: Claim, hits: Sequence[Hit]) -> bool:
    """Whether no sentence states the value in the answer's own unit."""
    own = [quantity for quantity in claim.quantities if quantity.low and quantity.bare]
    return bool(own) and not any(
        any(is_same_value(q, other) and is_same_number(q, other) for other in hit.sentence.quantities)
        for q in own
        for hit in hits
    )


def _halves(code: str) -> frozenset[str]:
    """The stems of letters and digits of a code, where it is made of just these two."""
    found = re.fullmatch(r"([^\W\d_]+)(\d+)", code)
    return frozenset((stem(found[1]), found[2])) if found else frozenset((code,))
