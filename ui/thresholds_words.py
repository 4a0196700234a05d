"""A preview of thresholds in words, the same on the command line and on the health page."""

from collections import Counter

from ragblame.attribution.jobs.preview import Change, Preview, Tally


def groups(tally: Tally) -> list[tuple[str, Counter[str]]]:
    """What comes and goes by cause and by app; without what is empty."""
    pairs = [
        ("come, by cause", tally.come_by_cause),
        ("come, by app", tally.come_by_app),
        ("go, by cause", tally.go_by_cause),
        ("go, by app", tally.go_by_app),
    ]
    return [(title, counts) for title, counts in pairs if counts]


def remarks(found: Preview) -> list[str]:
    """What the figures leave out, one sentence each."""
    longest = found.tallies[-1]
    said = []
    if found.is_partial:
        said.append(f"Only the newest {longest.traces:,} traces were looked at.")
    if longest.undecidable:
        said.append(
            f"{longest.undecidable:,} verdicts were stored without what they follow from and are counted as "
            "they are; attribute their traces again."
        )
    if longest.unread:
        said.append(
            f"{longest.unread:,} verdicts were not read by {found.thresholds.fitted_to}, so only the other "
            "thresholds were applied to them."
        )
    return said


def words_of(change: Change) -> str:
    """One line: what it was and what it would be."""
    before = change.before.value + (f" ({change.before_cause.value})" if change.before_cause else "")
    after = change.after.value + (f" ({change.after_cause.value})" if change.after_cause else "")
    return f"{before} → {after}"
