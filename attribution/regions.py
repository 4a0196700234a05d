"""Which text of the prompt goes when a chunk goes: its own words plus the bullet, number or label before it.

A coalition is scored on the prompt *as if the retriever had not returned the others*, so what is removed must
leave a prompt that a person would have written: no empty bullet, no doubled separator. The rules:

* A chunk takes along the label directly before it: a bullet, ``[3]``, ``3.``, ``passage 2:``,
  ``Document 1 (x):``, ``<doc id="1">`` with its closing tag, on its own line or on the line above. A word
  without a number ("Context:") is an instruction and stays, unless it stands before several chunks alike.
* Chunks with nothing but separators between them form a run. Between two that stay, the separator is the one
  that stood before the later of them; when none stays, the empty line they leave is closed.
* Text that several chunks cover (identical or overlapping places) stays until the last of them is removed, so
  such chunks remain separate players and share the credit.
* Numbers of the chunks that stay are not rewritten, because the answer may cite them.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

_NOUN = (
    r"(?:passage|document|doc|source|chunk|context|excerpt|snippet|result|article|paragraph|section|reference"
    r"|evidence|text|page)"
)
_NUMBERED = (
    rf"(?:[\[(]?{_NOUN}\s*[#№]?\s*[\[(]?\d{{1,4}}[\])]?(?:[ \t]*\([^()\n]{{0,200}}\))?[ \t]*[:.)\]–—-]*[ \t]*"
    r"|[\[(<]\#?\d{1,4}[\])>][.:]?[ \t]*)"
)
_TAG = r"<(?P<tag>document|doc|chunk|passage|source|excerpt|snippet|result|article)\b[^<>\n]{0,200}>[ \t]*"
_LINE_LABEL = re.compile(
    rf"[ \t]*(?:(?:[-*+•‣▪–—]+[ \t]+|\d{{1,4}}[.):][ \t]*|{_NUMBERED})+|{_TAG})", re.IGNORECASE
)
_INNER_LABEL = re.compile(rf"(?:^|(?<=[\s|;,>])){_NUMBERED}\Z", re.IGNORECASE)
_WORDLESS = re.compile(r"(?:[\W_]|</?\w+[^<>]{0,200}>)*")  # separators, rules, tags: nobody's instructions
_KEY = re.compile(r"<?/?\s*([\w#][\w# -]{0,30}?)\s*[:=([>]")


_REACH = 300  # code points before a chunk that are looked at for a label: also bounds the patterns' work
_HEADER_REACH = 2000  # the same for headers of several lines


@dataclass(frozen=True, slots=True, kw_only=True)
class Region:
    """Where the text of one player stands in the full prompt."""

    position: int  # the chunk
    start: int  # code points in the full prompt, the chunk's own text without label
    end: int
    found: tuple[int, int]  # the part of the chunk's text that stands there
    floor: int  # start of the message it stands in: its label never reaches further back
    ceiling: int  # end of that message


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """One stretch of chunk text with its label; several owners when their places overlap."""

    header: int  # where the label begins; == start without one
    start: int
    end: int
    owners: tuple[int, ...]  # player indices
    pieces: tuple[tuple[int, int, int], ...]  # (start, end, owners as a mask) cover [start, end)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Neighbouring units with nothing but separators between them."""

    units: tuple[Unit, ...]
    opening: int  # code points before the first unit that go when no unit stays
    closing: int  # code points after the last unit that go when no unit stays


def remove(prompt: str, runs: Sequence[Run], mask: int) -> str:
    """The prompt with only the players of ``mask`` (bit i = player i); all of them give ``prompt`` itself."""
    parts: list[str] = []
    at = 0
    for run in runs:
        kept = [i for i, unit in enumerate(run.units) if any(mask >> owner & 1 for owner in unit.owners)]
        first, last = run.units[0].header, run.units[-1].end
        parts.append(prompt[at : first if kept else first - run.opening])
        for place, i in enumerate(kept):
            unit = run.units[i]
            separator = run.units[i - 1].end if place else unit.header
            parts.append(prompt[separator : unit.start])
            parts.extend(prompt[start:end] for start, end, owners in unit.pieces if mask & owners)
        at = last if kept else last + run.closing
    parts.append(prompt[at:])
    return "".join(parts)


def build_runs(prompt: str, regions: Sequence[Region]) -> tuple[Run, ...]:
    """Group the regions (player i = ``regions[i]``, by start) into runs that can be removed cleanly."""
    clusters = _cluster(regions)
    runs: list[list[Unit]] = []
    before: tuple[int, Region] | None = None  # end of the previous unit and its first region
    for number, (owners, start, end, pieces) in enumerate(clusters):
        region = regions[owners[0]]
        is_neighbour = before is not None and before[1].floor == region.floor
        floor = before[0] if is_neighbour and before is not None else region.floor
        header = _label_start(prompt, floor, start)
        if is_neighbour:
            first = runs[-1][0]
            lines = _shared_lines(prompt[first_floor(first, regions) : first.start], prompt[floor:start])
            header = min(header, _line_start(prompt, start, lines, floor))
        elif number + 1 < len(clusters):
            following = clusters[number + 1]
            if regions[following[0][0]].floor == region.floor:
                lines = _shared_lines(prompt[floor:start], prompt[end : following[1]])
                header = min(header, _line_start(prompt, start, lines, floor))
        unit = Unit(header=header, start=start, end=end, owners=owners, pieces=pieces)
        if is_neighbour and _WORDLESS.fullmatch(prompt, floor, header):
            runs[-1].append(unit)
        else:
            runs.append([unit])
        before = (end, region)
    return tuple(_close(prompt, units, regions) for units in runs)


