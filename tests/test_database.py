"""The way to PostgreSQL: what a connection sees, and clear errors for every way to miss the server."""

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from ragblame import database
from ragblame.database_errors import server_name
from ragblame.errors import DatabaseError
from ragblame.settings import Settings
from tests.embedded_server import free_port, other_server


def changed(url: str, **parts: object) -> str:
    """The same connection string with other parts."""
    return make_conninfo(url, **{name: str(value) for name, value in parts.items()})


def test_connection_sees_our_schemas_only_then_public(database_url: str) -> None:
    """The search path is ours also in a new transaction, and pgvector's types are found."""
    with database.connect(database_url) as conn:
        conn.rollback()
        assert conn.execute("SHOW search_path").fetchone() == ("ragblame, jobs, public",)
        assert conn.execute("SELECT '[1,2]'::halfvec::text").fetchone() == ("[1,2]",)


def test_vector_in_a_schema_of_its_own(empty_database_url: str) -> None:
    """Hosted services keep extensions elsewhere; migrations and connections find them there."""
    with psycopg.connect(empty_database_url) as conn:
        conn.execute('CREATE SCHEMA "Ext ensions"')
        conn.execute('CREATE EXTENSION vector WITH SCHEMA "Ext ensions"')
    database.migrate(empty_database_url)
    with database.connect(empty_database_url) as conn:
        assert conn.execute("SELECT '[1,2]'::halfvec::text").fetchone() == ("[1,2]",)


def test_vector_goes_to_public_not_to_our_schema(database_url: str) -> None:
    """A chain that shares the database finds the extension on its default search path."""
    with psycopg.connect(database_url) as conn:
        assert conn.execute("SELECT '[1]'::vector::text").fetchone() == ("[1]",)


def test_read_only_connection_cannot_write(database_url: str) -> None:
    """What the triage page reads with cannot change a row."""
    with (
        database.connect(database_url, read_only=True) as conn,
        pytest.raises(psycopg.errors.ReadOnlySqlTransaction),
    ):
        conn.execute("DELETE FROM trace")


def test_application_name_is_seen_by_the_operator(database_url: str) -> None:
    """pg_stat_activity says which part of us a connection belongs to, unless the URL says otherwise."""
    with database.connect(database_url, application_name="ragblame worker") as conn:
        assert conn.execute("SHOW application_name").fetchone() == ("ragblame worker",)
    with database.connect(changed(database_url, application_name="mine")) as conn:
        assert conn.execute("SHOW application_name").fetchone() == ("mine",)


def test_pool_replaces_a_broken_connection(database_url: str) -> None:
    """A connection that the server closed is noticed before use; the next one is set up like the first."""
    with database.open_pool(database_url, max_size=1) as pool:
        with pool.connection() as conn:
            backend = conn.info.backend_pid
        with psycopg.connect(database_url) as other:
            other.execute("SELECT pg_terminate_backend(%s, 5000)", (backend,))
        with pool.connection() as conn:
            assert conn.info.backend_pid != backend
            assert conn.execute("SHOW search_path").fetchone() == ("ragblame, jobs, public",)


def test_configured_url_is_used_as_it_is(database_url: str) -> None:
    """With a database configured no embedded server is started."""
    settings = Settings(database_url=database_url)  # type: ignore[arg-type]
    assert database.resolve_url(settings) == database_url
    assert list(Path(os.environ["RAGBLAME_DATA_DIR"]).iterdir()) == []


def message_of(url: str) -> str:
    """What connecting fails with; checked for the general rules."""
    began = time.monotonic()
    with pytest.raises(DatabaseError) as raised:
        database.connect(url)
    assert time.monotonic() - began < 8
    message = str(raised.value)
    assert "\n" not in message
    return message


def test_no_server() -> None:
    """Nothing listens: host and port are shown."""
    port = free_port()
    message = message_of(f"postgresql://u:secret@127.0.0.1:{port}/x")
    assert f"127.0.0.1:{port}/x" in message
    assert "nothing listens there" in message
    assert "secret" not in message


