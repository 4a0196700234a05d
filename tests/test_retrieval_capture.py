"""How a retriever searched is kept with the trace, so that a missed row can be explained."""

import asyncio
import uuid
from collections.abc import Iterator
from datetime import UTC, date, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListChatModel
from langchain_core.runnables import Runnable, RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore, VectorStoreRetriever

import ragblame
from ragblame import database
from ragblame.corpus import Retrieval, retrieval_of
from ragblame.plugin.retrieval import UNREADABLE, note_of, read_retrieval
from ragblame.records import Json, Trace
from ragblame.retriever.langchain import HybridRetriever
from tests.capture import ANSWER, Collector, collecting, join
from tests.probe_corpus import Conn, PlantedEmbeddings, store


@pytest.fixture
def collector() -> Iterator[Collector]:
    """Nothing of ours may fail."""
    with collecting() as made:
        yield made


def chain_of(retriever: Runnable[str, Any]) -> Runnable[str, Any]:
    """A search and a model that has read it."""
    return retriever | RunnableLambda(join) | FakeListChatModel(responses=[ANSWER])


def retriever_of(**options: Any) -> VectorStoreRetriever:
    """LangChain's own retriever over two texts."""
    found = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    found.add_texts(["The port is 2959.", "The cache is large."])
    return found.as_retriever(**options)


def noted(trace: Trace) -> Any:
    """What the trace tells about its search."""
    ours = trace.metadata["ragblame"]
    assert isinstance(ours, dict)
    return ours.get("retrieval")


def test_a_told_retriever_says_how_it_searches(collector: Collector) -> None:
    """k, filter and search type stand in the trace, sync and async; the retriever itself stays as it was."""
    plain = retriever_of(search_type="mmr", search_kwargs={"k": 2, "fetch_k": 2})
    told = ragblame.tell_search(plain, filter={"tenant": "north"})
    assert plain.metadata is None
    chain_of(told).invoke("port?", collector.config())
    asyncio.run(chain_of(told).ainvoke("port?", collector.config()))
    wanted = {"k": 2, "filter": {"tenant": "north"}, "search_type": "mmr"}
    first, second = collector.traces()
    assert noted(first) == noted(second) == wanted
    assert retrieval_of(first) == Retrieval(k=2, filter={"tenant": "north"}, search_type="mmr")


def test_a_retriever_that_tells_nothing_leaves_nothing(collector: Collector) -> None:
    """LangChain keeps both from callbacks: nothing is made up."""
    chain_of(retriever_of(search_kwargs={"k": 2})).invoke("port?", collector.config())
    trace = collector.only()
    assert noted(trace) is None
    assert retrieval_of(trace) == Retrieval()


def test_langchains_default_k_is_told() -> None:
    """Without search_kwargs a vector store is asked for four rows; 4 is LangChain's own default."""
    told = ragblame.tell_search(retriever_of())
    assert told.metadata is not None
    assert told.metadata["ragblame_retrieval"] == {"k": 4, "search_type": "similarity"}


def test_an_own_search_may_say_how(collector: Collector) -> None:
    """record_retrieval takes k, filter and search type as it takes the query."""

    def search(question: str) -> str:
        ragblame.record_retrieval(
            [Document("Inside.", id="in")], query="rewritten", k=7, filter={"year": {"$gte": 2020}}
        )
        return "Inside."

    (RunnableLambda(search) | FakeListChatModel(responses=[ANSWER])).invoke("q", collector.config())
    assert noted(collector.only()) == {"k": 7, "filter": {"year": {"$gte": 2020}}}


def test_our_own_retriever_tells_by_itself(collector: Collector, connection: Conn, database_url: str) -> None:
    """The hybrid retriever says k and filter without anybody's help, and what kind of search it is."""
    embeddings = PlantedEmbeddings()
    store(connection, embeddings, {"a": ["The port is 2959."]}, tenant="north")
    with database.open_pool(database_url, min_size=1, max_size=1) as pool:
        own = HybridRetriever(pool=pool, embeddings=embeddings, k=3, filter={"tenant": "north"})
        chain_of(own).invoke("port?", collector.config())
    trace = collector.only()
    assert retrieval_of(trace) == Retrieval(k=3, filter={"tenant": "north"}, search_type="hybrid")
    assert "ragblame_retrieval" not in trace.metadata


@pytest.mark.parametrize(
    "filter",
    [
        lambda document: True,
        "tenant = 'north'",
        {"tenant": object()},
        {1: "a number as a name"},
        {"tenant": "x" * 2_000},
        {"ids": {"$in": list(range(1_000))}},
        {"a": {"b": {"c": {"d": {"e": {"f": {"g": {"h": 1}}}}}}}},
        {"score": float("nan")},
    ],
)
def test_half_a_filter_is_no_filter(filter: Any) -> None:
    """What cannot be kept whole is said to be lost: the index must not be blamed for a filter."""
    told = note_of(4, filter, None)
    assert told == {"k": 4, "filter": UNREADABLE}
    ours: dict[str, Json] = {"retrieval": dict(told)}
    trace = Trace(
        id=uuid.UUID(int=1), app="t", question="q", started_at=datetime.now(UTC), metadata={"ragblame": ours}
    )
    assert retrieval_of(trace) == Retrieval(k=4, is_filter_lost=True)


def test_plain_values_of_a_filter_are_kept() -> None:
    """Dates and ids become text, sets and tuples lists, as a filter over JSON compares them."""
    row = uuid.UUID(int=7)
    given = {"day": date(2026, 1, 2), "id": {"$in": (row,)}, "is_open": True, "n": 1.5}
    told = note_of(None, given, None)
    assert told == {"filter": {"day": "2026-01-02", "id": {"$in": [str(row)]}, "is_open": True, "n": 1.5}}


@pytest.mark.parametrize("k", [True, 0, -1, "4", 4.0, None, 1 << 40])
def test_what_is_no_k_is_left_out(k: Any) -> None:
    """Only a positive whole number counts rows."""
    assert note_of(k, None, None) is None


json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)


@given(said=json_like, serialized=json_like)
def test_any_metadata_is_read_without_harm(said: Any, serialized: Any) -> None:
    """Whatever a retriever carries, at most three known keys come out, and nothing is raised."""
    for metadata in (said, {"ragblame_retrieval": said}):
        told = read_retrieval(metadata, {"kwargs": {"search_kwargs": serialized, "search_type": said}})
        assert set(told or {}) <= {"k", "filter", "search_type"}
