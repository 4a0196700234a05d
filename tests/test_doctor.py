"""The doctor: each part ok or with its next step, exit code 1 only when something is broken."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ragblame import database, settings
from ragblame.plugin.spool import Spool
from ragblame.records import Trace
from ragblame.traces import new_trace_id, write_traces
from ragblame.ui import cli, doctor
from ragblame.ui.doctor import Check, State, run_checks
from ragblame.ui.doctor_corpus import NEXT

NAMES = [
    "settings", "database", "migrations", "pgvector", "partitions", "worker", "queue", "corpus", "model",
    "embeddings", "disk spool",
]  # fmt: skip


@pytest.fixture(autouse=True)
def without_models(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading torch takes seconds and has tests of its own; those marked ``with_model`` keep it."""
    if "with_model" not in request.fixturenames:
        fine = Check(name="model", state=State.OK, detail="not looked at")
        monkeypatch.setattr(doctor, "_check_model", lambda settings, deep: fine)


@pytest.fixture
def with_model() -> None:
    """Keeps the model's check."""


def look(url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Check]:
    """All checks by name, on this database."""
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", url)
    checks = list(run_checks())
    assert [check.name for check in checks] == NAMES
    assert all("\n" not in check.detail for check in checks)
    return {check.name: check for check in checks}


def make_trace() -> Trace:
    """A small trace."""
    return Trace(id=new_trace_id(), app="a", question="?", answer="!", started_at=datetime.now(UTC))


