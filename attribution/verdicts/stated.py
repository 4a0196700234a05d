"""What a sentence states in place of a claim's value: another number of the kind, another name of the shape.

Kept apart from the rules, because "could this be the value of the same attribute" is a question of form:
unit, digits, capitals, hyphens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from ragblame.attribution.verdicts.claims import Claim, noun_behind
from ragblame.attribution.verdicts.evidence import Sentence
from ragblame.attribution.verdicts.normalise import Word, words
from ragblame.attribution.verdicts.quantities import Quantity
from ragblame.attribution.verdicts.same_value import is_same_kind, is_same_value, may_be_same_value

_CALENDAR = frozenset(
    ("january", "february", "march", "april", "may", "june", "july", "august", "september", "october",
     "november", "december", "monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Stated:
    """A value that stands where the claim's should."""

    text: str
    stems: frozenset[str]
    is_distinctive: bool  # of a form hardly met by chance: a unit, a decimal, the end of the sentence


def holds(claim: Claim, sentence: Sentence) -> bool:
    """Whether a sentence holds every quantity of a claim."""
    return all(
        any(is_same_value(wanted, q, tolerance=claim.tolerance) for q in sentence.quantities)
        or _is_spaced(wanted, sentence)
        for wanted in claim.quantities
    )


def _is_spaced(wanted: Quantity, sentence: Sentence) -> bool:
    """Whether a name with a number in it stands there in two words: "PlayStation3" is "PlayStation 3"."""
    return bool(wanted.code) and any(
        left.folded.isalpha() and left.folded + right.folded == wanted.code
        for left, right in pairwise(sentence.items)
    )


def in_doubt(claim: Claim, sentence: Sentence) -> str | None:
    """Why a sentence may hold the claim's quantities in another form; None: it holds them, or others."""
    reason = None
    for wanted in claim.quantities:
        if any(is_same_value(wanted, q, tolerance=claim.tolerance) for q in sentence.quantities):
            continue
        doubts = [doubt for q in sentence.quantities if (doubt := may_be_same_value(wanted, q))]
        if not doubts:
            return None
        reason = doubts[0]
    return reason


def other_value(claim: Claim, sentence: Sentence, echo: frozenset[str]) -> Stated | None:
    """The value that a sentence states instead; None when it states the claim's, or none of the kind.

    ``echo``: stems of the question, which are no values.
    """
    if claim.quantities:
        if holds(claim, sentence) or in_doubt(claim, sentence) is not None:
            return None
        return _other_quantity(claim, sentence)
    return None if claim.stems <= sentence.stems else _other_words(claim, sentence, echo)


def keys(quantity: Quantity) -> Iterator[tuple[object, ...]]:
    """Under what a quantity is filed: equal values share at least one key."""
    if quantity.code:
        yield "code", quantity.code
        return
    if any(quantity.date):
        year, month, day = quantity.date
        yield "number", f"{float(year):.6g}"
        yield "month", month
        yield "day", month, day
        return
    yield "number", f"{quantity.bare:.6g}"
    yield "base", f"{quantity.low:.6g}"
    if quantity.dimension == "clock":
        yield "clock", quantity.low % 720


def _other_quantity(claim: Claim, sentence: Sentence) -> Stated | None:
    wanted = claim.quantities[0]
    for quantity in sentence.quantities:
        if is_same_value(wanted, quantity, tolerance=claim.tolerance) or not is_same_kind(wanted, quantity):
            continue
        counted = noun_behind([word for word in sentence.items if word.start >= quantity.end])
        if not wanted.dimension and claim.counted not in (None, counted):
            continue  # 3 servers do not contradict 5 people
        is_same_decimal = "." in wanted.text and wanted.shape == quantity.shape
        is_distinctive = bool(wanted.dimension) or claim.counted is not None or is_same_decimal
        return Stated(quantity.text, frozenset(word.stem for word in words(quantity.text)), is_distinctive)
    return None


def _other_words(claim: Claim, sentence: Sentence, echo: frozenset[str]) -> Stated | None:
    """A run of words that could stand for the claim's: as many, capitals and hyphens in the same places."""
    size = len(claim.items)
    if not size:
        return None
    shape = _shape(claim.items, claim.text, -claim.items[0].start)
    known = echo | claim.around | claim.subject_stems
    for at in range(len(sentence.items) - size, 0, -1):
        run = sentence.items[at : at + size]
        stems = frozenset(word.stem for word in run)
        if stems & known or stems == claim.stems or not all(word.is_content for word in run):
            continue
        if any(word.folded in _CALENDAR for word in run) != any(w.folded in _CALENDAR for w in claim.items):
            continue  # "in August" is no other place
        if _shape(run, sentence.text) != shape:
            continue
        end = at + size
        is_last = end == len(sentence.items)
        goes_on = not is_last and sentence.items[end].is_capital
        is_led = not sentence.items[at - 1].is_content
        is_name = any(word.is_capital for word in run)
        if "-" in shape or (is_led and not goes_on and (is_name or is_last)):
            return Stated(sentence.text[run[0].start : run[-1].end], stems, is_last)
    return None


def _shape(items: tuple[Word, ...], text: str, shift: int = 0) -> str:
    """The form of a few words: "Maya Lind" is "X X", "coral-lynx" is "x-x"."""
    marks = ["0" if word.surface[0].isdigit() else "X" if word.is_capital else "x" for word in items]
    for index, (before, after) in enumerate(pairwise(items)):
        marks[index] += text[before.end + shift : after.start + shift]
    return "".join(marks)
