"""What a tracer adds to one run of a retrieval chain: ours beside LangSmith, Langfuse and OpenInference.

Every tracer has a process of its own, in turn with the others, and times the chain without and with itself
right after each other; the difference is its cost. CPU seconds are the whole process's, so a tracer's
background threads are on its bill; wall time ends when the chain has answered. Before anything is timed, each
tracer must have recorded the question, all chunks, the prompt and the answer, in every mode.
Run: make bench-capture, which brings the peers, or python benchmarks/capture_overhead.py [--quick] [--json]
[--write] with those that are installed.
"""

import asyncio
import gc
import logging
import math
import multiprocessing
import statistics
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Final

from capture_chain import ANSWER, QUESTION, RUNS, RunCounter, make_chain
from capture_contenders import CONTENDERS, PACKAGES, PEERS, Cut
from evidence import bar, report, spread
from zipf_corpus import CHUNKS

from ragblame.attribution.evaluation.evidence import Bar

MODES: Final = ("invoke", "ainvoke", "stream", "astream")
CALLS: Final = 40  # chain runs per timing; 5 with --quick
REPEATS: Final = 15  # timings per tracer and mode; 2 with --quick
IMPORTS: Final = 9  # fresh interpreters; 2 with --quick
NOTHING: Final = "no callback"
FLOOR: Final = "LangChain BaseTracer, no-op"
DISPATCH: Final = "no-op handler, inline"
WAIT: Final = 300.0  # seconds a tracer's process may take for one answer
_IMPORT: Final = (
    "import time; cpu, wall = time.process_time(), time.perf_counter(); "
    "from ragblame import BlameHandler, attach; BlameHandler(); "
    "print(time.process_time() - cpu, time.perf_counter() - wall)"
)


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one chain run, without and with the tracer."""

    cpu_bare: float
    cpu: float
    wall_bare: float
    wall: float
    aside: float  # CPU, of `cpu`, in threads that the tracer keeps or after the answer


@dataclass(slots=True)
class Measured:
    """What the parent learned of one tracer."""

    sink: str = ""
    recorded: str = ""
    absent: str | None = None  # why it cannot run
    timings: dict[str, list[Timing]] = field(default_factory=dict)  # by mode

    def added(self, mode: str) -> float:
        """Median of the CPU milliseconds added to a run."""
        return statistics.median(t.cpu - t.cpu_bare for t in self.timings[mode])

    def share(self, mode: str) -> float:
        """Median of the CPU added to a run, as a part of what the chain alone costs."""
        return statistics.median(t.cpu / t.cpu_bare - 1 for t in self.timings[mode])


# In a tracer's process ---------------------------------------------------------------------------------


def serve(name: str, parent: Connection) -> None:
    """Set the tracer up, show what it records, then time on request until told to end."""
    warnings.simplefilter("ignore")  # a peer's own deprecation warnings are not what it costs
    logging.disable(logging.WARNING)
    try:
        cut = CONTENDERS[name]()
    except ImportError as error:
        parent.send({"absent": f"not installed ({error.name})"})
        return
    parent.send({"sink": cut.sink, "recorded": check(cut)})
    while (asked := parent.recv()) is not None:
        mode, calls = asked
        cpu_bare, wall_bare, _ = timed(cut, mode, calls, is_on=False)
        cpu, wall, aside = timed(cut, mode, calls, is_on=True)
        parent.send(Timing(cpu_bare, cpu, wall_bare, wall, aside))


def check(cut: Cut) -> str:
    """Run each mode once and look at what the tracer would have sent; returns it in words."""
    sizes = []
    for mode in MODES:
        counter = RunCounter()
        if cut.taken is not None:
            cut.taken.is_keeping, cut.taken.kept, cut.taken.count = True, [], 0
        run(cut, mode, 1, extra=(counter,))
        cut.flush()
        if counter.runs != RUNS:
            raise SystemExit(f"the chain has {counter.runs} runs in {mode}, not {RUNS}: nothing to compare")
        if cut.taken is None:
            continue
        cut.taken.is_keeping = False
        body = b"\n".join(cut.taken.kept)
        missing = [
            text
            for text in (QUESTION, *counter.chunks, "Answer from:", ANSWER.strip())
            if text.encode() not in body
        ]
        if missing:
            raise SystemExit(f"{cut.sink}: {mode}: {missing[0][:40]!r} was not recorded: nothing to compare")
        if cut.taken.count != cut.per_run:
            raise SystemExit(f"{cut.sink}: {mode}: {cut.taken.count} {cut.taken.records}, not {cut.per_run}")
        sizes.append(len(body))
    if cut.taken is None:
        return "records nothing"
    return (
        f"{cut.per_run} {cut.taken.records} of {statistics.median(sizes) / 1000:.0f} kB with the question, "
        f"{CHUNKS} chunks, the prompt and the answer"
    )


def timed(cut: Cut, mode: str, calls: int, *, is_on: bool) -> tuple[float, float, float]:
    """CPU and wall milliseconds of one chain run, and the CPU that did not hold the chain up."""
    gc.collect()
    before = thread_clocks()
    cpu, wall = time.process_time(), time.perf_counter()
    run(cut if is_on else None, mode, calls)
    wall, answered, after = time.perf_counter() - wall, time.process_time(), thread_clocks()
    if is_on:
        cut.flush()
    end = time.process_time()
    aside = sum(after[ident] - spent for ident, spent in before.items() if ident in after) + end - answered
    return (end - cpu) * 1000 / calls, wall * 1000 / calls, aside * 1000 / calls


def thread_clocks() -> dict[int, float]:
    """CPU seconds of every thread but the main one."""
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    idents = [thread.ident for thread in others if thread.ident is not None]
    return {ident: time.clock_gettime(time.pthread_getcpuclockid(ident)) for ident in idents}


def run(cut: Cut | None, mode: str, calls: int, *, extra: Sequence[Any] = ()) -> None:
    """The chain, that often; its result is checked."""
    chain = make_chain()
    handlers = [*(cut.handlers if cut is not None else ()), *extra]
    config: Any = {"callbacks": handlers} if handlers else {}
    if cut is not None:
        cut.switch(True)
    try:
        if mode in ("ainvoke", "astream"):
            asyncio.run(_calls(chain, config, mode, calls))
            return
        for _ in range(calls):
            if mode == "invoke":
                answer = chain.invoke({"input": QUESTION}, config)["answer"]
            else:
                pieces = chain.stream({"input": QUESTION}, config)
                answer = "".join(piece.get("answer", "") for piece in pieces)
            assert answer == ANSWER
    finally:
        if cut is not None:
            cut.switch(False)


async def _calls(chain: Any, config: Any, mode: str, calls: int) -> None:
    for _ in range(calls):
        if mode == "ainvoke":
            answer = (await chain.ainvoke({"input": QUESTION}, config))["answer"]
        else:
            answer = ""
            async for piece in chain.astream({"input": QUESTION}, config):
                answer += piece.get("answer", "")
        assert answer == ANSWER


# In the parent -----------------------------------------------------------------------------------------


def measure(calls: int, repeats: int) -> dict[str, Measured]:
    """Every tracer in a process of its own, in turn."""
    context = multiprocessing.get_context("spawn")
    found = {name: Measured() for name in CONTENDERS}
    ends: dict[str, tuple[Connection, Any]] = {}
    try:
        for name, measured in found.items():
            here, there = context.Pipe()
            child = context.Process(target=serve, args=(name, there), daemon=True)
            child.start()
            there.close()
            ends[name] = (here, child)
            said = _answer(name, here)
            measured.absent = said.get("absent")
            measured.sink, measured.recorded = said.get("sink", ""), said.get("recorded", "")
        for repeat in range(repeats + 1):
            for mode in MODES:
                for name, measured in found.items():
                    if measured.absent is None:
                        ends[name][0].send((mode, calls))
                        timing = _answer(name, ends[name][0])
                        if repeat > 0:  # the first one warms up
                            measured.timings.setdefault(mode, []).append(timing)
    finally:
        for here, child in ends.values():
            if child.is_alive():
                here.send(None)
            child.join(WAIT)
    return found


def _answer(name: str, here: Connection) -> Any:
    try:
        if not here.poll(WAIT):
            raise SystemExit(f"{name} does not answer within {WAIT:.0f} s: nothing to compare")
        return here.recv()
    except EOFError:
        raise SystemExit(f"{name}: its process ended, see above: nothing to compare") from None


def rows_of(found: dict[str, Measured]) -> list[dict[str, Any]]:
    """The table: one row per mode and tracer, the chain alone first."""
    rows = []
    for mode in MODES:
        bare = [t for measured in found.values() for t in measured.timings.get(mode, ())]
        rows.append(
            _row(mode, NOTHING)
            | {
                "CPU ms": statistics.median(t.cpu_bare for t in bare),
                "wall ms": statistics.median(t.wall_bare for t in bare),
            }
        )
        for name, measured in found.items():
            row = _row(mode, name if measured.absent is None else f"{name}: not installed")
            if timings := measured.timings.get(mode):
                middle, low, high = spread([t.cpu - t.cpu_bare for t in timings])
                row |= {
                    "CPU ms": statistics.median(t.cpu for t in timings),
                    "added": middle,
                    "quartiles": f"{low:.2f} to {high:.2f}",
                    "aside": statistics.median(t.aside for t in timings),
                    "wall ms": statistics.median(t.wall for t in timings),
                    "added wall": statistics.median(t.wall - t.wall_bare for t in timings),
                }
            rows.append(row)
    return rows


def _row(mode: str, name: str) -> dict[str, Any]:
    """A row whose figures are still missing."""
    figures = ("CPU ms", "added", "quartiles", "aside", "wall ms", "added wall")
    return {"mode": mode, "tracer": name} | dict.fromkeys(figures) | {"quartiles": "–"}


def bars_of(found: dict[str, Measured], import_seconds: float) -> list[Bar]:
    """The promises; without a peer there is nothing to be half of, and the bar does not hold."""
    bars = []
    for mode in MODES:
        ours = found["ragblame"].added(mode)
        peers = {name: found[name].added(mode) for name in PEERS if found[name].absent is None}
        best = min(peers, key=lambda name: peers[name], default=None)
        bars += [
            bar(f"{mode}: added CPU ms a run", ours, "<=", 1.0),
            bar(
                f"{mode}: added CPU against the best peer ({best or 'none installed'})",
                ours / peers[best] if best is not None and peers[best] > 0 else math.nan,
                "<=",
                0.5,
            ),
        ]
    return [*bars, bar("importing the plugin, CPU s", import_seconds, "<=", 0.3)]


def import_time(times: int) -> tuple[float, float]:
    """Median CPU and wall seconds of a fresh interpreter's first import, with everything it pulls in."""
    spent = []
    for _ in range(times):
        done = subprocess.run([sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=True)
        spent.append([float(figure) for figure in done.stdout.split()])
    return statistics.median(cpu for cpu, _ in spent), statistics.median(wall for _, wall in spent)


def main() -> None:
    """Measure and report."""
    is_quick = "--quick" in sys.argv
    import_cpu, import_wall = import_time(2 if is_quick else IMPORTS)
    calls, repeats = (5, 2) if is_quick else (CALLS, REPEATS)
    found = measure(calls, repeats)
    dispatch = {mode: found[DISPATCH].added(mode) for mode in MODES}
    floor = {mode: found["ragblame"].added(mode) / found[FLOOR].added(mode) for mode in MODES}
    notes = [
        f"{name}: {measured.absent or f'{measured.recorded}; sink: {measured.sink}'}"
        for name, measured in found.items()
    ] + [
        "Milliseconds of one run of the chain, fifteen LangChain runs; medians of "
        f"{repeats} timings of {calls} each. Aside: of the CPU, what ran in the tracer's own threads or "
        "after the answer; the chain did not wait for it. Chunks are drawn by a Zipf law, for ours remembers "
        "popular ones.",
        f"Importing the plugin took {import_wall:.3f} s of wall time.",
        "Added CPU against LangChain's own BaseTracer that keeps nothing: "
        + ", ".join(f"{mode} {value:.2f}" for mode, value in floor.items())
        + "; against what the chain alone costs, whatever the machine's pace: "
        + ", ".join(f"{mode} {found['ragblame'].share(mode):.2f}" for mode in MODES),
        "Of our added CPU, LangChain's own dispatch to any handler, milliseconds: "
        + ", ".join(f"{mode} {value:.2f}" for mode, value in dispatch.items()),
    ]
    report(
        "capture overhead",
        rows_of(found),
        bars_of(found, import_cpu),
        packages=("langchain-core", *PACKAGES.values(), "opentelemetry-sdk"),
        notes=notes,
    )


if __name__ == "__main__":
    main()
