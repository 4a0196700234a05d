"""The main job, end to end: the demo as a stranger runs it, without the page."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ragblame import database, postgres
from ragblame.attribution.jobs.preview import preview
from ragblame.attribution.jobs.provenance import read_provenance
from ragblame.attribution.jobs.stored import read_explanation
from ragblame.attribution.jobs.thresholds import read_active
from ragblame.records import VerdictKind
from ragblame.settings import Settings

Finished = tuple["subprocess.CompletedProcess[str]", Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Finished]:
    """The demo, run once in a data folder of its own whose server still answers."""
    folder = tmp_path_factory.mktemp("demo") / "data"
    environment = os.environ | {"RAGBLAME_DATA_DIR": str(folder)}
    command = [sys.executable, "-m", "ragblame", "demo", "--no-ui", "--json"]
    try:
        yield (
            subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=280, check=False
            ),
            folder,
        )
    finally:
        postgres.stop(folder)


def test_headless_demo_shows_every_verdict(finished: Finished) -> None:
    """`ragblame demo --no-ui --json` answers, attributes elsewhere, and finds each kind of verdict."""
    process, _ = finished
    assert process.returncode == 0, process.stderr[-2_000:]
    summary = json.loads(process.stdout)
    assert summary["questions"] >= 40
    assert summary["traces"] == summary["questions"]
    assert summary["failed"] == 0
    wanted = {kind.value for kind in VerdictKind if kind is not VerdictKind.UNDETERMINED}
    assert wanted <= set(summary["verdicts"])
    for case in summary["examples"].values():  # a real case each: the words stand in a real answer
        assert case["span"] in case["answer"]
    assert "Traceback" not in process.stderr


def test_every_verdict_of_the_demo_has_its_whole_chain(finished: Finished) -> None:
    """Each stored verdict traces to rule, evidence, numbers and versions, and follows from them: no fact is
    unknown, and previewing the version in force on them changes nothing."""
    process, folder = finished
    assert process.returncode == 0, process.stderr[-2_000:]
    found: list[Any] = []
    with database.connect(database.resolve_url(Settings(data_dir=folder))) as conn:
        for (trace_id,) in conn.execute("SELECT trace_id FROM attribution_run").fetchall():
            explanation = read_explanation(conn, trace_id, with_heats=False)
            assert explanation is not None
            found += read_provenance(conn, explanation)
        tally = preview(conn, read_active(conn)).tallies[0]
    assert len(found) == json.loads(process.stdout)["spans"] == tally.verdicts
    assert [(one.words, one.missing, one.problems) for one in found if not one.is_whole] == []
    assert (tally.come, tally.go, tally.otherwise, tally.undecidable) == (0, 0, 0, 0)
