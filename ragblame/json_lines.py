"""JSON lines, gzipped or not, read one bounded line at a time: what imports and labelled answers share."""

import gzip
from collections.abc import Iterator
from typing import IO, NoReturn


def unpacked(file: IO[bytes]) -> "IO[bytes] | gzip.GzipFile":
    """The file from its first byte, unpacked while it is read if it is gzipped."""
    file.seek(0)
    is_gzip = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return gzip.GzipFile(fileobj=file) if is_gzip else file


def numbered_lines(stream: "IO[bytes] | gzip.GzipFile", longest: int) -> Iterator[tuple[int, bytes | None]]:
    """Numbered lines from 1; None stands for one longer than ``longest`` bytes."""
    number = 0
    while line := stream.readline(longest + 1):
        number += 1
        if len(line) > longest:
            while (rest := stream.readline(longest)) and not rest.endswith(b"\n"):
                pass
            yield number, None
        else:
            yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def refuse_constant(name: str) -> NoReturn:
    """For ``json.loads(parse_constant=…)``: NaN and infinities are no JSON."""
    raise ValueError(f"{name} is no JSON number")
