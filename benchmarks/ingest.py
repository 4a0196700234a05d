"""Traces a second into PostgreSQL: our writer, beside raw COPY of the same bytes into same-shaped tables.

The work: traces of 8 chunks, drawn by a Zipf law from 2,000 texts of about 1 KB, with the prompt that holds
them. Ours takes ``Trace`` records through ``plugin.writer.Writer`` as the recorder's thread does: cleaning,
content addressing, one transaction a batch with its attribution jobs, exactly once by trace id. The floor
takes the very rows that ours stored, dumped beforehand as text, into tables made LIKE ours, indexes and
generated column included, without partitions, triggers or a look at what is there already: one COPY a table,
one commit. A second floor has tables without any index, for the server's share. Before any time is printed,
the rows of all are compared. Runs are interleaved on an own server with fsync on.
Run: python benchmarks/ingest.py [--quick] [--json] [--write]
"""

import itertools
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, LiteralString

import psycopg
from evidence import bar, interleaved, report, spread
from own_server import own_server
from pydantic import SecretStr

from ragblame.plugin.counters import counters
from ragblame.plugin.waiting import BATCH
from ragblame.plugin.writer import Writer
from ragblame.records import Chunk, Message, Trace
from ragblame.settings import Settings
from ragblame.traces import new_trace_id

SEED: Final = 5
TEXTS: Final = 2_000  # distinct chunks
CHUNKS: Final = 8  # of one trace
TRACES: Final = 4_000  # of one timing; 500 with --quick
REPEATS: Final = 9  # 3 with --quick
BOUND: Final = 0.4

TABLES: Final[Mapping[str, str]] = {  # our table -> columns whose bytes are compared and copied
    "ragblame.trace": "id, app, question, query, prompt, answer, generated, model, provider, status, error, "
    "started_at, duration_ms, session_id, root_run_id, origin, partial_tree, tags, metadata, truncated",
    "ragblame.chunk_text": "sha256, text",
    "ragblame.trace_chunk": "trace_id, position, sha256, source_table, source_id, rank, score, score_name, "
    "retriever_run, truncated_from, metadata",
    "jobs.procrastinate_jobs": "id, queue_name, task_name, priority, lock, queueing_lock, args, status, "
    "scheduled_at, attempts, abort_requested",
}


def make_traces(count: int, seed: int = SEED) -> list[Trace]:
    """Traces as a support chain makes them; the same texts come back as popular ones do."""
    pick = random.Random(seed)
    words = ["".join(pick.choices("etaoinshrdlucmfw", k=pick.randint(2, 10))) for _ in range(4_000)]
    texts = [" ".join(pick.choices(words, k=150)) for _ in range(TEXTS)]
    weights = list(itertools.accumulate(1 / rank for rank in range(1, TEXTS + 1)))
    traces = []
    for number in range(count):
        drawn = pick.choices(range(TEXTS), cum_weights=weights, k=CHUNKS)
        chunks = tuple(
            Chunk(
                position=position,
                text=texts[index],
                source_id=str(index),
                source_table="public.notes",
                rank=position + 1,
                score=round(1 - position / 10, 4),
                score_name="score",
                metadata={"source": f"notes/{index}.md", "page": index % 7},
            )
            for position, index in enumerate(drawn)
        )
        question = f"{' '.join(pick.choices(words, k=12))} {number}?"
        context = "\n\n".join(chunk.text for chunk in chunks)
        traces.append(
            Trace(
                id=new_trace_id(),
                app="support",
                question=question,
                chunks=chunks,
                prompt=(
                    Message(role="system", text=f"Answer from:\n{context}"),
                    Message(role="human", text=question),
                ),
                answer=" ".join(pick.choices(words, k=60)),
                model="a-model",
                provider="a-provider",
                started_at=datetime.now(UTC),
                duration_ms=812.5,
                session_id=f"session {number % 50}",
                tags=("support",),
                metadata={"tenant": f"t{number % 20}", "ragblame": {"model_runs": 1}},
            )
        )
    return traces


