"""What the handler hears in real LangChain chains becomes the right trace, and never hurts the chain."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    Runnable,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)

import ragblame
from ragblame.records import TraceStatus
from ragblame.suppression import suppress_capture
from tests.capture import ANSWER, Collector, NotesRetriever, check, collecting, drain, join, make_chain


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Traces go to the test; nothing of ours may have failed at the end, and no run may be left open."""
    with collecting() as collector:
        yield collector


CALLS: dict[str, Any] = {
    "invoke": lambda chain, config: chain.invoke("q1", config),
    "stream": lambda chain, config: list(chain.stream("q1", config)),
    "batch": lambda chain, config: chain.batch(["q1", "q2", "q3"], config),
    "ainvoke": lambda chain, config: asyncio.run(chain.ainvoke("q1", config)),
    "astream": lambda chain, config: asyncio.run(drain(chain.astream("q1", config))),
    "astream_events": lambda chain, config: asyncio.run(
        drain(chain.astream_events("q1", config, version="v2"))
    ),
    "abatch": lambda chain, config: asyncio.run(chain.abatch(["q1", "q2", "q3"], config)),
}


@pytest.mark.parametrize("call", CALLS)
def test_every_way_to_call_a_chain(collector: Collector, call: str) -> None:
    """Invoke, stream, batch and their async twins give one complete trace per question."""
    CALLS[call](make_chain(), collector.config())
    traces = collector.traces()
    assert sorted(trace.question for trace in traces) == (["q1", "q2", "q3"] if "batch" in call else ["q1"])
    for trace in traces:
        check(trace, trace.question)


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


@pytest.mark.parametrize("where", ["metadata", "configurable"])
def test_a_session_links_the_turns_of_a_conversation(collector: Collector, where: str) -> None:
    """The session stands in the run's metadata, or in the configuration that steps run with."""
    config: Any = {**collector.config(), where: {"session_id": "s-7"}}
    make_chain().invoke("q", config)
    list(make_chain().stream("q", config))
    asyncio.run(make_chain().ainvoke("q", config))
    assert [trace.session_id for trace in collector.traces()] == ["s-7"] * 3
