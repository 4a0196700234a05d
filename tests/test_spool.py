"""Traces on disk survive crashes, torn tails and damage, are replayed once, and stay within their cap."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from ragblame.errors import DatabaseError
from ragblame.plugin.spool import Spool, inspect_spool
from ragblame.plugin.spool_files import HEADER, MAGIC
from ragblame.plugin.spool_state import measure_spool
from ragblame.records import Trace
from ragblame.traces import clean_trace
from tests.test_traces import make_trace

CAP = 10_000_000


def replayed(folder: Path) -> list[Trace]:
    """What another process would replay."""
    found: list[Trace] = []
    Spool(folder, CAP).replay(found.extend)
    return found


def written(folder: Path, traces: Sequence[Trace]) -> Path:
    """One closed spool file with these traces."""
    spool = Spool(folder, CAP)
    assert spool.append(traces) == traces
    spool.close()
    return max(folder.glob("*.spool"))


def test_replayed_whole_in_order_and_once(tmp_path: Path) -> None:
    """Every field comes back, oldest first, over several files; then nothing is left."""
    given = [make_trace(question=f"q{number}\0\ud800", metadata={"n": number}) for number in range(250)]
    traces = [clean_trace(trace) for trace in given]
    for start in range(0, 250, 50):
        written(tmp_path, traces[start : start + 50])
        time.sleep(0.002)  # files are ordered by the millisecond of their making
    state = inspect_spool(tmp_path)
    assert (state.waiting, state.damaged, state.refused) == (250, 0, 0)
    assert state.oldest_seconds is not None
    assert replayed(tmp_path) == traces
    assert inspect_spool(tmp_path).waiting == 0
    assert replayed(tmp_path) == []


def test_a_failing_replay_loses_nothing(tmp_path: Path) -> None:
    """When the database goes away in the middle, the whole file stays for the next time."""
    traces = [make_trace() for _ in range(150)]
    written(tmp_path, traces)
    taken: list[Trace] = []

    def write(batch: Sequence[Trace]) -> None:
        if taken:
            raise DatabaseError("gone")
        taken.extend(batch)

    with pytest.raises(DatabaseError):
        Spool(tmp_path, CAP).replay(write)
    assert 0 < len(taken) < 150
    assert len(replayed(tmp_path)) == 150


def test_a_replay_goes_in_steps(tmp_path: Path) -> None:
    """So many traces a call, over files' ends, in order; another process leaves a begun file alone."""
    traces = [clean_trace(make_trace(question=f"q{number}")) for number in range(12)]
    for start in range(0, 12, 4):
        written(tmp_path, traces[start : start + 4])
        time.sleep(0.002)
    spool = Spool(tmp_path, CAP)
    taken: list[Trace] = []
    assert spool.replay(taken.extend, most=5) == (5, False)
    others: list[Trace] = []
    Spool(tmp_path, CAP).replay(others.extend, most=4)
    assert others == traces[8:]  # the file that nobody has begun
    assert spool.replay(taken.extend, most=5) == (3, True)
    assert taken == traces[:8]


def test_a_step_that_fails_begins_its_file_again(tmp_path: Path) -> None:
    """What PostgreSQL has of the file by then is offered again, and anybody may take it."""
    traces = [clean_trace(make_trace(question=f"q{number}")) for number in range(4)]
    written(tmp_path, traces)
    spool = Spool(tmp_path, CAP)
    assert spool.replay(lambda batch: None, most=2) == (2, False)

    def fail(batch: Sequence[Trace]) -> None:
        raise OSError("planted: the server went away")

    with pytest.raises(OSError, match="planted"):
        spool.replay(fail, most=2)
    assert replayed(tmp_path) == traces


