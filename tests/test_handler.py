"""What the handler hears in real LangChain chains becomes the right trace, and never hurts the chain."""

import asyncio
import copy
import gc
import json
import pickle
import threading
import tracemalloc
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import JsonOutputParser, StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableBranch,
    RunnableConfig,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.tools import tool

import ragblame
from ragblame.plugin.counters import counters
from ragblame.plugin.handler import BlameHandler
from ragblame.plugin.run_tree import OpenRuns, open_runs
from ragblame.records import Trace, TraceStatus
from ragblame.suppression import suppress_capture
from tests.capture import ANSWER, PROMPT, Collector, NotesRetriever, installed, join, make_chain


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Traces go to the test; nothing of ours may have failed at the end, and no run may be left open."""
    faults = counters.snapshot().get("capture_faults", 0)
    with installed() as recorder:
        collector = Collector(recorder)
        yield collector
        collector.traces()
    ragblame.detach()
    assert counters.snapshot().get("capture_faults", 0) == faults
    assert len(open_runs) == 0


def check(trace: Trace, question: str) -> None:
    """A complete capture of ``make_chain``."""
    assert trace.question == question
    assert trace.query is None
    assert [chunk.text for chunk in trace.chunks] == [f"Note {n} about {question}." for n in (1, 2)]
    assert [(chunk.source_id, chunk.rank, chunk.position) for chunk in trace.chunks] == [
        ("row-1", 1, 0),
        ("row-2", 2, 1),
    ]
    assert [(chunk.score, chunk.score_name) for chunk in trace.chunks] == [(1.0, "score"), (0.5, "score")]
    assert [message.role for message in trace.prompt] == ["system", "human"]
    assert f"Note 2 about {question}." in trace.prompt[0].text
    assert trace.answer == ANSWER
    assert trace.generated is None
    assert trace.status is TraceStatus.OK
    assert trace.model == "FakeListChatModel"
    assert trace.duration_ms > 0
    assert not trace.partial_tree


CALLS: dict[str, Any] = {
    "invoke": lambda chain, config: chain.invoke("q1", config),
    "stream": lambda chain, config: list(chain.stream("q1", config)),
    "batch": lambda chain, config: chain.batch(["q1", "q2", "q3"], config),
    "ainvoke": lambda chain, config: asyncio.run(chain.ainvoke("q1", config)),
    "astream": lambda chain, config: asyncio.run(_drain(chain.astream("q1", config))),
    "astream_events": lambda chain, config: asyncio.run(
        _drain(chain.astream_events("q1", config, version="v2"))
    ),
    "abatch": lambda chain, config: asyncio.run(chain.abatch(["q1", "q2", "q3"], config)),
}


async def _drain(stream: Any) -> None:
    async for _ in stream:
        pass


@pytest.mark.parametrize("call", CALLS)
def test_every_way_to_call_a_chain(collector: Collector, call: str) -> None:
    """Invoke, stream, batch and their async twins give one complete trace per question."""
    CALLS[call](make_chain(), collector.config())
    traces = collector.traces()
    assert sorted(trace.question for trace in traces) == (["q1", "q2", "q3"] if "batch" in call else ["q1"])
    for trace in traces:
        check(trace, trace.question)


def test_one_handler_serves_threads_and_tasks_at_once(collector: Collector) -> None:
    """40 threads and 40 tasks share one handler: every trace has its own question, chunks and prompt."""
    config: Any = {"callbacks": [collector.handler()]}
    chain = make_chain(retriever=NotesRetriever(delay=0.01))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: chain.invoke(f"thread {number}", config), range(40)))

    async def ask() -> None:
        await asyncio.gather(*(chain.ainvoke(f"task {number}", config) for number in range(40)))

    asyncio.run(ask())
    traces = collector.traces()
    assert len({trace.question for trace in traces}) == len(traces) == 80
    for trace in traces:
        check(trace, trace.question)


def test_several_handlers_make_one_trace(collector: Collector) -> None:
    """The same instance twice, two instances, and attach() beside an explicit one record once."""
    same = collector.handler("first")
    ragblame.attach(app="attached")
    chain = make_chain().with_config(callbacks=[collector.handler("bound")])
    chain.invoke("q", {"callbacks": [same, same, collector.handler("second")]})
    trace = collector.only()
    check(trace, "q")


def test_attach_records_answers_from_chunks_only(collector: Collector) -> None:
    """attach() is idempotent, sees every chain, leaves alone what retrieved nothing; detach() ends it."""
    handler = ragblame.attach(app="support", source_table="public.notes")
    handler.sink = collector.collected.append
    assert ragblame.attach() is handler
    chain = make_chain()
    chain.invoke("q")
    asyncio.run(chain.ainvoke("again"))
    FakeListChatModel(responses=["no chunks"]).invoke("hello")
    NotesRetriever().invoke("no answer")
    (NotesRetriever() | RunnableLambda(join)).invoke("no model")
    with suppress_capture():
        chain.invoke("suppressed")
    ragblame.detach()
    chain.invoke("detached")
    traces = collector.traces()
    assert [trace.question for trace in traces] == ["q", "again"]
    assert {trace.app for trace in traces} == {"support"}
    assert {chunk.source_table for trace in traces for chunk in trace.chunks} == {"public.notes"}


def test_an_explicit_handler_records_without_chunks(collector: Collector) -> None:
    """Who hands a handler to a call wants that answer, chunks or not; a bare search is still no answer."""
    FakeListChatModel(responses=["hello"]).invoke("hi", collector.config())
    NotesRetriever().invoke("just looking", collector.config())
    (NotesRetriever() | RunnableLambda(join)).invoke("formatting only", collector.config())
    trace = collector.only()
    assert (trace.question, trace.answer, trace.chunks) == ("hi", "hello", ())


def test_source_table_comes_from_the_nearest_place(collector: Collector) -> None:
    """A document's own source_table beats the retriever's metadata, which beats the handler's option."""

    class Mixed(BaseRetriever):
        def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
            return [Document("a", metadata={"source_table": "own.table"}), Document("b")]

    chain = make_chain(retriever=Mixed(metadata={"source_table": "retriever.table"}))
    chain.invoke("q", {"callbacks": [collector.handler(source_table="option.table")]})
    assert [chunk.source_table for chunk in collector.only().chunks] == ["own.table", "retriever.table"]


