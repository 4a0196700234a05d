"""How every benchmark reports: a table for people, a JSON object for programs, the environment with both.

With `--write` a benchmark also puts its table into RESULTS.md, in the place of its last one.
"""

import json
import os
import platform
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).with_name("RESULTS.md")
PACKAGES = ("torch", "transformers", "captum", "shap", "langchain-core", "psycopg")


def environment() -> dict[str, str]:
    """What the figures depend on besides the code."""
    facts = {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cores": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}",
    }
    return facts | {name: version(name) for name in PACKAGES}


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


def bar(name: str, value: float, sense: str, bound: float) -> dict[str, Any]:
    """One acceptance bar; a bar that does not hold is printed, never dropped."""
    holds = value >= bound if sense == ">=" else value <= bound
    return {"name": name, "value": value, "bound": bound, "sense": sense, "holds": holds}


def report(
    name: str, rows: Sequence[Mapping[str, Any]], bars: Sequence[Mapping[str, Any]], *, seed: int = 0
) -> None:
    """Print the table, or with `--json` on the command line the object."""
    command = " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    if "--write" in sys.argv:
        _write(name, command, rows, bars)
    if "--json" in sys.argv:
        result = {
            "name": name,
            "environment": environment(),
            "command": command,
            "seed": seed,
            "rows": list(rows),
            "bars": list(bars),
        }
        print(json.dumps(result, indent=2))
        return
    console = Console()
    table = Table(title=f"{name}   ({command})")
    for column in rows[0]:
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values()))
    console.print(table)
    for entry in bars:
        mark = "holds" if entry["holds"] else "FALLS SHORT"
        console.print(f"{entry['name']}: {entry['value']:.3g} {entry['sense']} {entry['bound']:.3g}: {mark}")
    console.print("  ".join(f"{key} {value}" for key, value in environment().items()), style="dim")


def _write(
    name: str, command: str, rows: Sequence[Mapping[str, Any]], bars: Sequence[Mapping[str, Any]]
) -> None:
    """Replace this benchmark's section of RESULTS.md, or add it."""
    lines = [
        f"## {name}",
        "",
        f"`{command}`",
        "",
        f"| {' | '.join(rows[0])} |",
        "| --- " * len(rows[0]) + "|",
    ]
    for row in rows:
        cells = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in row.values())
        lines.append(f"| {' | '.join(cells)} |")
    lines.append("")
    for entry in bars:
        mark = "holds" if entry["holds"] else "**falls short**"
        lines.append(f"- {entry['name']}: {entry['value']:.3g} {entry['sense']} {entry['bound']:.3g}: {mark}")
    lines += ["", ", ".join(f"{key} {value}" for key, value in environment().items()), ""]
    section = "\n".join(lines)
    text = RESULTS.read_text("utf-8") if RESULTS.exists() else "# Results\n\n"
    pattern = re.compile(rf"^## {re.escape(name)}$.*?(?=^## |\Z)", re.MULTILINE | re.DOTALL)
    old = pattern.search(text)
    text = (
        text[: old.start()] + section + "\n" + text[old.end() :] if old else text.rstrip() + "\n\n" + section
    )
    RESULTS.write_text(text.rstrip() + "\n", "utf-8")
