"""Whom a sentence is about, compared with whom a span is about: the same, nobody in particular, or a rival.

A value in a sentence about a sibling ("the Osprey gateway" for "the Kestrel gateway") is a trap, no support.
"""

from enum import Enum

from ragblame.attribution.verdicts.claims import Claim
from ragblame.attribution.verdicts.evidence import Evidence, Sentence
from ragblame.records import SpanKind


class Match(Enum):
    """Who a sentence is about, compared with whom the span is about."""

    SAME = "same"
    LOOSE = "loose"  # a part of the name is there, or the chunk has it elsewhere
    UNKNOWN = "unknown"  # nobody is named who tells
    OTHER = "other"
    RIVAL = "rival"  # shares the name and is another thing: the sibling trap


def compare_subjects(claim: Claim, sentence: Sentence, evidence: Evidence) -> Match:
    """Who ``sentence`` is about, compared with whom the span of ``claim`` is about."""
    subject = claim.subject
    if subject is None:
        return Match.UNKNOWN
    about = sentence.subject
    named = sentence.entities if about is None else (*sentence.entities, about)
    # a word that the value itself brings along ("the Osprey gateway") does not name the subject
    is_value = claim.is_value or claim.span.kind is not SpanKind.CLAUSE
    brings_head = is_value and subject.head in claim.stems and not subject.stems <= claim.stems
    is_named = not brings_head or any(subject.stems <= each.stems for each in named)
    if subject.stems <= sentence.reach and is_named:
        return Match.SAME
    names = frozenset(subject.names)
    if names & sentence.reach:
        is_rival = any(subject.is_rival(each) and not set(each.names) & claim.stems for each in named)
        return Match.RIVAL if is_rival else Match.LOOSE
    if names & evidence.stems_of.get(sentence.position, frozenset()):
        return Match.LOOSE
    is_foreign = about is not None and not about.stems & claim.said
    # A head noun in common ("Osprey gateway") is a parallel, not a mention.
    is_parallel = subject.head is not None and any(subject.head == each.head for each in named)
    if claim.is_asked and is_foreign:
        return Match.OTHER
    return Match.OTHER if is_parallel and (claim.is_asked or claim.is_named) else Match.UNKNOWN
