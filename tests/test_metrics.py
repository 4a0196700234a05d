"""What was lost, spooled or refused can be read: by a scraper, in the doctor's words, on the health page."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

import ragblame
import ragblame.ui.launch
from ragblame import database
from ragblame.plugin.counters import counters
from ragblame.plugin.metrics import CONTENT_TYPE, DROPS, family
from ragblame.plugin.spool import Spool
from ragblame.plugin.spool_state import add_totals
from ragblame.plugin.writer import Writer
from ragblame.settings import load_settings
from ragblame.ui import cli
from ragblame.ui.doctor import metrics_lines
from ragblame.ui.reads_health import read_capture_hosts
from tests.capture import installed, make_chain, settings_for
from tests.test_traces import make_trace

ROOT = Path(__file__).resolve().parent.parent
SAMPLE = re.compile(
    r'ragblame_[a-z_]+(\{[a-z]+="(\\.|[^"\\\n])*"(,[a-z]+="(\\.|[^"\\\n])*")*\})? -?\d+(\.\d+)?'
)


def parsed(text: str) -> dict[str, float]:
    """The samples of an exposition; fails where it is not one."""
    assert text.endswith("\n")
    samples: dict[str, float] = {}
    family_name, seen = "", set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family_name = line.split()[2]
            assert family_name not in seen, f"{family_name} comes twice"
            seen.add(family_name)
        elif line.startswith("# TYPE "):
            assert line.split()[2] == family_name
            assert line.split()[3] == ("counter" if family_name.endswith("_total") else "gauge")
        else:
            assert SAMPLE.fullmatch(line), line
            name, value = line.rsplit(" ", 1)
            assert name.partition("{")[0] == family_name
            samples[name.removeprefix("ragblame_")] = float(value)
    return samples


def test_a_capture_is_counted_from_end_to_end(database_url: str, data_dir: Path) -> None:
    """What a process finished, wrote and dropped stands in its metrics, with the reason of each drop."""
    with installed(settings_for(database_url, data_dir)) as recorder:
        before = parsed(ragblame.metrics())
        assert "spool_bytes" not in before  # nothing was captured yet, and asking starts nothing
        ragblame.attach()
        for number in range(3):
            make_chain().invoke(f"q{number}")
        assert recorder.flush(20)
        counters.add("dropped_queue_full", 2)
        counters.add('sampled\n"out"', 4)
        after = parsed(ragblame.metrics())
        ragblame.detach()
    grown = {name: value - before.get(name, 0) for name, value in after.items()}
    assert grown["traces_finished_total"] == grown["traces_written_total"] == 3
    assert grown['traces_dropped_total{reason="queue_full"}'] == 2
    assert grown['capture_total{name="sampled\\n\\"out\\""}'] == 4
    assert (after["queue_traces"], after["queue_bytes"], after["open_runs"]) == (0, 0, 0)
    assert (after['spool_files{state="waiting"}'], after["spool_bytes"]) == (0, after["spool_bytes"])


def test_every_reason_of_a_loss_is_told_from_the_start() -> None:
    """A counter that never moved is 0, not absent: an alert on its rate works from the first scrape."""
    samples = parsed(ragblame.metrics())
    for name in DROPS:
        assert f'traces_dropped_total{{reason="{name.removeprefix("dropped_")}"}}' in samples


def test_numbers_are_whole_or_short() -> None:
    """Byte counts are not rounded to six digits."""
    assert list(family("x", "gauge", "X.", [({}, 123_456_789), ({"a": "b"}, 0.25)]))[2:] == [
        "ragblame_x 123456789",
        'ragblame_x{a="b"} 0.250',
    ]


def test_a_host_mounts_it() -> None:
    """As an ASGI application it answers GET with the text, HEAD without, and refuses the rest."""

    def ask(method: str) -> tuple[int, dict[bytes, bytes], bytes]:
        sent: list[dict[str, Any]] = []

        async def run() -> None:
            async def receive() -> dict[str, Any]:
                return {"type": "http.request"}

            async def send(message: dict[str, Any]) -> None:
                sent.append(message)

            await ragblame.metrics_app({"type": "http", "method": method}, receive, send)

        asyncio.run(run())
        return sent[0]["status"], dict(sent[0]["headers"]), sent[1]["body"]

    status, headers, body = ask("GET")
    assert (status, headers[b"content-type"]) == (200, CONTENT_TYPE.encode())
    assert int(headers[b"content-length"]) == len(body)
    assert "traces_written_total" in parsed(body.decode())
    assert (ask("HEAD")[0], ask("HEAD")[2]) == (200, b"")
    assert ask("POST")[0] == 405


def test_asking_a_process_that_captured_nothing_is_free() -> None:
    """Metrics load no driver and start no thread."""
    code = (
        "import sys, threading, ragblame; text = ragblame.metrics(); "
        "assert 'psycopg' not in sys.modules and 'pydantic_settings' not in sys.modules; "
        "assert threading.active_count() == 1; assert 'ragblame_queue_traces 0' in text"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_doctor_tells_a_scraper(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`ragblame doctor --metrics`: totals of all processes, spool and queue; the queue is missing while the
    database is away."""
    add_totals(data_dir / "spool", {"dropped_spool_full": 3, "spooled": 9})
    spool = Spool(data_dir / "spool", 10**7)
    spool.append([make_trace()])
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", database_url)
    assert cli.run(["doctor", "--metrics"]) == 0
    found = parsed(capsys.readouterr().out)
    assert found['folder_traces_dropped_total{reason="spool_full"}'] == 3
    assert (found["folder_traces_spooled_total"], found['spool_files{state="waiting"}']) == (9, 1)
    assert (found["database_up"], found["jobs_waiting"], found["workers"]) == (1, 0, 0)
    load_settings.cache_clear()
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", "postgresql://ragblame@127.0.0.1:1/x")
    found = parsed("\n".join(metrics_lines()) + "\n")
    assert found["database_up"] == 0
    assert "jobs_waiting" not in found
    assert found["spool_bytes"] > 0


