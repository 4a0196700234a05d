"""Rows P1 to P15: what users reported against other tracers does not happen here. One test a claim."""

import asyncio
import contextvars
import copy
import gc
import pickle
import re
import threading
import time
import tracemalloc
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableParallel, RunnablePassthrough
from langchain_core.tools import tool

import ragblame
from ragblame.plugin.counters import counters
from ragblame.plugin.handler import BlameHandler
from ragblame.plugin.run_tree import open_runs
from ragblame.plugin.spool import inspect_spool
from ragblame.records import TraceStatus
from tests.capture import (
    ANSWER,
    PROMPT,
    ROOT,
    Collector,
    NotesRetriever,
    check,
    collecting,
    drain,
    installed,
    join,
    make_chain,
    run_apart,
    settings_for,
    step,
)

NOWHERE = "postgresql://ragblame@127.0.0.1:1/x"  # nothing listens there


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Traces go to the test; nothing of ours may have failed at the end, and no run may be left open."""
    with collecting() as collector:
        yield collector


# P1, P2: what a long-lived process pays --------------------------------------------------------------------


def test_p01_memory_does_not_grow_with_runs(collector: Collector) -> None:
    """1,000 runs, 1,000 errors and 1,000 cancellations: no open run, under 1 KB a run, no thread more."""
    config: Any = {"callbacks": [BlameHandler(sink=id)]}
    search = NotesRetriever(delay=5) | step(join)

    async def leave() -> None:
        tasks = [asyncio.create_task(search.ainvoke("q", config)) for _ in range(100)]
        await asyncio.sleep(0.01)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def ask(times: int) -> None:
        chain = NotesRetriever() | step(join) | FakeListChatModel(responses=[ANSWER])
        failing = NotesRetriever() | step(lambda found: found[9])
        for _ in range(times):
            chain.invoke("q", config)
            with pytest.raises(IndexError):
                failing.invoke("q", config)
        for _ in range(times // 100):
            asyncio.run(leave())
        collector.traces()
        gc.collect()

    ask(100)
    threads = threading.active_count()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    ask(1_000)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    print(f"{grown / 3_000:.0f} bytes a run")
    assert len(open_runs) == 0
    assert grown / 3_000 < 1_000
    assert threading.active_count() <= threads


def test_p02_a_handler_per_request_starts_no_threads(collector: Collector) -> None:
    """500 handlers, one a request: one writer thread for all of them."""
    chain = make_chain()
    chain.invoke("q", collector.config())
    collector.traces()
    threads = threading.active_count()
    for _ in range(500):
        chain.invoke("q", collector.config())
    assert threading.active_count() <= threads
    assert len(collector.traces()) == 501


# P3, P4, P5: which trace an event belongs to ---------------------------------------------------------------


def test_p03_an_unknown_parent_is_a_partial_tree(
    collector: Collector, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that sees only an inner part (given to a model) records that, marked, without a warning."""
    model = FakeListChatModel(responses=[ANSWER], callbacks=[collector.handler()])
    for _ in range(10):
        make_chain(model=model).invoke("q")
    traces = collector.traces()
    assert len(traces) == 10
    assert all(trace.partial_tree and trace.answer == ANSWER for trace in traces)
    assert "Note 1 about q." in traces[0].prompt[0].text
    assert not caplog.records


def test_p03_an_end_without_a_start_is_ignored(collector: Collector) -> None:
    """Ends and errors of runs that this process never saw begin change nothing."""
    handler = collector.handler()
    handler.on_chain_end({"answer": "x"}, run_id=uuid.uuid4())
    handler.on_llm_error(ValueError(), run_id=uuid.uuid4(), parent_run_id=uuid.uuid4())
    handler.on_retriever_end([Document("x")], run_id=uuid.uuid4())
    assert collector.traces() == []


