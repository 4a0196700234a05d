"""`ragblame import`: answers recorded elsewhere, one JSON object per line, become traces like captured ones.

A line is identified by its (dataset, id), so importing a file again adds nothing; a line that cannot be read
is named and costs only itself. Human labels travel in the trace's metadata, where evaluations find them.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, NoReturn
from uuid import NAMESPACE_URL, UUID, uuid5

import psycopg

from ragblame.attribution.jobs.faults import database_faults
from ragblame.errors import InputError
from ragblame.records import Chunk, Trace
from ragblame.settings import Settings
from ragblame.traces import new_trace_id, write_traces

BATCH: Final = 100  # traces per transaction
BATCH_CHARACTERS: Final = 4_000_000  # of text per transaction
MAX_LINE: Final = 64_000_000  # bytes; a longer line is not an answer
_NAMESPACE: Final = uuid5(NAMESPACE_URL, "ragblame:import")
_LOCK: Final = 0x7261_6762_0002  # one import batch at a time: two imports of one file must not both be first
_KNOWN: Final = (
    "SELECT root_run_id FROM ragblame.trace WHERE root_run_id = ANY (%s::uuid[]) AND origin = 'import'"
)
_NO_METADATA: Final = frozenset({"question", "chunks", "answer", "model"})  # these have a place in the trace


@dataclass(slots=True, kw_only=True)
class ImportResult:
    """What an import did."""

    imported: int = 0  # new traces
    known: int = 0  # lines imported before
    malformed: int = 0
    lines: int = 0  # read, empty ones left out


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    trace: Trace
    characters: int


@dataclass(slots=True, kw_only=True)
class _Import:
    """One import under way."""

    conn: psycopg.Connection[Any]
    settings: Settings
    fallback: str  # dataset of lines that name none
    app: str | None
    enqueue: bool
    on_problem: Callable[[int, str], None]
    result: ImportResult = field(default_factory=ImportResult)
    batch: list[_Line] = field(default_factory=list)
    characters: int = 0  # in the batch

    def problem(self, number: int, message: str) -> None:
        self.result.malformed += 1
        self.on_problem(number, message)

    def take(self, number: int, data: bytes | None) -> None:
        self.result.lines += 1
        try:
            line = _read_line(number, data, self)
        except InputError as error:
            self.problem(number, str(error))
            return
        self.batch.append(line)
        self.characters += line.characters
        if len(self.batch) >= BATCH or self.characters > BATCH_CHARACTERS:
            self.flush()

    def flush(self) -> None:
        batch, self.batch, self.characters = self.batch, [], 0
        if not batch:
            return
        try:
            self._write(batch)
        except InputError as error:
            if len(batch) == 1:
                self.problem(batch[0].number, str(error))
                return
            for line in batch:  # one refused trace must not take the others with it
                self.batch = [line]
                self.flush()

    def _write(self, batch: Sequence[_Line]) -> None:
        with database_faults("import"), self.conn.transaction():
            self.conn.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
            rows = self.conn.execute(_KNOWN, ([line.trace.root_run_id for line in batch],)).fetchall()
            known = {row[0] for row in rows}
            fresh: dict[UUID | None, Trace] = {}
            for line in batch:
                if line.trace.root_run_id not in known:
                    fresh.setdefault(line.trace.root_run_id, line.trace)
            imported = write_traces(self.conn, list(fresh.values()), enqueue=self.enqueue)
        self.result.imported += imported
        self.result.known += len(batch) - imported


def import_file(
    conn: psycopg.Connection[Any],
    path: Path,
    settings: Settings,
    *,
    app: str | None = None,
    limit: int | None = None,
    enqueue: bool = True,
    on_problem: Callable[[int, str], None] = lambda number, message: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImportResult:
    """Import a JSONL file, gzipped or not, with an attribution job for each new trace.

    ``app`` names the traces' app, by default each line's dataset. ``limit`` reads that many lines at most.
    ``on_problem(line number, message)`` hears of each line left out, ``on_progress(done, total)`` of bytes of
    the file. Commits in batches on a connection without an open transaction, so whatever happens later, what
    was read stays. Raises ``InputError`` when the file cannot be opened, ``DatabaseError``.
    """
    run = _Import(
        conn=conn,
        settings=settings,
        fallback=path.name.split(".")[0],
        app=app,
        enqueue=enqueue,
        on_problem=on_problem,
    )
    number = 0
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            stream = _unpack(file)
            for number, line in _lines(stream):
                if limit is not None and run.result.lines >= limit:
                    break
                if line is None or line.strip():
                    run.take(number, line)
                on_progress(min(file.tell(), total), total)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        run.problem(number + 1, f"the compressed file is damaged from here on ({error}): copy it again")
    except OSError as error:
        if number == 0:
            reason = error.strerror or str(error)
            raise InputError(f"{path} cannot be read ({reason}): give a .jsonl or .jsonl.gz file") from error
        run.problem(number + 1, f"the file cannot be read from here on ({error.strerror}): import it again")
    run.flush()
    return run.result


def import_identity(dataset: str, row_id: str | int) -> UUID:
    """The identity of an imported line, kept in the trace's ``root_run_id``."""
    return uuid5(_NAMESPACE, json.dumps([dataset, row_id], ensure_ascii=True))


