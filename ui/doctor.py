"""`ragblame doctor`: every part the product stands on, each with one line: ok, or what to do about it.

It looks and never mends: no server is created, no schema changed, nothing downloaded. A check that cannot run
because of an earlier fault says so instead of repeating it.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ragblame.errors import MissingExtraError, ModelError, RagblameError
from ragblame.settings import ANY_MODEL, Settings, load_settings

if TYPE_CHECKING:
    import psycopg

OLD_SECONDS: Final = 900.0  # a trace waiting longer is worth a warning
LARGE_BYTES: Final = 1_000_000_000  # a model above this is only loaded with ``--deep``
RECENT: Final = timedelta(days=7)


class State(StrEnum):
    """How a part is."""

    OK = "ok"
    WARNING = "warning"  # works, but somebody should look
    FAILED = "failed"
    SKIPPED = "skipped"  # cannot be told before another line is mended


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One line of the doctor."""

    name: str
    state: State
    detail: str
    next_step: str | None = None  # what to do; None when nothing is to be done


def run_checks(*, deep: bool = False) -> Iterator[Check]:
    """All checks in the order in which things depend on each other. ``deep`` loads models of any size."""
    try:
        settings = load_settings()
    except RagblameError as error:
        yield _failure("settings", error)
        for name in (*_DATABASE, "model", "embeddings", "disk spool"):
            yield Check(name=name, state=State.SKIPPED, detail="the settings must be readable first")
        return
    yield _guarded("settings", lambda: _check_settings(settings))
    yield from _check_database(settings)
    yield _guarded("model", lambda: _check_model(settings, deep))
    yield _guarded("embeddings", _check_embeddings)
    yield _guarded("disk spool", lambda: _check_spool(settings))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """The check's line, whatever happens in it."""
    try:
        return check()
    except Exception as error:
        return _failure(name, error)


def _failure(name: str, error: Exception) -> Check:
    """Messages of ours are "what is wrong: what to do"; the whole line is kept as it is."""
    text = str(error).strip() or type(error).__name__
    if isinstance(error, RagblameError):
        return Check(name=name, state=State.FAILED, detail=text)
    return Check(
        name=name,
        state=State.FAILED,
        detail=f"unexpected {type(error).__name__}: {text.splitlines()[0]}",
        next_step="report this, with the output of `ragblame --version`",
    )


def _check_settings(settings: Settings) -> Check:
    where = "the embedded server" if settings.database_url is None else "the configured database"
    folder = settings.data_dir
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not os.access(nearest, os.W_OK):
        return Check(
            name="settings",
            state=State.FAILED,
            detail=f"the data folder {folder} cannot be written",
            next_step="give yourself the right, or set RAGBLAME_DATA_DIR",
        )
    return Check(name="settings", state=State.OK, detail=f"{where}, data folder {folder}")


# The database and what is in it -----------------------------------------------------------------------------

_DATABASE: Final = ("database", "migrations", "pgvector", "partitions", "worker", "queue", "corpus")


def _check_database(settings: Settings) -> Iterator[Check]:
    found = _guarded("database", lambda: _reach_database(settings))
    yield found
    if found.state is State.FAILED:
        for name in _DATABASE[1:]:
            yield Check(name=name, state=State.SKIPPED, detail="the database must answer first")
        return
    from ragblame import database

    url = database.resolve_url(settings)
    schema = _guarded("migrations", lambda: _check_migrations(url))
    yield schema
    yield _guarded("pgvector", lambda: _check_vector(url))
    for name, check in (
        ("partitions", _check_partitions),
        ("worker", _check_worker),
        ("queue", _check_queue),
    ):
        if schema.state is State.FAILED:
            yield Check(name=name, state=State.SKIPPED, detail="the migrations must be applied first")
        else:
            yield _guarded(name, lambda check=check: _with_connection(url, check))  # type: ignore[misc]
    yield _guarded("corpus", lambda: _check_corpus(settings))


def _reach_database(settings: Settings) -> Check:
    from ragblame import database
    from ragblame.database_errors import server_name

    if settings.database_url is None:
        from ragblame import postgres

        status = postgres.status(settings.data_dir)
        if status.state == "absent":
            return Check(
                name="database",
                state=State.FAILED,
                detail="no database yet: none is configured and the embedded server was never started",
                next_step="run `ragblame migrate`, or set RAGBLAME_DATABASE_URL",
            )
    url = database.resolve_url(settings)
    with database.connect(url, read_only=True) as conn:
        version = conn.info.server_version
    kind = "embedded" if settings.database_url is None else "configured"
    detail = f"PostgreSQL {version // 10_000}.{version % 10_000} at {server_name(url)} ({kind})"
    return Check(name="database", state=State.OK, detail=detail)