def test_p04_one_handler_serves_threads_and_tasks_at_once(collector: Collector) -> None:
    """50 threads and 50 tasks share one handler: every trace has its own question, chunks and prompt."""
    config: Any = {"callbacks": [collector.handler()]}
    chain = make_chain(retriever=NotesRetriever(delay=0.01))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: chain.invoke(f"thread {number}", config), range(50)))

    async def ask() -> None:
        await asyncio.gather(*(chain.ainvoke(f"task {number}", config) for number in range(50)))

    asyncio.run(ask())
    traces = collector.traces()
    assert len({trace.question for trace in traces}) == len(traces) == 100
    for trace in traces:
        check(trace, trace.question)


@pytest.mark.parametrize("case", ["one twice", "two", "bound and given", "attached and given", "all"])
def test_p05_several_handlers_make_one_trace(collector: Collector, case: str) -> None:
    """One instance twice, two instances, one bound to the chain, attach() beside them: recorded once."""
    same, chain = collector.handler("first"), make_chain()
    given = [same, same] if case == "one twice" else [same, collector.handler("second")]
    if case in ("bound and given", "all"):
        chain = chain.with_config(callbacks=[collector.handler("bound")])
    if case in ("attached and given", "all"):
        ragblame.attach(app="attached")
    chain.invoke("q", {"callbacks": [*given, *([same] if case == "all" else [])]})
    config: Any = {"callbacks": given}
    asyncio.run(chain.ainvoke("q", config))
    for trace in (traces := collector.traces()):
        check(trace, "q")
    assert len(traces) == 2


# P6, P7: what hosts do with handlers and put into chains ---------------------------------------------------


def test_p06_chains_with_handlers_can_be_copied_and_pickled(collector: Collector) -> None:
    """Deep copies share the handler, pickles keep its options, and what comes back still records."""
    handler = collector.handler("app", source_table="public.notes", sample_rate=0.5)
    chain = make_chain().with_config(callbacks=[collector.handler()])
    copy.deepcopy(chain).invoke("q")
    check(collector.only(), "q")
    restored = pickle.loads(pickle.dumps(handler))
    assert (restored.app, restored.source_table) == ("app", "public.notes")
    assert (restored.sample_rate, restored.explicit) == (0.5, True)
    assert copy.copy(handler) is copy.deepcopy(handler) is handler


class Poison:
    """A host object that fails whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"do not touch {name}")


def hostile_values() -> list[Any]:
    """What no serialiser likes."""
    cycle: dict[Any, Any] = {"input": "q"}
    cycle["input"] = cycle
    return [
        None, Poison(), cycle, [Poison()], {"messages": [Poison()]}, "\0\ud800", object(), 3.5, [[]],
        float("nan"), threading.Lock(), np.zeros(3), "x" * 10_000_000, {Poison: 1}, [Document("x")] * 10_000,
    ]  # fmt: skip


def test_p07_no_event_can_make_the_handler_raise() -> None:
    """Nonsense in every argument of every event is swallowed and counted, and leaves no run behind."""
    handler = BlameHandler(sink=id)
    before = counters.snapshot().get("capture_faults", 0)
    with installed():
        for value in hostile_values():
            for kind in ("chain", "llm", "chat_model", "retriever", "tool"):
                run_id = uuid.uuid4()
                getattr(handler, f"on_{kind}_start")(value, value, run_id=run_id, metadata=value, tags=value)
                end = "llm" if kind == "chat_model" else kind
                getattr(handler, f"on_{end}_end")(value, run_id=run_id)
                getattr(handler, f"on_{end}_error")(ValueError(), run_id=run_id, response=value)
        assert ragblame.flush(20)
    for tree in [open_runs.find(root.root_id) for root in list(open_runs._roots.values())]:
        assert tree is not None
        open_runs.seal(tree)
    assert counters.snapshot()["capture_faults"] > before
    assert len(open_runs) == 0


def test_p07_langchain_is_told_to_swallow_what_we_raise() -> None:
    """Even an exception that escaped us would be logged by LangChain, and would not end the user's answer."""
    assert (BlameHandler().raise_error, BlameHandler().run_inline) == (False, True)