class Bench:
    """The contenders on one server, each timed from empty tables to the last commit."""

    def __init__(self, url: str, data_dir: Path, traces: list[Trace]) -> None:
        self.traces = traces
        self.conn = psycopg.connect(url, autocommit=True)
        self.writer = Writer(Settings(database_url=SecretStr(url), data_dir=data_dir))
        self.cpu: list[float] = []  # our own process's share of each of the writer's timings
        self.dumps: dict[str, bytes] = {}
        for schema, extra in (("twin", "INCLUDING ALL"), ("bare", "INCLUDING DEFAULTS")):
            self.conn.execute(f"CREATE SCHEMA {schema}".encode())
            for table in TABLES:
                self.conn.execute(f"CREATE TABLE {copy_of(table, schema)} (LIKE {table} {extra})".encode())
        # the compound unique index of waiting jobs and the like come along with INCLUDING ALL

    def writer_seconds(self) -> float:
        """Ours."""
        self._empty("")
        before = counters.snapshot().get("written", 0)
        began, cpu = time.perf_counter(), time.process_time()
        for start in range(0, len(self.traces), BATCH):
            self.writer.write(self.traces[start : start + BATCH])
        took = time.perf_counter() - began
        self.cpu.append(time.process_time() - cpu)
        stored = counters.snapshot().get("written", 0) - before
        if stored != len(self.traces) or not self.writer.is_clean:
            raise RuntimeError(f"{stored} of {len(self.traces)} traces were written")
        return took

    def copy_seconds(self, schema: LiteralString) -> float:
        """Raw COPY of the dumped rows."""
        self._empty(schema)
        began = time.perf_counter()
        with self.conn.transaction(), self.conn.cursor() as cursor:
            for table, columns in TABLES.items():
                statement = f"COPY {copy_of(table, schema)} ({columns}) FROM STDIN".encode()
                with cursor.copy(statement) as copy:
                    copy.write(self.dumps[table])
        return time.perf_counter() - began

    def take_dumps(self) -> None:
        """Remember the rows that ours stored as the bytes the floors copy."""
        for table, columns in TABLES.items():
            with self.conn.cursor().copy(f"COPY (SELECT {columns} FROM {table}) TO STDOUT".encode()) as copy:
                self.dumps[table] = b"".join(copy)

    def require_equal(self) -> None:
        """Raise ``RuntimeError`` unless every table of every contender holds the same rows."""
        for table, columns in TABLES.items():
            chosen = columns.removeprefix("id, ") if table.startswith("jobs.") else columns
            found = {
                name: self.conn.execute(
                    f"SELECT count(*), md5(string_agg(r, '' ORDER BY r)) FROM "
                    f'(SELECT ROW({chosen})::text COLLATE "C" AS r FROM {name}) AS rows'.encode()
                ).fetchone()
                for name in (table, copy_of(table, "twin"), copy_of(table, "bare"))
            }
            if len(set(found.values())) != 1:
                raise RuntimeError(f"the contenders stored different rows: {found}")

    def _empty(self, schema: str) -> None:
        for table in TABLES:
            name = copy_of(table, schema) if schema else table
            self.conn.execute(f"TRUNCATE {name} CASCADE".encode())
        self.conn.execute("CHECKPOINT")


def copy_of(table: str, schema: str) -> str:
    """A table's twin in another schema."""
    return f"{schema}.{table.partition('.')[2]}"


def main() -> None:
    """Measure and report."""
    count, repeats = (500, 3) if "--quick" in sys.argv else (TRACES, REPEATS)
    traces = make_traces(count)
    with own_server() as server, tempfile.TemporaryDirectory() as folder:
        bench = Bench(server.url, Path(folder), traces)
        bench.writer_seconds()
        bench.take_dumps()
        costs = interleaved(
            {
                "ragblame's writer": bench.writer_seconds,
                "raw COPY, same tables": lambda: bench.copy_seconds("twin"),
                "raw COPY, tables without an index": lambda: bench.copy_seconds("bare"),
            },
            repeats,
        )
        bench.require_equal()
        mebibytes = sum(map(len, bench.dumps.values())) / 2**20
    ours = costs["ragblame's writer"]
    rows = []
    for name, seconds in costs.items():
        middle, low, high = spread(seconds)
        ratios = [mine / other for mine, other in zip(seconds, ours, strict=True)]
        ratio, ratio_low, ratio_high = spread(ratios)
        rows.append(
            {
                "way": name,
                "traces/s": round(count / middle),
                "quartiles": f"{count / high:.0f}–{count / low:.0f}",
                "MiB/s": round(mebibytes / middle, 1),
                "our rate / its rate": round(ratio, 3),
                "quartiles of that": f"{ratio_low:.2f}–{ratio_high:.2f}",
                "our client's CPU ms a trace": round(statistics.median(bench.cpu) / count * 1e3, 3)
                if seconds is ours
                else "",
            }
        )
    ratio = statistics.median(
        floor / mine for floor, mine in zip(costs["raw COPY, same tables"], ours, strict=True)
    )
    report(
        "ingest",
        rows,
        [bar("our rate / rate of raw COPY", round(ratio, 3), ">=", BOUND)],
        seed=SEED,
        packages=("psycopg",),
        notes=(f"{count} traces of {CHUNKS} chunks a timing, {mebibytes:.0f} MiB of rows, fsync on",),
    )


if __name__ == "__main__":
    main()