def _check_migrations(url: str) -> Check:
    from ragblame import database

    state = database.check_schema(url)
    if state.next_step is not None:
        return Check(name="migrations", state=State.FAILED, detail=state.next_step)
    return Check(name="migrations", state=State.OK, detail=f"all {len(state.applied)} applied")


def _check_vector(url: str) -> Check:
    from ragblame import database

    version = database.check_schema(url).vector_version
    if version is None:
        return Check(
            name="pgvector",
            state=State.FAILED,
            detail="the extension is not in this database",
            next_step="run `ragblame migrate`: it installs the extension or says what is missing",
        )
    return Check(name="pgvector", state=State.OK, detail=f"version {version}")


def _check_corpus(settings: Settings) -> Check:
    from ragblame.ui.doctor_corpus import check_corpus

    return check_corpus(settings)


def _with_connection(url: str, check: "Callable[[psycopg.Connection[Any]], Check]") -> Check:
    from ragblame import database

    with database.connect(url, read_only=True) as conn:
        return check(conn)


def _check_partitions(conn: "psycopg.Connection[Any]") -> Check:
    row = conn.execute(
        "SELECT count(DISTINCT week), EXISTS (SELECT FROM ragblame.trace_default) "
        "FROM ragblame.missing_partitions(now(), now() + interval '1 week')"
    ).fetchone()
    missing, is_default_used = row or (0, False)
    if missing or is_default_used:
        return Check(
            name="partitions",
            state=State.WARNING,
            detail="the coming week has none"
            if missing
            else "traces lie in the default partition, which retention cannot drop",
            next_step="run `ragblame migrate`, or keep a worker running: it prepares them",
        )
    return Check(name="partitions", state=State.OK, detail="the coming week is prepared")


def _check_worker(conn: "psycopg.Connection[Any]") -> Check:
    from ragblame.ui.reads_health import read_backlog

    backlog = read_backlog(conn)
    if backlog.workers:
        busy = f", {backlog.running} running" if backlog.running else ""
        return Check(name="worker", state=State.OK, detail=f"{backlog.workers} alive{busy}")
    last = "no worker runs"
    if backlog.last_heartbeat is not None:
        silence = (datetime.now(UTC) - backlog.last_heartbeat).total_seconds()
        last = f"no worker is alive, the last was heard {_age(silence)} ago"
    return Check(
        name="worker",
        state=State.FAILED if backlog.is_stuck else State.WARNING,
        detail=last,
        next_step="run `ragblame worker`",
    )


def _check_queue(conn: "psycopg.Connection[Any]") -> Check:
    from ragblame.ui.reads_health import read_backlog

    backlog = read_backlog(conn)
    row = conn.execute(
        "SELECT count(*) FROM ragblame.attribution_run "
        "WHERE state = 'failed' AND trace_id >= ragblame.uuid_floor(%s)",
        (datetime.now(UTC) - RECENT,),
    ).fetchone()
    failed = row[0] if row else 0
    oldest = backlog.oldest_waiting_seconds
    parts = [f"{backlog.waiting} waiting" if backlog.waiting else "nothing waits"]
    if oldest is not None and backlog.waiting:
        parts.append(f"the oldest for {_age(oldest)}")
    if failed:
        parts.append(f"{failed} attributions failed in {RECENT.days} days")
    next_step = None
    if oldest is not None and oldest > OLD_SECONDS:
        next_step = "start more workers: `ragblame worker`, one process per GPU or group of cores"
    elif failed:
        next_step = "see why on the Health page; mend it, then `ragblame worker --retry-failed`"
    return Check(
        name="queue",
        state=State.WARNING if next_step else State.OK,
        detail=", ".join(parts),
        next_step=next_step,
    )


# What is on this machine ------------------------------------------------------------------------------------


def _check_model(settings: Settings, deep: bool) -> Check:
    for package in ("torch", "transformers"):
        if find_spec(package) is None:
            raise MissingExtraError(
                f"attribution is not installed here ({package} is missing): a worker needs "
                "pip install 'ragblame[worker]'"
            )
    name = settings.scorer or "the shipped small model"
    size = sum(path.stat().st_size for path in _model_folder(settings).glob("*.safetensors"))
    if size > LARGE_BYTES and not deep:
        detail = f"{name}: {size / 1e9:.1f} GB of weights, not loaded (`ragblame doctor --deep` does)"
        return Check(name="model", state=State.OK, detail=detail)
    from ragblame.attribution.scorer import TransformersScorer

    try:
        scorer = TransformersScorer.from_pretrained(settings.scorer, threads=settings.threads)
    except FileNotFoundError as error:
        raise ModelError(str(error)) from error
    detail = f"{scorer.ref.name} loads, digest {scorer.ref.revision}, {_whose(settings.scorer_wrote)}"
    return Check(name="model", state=State.OK, detail=detail)


