"""Answers that people have labelled, read from JSON lines: what an evaluation on human judgement rests on.

A figure is only as good as its labels, so nothing in a file is taken on trust: offsets must fit the answer
and the text they quote, gold chunks must exist, and a line that cannot be used is named and counted, never
mended.
"""

import gzip
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeGuard

import numpy as np

from ragblame.errors import InputError
from ragblame.json_lines import numbered_lines, refuse_constant, unpacked
from ragblame.records import Chunk

MAX_LINE: Final = 64_000_000  # bytes; a longer line is not an answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """A piece of an answer that people found unsupported by the chunks."""

    start: int  # code points in the answer, never empty
    end: int
    type: str  # the annotators' word for what is wrong; "untyped" when the file gives none
    is_implicit_true: bool = False  # not in the chunks, yet judged true all the same


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledAnswer:
    """One line of a file."""

    id: str
    dataset: str
    source_id: str  # rows that share it share their context: the unit of every resampling
    question: str  # "" when there is none
    chunks: tuple[Chunk, ...]  # by position
    answer: str  # never blank
    labels: tuple[Label, ...]  # empty: people found nothing unsupported
    support_sets: tuple[frozenset[int], ...]  # alternative sufficient sets of chunk positions; often none
    model: str  # who wrote the answer; "" when unknown

    @property
    def gold(self) -> frozenset[int]:
        """Positions of the chunks that some sufficient set holds."""
        return frozenset[int]().union(*self.support_sets)


def read_labelled(path: Path, on_problem: Callable[[int, str], None]) -> list[LabelledAnswer]:
    """Read a JSONL file, gzipped or not.

    ``on_problem(line number from 1, message)`` hears of each line left out. Raises ``InputError`` when the
    file cannot be opened, is damaged, or holds no usable line: an evaluation of half a file is none.
    """
    found: list[LabelledAnswer] = []
    seen: dict[str, int] = {}
    fallback = path.name.split(".")[0]
    try:
        with path.open("rb") as file:
            for number, line in numbered_lines(unpacked(file), MAX_LINE):
                if line is not None and not line.strip():
                    continue
                try:
                    row = _read_line(line, fallback)
                    if row.id in seen:
                        raise InputError(f"the id {row.id!r} stands in line {seen[row.id]} already")
                except InputError as error:
                    on_problem(number, str(error))
                    continue
                seen[row.id] = number
                found.append(row)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged ({error}): copy it again") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{path} cannot be read ({reason}): give a .jsonl or .jsonl.gz file") from error
    if not found:
        raise InputError(f"{path} holds no usable labelled answer: see ragblame import for the format")
    return found


def sample_sources(rows: Sequence[LabelledAnswer], limit: int | None, *, seed: int) -> list[LabelledAnswer]:
    """Whole sources in random order until at least ``limit`` rows are in; the rows keep their order.

    Single rows would leave a source half in, and its cluster would pass for smaller than it is.
    Raises ``InputError`` for a limit below 1.
    """
    if limit is None:
        return list(rows)
    if limit < 1:
        raise InputError(f"a limit of {limit} leaves nothing to evaluate: give 1 or more")
    sizes: dict[str, int] = defaultdict(int)
    for row in rows:
        sizes[row.source_id] += 1
    kept: set[str] = set()
    count = 0
    names = sorted(sizes)  # whatever the order of the lines, a seed draws the same sources
    for index in np.random.default_rng(seed).permutation(len(names)):
        if count >= limit:
            break
        kept.add(names[index])
        count += sizes[names[index]]
    return [row for row in rows if row.source_id in kept]


def _read_line(data: bytes | None, fallback: str) -> LabelledAnswer:
    if data is None:
        raise InputError(f"longer than {MAX_LINE:,} bytes: split the answer")
    try:
        row = json.loads(data, parse_constant=refuse_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start}): convert the file") from error
    except RecursionError as error:
        raise InputError("nested too deeply: flatten it") from error
    except ValueError as error:
        raise InputError(f"not JSON ({error}): correct the line") from error
    if not isinstance(row, dict):
        raise InputError("not a JSON object: write one object per line")
    return _row(row, fallback)