def test_documents_are_kept_as_they_were_retrieved(collector: Collector) -> None:
    """A later step that edits text or metadata in place does not change the record."""

    def redact(documents: list[Document]) -> list[Document]:
        for document in documents:
            document.page_content = "[REDACTED]"
            document.metadata["source"] = "gone"
        return documents

    make_chain(retriever=NotesRetriever() | RunnableLambda(redact)).invoke("q", collector.config())
    trace = collector.only()
    assert [chunk.text for chunk in trace.chunks] == ["Note 1 about q.", "Note 2 about q."]
    assert trace.chunks[0].metadata["source"] == "notes.md"
    assert "[REDACTED]" in trace.prompt[0].text


def test_documents_are_found_without_a_retriever(collector: Collector) -> None:
    """A plain function's documents, or pairs with scores, are seen where they pass between steps."""

    found = [(Document("Note 1.", id="row-1"), 0.25)]

    def search(question: str) -> list[tuple[Document, float]]:
        return found

    def plain(pairs: list[tuple[Document, float]]) -> list[Document]:
        return [document for document, _ in pairs]

    chain = make_chain(retriever=RunnableLambda(search) | RunnableLambda(plain))
    chain.invoke("q", collector.config())
    trace = collector.only()
    assert [(chunk.source_id, chunk.score, chunk.rank) for chunk in trace.chunks] == [("row-1", 0.25, 1)]
    assert trace.answer == ANSWER


