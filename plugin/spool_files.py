"""The form of a spool file: records with their length and a checksum behind a first line that names the form.

A process may die at any byte of a write; what it had not finished is then found by the length or the checksum
and costs nothing but itself.
"""

import os
import stat
import struct
import sys
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ragblame.json_values import json_bytes
from ragblame.trace_records import Json

if sys.platform != "win32":
    import fcntl

MAGIC: Final = b"ragblame spool 1\n"
HEADER: Final = struct.Struct(">II")  # length and CRC-32 of the JSON that follows


def encode(value: Mapping[str, Json]) -> bytes:
    """One record of a cleaned value."""
    return frame(json_bytes(value))


def frame(body: bytes) -> bytes:
    """A record with this body."""
    return HEADER.pack(len(body), zlib.crc32(body)) + body


def read_records(data: bytes) -> tuple[list[bytes], bytes]:
    """The bodies of a file's readable records, in order, and what of it cannot be read."""
    bodies: list[bytes] = []
    if not data.startswith(MAGIC):
        return bodies, data
    offset, unreadable = len(MAGIC), b""
    while offset < len(data):
        start = offset
        length, checksum = HEADER.unpack_from(data, offset) if offset + HEADER.size <= len(data) else (0, 1)
        offset += HEADER.size + length
        if offset > len(data):
            return bodies, unreadable + data[start:]  # the tail that a crash tore off, or a damaged length
        body = data[offset - length : offset]
        if zlib.crc32(body) == checksum:
            bodies.append(body)
        else:
            unreadable += data[start:offset]
    return bodies, unreadable


def name_file(folder: Path, now_ms: int, suffix: str) -> str:
    """A name that sorts behind every other in the folder, also when the clock was set back."""
    last = 0
    for entry in os.scandir(folder):
        head = entry.name.partition("-")[0]
        if entry.name.endswith(".spool") and head.isdecimal():
            last = max(last, int(head))
    return f"{max(now_ms, last + 1):013d}-{os.getpid()}-{os.urandom(4).hex()}{suffix}"


def lock(handle: int, *, wait: bool = False) -> bool:
    """Take the file for this process, however it ends; False when another one has it."""
    if sys.platform == "win32":
        return True  # no such locks there: a file may be replayed twice, which changes nothing
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def prepare(folder: Path) -> None:
    """Make the folder private; refuse one that others can write, they could slip traces in."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.stat()
    if hasattr(os, "geteuid") and found.st_uid == os.geteuid() and stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)
    elif stat.S_IMODE(found.st_mode) & 0o022:
        raise PermissionError(f"{folder} can be written by others: make it yours with mode 0700")


def sync_folder(folder: Path) -> None:
    """Make a new file's name as durable as its content."""
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
