"""The masked form of every text of one trace: what one of them shows to be a secret is masked in all.

A rule that fails on a text masks it whole: nobody can say what is in it. Masks keep the length in code
points, and white space, so that offsets, alignment and line breaks stay what they were.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from ragblame.plugin.counters import counters
from ragblame.trace_records import MASK

Span: TypeAlias = tuple[int, int]  # [start, end) in code points
Rule: TypeAlias = Callable[[str], Iterable[Span]]
OwnRule: TypeAlias = Callable[[str], "Sequence[Sequence[int]] | str"]

OWN: Final = "own rule"  # the name of what the host's function found
_LEAST_REPEATED: Final = 5  # code points: a shorter value may be any word
_SURE: Final = 8  # code points from which a value is masked inside longer words too
_MAX_LOOKED_FOR: Final = 64  # values that are searched one by one; more are looked up by their beginnings
_CUT_TAIL: Final = 256  # code points at the end of a text that was cut: a secret cut in half has no shape


@dataclass(slots=True, kw_only=True)
class Masks:
    """The masked form of every text of one trace."""

    rules: Mapping[str, Rule]
    by_context: frozenset[str]  # rules whose finds are secrets because of the words around them
    own: Sequence[OwnRule]
    spans: dict[str, list[Span]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)  # a secret by context -> its rule
    whole: set[str] = field(default_factory=set)  # a rule failed on these
    counts: Counter[str] = field(default_factory=Counter)  # by rule, over different texts
    known: dict[str, str] = field(default_factory=dict)

    @property
    def finds_anything(self) -> bool:
        """Whether any text is masked at all."""
        return bool(self.whole) or any(self.spans.values())

    def look(self, text: str, is_cut: bool = False) -> None:
        """Apply the rules to a text, once; ``is_cut``: its end was cut off at capture."""
        spans = self.spans.get(text)
        if spans is None:
            spans = self.spans[text] = []
            try:
                for name, found in self._found(text):
                    spans.append(found)
                    self.counts[name] += 1
                    value = text[found[0] : found[1]].strip()
                    if (name == OWN or name in self.by_context) and len(value) >= _LEAST_REPEATED:
                        self.values[value] = name
            except BaseException as error:  # the host's function may raise anything; this thread must live
                self._fail(text, error)
        if is_cut:
            tail = text[-_CUT_TAIL:]
            spans.append((len(text) - len(tail.split()[-1]) if tail.strip() else len(text), len(text)))

    def _found(self, text: str) -> Iterator[tuple[str, Span]]:
        for name, rule in self.rules.items():
            for span in rule(text):
                yield name, span
        for own in self.own:
            for span in _own_spans(own(text), text):
                yield OWN, span

    def _fail(self, text: str, error: BaseException) -> None:
        self.whole.add(text)
        counters.add("redaction_faults")
        # The message of an exception may quote the text.
        counters.warn(
            "redaction", f"a text was masked whole, because a rule failed on it ({type(error).__name__})"
        )

    def spread(self) -> None:
        """Mask what is known to be a secret in every text, however it is introduced there."""
        if not self.values:
            return
        heads = {value[:_LEAST_REPEATED] for value in self.values}
        for text, spans in self.spans.items():
            if len(self.values) <= _MAX_LOOKED_FOR:
                for value in self.values:
                    spans += _places(text, value)
                continue
            by_head: dict[str, list[str]] = {head: [] for head in heads}
            for value in self.values:
                by_head[value[:_LEAST_REPEATED]].append(value)
            for at in range(len(text) - _LEAST_REPEATED + 1):
                for value in by_head.get(text[at : at + _LEAST_REPEATED], ()):
                    if text.startswith(value, at) and _stands_alone(text, value, at):
                        spans.append((at, at + len(value)))

    def __call__(self, text: str) -> str:
        """The masked form of a text that was looked at."""
        masked = self.known.get(text)
        if masked is None:
            masked = MASK * len(text) if text in self.whole else _mask(text, self.spans.get(text, ()))
            self.known[text] = masked
        return masked


def _own_spans(said: Any, text: str) -> Iterator[Span]:
    """What the host's function said to mask. Raises when that makes no sense."""
    if isinstance(said, str):
        if len(said) != len(text):
            raise ValueError("the text that a redaction function returns must be as long as the one it got")
        yield from _differences(text, said)
        return
    for entry in said:
        start, end = entry
        if not (type(start) is int and type(end) is int and 0 <= start <= end <= len(text)):
            raise ValueError("a redaction function returns ranges [start, end) within the text")
        if start < end:
            yield start, end


def _differences(text: str, said: str) -> Iterator[Span]:
    start = None
    for at, (left, right) in enumerate(zip(text, said, strict=True)):
        # A replacement may happen to equal the letter it replaces; white space is never the secret.
        if left != right:
            start = at if start is None else start
        elif start is not None and not _goes_on(text, said, at):
            yield start, at
            start = None
    if start is not None:
        yield start, len(text)


def _goes_on(text: str, said: str, at: int) -> bool:
    """Whether a replaced stretch continues behind one letter that happens to be the same."""
    return not text[at].isspace() and at + 1 < len(text) and text[at + 1] != said[at + 1]


def _places(text: str, value: str) -> Iterator[Span]:
    at = text.find(value)
    while at >= 0:
        if _stands_alone(text, value, at):
            yield at, at + len(value)
        at = text.find(value, at + 1)


def _stands_alone(text: str, value: str, at: int) -> bool:
    """Whether a value is no part of a longer word; a long one is no chance."""
    before, after = text[max(0, at - 1) : at], text[at + len(value) : at + len(value) + 1]
    return len(value) >= _SURE or not any(char.isascii() and char.isalnum() for char in before + after)


def _mask(text: str, spans: Iterable[Span]) -> str:
    parts: list[str] = []
    at = 0
    for start, end in sorted(spans):
        start = max(start, at)
        if end > start:
            parts += text[at:start], re.sub(r"\S", MASK, text[start:end])
            at = end
    parts.append(text[at:])
    return "".join(parts) if at else text
