"""The corpus that faults are put into: the demo's runbooks of several seeds, and who states what in them.

One demo holds too few facts for forty cases of nine faults, so several are joined; a name that two of them
use is taken from the first, since two pages about one thing would contradict each other. Pages on entities
the model knows by heart are added, each saying otherwise than the model remembers.
"""

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from langchain_core.embeddings import Embeddings

from ragblame.attribution.world import runbooks
from ragblame.attribution.world.episodes import write_chunk
from ragblame.attribution.world.facts import Chunk, Claim, Entity, draw_fact, is_distorted, world
from ragblame.attribution.world.values import Split
from ragblame.errors import InputError, RagblameError
from ragblame.retriever.chunks import settle
from ragblame.retriever.ingest import ingest_paths

FILE: Final = "runbooks.jsonl"
SITES: Final = ("north", "south", "west")  # a page's, in its metadata: what a filter goes by

_ROWS = """
SELECT d.source, c.position, c.id::text, c.text FROM ragblame.chunk c JOIN ragblame.document d
ON d.id = c.document_id ORDER BY d.source, c.position
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """One runbook of the corpus."""

    slug: str
    title: str
    site: str
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A chunk as it stands in PostgreSQL."""

    id: str
    text: str
    slug: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A fact to ask for: one value, stated for this claim by these rows and by no other."""

    claim: Claim
    value: str
    rows: tuple[Row, ...]
    site: str
    known: str | None  # what the model remembers of it, if anything


def pages(seed: int, demos: int) -> list[Page]:
    """The pages of ``demos`` demos, and one on each entity the model knows and would read about."""
    rng = random.Random(f"fault pages {seed}")
    everything = [*_remembered(rng)]
    taken = {entity.name for entity, _ in everything}
    for number in range(demos):
        found = [
            (book.entity, book.chunks)
            for book in runbooks.runbooks(seed * 1_000 + number)
            if book.entity.name not in taken
        ]
        taken |= {entity.name for entity, _ in found}
        everything += found
    return [
        Page(
            slug=str(entity).lower().replace(" ", "-"),
            title=str(entity),
            site=rng.choice(SITES),
            chunks=tuple(chunks),
        )
        for entity, chunks in everything
    ]


def _remembered(rng: random.Random) -> Iterator[tuple[Entity, Sequence[Chunk]]]:
    """Pages on famous entities that say of every remembered fact something else."""
    facts = world()
    for entity in facts.famous:
        if entity in facts.stubborn:  # the model would not read them, fault or not
            continue
        stated = []
        for claim, known in facts.memory.items():
            if claim.entity == entity:
                while (value := draw_fact(rng, claim.attribute, Split.HELD_OUT)) == known:
                    pass
                stated.append((claim.attribute, value))
        yield entity, [write_chunk(rng, entity, [fact]) for fact in stated]


def store(
    conn: psycopg.Connection[Any],
    everything: Sequence[Page],
    embeddings: Embeddings,
    folder: Path,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[tuple[str, int], Row]:
    """Ingest the pages as any corpus is, from a file; returns the rows by slug and place on the page.

    Raises ``RagblameError`` when what stands in the store is not what was written.
    """
    file = folder / FILE
    file.write_text("".join(f"{line(page)}\n" for page in everything), "utf-8")
    ingest_paths(
        conn,
        [file],
        embeddings,
        one_chunk_per_paragraph=True,
        relative_to=folder,
        on_progress=on_progress,
    )
    settle(conn)
    rows = {
        (source.partition("#")[2], position): Row(id=id, text=text, slug=source.partition("#")[2])
        for source, position, id, text in conn.execute(_ROWS).fetchall()
    }
    for page in everything:
        for position, chunk in enumerate(page.chunks):
            if (row := rows.get((page.slug, position))) is None or row.text != chunk.text:
                raise RagblameError(
                    f"chunk {position} of {page.slug} was not stored as written: run `ragblame doctor`"
                )
    return rows


def line(page: Page, text: str | None = None) -> str:
    """A page as a line of JSON for ``ragblame ingest``; ``text`` stands in place of its own."""
    if text is None:
        text = "\n\n".join(chunk.text for chunk in page.chunks)
    return json.dumps({"id": page.slug, "title": page.title, "text": text, "metadata": {"site": page.site}})


def sources(everything: Sequence[Page], rows: Mapping[tuple[str, int], Row]) -> list[Source]:
    """Every fact that the corpus states in one way only; what the model was trained to alter is left out."""
    stated: dict[Claim, list[tuple[str, Row, str]]] = defaultdict(list)
    for page in everything:
        for position, chunk in enumerate(page.chunks):
            for attribute, value in chunk.facts:
                claim = Claim(chunk.entity, attribute)
                stated[claim].append((value, rows[page.slug, position], page.site))
    found = []
    for claim, places in stated.items():
        values = {value for value, _, _ in places}
        if len(values) > 1 or is_distorted(claim):
            continue
        found.append(
            Source(
                claim=claim,
                value=places[0][0],
                rows=tuple(dict.fromkeys(row for _, row, _ in places)),
                site=places[0][2],
                known=world().memory.get(claim),
            )
        )
    if not found:
        raise InputError("the corpus states nothing to ask for: raise the number of demos")
    return found
