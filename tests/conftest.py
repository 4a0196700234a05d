"""Shared fixtures: a real PostgreSQL 18 with pgvector, a fresh migrated database per test, own settings."""

import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import psycopg
import pytest
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict

from ragblame import database, postgres, postgres_binaries, postgres_cluster, settings
from tests.folders import open_folder

# Durability is tested in test_postgres.py with a server of its own; everything else wants speed.
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_wal_size": "512MB"}


# Files of half a minute and more, the longest first: begun last, one keeps a process alone at the end.
LONG: Final = (
    "test_known_cause", "test_browser", "test_demo", "test_probe_limits", "test_postgres", "test_cli",
    "test_capture_benchmarks", "test_capture_overhead", "test_worker", "test_pitfalls_reported",
    "test_recorder", "test_ui_pages", "test_postgres_folders", "test_probe_safety", "test_probe",
    "test_search", "test_eval_faults", "test_reads",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first; all others stay in their order."""
    order = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONG)))


@pytest.fixture(autouse=True)
def isolated_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No test reads the developer's ragblame.toml, RAGBLAME_* variables or data folder, or asks a hub."""
    for name in [name for name in os.environ if name.upper().startswith(settings.ENV_PREFIX)]:
        monkeypatch.delenv(name)
    folder = open_folder()
    monkeypatch.setenv("RAGBLAME_DATA_DIR", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setitem(settings.Settings.model_config, "toml_file", tmp_path / "ragblame.toml")
    settings.load_settings.cache_clear()
    yield
    settings.load_settings.cache_clear()
    if (folder / "postgres").exists():  # an embedded server that the test started
        postgres.stop(folder)
    shutil.rmtree(folder)


@pytest.fixture
def data_dir() -> Path:
    """The test's own data folder, as in RAGBLAME_DATA_DIR; an embedded server in it is stopped afterwards."""
    return Path(os.environ["RAGBLAME_DATA_DIR"])


@pytest.fixture(scope="session")
def cluster() -> Iterator[Path]:
    """A server's folder, made once: initdb is most of the time of a cold start."""
    home = open_folder()
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


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """URL of one server for the whole session; it dies with this process, however that ends."""
    home = open_folder()
    account = postgres_binaries.choose_account(home / "data")
    server = None
    try:
        postgres_cluster.create_cluster(home, account)
        port = postgres_cluster.choose_port(home)
        server = postgres_cluster.start_server(home, port, account, FAST)
        deadline = time.monotonic() + 60
        while not postgres_cluster.is_ready(home, server.pid):
            assert server.poll() is None, (home / "server.log").read_text("utf-8")
            assert time.monotonic() < deadline, "the test server does not get ready"
            time.sleep(0.02)
        password = (home / "password").read_text("ascii")
        yield f"postgresql://ragblame:{password}@127.0.0.1:{port}/ragblame"
    finally:
        if server is not None:
            server.send_signal(signal.SIGQUIT)
            server.wait(30)
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def migrated_template(postgres_url: str) -> str:
    """Name of a migrated database that nobody writes to."""
    name = "migrated_template"
    _execute(postgres_url, sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    database.migrate(_with_database(postgres_url, name))
    return name


@pytest.fixture
def database_url(postgres_url: str, migrated_template: str) -> Iterator[str]:
    """A fresh migrated database of the test's own, as a libpq URL."""
    yield from _temporary_database(postgres_url, migrated_template)


@pytest.fixture
def empty_database_url(postgres_url: str) -> Iterator[str]:
    """A fresh empty database of the test's own: nothing migrated, no extension."""
    yield from _temporary_database(postgres_url, "template0")


@pytest.fixture
def connection(database_url: str) -> Iterator[psycopg.Connection]:
    """A connection to ``database_url`` as the product opens it (search path set, autocommit off)."""
    with database.connect(database_url) as conn:
        yield conn


def _temporary_database(server_url: str, template: str) -> Iterator[str]:
    name = f"test_{uuid.uuid4().hex[:12]}"
    create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy")
    _execute(server_url, create.format(sql.Identifier(name), sql.Identifier(template)))
    yield _with_database(server_url, name)
    _execute(server_url, sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def _execute(url: str, statement: sql.Composed) -> None:
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(statement)


def _with_database(url: str, name: str) -> str:
    known = conninfo_to_dict(url)
    return f"postgresql://{known['user']}:{known['password']}@{known['host']}:{known['port']}/{name}"