def test_a_machine_tells_the_database_of_its_losses(database_url: str, data_dir: Path) -> None:
    """The totals of a data folder reach the database, however many processes wrote them."""
    add_totals(data_dir / "spool", {"dropped_spool_full": 3, "refused": 1, "spooled": 9})
    for _ in range(2):
        writer = Writer(settings_for(database_url, data_dir)())
        writer.write([make_trace()])
        writer.report()
        writer.disconnect()
    with database.connect(database_url) as conn:
        (host,) = read_capture_hosts(conn)
    assert host.lost == {"refused": 1, "spool full": 3}
    assert host.counts["spooled"] == 9
    assert host.folder == str(data_dir / "spool")


def test_a_report_costs_no_trace(database_url: str, data_dir: Path) -> None:
    """A database that was not migrated so far takes traces all the same."""
    with database.connect(database_url) as conn:
        conn.execute("DROP TABLE capture_host")
    with installed(settings_for(database_url, data_dir)) as recorder:
        ragblame.attach()
        for number in range(2):
            make_chain().invoke(f"q{number}")
            assert recorder.flush(20)
        ragblame.detach()
    with database.connect(database_url) as conn:
        assert conn.execute("SELECT count(*) FROM trace").fetchone() == (2,)


def test_the_health_page_shows_what_never_arrived(
    database_url: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody who looks at the triage page sees which machine lost how many traces, and why."""
    from tests.test_ui_pages import SECONDS, drawn

    add_totals(data_dir / "spool", {"dropped_queue_full": 1_234, "spooled": 77})
    writer = Writer(settings_for(database_url, data_dir)())
    writer.write([make_trace()])
    writer.report()
    writer.disconnect()
    monkeypatch.setenv("RAGBLAME_DATABASE_URL", database_url)
    st.cache_data.clear()
    st.cache_resource.clear()
    load_settings.cache_clear()
    entry = Path(ragblame.ui.launch.__file__).with_name("app.py")
    app = AppTest.from_file(str(entry), default_timeout=SECONDS).run()
    page = app.switch_page("screens/health.py").run()
    text = drawn(page)
    st.cache_data.clear()
    st.cache_resource.clear()
    assert "queue full 1,234" in text
    assert "77" in text
