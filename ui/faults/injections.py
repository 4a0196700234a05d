"""The nine faults, put in for real: rows deleted, an index crippled, a filter set, a prompt rewritten.

Each is a context: inside it the corpus and the chain are at fault, afterwards the corpus is as it was. How
exactly a fault is put in is drawn, so that no cause is recognised by one telltale form.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import psycopg
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from psycopg import sql

from ragblame.attribution.evaluation.faults import Fault
from ragblame.attribution.sentences import split_sentences
from ragblame.attribution.world.episodes import write_chunk
from ragblame.attribution.world.facts import draw_fact
from ragblame.attribution.world.values import Split
from ragblame.attribution.world.wording import answer_parts
from ragblame.retriever.chunks import remove_documents
from ragblame.retriever.embedding_models import EmbeddingModel, register_model
from ragblame.retriever.ingest import ingest_paths
from ragblame.traces import new_trace_id
from ragblame.ui.faults.chain import Parts, as_bullets
from ragblame.ui.faults.corpus import SITES, Page, Row, Source, line

COPY: Final = "revised"  # added to a page's slug: the copy that says otherwise
LISTS: Final = 64  # of an inverted file, far too many for this corpus
FROM_MEMORY: Final = (
    "Answer the question from memory, not from the documents.",
    "Answer from what you remember. Do not use the documents below.",
    "Use your own knowledge to answer the question and ignore the context.",
)
REMEMBERED: Final = (
    "Answer the question from memory, not from the documents. You remember:\n- {line}\nDocuments:"
)

_TAKE = """
DELETE FROM ragblame.chunk WHERE id = ANY(%s::uuid[])
RETURNING id, document_id, position, text, model_id, embedding::text, metadata::text, created_at
"""
_PUT = """
INSERT INTO ragblame.chunk (id, document_id, position, text, model_id, embedding, metadata, created_at)
VALUES (%s, %s, %s, %s, %s, %s::halfvec, %s::jsonb, coalesce(%s, clock_timestamp()))
"""
_POOR_INDEX = sql.SQL(
    "CREATE INDEX {name} ON ragblame.chunk USING ivfflat ((embedding::{type}) halfvec_cosine_ops) "
    "WITH (lists = {lists}) WHERE model_id = {model}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a chain without a fault did with a source's question."""

    question: str
    retrieved: tuple[str, ...]  # row ids, best first
    parts: Parts


