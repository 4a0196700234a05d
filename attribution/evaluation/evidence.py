"""What a measurement hands over: tables, confusions, reliability, bars, and all it takes to run it again.

One object for the terminal, the report page, the document and JSON, so that none of them can say something
else than the others. A bar that does not hold stays in it; what could not be measured is NaN and never holds.
"""

import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final, Literal

from ragblame.errors import InputError

Sense = Literal[">=", "<="]
PACKAGES: Final = ("ragblame", "torch", "transformers", "numpy", "scipy", "scikit-learn")
TABLE: Final = "table"  # the key that says in JSON which table a row belongs to


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A figure and how sure of it the rows make us."""

    value: float  # NaN: undefined on these rows
    low: float  # 95 % interval
    high: float
    n: int  # rows
    dropped: int = 0  # resamples on which it was undefined


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """The rows whose given probability lies in [low, high)."""

    low: float
    high: float
    count: int
    mean: float  # [0, 1], mean given probability
    share: float  # [0, 1], how many of them came true


Cell = str | int | float | Estimate | None  # None and NaN: nothing to measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """What was promised, and whether it holds."""

    name: str
    value: float
    low: float | None = None  # 95 % interval, where there is one
    high: float | None = None
    bound: float
    sense: Sense

    @classmethod
    def of(cls, name: str, estimate: Estimate, sense: Sense, bound: float) -> "Bar":
        """A bar on an estimate's value, its interval beside it."""
        low, high = estimate.low, estimate.high
        return cls(name=name, value=estimate.value, low=low, high=high, sense=sense, bound=bound)

    @property
    def holds(self) -> bool:
        """Never for NaN: what could not be measured was not reached."""
        return self.value >= self.bound if self.sense == ">=" else self.value <= self.bound


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Rows of figures under one title.

    Raises ``ValueError`` when a row does not fit the columns or a cell is no plain Python value.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""

    @property
    def is_words(self) -> tuple[bool, ...]:
        """Per column: does it hold only text? The others are figures, and stand to the right."""
        return tuple(all(isinstance(row[i], str) for row in self.rows) for i in range(len(self.columns)))

    def __post_init__(self) -> None:
        if len(set(self.columns)) != len(self.columns):
            raise ValueError(f"{self.title}: two columns of one name: {self.columns}")
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError(f"{self.title}: a row does not have {len(self.columns)} cells")
        for cell in (cell for row in self.rows for cell in row):
            if cell is not None and not isinstance(cell, str | int | float | Estimate):  # numpy's integers
                raise ValueError(f"{self.title}: {cell!r} is no plain value")


@dataclass(frozen=True, slots=True, kw_only=True)
class Confusion:
    """Counts by true label (first index) and given label (second)."""

    title: str
    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    note: str = ""

    def __post_init__(self) -> None:
        if [len(row) for row in self.counts] != [len(self.labels)] * len(self.labels):
            raise ValueError(f"{self.title}: counts must be {len(self.labels)} x {len(self.labels)}")

    def as_table(self) -> Table:
        """The same as a table, for a face that has no tints: a row is what is true."""
        rows: tuple[tuple[Cell, ...], ...]
        rows = tuple((label, *counts) for label, counts in zip(self.labels, self.counts, strict=True))
        return Table(title=self.title, columns=("true, then given:", *self.labels), rows=rows, note=self.note)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """Whether given probabilities come true as often as they say."""

    title: str
    bins: tuple[Bin, ...]
    ece: float  # [0, 1], expected calibration error
    note: str = ""

    def as_table(self) -> Table:
        """The bins as a table."""
        return Table(
            title=self.title,
            columns=("probability", "rows", "mean given", "came true"),
            rows=tuple((f"{b.low:.2f} to {b.high:.2f}", b.count, b.mean, b.share) for b in self.bins),
            note=self.note,
        )


