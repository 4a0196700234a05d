"""Places in messages: white-space-normalised text with the way back, and which parts are given away."""

import re
from bisect import bisect_right, insort
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Normalised:
    """Text with every white-space run made one space, and the way back."""

    text: str
    starts: list[int]  # of each word in ``text``
    origins: list[int]  # of each word in the original

    @classmethod
    def of(cls, original: str) -> "Normalised":
        """Read a text; the map costs one pass."""
        starts: list[int] = []
        origins: list[int] = []
        at = 0
        words = []
        for match in re.finditer(r"\S+", original):
            starts.append(at)
            origins.append(match.start())
            words.append(match[0])
            at += len(match[0]) + 1
        return cls(" ".join(words), starts, origins)

    def original(self, start: int, end: int) -> tuple[int, int]:
        """Original code points of a part that begins and ends on non-space characters."""
        first = bisect_right(self.starts, start) - 1
        last = bisect_right(self.starts, end - 1) - 1
        return (
            self.origins[first] + start - self.starts[first],
            self.origins[last] + end - self.starts[last],
        )


@dataclass(frozen=True, slots=True)
class Place:
    """A part of one normalised message."""

    message: int
    start: int
    end: int


class Claims:
    """Regions already given to a chunk: another occurrence is preferred as long as there is one."""

    def __init__(self) -> None:
        self._taken: dict[int, list[tuple[int, int]]] = defaultdict(list)

    def is_free(self, place: Place) -> bool:
        """Whether nothing was given away there."""
        taken = self._taken[place.message]
        at = bisect_right(taken, (place.start, place.start))
        before_ok = at == 0 or taken[at - 1][1] <= place.start
        return before_ok and (at == len(taken) or taken[at][0] >= place.end)

    def take(self, place: Place) -> None:
        """Give a free place away."""
        insort(self._taken[place.message], (place.start, place.end))

    def gaps(self, message: int, length: int) -> Iterator[tuple[int, int]]:
        """The free parts of a message."""
        at = 0
        for start, end in self._taken[message]:
            if start > at:
                yield at, start
            at = end
        if at < length:
            yield at, length