def test_a_torn_tail_costs_only_itself(tmp_path: Path) -> None:
    """Cut at any byte, a file gives exactly the records that were whole."""
    traces = [clean_trace(make_trace(question=f"q{number}")) for number in range(3)]
    data = written(tmp_path / "whole", traces).read_bytes()
    ends = [len(MAGIC)]
    while ends[-1] < len(data):
        ends.append(ends[-1] + HEADER.size + HEADER.unpack_from(data, ends[-1])[0])
    for cut in range(0, len(data), 7):
        folder = tmp_path / str(cut)
        folder.mkdir(mode=0o700)
        (folder / "0000000000001-1-aa.spool").write_bytes(data[:cut])
        whole = sum(1 for end in ends[1:] if end <= cut)
        assert inspect_spool(folder).waiting == whole
        assert replayed(folder) == traces[:whole]
        assert list(folder.glob("*.spool")) == []
        assert inspect_spool(folder).damaged == (cut not in (0, *ends))  # something was lost: it shows


def test_a_damaged_record_costs_only_itself(tmp_path: Path) -> None:
    """A flipped byte is found by the checksum; the other records are replayed and the file is kept aside."""
    traces = [clean_trace(make_trace(question=f"q{number}")) for number in range(3)]
    path = written(tmp_path, traces)
    data = bytearray(path.read_bytes())
    length, _ = HEADER.unpack_from(data, len(MAGIC))
    data[len(MAGIC) + 2 * HEADER.size + length + 20] ^= 0xFF  # inside the second record
    path.write_bytes(data)
    assert replayed(tmp_path) == [traces[0], traces[2]]
    state = inspect_spool(tmp_path)
    assert (state.waiting, state.damaged) == (0, 1)
    assert state.bytes < len(data) / 2  # what was read is not kept: it would eat into the cap


@pytest.mark.parametrize("content", [b"", b"something else", MAGIC + b"\xff" * 50, MAGIC + b"\0" * 50])
def test_a_foreign_file_is_harmless(tmp_path: Path, content: bytes) -> None:
    """An empty, foreign or garbled file neither raises nor blocks the files behind it."""
    (tmp_path / "0000000000001-1-aa.spool").write_bytes(content)
    written(tmp_path, [make_trace()])
    assert len(replayed(tmp_path)) == 1


def test_a_living_process_keeps_its_file(tmp_path: Path) -> None:
    """A file is left to the process that writes it, and is anybody's as soon as that process is dead."""
    script = (
        "import sys, time; from pathlib import Path; from ragblame.plugin.spool import Spool\n"
        "from tests.test_traces import make_trace\n"
        "spool = Spool(Path(sys.argv[1]), 10**7); spool.append([make_trace()]); print('ready', flush=True)\n"
        "time.sleep(60)"
    )
    owner = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        assert inspect_spool(tmp_path).waiting == 1
        assert replayed(tmp_path) == []
    finally:
        owner.kill()
        owner.communicate()
    assert len(replayed(tmp_path)) == 1


def test_the_cap_holds(tmp_path: Path) -> None:
    """What does not fit is not kept, in order; the folder never grows over the cap."""
    spool = Spool(tmp_path, max_bytes=20_000)
    traces = [make_trace(question="x" * 3_000) for _ in range(10)]
    kept = len(spool.append(traces))
    assert 4 <= kept <= 6
    assert spool.append([make_trace(question="y" * 3_000)] * 3) == []
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 20_000
    spool.close()
    assert [trace.id for trace in replayed(tmp_path)] == [trace.id for trace in traces[:kept]]


def test_the_folder_is_private(tmp_path: Path) -> None:
    """Questions and answers are nobody else's: folder 0700, files 0600, also where it was wider before."""
    folder = tmp_path / "spool"
    folder.mkdir(mode=0o777)
    folder.chmod(0o777)
    spool = Spool(folder, CAP)
    spool.append([make_trace()])
    spool.add_counts({"dropped": 1})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_counts_add_up_over_processes(tmp_path: Path) -> None:
    """Running totals outlive every process; nothing to count writes nothing."""
    Spool(tmp_path / "spool", CAP).add_counts({"dropped": 0})
    assert not (tmp_path / "spool").exists()
    for _ in range(3):
        Spool(tmp_path / "spool", CAP).add_counts({"dropped": 2, "spooled": 1})
    assert inspect_spool(tmp_path / "spool").counts == {"dropped": 6, "spooled": 3}
    (tmp_path / "spool" / "counters.json").write_text("garbled")
    Spool(tmp_path / "spool", CAP).add_counts({"dropped": 1})
    assert inspect_spool(tmp_path / "spool").counts == {"dropped": 1}


