"""Files to import, read as numbered JSON values: gzipped or not, one value per line or one document.

A line that cannot be read is an error in the place of its value, so that it costs only itself.
"""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

from ragblame.errors import InputError
from ragblame.json_lines import numbered_lines, refuse_constant, unpacked

MAX_LINE: Final = 64_000_000  # bytes; a longer line is not an answer
MAX_DOCUMENT: Final = 256_000_000  # bytes of a file that is one JSON document, read at once

Value = Any  # of one line; an InputError where it cannot be read


def read_values(
    path: Path,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    *,
    may_be_document: bool = False,
) -> Iterator[tuple[int, Value]]:
    """Numbered JSON values from line 1, empty lines left out.

    With ``may_be_document`` a file that is one JSON document as a whole (an array, an object on several
    lines) gives the entries of the array, or the object, all as line 1. ``on_progress(done, total)`` hears of
    bytes of the file. Raises ``InputError`` when the file cannot be opened.
    """
    number = 0
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            document = _document(file) if may_be_document else None
            if document is not None:
                for entry in document:
                    yield 1, entry
                on_progress(total, total)
                return
            for number, line in numbered_lines(unpacked(file), MAX_LINE):
                if line is None:
                    yield number, InputError(f"longer than {MAX_LINE:,} bytes: split the answer")
                elif line.strip():
                    yield number, _parse(line)
                on_progress(min(file.tell(), total), total)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        message = f"the compressed file is damaged from here on ({error}): copy it again"
        yield number + 1, InputError(message)
    except OSError as error:
        reason = error.strerror or str(error)
        if number == 0:
            raise InputError(f"{path} cannot be read ({reason}): give a .jsonl or .jsonl.gz file") from error
        yield number + 1, InputError(f"the file cannot be read from here on ({reason}): import it again")


def _document(file: IO[bytes]) -> list[Value] | None:
    """The entries of a file that is one JSON document on several lines; None: it is read line by line."""
    try:
        stream = unpacked(file)
        first = b""
        while not first.strip() and (first := stream.readline(MAX_LINE)):
            pass
        if not first.strip() or (first.lstrip()[:1] == b"{" and _is_json(first)):
            return None
        data = first + stream.read(MAX_DOCUMENT)
        whole = _parse(data) if len(data) <= MAX_DOCUMENT else None
        if isinstance(whole, list | dict):
            return whole if isinstance(whole, list) else [whole]
    except (EOFError, zlib.error, gzip.BadGzipFile):  # named where it is met when reading lines
        pass
    return None


def _is_json(line: bytes) -> bool:
    return not isinstance(_parse(line), InputError)


def _parse(data: bytes) -> Value:
    try:
        return json.loads(data, parse_constant=refuse_constant)
    except UnicodeDecodeError as error:
        return InputError(f"not UTF-8 (byte {error.start}): convert the file")
    except RecursionError:
        return InputError("nested too deeply: flatten it")
    except ValueError as error:
        return InputError(f"not JSON ({error}): correct the line")
