"""Files into the corpus: read, skip what is unchanged, embed what is new, write; in small transactions.

An interrupted run loses nothing: what was written stays, and the next run finds it unchanged and goes on. Two
runs over one folder at the same time end with one copy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psycopg
from langchain_core.embeddings import Embeddings

from ragblame.errors import DatabaseError, ModelError, RagblameError
from ragblame.retriever.chunks import (
    changed_documents,
    documents_read_from,
    remove_documents,
    settle,
    texts_to_embed,
    write_documents,
)
from ragblame.retriever.drafts import DocumentDraft
from ragblame.retriever.embedding_models import (
    VectorText,
    find_model,
    has_direction,
    name_of,
    register_model,
    vector_text,
)
from ragblame.retriever.reading import (
    Chunking,
    Listing,
    Problem,
    SourceFile,
    list_files,
    printable,
    read_documents,
)
from ragblame.retriever.splitting import check_max_chars

__all__ = ["IngestResult", "Problem", "ingest_paths"]

WINDOW: Final = 256  # chunks (and documents) handled together: one comparison, one transaction
SETTLE_FROM: Final = 1_000  # chunks written in a run that are worth telling the planner about
RETRIES: Final = 5  # rounds against concurrent writers of the same documents

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestResult:
    """What a run did."""

    documents: int  # new or changed, now stored
    chunks: int  # of those documents
    unchanged: int  # documents left alone
    removed: int  # documents whose file or line is gone (only with ``prune``)
    embedded: int  # texts the embedding model read
    problems: list[Problem]  # what should have been ingested and was not, and why
    skipped: list[Problem]  # what is no text, or holds none: nothing to correct


def ingest_paths(
    conn: psycopg.Connection[Any],
    paths: Sequence[Path | str],
    embeddings: Embeddings,
    *,
    model: str | None = None,
    max_chars: int = 1_000,
    one_chunk_per_paragraph: bool = False,
    relative_to: Path | None = None,
    prune: bool = False,
    on_progress: Progress | None = None,
    batch_size: int = 64,
) -> IngestResult:
    """Make the corpus hold the text, Markdown and JSONL files under ``paths``; a second run does nothing.

    A document's source is its absolute path (or relative to ``relative_to``), and for a JSONL line its
    ``source``, ``source#id``, or the file with a digest of the text. ``model`` names the embedding model,
    by default the embeddings' own name. ``on_progress(done, total)`` counts bytes of files. ``prune`` removes
    documents once read from these paths whose file, or place in its file, is gone; a path that does not
    exist, and a file with problems, loses nothing.
    Commits as it goes when ``conn`` has no transaction open; else everything is part of the caller's.
    Raises ``ModelError`` when the embeddings fail or do not fit the registered model, ``InputError`` when
    ``max_chars`` is out of range, ``DatabaseError``. Everything else is told in the result.
    """
    check_max_chars(max_chars)
    run = _Run(conn, embeddings, model or name_of(embeddings), batch_size, on_progress)
    chunking = Chunking(max_chars=max_chars, one_chunk_per_paragraph=one_chunk_per_paragraph)
    listing = list_files(paths, relative_to)
    run.problems += listing.problems
    run.skipped += listing.skipped
    run.total = sum(file.size for file in listing.files)
    for file in listing.files:
        run.read(file, chunking)
    run.flush()
    run.report(run.total)
    if run.chunks >= SETTLE_FROM:
        settle(conn)
    removed = run.prune(listing) if prune else 0
    return IngestResult(
        documents=run.documents,
        chunks=run.chunks,
        unchanged=run.unchanged,
        removed=removed,
        embedded=run.embedded,
        problems=run.problems,
        skipped=run.skipped,
    )


class _Run:
    """One ingest under way: a window of drafts, what was counted, how far the reading is."""

    def __init__(
        self,
        conn: psycopg.Connection[Any],
        embeddings: Embeddings,
        model_name: str,
        batch_size: int,
        on_progress: Progress | None,
    ) -> None:
        self.conn = conn
        self.embeddings = embeddings
        self.model_name = model_name
        self.model = find_model(conn, model_name)  # None until the first vector tells its dimensions
        self.batch_size = batch_size
        self.on_progress = on_progress
        self.problems: list[Problem] = []
        self.skipped: list[Problem] = []
        self.documents = self.chunks = self.unchanged = self.embedded = 0
        self.total = 0  # bytes of all files
        self.read_before = 0  # bytes of the files before the current one
        self.reached = 0  # bytes read and handed to the window
        self.reported = 0  # bytes whose documents are written
        self.shown = 0  # what the caller was told last: progress never goes back
        self.window: list[tuple[DocumentDraft, Problem]] = []  # each with the report it would get
        self.window_chunks = 0
        self.seen: dict[str, str] = {}  # source -> where it stood
        self.damaged: set[str] = set()  # names of files with problems

    def read(self, file: SourceFile, chunking: Chunking) -> None:
        """Take in one file; full windows are written on the way."""
        path = printable(file.path)
        for reading in read_documents(file, chunking):
            self.reached = self.read_before + min(reading.done, file.size)
            if isinstance(reading.found, str):
                self.refuse(file, Problem(path=path, line=reading.line, message=reading.found))
                continue
            place = Problem(path=path, line=reading.line, message="")
            self.take(file, reading.found, place)
        self.read_before += file.size

    def take(self, file: SourceFile, draft: DocumentDraft, place: Problem) -> None:
        first = self.seen.setdefault(draft.source, place.place)
        if first != place.place:
            message = f"has the same source as {first} ({draft.source[:200]}): give each its own id"
            self.refuse(file, Problem(path=place.path, line=place.line, message=message))
            return
        if not draft.chunks:
            message = "holds no text: it is stored without chunks"
            self.skipped.append(Problem(path=place.path, line=place.line, message=message))
        self.window.append((draft, place))
        self.window_chunks += len(draft.chunks)
        if max(len(self.window), self.window_chunks) >= WINDOW:
            self.flush()

    def refuse(self, file: SourceFile, problem: Problem) -> None:
        self.problems.append(problem)
        self.damaged.add(file.identity)

    def flush(self) -> None:
        """Write the window: only what changed is embedded, and only texts whose vectors are not stored."""
        window, self.window, self.window_chunks = self.window, [], 0
        drafts = [draft for draft, _ in window]
        places = {draft.source: place for draft, place in window}
        pending = drafts if self.model is None else changed_documents(self.conn, drafts, self.model)
        self.unchanged += len(drafts) - len(pending)
        vectors: dict[str, VectorText | None] = {}  # None: the model gave no usable vector
        for _ in range(RETRIES):
            self.embed(pending, vectors)
            usable = []
            for draft in pending:
                if all(vectors.get(chunk.embedded_text, "") is not None for chunk in draft.chunks):
                    usable.append(draft)
                    continue
                place = places[draft.source]
                message = (
                    f"the embedding model {self.model_name} gives no direction (zero or NaN) for a chunk of "
                    "it: left out; check the model, or the text"
                )
                self.problems.append(Problem(path=place.path, line=place.line, message=message))
            if not usable:
                break
            assert self.model is not None  # texts were embedded, or compared with a registered model
            known = {text: vector for text, vector in vectors.items() if vector is not None}
            written = write_documents(self.conn, usable, self.model, known)
            self.documents += written.documents
            self.chunks += written.chunks
            self.unchanged += written.unchanged
            pending = list(written.lacking)
            if not pending:
                break
        else:
            raise DatabaseError(
                "other processes keep changing the same documents: let them finish, then ingest again"
            )
        self.report(self.reached)

    def embed(self, drafts: Sequence[DocumentDraft], vectors: dict[str, VectorText | None]) -> None:
        """Add to ``vectors`` what the store and ``vectors`` lack of ``drafts``."""
        if self.model is None:
            wanted = list(dict.fromkeys(chunk.embedded_text for draft in drafts for chunk in draft.chunks))
        else:
            wanted = texts_to_embed(self.conn, drafts, self.model)
        texts = [text for text in wanted if text not in vectors]
        for start in range(0, len(texts), self.batch_size):
            batch = texts[start : start + self.batch_size]
            rows = self._call_embeddings(batch)
            if self.model is None:
                self.model = register_model(self.conn, self.model_name, len(rows[0]))
            for text, row in zip(batch, rows, strict=True):
                is_usable = has_direction(row) or len(row) != self.model.dimensions
                vectors[text] = vector_text(row, self.model) if is_usable else None
            self.embedded += len(batch)
            share = (start + len(batch)) / len(texts)
            self.report(self.reported + int((self.reached - self.reported) * share), is_written=False)

    def _call_embeddings(self, texts: list[str]) -> list[list[float]]:
        try:
            rows = self.embeddings.embed_documents(texts)
        except RagblameError:
            raise
        except Exception as error:  # any library, any server: theirs are many, ours is one line
            line = (str(error).strip() or "no reason given").splitlines()[0][:300]
            raise ModelError(
                f"embedding model {self.model_name} failed ({type(error).__name__}: {line}): mend it "
                "and ingest again; what was written stays"
            ) from error
        if len(rows) != len(texts):
            raise ModelError(
                f"embedding model {self.model_name} returned {len(rows)} vectors for {len(texts)} texts: "
                "use other embeddings"
            )
        return rows

    def report(self, done: int, *, is_written: bool = True) -> None:
        if is_written:
            self.reported = done
        self.shown = max(self.shown, done)
        if self.on_progress is not None:
            self.on_progress(self.shown, self.total)

    def prune(self, listing: Listing) -> int:
        """Remove documents read from the listed paths in an earlier run and not in this one."""
        gone = [
            source
            for source, file in documents_read_from(self.conn, listing.roots)
            if source not in self.seen and file not in self.damaged and not listing.is_unread(file)
        ]
        return sum(
            remove_documents(self.conn, gone[start : start + WINDOW]) for start in range(0, len(gone), WINDOW)
        )
