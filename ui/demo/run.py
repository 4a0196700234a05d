"""`ragblame demo`: ingest runbooks, ask a real chain, attribute in a separate worker, show the triage page.

Nothing here decides what is grounded or fabricated: the questions are mixed so that every case occurs, the
model answers as it likes, and the verdicts come from the worker.
"""

import json
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from uuid import UUID

import psycopg
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ragblame import attach, database, detach, flush
from ragblame.attribution.world import runbooks
from ragblame.errors import RagblameError
from ragblame.records import VerdictKind
from ragblame.retriever.ingest import ingest_paths
from ragblame.retriever.langchain import HybridRetriever
from ragblame.retriever.minilm import MiniLMEmbeddings
from ragblame.settings import load_settings
from ragblame.ui.demo.chain import build_chain
from ragblame.ui.demo.chat import SmallChatModel
from ragblame.ui.demo.worker_process import WorkerProcess
from ragblame.ui.serving import require_free_port, serve_triage

APP = "demo"
K = 5  # chunks a question
PATIENCE = 180.0  # seconds without a finished trace before the worker is called stuck; loading torch is slow


@dataclass(slots=True)
class Summary:
    """What the demo did, printed as a table or, with ``--json``, as one object."""

    questions: int = 0
    chunks: int = 0  # in the corpus
    traces: int = 0
    failed: int = 0  # traces the worker could not attribute
    spans: int = 0
    flagged: int = 0
    verdicts: dict[str, int] = field(default_factory=dict)
    causes: dict[str, int] = field(default_factory=dict)
    examples: dict[str, dict[str, str]] = field(default_factory=dict)  # verdict -> one real case
    seconds: dict[str, float] = field(default_factory=dict)  # stage -> wall clock


class Stages:
    """Progress on stderr, so that ``--json`` keeps stdout for the program that reads it."""

    def __init__(self, summary: Summary) -> None:
        self._summary = summary
        self._console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description:<34}"),
            BarColumn(24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )

    def __enter__(self) -> "Stages":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Leave the bars as they are; what follows is printed below them."""
        self._progress.stop()

    @contextmanager
    def stage(self, name: str, total: int = 1) -> Iterator["Stage"]:
        """Time one stage and show its bar."""
        started = time.monotonic()
        task = self._progress.add_task(name, total=total)
        yield Stage(self._progress, task)
        self._progress.update(task, completed=self._progress.tasks[task].total)
        self._summary.seconds[name] = round(time.monotonic() - started, 2)
        if not self._console.is_terminal:  # bars are drawn for people only: a log still tells what happened
            self._console.print(f"{name}: {self._summary.seconds[name]} s")


@dataclass(frozen=True, slots=True)
class Stage:
    """One bar."""

    progress: Progress
    task: object

    def at(self, done: int, total: int | None = None) -> None:
        """Move the bar."""
        self.progress.update(self.task, completed=done, total=total)  # type: ignore[arg-type]


def run_demo(*, no_ui: bool, json_output: bool, questions: int = 48) -> Summary:
    """Run the whole demo; with ``no_ui`` return after the summary, else serve the page until interrupted.

    Raises ``RagblameError`` (each with the next step) when a part cannot be started or a trace is lost.
    """
    settings = load_settings()
    signal.signal(signal.SIGTERM, _interrupt)  # as Ctrl-C: no worker is left behind
    if not no_ui:  # said now, not after a minute of work
        require_free_port(settings.ui_address, settings.ui_port)
    summary = Summary()
    with Stages(summary) as stages:
        with stages.stage("start PostgreSQL and migrate"):
            url = database.resolve_url(settings)
            database.migrate(url)
        embeddings = MiniLMEmbeddings()
        with database.connect(url, autocommit=True, application_name="ragblame demo") as conn:
            with stages.stage("ingest runbooks") as stage:
                summary.chunks = _ingest(conn, embeddings, stage)
            with WorkerProcess() as worker:  # loads its model while the questions are asked
                asked = runbooks.questions()[:questions]
                before = conn.execute("SELECT coalesce(max(id::text), '') FROM trace").fetchone()
                with stages.stage("ask the chain", len(asked)) as stage:
                    _ask(url, embeddings, [question.text for question in asked], stage)
                trace_ids = _recorded(conn, since=before[0] if before else "")
                summary.questions, summary.traces = len(asked), len(trace_ids)
                if len(trace_ids) < len(asked):
                    raise RagblameError(
                        f"only {len(trace_ids)} of {len(asked)} answers were recorded: run `ragblame doctor`"
                    )
                with stages.stage("attribute in the worker", len(trace_ids)) as stage:
                    summary.failed = worker.wait_for(conn, trace_ids, timeout=PATIENCE, on_progress=stage.at)
                _read_results(conn, trace_ids, summary)
                stages.stop()
                _print(summary, json_output=json_output)
                if not no_ui:
                    serve_triage(settings)  # the worker goes on beside it
    return summary


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _ingest(conn: psycopg.Connection, embeddings: MiniLMEmbeddings, stage: Stage) -> int:
    """The runbooks become Markdown files, and those go the way of any corpus."""
    with tempfile.TemporaryDirectory(prefix="ragblame-runbooks-") as folder:
        for runbook in runbooks.runbooks():
            (Path(folder) / f"{runbook.slug}.md").write_text(runbook.markdown(), "utf-8")
        ingest_paths(
            conn,
            [folder],
            embeddings,
            one_chunk_per_paragraph=True,
            relative_to=Path(folder),
            on_progress=stage.at,
        )
    row = conn.execute("SELECT count(*) FROM chunk").fetchone()
    return int(row[0]) if row else 0


def _ask(url: str, embeddings: MiniLMEmbeddings, questions: Sequence[str], stage: Stage) -> None:
    """Ask through the host chain; `attach` is the one line that records it."""
    with database.open_pool(url, application_name="ragblame demo chain") as pool:
        chain = build_chain(HybridRetriever(pool=pool, embeddings=embeddings, k=K), SmallChatModel())
        attach(app=APP)
        try:
            for index, question in enumerate(questions, 1):
                chain.invoke(question)
                stage.at(index)
            if not flush(timeout=30):
                raise RagblameError(
                    "the recorded answers could not be written in 30 s: run `ragblame doctor`"
                )
        finally:
            detach()


def _recorded(conn: psycopg.Connection, *, since: str) -> list[UUID]:
    """Ids of the demo's traces newer than ``since``; ids are time-ordered."""
    rows = conn.execute("SELECT id FROM trace WHERE app = %s AND id::text > %s", [APP, since]).fetchall()
    return [row[0] for row in rows]