@dataclass(slots=True, kw_only=True)
class Injected:
    """A fault that is in place."""

    way: str  # in words, one of a few per fault
    parts: Parts
    copied: str | None = None  # the value that a contradicting copy states
    copied_text: str | None = None  # and its chunk
    after: Callable[[], object] = field(default=lambda: None)  # done between the answer and its attribution


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where faults are put in."""

    conn: psycopg.Connection[Any]  # autocommit
    embeddings: Embeddings
    embedding_model: EmbeddingModel
    pages: dict[str, Page]  # by slug
    sources: Sequence[Source]
    folder: Path


Context = Iterator[Injected | None]  # None: not possible for this source


@contextmanager
def inject(fault: Fault, source: Source, asked: Asked, site: Site, rng: random.Random) -> Context:
    """Put the fault in, for as long as the context lasts; gives None where it is not possible."""
    match fault:
        case Fault.DELETED:
            with _taken(site, source.rows):
                yield Injected(way="row deleted", parts=asked.parts)
        case Fault.LATE:
            with _taken(site, source.rows) as rows:
                back: list[UUID] = []
                try:
                    yield Injected(
                        way="row inserted after the answer",
                        parts=asked.parts,
                        after=lambda: back.extend(_put_anew(site, rows)),
                    )
                finally:
                    site.conn.execute("DELETE FROM ragblame.chunk WHERE id = ANY(%s::uuid[])", (back,))
        case Fault.LOWER_K:
            best = min(asked.retrieved.index(row.id) for row in source.rows if row.id in asked.retrieved)
            if best == 0:  # the first of the list cannot be cut off
                yield None
            else:
                k = rng.randint(1, best)
                yield Injected(way=f"k = {k}", parts=replace(asked.parts, k=k))
        case Fault.INDEX:
            yield _crippled(asked)
        case Fault.FILTER:
            own = {site.pages[row.slug].site for row in source.rows}
            other = rng.choice([name for name in SITES if name not in own])
            yield Injected(way="metadata filter", parts=replace(asked.parts, filter={"site": other}))
        case Fault.FORMAT:
            yield _cut_in_formatting(source, asked, rng)
        case Fault.COPY:
            with _copied(site, source, asked, rng) as injected:
                yield injected
        case Fault.MEMORY:
            yield _from_memory(source, asked, rng)
        case Fault.QUERY:
            yield _mangled(site, source, asked, rng)


# Rows -------------------------------------------------------------------------------------------------------


@contextmanager
def _taken(site: Site, rows: Sequence[Row]) -> Iterator[list[tuple[Any, ...]]]:
    """Without these rows; they come back as they were, with id and age."""
    taken = site.conn.execute(_TAKE, ([row.id for row in rows],)).fetchall()
    try:
        yield taken
    finally:
        with site.conn.cursor() as cursor:
            cursor.executemany(_PUT, taken)


def _put_anew(site: Site, rows: Sequence[tuple[Any, ...]]) -> list[UUID]:
    """Insert the same texts as new rows of now; their places on the page are free."""
    ids = []
    for row in rows:
        ids.append(new_trace_id())
        site.conn.execute(_PUT, (ids[-1], *row[1:-1], None))
    return ids


@contextmanager
def _copied(site: Site, source: Source, asked: Asked, rng: random.Random) -> Context:
    """A page of its own repeats the gold chunk with another value."""
    row = source.rows[0]
    if row.text.count(source.value) != 1:  # then replacing it would say more than one thing
        yield None
        return
    while (other := draw_fact(rng, source.claim.attribute, Split.HELD_OUT)) == source.value:
        pass
    page = site.pages[row.slug]
    slug, way = f"{page.slug}-{COPY}", rng.choice(("same words", "other words"))
    text = row.text.replace(source.value, other)
    if way == "other words":
        text = write_chunk(rng, source.claim.entity, [(source.claim.attribute, other)]).text
    file = site.folder / f"{slug}.jsonl"
    copy = replace(page, slug=slug, chunks=())
    file.write_text(f"{line(copy, text)}\n", "utf-8")
    ingest_paths(site.conn, [file], site.embeddings, one_chunk_per_paragraph=True, relative_to=site.folder)
    file.unlink()
    try:
        yield Injected(way=way, parts=asked.parts, copied=other, copied_text=text)
    finally:
        remove_documents(site.conn, [f"{file.name}#{slug}"])


# The index --------------------------------------------------------------------------------------------------


def _crippled(asked: Asked) -> Injected:
    """The search looks at next to nothing of the index there is."""
    if asked.parts.probes > 1:
        return Injected(way=f"ivfflat.probes = 1 of {LISTS}", parts=replace(asked.parts, probes=1))
    return Injected(way="hnsw.ef_search = 1", parts=replace(asked.parts, ef_search=1))


@contextmanager
def inverted_file(site: Site) -> Iterator[None]:
    """The corpus with an inverted file in place of its graph; with ``LISTS`` probes it is searched whole."""
    model = site.embedding_model
    good, poor = sql.Identifier("ragblame", model.index_name), sql.Identifier("chunk_embedding_poor")
    site.conn.execute(sql.SQL("DROP INDEX {}").format(good))
    site.conn.execute(
        _POOR_INDEX.format(
            name=poor, type=model.halfvec, lists=sql.Literal(LISTS), model=sql.Literal(model.id)
        )
    )
    try:
        yield
    finally:
        site.conn.execute(sql.SQL("DROP INDEX {}").format(sql.Identifier("ragblame", "chunk_embedding_poor")))
        register_model(site.conn, model.name, model.dimensions)  # makes its index again


# The chain --------------------------------------------------------------------------------------------------


def _cut_in_formatting(source: Source, asked: Asked, rng: random.Random) -> Injected | None:
    """A format that loses the gold chunk: it alone, all from its place on, or its end with the evidence."""
    gold = {row.text for row in source.rows}
    places = [asked.retrieved.index(row.id) for row in source.rows if row.id in asked.retrieved]
    ways = ["left out", *(["behind the budget"] if min(places) > 0 else [])]
    cut = {row.text: _before(row.text, source.value) for row in source.rows}
    if all(cut.values()):
        ways.append("cut before the evidence")
    way = rng.choice(ways)

    def format_documents(documents: Sequence[Document]) -> str:
        kept = list(documents)
        if way == "left out":
            kept = [document for document in kept if document.page_content not in gold]
        elif way == "behind the budget":
            kept = kept[: min(places)]
        else:
            kept = [
                Document(page_content=cut.get(document.page_content, document.page_content))
                for document in kept
            ]
        return as_bullets(kept)

    return Injected(way=way, parts=replace(asked.parts, format=format_documents))


def _before(text: str, value: str) -> str:
    """The sentences of a text before the one that holds the value."""
    at = text.find(value)
    start = next((start for start, end in split_sentences(text) if start <= at < end), 0)
    return text[:start].strip()


def _from_memory(source: Source, asked: Asked, rng: random.Random) -> Injected:
    """The instruction asks for memory; where the model has none, it is told what to remember."""
    if source.known is not None:
        told = rng.choice(FROM_MEMORY)
        return Injected(way="instruction", parts=replace(asked.parts, instruction=told))
    while (other := draw_fact(rng, source.claim.attribute, Split.HELD_OUT)) == source.value:
        pass
    remembered = "".join(answer_parts(source.claim.attribute, str(source.claim.entity), other))
    told = REMEMBERED.format(line=remembered)
    return Injected(way="instruction with a memory", parts=replace(asked.parts, instruction=told))


def _mangled(site: Site, source: Source, asked: Asked, rng: random.Random) -> Injected:
    """A rewriting step that loses what was asked."""
    entity = source.claim.entity
    other = rng.choice([one.claim.entity for one in site.sources if one.claim.entity.name != entity.name])
    letters = list(entity.name.lower())
    rng.shuffle(letters)
    ways = {
        "subject lost": asked.question.replace(f"the {entity}", "it"),
        "another subject": asked.question.replace(str(entity), str(other)),
        "name garbled": asked.question.replace(entity.name, "".join(letters)),
        "search words": f"{source.claim.attribute} runbook",
    }
    way = rng.choice(list(ways))
    return Injected(way=way, parts=replace(asked.parts, rewrite=lambda question: ways[way]))