def test_refused_traces_are_kept_aside(tmp_path: Path) -> None:
    """What PostgreSQL will never take is kept with its reason and not tried again."""
    spool = Spool(tmp_path, CAP)
    spool.append([make_trace()])
    spool.refuse(make_trace(question="bad"), "because")
    spool.append([make_trace()])
    spool.close()
    assert inspect_spool(tmp_path).refused == 1
    assert len(replayed(tmp_path)) == 2
    (path,) = tmp_path.glob("*.refused")
    assert b"because" in path.read_bytes()


def test_a_cleared_folder_is_made_again(tmp_path: Path) -> None:
    """When somebody removes the folder under a running process, the next trace goes to a new one."""
    spool = Spool(tmp_path / "spool", CAP)
    spool.append([make_trace()])
    for path in (tmp_path / "spool").iterdir():
        path.unlink()
    (tmp_path / "spool").rmdir()
    spool.append([make_trace()])
    assert inspect_spool(tmp_path / "spool").waiting == 1


def test_a_full_disk_leaves_no_half_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a write fails half-way, the file is cut back, and what comes later is readable."""
    spool = Spool(tmp_path, CAP)
    spool.append([make_trace(question="before")])
    write = os.write

    def short(handle: int, data: memoryview) -> int:
        write(handle, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", short)
    with pytest.raises(OSError, match="No space"):
        spool.append([make_trace(question="lost")])
    monkeypatch.undo()
    spool.append([make_trace(question="after")])
    spool.close()
    assert [trace.question for trace in replayed(tmp_path)] == ["before", "after"]


@pytest.mark.parametrize("room", [0, 5])
def test_a_disk_that_was_full_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """A file begun on a full disk has no whole first line; once there is room it becomes a good file."""
    spool = Spool(tmp_path, CAP)
    write = os.write

    def full(handle: int, data: memoryview) -> int:
        write(handle, data[:room])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for _ in range(3):
        with pytest.raises(OSError, match="No space"):
            spool.append([make_trace(question="lost")])
    monkeypatch.undo()
    assert len(list(tmp_path.glob("*.spool"))) == 1
    spool.append([make_trace(question="kept")])
    spool.close()
    assert [trace.question for trace in replayed(tmp_path)] == ["kept"]
    assert inspect_spool(tmp_path).damaged == 0


def test_a_clock_set_back_does_not_change_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files written after the clock went back are replayed after the others; no age is below 0."""
    traces = [make_trace(question=f"q{number}") for number in range(4)]
    now = time.time_ns()
    for trace, days in zip(traces, (0, 400, -1, -2), strict=True):
        monkeypatch.setattr(time, "time_ns", lambda days=days: now + days * 86_400 * 10**9)
        written(tmp_path, [trace])
    monkeypatch.undo()
    assert measure_spool(tmp_path).oldest_seconds is not None
    assert min(0.0, measure_spool(tmp_path).oldest_seconds or 0.0) == 0.0
    assert [trace.question for trace in replayed(tmp_path)] == ["q0", "q1", "q2", "q3"]


def test_sizes_are_told_without_reading(tmp_path: Path) -> None:
    """Bytes and counts of files agree with the thorough look, and a missing folder is empty."""
    assert measure_spool(tmp_path / "none") == measure_spool(tmp_path)
    written(tmp_path, [make_trace(), make_trace()])
    spool = Spool(tmp_path, CAP)
    spool.refuse(make_trace(), "because")
    found = measure_spool(tmp_path)
    assert (found.waiting_files, found.refused_files, found.damaged_files) == (1, 1, 0)
    assert found.bytes == inspect_spool(tmp_path).bytes > 0
