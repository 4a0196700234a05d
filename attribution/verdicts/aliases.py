"""Short forms that the chunks themselves define: "World Health Organization (WHO)".

Only a definition in a chunk counts, and only when its letters are the initials: a short form that nobody
explains may be anybody's.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from ragblame.attribution.verdicts.normalise import content_stems, stem

_LINK = r"(?:of|the|for|and|on|in|de|des|du|der|für|und)"
_LONG = rf"[^\W\d_a-z][\w'’-]*(?:\s+(?:{_LINK}\s+){{0,2}}[^\W\d_a-z][\w'’-]*){{1,7}}"
_SHORT = r"[A-Z][A-Za-z]{1,7}"
_DEFINED = re.compile(rf"\b(?P<long>{_LONG})\s*\(\s*(?P<short>{_SHORT})\s*\)")
_SPELLED_OUT = re.compile(rf"\b(?P<short>{_SHORT})\s*\(\s*(?P<long>{_LONG})\s*\)")
MAX_ALIASES = 50  # of one trace


@dataclass(frozen=True, slots=True)
class Alias:
    """One short form and what it stands for."""

    short: str  # as written
    short_stem: str
    long_stems: frozenset[str]

    def widened(self, stems: frozenset[str], surfaces: frozenset[str]) -> frozenset[str]:
        """The words of a sentence, with the other form beside the one that stands there."""
        if self.short in surfaces:
            return stems | self.long_stems | {self.short_stem}
        return stems | {self.short_stem} if self.long_stems <= stems else stems


def find_aliases(texts: Iterable[str]) -> tuple[Alias, ...]:
    """The short forms that the texts define, in order."""
    found: dict[str, Alias] = {}
    for text in texts:
        if "(" not in text:
            continue
        for pattern in (_DEFINED, _SPELLED_OUT):
            for match in pattern.finditer(text):
                long = _named_part(match["long"], match["short"])
                if long is not None and len(found) < MAX_ALIASES:
                    short = match["short"]
                    alias = Alias(short, stem(short.lower()), content_stems(long))
                    if alias.long_stems:
                        found.setdefault(short, alias)
    return tuple(found.values())


def _named_part(long: str, short: str) -> str | None:
    """The last words of ``long`` whose initials are ``short``: without "The" before the organization."""
    parts = long.split()
    for first in range(len(parts)):
        initials = "".join(part[0] for part in parts[first:] if part[0].isupper())
        if initials.casefold() == short.casefold():
            return " ".join(parts[first:])
    return None