def first_floor(unit: Unit, regions: Sequence[Region]) -> int:
    """Where the label of a run's first unit may reach back to."""
    return regions[unit.owners[0]].floor


def _cluster(
    regions: Sequence[Region],
) -> list[tuple[tuple[int, ...], int, int, tuple[tuple[int, int, int], ...]]]:
    """Players whose places overlap, as (owners, start, end, pieces)."""
    groups: list[list[int]] = []
    reach = -1
    for player, region in enumerate(regions):
        if groups and region.start < reach:
            groups[-1].append(player)
        else:
            groups.append([player])
        reach = max(reach, region.end)
    clusters = []
    for owners in groups:
        cuts = sorted({cut for owner in owners for cut in (regions[owner].start, regions[owner].end)})
        pieces = tuple(
            (start, end, sum(1 << o for o in owners if regions[o].start <= start and end <= regions[o].end))
            for start, end in pairwise(cuts)
        )
        clusters.append((tuple(owners), cuts[0], cuts[-1], pieces))
    return clusters


def _label_start(prompt: str, floor: int, start: int) -> int:
    """Start of the label before ``start``: on the same line, else one that fills the line above."""
    floor = max(floor, start - _REACH)
    line = max(floor, prompt.rfind("\n", floor, start) + 1)
    if line < start:
        if _LINE_LABEL.fullmatch(prompt, line, start):
            return line + _indent(prompt[line:start])
        inner = _INNER_LABEL.search(prompt[line:start])
        if inner:
            return line + inner.start()
    if line > floor and not prompt[line:start].strip():
        above = max(floor, prompt.rfind("\n", floor, line - 1) + 1)
        label = prompt[above : line - 1]
        if re.fullmatch(rf"[ \t]*(?:{_NUMBERED}|{_TAG})[ \t]*", label, re.IGNORECASE):
            return above
    return start


def _indent(text: str) -> int:
    return 0 if "\n" in text else len(text) - len(text.lstrip(" \t"))


def _signature(line: str) -> str:
    """What a header line repeats from chunk to chunk: its key, else its words, without numbers."""
    line = re.sub(r"\d+", "#", line.strip())
    key = _KEY.match(line)
    return key[0] if key else line


def _shared_lines(head: str, gap: str) -> int:
    """How many lines before a chunk repeat those before the run's first chunk; the last may be incomplete."""
    gap_lines = gap[-_HEADER_REACH:].split("\n")[1:]  # the first closes the chunk before
    head = head[-_HEADER_REACH:]
    filled = 0
    pairs = zip(reversed(gap_lines), reversed(head.split("\n")), strict=False)
    for count, (ours, theirs) in enumerate(pairs):
        if _signature(ours) != _signature(theirs) or (count and not ours.strip()):
            break
        if ours.strip():
            filled = count + 1
    return filled


def _line_start(prompt: str, start: int, lines: int, floor: int) -> int:
    """Start of the ``lines``-th line above and including the one that holds ``start``."""
    at = start
    for number in range(lines):
        at = max(floor, prompt.rfind("\n", floor, at - 1 if number else at) + 1)
    return at


def _close(prompt: str, units: list[Unit], regions: Sequence[Region]) -> Run:
    """Decide what goes with the run when no unit stays: a closing tag, one line break."""
    ceiling = regions[units[-1].owners[0]].ceiling
    head = prompt[regions[units[0].owners[0]].floor : units[0].header]
    tail = prompt[units[-1].end : ceiling]
    closing = 0
    tag = re.search(_TAG, prompt[units[0].header : units[0].start], re.IGNORECASE)
    if len(units) > 1:
        between = prompt[units[0].end : units[1].header]
        if between.strip():
            closing = _common_prefix(between, tail)
    elif tag:
        end_tag = re.match(rf"\s*</{tag['tag']}\s*>", tail, re.IGNORECASE)
        closing = end_tag.end() if end_tag else 0
    rest = tail[closing:]
    opening = 0
    is_blank_line = (head.endswith("\n") or not head) and rest.startswith("\n")
    if is_blank_line or (head.endswith(" ") and rest.startswith(" ")):
        closing += 1
    elif head.endswith("\n") and not rest:
        opening = 1  # the message would have ended with the line above
    return Run(units=tuple(units), opening=opening, closing=closing)


def _common_prefix(left: str, right: str) -> int:
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count
