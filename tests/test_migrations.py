"""Migrations: applied once, whole, in order, by any number of processes, never over an edited one."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import psycopg
import pytest

from ragblame import database, schema
from ragblame.errors import DatabaseError, MigrationError

ALL = (
    "0001_schema.sql",
    "0002_jobs.sql",
    "0003_share_errors.sql",
    "0004_alignment_parts.sql",
    "0005_capture_hosts.sql",
    "0006_corpus_evidence.sql",
    "0007_provenance.sql",
    "0008_prompt_parts.sql",
)


def add_migrations(monkeypatch: pytest.MonkeyPatch, extra: Mapping[str, str | None]) -> None:
    """Pretend that the code has further migration files, others' texts, or (None) lacks some."""
    known = schema._migration_files()
    wanted = {name: text for name, text in sorted({**known, **extra}.items()) if text is not None}
    monkeypatch.setattr(schema, "_migration_files", lambda: wanted)


def test_fresh_database_needs_migrating(empty_database_url: str) -> None:
    """An empty database says what to run, and is ready after it; a second run does nothing."""
    with pytest.raises(DatabaseError, match="run `ragblame migrate`"):
        database.require_schema(empty_database_url)
    lines: list[str] = []
    assert database.migrate(empty_database_url, lines.append) == list(ALL)
    assert lines == [f"migration {number}/{len(ALL)}: {name}" for number, name in enumerate(ALL, 1)]
    database.require_schema(empty_database_url)
    assert database.migrate(empty_database_url) == []
    state = database.check_schema(empty_database_url)
    assert (state.applied, state.pending, state.edited, state.newer_than_code) == (ALL, (), (), ())
    assert state.vector_version is not None
    assert state.next_step is None


def test_files_are_numbered_without_gaps() -> None:
    """Two branches that took the same number are found before they are released."""
    names = sorted(
        entry.name for entry in files("ragblame.migrations").iterdir() if entry.name.endswith(".sql")
    )
    assert [name[:5] for name in names] == [f"{number:04}_" for number in range(1, len(names) + 1)]


def test_six_migrators_at_once(empty_database_url: str) -> None:
    """Processes that migrate at the same time apply each file once, and all succeed."""
    code = "import sys; from ragblame import database; print(len(database.migrate(sys.argv[1])))"
    command = [sys.executable, "-c", code, empty_database_url]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(6)]
    applied = sorted(int(process.communicate(timeout=60)[0]) for process in racing)
    assert applied == [0, 0, 0, 0, 0, len(ALL)]
    database.require_schema(empty_database_url)