def test_documents_given_as_input_are_chunks(collector: Collector) -> None:
    """A chain that is handed its documents (create_stuff_documents_chain) records them."""
    chain: Runnable[Any, str] = (
        RunnablePassthrough.assign(context=lambda inputs: join(inputs["context"]))
        | PROMPT
        | FakeListChatModel(responses=[ANSWER])
        | StrOutputParser()
    )
    documents = NotesRetriever().invoke("q")
    chain.invoke({"context": documents, "question": "q"}, collector.config())
    trace = collector.only()
    assert trace.question == "q"
    assert [chunk.source_id for chunk in trace.chunks] == ["row-1", "row-2"]


def test_retrieval_chain_with_dictionaries(collector: Collector) -> None:
    """The shape of create_retrieval_chain, streamed too: question and answer come from the dictionaries."""
    answer: Runnable[Any, Any] = (
        RunnablePassthrough.assign(context=lambda inputs: join(inputs["context"]))
        | ChatPromptTemplate.from_messages([("system", "{context}"), ("human", "{input}")])
        | FakeListChatModel(responses=[ANSWER])
        | StrOutputParser()
    )
    retrieve = RunnableLambda(lambda inputs: inputs["input"]) | NotesRetriever()
    chain = (
        RunnablePassthrough.assign(context=retrieve) | RunnablePassthrough.assign(answer=answer)
    ).with_config(run_name="retrieval_chain")
    chain.invoke({"input": "q", "language": "en"}, collector.config())
    for _ in chain.stream({"input": "streamed", "language": "en"}, collector.config()):
        pass
    first, second = collector.traces()
    check(first, "q")
    check(second, "streamed")


def test_a_rewritten_question_is_the_query(collector: Collector) -> None:
    """With a history-aware retriever the rewriter's model run is not the answer, and the query is kept."""
    rewriter = FakeListChatModel(responses=["standalone port question"])
    rewrite = ChatPromptTemplate.from_messages([("placeholder", "{history}"), ("human", "{input}")])
    retriever: Runnable[Any, Any] = RunnableBranch(
        (
            lambda inputs: not inputs.get("history"),
            RunnableLambda(lambda inputs: inputs["input"]) | NotesRetriever(),
        ),
        rewrite | rewriter | StrOutputParser() | NotesRetriever(),
    )
    answer = PROMPT | FakeListChatModel(responses=[ANSWER]) | StrOutputParser()
    chain: Runnable[Any, Any] = RunnablePassthrough.assign(context=retriever | RunnableLambda(join)) | {
        "answer": RunnablePassthrough.assign(question=lambda inputs: inputs["input"]) | answer
    }
    chain.invoke(
        {"input": "and its port?", "history": [HumanMessage("tell me of Kestrel"), AIMessage("a gateway")]},
        collector.config(),
    )
    trace = collector.only()
    assert trace.question == "and its port?"
    assert trace.query == "standalone port question"
    assert trace.answer == ANSWER
    assert trace.prompt[-1].text == "and its port?"
    assert trace.metadata["ragblame"]["model_runs"] == 2  # type: ignore[index,call-overload]


def test_a_judge_after_the_answer_is_not_the_answer(collector: Collector) -> None:
    """The run whose text is the answer counts, wherever it stands among the model runs."""
    judge = FakeListChatModel(responses=["yes, grounded"])

    def judged(text: str, config: RunnableConfig) -> dict[str, str]:
        return {"answer": text, "grade": str(judge.invoke(f"Is it grounded? {text}", config).content)}

    (make_chain() | RunnableLambda(judged)).invoke("q", collector.config())
    trace = collector.only()
    check(trace, "q")


def test_only_the_successful_attempt_counts(collector: Collector) -> None:
    """With fallbacks, the failed model run leaves a note and the successful one the prompt and the answer."""

    def fail(prompt: Any) -> str:
        raise RuntimeError("overloaded")

    broken: Any = GenericFakeChatModel(messages=iter([]))  # its generator is exhausted at once
    model = broken.with_fallbacks([FakeListChatModel(responses=[ANSWER])], exceptions_to_handle=(Exception,))
    make_chain(model=RunnableLambda(fail).with_fallbacks([model])).invoke("q", collector.config())
    trace = collector.only()
    check(trace, "q")
    assert len(trace.metadata["ragblame"]["failed_model_runs"]) == 1  # type: ignore[index,call-overload,arg-type]


