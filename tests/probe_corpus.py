"""A small corpus of runbooks for the probe's tests: planted vectors, known words, many dull rows around."""

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID

import psycopg
from langchain_core.embeddings import Embeddings
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict
from psycopg.types.json import Jsonb

from ragblame.retriever.chunks import settle, write_documents
from ragblame.retriever.drafts import ChunkDraft, draft_document
from ragblame.retriever.embedding_models import EmbeddingModel, register_model, vector_text

Conn = psycopg.Connection[Any]
SIZE = 8


class PlantedEmbeddings(Embeddings):
    """Vectors given by a table; any other text gets a random one of its own."""

    model_name = "planted"

    def __init__(self, table: Mapping[str, Sequence[float]] | None = None) -> None:
        self.table = dict(table or {})

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return list(self.table.get(text) or random_vector(text))


def random_vector(seed: object) -> list[float]:
    """The same vector for the same seed, in any process."""
    pick = random.Random(str(seed))
    return [pick.gauss(0.0, 1.0) for _ in range(SIZE)]


def near(vector: Sequence[float], angle: float, seed: object = 0) -> list[float]:
    """A vector at about ``angle`` radians from ``vector``."""
    other = random_vector(seed)
    length = math.hypot(*vector)
    unit = [value / length for value in vector]
    along = sum(a * b for a, b in zip(unit, other, strict=True))
    across = [b - along * a for a, b in zip(unit, other, strict=True)]
    width = math.hypot(*across)
    return [math.cos(angle) * a + math.sin(angle) * b / width for a, b in zip(unit, across, strict=True)]


def store(
    conn: Conn,
    embeddings: PlantedEmbeddings,
    documents: Mapping[str, Sequence[str]],
    **metadata: Any,
) -> dict[str, str]:
    """Write documents (source -> chunk texts); returns text -> row id."""
    model = register_model(conn, embeddings.model_name, SIZE)
    drafts = [
        draft_document(source, [ChunkDraft(text=text) for text in texts], metadata=metadata)
        for source, texts in documents.items()
    ]
    texts = [text for parts in documents.values() for text in parts]
    vectors = {text: vector_text(embeddings.embed_query(text), model) for text in texts}
    assert not write_documents(conn, drafts, model, vectors).lacking
    with conn.transaction():
        found = conn.execute(
            "SELECT c.text, c.id::text FROM ragblame.chunk c "
            "JOIN ragblame.document d ON d.id = c.document_id WHERE d.source = ANY(%s)",
            (list(documents),),
        ).fetchall()
    return dict(found)


def fill(conn: Conn, model: EmbeddingModel, count: int, **metadata: Any) -> None:
    """``count`` dull rows with random vectors, quickly; afterwards the table is analysed."""
    pick = random.Random(count)
    with conn.transaction():
        document = UUID(int=pick.getrandbits(128))
        conn.execute(
            "INSERT INTO ragblame.document (id, source, title, sha256) VALUES (%s, %s, '', '')",
            (document, f"dull {document}"),
        )
        with conn.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO ragblame.chunk (id, document_id, position, text, model_id, embedding, metadata) "
                "VALUES (%s, %s, %s, %s, %s, %s::halfvec, %s)",
                [
                    (
                        UUID(int=pick.getrandbits(128)),
                        document,
                        place,
                        f"Dull paragraph number {place} about the weather.",
                        model.id,
                        vector_text([pick.gauss(0, 1) for _ in range(SIZE)], model),
                        Jsonb(metadata),
                    )
                    for place in range(count)
                ],
            )
    settle(conn)


def set_for_database(url: str, setting: str, value: str) -> None:
    """Change a setting for every later session of the database."""
    name = str(conninfo_to_dict(url)["dbname"])
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(f'ALTER DATABASE "{name}" SET {setting} = {value}'.encode())


def reader(url: str, name: str = "probe_reader") -> str:
    """The URL of a new role that may log in and has no right at all."""
    with psycopg.connect(url, autocommit=True) as conn:
        conn.execute(sql.SQL("DROP ROLE IF EXISTS {}").format(sql.Identifier(name)))
        conn.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'reader'").format(sql.Identifier(name)))
    known = conninfo_to_dict(url)
    return f"postgresql://{name}:reader@{known['host']}:{known['port']}/{known['dbname']}"
