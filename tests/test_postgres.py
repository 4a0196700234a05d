"""The embedded server under real faults: processes killed, frozen, racing; folders closed, full, damaged."""

import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ragblame import database, postgres, postgres_binaries, postgres_cluster
from ragblame.errors import DatabaseError, EmbeddedPostgresError

IS_ROOT = os.geteuid() == 0
ROOT = Path(__file__).resolve().parent.parent
STOPS_WITHIN = 20.0  # seconds after its last client: 3 s of patience, a shutdown, and a slow machine

CLIENT = """
    import sys
    from pathlib import Path
    from ragblame import postgres
    print(postgres.ensure_running(Path(sys.argv[1])), flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    """A server's folder, made once: initdb is most of the time of a cold start."""
    home = Path(tempfile.mkdtemp(prefix="ragblame-cluster-"))
    home.chmod(0o711 if IS_ROOT else 0o700)
    postgres_cluster.create_cluster(home, postgres_binaries.choose_account(home / "data"))
    yield home
    shutil.rmtree(home)


@pytest.fixture
def empty_dir(data_dir: Path) -> Path:
    """The data folder before anything is in it."""
    return data_dir


@pytest.fixture
def used_dir(data_dir: Path, cluster: Path) -> Path:
    """The data folder with a cluster in it that has never run."""
    subprocess.run(["cp", "-a", cluster, data_dir / "postgres"], check=True)
    return data_dir


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

        eventually(answers, 60)
        assert pid_of(used_dir) != killed
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


def _python_for(account: postgres_binaries.Account) -> tuple[str, dict[str, str]]:
    """A Python of our version that the account can run, and where it finds ragblame; skips without."""
    packages = Path(psycopg.__file__).parents[1]
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for python in (Path(sys.executable), Path("/usr/bin") / version):
        places = (python, python.resolve().parent, packages, ROOT)
        if python.exists() and all(postgres_binaries.can_traverse(place, account) for place in places):
            return str(python), {"PYTHONPATH": f"{ROOT}:{packages}", "PATH": os.environ["PATH"]}
    pytest.skip("no Python of this version, or no package of ours, is open to other users")


@pytest.mark.skipif(not IS_ROOT, reason="only root can become somebody else")
def test_works_for_an_ordinary_user(empty_dir: Path) -> None:
    """Without root the server runs as the user, in a folder that nobody else can enter."""
    entry = pwd.getpwnam("nobody")
    account = postgres_binaries.Account(name="nobody", uid=entry.pw_uid, gid=entry.pw_gid)
    python, environment = _python_for(account)
    theirs = empty_dir / "theirs"
    theirs.mkdir(mode=0o700)
    os.chown(theirs, account.uid, account.gid)
    home = theirs / "postgres"
    options: dict[str, Any] = {
        "user": account.uid,
        "group": account.gid,
        "extra_groups": [],
        "env": environment,
    }
    with client(theirs, python=python, **options) as (_, url):
        assert query(url, "SELECT 1") == [(1,)]
        pids = postgres_cluster.processes_in(home / "data")
        assert {Path(f"/proc/{pid}").stat().st_uid for pid in pids} == {account.uid}
        assert {path.stat().st_uid for path in home.iterdir()} == {account.uid}
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
    eventually(lambda: postgres.status(theirs).state == "stopped", STOPS_WITHIN)
    assert not postgres_cluster.processes_in(home / "data")


@pytest.mark.skipif(not IS_ROOT, reason="only root runs the server as another account")
def test_as_root_the_server_is_not_root(empty_dir: Path) -> None:
    """The server's account owns the data and nothing else: it cannot read the password file."""
    postgres.ensure_running(empty_dir)
    home = empty_dir / "postgres"
    owner = Path(f"/proc/{pid_of(empty_dir)}").stat().st_uid
    assert owner != 0
    assert (home / "data").stat().st_uid == owner
    assert {path.name for path in home.iterdir() if path.stat().st_uid == owner} == {"data"}


def test_others_can_neither_read_nor_write(empty_dir: Path) -> None:
    """No file is open to other users: at most, as root's, they may pass through to the server's data."""
    postgres.ensure_running(empty_dir)
    for path in [empty_dir / "postgres", *(empty_dir / "postgres").rglob("*")]:
        if path.exists():  # the server removes files of its own meanwhile
            mode = stat.S_IMODE(path.lstat().st_mode)
            assert not mode & 0o066, f"{path} has mode {mode:o}"


def test_path_longer_than_a_socket_name(empty_dir: Path) -> None:
    """A data folder of more than 200 characters works: there is no socket file."""
    deep = empty_dir / ("d" * 100) / ("e" * 100)
    assert query(postgres.ensure_running(deep), "SELECT 1") == [(1,)]
    postgres.stop(deep)


