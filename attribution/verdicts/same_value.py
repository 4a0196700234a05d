"""Whether two quantities are the same value, of the same kind, or leave it open.

The *same value*: the answer repeats the chunk. The *same kind*: a chunk that states another one contradicts
the answer. Rounding, units left out, ranges and half-known dates are decided here.
"""

import re

from ragblame.attribution.verdicts.normalise import fold
from ragblame.attribution.verdicts.quantities import Quantity


def is_same_value(answer: Quantity, source: Quantity, *, tolerance: float = 1e-6) -> bool:
    """Whether the source says what the answer says; the source may say more (a full date for a year).

    ``tolerance`` is relative, for answers that announce rounding ("about").
    """
    if "date" in (answer.dimension, source.dimension):
        return _is_same_date(answer, source)
    if "code" in (answer.dimension, source.dimension):
        return answer.code == source.code and answer.dimension == source.dimension
    if answer.dimension == "clock" and source.dimension == "clock":
        halves = "m" in fold(answer.text) and "m" in fold(source.text)
        return answer.low == source.low or (not halves and answer.low % 720 == source.low % 720)
    if answer.dimension == source.dimension:
        return _close(answer.low, source.low, tolerance) and _close(answer.high, source.high, tolerance)
    if "" in (answer.dimension, source.dimension) or _are_degrees(answer, source):
        # One side leaves the unit out ("timeout: 90"): the written number decides.
        return _close(answer.bare, source.bare, tolerance)
    return False


def is_same_number(answer: Quantity, source: Quantity) -> bool:
    """Whether two equal values are written with the same number, so that no unit had to be converted."""
    return "" in (answer.dimension, source.dimension) or _close(answer.bare, source.bare, 1e-6)


def is_same_kind(answer: Quantity, source: Quantity) -> bool:
    """Whether both could be the value of one attribute."""
    if answer.dimension != source.dimension:
        return _are_degrees(answer, source)
    if answer.dimension == "code":
        return answer.shape == source.shape
    if answer.dimension == "":
        if (_is_year(answer) and _is_count(source)) or (_is_count(answer) and _is_year(source)):
            return False  # "two" is no other year than 2005
        return ("." in answer.text) == ("." in source.text)
    return True


def may_be_same_value(answer: Quantity, source: Quantity) -> str | None:
    """Why nobody can tell whether both say the same; None when one can. Never true of the same value.

    "1.299" is a thousand or one and a third, by country; "3/5/2024" is in March or in May; "2 GB" may mean
    2048 MB; 7 lies within "5–10" and is not all of it.
    """
    if answer.dimension == source.dimension == "date":
        is_swapped = _swapped(answer) == source.date or _swapped(source) == answer.date
        return "the date may be written in another order" if is_swapped else None
    if answer.dimension != source.dimension:
        return None
    if answer.dimension == "data" and answer.low > 0 and source.low > 0:
        mine, theirs = (_binary(each) for each in (answer, source))
        if any(_close(a, b, 1e-6) for a in (answer.low, mine) for b in (source.low, theirs)):
            return "units of 1000 or of 1024"
    if answer.low == answer.high and source.low <= answer.low <= source.high and source.low < source.high:
        return "a range holds it"
    for one, two in ((answer, source), (source, answer)):
        regrouped = _regrouped(one)
        if regrouped is not None and one.low == one.high and _close(regrouped, two.low, 1e-6):
            return "the number may be written in another notation"
    return None


def _swapped(quantity: Quantity) -> tuple[int, int, int] | None:
    """A date in figures with month and day the other way round, where that is a date too."""
    year, month, day = quantity.date
    is_open = re.fullmatch(r"\d{1,2}[/.-]\d{1,2}[/.-]\d{2,4}", quantity.text) is not None
    return (year, day, month) if is_open and 0 < day <= 12 else None


def _regrouped(quantity: Quantity) -> float | None:
    """The value with a lone separator read the other way: 1.299 as 1299, 1,299 as 1.299; None without one."""
    found = re.search(r"(?<![\d.,])[1-9]\d{0,2}([.,])\d{3}(?![\d.,])", quantity.text)
    if found is None or not quantity.bare:
        return None
    factor = 1e3 if found[1] == "." else 1e-3
    return quantity.low * factor


def _binary(quantity: Quantity) -> float:
    """Bytes when KB, MB and so on mean powers of 1024."""
    found = re.search(r"([kmgtp])b$", quantity.text.lower())
    power = "kmgtp".index(found[1]) + 1 if found else 0
    return quantity.low * (1.024**power)


def _is_year(quantity: Quantity) -> bool:
    return re.fullmatch(r"1[5-9]\d\d|20\d\d", quantity.text) is not None


def _is_count(quantity: Quantity) -> bool:
    return quantity.bare < 100 and not quantity.dimension


def _are_degrees(left: Quantity, right: Quantity) -> bool:
    return {left.dimension, right.dimension} <= {"degree", "celsius", "fahrenheit"} and "degree" in (
        left.dimension,
        right.dimension,
    )


def _is_same_date(answer: Quantity, source: Quantity) -> bool:
    if answer.dimension == source.dimension:
        return all(
            mine in (0, theirs) for mine, theirs in zip(answer.date, source.date, strict=True)
        ) and any(answer.date)
    date, other = (answer, source) if answer.dimension == "date" else (source, answer)
    # A bare year in the answer is contained in a full date of the source; not the other way round.
    return date is source and other.dimension == "" and other.bare == date.date[0] > 0


def _close(left: float, right: float, tolerance: float) -> bool:
    return abs(left - right) <= tolerance * max(abs(left), abs(right), 1e-12)
