"""The quick variants of capture's benchmarks: their exact claims hold, whatever the machine's pace is."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def ran(name: str, seconds: float) -> dict[str, Any]:
    """The object that ``python benchmarks/NAME.py --quick --json`` prints."""
    done = subprocess.run(
        [sys.executable, f"benchmarks/{name}.py", "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3_000:]
    found: dict[str, Any] = json.loads(done.stdout)
    assert {"name", "environment", "command", "seed", "rows", "bars"} <= set(found)
    return found


def test_ingest_compares_the_same_rows() -> None:
    """It ends well only when every contender stored the same rows, and tells rates and their ratios."""
    found = ran("ingest", 300)
    rates = [row["traces/s"] for row in found["rows"]]
    assert len(rates) == 4
    assert min(rates) > 0
    assert [bar["name"] for bar in found["bars"]] == [
        "our rate / raw COPY, the same traces",
        "our rate / raw COPY, rows as we store them",
    ]


def test_a_short_soak_loses_nothing() -> None:
    """Server stopped, frozen, killed, spool full, hosts killed, clocks wrong: promises are kept, once."""
    found = ran("fault_soak", 600)
    values = {bar["name"]: bar["value"] for bar in found["bars"]}
    exact = (
        "acknowledged traces lost",
        "traces doubled",
        "traces stored in part",
        "traces left on the spool",
        "exceptions in a chain or callback",
    )
    assert {name: values[name] for name in exact} == dict.fromkeys(exact, 0)
    kinds = {row["while"] for row in found["rows"]}
    assert {"stopped", "frozen", "server killed", "spool full", "clock stepped"} <= kinds
