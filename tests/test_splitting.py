"""Text into passages: nothing lost, nothing changed, fences whole, headings remembered, time linear."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragblame.errors import InputError
from ragblame.retriever.splitting import MAX_WHOLE, cut, markdown_title, split_passages

RUNBOOK = """---
title: "Runbook of billing"
owner: payments
---
# Billing

The service listens on port 8443.
It is restarted by hand.

## Rollback ##

Run this:
```sh
./undo.sh

# not a heading
```
and wait.

Alerts
------

| alert | means |
|---|---|
| B1 | queue full |

***
"""


def texts(text: str, **options: bool | int) -> list[str]:
    """The passages' texts, as Markdown."""
    return [passage.text for passage in split_passages(text, is_markdown=True, **options)]  # type: ignore[arg-type]


def test_markdown_is_split_at_headings_and_keeps_their_path() -> None:
    """Sections never share a chunk; each chunk knows its headings; front matter is left out."""
    passages = split_passages(RUNBOOK, is_markdown=True)
    assert [(passage.heading, passage.text) for passage in passages] == [
        ("Billing", "The service listens on port 8443.\nIt is restarted by hand."),
        ("Billing > Rollback", "Run this:\n```sh\n./undo.sh\n\n# not a heading\n```\nand wait."),
        ("Billing > Alerts", "| alert | means |\n|---|---|\n| B1 | queue full |"),
    ]
    assert markdown_title(RUNBOOK) == "Runbook of billing"
    assert markdown_title("text\n\n# First\n# Second") == "First"
    assert markdown_title("```\n# code\n```\n## Sub") is None


def test_paragraphs_are_packed_or_stand_alone() -> None:
    """Paragraphs of a section share a chunk up to max_chars; one_chunk_per_paragraph keeps each alone."""
    text = "\n\n".join(f"Paragraph {number} says little." for number in range(6))
    packed = texts(text, max_chars=60)
    assert len(packed) == 3
    assert all(len(passage) <= 60 for passage in packed)
    assert "\n\n".join(packed) == text
    assert texts(text, max_chars=60, one_chunk_per_paragraph=True) == text.split("\n\n")


def test_a_fence_is_kept_whole_beyond_max_chars() -> None:
    """Code cut in half is code misread: a fence longer than max_chars, blank lines included, is one chunk."""
    fence = "```python\n" + "x = 1\n\n" * 60 + "```"
    passages = texts(f"Before.\n\n{fence}\n\nAfter.", max_chars=100)
    assert passages == ["Before.", fence, "After."]
    attached = texts(f"{'Words before it. ' * 10}\n{fence}", max_chars=100)
    assert fence in attached
    assert max(len(passage) for passage in texts("```\n" + "y\n" * 20_000)) <= MAX_WHOLE


def test_a_long_paragraph_is_cut_after_a_sentence() -> None:
    """Cuts fall after a sentence end where there is one, else at white space, else anywhere."""
    assert list(cut("One two three. Four five six. Seven.", 20)) == [
        "One two three.",
        "Four five six.",
        "Seven.",
    ]
    assert list(cut("alpha beta gamma delta", 12)) == ["alpha beta", "gamma delta"]
    assert list(cut("x" * 25, 10)) == ["x" * 10, "x" * 10, "x" * 5]


@given(
    st.lists(
        st.sampled_from(["a b", "# h", "```", "~~~~", "---", "x" * 130, "wort. Ende", "", " ", "\u2028é"])
    ),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.booleans(),
    st.booleans(),
)
def test_no_character_is_lost_or_invented(lines: list[str], end: str, is_markdown: bool, alone: bool) -> None:
    """The passages hold the text's characters in order; only white space and Markdown's marks are dropped."""
    passages = split_passages(
        end.join(lines), is_markdown=is_markdown, max_chars=50, one_chunk_per_paragraph=alone
    )
    limit = MAX_WHOLE if alone or is_markdown else 50
    assert all(0 < len(passage.text) <= limit and passage.text.strip() for passage in passages)
    kept = "".join("".join(passage.text.split()) for passage in passages)
    if not is_markdown:
        assert kept == "".join("".join(lines).split())
    else:
        remaining = iter("".join("".join(lines).split()))
        assert all(sign in remaining for sign in kept)  # a subsequence


@pytest.mark.parametrize(
    "unit", ["x", "# ", " #", "a. ", "`", "\n", "- ", "a\n\n", '."', "```x ", "=\n", "\t", "a\n---\n"]
)
@pytest.mark.parametrize("is_markdown", [False, True])
def test_a_hostile_megabyte_takes_linear_time(unit: str, is_markdown: bool) -> None:
    """No input makes the splitter backtrack: one megabyte of any mark takes seconds at worst, not hours."""
    text = unit * (1_000_000 // len(unit)) + "x"
    began = time.process_time()
    split_passages(text, is_markdown=is_markdown)
    markdown_title(text)
    assert time.process_time() - began < 10


def test_an_impossible_length_is_refused() -> None:
    """max_chars outside [50, 8000] is an error that names the range."""
    for max_chars in (0, 49, MAX_WHOLE + 1):
        with pytest.raises(InputError, match=re.escape(f"50 to {MAX_WHOLE}")):
            split_passages("text", is_markdown=False, max_chars=max_chars)