@pytest.mark.parametrize("value", hostile_values(), ids=lambda value: type(value).__name__)
def test_p07_a_hostile_output_still_ends_its_trace(value: Any) -> None:
    """Whatever a chain returns, its answer is recorded by what its model said, and no run stays open."""
    with collecting(faults=None) as collector:
        (make_chain() | step(lambda text: value)).invoke("q", collector.config())
        trace = collector.only()
    assert (trace.question, len(trace.chunks)) == ("q", 2)
    assert ANSWER in (trace.answer, trace.generated)


def test_p07_hostile_traces_are_stored(database_url: str, data_dir: Path) -> None:
    """10 MB texts, cycles, NaN, NUL, lone surrogates, 10,000 chunks: rows, with the true lengths beside."""
    big, bad = "x" * 10_000_000, "q\0\ud800"
    cycle: dict[str, Any] = {"nan": float("nan"), "lock": threading.Lock(), "big": big, "nul": bad}
    cycle["self"] = cycle

    class Flood(BaseRetriever):
        def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
            return [Document(big, id=bad, metadata=dict(cycle))] + [Document(bad)] * 9_999

    chain = make_chain(retriever=Flood() | step(lambda found: found[:1]))
    with installed(settings_for(database_url, data_dir)) as recorder:
        ragblame.attach()
        chain.invoke(bad, {"metadata": dict(cycle), "tags": [big]})
        assert recorder.flush(60)
    ragblame.detach()
    with psycopg.connect(database_url) as conn:
        rows = conn.execute("SELECT question, answer, truncated, metadata FROM ragblame.trace").fetchall()
        [(question, answer, truncated, metadata)] = rows
        chunk = "SELECT truncated_from, source_id FROM ragblame.trace_chunk WHERE position = 0"
        assert conn.execute(chunk).fetchall() == [(10_000_000, "q\u2400\ufffd")]
        assert conn.execute("SELECT count(*) FROM ragblame.trace_chunk").fetchone() == (200,)
    assert (question, answer) == ("q\u2400\ufffd", ANSWER)
    assert truncated["chunks"] == 10_000
    assert truncated["prompt[0]"] > 10_000_000
    assert metadata["nan"] is None


# P8, P9: the end of a process, and its children ------------------------------------------------------------

SCRIPT = (
    "import os, sys, time, ragblame\nfrom tests.capture import make_chain\nragblame.attach(app='script')\n"
)


def environment(url: str, data_dir: Path) -> dict[str, str]:
    """Settings of a process of its own."""
    return {"RAGBLAME_DATABASE_URL": url, "RAGBLAME_DATA_DIR": str(data_dir)}


def stored(url: str) -> tuple[int, int]:
    """Rows, and distinct questions."""
    with psycopg.connect(url) as conn:
        row = conn.execute("SELECT count(*), count(DISTINCT question) FROM ragblame.trace").fetchone()
    assert row is not None
    return row[0], row[1]


def test_p08_a_process_that_ends_at_once_loses_nothing(database_url: str, data_dir: Path) -> None:
    """The last line of a script is the invoke: the row is there when the process has ended."""
    done = run_apart(f"{SCRIPT}make_chain().invoke('q')", environment=environment(database_url, data_dir))
    assert (done.returncode, done.stderr) == (0, "")
    assert stored(database_url) == (1, 1)


def test_p08_flush_gives_up_on_time(data_dir: Path) -> None:
    """With the database down, flush(2) says False and does not hang; the trace waits on the spool."""
    with installed(settings_for(NOWHERE, data_dir)) as recorder:
        ragblame.attach()
        make_chain().invoke("q")
        began = time.monotonic()
        assert recorder.flush(2) is False
        assert time.monotonic() - began < 4
    ragblame.detach()
    assert inspect_spool(data_dir / "spool").waiting == 1


