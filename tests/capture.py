"""Chains to capture, made of LangChain's own parts, and a recorder that hands traces to the test."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from pydantic import SecretStr

import ragblame
from ragblame.plugin import recorder as recorder_module
from ragblame.plugin.counters import counters
from ragblame.plugin.handler import BlameHandler
from ragblame.plugin.recorder import Recorder
from ragblame.plugin.run_tree import open_runs
from ragblame.records import Json, Trace, TraceStatus
from ragblame.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
ANSWER = "The port is 2959."


class NotesRetriever(BaseRetriever):
    """Returns two rows whose text names the query, so that a mix-up between runs shows."""

    delay: float = 0.0

    def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        return [
            Document(
                id=f"row-{number}",
                page_content=f"Note {number} about {query}.",
                metadata={"score": 1 / number, "source": "notes.md"},
            )
            for number in (1, 2)
        ]

    async def _aget_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        await asyncio.sleep(self.delay)
        return self._get_relevant_documents(query)


def join(documents: list[Document]) -> str:
    """The usual format_docs."""
    return "\n\n".join(document.page_content for document in documents)


PROMPT = ChatPromptTemplate.from_messages([("system", "Answer from:\n{context}"), ("human", "{question}")])


def make_chain(
    model: Runnable[Any, Any] | None = None, retriever: Runnable[str, Any] | None = None
) -> Runnable[str, str]:
    """Retriever | join, prompt, model, parser: takes a question, gives a text."""
    chain: Runnable[str, str] = (
        {"context": (retriever or NotesRetriever()) | RunnableLambda(join), "question": RunnablePassthrough()}
        | PROMPT
        | (model or FakeListChatModel(responses=[ANSWER]))
        | StrOutputParser()
    )
    return chain


def step(function: Callable[..., Any]) -> Runnable[Any, Any]:
    """A function as a step of a chain, whatever its types."""
    return RunnableLambda(function)


class Collector:
    """Collects what a handler records; ``handler()`` makes one, ``traces()`` waits and gives what came."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.collected: list[Trace] = []

    def handler(self, app: str | None = None, **options: Any) -> BlameHandler:
        """A handler whose traces come here instead of a database."""
        return BlameHandler(app, sink=self.collected.append, **options)

    def config(self) -> Any:
        """A run configuration with a fresh handler."""
        return {"callbacks": [self.handler()]}

    def traces(self) -> list[Trace]:
        """Everything recorded so far, in order of their start."""
        self.recorder.flush(10)
        return sorted(self.collected, key=lambda trace: trace.id)

    def only(self) -> Trace:
        """The one trace that there must be."""
        traces = self.traces()
        assert len(traces) == 1, [trace.question for trace in traces]
        return traces[0]


@contextmanager
def collecting(*, faults: int | None = 0) -> Iterator[Collector]:
    """A collector; at its end nothing of ours may have failed (None: it may) and no run may be left open."""
    before = counters.snapshot().get("capture_faults", 0)
    with installed() as recorder:
        collector = Collector(recorder)
        yield collector
        collector.traces()
    ragblame.detach()
    if faults is not None:
        assert counters.snapshot().get("capture_faults", 0) == before + faults
    assert len(open_runs) == 0


@contextmanager
def installed(load_settings: Callable[[], Settings] | None = None) -> Iterator[Recorder]:
    """A recorder of the test's own in place of the process's; closed at the end."""
    recorder = Recorder(load_settings)
    before = recorder_module.install(recorder)
    try:
        yield recorder
    finally:
        recorder_module.install(before)
        recorder.close(10)


def settings_for(url: str | None, data_dir: Path, **changes: Any) -> Callable[[], Settings]:
    """A loader of settings that point at a database and a data folder of the test's own."""
    secret = None if url is None else SecretStr(url)
    return lambda: Settings(database_url=secret, data_dir=data_dir, **changes)


def notes_of(trace: Trace) -> dict[str, Any]:
    """What the capture itself remarked about the trace."""
    notes: Json = trace.metadata["ragblame"]
    assert isinstance(notes, dict)
    return notes


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


async def drain(stream: Any) -> None:
    """Read a stream to its end."""
    async for _ in stream:
        pass


def run_apart(
    body: str, *, environment: dict[str, str] | None = None, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run Python in a fresh process, as a user's service is; this folder's chains can be imported there."""
    return subprocess.run(
        [sys.executable, *options, "-c", body],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
