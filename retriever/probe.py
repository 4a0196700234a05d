"""The corpus probe: what could the retriever have found for a span, by which query, at which rank?

It asks one table read-only, on a small pool of its own, within a few seconds. First what the retriever's own
index says, then words, then every row of the table, for the difference between the two is a root cause. What
there is no time for is said to be approximate or not finished; nothing is ever left out silently.
"""

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import psycopg
from langchain_core.embeddings import Embeddings
from psycopg import sql
from psycopg_pool import ConnectionPool

from ragblame import database
from ragblame.corpus import MAX_K, ProbeReport, ProbeRequest, ProbeText
from ragblame.database_errors import explain
from ragblame.errors import InputError, ModelError, RagblameError
from ragblame.retriever.checked_sources import check_source
from ragblame.retriever.embedding_models import name_of
from ragblame.retriever.probe_asking import MAX_EXACT_ROWS, Asking
from ragblame.retriever.probe_clock import read_only, search_path
from ragblame.retriever.sources import CorpusSource, our_corpus, source_from
from ragblame.settings import Settings

SAME_MODEL: Final = 0.99  # cosine of a stored vector and the same text's new one: half precision keeps more


class TableProbe:
    """A ``CorpusProbe`` over one table; close it, or use it in a ``with``.

    ``embeddings``: the model that made the corpus; None: the caller gives every vector with the request, and
    what comes without one is searched by words only.
    """

    def __init__(
        self,
        url: str,
        source: CorpusSource,
        embeddings: Embeddings | None = None,
        *,
        seconds: float = 3.0,
        max_exact_rows: int = MAX_EXACT_ROWS,
        max_connections: int = 2,
    ) -> None:
        """``url``: of a role that needs SELECT only. Raises ``DatabaseError`` when it cannot be used."""
        if source.is_ours and source.model is None and embeddings is not None:
            source = replace(source, model=name_of(embeddings))
        self.source = source
        self._url = url
        self._embeddings = embeddings
        self._seconds = seconds
        self._max_exact_rows = max_exact_rows
        self._is_model_checked = source.is_ours  # there the model goes by its name
        self._pool: ConnectionPool[Any] = database.open_pool(
            url, min_size=0, max_size=max_connections, application_name="ragblame probe", read_only=True
        )

    def __enter__(self) -> "TableProbe":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    def probe(self, request: ProbeRequest) -> ProbeReport:
        """Ask the corpus about one span, in at most about ``seconds`` of PostgreSQL's time.

        Raises ``InputError`` for a name, filter or vector that does not fit the table, ``ModelError`` when
        the embedding model fails, ``DatabaseError`` when PostgreSQL does. Running out of time is no error.
        """
        if request.k is not None and not 1 <= request.k <= MAX_K:
            raise InputError(f"k is {request.k}: ask for 1 to {MAX_K} rows")
        texts = probe_texts(request)
        began = time.monotonic()
        vectors = self._embed(texts, request)
        embedding_seconds = time.monotonic() - began
        try:
            with self._pool.connection() as conn:
                if self._embeddings is not None and not self._is_model_checked and not request.vectors:
                    self._check_model(conn, self._embeddings)
                with read_only(conn, self._seconds) as clock:
                    checked = check_source(conn, self.source)
                    with clock.settings(search_path(checked.extension_schema)):
                        asking = Asking(request, checked, clock, texts, self._max_exact_rows)
                        return asking.run(vectors, embedding_seconds)
        except (
            psycopg.DataError,
            psycopg.errors.UndefinedFunction,
            psycopg.errors.DatatypeMismatch,
        ) as error:
            line = str(error).strip().splitlines()[0]
            raise InputError(f"the filter or the query does not fit {self.source.name} ({line})") from error
        except psycopg.Error as error:
            raise explain(error, self._url) from error

    def _embed(
        self, texts: Mapping[ProbeText, str], request: ProbeRequest
    ) -> dict[ProbeText, Sequence[float]]:
        vectors: dict[ProbeText, Sequence[float]] = dict(request.vectors)
        if self._embeddings is None:
            return vectors
        for text, words in texts.items():
            if text in vectors or text is ProbeText.VALUE:  # a bare value points nowhere
                continue
            try:
                vectors[text] = self._embeddings.embed_query(words)
            except RagblameError:
                raise
            except Exception as error:  # the host's own code
                raise ModelError(
                    f"embedding model {name_of(self._embeddings)} failed ({type(error).__name__}: {error})"
                    ": check it, or give the vectors with the request"
                ) from error
        return vectors

    def _check_model(self, conn: psycopg.Connection[Any], embeddings: Embeddings) -> None:
        """Make one row's vector again: another model's would find neighbours that mean nothing."""
        statement = sql.SQL(
            "SELECT {text}, {vector}::text FROM {relation} "
            "WHERE {scope} AND {vector} IS NOT NULL AND {text} <> '' LIMIT 1"
        )
        with read_only(conn, self._seconds) as clock:
            checked = check_source(conn, self.source)
            parts = {
                "text": checked.text,
                "vector": checked.vector,
                "relation": checked.relation,
                "scope": checked.scope,
            }
            with clock.settings(search_path(checked.extension_schema)):
                rows, _ = clock.ask(statement.format(**parts), {}, seconds=self._seconds)
        if rows:
            stored = [float(number) for number in rows[0][1].strip("[]").split(",")]
            made = embeddings.embed_documents([rows[0][0]])[0]
            if not _cosine(stored, made) >= SAME_MODEL:
                raise InputError(
                    f"the vectors of {self.source.name} were not made by the embedding model "
                    f"{name_of(embeddings)}: name the right one, or give the vectors with the request"
                )
            self._is_model_checked = True


def open_probe(settings: Settings, embeddings: Embeddings | None, table: str | None = None) -> TableProbe:
    """The configured probe of ``table`` ("schema.table", as a trace's chunk names it); None: the first.

    Raises ``InputError`` when no configured corpus is that table, ``DatabaseError`` as ``TableProbe`` does.
    """
    sources = [*(source_from(entries) for entries in settings.probe_corpora), our_corpus()]
    source = next((source for source in sources if table in (None, source.name)), None)
    if source is None:
        raise InputError(f"{table} is no configured corpus: add it to probe_corpora, see docs/probe.md")
    url = settings.probe_url
    where = database.resolve_url(settings) if url is None else url.get_secret_value()
    return TableProbe(where, source, embeddings, seconds=settings.probe_seconds)


def probe_texts(request: ProbeRequest) -> dict[ProbeText, str]:
    """What the corpus is asked with; an empty text is left out.

    The masked text is question and claim together, both without the value: the claim alone often lacks the
    subject ("It listens on port ___"), and the wrong value would lead away from the right row.
    """
    query = request.query or request.question
    texts = {ProbeText.QUERY: query, ProbeText.CLAIM: request.claim}
    if request.question != query:
        texts[ProbeText.QUESTION] = request.question
    if request.value and request.value.strip():
        texts[ProbeText.VALUE] = request.value
        value = re.compile(re.escape(request.value.strip()), re.IGNORECASE)
        texts[ProbeText.MASKED] = " ".join(
            " ".join(value.sub(" ", text).split()) for text in (request.question, request.claim)
        )
    return {text: words for text, words in texts.items() if words.strip()}


def _cosine(left: Sequence[float], right: Sequence[float]) -> float:
    """NaN for vectors of different dimensions or without a direction."""
    length = math.hypot(*left) * math.hypot(*right)
    if len(left) != len(right) or not length:
        return math.nan
    return sum(a * b for a, b in zip(left, right, strict=True)) / length
