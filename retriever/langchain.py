"""The hybrid search as a LangChain retriever whose documents say who they are, at which rank, and why.

LangChain's own vector-store retrievers drop row ids' home, ranks and scores; attribution and the corpus probe
need all three, so they travel in each document's id and metadata.
"""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever, LangSmithRetrieverParams
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from pydantic import Field, PrivateAttr

from ragblame.corpus import MAX_K
from ragblame.errors import InputError
from ragblame.retriever.chunks import SOURCE_TABLE
from ragblame.retriever.embedding_models import EmbeddingModel, find_model, name_of
from ragblame.retriever.search import Hit, search, search_async

SCORE_NAME = "rrf"  # what metadata["score"] is: reciprocal-rank fusion


class HybridRetriever(BaseRetriever):
    """Retrieve chunks by vector and words together, as ``Document`` with ``id`` = row id of ragblame.chunk.

    ``HybridRetriever(pool=open_pool(url), embeddings=MiniLMEmbeddings(), k=4)``. Metadata holds the chunk's
    own keys and, over them: rank (1-based), score, score_name ("rrf"), vector_rank, vector_distance,
    text_rank, text_score, source, title, document_id, source_table ("ragblame.chunk").
    Calls raise ``InputError`` when nothing was ingested with these embeddings, else as ``search`` does.
    """

    pool: ConnectionPool[Any]  # opened, and closed, by the caller
    embeddings: Embeddings
    model: str | None = None  # name the corpus was ingested under; None: the embeddings' own
    k: int = Field(default=4, ge=1, le=MAX_K)
    filter: dict[str, Any] | None = None  # keep chunks whose metadata contains this
    depth: int | None = Field(default=None, ge=1, le=MAX_K)  # length of both lists before fusion
    # with a pool of asynchronous connections ``ainvoke`` stays on the loop; without, it searches in a thread
    async_pool: AsyncConnectionPool[Any] | None = None

    _registered: EmbeddingModel | None = PrivateAttr(default=None)

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun
    ) -> list[Document]:
        return self._search(query, self.embeddings.embed_query(query))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun
    ) -> list[Document]:
        vector = await self.embeddings.aembed_query(query)
        if self.async_pool is None:
            return await asyncio.to_thread(self._search, query, vector)
        if self._registered is None:
            await asyncio.to_thread(self._find_model)
        model = self._registered
        assert model is not None  # found, or an error was raised
        async with self.async_pool.connection() as conn:
            hits = await search_async(
                conn, query, vector, model, k=self.k, filter=self.filter, depth=self.depth
            )
        return [to_document(hit) for hit in hits]

    def _get_ls_params(self, **kwargs: Any) -> LangSmithRetrieverParams:
        """How it searches, so that a callback can tell why a row was not retrieved."""
        said = super()._get_ls_params(**kwargs)
        told = {"k": self.k, "filter": self.filter, "search_type": "hybrid"}
        return cast(LangSmithRetrieverParams, {**said, "ragblame_retrieval": told})

    def _search(self, query: str, vector: list[float]) -> list[Document]:
        model = self._registered or self._find_model()
        with self.pool.connection() as conn:
            hits = search(conn, query, vector, model, k=self.k, filter=self.filter, depth=self.depth)
        return [to_document(hit) for hit in hits]

    def _find_model(self) -> EmbeddingModel:
        name = self.model or name_of(self.embeddings)
        with self.pool.connection() as conn:
            model = find_model(conn, name)
        if model is None:
            raise InputError(
                f"nothing is ingested under the embedding model {name}: run `ragblame ingest PATH`, or name "
                "the model that the corpus was ingested with"
            )
        self._registered = model  # never changes once registered
        return model


def to_document(hit: Hit) -> Document:
    """A hit as LangChain's record; our keys win over equal ones of the chunk's own metadata."""
    metadata: Mapping[str, Any] = {
        **hit.metadata,
        "source": hit.source,
        "title": hit.title,
        "document_id": str(hit.document_id),
        "source_table": SOURCE_TABLE,
        "rank": hit.rank,
        "score": hit.score,
        "score_name": SCORE_NAME,
        "vector_rank": hit.vector_rank,
        "vector_distance": hit.vector_distance,
        "text_rank": hit.text_rank,
        "text_score": hit.text_score,
    }
    return Document(id=str(hit.chunk_id), page_content=hit.text, metadata=dict(metadata))