def test_p09_a_forked_child_records_on_its_own(database_url: str, data_dir: Path) -> None:
    """The parent enqueues one and forks, the child traces one: both rows once, no deadlock."""
    body = """
make_chain().invoke('parent')
child = os.fork()
if child == 0:
    make_chain().invoke('child')
    os._exit(0 if ragblame.flush(20) else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ragblame.flush(20))
"""
    done = run_apart(SCRIPT + body, environment=environment(database_url, data_dir))
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "0 True\n")
    assert stored(database_url) == (2, 2)


def test_p09_a_fork_leaves_the_parents_queue_to_the_parent() -> None:
    """What waits in the parent when it forks is handed over once, by the parent; no lock stays taken."""
    body = """
import os, sys, threading, time, ragblame
from tests.capture import make_chain
gate = threading.Event()
def sink(trace):
    gate.wait(10)
    os.write(1, f'{os.getpid() == parent} {trace.question}\\n'.encode())
parent, handler = os.getpid(), ragblame.BlameHandler(sink=sink)
for number in range(3):
    make_chain().invoke(f'parent {number}', {'callbacks': [handler]})
child = os.fork()
gate.set()
if child == 0:
    make_chain().invoke('child', {'callbacks': [handler]})
    os._exit(0 if ragblame.flush(20) else 3)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0 and ragblame.flush(20)
"""
    done = run_apart(body)
    assert (done.returncode, done.stderr) == (0, "")
    told = ["False child", "True parent 0", "True parent 1", "True parent 2"]
    assert sorted(done.stdout.splitlines()) == told


# P10, P11, P12: contexts and endings -----------------------------------------------------------------------


def test_p10_no_context_is_attached_or_left_behind(collector: Collector) -> None:
    """Events set no context variable, not even across tasks, and no other tracer's context is touched."""
    handler, run_id = collector.handler(), uuid.uuid4()

    async def events() -> None:
        before = dict(contextvars.copy_context().items())
        handler.on_chain_start(None, "q", run_id=run_id)
        await asyncio.create_task(asyncio.to_thread(handler.on_chain_end, ANSWER, run_id=run_id))
        await asyncio.gather(*(make_chain().ainvoke(f"q{n}", {"callbacks": [handler]}) for n in range(3)))
        assert dict(contextvars.copy_context().items()) == before

    asyncio.run(events())
    assert len(collector.traces()) == 4
    source = "".join(path.read_text("utf-8") for path in (ROOT / "plugin").glob("*.py"))
    assert not re.search(r"(?:import|from) opentelemetry|context\w*\.(?:attach|detach)\(", source)


LEFT = {
    "break a stream": (TraceStatus.ABANDONED, ANSWER[:4]),
    "close an async stream": (TraceStatus.ABANDONED, "T"),
    "cancel the search": (TraceStatus.CANCELLED, ""),
    "cancel the model": (TraceStatus.CANCELLED, ""),
    "cancel a half-read stream": (TraceStatus.CANCELLED, "The"),
    "time out": (TraceStatus.CANCELLED, ""),
}


@pytest.mark.parametrize("how", LEFT)
def test_p11_what_is_left_early_is_one_trace(collector: Collector, how: str) -> None:
    """Leaving by break, aclose, cancel or timeout: one trace, its status, what was said, no open run."""
    retriever = NotesRetriever(delay=5 if how == "cancel the search" else 0)
    pause = {"cancel the model": 5.0, "time out": 0.4, "cancel a half-read stream": 0.02}.get(how)
    chain = make_chain(retriever=retriever, model=FakeListChatModel(responses=[ANSWER], sleep=pause))
    config = collector.config()

    async def leave() -> None:
        if how == "close an async stream":
            stream = chain.astream("q", config)
            assert await anext(stream) == "T"
            await stream.aclose()  # type: ignore[attr-defined]
        elif how == "time out":
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(chain.ainvoke("q", config), 0.1)
        else:
            task = asyncio.create_task(drain(chain.astream("q", config)))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await asyncio.sleep(0.05)

    if how == "break a stream":
        for number, _ in enumerate(chain.stream("q", config)):
            if number == 4:
                break
    else:
        asyncio.run(leave())
    trace = collector.only()
    status, shown = LEFT[how]
    assert trace.status is status
    assert (trace.answer or trace.generated or "").startswith(shown)
    assert len(trace.chunks) == (0 if how == "cancel the search" else 2)
    assert "q" in (trace.question, trace.query)


