"""The benchmark of capture itself: like work, absent tracers named, and figures that are there."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODES = ("invoke", "ainvoke", "stream", "astream")


@pytest.fixture(scope="module")
def evidence() -> dict[str, Any]:
    """What the quick run prints for a program."""
    done = subprocess.run(
        [sys.executable, "benchmarks/capture_overhead.py", "--quick", "--json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_tracer_has_its_row_in_every_mode(evidence: dict[str, Any]) -> None:
    """A tracer that is not installed stands there as absent, with no figure, and is never dropped."""
    peers = {"LangSmith": "langsmith", "Langfuse": "langfuse", "OpenInference": "openinference"}
    for mode in MODES:
        rows = {row["tracer"]: row for row in evidence["rows"] if row["mode"] == mode}
        assert {"no callback", "no-op handler", "LangChain BaseTracer, no-op", "ragblame"} < set(rows)
        for name, package in peers.items():
            is_there = find_spec(package) is not None
            row = rows[name if is_there else f"{name}: not installed"]
            assert (row["added"] is not None) == is_there
        assert rows["no callback"]["CPU ms"] > 0


def test_the_work_was_alike(evidence: dict[str, Any]) -> None:
    """Every tracer that ran is said to have recorded all of the question, the chunks, prompt and answer."""
    notes = [note for note in evidence["notes"] if note.startswith(("ragblame:", "LangSmith:"))]
    assert len(notes) == 2
    assert all("the question, 8 chunks, the prompt and the answer" in note for note in notes)


def test_the_bars_of_the_issue_are_printed(evidence: dict[str, Any]) -> None:
    """Half of the best peer and a millisecond in every mode, and the import, each with its bound."""
    bars = {bar["name"]: bar for bar in evidence["bars"]}
    for mode in MODES:
        assert bars[f"{mode}: added CPU ms a run"]["bound"] == 1.0
        assert any(name.startswith(f"{mode}: added CPU against the best peer (") for name in bars)
    assert bars["importing the plugin, CPU s"]["bound"] == 0.3