@pytest.mark.skipif(not IS_ROOT, reason="only root has another account to shut out")
def test_closed_parent_folder_stays_closed(
    empty_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As root, a data folder that the account cannot reach is left as it is, and its replacement is named."""
    monkeypatch.setattr(postgres_binaries, "SYSTEM_DIR", empty_dir / "system")
    closed = empty_dir / "closed"
    closed.mkdir(mode=0o700)
    url = postgres.ensure_running(closed / "data")
    try:
        assert query(url, "SELECT 1") == [(1,)]
        home = postgres.status(closed / "data").home
        assert home.parent == empty_dir / "system"
        assert str(home) in caplog.text
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
    finally:
        postgres.stop(closed / "data")


@pytest.mark.skipif(not IS_ROOT, reason="only root has another account to shut out")
def test_closed_virtual_environment_is_copied(empty_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Binaries in a folder closed to the server's account run from a copy."""
    account = postgres_binaries.choose_account(empty_dir)
    assert account is not None
    package = postgres_binaries.find_binaries().parents[1]
    closed = empty_dir / "closed"
    closed.mkdir(mode=0o700)
    (closed / package.name).symlink_to(package)
    monkeypatch.setattr(postgres_binaries, "SYSTEM_DIR", empty_dir / "system")
    monkeypatch.setattr(postgres_binaries, "can_traverse", lambda folder, account: account is None)
    copy = postgres_binaries.find_binaries(account)
    assert empty_dir in copy.parents
    for program in ("postgres", "initdb"):
        command = [str(copy / program), "--version"]
        said = subprocess.run(
            command, user=account.uid, group=account.gid, capture_output=True, cwd="/", check=True
        )
        assert b"PostgreSQL) 18" in said.stdout


def test_missing_binaries_name_the_extra(empty_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the package the error says what to install, and nothing is left behind."""
    monkeypatch.setattr(postgres_binaries, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedPostgresError, match=r"pip install 'ragblame\[worker\]'"):
        postgres.ensure_running(empty_dir)
    assert list(empty_dir.iterdir()) == []


@pytest.mark.skipif(not IS_ROOT, reason="only root can give a folder away")
def test_folder_of_another_user_is_refused(empty_dir: Path) -> None:
    """A data folder that belongs to somebody else is named, not taken over."""
    (empty_dir / "postgres").mkdir(mode=0o700)
    os.chown(empty_dir / "postgres", 65534, 65534)
    with pytest.raises(EmbeddedPostgresError, match="belongs to user 65534"):
        postgres.ensure_running(empty_dir)


def test_folder_that_cannot_be_made_is_named(empty_dir: Path) -> None:
    """A file in the place of the data folder gives one line with the next step."""
    (empty_dir / "file").write_text("")
    with pytest.raises(EmbeddedPostgresError, match="RAGBLAME_DATA_DIR"):
        postgres.ensure_running(empty_dir / "file" / "below")


def _wrong_version(data: Path) -> None:
    (data / "PG_VERSION").write_text("16\n")


def _no_version(data: Path) -> None:
    (data / "PG_VERSION").unlink()


def _cut_control_file(data: Path) -> None:
    os.truncate(data / "global" / "pg_control", 100)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_wrong_version, "was made by PostgreSQL '16'"),
        (_no_version, "is not a PostgreSQL folder"),
        (_cut_control_file, "is damaged"),
    ],
)
def test_damaged_folder_is_named(used_dir: Path, damage: Callable[[Path], None], said: str) -> None:
    """A cluster that cannot start says why in one line, every time anew, and leaves no process."""
    postgres.ensure_running(used_dir)
    postgres.stop(used_dir)
    damage(used_dir / "postgres" / "data")
    for _ in range(2):
        with pytest.raises(EmbeddedPostgresError, match=said) as raised:
            postgres.ensure_running(used_dir)
        assert "\n" not in str(raised.value)
    assert postgres.status(used_dir).state == "failed"
    assert not running(used_dir)


@pytest.mark.skipif(not IS_ROOT, reason="only root can mount a small file system")
def test_full_disk_is_named(empty_dir: Path) -> None:
    """On a disk too small for a cluster the error says so, and works once there is room."""
    small = empty_dir / "small"
    small.mkdir(mode=0o711)
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=10m,mode=711", "none", small], check=False
    ).returncode:
        pytest.skip("this container may not mount")
    try:
        with pytest.raises(EmbeddedPostgresError, match="is full: free some space"):
            postgres.ensure_running(small)
        subprocess.run(["mount", "-o", "remount,size=300m", small], check=True)
        assert query(postgres.ensure_running(small), "SELECT 1") == [(1,)]
        postgres.stop(small)
    finally:
        subprocess.run(["umount", small], check=True)


def test_interrupted_initdb_is_done_again(empty_dir: Path) -> None:
    """What a killed first start left half-made is replaced."""
    half = empty_dir / "postgres" / "data.new"
    half.mkdir(parents=True)
    (empty_dir / "postgres").chmod(0o711 if IS_ROOT else 0o700)
    (half / "PG_VERSION").write_text("18\n")
    assert query(postgres.ensure_running(empty_dir), "SELECT 1") == [(1,)]
    assert not half.exists()


def test_lost_password_file_is_made_anew(used_dir: Path) -> None:
    """Whoever owns the folder owns the database: a missing password file is replaced."""
    old = postgres.ensure_running(used_dir)
    postgres.stop(used_dir)
    (used_dir / "postgres" / "password").unlink()
    new = postgres.ensure_running(used_dir)
    assert query(new, "SELECT 1") == [(1,)]
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(old)


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