def _read_results(conn: psycopg.Connection, trace_ids: Sequence[UUID], summary: Summary) -> None:
    """Counts, and for each verdict the most telling real case."""
    rows = conn.execute(
        """
        SELECT v.verdict, v.cause, v.explanation, t.question, t.answer, i.trace_id IS NOT NULL,
               substr(t.answer, s.start_at + 1, s.end_at - s.start_at), t.id
        FROM verdict v JOIN answer_span s USING (trace_id, span) JOIN trace t ON t.id = v.trace_id
        LEFT JOIN triage_item i USING (trace_id, span)
        WHERE v.trace_id = ANY(%s)
        ORDER BY s.kind = 'clause', v.severity DESC, v.trace_id, v.span
        """,
        [list(trace_ids)],
    ).fetchall()
    summary.spans = len(rows)
    summary.flagged = sum(row[5] for row in rows)
    summary.verdicts = dict(Counter(row[0] for row in rows).most_common())
    summary.causes = dict(Counter(row[1] for row in rows if row[1]).most_common())
    for verdict, _, explanation, question, answer, _, span, trace_id in rows:
        summary.examples.setdefault(
            verdict,
            {
                "trace": str(trace_id),
                "question": question,
                "answer": answer,
                "span": span,
                "explanation": explanation,
            },
        )
    missing = [
        kind.value
        for kind in VerdictKind
        if kind is not VerdictKind.UNDETERMINED and kind.value not in summary.verdicts
    ]
    if missing and summary.traces >= 40:
        raise RagblameError(
            f"the demo showed no case of {', '.join(missing)}: the shipped model or its thresholds changed; "
            "run `make accuracy`"
        )


def _print(summary: Summary, *, json_output: bool) -> None:
    if json_output:
        print(json.dumps(asdict(summary), indent=2, ensure_ascii=False))
        return
    console = Console()
    table = Table(title=f"{summary.traces} answers, {summary.spans} spans, {summary.flagged} flagged")
    for column in ("verdict", "spans", "one of them"):
        table.add_column(column, justify="right" if column == "spans" else "left")
    for verdict, count in summary.verdicts.items():
        case = summary.examples[verdict]
        told = Text(case["answer"])  # Text, not markup: an answer may hold brackets
        told.append(f"\n{case['explanation']}", style="dim")
        table.add_row(verdict, str(count), told)
    console.print(table)
    console.print(
        f"in {sum(summary.seconds.values()):.0f} s; `ragblame ui` shows them on the triage page", style="dim"
    )