@pytest.mark.parametrize("name", ["GraphInterrupt", "NodeInterrupt", "ParentCommand", "GraphDrained"])
def test_p12_interrupts_are_not_errors(collector: Collector, name: str) -> None:
    """A graph that pauses raises; by its class's name the trace is interrupted, not failed."""
    kind = type(name, (Exception,), {})

    def pause(text: str) -> str:
        raise kind("ask a person")

    config: Any = {**collector.config(), "metadata": {"thread_id": "t-1"}}
    with pytest.raises(kind):
        (make_chain() | step(pause)).invoke("q", config)
    trace = collector.only()
    assert (trace.status, trace.session_id) == (TraceStatus.INTERRUPTED, "t-1")
    for event in ("on_interrupt", "on_resume"):
        getattr(BlameHandler(), event)("anything", more=1)


# P13, P14, P15: documents, outages, order ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"score": 0.5}, ("score", 0.5)),
        ({"relevance_score": 0.25, "score_name": "x"}, ("relevance_score", 0.25)),
        ({"similarity": np.float32(0.5)}, ("similarity", 0.5)),
        ({"distance": 1}, ("distance", 1.0)),
        ({"_score": 2.5, "nested": {"a": 1}}, ("_score", 2.5)),
        ({"score": 0.5, "score_name": "cosine"}, ("cosine", 0.5)),
        ({"score": "high"}, (None, None)),
    ],
)
def test_p13_scores_keep_their_name(
    collector: Collector, metadata: dict[str, Any], expected: tuple[str | None, float | None]
) -> None:
    """A score is taken from the metadata with the name of its key: scales differ between them."""
    retriever = step(lambda text: [Document("Note.", metadata=metadata)])
    make_chain(retriever=retriever).invoke("q", collector.config())
    [chunk] = collector.only().chunks
    assert (chunk.score_name, chunk.score) == expected


def test_p13_documents_are_found_without_a_retriever(collector: Collector) -> None:
    """A plain function's documents, or pairs with scores, are seen where they pass between steps."""
    found = [(Document("Note 1.", id="row-1"), 0.25)]
    search = step(lambda text: found)
    plain = step(lambda pairs: [document for document, _ in pairs])
    make_chain(retriever=search | plain).invoke("q", collector.config())
    trace = collector.only()
    assert [(chunk.source_id, chunk.score, chunk.rank) for chunk in trace.chunks] == [("row-1", 0.25, 1)]
    assert trace.answer == ANSWER


def test_p13_documents_given_as_input_are_chunks(collector: Collector) -> None:
    """A chain that is handed its documents (create_stuff_documents_chain) records them."""
    stuff: Runnable[Any, Any] = RunnablePassthrough.assign(context=lambda inputs: join(inputs["context"]))
    chain = stuff | PROMPT | FakeListChatModel(responses=[ANSWER])
    chain.invoke({"context": NotesRetriever().invoke("q"), "question": "q"}, collector.config())
    trace = collector.only()
    assert trace.question == "q"
    assert [chunk.source_id for chunk in trace.chunks] == ["row-1", "row-2"]