@pytest.mark.parametrize(
    ("said", "after", "shown"),
    [
        (ANSWER, RunnableLambda(lambda text: f"{text}\n\nSources: [1]"), f"{ANSWER}\n\nSources: [1]"),
        (ANSWER, RunnableLambda(lambda text: text.split()[-1]), "2959."),
        (json.dumps({"answer": ANSWER, "sure": True}), JsonOutputParser(), ANSWER),
    ],
)
def test_shown_and_generated_text_are_both_kept(
    collector: Collector, said: str, after: Runnable[Any, Any], shown: str
) -> None:
    """When a later step changes the model's text, both what was shown and what was written are kept."""
    (make_chain(model=FakeListChatModel(responses=[said])) | after).invoke("q", collector.config())
    trace = collector.only()
    assert trace.answer == shown
    assert trace.generated == said
    assert "answering_run" not in trace.metadata["ragblame"]  # type: ignore[operator]


def test_reasoning_is_not_the_answer(collector: Collector) -> None:
    """Of content blocks only text is answer; in a prompt, an image stands as a placeholder."""
    message = AIMessage(
        content=[{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": ANSWER}, " Indeed."]
    )
    prompt = [
        SystemMessage("see"),
        HumanMessage(
            [{"type": "text", "text": "what is "}, {"type": "image_url", "image_url": {"url": "data:"}}]
        ),
    ]
    GenericFakeChatModel(messages=iter([message])).invoke(prompt, collector.config())
    trace = collector.only()
    assert trace.answer == f"{ANSWER} Indeed."
    assert [message.text for message in trace.prompt] == ["see", "what is [image_url]"]


def test_a_completion_model_has_one_prompt(collector: Collector) -> None:
    """A plain language model's prompt is one message of role "prompt"."""
    chain: Runnable[str, str] = (
        {"context": NotesRetriever() | RunnableLambda(join), "question": RunnablePassthrough()}
        | PromptTemplate.from_template("{context}\n{question}")
        | FakeListLLM(responses=[ANSWER])
    )
    chain.invoke("q", collector.config())
    trace = collector.only()
    assert [message.role for message in trace.prompt] == ["prompt"]
    assert trace.prompt[0].text == "Note 1 about q.\n\nNote 2 about q.\nq"
    assert trace.answer == ANSWER


def test_a_failing_model_is_recorded_as_error(collector: Collector) -> None:
    """The host's exception arrives unchanged; the trace has its text, the chunks and the prompt."""

    class Broken(FakeListChatModel):
        def _call(self, *args: Any, **kwargs: Any) -> str:
            raise ConnectionError("model away")

    with pytest.raises(ConnectionError, match="model away"):
        make_chain(model=Broken(responses=[""])).invoke("q", collector.config())
    trace = collector.only()
    assert trace.status is TraceStatus.ERROR
    assert trace.error == "ConnectionError: model away"
    assert (trace.question, trace.answer, len(trace.chunks), len(trace.prompt)) == ("q", "", 2, 2)


def test_a_failing_search_is_recorded_for_an_explicit_handler(collector: Collector) -> None:
    """A retriever that raises is an answered question too: answered by an error."""

    class Broken(BaseRetriever):
        def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
            raise OSError("index away")

    with pytest.raises(OSError, match="index away"):
        make_chain(retriever=Broken()).invoke("q", collector.config())
    trace = collector.only()
    assert (trace.status, trace.error, trace.question) == (TraceStatus.ERROR, "OSError: index away", "q")


def test_leaving_a_stream_is_abandoned(collector: Collector) -> None:
    """Breaking off a sync stream, an async one, and closing it early: abandoned, with what was shown."""
    chain = make_chain()
    for number, _ in enumerate(chain.stream("sync", collector.config())):
        if number == 4:
            break
    for _ in chain.stream("at once", collector.config()):
        break

    async def leave() -> None:
        stream = chain.astream("async", collector.config())
        assert await anext(stream) == "T"
        await stream.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0.05)

    asyncio.run(leave())
    traces = collector.traces()
    assert {trace.status for trace in traces} == {TraceStatus.ABANDONED}
    assert {len(trace.chunks) for trace in traces} == {2}
    # LangChain's own record of a broken sync stream lacks the piece given out last
    assert [(trace.question, trace.answer, trace.generated) for trace in traces] == [
        ("sync", ANSWER[:4], ANSWER),
        ("at once", "", ANSWER),
        ("async", "T", None),
    ]
    assert [trace.error for trace in traces] == [None, None, None]


@pytest.mark.parametrize("slow", ["retriever", "model"])
def test_a_cancelled_task_is_cancelled(collector: Collector, slow: str) -> None:
    """Cancelling the task while it searches or while the model runs: one trace, status cancelled."""
    retriever = NotesRetriever(delay=5 if slow == "retriever" else 0)
    model = FakeListChatModel(responses=[ANSWER], sleep=5 if slow == "model" else None)
    chain = make_chain(retriever=retriever, model=model)

    async def give_up() -> None:
        task = asyncio.create_task(_drain(chain.astream("q", collector.config())))
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.05)

    asyncio.run(give_up())
    trace = collector.only()
    assert trace.status is TraceStatus.CANCELLED
    assert len(trace.chunks) == (0 if slow == "retriever" else 2)
    assert trace.query == "q" or trace.question == "q"


