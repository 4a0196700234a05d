"""How every benchmark reports: a table for people, a JSON object for programs, the environment with both.

With `--write` a benchmark also puts its table into RESULTS.md, in the place of its last one.
"""

import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ragblame.attribution.evaluation.evidence import Bar, Evidence, Sense, Table, environment
from ragblame.attribution.evaluation.markdown import to_markdown
from ragblame.attribution.evaluation.terminal import show

RESULTS = Path(__file__).with_name("RESULTS.md")
PACKAGES = ("torch", "transformers", "captum", "shap", "langchain-core", "psycopg")


def interleaved(
    contenders: Mapping[str, Callable[[], float]], repeats: int, *, warm_up: int = 1
) -> dict[str, list[float]]:
    """Run every contender in turn, `repeats` times; each returns its own cost. Noise then hits all alike."""
    for _ in range(warm_up):
        for run in contenders.values():
            run()
    costs: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            costs[name].append(run())
    return costs


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and the quartiles around it."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4)
    return middle, low, high


def bar(name: str, value: float, sense: Sense, bound: float) -> Bar:
    """One acceptance bar; a bar that does not hold is printed, never dropped."""
    return Bar(name=name, value=value, sense=sense, bound=bound)


def report(
    name: str,
    rows: Sequence[Mapping[str, Any]],
    bars: Sequence[Bar],
    *,
    seed: int = 0,
    packages: Sequence[str] = PACKAGES,
    notes: Sequence[str] = (),
) -> None:
    """Print the table, or with `--json` the object; ``packages`` are those whose version matters."""
    table = Table(title=name, columns=tuple(rows[0]), rows=tuple(tuple(row.values()) for row in rows))
    evidence = Evidence(
        name=name,
        command=" ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        seed=seed,
        environment=environment(packages),
        tables=(table,),
        bars=tuple(bars),
        notes=tuple(notes),
    )
    if "--write" in sys.argv:
        _write(evidence)
    if "--json" in sys.argv:
        print(json.dumps(evidence.to_json(), indent=2))
    else:
        show(evidence)


def _write(evidence: Evidence) -> None:
    """Replace this benchmark's section of RESULTS.md, or add it."""
    section = to_markdown(evidence)
    text = RESULTS.read_text("utf-8") if RESULTS.exists() else "# Results\n\n"
    pattern = re.compile(rf"^{re.escape(section.splitlines()[0])}$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    old = pattern.search(text)
    text = (
        text[: old.start()] + section + "\n" + text[old.end() :] if old else text.rstrip() + "\n\n" + section
    )
    RESULTS.write_text(text.rstrip() + "\n", "utf-8")
