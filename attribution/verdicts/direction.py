"""Whether a sentence turns a value round: "fell 12 %" where it rose, "at least 5" where it is at most.

The number is the same and its subject too, so every other rule finds it supported; only the words beside it
differ. Looked at are a few words, and opposites count only where both sides have one.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Final

from ragblame.attribution.verdicts.claims import Claim
from ragblame.attribution.verdicts.evidence import Sentence
from ragblame.attribution.verdicts.quantities import Quantity
from ragblame.attribution.verdicts.same_value import is_same_value
from ragblame.records import SpanKind

NEAR: Final = 4  # words on the left of a value that may say which way it goes
BEHIND: Final = 2  # and on its right
_YEARS: Final = range(1_500, 2_200)  # bare numbers that are years: "in fall 2023" goes nowhere
_BREAKS: Final = frozenset(("and", "but", "while", "whereas", "though", "although", "because", "which", "or"))


class _Axis(StrEnum):
    CHANGE = "change"
    BOUND = "bound"
    TIME = "time"


_MORE: Final = r"(?:more|greater|higher|larger|longer|older|later)"
_LESS: Final = r"(?:less|fewer|lower|smaller|shorter|younger|earlier)"
_NO: Final = r"(?:no|not|never|\w+n't)"
_UP: Final = (
    r"(?:ris(?:es?|en|ing)|rose|increas(?:es?|ed|ing)|grow(?:s|n|ing)?|grew|gain(?:s|ed)?|climb(?:s|ed)?"
    r"|rais(?:es?|ed|ing)|up)"
)
_DOWN: Final = (
    r"(?:fall(?:s|en|ing)?|fell|decreas(?:es?|ed|ing)|drop(?:s|ped|ping)?|declin(?:es?|ed|ing)"
    r"|shr(?:inks?|ank|unk)|reduc(?:es?|ed|ing)|lower(?:s|ed|ing)?|down)"
)
_LINK: Final = r"(?: (?:by|of|to|about|around|nearly|almost|some|an?|the))*"  # from such a verb to its value


def _ways(frame: str, *ways: tuple[_Axis, int, str]) -> tuple[tuple[_Axis, int, re.Pattern[str]], ...]:
    return tuple((axis, sign, re.compile(frame % words)) for axis, sign, words in ways)


# Of the words on the left the last ones count, of those on the right the first; the first that fits decides.
_LEFT: Final = _ways(
    r"(?:^|\s)(?:%s)$",
    (_Axis.BOUND, -1, rf"{_NO} {_MORE} than|{_NO} (?:exceed|exceeding|above|over)"),
    (_Axis.BOUND, 1, rf"{_NO} {_LESS} than|{_NO} (?:below|under)"),
    (_Axis.BOUND, 1, rf"at (?:the )?least|minimum(?: of)?|{_MORE} than|over|above|exceed(?:s|ed|ing)?"),
    (_Axis.BOUND, -1, rf"at (?:the )?most|maximum(?: of)?|{_LESS} than|under|below|up to"),
    (_Axis.TIME, -1, r"before|within|until"),
    (_Axis.TIME, 1, r"after"),
    (_Axis.CHANGE, 1, _UP + _LINK),
    (_Axis.CHANGE, -1, _DOWN + _LINK),
)
_RIGHT: Final = _ways(
    r"^(?:%s)(?:\s|$)",
    (_Axis.BOUND, 1, rf"or {_MORE}|(?:or|and) (?:above|over|up)|minimum"),
    (_Axis.BOUND, -1, rf"or {_LESS}|(?:or|and) (?:below|under)|maximum"),
    (_Axis.CHANGE, 1, r"(?:\w+ )?(?:increase|rise|gain|growth|higher)"),
    (_Axis.CHANGE, -1, r"(?:\w+ )?(?:decrease|drop|decline|fall|reduction|lower)"),
)
_DENIES: Final = re.compile(rf"{_NO}|without|cannot|neither|nor|none")


def is_turned(claim: Claim, sentence: Sentence) -> bool:
    """Whether a sentence that holds the claim's value says the opposite of its way, wherever it stands.

    A denial elsewhere on either side may turn it back ("did not earn more than"): then nobody can tell.
    """
    if len(claim.quantities) != 1:
        return False
    wanted = claim.quantities[0]
    said = _direction(wanted, claim.before[-NEAR:], claim.after[:BEHIND], _denials(claim.before, claim.after))
    if said is None:
        return False
    axis, sign = said
    items = sentence.items
    denials = _denials(word.folded for word in items)
    is_there = False
    for quantity in sentence.quantities:
        if not is_same_value(wanted, quantity, tolerance=claim.tolerance):
            continue
        is_there = True
        first = bisect_right(items, quantity.start, key=lambda word: word.end)
        last = bisect_left(items, quantity.end, key=lambda word: word.start)
        before = [word.folded for word in items[max(0, first - NEAR) : first]]
        after = [word.folded for word in items[last : last + BEHIND]]
        if _direction(quantity, before, after, denials) != (axis, -sign):
            return False
    return is_there


def _denials(*sides: Iterable[str]) -> int:
    return sum(_DENIES.fullmatch(word) is not None for side in sides for word in side)


def _direction(
    value: Quantity, before: Sequence[str], after: Sequence[str], denials: int
) -> tuple[_Axis, int] | None:
    """On which axis the words beside a value point which way; None: on none, or nobody can tell.

    ``denials``: how many stand in all that was said; more than the found words hold leave it open.
    """
    left = " ".join(reversed(list(_until_break(reversed(before)))))
    right = " ".join(after if after and after[0] in ("or", "and") else _until_break(after))
    is_date = value.kind is SpanKind.DATE or value.dimension == "decade"
    is_year = not value.dimension and value.low in _YEARS and value.text.isdigit()
    sides = [(left, entry) for entry in _LEFT] + [(right, entry) for entry in _RIGHT]
    for side, (axis, sign, pattern) in sides:
        found = pattern.search(side)
        if found is None:
            continue
        if axis is _Axis.CHANGE and (is_date or is_year):
            return None
        if axis is _Axis.TIME and not (is_date or is_year or value.dimension == "time"):
            return None
        return (axis, sign) if denials == _denials(found[0].split()) else None
    return None


def _until_break(words: Iterable[str]) -> Iterator[str]:
    """Words up to a conjunction or another number."""
    for word in words:
        if word in _BREAKS or word[0].isdigit():
            return
        yield word