def environment(packages: Sequence[str] = PACKAGES) -> dict[str, str]:
    """What the figures depend on besides the code. Names no host and no user."""
    facts = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}",
    }
    for name in packages:
        try:
            facts[name] = version(name)
        except PackageNotFoundError:
            facts[name] = "not installed"
    return facts


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One measurement, complete."""

    name: str
    command: str  # what makes it again
    seed: int
    environment: Mapping[str, str] = field(default_factory=environment)
    tables: tuple[Table, ...] = ()
    confusions: tuple[Confusion, ...] = ()
    reliabilities: tuple[Reliability, ...] = ()
    bars: tuple[Bar, ...] = ()
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if any(TABLE in table.columns for table in self.tables):
            raise ValueError(
                f"{self.name}: no column can be called {TABLE!r}, the key of a row's table in JSON"
            )

    def to_json(self) -> dict[str, Any]:
        """The object of every evaluation and benchmark: plain values, NaN and infinity as null.

        Every table row is one object in ``rows`` with its table's title under "table"; ``tables`` keeps what
        is no row (column order, notes, a table without rows).
        """
        return {
            "name": self.name,
            "environment": dict(self.environment),
            "command": self.command,
            "seed": self.seed,
            "rows": [
                {TABLE: table.title}
                | {column: _plain(cell) for column, cell in zip(table.columns, row, strict=True)}
                for table in self.tables
                for row in table.rows
            ],
            "bars": [
                {
                    "name": bar.name,
                    "value": _plain(bar.value),
                    "interval": None if bar.low is None else [_plain(bar.low), _plain(bar.high)],
                    "bound": bar.bound,
                    "sense": bar.sense,
                    "holds": bar.holds,
                }
                for bar in self.bars
            ],
            "tables": [
                {"title": t.title, "columns": list(t.columns), "rows": len(t.rows), "note": t.note}
                for t in self.tables
            ],
            "confusions": [
                {
                    "title": c.title,
                    "labels": list(c.labels),
                    "counts": [list(r) for r in c.counts],
                    "note": c.note,
                }
                for c in self.confusions
            ],
            "reliabilities": [
                {
                    "title": r.title,
                    "bins": [asdict(one) for one in r.bins],
                    "ece": _plain(r.ece),
                    "note": r.note,
                }
                for r in self.reliabilities
            ],
            "notes": list(self.notes),
        }


def from_json(value: Any) -> Evidence:
    """The evidence an object of ``to_json`` was made of. Raises ``InputError`` for anything else."""
    try:
        return _read(value)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise InputError(
            f"not the evidence of an evaluation ({type(error).__name__}: {error}): make it again with "
            "`ragblame eval … --json`"
        ) from error


def _read(value: Any) -> Evidence:
    if len(value["rows"]) != sum(entry["rows"] for entry in value["tables"]):
        raise ValueError("not as many rows as its tables have")
    rows = iter(value["rows"])
    return Evidence(
        name=value["name"],
        command=value["command"],
        seed=value["seed"],
        environment=dict(value["environment"]),
        tables=tuple(_table(entry, [next(rows) for _ in range(entry["rows"])]) for entry in value["tables"]),
        confusions=tuple(
            Confusion(
                title=entry["title"],
                labels=tuple(entry["labels"]),
                counts=tuple(tuple(row) for row in entry["counts"]),
                note=entry["note"],
            )
            for entry in value["confusions"]
        ),
        reliabilities=tuple(
            Reliability(
                title=entry["title"],
                bins=tuple(Bin(**one) for one in entry["bins"]),
                ece=_number(entry["ece"]),
                note=entry["note"],
            )
            for entry in value["reliabilities"]
        ),
        bars=tuple(_bar(entry) for entry in value["bars"]),
        notes=tuple(value["notes"]),
    )


def _table(entry: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> Table:
    if any(row[TABLE] != entry["title"] for row in rows):
        raise ValueError(f"rows of {entry['title']} are missing")
    columns = tuple(entry["columns"])
    cells = tuple(tuple(_cell(row[column]) for column in columns) for row in rows)
    return Table(title=entry["title"], columns=columns, rows=cells, note=entry["note"])


def _bar(entry: Mapping[str, Any]) -> Bar:
    interval = entry["interval"]
    low, high = (None, None) if interval is None else (_number(interval[0]), _number(interval[1]))
    if entry["sense"] not in (">=", "<="):
        raise ValueError(f"sense {entry['sense']!r}")
    return Bar(
        name=entry["name"],
        value=_number(entry["value"]),
        low=low,
        high=high,
        bound=entry["bound"],
        sense=entry["sense"],
    )


def _plain(cell: Cell) -> Any:
    """A cell as JSON; JSON has no NaN."""
    if isinstance(cell, Estimate):
        return {name: _plain(part) for name, part in asdict(cell).items()}
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _cell(value: Any) -> Cell:
    if isinstance(value, dict):
        interval = {name: _number(value[name]) for name in ("value", "low", "high")}
        return Estimate(**interval, n=value["n"], dropped=value["dropped"])
    if value is not None and not isinstance(value, str | int | float):
        raise ValueError(f"a cell of type {type(value).__name__}")
    return value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