def test_p13_documents_of_the_roots_output_are_chunks(collector: Collector) -> None:
    """A function that searches and answers by itself, and returns both, is a whole trace."""

    def ask(question: str, config: Any) -> dict[str, Any]:
        said = FakeListChatModel(responses=[ANSWER]).invoke(f"Note.\n{question}", config)
        return {"answer": said.content, "context": [Document("Note.", id="row-1")]}

    step(ask).invoke("q", collector.config())
    trace = collector.only()
    assert (trace.answer, [chunk.source_id for chunk in trace.chunks]) == (ANSWER, ["row-1"])


def test_p13_a_tools_artifact_is_a_search_of_its_own(collector: Collector) -> None:
    """Beside a retriever, documents that only a tool's artifact holds are chunks, under the tool's run."""

    @tool(response_format="content_and_artifact")
    def look_up(query: str) -> tuple[str, list[Document]]:
        """Search."""
        return "found", [Document("From the tool.", id="row-9")]

    def ask(question: str, config: Any) -> str:
        call = {"name": "look_up", "args": {"query": question}, "id": "1", "type": "tool_call"}
        look_up.invoke(call, config)
        return str(make_chain().invoke(question, config))

    step(ask).invoke("q", collector.config())
    chunks = collector.only().chunks
    assert [chunk.source_id for chunk in chunks] == ["row-9", "row-1", "row-2"]
    assert len({(chunk.retriever_run, chunk.rank) for chunk in chunks}) == 3


def test_p14_an_outage_bounds_memory_and_spares_the_chain(data_dir: Path) -> None:
    """With the database down and a small spool, answers come, what is lost is counted, little is held."""
    before = counters.lost()
    with installed(settings_for(NOWHERE, data_dir, spool_max_bytes=100_000)) as recorder:
        ragblame.attach()
        chain = make_chain()
        for number in range(1_000):
            assert chain.invoke(f"q{number}") == ANSWER
        assert recorder.flush(20) is False
        assert len(open_runs) == 0
    ragblame.detach()
    waiting = inspect_spool(data_dir / "spool").waiting
    assert sum(path.stat().st_size for path in data_dir.rglob("*") if path.is_file()) < 200_000
    assert waiting > 10
    assert waiting + counters.lost() - before == 1_000


def test_p15_parallel_searches_have_a_stable_order(collector: Collector) -> None:
    """Three retrievers side by side: chunks by (run, rank), in the order of their keys whoever is faster."""

    class Named(BaseRetriever):
        label: str

        def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
            return [Document(f"{self.label}{rank}") for rank in (1, 2)]

    def wait(seconds: float) -> Runnable[Any, Any]:
        def nap(text: str) -> str:
            time.sleep(seconds)
            return text

        return step(nap)

    merge = step(lambda found: found["a"] + found["b"] + found["c"])
    for slow_a, slow_c in ((0.03, 0.0), (0.0, 0.03)):
        searches = RunnableParallel(
            c=wait(slow_c) | Named(label="c"), a=wait(slow_a) | Named(label="a"), b=Named(label="b")
        )
        make_chain(retriever=searches | merge).invoke("q", collector.config())
    for trace in collector.traces():
        assert [chunk.text for chunk in trace.chunks] == ["a1", "a2", "b1", "b2", "c1", "c2"]
        assert [chunk.rank for chunk in trace.chunks] == [1, 2] * 3
        assert len({(chunk.retriever_run, chunk.rank) for chunk in trace.chunks}) == 6


def test_p15_map_keeps_every_search(collector: Collector) -> None:
    """.map() over three queries is three searches of one answer."""
    searches = step(lambda text: [f"{text} {n}" for n in range(3)]) | NotesRetriever().map()
    flat = step(lambda lists: [document for found in lists for document in found])
    make_chain(retriever=searches | flat).invoke("q", collector.config())
    trace = collector.only()
    assert len({chunk.retriever_run for chunk in trace.chunks}) == 3
    assert sorted(chunk.text for chunk in trace.chunks)[0] == "Note 1 about q 0."
    assert len(trace.chunks) == 6
