"""How the command line speaks: data on stdout, words on stderr, one line per error, no text with power.

Answers and chunks are strangers' text: their control characters could move a terminal's cursor, retitle its
window or hide a line, so they are shown as signs.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from ragblame.json_values import clean_text


def words() -> Console:
    """The console for people: stderr, as it is now."""
    return Console(stderr=True, highlight=False)


def data() -> Console:
    """The console for results: stdout, as it is now."""
    return Console(highlight=False)


def plain(text: object, limit: int | None = None) -> str:
    """``text`` on one line without control characters, cut to ``limit`` code points."""
    line = " ".join(clean_text(str(text)).split())
    line = "".join(sign if sign.isprintable() else "\ufffd" for sign in line)
    return line if limit is None or len(line) <= limit else line[: limit - 1] + "…"


def say(line: str, style: str = "") -> None:
    """One line for a person."""
    words().print(Text(plain(line), style=style), soft_wrap=True)


def say_error(line: str) -> None:
    """One red line on stderr."""
    say(f"error: {line}", style="red")


def write_json(value: Any) -> None:
    """One object on stdout, for the program that reads it."""
    sys.stdout.write(json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n")


class Bar:
    """A progress bar whose total may become known late; a log file gets no bar, only what is said."""

    def __init__(self, progress: Progress, name: str) -> None:
        self._progress = progress
        self._task = progress.add_task(name, total=None)

    def at(self, done: int, total: int) -> None:
        """Move it to ``done`` of ``total``."""
        self._progress.update(self._task, completed=done, total=total)


@contextmanager
def progress_bar(name: str) -> Iterator[Bar]:
    """A bar on stderr while the block runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    console = words()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, name)
