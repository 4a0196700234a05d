"""Finds personal data in text: e-mail addresses, phone numbers, payment cards and bank accounts (IBAN).

Each rule yields ``[start, end)`` in code points. Cards and accounts carry check digits, so a random number is
rarely taken for one; phone numbers carry none, so only their usual written forms are recognised.
"""

import re
from collections.abc import Iterator
from typing import Final

_LOCAL: Final = re.compile(r"[\w.%+\-']{1,64}")  # read backwards from "@"
_DOMAIN: Final = re.compile(r"(?:[^\W_](?:[\w\-]{0,61}[^\W_])?\.)+[^\W\d_]{2,24}")

# Searches begin with a plain digit, which scans fast; what must not stand before it is looked at afterwards.
_DIGITS: Final = re.compile(r"\d[\d \u00a0-]{11,}\d")
_CARD: Final = re.compile(
    r"(?<!\d)(?:\d{4}([ \u00a0-])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ \u00a0-])\d{6}\2\d{4,5}|\d{13,19})(?!\d)"
)
_CARD_FIRST: Final = "23456"

_IBAN: Final = re.compile(
    r"[A-Z]{2}\d{2}(?:[ \u00a0]?[A-Z0-9]{4}){2,7}(?:[ \u00a0]?[A-Z0-9]{1,3})?(?![A-Za-z0-9])"
)
_SHORTEST_IBAN: Final = 15

_NUMBER: Final = re.compile(r"\d[\d()\u00a0 ./-]{5,}\d")
_GROUP: Final = re.compile(r"\d+")
_END: Final = r"(?!\w)"
_INTERNATIONAL: Final = re.compile(rf"\(?(?:\+|00[1-9])\d?(?:[\u00a0 ()./-]{{0,2}}\d){{7,14}}{_END}")
_AREA: Final = re.compile(
    rf"\(\d{{2,5}}\)[\u00a0 \-/]?\d{{3,8}}(?:[\u00a0 .\-]\d{{2,6}}){{0,3}}{_END}"
)  # (030) 123456
_TRUNK: Final = re.compile(
    rf"0(?:\d(?:[\u00a0 .]\d{{2}}){{4}}|\d{{1,5}}[\u00a0 /\-]\d{{3,8}}(?:[\u00a0 \-]\d{{2,8}}){{0,3}}){_END}"
)  # 01 23 45 67 89, 030 1234567
_GROUPED: Final = re.compile(rf"(?:1[ .\-])?\d{{3}}[ .\-]\d{{3}}[ .\-]\d{{4}}{_END}")  # 555-123-4567
_SHORTEST_GROUPED: Final = 12


def emails(text: str) -> Iterator[tuple[int, int]]:
    """E-mail addresses."""
    at = text.find("@")
    while at >= 0:
        local = _LOCAL.match(text[max(0, at - 64) : at][::-1])
        domain = _DOMAIN.match(text, at + 1, at + 255) if local is not None else None
        if local is not None and domain is not None:
            yield at - local.end(), domain.end()
        at = text.find("@", at + 1)


def cards(text: str) -> Iterator[tuple[int, int]]:
    """Payment card numbers: 13 to 19 digits with a right Luhn digit."""
    for run in _DIGITS.finditer(text):
        for match in _CARD.finditer(text, run.start(), run.end()):
            digits = [int(char) for char in match[0] if char.isdigit()]
            if 13 <= len(digits) <= 19 and match[0][0] in _CARD_FIRST and _luhn(digits):
                yield match.span()


def ibans(text: str) -> Iterator[tuple[int, int]]:
    """Bank accounts in ISO 13616's form, with the right check digits."""
    for match in _IBAN.finditer(text):
        if match.start() and text[match.start() - 1].isalnum():
            continue
        found = match[0]
        while len(re.sub(r"\s", "", found)) >= _SHORTEST_IBAN:
            if _mod_97(re.sub(r"\s", "", found)) == 1:
                yield match.start(), match.start() + len(found)
                break
            head, gap, _ = found.rpartition(" " if " " in found else "\u00a0")
            if not gap:
                break
            found = head  # a word in capitals behind it looked like one more group


def phones(text: str) -> Iterator[tuple[int, int]]:
    """Phone numbers of 8 to 15 digits: international, or written in groups as people do."""
    for run in _NUMBER.finditer(text):
        if len(run[0]) < _SHORTEST_GROUPED and not _has_start(text[max(0, run.start() - 1) : run.end()]):
            continue  # a date, an amount: most runs end here
        done = run.start()
        for group in _GROUP.finditer(text, run.start(), run.end()):
            if group.start() < done:
                continue
            if group.end() - group.start() == 4 and text[group.start()] != "0":
                continue  # a year, mostly
            before = text[max(0, group.start() - 2) : group.start()]
            lead = next((mark for mark in ("(+", "+", "(") if before.endswith(mark)), "")
            start = group.start() - len(lead)
            if start and (text[start - 1].isalnum() or text[start - 1] in "_-./+,"):
                continue  # the middle of something else
            shape = _shape(lead, group[0])
            match = shape and shape.match(text, start)
            if match and 8 <= sum(map(str.isdigit, match[0])) <= 15:
                yield match.span()
                done = match.end()


def _has_start(run: str) -> bool:
    """Whether anything but a grouped number can begin in a run of digits and the code point before it."""
    return run[0] in "+0" or "(" in run or " 0" in run or (not run[0].isdigit() and run[1] == "0")


def _shape(lead: str, first: str) -> re.Pattern[str] | None:
    """The form that a number with these first digits can have; most numbers can have none."""
    if "+" in lead or (first.startswith("00") and not lead):
        return _INTERNATIONAL
    if lead:
        return _AREA
    if first[0] == "0":
        return _TRUNK
    return _GROUPED if len(first) == 3 or first == "1" else None


def _luhn(digits: list[int]) -> bool:
    doubled = (digit * 2 - 9 * (digit > 4) for digit in digits[-2::-2])
    return (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 and any(digits[1:])


def _mod_97(iban: str) -> int:
    return int("".join(str(int(char, 36)) for char in iban[4:] + iban[:4])) % 97