def test_wrong_password(postgres_url: str) -> None:
    """The wrong password is called so, and not repeated."""
    message = message_of(changed(postgres_url, password="not-the-secret"))
    assert "the password is wrong" in message
    assert "not-the-secret" not in message


def test_missing_password(postgres_url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A URL without the password says where to put it."""
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "none"))
    known = conninfo_to_dict(postgres_url)
    message = message_of(f"postgresql://{known['user']}@{known['host']}:{known['port']}/{known['dbname']}")
    assert "a password is needed" in message


def test_unknown_database(postgres_url: str) -> None:
    """A database that does not exist is named."""
    message = message_of(changed(postgres_url, dbname="nowhere"))
    assert "/nowhere" in message
    assert "does not exist: create it" in message


def test_unknown_host() -> None:
    """A host name that nobody knows is named."""
    assert "the host name is unknown" in message_of("postgresql://u:secret@no-such-host.invalid/x")


def test_server_that_never_answers() -> None:
    """A port that accepts and stays silent gives an error in connect_timeout seconds."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        message = message_of(f"postgresql://u:secret@127.0.0.1:{port}/x?connect_timeout=2")
    assert "does not answer in time" in message


@pytest.mark.parametrize("url", ["nonsense", "mysql://u:secret@h/x", "postgresql://u:sec%ret@h/x"])
def test_what_is_no_libpq_url(url: str) -> None:
    """An unreadable URL is refused without quoting it, by the settings already."""
    assert "is not a libpq URL" in message_of(url)
    with pytest.raises(DatabaseError, match="is not a libpq URL"):
        database.resolve_url(Settings(database_url=url))  # type: ignore[arg-type]


@given(st.text("ab@/:%#? &=[]", min_size=4, max_size=12))
def test_password_never_leaks_from_a_badly_escaped_url(tail: str) -> None:
    """Whatever an unescaped password does to the URL, no message shows it."""
    try:
        named = server_name(f"postgresql://user:S3CR3T{tail}T3RC3S@127.0.0.1:1/x")
    except DatabaseError as error:
        named = str(error)
    assert "S3CR3T" not in named
    assert "T3RC3S" not in named


@pytest.fixture(scope="module")
def old_server_url() -> Iterator[str]:
    """Debian's PostgreSQL 15: older than we support, and without pgvector."""
    with other_server(Path("/usr/lib/postgresql/15/bin")) as url:
        yield url


def test_server_too_old(old_server_url: str) -> None:
    """A server older than 16 is refused with both versions."""
    message = message_of(old_server_url)
    assert "is version 15." in message
    assert "needs 16" in message


def test_server_without_pgvector(old_server_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extension the package to install is named, and nothing of ours is applied."""
    monkeypatch.setattr(database, "OLDEST_SERVER", 15)
    with pytest.raises(DatabaseError, match=r"has no pgvector: install it there .*postgresql-15-pgvector"):
        database.migrate(old_server_url)
    state = database.check_schema(old_server_url)
    assert state.applied == ()
    assert state.vector_version is None
    assert state.server_version.startswith("15.")


def test_replica_is_called_so(empty_database_url: str) -> None:
    """A database that takes no writes is not migrated, and says where writes go."""
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        name = sql.Identifier(conn.info.dbname)
        conn.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
    with pytest.raises(DatabaseError, match="read-only replica: point RAGBLAME_DATABASE_URL at the primary"):
        database.migrate(empty_database_url)


def test_user_without_rights_is_told_what_is_missing(empty_database_url: str) -> None:
    """A user who may not create our schema learns that it is a right."""
    with psycopg.connect(empty_database_url, autocommit=True) as conn:
        conn.execute("DROP ROLE IF EXISTS powerless")
        conn.execute("CREATE ROLE powerless LOGIN PASSWORD 'p'")
    try:
        with pytest.raises(DatabaseError, match=r"refuses us a right .* grant it"):
            database.migrate(changed(empty_database_url, user="powerless", password="p"))
    finally:
        with psycopg.connect(empty_database_url, autocommit=True) as conn:
            conn.execute("DROP ROLE powerless")