def test_a_healthy_installation(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a fresh migrated database only the missing worker is worth a warning."""
    found = look(database_url, monkeypatch)
    assert found["database"].state is State.OK
    assert "PostgreSQL 1" in found["database"].detail
    assert "(configured)" in found["database"].detail
    for name in ("settings", "migrations", "pgvector", "partitions", "queue", "disk spool"):
        assert found[name].state is State.OK, found[name]
        assert found[name].next_step is None
    assert found["worker"] == Check(
        name="worker", state=State.WARNING, detail="no worker runs", next_step="run `ragblame worker`"
    )


def test_traces_that_nobody_works_on(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs wait and no worker lives: that is broken; a heartbeat mends it."""
    with database.connect(database_url) as conn:
        write_traces(conn, [make_trace(), make_trace()])
    found = look(database_url, monkeypatch)
    assert found["worker"].state is State.FAILED
    assert found["queue"].state is State.OK
    assert found["queue"].detail.startswith("2 waiting, the oldest for ")
    with database.connect(database_url) as conn:
        conn.execute("INSERT INTO procrastinate_workers DEFAULT VALUES")
    assert look(database_url, monkeypatch)["worker"].detail == "1 alive"
    with database.connect(database_url) as conn:
        conn.execute("UPDATE procrastinate_workers SET last_heartbeat = now() - interval '2 hours'")
        conn.execute("UPDATE procrastinate_events SET at = now() - interval '3 hours'")
    found = look(database_url, monkeypatch)
    assert found["worker"].state is State.FAILED
    assert "last was heard 2 h ago" in found["worker"].detail
    assert found["queue"].state is State.WARNING
    assert "the oldest for 3 h" in found["queue"].detail


def test_failed_attributions(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures are counted, with the way to try them again."""
    trace = make_trace()
    with database.connect(database_url) as conn:
        write_traces(conn, [trace], enqueue=False)
        conn.execute(
            "INSERT INTO attribution_run (trace_id, state, error) VALUES (%s, 'failed', 'x')", (trace.id,)
        )
    found = look(database_url, monkeypatch)["queue"]
    assert found.state is State.WARNING
    assert "1 attributions failed in 7 days" in found.detail
    assert found.next_step is not None
    assert "ragblame worker --retry-failed" in found.next_step


def test_partitions_that_are_missing_or_bypassed(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing week and rows in the default partition are warnings: nothing is lost, retention suffers."""
    old = make_trace()
    with database.connect(database_url) as conn:
        write_traces(conn, [Trace(id=new_trace_id(datetime(2020, 1, 1, tzinfo=UTC)), app="a", question="?",
                                  answer="!", started_at=old.started_at)])  # fmt: skip
    found = look(database_url, monkeypatch)["partitions"]
    assert (found.state, "default partition" in found.detail) == (State.WARNING, True)
    with database.connect(database_url) as conn:
        week = conn.execute("SELECT to_char(now() + interval '1 week', 'trace_IYYY\"w\"IW')").fetchone()
        assert week is not None
        conn.execute(psycopg.sql.SQL("DROP TABLE {}").format(psycopg.sql.Identifier(week[0])))
    found = look(database_url, monkeypatch)["partitions"]
    assert (found.state, found.detail) == (State.WARNING, "the coming week has none")


def test_a_database_that_was_not_migrated(empty_database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Migrations and pgvector are broken, with the step that mends both; what depends on them is skipped."""
    found = look(empty_database_url, monkeypatch)
    assert found["database"].state is State.OK
    assert found["migrations"].state is found["pgvector"].state is State.FAILED
    assert "ragblame migrate" in found["migrations"].detail
    assert {found[name].state for name in ("partitions", "worker", "queue")} == {State.SKIPPED}


def test_a_database_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """One broken line says what to do; six others do not repeat it."""
    found = look("postgresql://nobody@127.0.0.1:1/none", monkeypatch)
    assert found["database"].state is State.FAILED
    assert "start PostgreSQL or correct RAGBLAME_DATABASE_URL" in found["database"].detail
    assert [check.state for check in found.values()].count(State.FAILED) == 1
    assert [check.state for check in found.values()].count(State.SKIPPED) == 6


def test_no_database_configured_and_none_made(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The doctor does not create the embedded server: it names the command that does."""
    folder = tmp_path / "never"
    monkeypatch.setenv("RAGBLAME_DATA_DIR", str(folder))
    found = {check.name: check for check in run_checks()}
    assert found["database"].state is State.FAILED
    assert found["database"].next_step == "run `ragblame migrate`, or set RAGBLAME_DATABASE_URL"
    assert not folder.exists()


def test_settings_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting is the one broken line."""
    monkeypatch.setenv("RAGBLAME_SCORRER", "x")
    checks = list(run_checks())
    assert [check.name for check in checks] == NAMES
    assert checks[0].state is State.FAILED
    assert "RAGBLAME_SCORRER" in checks[0].detail
    assert {check.state for check in checks[1:]} == {State.SKIPPED}


def test_the_spool(database_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Traces on disk, refused ones and dropped ones each show, with what to do."""
    monkeypatch.setenv("RAGBLAME_DATA_DIR", str(tmp_path))
    spool = Spool(tmp_path / "spool", 1_000_000)
    assert len(spool.append([make_trace(), make_trace()])) == 2
    spool.close()
    found = look(database_url, monkeypatch)["disk spool"]
    assert found.state is State.WARNING
    assert found.detail.startswith("2 traces wait on disk (0.0 MB")
    spool.refuse(make_trace(), "no")
    spool.add_counts({"dropped": 3})
    found = look(database_url, monkeypatch)["disk spool"]
    assert "3 traces were dropped so far" in found.detail
    assert "1 traces refused by PostgreSQL" in found.detail


def test_a_check_that_breaks_is_a_line(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of the doctor's own never hides the other lines."""

    def fail(*_: object) -> Check:
        raise ZeroDivisionError("first\nsecond")

    monkeypatch.setattr(doctor, "_check_spool", fail)
    found = look(database_url, monkeypatch)["disk spool"]
    assert (found.state, found.detail) == (State.FAILED, "unexpected ZeroDivisionError: first")


@pytest.mark.parametrize(
    ("scorer", "message"), [("/nowhere/model", "does not exist"), ("no/such", "not on this")]
)
def test_a_missing_model(
    with_model: None, database_url: str, monkeypatch: pytest.MonkeyPatch, scorer: str, message: str
) -> None:
    """A scorer that is not on this machine is broken, with the setting to correct."""
    pytest.importorskip("torch")
    monkeypatch.setenv("RAGBLAME_SCORER", scorer)
    found = look(database_url, monkeypatch)["model"]
    assert found.state is State.FAILED
    assert message in found.detail
    assert "RAGBLAME_SCORER" in found.detail


def test_a_model_that_loads(with_model: None, database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped model loads; the line tells its digest and whether it wrote the answers."""
    found = look(database_url, monkeypatch)["model"]
    assert found.state is State.OK
    assert "loads, digest " in found.detail
    assert "a stand-in for the chain's model" in found.detail


@pytest.mark.parametrize(
    ("wrote", "said"),
    [
        ('["a-model", "b-model"]', "wrote the answers of a-model, b-model, a stand-in for any other model"),
        ('["*"]', "wrote the answers"),
    ],
)
def test_whose_answers_the_model_wrote(
    with_model: None, database_url: str, monkeypatch: pytest.MonkeyPatch, wrote: str, said: str
) -> None:
    """With ``scorer_wrote`` the line names the models whose answers the scorer wrote."""
    monkeypatch.setenv("RAGBLAME_SCORER_WROTE", wrote)
    assert look(database_url, monkeypatch)["model"].detail.endswith(f", {said}")


def run(*arguments: str) -> int:
    """The command line in this process."""
    return cli.run(["doctor", *arguments])


def test_exit_code_and_json(
    database_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 with warnings only, 1 with anything broken; ``--json`` is one object with every line."""
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", database_url)
    monkeypatch.setattr(
        doctor, "_check_embeddings", lambda: Check(name="embeddings", state=State.OK, detail="")
    )
    assert run() == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(NAMES)
    assert "warning worker      no worker runs: run `ragblame worker`" in out
    with database.connect(database_url) as conn:
        write_traces(conn, [make_trace()])
    assert run("--json") == 1
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    assert [check["name"] for check in said["checks"]] == NAMES
    assert {
        "name": "worker",
        "state": "failed",
        "detail": "no worker runs",
        "next_step": "run `ragblame worker`",
    } in (said["checks"])


def test_the_corpus(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which tables causes look into; none and a wrong name come with the next step, switched off is fine."""
    found = look(database_url, monkeypatch)["corpus"]
    assert (found.state, found.next_step) == (State.WARNING, NEXT)
    table = {"table": "runbooks", "id": "id", "text": "t", "vector": "v"}
    monkeypatch.setenv("RAGBLAME_PROBE_CORPORA", json.dumps([table]))
    settings.load_settings.cache_clear()
    found = look(database_url, monkeypatch)["corpus"]
    assert found.state is State.FAILED
    assert "there is no table 'public.runbooks'" in found.detail
    with psycopg.connect(database_url, autocommit=True) as conn:
        conn.execute("CREATE TABLE public.runbooks (id text, t text, v public.vector(3))")
        conn.execute("INSERT INTO public.runbooks VALUES ('a', 'b', '[1,2,3]')")
        conn.execute("ANALYZE public.runbooks")
    found = look(database_url, monkeypatch)["corpus"]
    assert (found.state, found.detail) == (State.OK, "causes look into public.runbooks (about 1 rows)")
    monkeypatch.setenv("RAGBLAME_PROBE_SPANS", "0")
    settings.load_settings.cache_clear()
    assert look(database_url, monkeypatch)["corpus"].state is State.OK
