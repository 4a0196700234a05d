"""Reads numbers, units, money, ranges, dates, times and codes out of text: "1,500 ms" equals "1.5 s".

A quantity keeps where it stands. Whether two say the same is for ``same_value.py``.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from ragblame.attribution.verdicts.normalise import fold
from ragblame.attribution.verdicts.units import UNIT, UNITS
from ragblame.records import SpanKind

_MONTHS = "jan feb mar apr may jun jul aug sep oct nov dec"
_MONTH_OF = {name: number for number, name in enumerate(_MONTHS.split(), 1)}
_MONTH = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?"
    r"|oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_UNITS_TO_TWENTY = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty"
)
_TENS = "thirty forty fifty sixty seventy eighty ninety"
_SMALL = {word: value for value, word in enumerate(_UNITS_TO_TWENTY.split())} | {
    word: 10 * tens for tens, word in enumerate(_TENS.split(), 3)
}
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12, "dozen": 12.0}
_SCALES_ABROAD = {  # English "billion" and French "milliard" are the same number
    "tausend": 1e3, "mille": 1e3, "тысяч": 1e3, "тысячи": 1e3, "mio": 1e6, "millionen": 1e6,
    "millions": 1e6, "millones": 1e6, "milioni": 1e6, "milhões": 1e6, "miljoen": 1e6, "миллионов": 1e6,
    "миллиона": 1e6, "mrd": 1e9, "milliarden": 1e9, "milliards": 1e9, "miljard": 1e9, "миллиардов": 1e9,
}  # fmt: skip
# Months of other languages as they stand in a date, January first, without those spelled as in English.
_ABROAD = (
    "januar februar märz april mai juni juli august september oktober november dezember",
    "janvier février mars avril mai juin juillet août septembre octobre novembre décembre",
    "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
    "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
    "janeiro fevereiro março abril maio junho julho agosto setembro outubro novembro dezembro",
    "januari februari maart april mei juni juli augustus september oktober november december",
    "января февраля марта апреля мая июня июля августа сентября октября ноября декабря",
    "ιανουαρίου φεβρουαρίου μαρτίου απριλίου μαΐου ιουνίου ιουλίου αυγούστου σεπτεμβρίου οκτωβρίου "
    "νοεμβρίου δεκεμβρίου",
)
_MONTH_ABROAD = {name: number for row in _ABROAD for number, name in enumerate(row.split(), 1)}
_ENGLISH_TOO = frozenset(("april", "august", "september", "november"))
_MARKS = {"½": 0.5, "¼": 0.25, "¾": 0.75, "⅓": 1 / 3, "⅔": 2 / 3}
_SHORT_SCALES = {"k": 1e3, "m": 1e6, "mn": 1e6, "bn": 1e9, "b": 1e9, "tn": 1e12}
MAX_QUANTITIES = 200  # read from one text, which is a sentence: bounds the work on a page of digits
MAX_DIGITS = 40  # a longer run of digits is compared as a code, not as a number
_CURRENCIES = {
    "$": "usd", "us$": "usd", "ca$": "cad", "au$": "aud", "nz$": "nzd", "hk$": "hkd", "€": "eur", "£": "gbp",
    "¥": "jpy", "₹": "inr", "rs": "inr", "₽": "rub", "₩": "krw", "₺": "try", "₴": "uah", "₪": "ils",
}  # fmt: skip
_CODES = ("usd", "eur", "gbp", "chf", "jpy", "inr", "cad", "aud", "nzd", "hkd", "cny", "sek", "nok", "dkk",
          "pln", "brl", "rub", "krw")  # fmt: skip
_CURRENCIES |= {code: code for code in _CODES}
# Scripts without spaces: a letter of theirs beside a digit is another word.
_CJK = r"\u3005-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7af"
_BEHIND_NO_WORD = rf"(?<!(?![{_CJK}])[\w.])"
_BEFORE_NO_WORD = rf"(?!(?![{_CJK}])\w)"
# Groups apart by a plain space are one number only where something else says so: a decimal comma, a currency.
_DIGITS = (
    r"\d{1,3}(?:[\u00a0\u202f\u2009]\d{3})+(?:,\d{1,2}(?!\d))?|\d{1,3}(?:['’]\d{3})+(?:[.,]\d+)?"
    r"|\d{1,3}(?:\ \d{3})+(?:,\d{1,2}(?![\d,])|(?=\s?[€₽]|\ (?:EUR|zł|руб)))|\d{1,3}(?:\ \d{3}){2,}(?!\d)"
    r"|\d+(?:[.,]\d+)*"
)
_CJK_UNITS = {
    name: unit
    for unit, names in {
        "years": "年間 年以上 年 년", "months": "か月 ヶ月 カ月 个月 個月 개월", "weeks": "週間 周 주",
        "days": "日間 日 天 일", "hours": "時間 小时 小時 시간", "minutes": "分間 分钟 分鐘 分 분",
        "seconds": "秒間 秒 초", "yen": "円", "cny": "元", "krw": "원",
    }.items()
    for name in names.split()
}  # fmt: skip
_CJK_UNIT = "|".join(sorted(_CJK_UNITS, key=len, reverse=True))
_ALL_ABROAD = "|".join(sorted(_MONTH_ABROAD, key=len, reverse=True))
MONTHS_ABROAD = "|".join(sorted({*_MONTH_ABROAD} - _ENGLISH_TOO, key=len, reverse=True))
_OWN_SCRIPT = "|".join(name for name in _MONTH_ABROAD if name[0] > "\u0370")
_CODE = "|".join(_CODES).upper()  # "try" and "rub" are English words
_SPELLED = "|".join(sorted((*_SMALL, *_SCALES), key=len, reverse=True))
_SCALE_ABROAD = "|".join(sorted(_SCALES_ABROAD, key=len, reverse=True))
_PATTERN = re.compile(
    rf"""
      (?P<cjk_date>(?<!\d)\d{{4}}[年년](?:\s?\d{{1,2}}[月월](?:\s?\d{{1,2}}[日일])?)?
        |(?<!\d)\d{{1,2}}[月월]\s?\d{{1,2}}[日일])
    | (?P<cjk>(?<![\w.,])(?:\d+(?:[.,]\d+)*)\s?(?:{_CJK_UNIT})|(?<=[{_CJK}])\d+(?:[.,]\d+)*\s?(?:{_CJK_UNIT}))
    | (?P<iso>\b\d{{4}}-\d{{2}}(?:-\d{{2}})?\b(?![-.]\d))
    | (?P<day_month>\b\d{{1,2}}(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?:\s?,?\s+\d{{4}})?\b)
    | (?P<abroad>\b\d{{1,2}}(?:\.\s?|\s+de\s+)(?:{MONTHS_ABROAD})(?:\s+(?:del?\s+)?\d{{4}})?\b
        |\b\d{{1,2}}(?:\.\s?|\s+(?:de\s+)?)(?:{_ALL_ABROAD})\s+(?:del?\s+)?\d{{4}}\b
        |\b\d{{1,2}}\s+(?:{_OWN_SCRIPT})\b)
    | (?P<month_day>\b{_MONTH}\s+\d{{1,2}}(?:st|nd|rd|th)?(?:\s?,?\s+\d{{4}})?\b(?![:.]\d))
    | (?P<month_year>\b{_MONTH},?\s+(?:of\s+)?\d{{4}}\b)
    | (?P<slash>\b\d{{1,2}}(?:[/.]\d{{1,2}}[/.](?:\d{{4}}|\d{{2}})|-\d{{1,2}}-\d{{4}})\b)
    | (?P<clock>\b(?:\d{{1,2}}:\d{{2}}(?::\d{{2}})?(?:\s*[ap]\.?m\b\.?)?|\d{{1,2}}\s*[ap]\.?m\b\.?
        |\d{{1,2}}(?:[.:]\d{{2}})?\s?uhr\b|\d{{1,2}}\s?h\s?\d{{2}}\b))
    | (?P<phone>\+?\(?\b\d{{3}}\)?[-.\s]\d{{3}}[-.\s]\d{{4}}\b)
    | (?P<code>(?<![\w.])[A-Za-z][A-Za-z]*+(?:[-_.]?\d+[A-Za-z]*+)+(?:[-_.][A-Za-z0-9]+)*+(?!\w)
        | (?<![\w.])\d+(?:\.\d+|-\d+){{2,}}+(?!\w))
    | (?P<decade>\b\d{{3}}0s\b)
    | (?P<sign>(?<![\w.)\]])[-−])?(?P<money>(?<!\w)(?:(?:US|CA|AU|NZ|HK)\$\s?|(?-i:{_CODE}|Rs\.?)\s)
        |[$€£¥₹₽₩₺₴₪]\s?)?
        (?P<low>{_BEHIND_NO_WORD}(?:{_DIGITS})|(?<!\w)[½¼¾⅓⅔])
        (?P<fraction>\s?\d/\d+|/\d+(?!\d)|\s?[½¼¾⅓⅔])?
        (?P<ordinal>(?:st|nd|rd|th)\b)?
        (?:\s?(?:-|–|—|\bto\b)\s?[$€£]?(?P<high>{_DIGITS})(?![\w/]*[/:]\d))?
        (?:\s?(?P<scale>(?:{_SCALE_ABROAD})\b\.?|hundred|thousand|million|billion|trillion|dozen|bn|mn|tn
            |[kKmMbB](?![\w/])))?
        (?:\s?-?(?!(?-i:v)\s\d)(?P<unit>{UNIT}){_BEFORE_NO_WORD})?
        (?:\s?(?:/|\bper\b)\s?(?P<per>{UNIT})(?!\w))?{_BEFORE_NO_WORD}
    | (?P<spelled>\b(?:{_SPELLED})(?:(?:[\s-]|\s+and\s+)(?:{_SPELLED}))*\b)
        (?:[\s-](?P<spelled_unit>{UNIT})(?!\w))?
    """,
    re.IGNORECASE | re.VERBOSE,
)


@dataclass(frozen=True, slots=True)
class Quantity:
    """One value and where it stands."""

    text: str
    start: int  # code points
    end: int
    kind: SpanKind  # number or date
    dimension: str  # "" for a bare number, else "time", "money usd", "date", "clock", "code", ...
    low: float = 0.0  # in the base unit of the dimension; minutes of the day for a clock
    high: float = 0.0  # equals low unless a range
    bare: float = 0.0  # the number as written, before its unit
    date: tuple[int, int, int] = (0, 0, 0)  # year, month, day; 0 where not said
    code: str = ""  # folded, separators removed

    @property
    def shape(self) -> str:
        """Digits as 0, letters as a: bare numbers of one shape are likely values of one attribute."""
        return re.sub(r"[^\W\d_]+", "a", re.sub(r"\d", "0", self.text.strip().lower()))


def find_quantities(text: str) -> list[Quantity]:
    """Quantities of a sentence in reading order; offsets are code points and never overlap."""
    matches = islice(_PATTERN.finditer(text), MAX_QUANTITIES)
    return [found for match in matches if (found := _read(match)) is not None]


def _read(match: re.Match[str]) -> Quantity | None:
    text = match[0].rstrip()
    start, end = match.start(), match.start() + len(text)
    name = _form(match)

    def number(low: float, high: float, unit: str | None, per: str | None = None) -> Quantity:
        dimension, factor = ("", 1.0) if unit is None else UNITS[unit.lower()]
        if per is not None:
            other, divisor = UNITS[per.lower()]
            dimension, factor = f"{dimension}/{other}", factor / divisor
        return quantity(dimension, low * factor, high * factor, bare=low)

    def quantity(
        dimension: str, low: float = 0.0, high: float = 0.0, *, bare: float = 0.0, code: str = ""
    ) -> Quantity:
        return Quantity(text, start, end, SpanKind.NUMBER, dimension, low, high, bare, (0, 0, 0), code)

    if name in ("iso", "day_month", "month_day", "month_year", "slash", "abroad", "cjk_date"):
        return Quantity(text, start, end, SpanKind.DATE, "date", date=_read_date(name, text))
    if name == "clock":
        minutes = _read_clock(text)
        return Quantity(text, start, end, SpanKind.DATE, "clock", minutes, minutes)
    if name in ("phone", "code") or (name == "low" and len(match["low"]) > MAX_DIGITS):
        # Separators between digits tell addresses and versions apart; in telephone numbers they are taste.
        taste = r"[\W_]" if name == "phone" else r"(?<=[^\d])[-_\s]|[-_\s](?=[^\d])"
        return quantity("code", code=re.sub(taste, "", fold(text)))
    if name == "decade":
        return quantity("decade", float(text[:-1]), float(text[:-1]), bare=float(text[:-1]))
    if name == "cjk":
        digits, unit = _split_cjk(text)
        return number(digits, digits, _CJK_UNITS[unit])
    if name == "spelled":
        value, unit = _read_spelled(match["spelled"]), match["spelled_unit"]
        if fold(match["spelled"]) in ("one", "dozen", "zero") and unit is None:
            return None  # "one" is a pronoun far more often than a number
        return number(value, value, unit)
    return _read_number(match, number, quantity)


def _form(match: re.Match[str]) -> str:
    for name in (
        *(
            "cjk_date",
            "cjk",
            "iso",
            "day_month",
            "abroad",
            "month_day",
            "month_year",
            "slash",
            "clock",
            "phone",
        ),
        *("code", "decade"),
    ):
        if match[name] is not None:
            return name
    return "low" if match["low"] is not None else "spelled"


def _read_number(
    match: re.Match[str], number: Callable[..., Quantity], quantity: Callable[..., Quantity]
) -> Quantity:
    low = _read_digits(match["low"])
    if match["sign"] is not None:
        low = -low
    if match["fraction"] is not None:
        low = _with_fraction(low, match["fraction"])
    is_money, scale = match["money"] is not None, match["scale"]
    if scale in ("m", "b") and not is_money:
        return number(low, low, "m" if scale == "m" else None)  # "5 m" is five metres; "$5m" five million
    factor = 1.0
    if scale is not None:
        word = scale.lower().rstrip(".")
        factor = _SCALES.get(word) or _SCALES_ABROAD.get(word) or _SHORT_SCALES[word]
    high = low
    if match["high"] is not None and len(match["high"]) <= MAX_DIGITS:
        high = max(low, _read_digits(match["high"]))
    low, high = low * factor, high * factor
    if match["ordinal"] is not None:
        return quantity("ordinal", low, high, bare=low)
    if is_money:
        currency = _CURRENCIES[match["money"].strip().rstrip(".").lower()]
        return quantity(f"money {currency}", low, high, bare=low)
    return number(low, high, match["unit"], match["per"])


def _read_digits(text: str) -> float:
    text = re.sub(r"[\s'’]", "", text)
    if text in _MARKS:
        return _MARKS[text]
    if re.fullmatch(r"\d{1,2}(?:,\d{2})+,\d{3}", text):
        return float(text.replace(",", ""))  # Indian groups: 1,00,000
    commas, dots = text.count(","), text.count(".")
    groups = re.split(r"[.,]", text)
    in_threes = len(groups) > 1 and 0 < len(groups[0]) <= 3 and all(len(group) == 3 for group in groups[1:])
    if commas and dots:
        decimal = max(text.rfind(","), text.rfind("."))
        return float(re.sub(r"[.,]", "", text[:decimal]) + "." + text[decimal + 1 :])
    if commas:
        return float("".join(groups)) if in_threes else float(".".join((groups[0], "".join(groups[1:]))))
    if dots > 1:
        return float("".join(groups))
    return float(text)


def _split_cjk(text: str) -> tuple[float, str]:
    digits = re.match(r"[\d.,]+", text)
    assert digits is not None
    return _read_digits(digits[0]), text[digits.end() :].strip()


def _with_fraction(whole: float, fraction: str) -> float:
    fraction = fraction.strip()
    if fraction in _MARKS:
        return whole + _MARKS[fraction]
    over, _, under = fraction.partition("/")
    if not float(under):
        return whole
    return whole + float(over) / float(under) if over else whole / float(under)


def _read_spelled(text: str) -> float:
    total = current = 0.0
    for word in re.split(r"[\s-]+", fold(text)):
        if word == "and":
            continue
        if word in _SMALL:
            current += _SMALL[word]
        elif _SCALES[word] in (100.0, 12.0):
            current = (current or 1.0) * _SCALES[word]
        else:
            total, current = total + (current or 1.0) * _SCALES[word], 0.0
    return total + current


def _read_date(name: str, text: str) -> tuple[int, int, int]:
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if name == "iso":
        return (numbers[0], numbers[1], numbers[2] if len(numbers) > 2 else 0)
    if name == "cjk_date":
        return (0, *numbers) if numbers[0] < 1_000 else (*numbers, 0, 0)[:3]  # type: ignore[return-value]
    if name == "abroad":
        word = next(w for w in re.findall(r"[^\W\d_]+", text.lower()) if w in _MONTH_ABROAD)
        return (numbers[1] if len(numbers) > 1 else 0, _MONTH_ABROAD[word], numbers[0])
    if name == "slash":
        day, month, year = numbers
        if month > 12:
            day, month = month, day
        return (year if year > 99 else 2000 + year, month, day)
    letters = re.search(r"(?!st|nd|rd|th|of)[a-z]{3,}", fold(text))
    month = _MONTH_OF.get(letters[0][:3], 0) if letters else 0
    if name == "month_year":
        return (numbers[0], month, 0)
    return (numbers[1] if len(numbers) > 1 else 0, month, numbers[0])


def _read_clock(text: str) -> float:
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    hour = numbers[0] % 24
    folded = fold(text)
    if "p" in folded and hour < 12:
        hour += 12
    elif "a" in folded and hour == 12:
        hour = 0
    return float(hour * 60 + (numbers[1] if len(numbers) > 1 else 0))
