"""PostgreSQL's failures in our words: one line with the server, never the password, and the next step."""

import psycopg
from psycopg.conninfo import conninfo_to_dict

from ragblame.errors import DatabaseError

OLDEST_SERVER = 16  # PostgreSQL's major version; pgvector's halfvec and our SQL are tested from here on

# what is said before a session exists carries no SQLSTATE, only text
_WHILE_CONNECTING = (
    ("password authentication failed", "the password is wrong: correct it in RAGBLAME_DATABASE_URL"),
    ("no password supplied", "a password is needed: add it to RAGBLAME_DATABASE_URL or to ~/.pgpass"),
    (
        "authentication method requirement",
        "it cannot prove its identity: is it another program's port?",
    ),
    (
        "no pg_hba.conf entry",
        "its pg_hba.conf does not let us in: add this host, user and database",
    ),
    ("too many clients", "it has no connection left: close some or raise max_connections"),
    ("remaining connection slots", "it has no connection left: close some or raise max_connections"),
    ("starting up", "it is starting up or recovering: try again in a moment"),
    ("shutting down", "it is shutting down: start it again"),
    ("recovery mode", "it is starting up or recovering: try again in a moment"),
    ("Connection refused", "nothing listens there: start PostgreSQL or correct RAGBLAME_DATABASE_URL"),
    ("No such file or directory", "nothing listens there: start PostgreSQL or correct RAGBLAME_DATABASE_URL"),
    ("could not translate host name", "the host name is unknown: correct RAGBLAME_DATABASE_URL"),
    ("failed to resolve host", "the host name is unknown: correct RAGBLAME_DATABASE_URL"),
    ("SSL", "encryption could not be agreed on: check sslmode in RAGBLAME_DATABASE_URL"),
)

_BY_SQLSTATE = {
    "3D000": "the database does not exist: create it with `createdb` or correct RAGBLAME_DATABASE_URL",
    "28P01": "the password is wrong: correct it in RAGBLAME_DATABASE_URL",
    "25006": "it is a read-only replica: point RAGBLAME_DATABASE_URL at the primary",
    "53100": "its disk is full: free some space there",
    "53300": "it has no connection left: close some or raise max_connections",
    "55P03": "another session holds a lock that we need: try again when its query is done",
    "57P03": "it is starting up or recovering: try again in a moment",
}
_NOT_MIGRATED = {"42P01", "3F000", "42883", "42703", "42704"}  # no such table, schema, function, column, type


def server_name(url: str) -> str:
    """``host:port/database`` of a libpq URL or keyword string, for messages; never holds the password.

    Raises ``DatabaseError`` when the URL cannot be read, without quoting it: it holds the password somewhere.
    """
    unreadable = DatabaseError(
        "RAGBLAME_DATABASE_URL is not a libpq URL such as postgresql://user:password@host:5432/database: "
        "correct it, and write special characters of the password as %XX"
    )
    try:
        known = {name: str(value) for name, value in conninfo_to_dict(url).items()}
    except (psycopg.Error, UnicodeError):
        raise unreadable from None
    host, port, name = (known.get(key, "") for key in ("host", "port", "dbname"))
    # an unescaped @, / or : in the password shifts its rest into these
    if any(sign in host + name for sign in "@ ") or (port and not port.replace(",", "").isdigit()):
        raise unreadable
    host = (
        host
        or known.get("hostaddr")
        or ("the service " + known["service"] if "service" in known else "localhost")
    )
    return f"{host}:{port or 5432}/{name or known.get('user', '')}"


def explain(error: psycopg.Error, url: str) -> DatabaseError:
    """The ``DatabaseError`` that says what to do about a psycopg error; raise it ``from`` the original."""
    where = f"PostgreSQL at {server_name(url)}"
    if isinstance(error, psycopg.errors.ConnectionTimeout):
        return DatabaseError(
            f"{where} does not answer in time: is it frozen, overloaded or behind a firewall?"
        )
    text = str(error)
    if error.sqlstate is None:
        if 'database "' in text and "does not exist" in text:
            return DatabaseError(f"{where}: {_BY_SQLSTATE['3D000']}")
        if 'role "' in text and "does not exist" in text:
            return DatabaseError(f"{where}: the user does not exist: correct RAGBLAME_DATABASE_URL")
        for sign, advice in _WHILE_CONNECTING:
            if sign in text:
                return DatabaseError(f"{where} cannot be reached: {advice}")
        if isinstance(error, psycopg.OperationalError):
            return DatabaseError(f"{where} cannot be reached ({_line(text)}): run `ragblame doctor`")
        return DatabaseError(f"{where}: {_line(text)}; run `ragblame doctor`")
    said = _line(error.diag.message_primary or text)
    if error.sqlstate in _NOT_MIGRATED:
        return DatabaseError(f"{where} lacks what this version needs ({said}): run `ragblame migrate`")
    if error.sqlstate in _BY_SQLSTATE:
        return DatabaseError(f"{where}: {_BY_SQLSTATE[error.sqlstate]}")
    if error.sqlstate == "42501":
        return DatabaseError(f"{where} refuses us a right ({said}): grant it, or use another user")
    if error.sqlstate.startswith(("08", "57P")):
        return DatabaseError(f"{where} closed the connection ({said}): try again")
    return DatabaseError(f"{where} refused a statement ({said}): run `ragblame doctor`")


def _line(text: str) -> str:
    """The telling last line of a possibly long message, cut to what fits a terminal."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return (lines or ["no reason given"])[0 if len(lines) < 2 else -1][:300]