def test_migrator_waits_without_a_snapshot(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A waiting migrator lets CREATE INDEX CONCURRENTLY finish; a plain lock wait would deadlock."""
    add_migrations(
        monkeypatch,
        {
            "9004_index.sql": "-- no-transaction\nSELECT pg_sleep(1);\n"
            "CREATE INDEX CONCURRENTLY IF NOT EXISTS document_title ON ragblame.document (title);\n"
        },
    )
    code = """
        import sys
        from ragblame import database, schema
        known = schema._migration_files()
        known["9004_index.sql"] = sys.argv[2]
        schema._migration_files = lambda: known
        lines = []
        print(len(database.migrate(sys.argv[1], lines.append)), lines)
    """
    text = schema._migration_files()["9004_index.sql"]
    command = [sys.executable, "-c", textwrap.dedent(code), database_url, text]
    racing = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=60)[0] for process in racing)
    assert said[0].startswith("0 ['waiting for another migration")
    assert said[1].startswith("1 ")


def test_edited_file_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that changed after it was applied is named, and nothing else is applied."""
    first = schema._migration_files()[ALL[0]]
    add_migrations(monkeypatch, {ALL[0]: first + "-- more", "9004_more.sql": "CREATE TABLE more ();"})
    with pytest.raises(MigrationError, match=r"0001_schema.sql was edited .*: restore it"):
        database.migrate(database_url)
    state = database.check_schema(database_url)
    assert (state.edited, state.pending) == (ALL[:1], ("9004_more.sql",))


def test_windows_line_ends_are_no_edit(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout that turned line ends around is the same file."""
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self, *a, **k: read(self, *a, **k).replace("\n", "\r\n"))
    assert database.check_schema(database_url).edited == ()


def test_newer_database_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that a newer program migrated is not touched by this one."""
    add_migrations(monkeypatch, {ALL[1]: None})
    with pytest.raises(MigrationError, match=r"newer than this program .*: upgrade ragblame"):
        database.migrate(database_url)
    with pytest.raises(DatabaseError, match="upgrade ragblame"):
        database.require_schema(database_url)


def test_late_number_is_refused(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that sorts before applied ones, say from another branch, is not slipped in."""
    add_migrations(monkeypatch, {"0001_zebra.sql": "CREATE TABLE zebra ();"})
    with pytest.raises(MigrationError, match=rf"0001_zebra.sql would run after {ALL[-1]}: give it a higher"):
        database.migrate(database_url)


def test_failing_file_leaves_nothing(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that fails half-way is undone whole; files before it stay, and a corrected one runs."""
    good = {"9004_good.sql": "CREATE TABLE good ();"}
    bad = "CREATE TABLE half ();\nSELECT 1/0;\nCREATE TABLE other ();"
    add_migrations(monkeypatch, {**good, "9005_bad.sql": bad})
    with pytest.raises(
        MigrationError, match=r"9005_bad.sql failed \(division by zero\) and it changed nothing"
    ):
        database.migrate(database_url)
    with database.connect(database_url) as conn:
        found = conn.execute(
            "SELECT to_regclass('good') IS NOT NULL, to_regclass('half'), to_regclass('other')"
        )
        assert found.fetchone() == (True, None, None)
    add_migrations(monkeypatch, {**good, "9005_bad.sql": bad.replace("1/0", "1/1")})
    assert database.migrate(database_url) == ["9005_bad.sql"]


def test_lock_is_free_after_a_failure(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed migration does not keep the next one waiting."""
    add_migrations(monkeypatch, {"9004_bad.sql": "SELECT 1/0;"})
    for _ in range(2):
        with pytest.raises(MigrationError, match="division by zero"):
            database.migrate(database_url)


def test_percent_and_semicolons_in_bodies(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQL is run as written: no parameter and no splitting inside a transaction file."""
    body = "BEGIN\n RETURN format('100%% %s;\n', 1);\nEND"
    text = f"CREATE FUNCTION odd() RETURNS text LANGUAGE plpgsql AS $$ {body} $$;"
    add_migrations(monkeypatch, {"9004_odd.sql": text})
    database.migrate(database_url)
    with database.connect(database_url) as conn:
        assert conn.execute("SELECT odd()").fetchone() == ("100% 1;\n",)


def test_job_schema_is_procrastinates_own() -> None:
    """An upgraded procrastinate cannot slip in: its schema and its migration files are those that we ship."""
    manager = pytest.importorskip("procrastinate.schema").SchemaManager
    ours = schema._migration_files()["0002_jobs.sql"]
    assert (
        ours.split("-- Procrastinate Schema", 1)[1]
        == manager.get_schema().split("-- Procrastinate Schema", 1)[1]
    )
    shipped = sorted(name for name in os.listdir(manager.get_migrations_path()) if name.endswith(".sql"))
    assert len(shipped) == 38
    assert shipped[-1] == "03.04.00_50_post_add_retry_failed_job_procedure.sql"


def test_job_commits_with_its_trace(database_url: str) -> None:
    """A job deferred by plain SQL is seen after commit, and gone after rollback."""
    defer = """SELECT procrastinate_defer_jobs_v1(ARRAY[ROW('attribution', 'attribute', 0, NULL,
        %s, '{}'::jsonb, NULL)::procrastinate_job_to_defer_v1])"""
    with database.connect(database_url) as conn:
        conn.execute(defer, ("attribute-1",))
        conn.rollback()
        conn.execute(defer, ("attribute-2",))
        conn.commit()
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT queueing_lock FROM jobs.procrastinate_jobs").fetchall() == [
            ("attribute-2",)
        ]
