"""The main job, end to end: the demo as a stranger runs it, without the page."""

import json
import os
import subprocess
import sys
from pathlib import Path

from ragblame import postgres
from ragblame.records import VerdictKind


def test_headless_demo_shows_every_verdict(tmp_path: Path) -> None:
    """`ragblame demo --no-ui --json` answers, attributes elsewhere, and finds each kind of verdict."""
    folder = tmp_path / "data"
    environment = os.environ | {"RAGBLAME_DATA_DIR": str(folder)}
    command = [sys.executable, "-m", "ragblame", "demo", "--no-ui", "--json"]
    try:
        finished = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=280, check=False
        )
    finally:
        postgres.stop(folder)
    assert finished.returncode == 0, finished.stderr[-2_000:]
    summary = json.loads(finished.stdout)
    assert summary["questions"] >= 40
    assert summary["traces"] == summary["questions"]
    assert summary["failed"] == 0
    wanted = {kind.value for kind in VerdictKind if kind is not VerdictKind.UNDETERMINED}
    assert wanted <= set(summary["verdicts"])
    for case in summary["examples"].values():  # a real case each: the words stand in a real answer
        assert case["span"] in case["answer"]
    assert "Traceback" not in finished.stderr
