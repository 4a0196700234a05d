"""What this machine's capture tells the database of itself, for a health page that runs elsewhere."""

import json
import socket
from pathlib import Path
from typing import Any, Final

import psycopg

from ragblame.json_values import clean_identity
from ragblame.plugin.spool_state import measure_spool, read_totals

REPORT_SECONDS: Final = 30.0  # between two reports of a process

_REPORT: Final = """
INSERT INTO ragblame.capture_host (host, folder, counts, waiting_files, waiting_bytes)
VALUES (%s, %s, %s::jsonb, %s, %s)
ON CONFLICT (host, folder) DO UPDATE SET counts = excluded.counts, waiting_files = excluded.waiting_files,
    waiting_bytes = excluded.waiting_bytes, seen_at = now()
"""
_FORGET: Final = "DELETE FROM ragblame.capture_host WHERE seen_at < now() - interval '90 days'"


def report_host(conn: psycopg.Connection[Any], folder: Path) -> None:
    """Write the totals of a spool folder and what waits in it; machines unheard of for 90 days are forgotten.

    Commits. A database that is not migrated so far is left as it is. Raises ``psycopg.Error``.
    """
    size = measure_spool(folder)
    row = (
        clean_identity(socket.gethostname(), 500),
        clean_identity(str(folder), 1_000),
        json.dumps(read_totals(folder)),
        size.waiting_files,
        size.bytes,
    )
    try:
        with conn.transaction():
            conn.execute(_REPORT, row)
            conn.execute(_FORGET)
    except (psycopg.errors.UndefinedTable, psycopg.errors.InsufficientPrivilege):
        pass
    conn.commit()
