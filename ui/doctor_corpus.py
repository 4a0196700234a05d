"""The doctor's line about the corpus: which tables causes may look into, if the role can read them."""

from typing import Any, Final

import psycopg

from ragblame.settings import Settings
from ragblame.ui.doctor import Check, State

NEXT: Final = "name the retriever's table in probe_corpora, see docs/probe.md"
_OURS: Final = "SELECT count(*) FROM (SELECT FROM ragblame.chunk LIMIT 1) AS first"


def check_corpus(settings: Settings) -> Check:
    """Raises ``InputError`` naming what is wrong with a configured table, ``DatabaseError`` beside that."""
    from ragblame import database
    from ragblame.retriever.checked_sources import check_source
    from ragblame.retriever.sources import source_from

    if not settings.probe_spans:
        return Check(name="corpus", state=State.OK, detail="causes do not look into it (probe_spans = 0)")
    url = settings.probe_url
    where = database.resolve_url(settings) if url is None else url.get_secret_value()
    with database.connect(where, read_only=True) as conn:
        told = []
        for entries in settings.probe_corpora:
            checked = check_source(conn, source_from(entries))
            told.append(f"{checked.source.name} ({_size(checked.rows)})")
        if _has_ours(conn):
            told.append("ragblame.chunk")
    if not told:
        detail = "none is configured, so causes end at the prompt"
        return Check(name="corpus", state=State.WARNING, detail=detail, next_step=NEXT)
    return Check(name="corpus", state=State.OK, detail=f"causes look into {', '.join(told)}")


def _has_ours(conn: psycopg.Connection[Any]) -> bool:
    """Whether anything was ingested that this role may read."""
    known = conn.execute("SELECT to_regclass('ragblame.chunk') IS NOT NULL").fetchone()
    if known is None or not known[0]:
        return False
    allowed = conn.execute("SELECT has_table_privilege('ragblame.chunk', 'SELECT')").fetchone()
    if allowed is None or not allowed[0]:
        return False
    row = conn.execute(_OURS).fetchone()
    return row is not None and bool(row[0])


def _size(rows: int | None) -> str:
    return "never analysed" if rows is None else f"about {rows:,} rows"
