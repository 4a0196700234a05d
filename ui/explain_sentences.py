"""`ragblame explain --sentences`: the sentences of the chunk that matters most, with what each contributes.

It exists beside ``explain.py`` because it asks the model again, which a table of stored numbers never does.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from ragblame.records import Explanation, Json
from ragblame.ui.terminal import plain

if TYPE_CHECKING:
    from ragblame.attribution.methods.sentence_shares import SentenceShares


def sentences_table(explanation: Explanation, found: "Sequence[SentenceShares]") -> Table:
    """One row a sentence, largest first within its span; the sum of a span's rows is its chunk's share."""
    table = Table(title=Text("sentences of the chunk with the largest share"), title_justify="left")
    for name, justify in (("span", "left"), ("chunk", "left"), ("nats", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("sentence", ratio=1)
    spans = {span.index: span for span in explanation.spans}
    for one in found:
        span, text = spans[one.span], explanation.trace.chunks[one.position].text
        order = sorted(range(len(one.shares)), key=lambda i: -one.shares[i])
        for rank, index in enumerate(order):
            error = "" if one.is_exact else f" ± {one.standard_errors[index]:.2f}"
            table.add_row(
                Text("" if rank else plain(explanation.trace.answer[span.start : span.end], 60)),
                Text("" if rank else f"#{one.position + 1}"),
                f"{one.shares[index]:+.2f}{error}",
                Text(plain(text[one.starts[index] : one.ends[index]], 160)),
            )
    return table


def sentences_to_json(found: "Sequence[SentenceShares]") -> list[Json]:
    """The same as plain JSON values; positions count from 0, places are code points of the chunk's text."""
    return [
        {
            "span": one.span,
            "position": one.position,
            "chunk_share": one.chunk_share,
            "is_exact": one.is_exact,
            "sentences": [
                {"start": start, "end": end, "share": share, "standard_error": error}
                for start, end, share, error in zip(
                    one.starts, one.ends, one.shares, one.standard_errors, strict=True
                )
            ],
        }
        for one in found
    ]
