"""`ragblame import`: answers recorded elsewhere become traces like captured ones, each once.

Our own format has one answer a line; a tracer's file has steps, and a trace is made when its last one was
read. Whatever cannot be read is named and costs only itself.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg

from ragblame.attribution.jobs.faults import database_faults
from ragblame.errors import InputError
from ragblame.plugin.redaction import Redactor
from ragblame.records import Trace
from ragblame.settings import Settings
from ragblame.traces import write_traces
from ragblame.ui import import_langfuse, import_openinference
from ragblame.ui.import_answers import read_answer
from ragblame.ui.import_assembly import assemble
from ragblame.ui.import_files import read_values
from ragblame.ui.import_steps import Step, import_identity

__all__ = ["ImportFormat", "ImportResult", "import_file", "import_identity"]

BATCH: Final = 100  # traces per transaction
BATCH_CHARACTERS: Final = 4_000_000  # of text per transaction
MAX_STEPS: Final = 10_000  # of one tracer's trace; a longer one is a loop, not an answer
_LOCK: Final = 0x7261_6762_0002  # one import batch at a time: two imports of one file must not both be first
_KNOWN: Final = (
    "SELECT root_run_id FROM ragblame.trace WHERE root_run_id = ANY (%s::uuid[]) AND origin = 'import'"
)


class ImportFormat(StrEnum):
    """What a file holds."""

    ANSWERS = "answers"  # ours: one answer a line
    OPENINFERENCE = import_openinference.SOURCE
    LANGFUSE = import_langfuse.SOURCE


_READERS: Final[dict[ImportFormat, Callable[[Any], Iterator[Step | str]]]] = {
    ImportFormat.OPENINFERENCE: import_openinference.read,
    ImportFormat.LANGFUSE: import_langfuse.read,
}


@dataclass(slots=True, kw_only=True)
class ImportResult:
    """What an import did."""

    imported: int = 0  # new traces
    known: int = 0  # imported before
    malformed: int = 0  # lines, or parts of lines, that were left out
    skipped: int = 0  # a tracer's traces in which no model answered
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
    enqueue: bool
    on_problem: Callable[[int, str], None]
    redactor: Redactor
    result: ImportResult = field(default_factory=ImportResult)
    batch: list[_Line] = field(default_factory=list)
    characters: int = 0  # in the batch

    def problem(self, number: int, message: str) -> None:
        self.result.malformed += 1
        self.on_problem(number, message)

    def take(self, number: int, trace: Trace) -> None:
        trace = self.redactor.redact(trace)
        texts = (trace.answer, *(chunk.text for chunk in trace.chunks), *(m.text for m in trace.prompt))
        line = _Line(number, trace, sum(map(len, texts)))
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
    kind: ImportFormat = ImportFormat.ANSWERS,
    app: str | None = None,
    limit: int | None = None,
    enqueue: bool = True,
    on_problem: Callable[[int, str], None] = lambda number, message: None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ImportResult:
    """Import a file, gzipped or not, with an attribution job for each new trace.

    ``app`` names the traces' app, by default each line's dataset, or the project a tracer names. ``limit``
    reads that many lines at most, of a tracer's file that many traces. ``on_problem(line number, message)``
    hears of each line left out, ``on_progress(done, total)`` of bytes read. Commits in batches on a
    connection without an open transaction, so whatever happens later, what was read stays.
    Raises ``InputError`` when the file cannot be opened, ``DatabaseError``.
    """
    redactor = Redactor.from_settings(settings)
    run = _Import(conn=conn, enqueue=enqueue, on_problem=on_problem, redactor=redactor)
    if kind is ImportFormat.ANSWERS:
        fallback = path.name.split(".")[0]  # dataset of lines that name none
        for number, value in read_values(path, on_progress):
            if limit is not None and run.result.lines >= limit:
                break
            run.result.lines += 1
            try:
                run.take(number, read_answer(value, fallback=fallback, app=app, settings=settings))
            except InputError as error:
                run.problem(number, str(error))
    else:
        _import_steps(run, path, kind, app, settings, limit, on_progress)
    run.flush()
    return run.result


def _import_steps(
    run: _Import,
    path: Path,
    kind: ImportFormat,
    app: str | None,
    settings: Settings,
    limit: int | None,
    on_progress: Callable[[int, int], None],
) -> None:
    """Read a tracer's file twice: where each trace ends, then its steps; only unfinished traces are held."""
    reader = _READERS[kind]
    last: dict[str, int] = {}
    for place, (_, value) in enumerate(_values(path, lambda at, of: on_progress(at, 2 * of))):
        if not isinstance(value, InputError):
            last.update((step.trace, place) for step in reader(value) if isinstance(step, Step))
    waiting: dict[str, list[Step]] = {}
    overlong: set[str] = set()
    traces = 0
    for place, (number, value) in enumerate(_values(path, lambda at, of: on_progress(of + at, 2 * of))):
        run.result.lines += 1
        if isinstance(value, InputError):
            run.problem(number, str(value))
            continue
        touched: dict[str, None] = {}
        for found in reader(value):
            if isinstance(found, str):
                run.problem(number, found)
                continue
            touched[found.trace] = None
            steps = waiting.setdefault(found.trace, [])
            if len(steps) < MAX_STEPS:
                steps.append(found)
            elif found.trace not in overlong:
                overlong.add(found.trace)
                run.problem(number, f"trace {found.trace} has over {MAX_STEPS:,} steps: the rest is left out")
        for identity in touched:
            if last.get(identity, place) <= place:
                trace = assemble(waiting.pop(identity), kind.value, app, settings)
                traces += 1
                if trace is None:
                    run.result.skipped += 1
                else:
                    run.take(number, trace)
                if limit is not None and traces >= limit:
                    return


def _values(path: Path, on_progress: Callable[[int, int], None]) -> Iterator[tuple[int, Any]]:
    return read_values(path, on_progress, may_be_document=True)
