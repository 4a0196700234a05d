"""Files and folders into document drafts; what cannot be read becomes a line in the report, never an abort.

Everything found on a disk is untrusted: links may run in circles, a pipe may never end, a "text" may be an
image, one line of JSONL may be a gigabyte.
"""

import hashlib
import json
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from ragblame.errors import InputError
from ragblame.json_values import clean_identity, clean_text
from ragblame.retriever.drafts import FILE_KEY, ChunkDraft, DocumentDraft, draft_document
from ragblame.retriever.splitting import markdown_title, split_passages

MARKDOWN: Final = frozenset({".md", ".markdown", ".mdown"})
JSONL: Final = frozenset({".jsonl", ".ndjson"})
PLAIN: Final = frozenset({".txt", ".text", ".rst", ".adoc", ".log"})
MAX_FILE: Final = 32_000_000  # bytes of one text file
MAX_LINE: Final = 16_000_000  # bytes of one JSONL line


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Something that was not ingested, and why."""

    path: str
    line: int | None  # 1-based, in JSONL
    message: str  # one line with the next step

    @property
    def place(self) -> str:
        """``file`` or ``file, line 7``."""
        return self.path if self.line is None else f"{self.path}, line {self.line}"

    def __str__(self) -> str:
        return f"{self.place}: {self.message}"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """A regular file to read."""

    path: Path
    name: str  # as its documents' source begins: absolute, or relative to where the caller said
    size: int  # bytes

    @property
    def identity(self) -> str:
        """The name as stored with each of the file's documents."""
        return clean_identity(self.name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """What a walk over paths found."""

    files: list[SourceFile]
    problems: list[Problem]  # what could not be read
    skipped: list[Problem]  # what is no text: images, pipes, links to what is read anyway
    roots: list[str]  # names of the paths themselves
    unread: list[str]  # names of files and folders that could not be looked into

    def is_unread(self, name: str) -> bool:
        """Whether the walk could not see if the file ``name`` is still there."""
        return any(name == unread or name.startswith(unread + os.sep) for unread in self.unread)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One step through a file."""

    found: DocumentDraft | str  # a document, or what was wrong
    done: int  # bytes of the file read so far
    line: int | None = None  # 1-based, in JSONL


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunking:
    """How text becomes chunks; see ``split_passages``."""

    max_chars: int = 1_000
    one_chunk_per_paragraph: bool = False


def list_files(paths: Sequence[Path | str], relative_to: Path | None = None) -> Listing:
    """The files under ``paths``, each once: folders recursively, names in code-point order, none hidden.

    A file named itself is taken whatever its suffix; in folders only known kinds of text are.
    """
    walk = _Walk(relative_to)
    roots = [Path(os.path.abspath(path)) for path in paths]
    for path in roots:
        walk.visit(path)
    return Listing(
        files=walk.files,
        problems=walk.problems,
        skipped=walk.skipped,
        roots=[clean_identity(walk.name(path)) for path in roots],
        unread=walk.unread,
    )


class _Walk:
    """One walk over all paths, remembering real folders so that links cannot run in circles."""

    def __init__(self, relative_to: Path | None) -> None:
        self.root = None if relative_to is None else os.path.abspath(relative_to)
        self.files: list[SourceFile] = []
        self.problems: list[Problem] = []
        self.skipped: list[Problem] = []
        self.unread: list[str] = []
        self.seen: set[Path] = set()
        self.folders: set[tuple[int, int]] = set()

    def visit(self, root: Path) -> None:
        """Walk from ``root``; a stack, because folders nest deeper than Python's calls may."""
        waiting = [root]
        while waiting:
            path = waiting.pop()
            if path in self.seen:
                continue
            self.seen.add(path)
            try:
                status = path.stat()
                if stat.S_ISDIR(status.st_mode):
                    names = self.open_folder(path, (status.st_dev, status.st_ino))
                    waiting += [path / name for name in reversed(names)]
                else:
                    self.take(path, status, is_named=path == root)
            except OSError as error:
                self.report(path, f"{reason(error)}: check the path and its rights")

    def open_folder(self, path: Path, identity: tuple[int, int]) -> list[str]:
        if identity in self.folders:
            self.report(path, "links to a folder that is read already", self.skipped)
            return []
        self.folders.add(identity)
        return sorted(name for name in os.listdir(path) if not name.startswith("."))

    def take(self, path: Path, status: os.stat_result, *, is_named: bool) -> None:
        suffix = path.suffix.lower()
        if not stat.S_ISREG(status.st_mode):
            self.report(path, "is not a regular file", self.skipped)
        elif not is_named and suffix not in MARKDOWN | JSONL | PLAIN:
            kind = suffix or "no suffix"
            message = f"is of no known kind of text ({kind}): name the file itself to ingest it"
            self.report(path, message, self.skipped)
        elif suffix not in JSONL and status.st_size > MAX_FILE:
            self.report(path, f"has {status.st_size:,} bytes, more than {MAX_FILE:,}: split it")
        else:
            self.files.append(SourceFile(path=path, name=self.name(path), size=status.st_size))

    def name(self, path: Path) -> str:
        return os.path.relpath(path, self.root) if self.root is not None else str(path)

    def report(self, path: Path, message: str, to: list[Problem] | None = None) -> None:
        self.unread.append(clean_identity(self.name(path)))
        reports = self.problems if to is None else to
        reports.append(Problem(path=printable(path), line=None, message=message))


def read_documents(file: SourceFile, chunking: Chunking) -> Iterator[Reading]:
    """The documents of one file, and what was wrong with it, in the order they stand there."""
    try:
        with file.path.open("rb") as stream:
            if file.path.suffix.lower() in JSONL:
                yield from _read_jsonl(file, stream, chunking)
            else:
                yield Reading(done=file.size, found=_read_text(file, stream, chunking))
    except OSError as error:
        yield Reading(done=file.size, found=f"{reason(error)}: check the file and its rights")


def reason(error: OSError) -> str:
    """The operating system's words, without the path that the report names already."""
    return (error.strerror or "cannot be read").lower()


def printable(path: Path | str) -> str:
    """A file name for a report: bytes that are no UTF-8 and control characters escaped."""
    return "".join(
        sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in str(path)
    )


def _read_text(file: SourceFile, stream: BinaryIO, chunking: Chunking) -> DocumentDraft | str:
    data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:  # it grew since it was listed
        return f"has more than {MAX_FILE:,} bytes: split it"
    if b"\0" in data[:8_192]:
        return "is binary: convert it to text first"
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte {error.start}): convert it, for example with iconv"
    is_markdown = file.path.suffix.lower() in MARKDOWN
    title = (markdown_title(text) if is_markdown else None) or file.path.stem
    return _draft(file, file.name, text, chunking, is_markdown=is_markdown, title=title)