def _unpack(file: IO[bytes]) -> "IO[bytes] | gzip.GzipFile":
    is_gzip = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if is_gzip else file


def _lines(stream: "IO[bytes] | gzip.GzipFile") -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines from 1; None stands for one longer than ``MAX_LINE``."""
    number = 0
    while line := stream.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            while (rest := stream.readline(MAX_LINE)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        else:
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _read_line(number: int, data: bytes | None, run: _Import) -> _Line:
    if data is None:
        raise InputError(f"longer than {MAX_LINE:,} bytes: split the answer")
    try:
        row = json.loads(data, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 (byte {error.start}): convert the file") from error
    except RecursionError as error:
        raise InputError("nested too deeply: flatten it") from error
    except ValueError as error:
        raise InputError(f"not JSON ({error}): correct the line") from error
    if not isinstance(row, dict):
        raise InputError("not a JSON object: write one object per line")
    trace = _trace(row, run)
    return _Line(number, trace, len(trace.answer) + sum(len(chunk.text) for chunk in trace.chunks))


def _trace(row: Mapping[str, Any], run: _Import) -> Trace:
    row_id = row.get("id")
    if not isinstance(row_id, str | int) or isinstance(row_id, bool) or row_id == "":
        raise InputError('no "id": give each line one that stays the same')
    dataset = _text(row, "dataset", "") or run.fallback
    answer = _text(row, "answer", None)
    longest = run.settings.capture_max_field
    if len(answer) > longest:
        raise InputError(
            f"the answer has {len(answer):,} characters: raise RAGBLAME_CAPTURE_MAX_FIELD ({longest:,})"
        )
    now = datetime.now(UTC)
    # Labels first: metadata is bounded when stored, and they are what evaluations need.
    metadata = {"labels": _labels(row, answer)} | {
        key: value for key, value in row.items() if key not in _NO_METADATA and key != "labels"
    }
    return Trace(
        id=new_trace_id(now),
        app=run.app or dataset,
        question=_text(row, "question", ""),
        chunks=_chunks(row, run.settings),
        answer=answer,
        model=_text(row, "model", "") or None,
        started_at=now,
        root_run_id=import_identity(dataset, row_id),
        origin="import",
        metadata=metadata,
    )


def _chunks(row: Mapping[str, Any], settings: Settings) -> tuple[Chunk, ...]:
    chunks = row.get("chunks")
    if not isinstance(chunks, list):
        raise InputError('no "chunks": give a list of {"chunk_id", "text"}, empty if nothing was retrieved')
    if len(chunks) > settings.capture_max_chunks:
        raise InputError(
            f"{len(chunks)} chunks: raise RAGBLAME_CAPTURE_MAX_CHUNKS ({settings.capture_max_chunks})"
        )
    found = []
    for position, chunk in enumerate(chunks):
        if not isinstance(chunk, dict) or not isinstance(chunk.get("text"), str):
            raise InputError(f'chunk {position + 1} has no "text": give each chunk a text')
        text, longest = chunk["text"], settings.capture_max_field
        source_id = chunk.get("chunk_id")
        found.append(
            Chunk(
                position=position,
                text=text[:longest],
                source_id=None if source_id is None else str(source_id),
                rank=position + 1,
                metadata={key: value for key, value in chunk.items() if key not in ("text", "chunk_id")},
                truncated_from=len(text) if len(text) > longest else None,
            )
        )
    return tuple(found)


def _labels(row: Mapping[str, Any], answer: str) -> list[dict[str, Any]]:
    """The human labels, whose offsets must fit the answer: a shifted label would mislead every evaluation."""
    labels = row.get("labels", [])
    if not isinstance(labels, list):
        raise InputError('"labels" is no list: write [] when there are none')
    for label in labels:
        if not isinstance(label, dict):
            raise InputError('a label is no object: give {"start", "end", "type"}')
        start, end = label.get("start"), label.get("end")
        if not (isinstance(start, int) and isinstance(end, int) and 0 <= start <= end <= len(answer)):
            raise InputError(
                f"label [{start}, {end}) lies outside the answer's {len(answer)} characters: "
                "offsets are Unicode code points"
            )
        if isinstance(label.get("text"), str) and answer[start:end] != label["text"]:
            raise InputError(
                f"label [{start}, {end}) is not the text it quotes: offsets are Unicode code points"
            )
    return labels


def _text(row: Mapping[str, Any], key: str, default: str | None) -> str:
    value = row.get(key)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        raise InputError(f'no text "{key}": give one')
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