def _row(row: Mapping[str, Any], fallback: str) -> LabelledAnswer:
    row_id = _name(row, "id")
    if row_id is None:
        raise InputError('no "id": give each line one that stays the same')
    answer = _text(row, "answer", None)
    if not answer.strip():
        raise InputError("the answer is empty: leave the line out")
    chunks, positions = _chunks(row)
    return LabelledAnswer(
        id=row_id,
        dataset=_text(row, "dataset", "") or fallback,
        source_id=_name(row, "source_id") or row_id,
        question=_text(row, "question", ""),
        chunks=chunks,
        answer=answer,
        labels=_labels(row, answer),
        support_sets=_support_sets(row, positions),
        model=_text(row, "model", ""),
    )


def _chunks(row: Mapping[str, Any]) -> tuple[tuple[Chunk, ...], dict[str, int]]:
    """The chunks, and the position of each named one; a name that stands twice has none."""
    given = row.get("chunks")
    if not isinstance(given, list):
        raise InputError('no "chunks": give a list of {"chunk_id", "text"}, empty if nothing was retrieved')
    chunks: list[Chunk] = []
    places: dict[str, list[int]] = defaultdict(list)
    for position, chunk in enumerate(given):
        if not isinstance(chunk, dict):
            raise InputError(f'chunk {position + 1} is no object: give {{"chunk_id", "text"}}')
        name = _name(chunk, "chunk_id")
        if name is not None:
            places[name].append(position)
        chunks.append(
            Chunk(position=position, text=_text(chunk, "text", None), source_id=name, rank=position + 1)
        )
    return tuple(chunks), {name: found[0] for name, found in places.items() if len(found) == 1}


def _labels(row: Mapping[str, Any], answer: str) -> tuple[Label, ...]:
    """The labels, by start. A missing list is refused: it could mean "nothing found" or "nobody looked"."""
    given = row.get("labels")
    if not isinstance(given, list):
        raise InputError('no list "labels": write [] where people found nothing unsupported')
    found = []
    for label in given:
        if not isinstance(label, dict):
            raise InputError('a label is no object: give {"start", "end", "type"}')
        start, end = label.get("start"), label.get("end")
        if not _is_offset(start) or not _is_offset(end) or not 0 <= start < end <= len(answer):
            raise InputError(
                f"label [{start}, {end}) is no part of the answer's {len(answer)} characters: "
                "offsets are Unicode code points"
            )
        if isinstance(label.get("text"), str) and answer[start:end] != label["text"]:
            raise InputError(
                f"label [{start}, {end}) is not the text it quotes: offsets are Unicode code points"
            )
        found.append(
            Label(
                start=start,
                end=end,
                type=_text(label, "type", "") or "untyped",
                is_implicit_true=label.get("implicit_true") is True,
            )
        )
    return tuple(sorted(found, key=lambda label: (label.start, label.end)))


def _support_sets(row: Mapping[str, Any], positions: Mapping[str, int]) -> tuple[frozenset[int], ...]:
    given = row.get("support_sets") or []
    if not isinstance(given, list) or not all(isinstance(one, list) for one in given):
        raise InputError('"support_sets" is no list of lists of chunk ids')
    found = []
    for one in given:
        for name in one:
            if str(name) not in positions:
                raise InputError(f"the gold chunk {name!r} is not among the chunks, or stands there twice")
        if one:
            found.append(frozenset(positions[str(name)] for name in one))
    return tuple(found)


def _is_offset(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _name(row: Mapping[str, Any], key: str) -> str | None:
    value = row.get(key)
    if value is None or value == "":
        return None
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise InputError(f'"{key}" is neither text nor a whole number')
    return _sound(str(value), key)


def _text(row: Mapping[str, Any], key: str, default: str | None) -> str:
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise InputError(f'no text "{key}": give one')
    return _sound(value, key)


def _sound(value: str, key: str) -> str:
    """Lone surrogates pass JSON, but no offset, file or screen after it."""
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InputError(f'"{key}" holds half a surrogate pair: write it as UTF-8') from error
    return value