def test_interrupts_are_not_errors(collector: Collector) -> None:
    """A graph that pauses raises; by its class's name the trace is interrupted, not failed."""

    class GraphInterrupt(Exception):  # noqa: N818 - langgraph's name
        pass

    def pause(text: str) -> str:
        raise GraphInterrupt("ask a person")

    with pytest.raises(GraphInterrupt):
        (make_chain() | RunnableLambda(pause)).invoke("q", collector.config())
    assert collector.only().status is TraceStatus.INTERRUPTED
    for name in ("on_interrupt", "on_resume", "on_stream_event"):
        getattr(BlameHandler(), name)("anything", more=1)


def test_three_retrievers_keep_their_order(collector: Collector) -> None:
    """Chunks of parallel retrievers are all kept, by run and rank; nested ones feed only the outer."""

    class Fused(BaseRetriever):
        def _get_relevant_documents(
            self, query: str, *, run_manager: CallbackManagerForRetrieverRun
        ) -> list[Document]:
            found = NotesRetriever().invoke(query, {"callbacks": run_manager.get_child()})
            return [Document(f"fused {found[0].page_content}", id="fused")]

    parallel = RunnableParallel(a=NotesRetriever(), b=Fused(), c=NotesRetriever()) | RunnableLambda(
        lambda found: found["a"] + found["b"] + found["c"]
    )
    make_chain(retriever=parallel).invoke("q", collector.config())
    chunks = collector.only().chunks
    assert sorted(str(chunk.source_id) for chunk in chunks) == ["fused", "row-1", "row-1", "row-2", "row-2"]
    assert len({(chunk.retriever_run, chunk.rank) for chunk in chunks}) == 5
    assert [chunk.position for chunk in chunks] == [0, 1, 2, 3, 4]


def test_a_tools_artifact_is_retrieved_text(collector: Collector) -> None:
    """Documents that a tool returns as artifact are chunks; the question is the last human message."""

    @tool(response_format="content_and_artifact")
    def look_up(query: str) -> tuple[str, list[Document]]:
        """Search the notes."""
        return "found", [Document("The port is 2959.", id="row-9")]

    def agent(messages: list[Any], config: RunnableConfig) -> dict[str, Any]:
        call = {"name": "look_up", "args": {"query": "port"}, "id": "1", "type": "tool_call"}
        result = look_up.invoke(call, config)
        assert isinstance(result, ToolMessage)
        answer = FakeListChatModel(responses=[ANSWER]).invoke([*messages, result], config)
        return {"messages": [*messages, answer]}

    RunnableLambda(agent).invoke([SystemMessage("be brief"), HumanMessage("Which port?")], collector.config())
    trace = collector.only()
    assert (trace.question, trace.answer) == ("Which port?", ANSWER)
    assert [chunk.source_id for chunk in trace.chunks] == ["row-9"]
    assert [message.role for message in trace.prompt] == ["system", "human", "tool"]


