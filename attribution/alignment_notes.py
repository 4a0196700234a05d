"""What a person should know about how chunks were found in the prompt, one sentence each."""

from collections.abc import Sequence

from ragblame.records import Alignment, AlignmentState

EDITED = 0.1  # of the found part: less than this not there is an edit, more is a loss
NAMED = 3  # parts that a sentence lists


def alignment_notes(alignments: Sequence[Alignment]) -> list[str]:
    """Which parts of which chunks are not in the prompt, and whose place was a choice.

    Numbers of chunks count from 1 as on every screen, parts are code points of the chunk's text.
    """
    notes = [_part_note(a) for a in alignments if a.state is AlignmentState.PARTIAL and a.absent]
    chosen = [str(a.position + 1) for a in alignments if a.is_ambiguous]
    if chosen:
        noun, verb = ("chunks", "stand") if len(chosen) > 1 else ("chunk", "stands")
        notes.append(
            f"The text of {noun} {', '.join(chosen)} also {verb} elsewhere in the prompt: the place was "
            "chosen by the order of the chunks."
        )
    return notes


def _part_note(a: Alignment) -> str:
    assert a.found is not None  # a partial alignment says what it found
    lost = sum(end - start for start, end in a.absent)
    is_inner = a.found[0] <= a.absent[0][0] and a.absent[-1][1] <= a.found[1]
    if is_inner and lost < EDITED * (a.found[1] - a.found[0]):
        return f"Chunk {a.position + 1} stands in the prompt edited: {lost} code points of its text differ."
    parts = [f"{start}–{end}" for start, end in a.absent[:NAMED]]
    more = f" and {len(a.absent) - NAMED} more parts" if len(a.absent) > NAMED else ""
    return (
        f"Chunk {a.position + 1} stands in the prompt only in part: code points {', '.join(parts)}{more} of "
        "its text are not there."
    )
