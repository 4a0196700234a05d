"""A working retrieval chain in which every part can be at fault: rewriter, retriever, format, instruction.

LangChain's own parts in the demo's order, with the demo's prompt; ``Parts()`` is the chain without a fault.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from psycopg import sql
from psycopg.rows import tuple_row
from psycopg.types.json import Jsonb
from psycopg_pool import ConnectionPool

from ragblame.plugin.retrieval import tell_search
from ragblame.retriever.chunks import SOURCE_TABLE
from ragblame.retriever.embedding_models import EmbeddingModel, vector_text
from ragblame.retriever.langchain import HybridRetriever
from ragblame.ui.demo.chain import INSTRUCTION

K: Final = 5  # as in the demo
EF_SEARCH: Final = 100  # as our own retriever sets it

# Fewer rows than asked for, when the index is left so small a list: what pgvector does unless told otherwise.
_SETTINGS: Final = (
    "SELECT set_config('hnsw.ef_search', %s, true), set_config('hnsw.iterative_scan', %s, true), "
    "set_config('ivfflat.probes', %s, true)"
)
_NEAREST = sql.SQL(
    "SELECT c.id::text, c.text, c.embedding::{type} <=> %(vector)s::{type} FROM ragblame.chunk c "
    "WHERE c.model_id = {model} {filter} "
    "ORDER BY c.embedding::{type} <=> %(vector)s::{type} LIMIT %(k)s"
)


def as_bullets(documents: Sequence[Document]) -> str:
    """The context as the small model was trained to read it."""
    return "\n".join(f"- {document.page_content}" for document in documents)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a chain is made of."""

    is_hybrid: bool = False  # our own retriever; False: nearest vectors and nothing else, as most hosts have
    k: int = K
    filter: dict[str, Any] | None = None
    ef_search: int = EF_SEARCH  # of the plain search
    probes: int = 1  # of the plain search, where the index is an inverted file
    rewrite: Callable[[str], str] | None = None
    format: Callable[[Sequence[Document]], str] = as_bullets
    instruction: str = INSTRUCTION


class NearestRetriever(BaseRetriever):
    """The nearest vectors by the index, and nothing else: what a vector store's retriever does."""

    pool: ConnectionPool[Any]
    embeddings: Embeddings
    model: EmbeddingModel
    k: int = K
    filter: dict[str, Any] | None = None
    ef_search: int = EF_SEARCH
    probes: int = 1

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        statement = _NEAREST.format(
            type=self.model.halfvec,
            model=sql.Literal(self.model.id),
            filter=sql.SQL("" if self.filter is None else "AND c.metadata @> %(filter)s"),
        )
        given = {
            "vector": vector_text(self.embeddings.embed_query(query), self.model),
            "filter": Jsonb(self.filter),
            "k": self.k,
        }
        iterative = "strict_order" if self.ef_search >= EF_SEARCH else "off"
        with (
            self.pool.connection() as conn,
            conn.transaction(),
            conn.cursor(row_factory=tuple_row) as cursor,
        ):
            cursor.execute(_SETTINGS, (str(self.ef_search), iterative, str(self.probes)))
            rows = cursor.execute(statement, given, prepare=False).fetchall()
        return [
            Document(id=id, page_content=text, metadata={"distance": distance, "source_table": SOURCE_TABLE})
            for id, text, distance in rows
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """What every chain of the evaluation shares."""

    pool: ConnectionPool[Any]
    embeddings: Embeddings
    embedding_model: EmbeddingModel
    chat_model: BaseChatModel

    def retriever(self, parts: Parts) -> BaseRetriever:
        """The retriever of a chain."""
        if parts.is_hybrid:
            return HybridRetriever(pool=self.pool, embeddings=self.embeddings, k=parts.k, filter=parts.filter)
        nearest = NearestRetriever(
            pool=self.pool,
            embeddings=self.embeddings,
            model=self.embedding_model,
            k=parts.k,
            filter=parts.filter,
            ef_search=parts.ef_search,
            probes=parts.probes,
        )
        return tell_search(nearest, search_type="similarity")  # the host's one line for a retriever not ours

    def chain(self, parts: Parts) -> Runnable[str, str]:
        """A question in, an answer out."""
        search: Runnable[str, list[Document]] = self.retriever(parts)
        if parts.rewrite is not None:
            search = RunnableLambda(parts.rewrite) | search
        prompt = ChatPromptTemplate.from_messages(
            [("system", "{instruction}\n{context}"), ("human", "Question: {question}")]
        ).partial(instruction=parts.instruction)
        steps: dict[str, Any] = {
            "context": search | RunnableLambda(parts.format),
            "question": RunnablePassthrough(),
        }
        chain: Runnable[str, str] = steps | prompt | self.chat_model | StrOutputParser()
        return chain.with_config(run_name="runbook questions")
