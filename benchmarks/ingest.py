"""Traces a second into PostgreSQL: our writer, beside raw COPY of the same bytes into same-shaped tables.

The work: traces of 8 chunks, drawn by a Zipf law from 2,000 texts of about 1 KB, with the prompt that holds
them. Ours takes ``Trace`` records through ``plugin.writer.Writer`` as the recorder's thread does: cleaning,
content addressing, prompts without the chunks they repeat, one transaction a batch with its attribution jobs,
exactly once by trace id. The first floor takes the same traces as rows, prompts whole, dumped beforehand as
text, into tables made LIKE ours, indexes and generated column included, without partitions, triggers or a
look at what is there already: one COPY a table, one commit. The second takes the rows as ours stored them, a
third of the bytes; the third the same into tables without any index, for the server's share. Before any time
is printed, the rows of all are compared. Runs are interleaved on an own server with fsync on.
Run: python benchmarks/ingest.py [--quick] [--json] [--write]
"""

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Final, LiteralString

import psycopg
from evidence import bar, interleaved, report, spread
from own_server import own_server
from pydantic import SecretStr
from zipf_corpus import CHUNKS, ZipfCorpus

from ragblame.plugin.counters import counters
from ragblame.plugin.waiting import BATCH
from ragblame.plugin.writer import Writer
from ragblame.records import Chunk, Message, Trace
from ragblame.settings import Settings
from ragblame.trace_json import clean_trace
from ragblame.traces import new_trace_id

SEED: Final = 5
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
    corpus = ZipfCorpus(pick)
    traces = []
    for number in range(count):
        chunks = tuple(
            Chunk(
                position=position,
                text=corpus.texts[index],
                source_id=str(index),
                source_table="public.notes",
                rank=position + 1,
                score=round(1 - position / 10, 4),
                score_name="score",
                metadata={"source": f"notes/{index}.md", "page": index % 7},
            )
            for position, index in enumerate(corpus.search(pick))
        )
        question = f"{' '.join(pick.choices(corpus.words, k=12))} {number}?"
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
                answer=" ".join(pick.choices(corpus.words, k=60)),
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


WHOLE: Final = "ragblame.whole_prompt(id, prompt)"  # in place of the column
FLOORS: Final[Mapping[str, LiteralString]] = {  # name -> schema of its tables
    "raw COPY, the same traces": "whole",
    "raw COPY, rows as we store them": "twin",
    "raw COPY, these without an index": "bare",
}


class Bench:
    """The contenders on one server, each timed from empty tables to the last commit."""

    def __init__(self, url: str, data_dir: Path, traces: list[Trace]) -> None:
        self.traces = traces
        self.conn = psycopg.connect(url, autocommit=True)
        self.writer = Writer(Settings(database_url=SecretStr(url), data_dir=data_dir))
        self.cpu: list[float] = []  # our own process's share of each of the writer's timings
        self.dumps: dict[str, bytes] = {}
        self.whole: dict[str, bytes] = {}
        for schema in FLOORS.values():
            extra = "INCLUDING DEFAULTS" if schema == "bare" else "INCLUDING ALL"
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
            self.writer.write([clean_trace(trace) for trace in self.traces[start : start + BATCH]])
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
                    copy.write((self.whole if schema == "whole" else self.dumps)[table])
        return time.perf_counter() - began

    def take_dumps(self) -> None:
        """Remember the rows that ours stored as the bytes the floors copy."""
        for table, columns in TABLES.items():
            for dumps, chosen in (
                (self.dumps, columns),
                (self.whole, columns.replace(" prompt", f" {WHOLE}")),
            ):
                asked = f"COPY (SELECT {chosen} FROM {table}) TO STDOUT".encode()
                with self.conn.cursor().copy(asked) as copy:
                    dumps[table] = b"".join(copy)

    def require_equal(self) -> None:
        """Raise ``RuntimeError`` unless every table of every contender holds the same rows."""
        for table, columns in TABLES.items():
            chosen = columns.removeprefix("id, ") if table.startswith("jobs.") else columns
            told = chosen.replace(" prompt", f" {WHOLE}")
            for columns_of_ours, schemas in ((chosen, ("twin", "bare")), (told, ("whole",))):
                found = [self._digest(table, columns_of_ours)]
                found += [self._digest(copy_of(table, schema), chosen) for schema in schemas]
                if len(set(found)) != 1:
                    raise RuntimeError(f"the contenders stored different rows of {table}: {found}")

    def _digest(self, table: str, columns: str) -> object:
        return self.conn.execute(
            f"SELECT count(*), md5(string_agg(r, '' ORDER BY r)) FROM "
            f'(SELECT ROW({columns})::text COLLATE "C" AS r FROM {table}) AS rows'.encode()
        ).fetchone()

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
                **{name: partial(bench.copy_seconds, schema) for name, schema in FLOORS.items()},
            },
            repeats,
        )
        bench.require_equal()
        mebibytes = sum(map(len, bench.dumps.values())) / 2**20
        whole = sum(map(len, bench.whole.values())) / 2**20
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
                "our rate / its rate": round(ratio, 3),
                "quartiles of that": f"{ratio_low:.2f}–{ratio_high:.2f}",
                "our client's CPU ms a trace": round(statistics.median(bench.cpu) / count * 1e3, 3)
                if seconds is ours
                else "",
            }
        )
    bars = []
    for name in list(FLOORS)[:2]:
        ratio = statistics.median(floor / mine for floor, mine in zip(costs[name], ours, strict=True))
        bars.append(bar(f"our rate / {name}", round(ratio, 3), ">=", BOUND))
    report(
        "ingest",
        rows,
        bars,
        seed=SEED,
        packages=("psycopg",),
        notes=(
            f"{count} traces of {CHUNKS} chunks a timing, {whole:.0f} MiB of rows with whole prompts, "
            f"{mebibytes:.0f} MiB as we store them, fsync on",
        ),
    )


if __name__ == "__main__":
    main()
