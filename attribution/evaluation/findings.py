"""What one question of an evaluation contributes: tables, confusion matrices, bars and notes, to be joined in
order."""

from dataclasses import dataclass, field

from ragblame.attribution.evaluation.evidence import Bar, Confusion, Table


@dataclass(slots=True)
class Findings:
    """The answer to one question."""

    tables: list[Table] = field(default_factory=list)
    confusions: list[Confusion] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
