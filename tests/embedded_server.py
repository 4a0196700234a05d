"""Servers for tests: processes that use the embedded one, a look at its own, and other versions'."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ragblame import postgres, postgres_binaries, postgres_cluster
from tests.folders import open_folder

IS_ROOT = os.geteuid() == 0
STOPS_WITHIN = 20.0  # seconds after its last client: 3 s of patience, a shutdown, and a slow machine

CLIENT = """
    import sys
    from pathlib import Path
    from ragblame import postgres
    print(postgres.ensure_running(Path(sys.argv[1])), flush=True)
    sys.stdin.read()
"""


@contextmanager
def client(
    data_dir: Path, code: str = CLIENT, python: str = sys.executable, **options: Any
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that uses the server until its standard input closes; with its first line."""
    command = [python, "-c", textwrap.dedent(code), str(data_dir)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd="/", **options) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline().strip()
            assert line, f"the client ended with {process.wait(10)}"
            yield process, line
        finally:
            process.kill()


def running(data_dir: Path) -> list[int]:
    """PostgreSQL processes of the folder's server."""
    return postgres_cluster.processes_in(postgres.find_home(data_dir) / "data")


def servers(data_dir: Path) -> list[int]:
    """Those among them that are servers themselves, not their children."""
    pids = running(data_dir)
    parents = {pid: int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1]) for pid in pids}
    return [pid for pid in pids if parents[pid] not in pids]


def eventually(condition: Callable[[], object], within: float) -> None:
    """Fail unless the condition holds within so many seconds."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"not within {within} s"
        time.sleep(0.05)


def pid_of(data_dir: Path) -> int:
    """Process id of the server."""
    pid = postgres.status(data_dir).server_pid
    assert pid is not None
    return pid


def query(url: str, statement: str) -> list[tuple[object, ...]]:
    """Run one statement on a connection of its own."""
    with psycopg.connect(url, autocommit=True) as conn:
        cursor = conn.execute(statement.encode())
        return cursor.fetchall() if cursor.description else []


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def other_server(programs: Path) -> Iterator[str]:
    """A server of another version, from its folder of programs; skips where there is none."""
    if not (programs / "initdb").exists():
        pytest.skip(f"needs PostgreSQL's programs in {programs}")
    home = open_folder()
    data = home / "data"
    data.mkdir(mode=0o700)
    options: dict[str, Any] = {"cwd": "/", "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    account = postgres_binaries.choose_account(data)
    if account is not None:
        os.chown(data, account.uid, account.gid)
        options |= {"user": account.uid, "group": account.gid, "extra_groups": []}
    port = free_port()
    command = [
        str(programs / "postgres"),
        "-D",
        str(data),
        "-p",
        str(port),
        "-h",
        "127.0.0.1",
        "-k",
        "",
        "-F",
    ]
    subprocess.run([programs / "initdb", "-D", data, "-U", "u", "-A", "trust", "-N"], check=True, **options)
    with subprocess.Popen(command, **options) as server:
        try:
            while not postgres_cluster.is_ready(home, server.pid):
                assert server.poll() is None
                time.sleep(0.05)
            yield f"postgresql://u@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGQUIT)
    shutil.rmtree(home)
