"""Makes words comparable: folded, lightly stemmed, with their place, so that support never hangs on spelling.

Deliberately small and without language models: everything here is a table or a rule one can read. English
function words are known; any other language is compared word by word, and scripts without spaces by
character pairs.
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

_WORD = re.compile(r"[^\W_]+(?:[’'`][^\W\d_]+)*")
_QUOTES = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"', "–": "-", "—": "-", "−": "-"})
_UNSPACED = re.compile(
    r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)


def _table(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


STOP_WORDS = _table("""
    a about above across after again against all also although always am an and any anyone anything
    are aren't as at be because been before being below between both but by can could did do does
    doing done down during each either else etc even ever every few finally firstly for from further
    furthermore had has have having he hence her here hers herself him himself his how however i if
    in instead into is it its itself just let like likely made make makes many may me meanwhile
    might mine more moreover most much must my myself of off often on once one only onto or other
    others our ours out over own per perhaps rather same secondly shall she should since so some
    someone something such than that the their theirs them themselves then there therefore these
    they this those though through thus to together too toward towards under until up upon us use
    used uses using very via was we well were what when where whether which while who whom whose why
    will with within would yes you your yours
""")
# Words in which an answer talks about itself and its sources: they claim nothing about the world.
META_WORDS = _table("""
    according additionally answer answers based below conclusion context contexts document documents
    follow following follows given guidelines help helps here's hope important information mention
    mentioned mentions note overall passage passages please provide provided provides question
    remember response step steps summary sure text
""")
# Beside the English ones those of other languages that are no English words. French "ne" is left to "pas", so
# that one negation counts once; Italian "non" is an English prefix, see ``pieces``.
NEGATIONS = _table("""
    no not never none neither nor nothing nobody nowhere cannot
    nicht kein keine keinen keinem keiner keines nie niemals nichts niemand
    niet geen nooit niets
    pas jamais aucun aucune
    nunca jamas ningun ninguno ninguna tampoco nao nenhum nenhuma nessuno nessuna
    ikke aldri inte aldrig ingen inga
    не нет нельзя никогда ничего никто
    δεν οχι μην ποτε
    لا ولا لم لن ليس
    לא אין אינו ואינו אינה
    नही नहीं
    ない せん 不是 不能 不会 不會 没有 沒有
""")
PERSONAL_PRONOUNS = _table("it its it's he his she her they their them")
_SUFFIXES = (
    ("ational", "ate"), ("ization", "ize"), ("isation", "ize"), ("ingly", ""), ("edly", ""), ("ments", ""),
    ("ment", ""), ("nesses", ""), ("ness", ""), ("ations", "ate"), ("ation", "ate"), ("ities", "ity"),
    ("sses", "ss"), ("ies", "y"), ("ied", "y"), ("ing", ""), ("ers", ""), ("ed", ""), ("er", ""), ("ly", ""),
    ("es", ""), ("s", ""),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Word:
    """One word with its place in the text it came from."""

    surface: str
    folded: str  # compatibility-folded, case-folded, without accents
    stem: str
    start: int  # code points
    end: int

    @property
    def is_content(self) -> bool:
        """Whether the word can carry a claim."""
        return self.folded not in STOP_WORDS and self.folded not in META_WORDS and not self.is_negation

    @property
    def is_negation(self) -> bool:
        return self.folded in NEGATIONS or self.folded.endswith("n't")

    @property
    def is_capital(self) -> bool:
        return self.surface[0].isupper()


@lru_cache(maxsize=65_536)
def fold(text: str) -> str:
    """Case, compatibility forms, accents and typographic quotes folded away; the length may change."""
    if text.isascii():
        return text.lower().translate(_QUOTES)
    plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    return "".join(char for char in plain if not unicodedata.combining(char)).translate(_QUOTES)


@lru_cache(maxsize=65_536)
def stem(folded: str) -> str:
    """A light, consistent stem: plural, tense and a few derivations; never shorter than three letters."""
    if len(folded) < 4 or not folded.isalpha():
        return folded
    for suffix, other in _SUFFIXES:
        if folded.endswith(suffix) and len(folded) - len(suffix) + len(other) >= 3:
            if suffix == "s" and folded.endswith("ss"):
                return folded
            root = folded[: len(folded) - len(suffix)] + other
            if suffix in ("ing", "ed", "er", "ers") and len(root) > 3 and root[-1] == root[-2] not in "ls":
                root = root[:-1]
            return root[:-1] if len(root) > 3 and root[-1] == "e" else root
    return folded[:-1] if len(folded) > 4 and folded[-1] == "e" else folded


def words(text: str) -> list[Word]:
    """The words of a text in order; runs of scripts without spaces give one word per character pair."""
    found: list[Word] = []
    for match in _WORD.finditer(text):
        surface = match[0]
        if _UNSPACED.search(surface):
            found.extend(_pairs(surface, match.start()))
            continue
        folded = fold(surface) or surface
        if folded.endswith("'s"):
            folded = folded[:-2]
        found.append(Word(surface, folded, stem(folded), match.start(), match.end()))
    return found


def _pairs(run: str, at: int) -> Iterable[Word]:
    size = min(2, len(run))
    for offset in range(len(run) - size + 1):
        pair = run[offset : offset + size]
        folded = fold(pair) or pair
        yield Word(pair, folded, folded, at + offset, at + offset + size)


def content_stems(text: str) -> frozenset[str]:
    """Stems of the words that can carry a claim."""
    return frozenset(word.stem for word in words(text) if word.is_content)


def is_negated(items: Iterable[Word]) -> bool:
    """Whether an odd number of negations stands among the words; "No. of" and "No. 5" are none."""
    found = list(items)
    after = [*found[1:], None][: len(found)]  # no words, no follower
    return (
        sum(
            word.is_negation
            and not (word.folded == "no" and follower is not None and _is_counted(follower, word))
            for word, follower in zip(found, after, strict=True)
        )
        % 2
        == 1
    )


def _is_counted(follower: Word, word: Word) -> bool:
    """Whether a point stands between "No" and what it counts."""
    return follower.start - word.end == 2 and (follower.folded == "of" or follower.surface[0].isdigit())