def _read_jsonl(file: SourceFile, stream: BinaryIO, chunking: Chunking) -> Iterator[Reading]:
    done = line = 0
    while raw := stream.readline(MAX_LINE + 1):
        line += 1
        done += len(raw)
        if len(raw) > MAX_LINE:
            while raw and not raw.endswith(b"\n"):  # the rest of the giant, in bounded pieces
                raw = stream.readline(MAX_LINE)
                done += len(raw)
            yield Reading(done=done, line=line, found=f"has more than {MAX_LINE:,} bytes: split it")
            continue
        if line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.strip():
            try:
                yield Reading(done=done, line=line, found=_read_line(file, raw, chunking))
            except InputError as error:
                yield Reading(done=done, line=line, found=str(error))


def _read_line(file: SourceFile, raw: bytes, chunking: Chunking) -> DocumentDraft:
    """One line's document. Raises ``InputError`` saying what is wrong with the line."""
    try:
        value = json.loads(raw.decode(), parse_constant=_refuse, parse_float=_finite)
    except UnicodeDecodeError as error:
        raise InputError(f"is not UTF-8 (byte {error.start} of the line): convert it") from error
    except json.JSONDecodeError as error:
        why = f"{error.msg} at character {error.pos + 1}"
        raise InputError(f"is not JSON ({why}): write one object on the line") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not usable JSON ({error}): correct it") from error
    if not isinstance(value, dict):
        raise InputError('is not a JSON object: write {"text": "…"}')
    text, metadata = value.get("text"), value.get("metadata")
    if not isinstance(text, str) or not text.strip():
        raise InputError('has no "text", or an empty one: give the passage as a string')
    if not isinstance(metadata, dict | None):
        raise InputError('"metadata" is no object: write {"key": "value"} or leave it out')
    source, key, title = (_name(value, field) for field in ("source", "id", "title"))
    if key is not None:
        identity = f"{source or file.name}#{key}"
    else:  # the text's own digest: lines may be inserted or sorted without becoming other documents
        identity = source or f"{file.name}#{hashlib.sha256(clean_text(text).encode()).hexdigest()[:16]}"
    return _draft(file, identity, text, chunking, title=title, metadata=metadata)


def _name(value: Mapping[str, Any], field: str) -> str | None:
    """A string field that may be absent; a number serves as an id too."""
    found = value.get(field)
    if isinstance(found, int) and not isinstance(found, bool):
        found = str(found)
    if found is not None and not isinstance(found, str):
        raise InputError(f'"{field}" is no string: write one or leave it out')
    return found.strip() or None if found else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON value")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:40]} is too large a number")
    return number


def _draft(
    file: SourceFile,
    source: str,
    text: str,
    chunking: Chunking,
    *,
    title: str | None,
    is_markdown: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> DocumentDraft:
    passages = split_passages(
        text,
        is_markdown=is_markdown,
        max_chars=chunking.max_chars,
        one_chunk_per_paragraph=chunking.one_chunk_per_paragraph,
    )
    return draft_document(
        source,
        [ChunkDraft(text=passage.text, heading=passage.heading) for passage in passages],
        title=title,
        metadata=metadata,
        provenance={FILE_KEY: file.identity},
    )
