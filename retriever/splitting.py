"""Text into passages: paragraphs packed up to a length, never across a heading, fenced code kept whole.

Everything is one pass over the lines, so a hostile megabyte costs a linear time; nothing but headings,
rules and front matter of Markdown is left out, and no word is ever changed.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from ragblame.errors import InputError

MAX_WHOLE: Final = 8_000  # code points of a fence or of a paragraph-chunk that are still kept in one piece
MAX_HEADING: Final = 200  # code points kept of one heading
FRONT_MATTER_LINES: Final = 200

_FENCE = re.compile(r"\s*(`{3,}|~{3,})([^`]*)$")
_SENTENCE_END = re.compile(r"[.!?…。!?]['\"”’)\]]*\s")
_FRONT_KEY = re.compile(r"[A-Za-z_][\w.-]*:(\s|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Passage:
    """What becomes one chunk."""

    text: str  # never empty
    heading: str = ""  # path of headings it stands under, " > " between them; "" for none


@dataclass(slots=True)
class _Block:
    """A paragraph, with the fences that belong to it (no blank line between)."""

    heading: str
    parts: list[tuple[str, bool]] = field(default_factory=list)  # text, is a fence

    @property
    def text(self) -> str:
        return "\n".join(text for text, _ in self.parts)


def split_passages(
    text: str, *, is_markdown: bool, max_chars: int = 1_000, one_chunk_per_paragraph: bool = False
) -> tuple[Passage, ...]:
    """Passages of ``text`` in order, each at most ``max_chars`` code points (fences: ``MAX_WHOLE``).

    Paragraphs are separated by blank lines and packed, joined by one blank line; with
    ``one_chunk_per_paragraph`` each stands alone, whole up to ``MAX_WHOLE``. What is longer is cut after a
    sentence, else at white space, else anywhere. Raises ``InputError`` for ``max_chars`` outside [50, 8000].
    """
    check_max_chars(max_chars)
    limit = MAX_WHOLE if one_chunk_per_paragraph else max_chars
    passages: list[Passage] = []
    open_text, open_heading = "", ""
    for block in _blocks(text, is_markdown):
        for piece in _pieces(block, limit):
            joined = f"{open_text}\n\n{piece}"
            fits = len(joined) <= max_chars and block.heading == open_heading
            if open_text and fits and not one_chunk_per_paragraph:
                open_text = joined
                continue
            if open_text:
                passages.append(Passage(text=open_text, heading=open_heading))
            open_text, open_heading = piece, block.heading
    if open_text:
        passages.append(Passage(text=open_text, heading=open_heading))
    return tuple(passages)


def check_max_chars(max_chars: int) -> None:
    """Raise ``InputError`` for a length outside [50, 8000] code points."""
    if not 50 <= max_chars <= MAX_WHOLE:
        raise InputError(f"max_chars is {max_chars}: choose 50 to {MAX_WHOLE} code points")


def markdown_title(text: str) -> str | None:
    """The title of a Markdown document: ``title:`` of its front matter, else its first level-1 heading."""
    lines = _lines(text)
    end = _front_matter_end(lines)
    for line in lines[:end]:
        key, _, value = line.partition(":")
        if key == "title" and value.strip(" \"'"):
            return value.strip(" \"'")[:MAX_HEADING]
    fence = ""
    for line in lines[end:]:
        fence = _fence_after(line, fence)
        heading = None if fence else _atx_heading(line)
        if heading is not None and heading[0] == 1 and heading[1]:
            return heading[1]
    return None


def _lines(text: str) -> list[str]:
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _blocks(text: str, is_markdown: bool) -> Iterator[_Block]:
    lines = _lines(text)
    start = _front_matter_end(lines) if is_markdown else 0
    trail: list[tuple[int, str]] = []  # level and text of the open headings
    path = ""
    paragraph: list[str] = []
    block = _Block("")
    fence = ""  # the opening marks, while inside a fence

    def end_paragraph(is_fence: bool = False) -> None:
        joined = "\n".join(paragraph).rstrip()
        if joined:
            block.parts.append((joined, is_fence))
        paragraph.clear()

    for line in lines[start:]:
        if is_markdown:
            was, fence = fence, _fence_after(line, fence)
            if was:
                paragraph.append(line)
                if not fence:
                    end_paragraph(is_fence=True)
                continue
            if fence:
                end_paragraph()
                paragraph.append(line)
                continue
            heading = _atx_heading(line) or _setext_heading(line, paragraph, block)
            if heading is not None or _is_rule(line):
                if heading is not None and _underlines(line):
                    paragraph.clear()  # the paragraph was the heading's text
                end_paragraph()
                if block.parts:
                    yield block
                if heading is not None:
                    level, title = heading
                    trail = [entry for entry in trail if entry[0] < level] + [(level, title)]
                    path = " > ".join(name for _, name in trail if name)
                block = _Block(path)
                continue
        if line.strip():
            paragraph.append(line)
            continue
        end_paragraph()
        if block.parts:
            yield block
        block = _Block(path)
    end_paragraph(is_fence=bool(fence))
    if block.parts:
        yield block


def _pieces(block: _Block, limit: int) -> Iterator[str]:
    """The block in one piece when it fits, else its fences whole and its prose cut."""
    if len(block.text) <= limit:
        yield block.text
        return
    for text, is_fence in block.parts:
        yield from cut(text, MAX_WHOLE if is_fence else limit, at_lines=is_fence)


def cut(text: str, limit: int, *, at_lines: bool = False) -> Iterator[str]:
    """``text`` in pieces of at most ``limit`` code points, without the white space between them.

    A cut falls after the last sentence end in the window's second half, else at its last line end or white
    space, else at ``limit``; with ``at_lines`` (code) sentences do not count.
    """
    start = 0
    while len(text) - start > limit:
        window = text[start : start + limit + 1]
        ends = [] if at_lines else [match.end() for match in _SENTENCE_END.finditer(window, limit // 2)]
        at = ends[-1] if ends else max(window.rfind("\n"), 0 if at_lines else window.rfind(" "))
        if at <= limit // 4:
            at = max(window.rfind(" "), window.rfind("\t"))
        at = min(at, limit) if at > limit // 4 else limit
        piece = window[:at].rstrip()
        if piece:
            yield piece
        start += at
        while start < len(text) and text[start].isspace() and not (at_lines and text[start] != "\n"):
            start += 1
    if text[start:].strip():
        yield text[start:]


def _front_matter_end(lines: list[str]) -> int:
    """Index of the first line after YAML front matter; 0 when there is none."""
    if len(lines) < 3 or lines[0].rstrip() != "---" or not _FRONT_KEY.match(lines[1]):
        return 0
    for index, line in enumerate(lines[1:FRONT_MATTER_LINES], start=1):
        if line.rstrip() in ("---", "..."):
            return index + 1
    return 0


def _fence_after(line: str, fence: str) -> str:
    """The open fence's marks after ``line``; "" outside a fence (CommonMark 4.5, any indentation)."""
    if fence:
        mark = line.strip()
        return "" if len(mark) >= len(fence) and not mark.strip(fence[0]) else fence
    match = _FENCE.match(line)
    return match[1] if match is not None else ""


def _atx_heading(line: str) -> tuple[int, str] | None:
    """Level and text of ``## Heading ##``; written without a regular expression, which would backtrack."""
    text = line.strip()
    if not text.startswith("#") or line.startswith(("    ", "\t")):
        return None
    rest = text.lstrip("#")
    level = len(text) - len(rest)
    if level > 6 or (rest and not rest[0].isspace()):
        return None
    rest = rest.strip()
    bare = rest.rstrip("#")
    if not bare or bare[-1].isspace():
        rest = bare.rstrip()
    return level, rest[:MAX_HEADING]


def _underlines(line: str) -> bool:
    mark = line.strip()
    return len(mark) >= 3 and (not mark.strip("=") or not mark.strip("-"))


def _setext_heading(line: str, paragraph: list[str], block: _Block) -> tuple[int, str] | None:
    """Level and text when ``line`` underlines a paragraph of exactly one line."""
    if len(paragraph) != 1 or block.parts or not _underlines(line):
        return None
    return (1 if line.strip()[0] == "=" else 2), paragraph[0].strip()[:MAX_HEADING]


def _is_rule(line: str) -> bool:
    mark = line.replace(" ", "").strip()
    return len(mark) >= 3 and mark[0] in "-*_" and not mark.strip(mark[0])
