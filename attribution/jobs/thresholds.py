"""The versions of the thresholds in PostgreSQL: stored once, never changed, one of them active.

With none active the program's own defaults decide; they are a version like any other and can be returned to.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ragblame.attribution.jobs.faults import database_faults
from ragblame.attribution.verdicts.thresholds import DEFAULT, OWN, Thresholds, from_json
from ragblame.errors import InputError
from ragblame.json_values import clean_text

if TYPE_CHECKING:
    import psycopg

MAX_NOTE = 2_000  # code points
MAX_VERSION = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """One set of thresholds with what is known about it."""

    thresholds: Thresholds
    is_active: bool
    note: str
    created_at: datetime | None  # None: of the program itself


def read_versions(conn: "psycopg.Connection[Any]") -> tuple[Version, ...]:
    """All versions: the program's own first, then newest first. Raises ``InputError``, ``DatabaseError``."""
    with database_faults("thresholds"):
        rows = conn.execute(
            "SELECT thresholds, is_active, note, created_at FROM ragblame.calibration "
            "ORDER BY created_at DESC, version"
        ).fetchall()
    stored = [
        Version(thresholds=from_json(values), is_active=is_active, note=note, created_at=at)
        for values, is_active, note, at in rows
    ]
    is_own = not any(version.is_active for version in stored)
    own = Version(thresholds=DEFAULT, is_active=is_own, note="as the program ships", created_at=None)
    return (own, *stored)


def read_active(conn: "psycopg.Connection[Any]") -> Thresholds:
    """The thresholds that decide now. Raises ``InputError`` when they cannot be used, ``DatabaseError``."""
    with database_faults("thresholds"):
        row = conn.execute("SELECT thresholds FROM ragblame.calibration WHERE is_active").fetchone()
    return DEFAULT if row is None else from_json(row[0])


def read_thresholds(conn: "psycopg.Connection[Any]", version: str) -> Thresholds:
    """One version. Raises ``InputError`` naming those that there are, ``DatabaseError``."""
    found = find_thresholds(conn, version)
    if found is None:
        known = ", ".join(each.thresholds.version for each in read_versions(conn))
        raise InputError(f"there are no thresholds {version!r}: choose one of {known}")
    return found


def find_thresholds(conn: "psycopg.Connection[Any]", version: str) -> Thresholds | None:
    """One version, or None when nobody stored it. Raises like ``read_active``."""
    if version in OWN:
        return OWN[version]
    with database_faults("thresholds"):
        row = conn.execute(
            "SELECT thresholds FROM ragblame.calibration WHERE version = %s", (version,)
        ).fetchone()
    return None if row is None else from_json(row[0])


def store_thresholds(conn: "psycopg.Connection[Any]", thresholds: Thresholds, *, note: str) -> None:
    """Add a version; it decides nothing until it is activated. Runs in the caller's transaction.

    Raises ``InputError`` when the version's name is taken, too long, or the program's own.
    """
    version = thresholds.version
    if not 0 < len(version) <= MAX_VERSION or not version.isprintable():
        raise InputError(f"a version's name has 1 to {MAX_VERSION} printable characters: give another")
    if find_thresholds(conn, version) is not None:
        raise InputError(f"thresholds {version!r} are stored already and never change: give another name")
    with database_faults("thresholds"), conn.transaction():
        conn.execute(
            "INSERT INTO ragblame.calibration (version, thresholds, note) VALUES (%s, %s, %s)",
            (version, json.dumps(thresholds.to_json()), clean_text(note)[:MAX_NOTE]),
        )


def activate_thresholds(conn: "psycopg.Connection[Any]", version: str) -> Thresholds:
    """Let a version decide from now on; verdicts that are stored keep the one they were made with.

    Runs in the caller's transaction; two at a time take turns. Raises ``InputError`` for a version that is
    not there or cannot be used.
    """
    found = read_thresholds(conn, version)
    with database_faults("thresholds"), conn.transaction():
        conn.execute("LOCK TABLE ragblame.calibration IN SHARE ROW EXCLUSIVE MODE")
        conn.execute("UPDATE ragblame.calibration SET is_active = false WHERE is_active")
        conn.execute("UPDATE ragblame.calibration SET is_active = true WHERE version = %s", (version,))
    return found
