"""The command line: every failure is one line with the next step and an exit code, never a traceback."""

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragblame import __version__, database, settings
from ragblame.records import Chunk, Message, Trace
from ragblame.traces import new_trace_id, write_traces
from ragblame.ui import cli, exchange
from ragblame.ui.terminal import plain

Failure = Callable[..., str]
GOOD_LINE = {
    "id": 1,
    "dataset": "toy",
    "question": "?",
    "chunks": [],
    "answer": "Yes.",
    "labels": [],
    "model": "m",
}


@pytest.fixture
def failure(capsys: pytest.CaptureFixture[str]) -> Failure:
    """Runs a command that must fail with this exit code and one line on stderr; returns the line."""

    def run(code: int, *arguments: str, lines: int = 1) -> str:
        settings.load_settings.cache_clear()
        capsys.readouterr()
        assert cli.run(list(arguments)) == code
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert len(said.splitlines()) == lines, said
        assert said.startswith("error: ")
        return said

    return run


@pytest.fixture
def on_database(database_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A migrated database that the command line finds in its settings."""
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", database_url)
    return database_url


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """A file to import."""
    path = tmp_path / "answers.jsonl"
    path.write_text(json.dumps(GOOD_LINE) + "\n", "utf-8")
    return path


def needs_database(answers: Path) -> list[list[str]]:
    """Every command that needs a database."""
    return [
        ["migrate"], ["worker", "--once"], ["ui", "--port", str(free_port())], ["explain", "0190"],
        ["import", str(answers)], ["import", "--langfuse", str(answers)], ["export"],
        ["ingest", str(answers.parent)],
    ]  # fmt: skip


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def store(url: str, *traces: Trace, enqueue: bool = False) -> None:
    """Write traces."""
    with database.connect(url) as conn:
        write_traces(conn, traces, enqueue=enqueue)


def make_trace(**changes: Any) -> Trace:
    """A small trace."""
    given_fields: dict[str, Any] = {
        "id": new_trace_id(), "app": "a", "question": "?", "answer": "Yes.", "started_at": datetime.now(UTC),
    }  # fmt: skip
    return Trace(**{**given_fields, **changes})


def command(*arguments: str, **options: Any) -> "subprocess.CompletedProcess[str]":
    """`python -m ragblame` as a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ragblame", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **options,
    )


# The way in ------------------------------------------------------------------------------------------


def test_python_dash_m_and_console_script_are_the_same() -> None:
    """Both ways in print the version and end well."""
    script = Path(sys.executable).with_name("ragblame")
    for found in (
        command("--version"),
        subprocess.run([str(script), "--version"], capture_output=True, text=True, check=False),
    ):
        assert (found.returncode, found.stdout, found.stderr) == (0, f"ragblame {__version__}\n", "")


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    """A stranger finds what there is."""
    assert cli.run(["--help"]) == 0
    said = capsys.readouterr().out
    for name in ("migrate", "worker", "ui", "doctor", "explain", "import", "export", "ingest", "demo"):
        assert f" {name} " in said


def test_help_is_light() -> None:
    """The command line answers without loading a driver, a model library or a web server."""
    code = (
        "import sys; from ragblame.ui import cli; cli.run(['--help']); "
        "heavy = {'torch', 'psycopg', 'streamlit', 'numpy', 'procrastinate', 'langchain_core'}; "
        "sys.exit(bool(heavy & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize(
    "arguments", [["nope"], ["worker", "--bad"], ["explain"], ["import", "x", "--limit", "0"]]
)
def test_usage_errors(failure: Failure, arguments: list[str]) -> None:
    """A wrong word is one line that points to the help."""
    assert "ragblame --help" in failure(2, *arguments)


def test_debug_keeps_the_traceback(tmp_path: Path) -> None:
    """Who asks for the traceback gets it."""
    environment = {**os.environ, "RAGBLAME_DATABASE_URL": "postgresql://x@127.0.0.1:1/x"}
    found = command("--debug", "explain", "0190", env=environment)
    assert found.returncode == 1
    assert "Traceback" in found.stderr
    assert "DatabaseError" in found.stderr


