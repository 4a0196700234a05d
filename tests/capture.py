"""Chains to capture, made of LangChain's own parts, and a recorder that hands traces to the test."""

import asyncio
from collections.abc import Callable, Iterator
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

from ragblame.plugin import recorder as recorder_module
from ragblame.plugin.handler import BlameHandler
from ragblame.plugin.recorder import Recorder
from ragblame.records import Trace
from ragblame.settings import Settings

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
