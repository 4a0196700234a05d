"""The chain that capture_overhead.py runs: LangChain's own retrieval chain, fifteen runs, no network.

`create_retrieval_chain` and `create_stuff_documents_chain` are built here from the same parts, so that no
further package is needed. Retriever and model answer at once and are asynchronous where they may be.
"""

import random
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, Final

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from zipf_corpus import ZipfCorpus

RUNS: Final = 15
CORPUS: Final = ZipfCorpus(random.Random(5), length=85)  # about 600 characters each
_pick: Final = random.Random(6)
QUESTION: Final = "Which port does the Kestrel gateway use?"
ANSWER: Final = "The Kestrel gateway uses port 2959 , as notes 0 to 7 say . " * 3
TOKENS: Final = tuple(f"{word} " for word in ANSWER.split())


class PopularRetriever(BaseRetriever):
    """Returns eight chunks, popular ones more often, with an identity and a score."""

    def _get_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        return [
            Document(
                id=str(index),
                page_content=CORPUS.texts[index],
                metadata={"score": 1 / rank, "source": f"notes/{index}.md"},
            )
            for rank, index in enumerate(CORPUS.search(_pick), start=1)
        ]

    async def _aget_relevant_documents(self, query: str, **kwargs: Any) -> list[Document]:
        return self._get_relevant_documents(query)


class FixedModel(BaseChatModel):
    """Gives one answer, whole or word by word."""

    model_name: str = "fixed-1"

    @property
    def _llm_type(self) -> str:
        return "fixed"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model_name": self.model_name}

    def _generate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content="".join(TOKENS)))])

    async def _agenerate(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return self._generate(messages)

    def _stream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for token in TOKENS:
            yield ChatGenerationChunk(message=AIMessageChunk(content=token))

    async def _astream(
        self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in self._stream(messages):
            yield chunk


def make_chain() -> Runnable[Any, Any]:
    """The chain; takes ``{"input": question}``."""
    prompt = ChatPromptTemplate.from_messages([("system", "Answer from:\n{context}"), ("human", "{input}")])
    retrieve = RunnableLambda(_question) | PopularRetriever()
    format_inputs: Runnable[Any, Any] = RunnablePassthrough.assign(context=RunnableLambda(_join))
    answer = format_inputs.with_config(run_name="format_inputs") | prompt | FixedModel() | StrOutputParser()
    chain: Runnable[Any, Any] = RunnablePassthrough.assign(
        context=retrieve.with_config(run_name="retrieve_documents")
    ).assign(answer=answer.with_config(run_name="stuff_documents_chain"))
    return chain.with_config(run_name="retrieval_chain")


class RunCounter(BaseCallbackHandler):
    """Counts the runs that begin, the benchmark's word for fifteen, and notes the chunks that were found."""

    def __init__(self) -> None:
        self.runs = 0
        self.chunks: list[str] = []

    def on_chain_start(self, *args: Any, **kwargs: Any) -> None:
        """Count."""
        self.runs += 1

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        """Count."""
        self.runs += 1

    def on_retriever_start(self, *args: Any, **kwargs: Any) -> None:
        """Count."""
        self.runs += 1

    def on_retriever_end(self, documents: Sequence[Document], **kwargs: Any) -> None:
        """Note."""
        self.chunks += [document.page_content for document in documents]


def _question(inputs: dict[str, Any]) -> str:
    return str(inputs["input"])


def _join(inputs: dict[str, Any]) -> str:
    return "\n\n".join(document.page_content for document in inputs["context"])
