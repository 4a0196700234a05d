"""The embedded server under real faults: its processes killed, frozen, racing and late."""

import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import psycopg
import pytest

from ragblame import database, postgres
from ragblame.errors import DatabaseError, EmbeddedPostgresError
from tests.embedded_server import IS_ROOT, STOPS_WITHIN, client, eventually, pid_of, query, running, servers


def test_data_port_and_password_outlive_the_server(used_dir: Path) -> None:
    """A stopped server comes back at the same URL with the same rows."""
    url = postgres.ensure_running(used_dir)
    query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    postgres.stop(used_dir)
    assert postgres.status(used_dir).state == "stopped"
    assert not running(used_dir)
    assert postgres.ensure_running(used_dir) == url
    assert query(url, "SELECT answer FROM kept") == [(42,)]


def test_looking_starts_nothing(empty_dir: Path) -> None:
    """``status`` and ``stop`` on a folder without a server leave it as it is."""
    assert postgres.status(empty_dir).state == "absent"
    postgres.stop(empty_dir)
    assert list(empty_dir.iterdir()) == []


def test_pool_survives_kill_of_the_server(used_dir: Path) -> None:
    """After kill -9 of the server its rows are there, on the same port, for a pool that is open."""
    url = postgres.ensure_running(used_dir)
    with database.open_pool(url) as pool:
        with pool.connection() as conn:
            conn.execute("CREATE TABLE public.kept AS SELECT generate_series(1, 1000) AS row")
        killed = pid_of(used_dir)
        os.kill(killed, signal.SIGKILL)

        def answers() -> bool:
            try:
                with pool.connection(timeout=5) as conn:
                    return conn.execute("SELECT count(*) FROM public.kept").fetchone() == (1000,)
            except psycopg.Error:
                return False

        # the killed server's own backend may answer for an instant, until it notices that it is alone
        eventually(lambda: postgres.status(used_dir).server_pid not in (None, killed), 60)
        eventually(answers, 60)
        assert postgres.ensure_running(used_dir) == url


def test_server_stops_after_its_killed_client(used_dir: Path) -> None:
    """A client that ends by kill -9 does not keep the server."""
    with client(used_dir) as (process, url):
        time.sleep(4)  # longer than the patience with an unused server
        assert query(url, "SELECT 1") == [(1,)]
        process.kill()
        eventually(lambda: not running(used_dir), STOPS_WITHIN)
    eventually(lambda: postgres.status(used_dir).state == "stopped", 5)


def test_killed_supervisor_is_replaced(used_dir: Path) -> None:
    """After kill -9 of the supervisor the clients start another, and the pool finds its server again."""
    url = postgres.ensure_running(used_dir)
    with client(used_dir), database.open_pool(url) as pool:
        before = postgres.status(used_dir)
        assert before.supervisor_pid is not None
        os.kill(before.supervisor_pid, signal.SIGKILL)
        eventually(
            lambda: (
                (now := postgres.status(used_dir)).state == "ready"
                and now.supervisor_pid != before.supervisor_pid
            ),
            60,
        )
        assert postgres.status(used_dir).port == before.port
        with pool.connection() as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)
        assert servers(used_dir) == [pid_of(used_dir)]


def test_nothing_is_left_when_supervisor_and_client_are_killed(used_dir: Path) -> None:
    """With nobody left to notice, the kernel still ends the server."""
    with client(used_dir) as (process, _):
        supervisor = postgres.status(used_dir).supervisor_pid
        assert supervisor is not None
        assert running(used_dir)
        process.kill()
        os.kill(supervisor, signal.SIGKILL)
        eventually(lambda: not running(used_dir), STOPS_WITHIN)