def _whose(wrote: Sequence[str]) -> str:
    if ANY_MODEL in wrote:
        return "wrote the answers"
    if not wrote:
        return "a stand-in for the chain's model"
    return f"wrote the answers of {', '.join(wrote)}, a stand-in for any other model"


def _model_folder(settings: Settings) -> Path:
    """Where the scorer's files are, or a folder without any."""
    if settings.scorer is None or Path(settings.scorer).is_dir():
        return Path(settings.scorer or os.devnull)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(settings.scorer, "config.json")
    except HFValidationError:  # a path that does not exist: loading tells
        found = None
    return Path(found).parent if isinstance(found, str) else Path(os.devnull)


def _check_embeddings() -> Check:
    from ragblame.minilm_files import MODEL_NAME, find_folder

    try:
        folder = find_folder()
    except ModelError as error:
        # Only our own corpus needs it: an existing chain brings its own embeddings.
        detail, _, step = str(error).partition(": ")
        return Check(name="embeddings", state=State.WARNING, detail=detail, next_step=step)
    name = MODEL_NAME.rpartition("/")[2]
    return Check(name="embeddings", state=State.OK, detail=f"{name} in {folder}")


def _check_spool(settings: Settings) -> Check:
    from ragblame.plugin.metrics import DROPS
    from ragblame.plugin.spool_state import inspect_spool

    spool = inspect_spool(settings.data_dir / "spool")
    dropped = {name: count for name, count in spool.counts.items() if name.startswith("dropped") and count}
    parts, next_step = [], None
    if dropped:
        most = max(dropped, key=lambda name: dropped[name])
        why = ", ".join(
            f"{name.removeprefix('dropped').strip('_').replace('_', ' ') or 'unknown'} {count}"
            for name, count in sorted(dropped.items())
        )
        parts.append(f"{sum(dropped.values())} traces were dropped so far ({why})")
        next_step = DROPS.get(most, "raise RAGBLAME_SPOOL_MAX_BYTES or RAGBLAME_QUEUE_MAX_TRACES")
    if spool.refused or spool.damaged:
        parts.append(f"{spool.refused} traces refused by PostgreSQL, {spool.damaged} damaged files")
        next_step = f"look at *.refused and *.damaged in {settings.data_dir / 'spool'}, then remove them"
    if spool.waiting:
        age = "" if spool.oldest_seconds is None else f", the oldest {_age(spool.oldest_seconds)} old"
        parts.insert(0, f"{spool.waiting} traces wait on disk ({spool.bytes / 1e6:.1f} MB{age})")
        next_step = "mend the database: a capturing process writes them as soon as it answers"
    if not parts:
        return Check(name="disk spool", state=State.OK, detail="empty, nothing dropped")
    return Check(name="disk spool", state=State.WARNING, detail="; ".join(parts), next_step=next_step)


def metrics_lines() -> Iterator[str]:
    """What a scraper of this machine wants: capture's totals, its spool, and the attribution queue.

    The queue's lines are missing while the database does not answer; ``ragblame_database_up`` says so.
    Raises ``SettingsError``.
    """
    from ragblame import database
    from ragblame.plugin.metrics import family, folder_metrics
    from ragblame.ui.reads_health import read_backlog

    settings = load_settings()
    yield from folder_metrics(settings.data_dir / "spool")
    backlog = None
    if settings.database_url is not None or _is_embedded_used(settings):
        try:
            with database.connect(database.resolve_url(settings), read_only=True) as conn:
                backlog = read_backlog(conn)
        except Exception:  # a scrape tells what it can; `ragblame doctor` says why
            backlog = None
    yield from family("database_up", "gauge", "Whether the database answered.", [({}, backlog is not None)])
    if backlog is not None:
        oldest = backlog.oldest_waiting_seconds or 0.0
        for name, text, value in (
            ("jobs_waiting", "Traces that wait for attribution.", backlog.waiting),
            ("jobs_running", "Traces in attribution now.", backlog.running),
            ("jobs_oldest_seconds", "How long the oldest of them has waited.", oldest),
            ("workers", "Attribution workers alive.", backlog.workers),
        ):
            yield from family(name, "gauge", text, [({}, value)])


def _is_embedded_used(settings: Settings) -> bool:
    from ragblame import postgres

    return postgres.status(settings.data_dir).state != "absent"


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0.0):.0f} s"