def test_an_unexpected_fault_is_one_line(
    failure: Failure, on_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault of ours says how to report it."""
    monkeypatch.setattr(database, "migrate", lambda *_, **__: 1 / 0)
    said = failure(1, "migrate")
    assert "unexpected ZeroDivisionError" in said
    assert "--debug" in said


def test_interrupted(
    on_database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C is the code shells expect, without a word."""

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(database, "migrate", interrupt)
    assert cli.run(["migrate"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves_early(on_database: str) -> None:
    """`ragblame … | head` ends without a traceback."""
    line = f"{sys.executable} -m ragblame --help | head -c 1"
    found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert "Traceback" not in found.stderr
    assert "BrokenPipe" not in found.stderr


@given(st.text(st.characters(codec=None)))
def test_no_text_has_power_over_the_terminal(text: str) -> None:
    """Whatever an answer holds, it is shown on one line without control characters, and can be encoded."""
    shown = plain(text)
    assert all(sign.isprintable() for sign in shown)
    assert len(shown.splitlines()) <= 1
    shown.encode()
    assert len(plain(text, 10)) <= 10


# Settings and the database ---------------------------------------------------------------------------


def test_a_misspelt_setting(failure: Failure, monkeypatch: pytest.MonkeyPatch, answers: Path) -> None:
    """Every command refuses a variable it does not know, and names the known ones."""
    monkeypatch.setenv("RAGBLAME_DATABASEURL", "x")
    for arguments in needs_database(answers):
        said = failure(2, *arguments)
        assert "RAGBLAME_DATABASEURL" in said
        assert "RAGBLAME_DATABASE_URL" in said


def test_a_damaged_settings_file(failure: Failure) -> None:
    """A ragblame.toml that is no TOML, or holds an unknown key, is one line."""
    file = settings.Settings.model_config["toml_file"]
    assert isinstance(file, Path)
    for text in ("= nonsense", "databas_url = 'x'"):
        file.write_text(text, "utf-8")
        assert "ragblame.toml" in failure(2, "migrate")


def test_no_database(failure: Failure, monkeypatch: pytest.MonkeyPatch, answers: Path) -> None:
    """Nothing listens: every command says so and what to do."""
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", "postgresql://me:hidden@127.0.0.1:1/none")
    for arguments in needs_database(answers):
        said = failure(3, *arguments)
        assert "start PostgreSQL or correct RAGBLAME_DATABASE_URL" in said
        assert "hidden" not in said


def test_wrong_password(
    failure: Failure, database_url: str, monkeypatch: pytest.MonkeyPatch, answers: Path
) -> None:
    """The server refuses us: one line, without the password."""
    user, _, rest = database_url.partition("@")
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", f"{user.rpartition(':')[0]}:hidden@{rest}")
    for arguments in needs_database(answers):
        said = failure(3, *arguments)
        assert "the password is wrong" in said
        assert "hidden" not in said


def test_a_url_that_is_none(failure: Failure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nonsense for a URL is told without quoting it: a password may stand in it."""
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", "hidden@@:/nonsense")
    assert "hidden" not in failure(3, "migrate")


def test_not_migrated(
    failure: Failure, empty_database_url: str, monkeypatch: pytest.MonkeyPatch, answers: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Every command names `ragblame migrate`, which mends it, and says so when there is nothing to do."""
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", empty_database_url)
    for arguments in needs_database(answers)[1:]:
        assert "run `ragblame migrate`" in failure(3, *arguments)
    assert cli.run(["migrate"]) == 0
    assert "migrations applied" in capsys.readouterr().err
    assert cli.run(["migrate"]) == 0
    assert "up to date" in capsys.readouterr().err


# Extras and models -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "arguments", "extra"),
    [
        ("streamlit", ["ui"], "ui"),
        ("procrastinate", ["worker"], "worker"),
        ("numpy", ["explain", "0190"], "attribution"),
    ],
)
def test_missing_extras(
    failure: Failure, on_database: str, monkeypatch: pytest.MonkeyPatch, package: str,
    arguments: list[str], extra: str,
) -> None:  # fmt: skip
    """A part that is not installed is named with the extra that brings it."""
    for name in [
        name for name in sys.modules if name.startswith(("ragblame.attribution.jobs", package + "."))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    assert f"pip install 'ragblame[{extra}]'" in failure(6, *arguments)


def test_a_missing_model(failure: Failure, on_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scorer that is not there ends worker and explain with the setting to correct; the job stays."""
    pytest.importorskip("torch")
    trace = make_trace()
    store(on_database, trace, enqueue=True)
    monkeypatch.setenv("RAGBLAME_SCORER", "/nowhere/model")
    for arguments in (["worker", "--once"], ["explain", str(trace.id)]):
        said = failure(4, *arguments)
        assert "/nowhere/model" in said
        assert "RAGBLAME_SCORER" in said
    with database.connect(on_database) as conn:
        assert conn.execute("SELECT status::text, attempts FROM procrastinate_jobs").fetchall() == [
            ("todo", 0)
        ]


def test_an_unknown_architecture(
    failure: Failure, on_database: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A model family that nobody knows is named."""
    pytest.importorskip("torch")
    trace = make_trace()
    store(on_database, trace, enqueue=True)
    (tmp_path / "config.json").write_text('{"model_type": "abacus"}', "utf-8")
    monkeypatch.setenv("RAGBLAME_SCORER", str(tmp_path))
    for arguments in (["worker", "--once"], ["explain", str(trace.id)]):
        assert "abacus" in failure(4, *arguments)


# Commands --------------------------------------------------------------------------------------------


def test_import_names_bad_lines_and_keeps_the_rest(
    failure: Failure, on_database: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bad line's number on stderr, the others imported, exit code not 0; then mended and run again."""
    path = tmp_path / "a.jsonl.gz"
    lines = [json.dumps(GOOD_LINE), "{broken", json.dumps({**GOOD_LINE, "id": 2})]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    settings.load_settings.cache_clear()
    assert cli.run(["import", str(path), "--json"]) == 5
    out, err = capsys.readouterr()
    assert json.loads(out) == {"imported": 2, "known": 0, "malformed": 1}
    assert f"{path}, line 2: not JSON" in err
    assert "1 of 3 lines" in err
    assert "Traceback" not in err
    path.write_bytes(gzip.compress("\n".join([lines[0], lines[0].replace("1", "3"), lines[2]]).encode()))
    assert cli.run(["import", str(path), "--app", "mine"]) == 0
    assert "1 imported, 2 known already, 0 left out" in capsys.readouterr().err
    with database.connect(on_database) as conn:
        found = conn.execute("SELECT app, count(*) FROM trace GROUP BY app ORDER BY app").fetchall()
    assert found == [("mine", 1), ("toy", 2)]


def test_import_of_a_hopeless_file_ends(failure: Failure, on_database: str, tmp_path: Path) -> None:
    """A file of another kind names its first lines, not a million."""
    path = tmp_path / "a.jsonl"
    path.write_text("no\n" * 1_000, "utf-8")
    assert "1000 of 1000 lines" in failure(5, "import", str(path), lines=exchange.MAX_PROBLEMS + 2)


def test_import_of_no_file(failure: Failure, on_database: str, tmp_path: Path) -> None:
    """A missing file and a folder are one line."""
    for path in (tmp_path / "none.jsonl", tmp_path):
        assert "cannot be read" in failure(5, "import", str(path))


def test_explain_needs_one_trace(failure: Failure, on_database: str) -> None:
    """No id, an unknown one and an ambiguous beginning each say what to give."""
    one, two = make_trace(), make_trace()
    store(on_database, one, two)
    assert "is no trace id" in failure(5, "explain", "\x1b[2Jzz")
    assert "no trace begins with ffff" in failure(5, "explain", "ffff")
    said = failure(5, "explain", str(one.id)[:6])
    assert "give more of the id" in said
    assert str(one.id) in said
    assert str(two.id) in said


def test_retry_failed(
    on_database: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Failed attributions get a job again, each once; the others none."""
    failed, done, queued = make_trace(), make_trace(), make_trace()
    store(on_database, failed, done)
    store(on_database, queued, enqueue=True)
    with database.connect(on_database) as conn:
        for trace, state in ((failed, "failed"), (done, "done"), (queued, "failed")):
            conn.execute("INSERT INTO attribution_run (trace_id, state) VALUES (%s, %s)", (trace.id, state))
    from ragblame.attribution.jobs import worker as worker_module

    monkeypatch.setattr(worker_module, "run_worker", lambda *_, **__: worker_module.WorkerTally())
    assert cli.run(["worker", "--retry-failed"]) == 0
    assert "1 failed attributions put back" in capsys.readouterr().err
    assert cli.run(["worker", "--retry-failed"]) == 0
    assert "0 failed attributions put back" in capsys.readouterr().err
    with database.connect(on_database) as conn:
        jobs = conn.execute(
            "SELECT args ->> 'trace_id', queueing_lock FROM procrastinate_jobs ORDER BY id"
        ).fetchall()
    assert jobs == [(str(trace.id), f"attribute-{trace.id}") for trace in (queued, failed)]


def test_ui_refuses_a_taken_port(failure: Failure, on_database: str) -> None:
    """Before anything starts: the port, and how to choose another."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        said = failure(2, "ui", "--port", str(server.getsockname()[1]))
    assert "choose another --port" in said


def test_ui_serves_and_leaves_nothing_behind(on_database: str) -> None:
    """The page answers on loopback only; SIGTERM ends the command and its Streamlit."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "ragblame", "ui", "--port", str(port)], stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2) as answer:
                    assert answer.read() == b"ok"
                break
            except OSError:
                assert time.monotonic() < deadline, "the page never answers"
                assert process.poll() is None, process.stderr and process.stderr.read()
                time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=20)
        assert process.returncode == 0, said
        assert "Traceback" not in said
    finally:
        process.kill()
        process.wait()
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) != 0


# Hostile answers -------------------------------------------------------------------------------------


CHUNK = Chunk(position=0, text="Pump P-12 runs at 40 bar. Call Ann.")
PROMPT = (Message(role="human", text="Answer by this: Pump P-12 runs at 40 bar. Call Ann.\nWhat pressure?"),)
HOSTILE = {
    "no chunks": make_trace(answer="It runs at 40 bar."),
    "chunk not in the prompt": make_trace(
        answer="It runs at 40 bar.", chunks=(CHUNK,), prompt=(Message(role="human", text="What pressure?"),)
    ),
    "a megabyte": make_trace(answer="It runs at 40 bar. " * 52_000, chunks=(CHUNK,), prompt=PROMPT),
    "one endless word": make_trace(answer="x" * 200_000, chunks=(CHUNK,), prompt=PROMPT),
    "NUL and surrogates": make_trace(answer="It\0 is\ud800 40 bar.\0", chunks=(CHUNK,), prompt=PROMPT),
    "terminal escapes": make_trace(answer="\x1b[2J\x1b]0;owned\x07 runs at 40 bar.", chunks=(CHUNK,)),
    "markup": make_trace(answer="[red]It[/] runs at 40 [bar].", chunks=(CHUNK,), prompt=PROMPT),
}  # fmt: skip


@pytest.mark.parametrize("trace", HOSTILE.values(), ids=list(HOSTILE))
def test_explain_takes_any_answer(on_database: str, capsys: pytest.CaptureFixture[str], trace: Trace) -> None:
    """Whatever was recorded is attributed, shown without power over the terminal, and stored."""
    store(on_database, trace)
    assert cli.run(["explain", str(trace.id)]) == 0
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert all(sign.isprintable() or sign == "\n" for sign in out)
    assert str(trace.id) in out
    with database.connect(on_database) as conn:
        assert conn.execute("SELECT state, error FROM attribution_run").fetchall() == [("done", None)]


def test_explain_as_json(on_database: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on stdout with spans, verdicts and shares that sum to the reliance."""
    trace = make_trace(
        question="What pressure?", answer="Pump P-12 runs at 40 bar.", chunks=(CHUNK,), prompt=PROMPT
    )
    store(on_database, trace)
    assert cli.run(["explain", str(trace.id).upper(), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["trace"]["id"] == str(trace.id)
    assert len(said["verdicts"]) == len(said["spans"]) > 0
    for attribution in said["attributions"]:
        if attribution["method"] == "shapley":
            assert sum(attribution["shares"]) == pytest.approx(attribution["reliance"], abs=1e-4)


def test_explain_splits_the_chunk_that_matters_into_sentences(
    on_database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sentence that states the value gets the share, and the sentences sum to that of their chunk."""
    text = "The Kestrel gateway is hosted in north Selby. The port of the Kestrel gateway is 2959."
    chunks = (Chunk(position=0, text="The Onyx index is owned by Ada Berg."), Chunk(position=1, text=text))
    question = "What is the port of the Kestrel gateway?"
    lines = "".join(f"{chunk.text}\n" for chunk in chunks)
    prompt = (Message(role="prompt", text=f"{lines}Question: {question}\nAnswer:"),)
    trace = make_trace(
        question=question, answer="The port of the Kestrel gateway is 2959.", chunks=chunks, prompt=prompt
    )
    store(on_database, trace)
    assert cli.run(["explain", str(trace.id), "--sentences", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    answer = trace.answer
    value = next(s["index"] for s in said["spans"] if answer[s["start"] : s["end"]] == "2959")
    found = next(one for one in said["sentences"] if one["span"] == value)
    shares = [one["share"] for one in found["sentences"]]
    best = max(found["sentences"], key=lambda one: one["share"])
    assert found["position"] == 1
    assert sum(shares) == pytest.approx(found["chunk_share"], abs=1e-6)
    assert text[best["start"] : best["end"]] == "The port of the Kestrel gateway is 2959."
    assert cli.run(["explain", str(trace.id), "--sentences"]) == 0
    assert "sentences of the chunk with the largest share" in capsys.readouterr().out


def test_explain_of_an_empty_answer(failure: Failure, on_database: str) -> None:
    """There is nothing to attribute: one line, exit code not 0."""
    trace = make_trace(answer=" \n")
    store(on_database, trace)
    assert "the answer is empty" in failure(5, "explain", str(trace.id))


def test_a_real_worker_attributes_what_was_imported(on_database: str, answers: Path) -> None:
    """Import, then `ragblame worker --once` as a process with the shipped model: attributed, none left."""
    assert cli.run(["import", str(answers)]) == 0
    found = command("worker", "--once")
    assert (found.returncode, found.stdout) == (0, "")
    assert "1 attributed, 0 failed" in found.stderr
    with database.connect(on_database) as conn:
        rows = conn.execute("SELECT state, scorer, is_fit FROM attribution_run").fetchall()
        assert conn.execute("SELECT count(*) FROM procrastinate_jobs").fetchall() == [(0,)]
    assert rows[0][:2] == ("done", "ragblame small model")