def test_racing_cold_starts_share_one_server(empty_dir: Path) -> None:
    """Six processes that find an empty folder at once share one server, which outlives all but the last."""
    with ExitStack() as stack:
        found: list[str] = []

        def start() -> None:
            found.append(stack.enter_context(client(empty_dir))[1])

        threads = [threading.Thread(target=start) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 6
        assert len(set(found)) == 1
        assert servers(empty_dir) == [pid_of(empty_dir)]
    eventually(lambda: not running(empty_dir), STOPS_WITHIN)


def test_terminated_supervisor_is_replaced(used_dir: Path) -> None:
    """A SIGTERM that was meant for the service of one client does not take the server from the others."""
    url = postgres.ensure_running(used_dir)
    supervisor = postgres.status(used_dir).supervisor_pid
    assert supervisor is not None
    os.kill(supervisor, signal.SIGTERM)
    eventually(lambda: postgres.status(used_dir).supervisor_pid not in (None, supervisor), 30)
    assert postgres.ensure_running(used_dir) == url
    assert query(url, "SELECT 1") == [(1,)]


def test_fork_keeps_the_server(used_dir: Path) -> None:
    """A fork counts as a user of the server after its parent is gone, and can ask for the URL itself."""
    code = """
        import os, sys, time
        from pathlib import Path
        from ragblame import postgres
        url = postgres.ensure_running(Path(sys.argv[1]))
        if os.fork():
            os._exit(0)
        assert postgres.ensure_running(Path(sys.argv[1])) == url
        print(url, flush=True)
        sys.stdin.read()
    """
    with client(used_dir, code) as (process, url):
        process.wait(10)
        time.sleep(4)
        assert query(url, "SELECT 1") == [(1,)]
        assert process.stdin is not None
        process.stdin.close()
        eventually(lambda: not running(used_dir), STOPS_WITHIN)


def test_asked_stop_is_respected_until_somebody_comes_back(used_dir: Path) -> None:
    """Clients that watch the supervisor do not undo a stop; the next call starts the server again."""
    url = postgres.ensure_running(used_dir)
    with client(used_dir):
        postgres.stop(used_dir)
        time.sleep(1)
        assert postgres.status(used_dir).state == "stopped"
        assert postgres.ensure_running(used_dir) == url


def test_taken_port_is_left_to_its_owner(used_dir: Path) -> None:
    """When another program took the port meanwhile, the server moves to the next."""
    url = postgres.ensure_running(used_dir)
    port = postgres.status(used_dir).port
    assert port is not None
    postgres.stop(used_dir)
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", port))
        other.listen()
        moved = postgres.ensure_running(used_dir)
        assert moved != url
        assert query(moved, "SELECT 1") == [(1,)]


def test_pid_file_naming_another_program(used_dir: Path) -> None:
    """After a reboot the old process id may be anybody's: it is neither signalled nor an obstacle."""
    url = postgres.ensure_running(used_dir)
    postgres.stop(used_dir)
    with subprocess.Popen(["sleep", "60"]) as innocent:
        (used_dir / "postgres" / "data" / "postmaster.pid").write_text(f"{innocent.pid}\n{used_dir}\n")
        assert postgres.ensure_running(used_dir) == url
        assert innocent.poll() is None
        innocent.kill()


def test_recovery_longer_than_ten_seconds(used_dir: Path) -> None:
    """A server that needs long to recover is waited for."""
    url = postgres.ensure_running(used_dir)
    query(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    postgres.stop(used_dir)
    data = used_dir / "postgres" / "data"
    (data / "recovery.signal").touch()
    with (data / "postgresql.auto.conf").open("a") as file:
        file.write("restore_command = 'sleep 6; false'\n")
    if IS_ROOT:
        owner = data.stat()
        os.chown(data / "recovery.signal", owner.st_uid, owner.st_gid)
    began = time.monotonic()
    postgres.ensure_running(used_dir)
    assert time.monotonic() - began > 10
    assert query(url, "SELECT answer FROM kept") == [(42,)]


def test_impatient_client_gets_an_error(empty_dir: Path) -> None:
    """A client's own limit is kept, with the next step in the text."""
    with pytest.raises(EmbeddedPostgresError, match="try again"):
        postgres.ensure_running(empty_dir, timeout=0.0)


def test_frozen_server_gives_errors_not_hangs(used_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With every process of the server stopped, a connection and a pool fail in time, and it can be ended."""
    url = postgres.ensure_running(used_dir)
    monkeypatch.setattr(database, "CHECK_TIMEOUT", 0.5)
    with database.open_pool(url, max_size=1) as pool:
        with pool.connection() as conn:
            conn.execute("SELECT 1")
        for pid in running(used_dir):
            os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(DatabaseError, match="does not answer in time"):
            database.connect(f"{url}&connect_timeout=2")
        with pytest.raises(psycopg.OperationalError), pool.connection(timeout=1):
            pass
        assert time.monotonic() - began < 10
    postgres.stop(used_dir)
    assert not running(used_dir)


def test_deleted_folder_takes_its_server_along(used_dir: Path) -> None:
    """Whoever deletes the data folder under a running server gets no orphan, and can start afresh."""
    url = postgres.ensure_running(used_dir)
    server = pid_of(used_dir)
    shutil.rmtree(used_dir / "postgres", ignore_errors=True)  # the server removes files meanwhile
    shutil.rmtree(used_dir / "postgres", ignore_errors=True)
    assert not (used_dir / "postgres").exists()
    eventually(lambda: not Path(f"/proc/{server}").exists(), STOPS_WITHIN)
    assert postgres.ensure_running(used_dir) != url


def test_password_is_not_given_to_who_took_the_port(used_dir: Path) -> None:
    """A stranger on our port who asks for the bare password does not get it."""
    postgres.ensure_running(used_dir)
    password = (used_dir / "postgres" / "password").read_text()
    heard = b""
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        stranger.settimeout(10)

        def ask() -> None:
            nonlocal heard
            while True:
                conn, _ = stranger.accept()
                conn.settimeout(10)
                first = conn.recv(1000)
                if len(first) == 8:  # asks for SSL
                    conn.sendall(b"N")
                    first = conn.recv(1000)
                heard += first
                conn.sendall(b"R\x00\x00\x00\x08\x00\x00\x00\x03")  # your password in clear text, please
                heard += conn.recv(1000)
                return

        thread = threading.Thread(target=ask)
        thread.start()
        url = postgres._url(used_dir / "postgres", stranger.getsockname()[1])
        with pytest.raises(DatabaseError) as raised:
            database.connect(f"{url}&sslmode=disable")
        thread.join()
    assert b"ragblame" in heard
    assert password.encode() not in heard
    assert password not in str(raised.value)
