"""Which code point of a chunk's own text each code point of its region in the prompt stands for.

A region holds the chunk's text up to white space, or edited; heat and evidence found in the prompt must point
into the chunk all the same.
"""

from rapidfuzz.distance import Levenshtein

MAX_CELLS = (
    400_000_000  # product of both lengths up to which edits are followed: 20 000 by 20 000, about 50 ms
)


def paired(own: str, shown: str) -> list[int]:
    """For each code point of ``shown`` its counterpart's index in ``own``, never falling.

    What has no counterpart (white space, an inserted citation) points at the nearest text after it, at the
    end at the last. Edited texts beyond ``MAX_CELLS`` are paired in order, without regard to edits.
    """
    if shown == own:
        return list(range(len(own)))
    visible = [index for index, char in enumerate(own) if not char.isspace()]
    if not visible:
        return [0] * len(shown)
    places: list[int] = []
    if len(own) * len(shown) > MAX_CELLS or own.split() == shown.split() or _letters(own) == _letters(shown):
        seen = 0
        for char in shown:
            places.append(visible[min(seen, len(visible) - 1)])
            seen += not char.isspace()
        return places
    for step in Levenshtein.opcodes(own, shown):
        if step.tag in ("equal", "replace"):  # a replaced stretch is as long in both
            places += range(step.src_start, step.src_end)
        elif step.tag == "insert":
            places += [min(step.src_start, visible[-1])] * (step.dest_end - step.dest_start)
    return places


def _letters(text: str) -> str:
    return "".join(text.split())
