"""Captured traces reach PostgreSQL exactly once, whatever happens to the server, the process or a trace."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from langchain_core.language_models import FakeListChatModel

import ragblame
from ragblame import database, postgres_binaries, postgres_cluster
from ragblame.plugin import recorder as recorder_module
from ragblame.plugin import spool as spool_module
from ragblame.plugin import writer as writer_module
from ragblame.plugin.counters import counters
from ragblame.plugin.handler import BlameHandler
from ragblame.plugin.recorder import Recorder
from ragblame.plugin.run_tree import open_runs
from ragblame.plugin.spool import Spool, inspect_spool
from ragblame.plugin.writer import REPLAYED_AT_ONCE, Writer
from ragblame.records import Chunk, Trace
from ragblame.settings import Settings
from ragblame.traces import read_trace, write_traces
from tests.capture import ANSWER, installed, make_chain, settings_for
from tests.folders import open_folder
from tests.test_traces import make_trace

ROOT = Path(__file__).resolve().parent.parent


def stored(url: str) -> dict[str, int]:
    """Rows of each table that a capture writes; the questions are counted distinct."""
    with database.connect(url) as conn:
        row = conn.execute(
            "SELECT (SELECT count(*) FROM trace), (SELECT count(DISTINCT question) FROM trace), "
            "(SELECT count(*) FROM trace_chunk), (SELECT count(*) FROM procrastinate_jobs)"
        ).fetchone()
    assert row is not None
    return dict(zip(("traces", "questions", "chunks", "jobs"), row, strict=True))


def run_script(body: str, url: str, data_dir: Path) -> subprocess.CompletedProcess[str]:
    """Run Python in a fresh process with the capture configured by environment, as a user's service is."""
    environment = {**os.environ, "RAGBLAME_DATABASE_URL": url, "RAGBLAME_DATA_DIR": str(data_dir)}
    head = "import os, sys, ragblame\nfrom tests.capture import make_chain\nragblame.attach(app='script')\n"
    return subprocess.run(
        [sys.executable, "-c", head + body],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class OwnServer:
    """A migrated PostgreSQL that a test may stop and start again at the same address."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.account = postgres_binaries.choose_account(home / "data")
        postgres_cluster.create_cluster(home, self.account)
        self.port = postgres_cluster.choose_port(home)
        self.process: subprocess.Popen[bytes] | None = None
        password = (home / "password").read_text("ascii")
        self.url = f"postgresql://ragblame:{password}@127.0.0.1:{self.port}/ragblame"

    def start(self) -> None:
        """Start and wait until it takes connections."""
        self.process = postgres_cluster.start_server(self.home, self.port, self.account, {"fsync": "off"})
        deadline = time.monotonic() + 60
        while not postgres_cluster.is_ready(self.home, self.process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def freeze(self) -> None:
        """Every process of it stops where it stands."""
        for pid in postgres_cluster.processes_in(self.home / "data"):
            os.kill(pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """They go on."""
        for pid in postgres_cluster.processes_in(self.home / "data"):
            os.kill(pid, signal.SIGCONT)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop it: by default ending its sessions at once."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait(30)
            self.process = None


@pytest.fixture(scope="module")
def own_server() -> Iterator[OwnServer]:
    """One server for the tests that take it away."""
    home = open_folder()
    server = OwnServer(home)
    try:
        server.start()
        database.migrate(server.url)
        yield server
    finally:
        server.stop(signal.SIGQUIT)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(autouse=True)
def clean_process() -> Iterator[None]:
    """No test leaves the process attached, or counts of its own to be saved by the next."""
    counters.mark_saved(counters.unsaved())
    yield
    ragblame.detach()


def test_a_chain_becomes_rows_and_jobs(database_url: str, data_dir: Path) -> None:
    """invoke, then flush: trace, chunks, texts and job are there in one piece, equal to what was captured."""
    seen: list[Trace] = []
    with installed(settings_for(database_url, data_dir, app="from settings")) as recorder:
        ragblame.attach()
        for number in range(20):
            make_chain().invoke(f"q{number}")
        assert recorder.flush(20)
        make_chain().invoke("q20", {"callbacks": [BlameHandler(sink=seen.append)]})
        assert recorder.flush(20)
    assert stored(database_url) == {"traces": 20, "questions": 20, "chunks": 40, "jobs": 20}
    with database.connect(database_url) as conn:
        found = conn.execute("SELECT id FROM trace WHERE question = 'q7'").fetchone()
        assert found is not None
        trace = read_trace(conn, found[0])
    assert (trace.app, trace.answer, trace.origin) == ("from settings", ANSWER, "callback")
    assert [chunk.text for chunk in trace.chunks] == ["Note 1 about q7.", "Note 2 about q7."]
    assert [trace.question for trace in seen] == ["q20"]
    assert inspect_spool(data_dir / "spool").waiting == 0


def test_the_chain_never_waits_for_the_database(data_dir: Path) -> None:
    """With a database that swallows packets, a chain takes no longer, and flush gives up on time."""
    with installed(settings_for("postgresql://ragblame@192.0.2.1:5432/x", data_dir)) as recorder:
        ragblame.attach()
        make_chain().invoke("warm")
        began = time.monotonic()
        for number in range(20):
            make_chain().invoke(f"q{number}")
        assert time.monotonic() - began < 5
        began = time.monotonic()
        assert recorder.flush(0.5) is False
        assert time.monotonic() - began < 2
        recorder.close(0.5)
    assert inspect_spool(data_dir / "spool").waiting >= 21


def test_a_stopped_server_costs_nothing(own_server: OwnServer, data_dir: Path) -> None:
    """The server stops during capture: traces are spooled; it comes back: each is replayed once."""
    with installed(settings_for(own_server.url, data_dir)) as recorder:
        ragblame.attach()
        make_chain().invoke("before")
        assert recorder.flush(20)
        own_server.stop()
        for number in range(30):
            make_chain().invoke(f"away {number}")
        assert recorder.flush(10) is False
        assert inspect_spool(data_dir / "spool").waiting == 30
        own_server.start()
        make_chain().invoke("after")
        assert recorder.flush(20)
        assert inspect_spool(data_dir / "spool").waiting == 0
        make_chain().invoke("again")
        assert recorder.flush(20)
    assert stored(own_server.url) == {"traces": 33, "questions": 33, "chunks": 66, "jobs": 33}
    counts = inspect_spool(data_dir / "spool").counts
    # the first trace after an outage may still go by the spool: a failed server is left alone for a second
    assert 30 <= counts["spooled"] == counts["replayed"] <= 31
    assert not [name for name in counts if name.startswith("dropped")]


def test_a_restarted_server_is_not_noticed(own_server: OwnServer, data_dir: Path) -> None:
    """A connection that died with its server is opened anew at once, without the spool."""
    before = stored(own_server.url)["traces"]
    with installed(settings_for(own_server.url, data_dir)) as recorder:
        ragblame.attach()
        make_chain().invoke("one")
        assert recorder.flush(20)
        own_server.stop()
        own_server.start()
        make_chain().invoke("two")
        assert recorder.flush(20)
    assert stored(own_server.url)["traces"] == before + 2
    assert not (data_dir / "spool").exists()


def test_a_frozen_server_is_given_up(
    own_server: OwnServer, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that keeps its sockets open and answers nothing costs seconds, then the spool takes over."""
    monkeypatch.setattr(writer_module, "LIVE_SECONDS", 0.3)
    before = stored(own_server.url)
    with installed(settings_for(own_server.url, data_dir)) as recorder:
        ragblame.attach()
        make_chain().invoke("before")
        assert recorder.flush(20)
        own_server.freeze()
        try:
            for number in range(10):
                make_chain().invoke(f"frozen {number}")
            assert recorder.flush(30) is False
            assert inspect_spool(data_dir / "spool").waiting == 10
        finally:
            own_server.thaw()
        assert recorder.flush(30)
    after = stored(own_server.url)
    assert {name: after[name] - before[name] for name in ("traces", "jobs", "chunks")} == {
        "traces": 11,
        "jobs": 11,
        "chunks": 22,
    }
    assert inspect_spool(data_dir / "spool").lost == 0


def test_a_slow_server_is_relieved_by_the_spool(
    own_server: OwnServer, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a table is locked and half of the memory is taken, traces go to disk, and none is dropped."""
    monkeypatch.setattr(writer_module, "LIVE_SECONDS", 600.0)  # slow is not silent
    before = stored(own_server.url)["traces"]
    deadline = time.monotonic() + 60
    with (
        installed(settings_for(own_server.url, data_dir, queue_max_traces=40)) as recorder,
        database.connect(own_server.url) as locker,
    ):
        ragblame.attach()
        make_chain().invoke("before")
        assert recorder.flush(20)
        locker.execute("LOCK TABLE ragblame.trace IN ACCESS EXCLUSIVE MODE")
        for number in range(100):
            while recorder.waiting.load[0] >= 39:
                assert time.monotonic() < deadline, "the writer waits for the server"
                time.sleep(0.01)  # a host slower than the disk, and far faster than this server
            make_chain().invoke(f"slow {number}")
        while inspect_spool(data_dir / "spool").waiting == 0:
            assert time.monotonic() < deadline, "nothing went to disk"
            time.sleep(0.02)
        assert inspect_spool(data_dir / "spool").waiting > 0
        locker.rollback()
        assert recorder.flush(30)
    assert stored(own_server.url)["traces"] == before + 101
    assert inspect_spool(data_dir / "spool").lost == 0


def test_safe_means_committed_or_synced(own_server: OwnServer, data_dir: Path) -> None:
    """An audit hears of exactly the traces that are in PostgreSQL or on disk, and never of a dropped one."""
    heard: list[UUID] = []
    load = settings_for(own_server.url, data_dir, spool_max_bytes=8_000)
    recorder = Recorder(load, on_safe=heard.extend)
    before = recorder_module.install(recorder)
    try:
        ragblame.attach()
        make_chain().invoke("stored")
        assert recorder.flush(20)
        assert len(heard) == 1
        own_server.stop()
        for number in range(30):
            make_chain().invoke(f"away {number}")
        assert recorder.flush(20) is False
    finally:
        recorder_module.install(before)
        recorder.close(10)
        own_server.start()
    spool = inspect_spool(data_dir / "spool")
    assert 0 < spool.waiting < 30
    assert spool.counts["dropped_spool_full"] == 30 - spool.waiting
    kept: list[Trace] = []
    Spool(data_dir / "spool", 10**7).replay(kept.extend)
    assert heard[1:] == [trace.id for trace in kept]
    with database.connect(own_server.url) as conn:
        assert read_trace(conn, heard[0]).question == "stored"


def test_a_trace_that_cannot_be_made_is_counted(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault of ours between the callback and the trace is a loss, and shows as one."""

    def fail(*_: object) -> Trace:
        raise ZeroDivisionError

    monkeypatch.setattr("ragblame.plugin.assembly.assemble", fail)
    before = counters.lost()
    with installed(settings_for("postgresql://ragblame@127.0.0.1:1/x", data_dir)) as recorder:
        ragblame.attach()
        assert make_chain().invoke("q") == ANSWER
        recorder.flush(10)
    assert counters.lost() == before + 1


def test_no_trace_is_blamed_for_the_connection(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever fails while connecting is an outage: the traces wait, none is refused."""

    def fail(*_: object, **__: object) -> None:
        raise OSError("no such service file")

    writer = Writer(settings_for(database_url, data_dir)())
    monkeypatch.setattr(database, "connect", fail)
    assert len(writer.write([make_trace(), make_trace()])) == 2
    writer.spool.close()
    state = inspect_spool(data_dir / "spool")
    assert (state.waiting, state.refused) == (2, 0)


def test_a_later_process_replays(own_server: OwnServer, data_dir: Path) -> None:
    """What one process left on the spool, the next one that captures brings home."""
    before = stored(own_server.url)["traces"]
    nowhere = own_server.url.replace(str(own_server.port), "1")
    left = run_script("for n in range(5): make_chain().invoke(f'left {n}')", nowhere, data_dir)
    assert left.returncode == 0, left.stderr
    assert "traces wait in" in left.stderr  # said, not thrown
    assert inspect_spool(data_dir / "spool").waiting == 5
    found = run_script("make_chain().invoke('found')", own_server.url, data_dir)
    assert found.returncode == 0, found.stderr
    assert stored(own_server.url)["traces"] == before + 6
    assert inspect_spool(data_dir / "spool").waiting == 0


def test_a_process_that_ends_at_once_loses_nothing(database_url: str, data_dir: Path) -> None:
    """The last line of a script is the invoke: the row is there when the process has ended, and fast."""
    done = run_script("make_chain().invoke('goodbye')", database_url, data_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert stored(database_url) == {"traces": 1, "questions": 1, "chunks": 2, "jobs": 1}


def test_an_uncaught_exception_loses_nothing(database_url: str, data_dir: Path) -> None:
    """A script that dies of its own error after the answer has still recorded it."""
    done = run_script("make_chain().invoke('q'); sys.exit(7)", database_url, data_dir)
    assert done.returncode == 7
    assert stored(database_url)["traces"] == 1


def test_forks_record_on_their_own(database_url: str, data_dir: Path) -> None:
    """Parent and two forks capture around the fork: every row once, no deadlock, no stolen socket."""
    body = """
make_chain().invoke('parent before')
children = []
for n in range(2):
    child = os.fork()
    if child == 0:
        make_chain().invoke(f'child {n}')
        ok = ragblame.flush(20)
        os._exit(0 if ok else 3)
    children.append(child)
make_chain().invoke('parent after')
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
make_chain().invoke('parent last')
print(codes, ragblame.flush(20))
"""
    done = run_script(body, database_url, data_dir)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "[0, 0] True\n")
    assert stored(database_url) == {"traces": 5, "questions": 5, "chunks": 10, "jobs": 5}


def test_multiprocessing_children_flush(database_url: str, data_dir: Path) -> None:
    """Children of multiprocessing end without atexit; their traces are there all the same."""
    body = """
import multiprocessing
def ask(n): make_chain().invoke(f'worker {n}')
make_chain().invoke('parent')
workers = [multiprocessing.get_context('fork').Process(target=ask, args=(n,)) for n in range(2)]
[w.start() for w in workers]; [w.join() for w in workers]
"""
    done = run_script(body, database_url, data_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert stored(database_url)["questions"] == 3


def test_a_killed_process_leaves_whole_traces(database_url: str, data_dir: Path) -> None:
    """kill -9 while capturing: what is stored is whole, is nearly everything, and is not doubled."""
    body = "n = 0\nwhile True:\n    make_chain().invoke(f'q{n}'); n += 1; print(n, flush=True)"
    head = "import ragblame\nfrom tests.capture import make_chain\nragblame.attach()\n"
    environment = {**os.environ, "RAGBLAME_DATABASE_URL": database_url, "RAGBLAME_DATA_DIR": str(data_dir)}
    process = subprocess.Popen(
        [sys.executable, "-c", head + body], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    answered = 0
    deadline = time.monotonic() + 30
    while stored(database_url)["traces"] < 100 and time.monotonic() < deadline:
        answered = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    printed = process.communicate()[0].split()
    answered = int(printed[-1]) if printed else answered
    rows = stored(database_url)
    assert rows["traces"] >= 100
    assert rows["chunks"] == 2 * rows["traces"]
    assert rows["jobs"] == rows["questions"] == rows["traces"]
    assert rows["traces"] >= answered - 120  # a batch in hand and what came in meanwhile
    Spool(data_dir / "spool", 10**7).replay(lambda traces: None)  # readable, if there is one


def test_a_poisonous_trace_is_set_apart(database_url: str, data_dir: Path) -> None:
    """A trace that cannot be stored costs itself only: the rest of its batch is written."""
    writer = Writer(settings_for(database_url, data_dir)())
    bad = make_trace(chunks=(Chunk(position=0, text="a"), Chunk(position=0, text="b")))
    writer.write([make_trace(), bad, make_trace()])
    writer.disconnect()
    assert stored(database_url)["traces"] == 2
    assert inspect_spool(data_dir / "spool").waiting == 0


def test_an_unstorable_trace_is_refused_by_the_server(
    database_url: str, data_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What only PostgreSQL finds out (here by a constraint) is set apart with its words, once."""
    with database.connect(database_url) as conn:
        conn.execute("ALTER TABLE trace ADD CHECK (question <> 'forbidden')")
    writer = Writer(settings_for(database_url, data_dir)())
    writer.write([make_trace(), make_trace(question="forbidden"), make_trace()])
    writer.disconnect()
    writer.spool.close()
    assert stored(database_url)["traces"] == 2
    assert inspect_spool(data_dir / "spool").refused == 1
    assert "violates check constraint" in caplog.text


def test_an_unmigrated_database_waits(empty_database_url: str, data_dir: Path) -> None:
    """Nobody migrates a configured database behind its owner's back: traces wait for it."""
    with installed(settings_for(empty_database_url, data_dir)) as recorder:
        ragblame.attach()
        make_chain().invoke("early")
        assert recorder.flush(10) is False
        assert inspect_spool(data_dir / "spool").waiting == 1
        database.migrate(empty_database_url)
        assert recorder.flush(20)
    assert stored(empty_database_url)["traces"] == 1


def test_unreadable_settings_spool(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting stops neither the chain nor the record: it waits where the doctor looks."""
    monkeypatch.setenv("RAGBLAME_DATABASE_URI", "postgresql://x")
    monkeypatch.setenv("XDG_DATA_HOME", str(data_dir))
    with installed() as recorder:
        ragblame.attach()
        assert make_chain().invoke("q") == ANSWER
        assert recorder.flush(10) is False
    assert inspect_spool(data_dir / "ragblame" / "spool").waiting == 1


def test_an_unusable_spool_is_counted(data_dir: Path) -> None:
    """No database and no disk: the chain goes on, traces are dropped and counted."""
    data_dir.joinpath("spool").write_text("a file, not a folder")
    before = counters.snapshot().get("dropped_spool_error", 0)
    with installed(settings_for("postgresql://ragblame@127.0.0.1:1/x", data_dir)) as recorder:
        ragblame.attach()
        assert make_chain().invoke("q") == ANSWER
        assert recorder.flush(10) is False
    assert counters.snapshot()["dropped_spool_error"] == before + 1


def test_a_stuck_writer_bounds_memory_and_is_rescued(data_dir: Path) -> None:
    """While the writer hangs, the queue fills to its limit and no further; nothing queued is lost."""
    gate = threading.Event()
    load = settings_for("postgresql://ragblame@127.0.0.1:1/x", data_dir)

    def stuck() -> Settings:
        gate.wait(20)
        return load()

    before = counters.snapshot().get("dropped_queue_full", 0)
    with installed(stuck) as recorder:
        recorder.waiting.max_traces = 10
        ragblame.attach()
        began = time.monotonic()
        for number in range(25):
            make_chain().invoke(f"q{number}")
        assert time.monotonic() - began < 5
        assert counters.snapshot()["dropped_queue_full"] == before + 15
        assert recorder.flush(0.1) is False
        gate.set()
        assert recorder.flush(10) is False
    assert inspect_spool(data_dir / "spool").waiting == 10
    assert len(open_runs) == 0


def test_what_is_rescued_at_exit_takes_no_more_events(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace spooled because the thread hangs is whole: its runs are closed, later events change nothing."""
    entered, gate = threading.Event(), threading.Event()

    def hang(self: Writer, traces: Any) -> Any:
        entered.set()
        gate.wait(20)
        return ()

    monkeypatch.setattr(Writer, "write", hang)
    with installed(settings_for("postgresql://ragblame@127.0.0.1:1/x", data_dir)) as recorder:
        ragblame.attach()
        make_chain().invoke("first")
        assert entered.wait(10)
        make_chain().invoke("second")
        assert len(open_runs) == 1
        recorder.close(0.1)
        assert len(open_runs) == 0
        assert inspect_spool(data_dir / "spool").waiting == 2
        gate.set()


def test_the_embedded_server_takes_what_has_no_other_home(data_dir: Path) -> None:
    """With nothing configured, the writer starts and migrates the embedded server; no chain waits."""
    with installed(settings_for(None, data_dir)) as recorder:
        ragblame.attach()
        began = time.monotonic()
        make_chain().invoke("q")
        assert time.monotonic() - began < 1.5
        assert recorder.flush(60)
    assert stored(database.resolve_url(Settings(data_dir=data_dir)))["traces"] == 1


def test_capture_inside_a_garbage_collection(data_dir: Path) -> None:
    """A model run that a collection sets off while this thread holds our locks does not deadlock."""
    seen: list[Trace] = []
    with installed(settings_for("postgresql://ragblame@127.0.0.1:1/x", data_dir)) as recorder:
        config: Any = {"callbacks": [BlameHandler(sink=seen.append)]}

        class Finalizer:
            def __del__(self) -> None:
                FakeListChatModel(responses=["done"]).invoke("from a finalizer", config)

        for _ in range(5):
            cycle: list[Any] = [Finalizer()]
            cycle.append(cycle)
            del cycle
            with recorder._lock, recorder.waiting._lock, counters._lock:
                gc.collect()
        assert recorder.flush(20)
    assert len(seen) == 5


def test_flush_without_traces_is_free() -> None:
    """A process that captured nothing starts no thread and waits for nothing."""
    with installed() as recorder:
        threads = threading.active_count()
        assert recorder.flush(0) is True
        recorder.close()
        assert threading.active_count() == threads
    assert recorder_module.recorder() is not recorder
    FakeListChatModel(responses=[""]).invoke("unrecorded")


@pytest.mark.parametrize("times", [1, 3])
def test_replaying_a_file_again_changes_nothing(
    database_url: str, data_dir: Path, times: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replay that is cut off after its commit and before its delete is repeated without a second row."""
    spool = Spool(data_dir / "spool", 10**7)
    spool.append([make_trace() for _ in range(10)])
    spool.close()
    store: Callable[[Any], None]
    with database.connect(database_url) as conn:

        def store(traces: Any) -> None:
            write_traces(conn, traces)
            conn.commit()

        monkeypatch.setattr(Path, "unlink", lambda path: None)
        for _ in range(times):
            spool.replay(store)
        monkeypatch.undo()
        spool.replay(store)
    assert stored(database_url)["traces"] == stored(database_url)["jobs"] == 10
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT count(*) FROM ragblame.chunk_text").fetchone() == (1,)


def spool_files_of(spool: Spool, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many files of one trace each."""
    with monkeypatch.context() as patch:
        patch.setattr(spool_module, "ROTATE_BYTES", 1)
        for _ in range(count):
            spool.append([make_trace()])


def test_a_replay_rests_longer_than_it_works(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the background a few traces are followed by a rest; who waits in flush is not kept waiting."""
    writer = Writer(settings_for(database_url, data_dir)())
    spool_files_of(writer.spool, 2 * REPLAYED_AT_ONCE, monkeypatch)
    began = time.monotonic()
    writer.replay()
    took = time.monotonic() - began
    rest = writer.next_wakeup()
    assert rest is not None
    assert rest > min(took, 0.4)
    writer.replay()  # it rests
    assert stored(database_url)["traces"] == REPLAYED_AT_ONCE
    assert writer.replay(everything=True)
    writer.disconnect()
    assert stored(database_url)["traces"] == 2 * REPLAYED_AT_ONCE


def test_new_traces_do_not_wait_for_a_replay(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a replay rests, an answer is stored at once: what waits in memory dies with the host."""
    monkeypatch.setattr("ragblame.plugin.writer.REST_PER_WORK", 1e9)
    monkeypatch.setattr("ragblame.plugin.writer.LONGEST_REPLAY_REST", 3_600.0)
    spool_files_of(Spool(data_dir / "spool", 10**7), 100, monkeypatch)
    with installed(settings_for(database_url, data_dir)):
        ragblame.attach()
        for number in range(3):
            assert make_chain().invoke(f"new {number}") == ANSWER
        deadline = time.monotonic() + 30
        while stored_questions(database_url, "new") < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert stored_questions(database_url, "new") == 3
        assert inspect_spool(data_dir / "spool").waiting > 0
    writer = Writer(settings_for(database_url, data_dir)())
    assert writer.replay(everything=True)
    writer.disconnect()
    assert stored(database_url)["traces"] == 103


def stored_questions(url: str, start: str) -> int:
    """Traces whose question begins so."""
    with psycopg.connect(url) as conn:
        row = conn.execute(
            "SELECT count(*) FROM ragblame.trace WHERE starts_with(question, %s)", (start,)
        ).fetchone()
    assert row is not None
    return int(row[0])