def test_an_unknown_parent_is_a_partial_tree(collector: Collector) -> None:
    """A handler that sees only an inner part records that, marked, without a warning."""
    model = FakeListChatModel(responses=[ANSWER], callbacks=[collector.handler()])
    make_chain(model=model).invoke("q")
    trace = collector.only()
    assert trace.partial_tree
    assert trace.answer == ANSWER
    assert "Note 1 about q." in trace.prompt[0].text


def test_a_reused_run_id_does_not_merge_answers(collector: Collector) -> None:
    """Two questions under one caller-given run id are two traces, one after the other."""
    run_id = uuid.uuid4()
    for question in ("first", "second"):
        config: Any = {**collector.config(), "run_id": run_id}
        make_chain().invoke(question, config)
    first, second = collector.traces()
    check(first, "first")
    check(second, "second")
    assert first.root_run_id == second.root_run_id == run_id


def test_host_metadata_is_kept_without_credentials(collector: Collector) -> None:
    """Session, tags and the host's own metadata are kept; what looks like a credential is not."""
    metadata = {
        "session_id": "s-7",
        "team": "ops",
        "openai_api_key": "sk-1",
        "auth_token": "t",
        "monkey": "kept",
    }
    config: Any = {**collector.config(), "metadata": metadata, "tags": ["blue"]}
    make_chain().invoke("q", config)
    trace = collector.only()
    assert trace.session_id == "s-7"
    assert trace.tags == ("blue",)
    assert {key for key in trace.metadata if key != "ragblame"} == {"session_id", "team", "monkey"}


def test_record_retrieval_joins_the_run(collector: Collector) -> None:
    """Own searches are told inside a step or right before the call, and are used once."""

    def search(question: str) -> str:
        ragblame.record_retrieval([Document("Inside.", id="in")], source_table="own.table")
        return "Inside."

    inside = RunnableLambda(search) | FakeListChatModel(responses=[ANSWER])
    inside.invoke("one", collector.config())
    ragblame.record_retrieval([(Document("Before.", id="out"), 0.5)])
    FakeListChatModel(responses=[ANSWER]).invoke("two", collector.config())
    FakeListChatModel(responses=[ANSWER]).invoke("three", collector.config())
    first, second, third = collector.traces()
    assert [(chunk.source_id, chunk.source_table) for chunk in first.chunks] == [("in", "own.table")]
    assert [(chunk.source_id, chunk.score) for chunk in second.chunks] == [("out", 0.5)]
    assert third.chunks == ()


def test_chains_with_handlers_can_be_copied_and_pickled(collector: Collector) -> None:
    """Deep copies share the handler, pickles keep its options, and what comes back still records."""
    handler = collector.handler("app", source_table="public.notes")
    chain = make_chain().with_config(callbacks=[handler])
    copied = copy.deepcopy(chain)
    copied.invoke("q")
    check(collector.only(), "q")
    restored = pickle.loads(pickle.dumps(handler))
    assert (restored.app, restored.source_table, restored.explicit) == ("app", "public.notes", True)
    assert copy.copy(handler) is handler


class Poison:
    """A host object that fails whatever is asked of it."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"do not touch {name}")


def test_no_event_can_make_the_handler_raise() -> None:
    """Nonsense in every argument of every event is swallowed and counted, and leaves no run behind."""
    handler = BlameHandler(sink=id)
    before = counters.snapshot().get("capture_faults", 0)
    cycle: dict[Any, Any] = {"input": "q"}
    cycle["input"] = cycle
    values = [None, Poison(), cycle, [Poison()], {"messages": [Poison()]}, "\0\ud800", object(), 3.5, [[]]]
    starts = ("chain", "llm", "chat_model", "retriever", "tool")
    for value in values:
        for kind in starts:
            run_id = uuid.uuid4()
            getattr(handler, f"on_{kind}_start")(value, value, run_id=run_id, metadata=value, tags=value)
            end = "llm" if kind == "chat_model" else kind
            getattr(handler, f"on_{end}_end")(value, run_id=run_id)
            getattr(handler, f"on_{end}_error")(ValueError(), run_id=run_id, response=value)
            tree = open_runs.find(run_id)
            if tree is not None:
                open_runs.seal(tree)
    assert counters.snapshot()["capture_faults"] > before
    assert len(open_runs) == 0


def test_hostile_inputs_do_not_hurt_the_chain(collector: Collector) -> None:
    """Locks, cycles, megabytes and unstorable characters in inputs and metadata are captured or left out."""
    cycle: dict[str, Any] = {"question": "q\0\ud800", "lock": threading.Lock(), "big": "x" * 5_000_000}
    cycle["self"] = cycle
    answer = RunnableLambda(lambda inputs: inputs["question"]) | make_chain()
    config: Any = {
        **collector.config(),
        "metadata": {"nan": float("nan"), "lock": threading.Lock(), "deep": [[[[[[[[[[]]]]]]]]]]},
    }
    assert answer.invoke(cycle, config) == ANSWER
    trace = collector.only()
    assert trace.question == "q\0\ud800"
    assert len(trace.chunks) == 2


def test_handlers_cost_no_threads_and_no_memory(collector: Collector) -> None:
    """A new handler per request, and errors: threads stay, open runs and memory do not grow."""
    chain = make_chain()

    def fail(text: str) -> str:
        raise ZeroDivisionError

    failing = chain | RunnableLambda(fail)

    def ask(times: int) -> None:
        for _ in range(times):
            chain.invoke("q", {"callbacks": [BlameHandler(sink=id)]})
            with pytest.raises(ZeroDivisionError):
                failing.invoke("q", {"callbacks": [BlameHandler(sink=id)]})
        collector.traces()
        gc.collect()

    ask(30)
    threads = threading.active_count()
    tracemalloc.start()
    ask(10)
    before = tracemalloc.get_traced_memory()[0]
    ask(60)
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert threading.active_count() <= threads
    assert len(open_runs) == 0
    # tombstones of finished runs are bounded (20 000 of about 200 bytes): 8 runs a chain here
    assert grown / 120 < 6_000


def test_open_runs_are_bounded_by_count_bytes_and_age() -> None:
    """Runs that never end are given up, the least recently active first, and counted."""
    runs = OpenRuns(max_runs=10, max_bytes=1_000_000, idle_seconds=3_600)
    ids = [uuid.uuid4() for _ in range(30)]
    before = counters.snapshot().get("evicted_runs", 0)
    for run_id in ids:
        runs.start(run_id, None, 1)
        for tree in runs.overdue():
            runs.seal(tree)
    assert len(runs) <= 11
    assert runs.find(ids[0]) is None
    assert runs.find(ids[-1]) is not None
    assert counters.snapshot()["evicted_runs"] >= before + 19

    heavy = OpenRuns(max_bytes=1_000)
    large, _ = heavy.start(uuid.uuid4(), None, 1)
    assert large is not None
    heavy.hold(large, "x" * 2_000)
    assert heavy.overdue() == [large]
    heavy.seal(large)
    heavy.hold(large, "late text is not held")
    assert heavy.overdue() == []

    old = OpenRuns(idle_seconds=0.0)
    idle, _ = old.start(uuid.uuid4(), None, 1)
    assert old.overdue() == [idle]


def test_late_children_of_a_finished_tree_are_ignored() -> None:
    """A run that starts under a finished root does not become a root of its own."""
    runs = OpenRuns()
    root, child = uuid.uuid4(), uuid.uuid4()
    tree, is_news = runs.start(root, None, 1)
    assert is_news
    assert tree is not None
    runs.seal(tree)
    assert runs.start(child, root, 1) == (None, False)
    assert not runs.seal(tree)
    assert runs.start(uuid.uuid4(), uuid.uuid4(), 1)[1]  # an unknown parent is something else
