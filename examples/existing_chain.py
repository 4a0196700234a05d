"""An existing LangChain chain over an existing table, and the one line that makes its answers traceable.

The application below is langchain-postgres's PGVectorStore with a prompt and a chat model; it knows nothing
of ragblame. Its embeddings and its model are small and local, so the example runs without any network.

    python examples/existing_chain.py [--database postgresql://user:password@host/database]

Without --database the configured database is used, else the embedded server.
"""

import argparse
import hashlib
import os
import re
from typing import Any

from langchain_core.callbacks import CallbackManagerForLLMRun
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import SimpleChatModel
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnablePassthrough
from langchain_postgres import PGEngine, PGVectorStore
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import URL

import ragblame
from ragblame import database
from ragblame.settings import load_settings

TABLE = "example_runbook"
QUESTION = "Which port does the Kestrel gateway listen on?"
RUNBOOK = [
    "The Kestrel gateway listens on port 2959. It is restarted by systemd.",
    "The Merlin queue keeps messages for seven days, then drops them.",
    "The Osprey database fails over to Oslo within thirty seconds.",
    "Backups of the Kestrel gateway configuration run every night at two.",
]


# The existing application -----------------------------------------------------------------------------------


class WordEmbeddings(Embeddings):
    """Counts of hashed words: poor, but local and the same on every machine."""

    size = 256

    def embed_query(self, text: str) -> list[float]:
        vector = [0.0] * self.size
        for word in re.findall(r"\w+", text.lower()):
            vector[int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "big") % self.size] += 1.0
        return vector

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


class QuotingModel(SimpleChatModel):
    """Answers with the sentence of its prompt that shares most words with the question."""

    @property
    def _llm_type(self) -> str:
        return "quoting"

    def _call(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> str:
        asked = set(re.findall(r"\w+", messages[-1].text.lower()))
        sentences: list[str] = re.findall(r"[^.\n]+\.", messages[0].text)
        return max(sentences, key=lambda said: len(asked & set(re.findall(r"\w+", said.lower())))).strip()


def build_chain(url: str) -> Runnable[str, str]:
    """Fill the application's own table and put retriever, prompt and model in a row."""
    known = conninfo_to_dict(url)
    engine = PGEngine.from_connection_string(
        URL.create(
            "postgresql+psycopg",
            username=str(known.get("user") or "") or None,
            password=str(known.get("password") or "") or None,
            host=str(known.get("host") or "") or None,
            port=int(str(known["port"])) if known.get("port") else None,
            database=str(known.get("dbname") or "") or None,
        )
    )
    engine.init_vectorstore_table(TABLE, WordEmbeddings.size, overwrite_existing=True)
    store = PGVectorStore.create_sync(engine, embedding_service=WordEmbeddings(), table_name=TABLE)
    store.add_texts(RUNBOOK)
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer from these notes:\n\n{context}"), ("human", "{question}")]
    )

    def join(documents: list[Document]) -> str:
        return "\n\n".join(document.page_content for document in documents)

    retriever = store.as_retriever(search_kwargs={"k": 2})
    chain: Runnable[str, str] = (
        {"context": retriever | join, "question": RunnablePassthrough()}
        | prompt
        | QuotingModel()
        | StrOutputParser()
    )
    return chain


# What ragblame adds -----------------------------------------------------------------------------------------


def main() -> None:
    """Ask one question and show that the captured chunks are the table's rows."""
    parser = argparse.ArgumentParser(description="Capture a chain that knows nothing of ragblame.")
    parser.add_argument("--database", help="libpq URL; default: the configured or the embedded database")
    arguments = parser.parse_args()
    if arguments.database:
        os.environ["RAGBLAME_DATABASE_URL"] = arguments.database
    url = database.resolve_url(load_settings())
    database.migrate(url)  # once per database; `ragblame migrate` does the same

    ragblame.attach(app="runbook", source_table=f"public.{TABLE}")  # <-- the one added line

    print(f"question: {QUESTION}")
    print(f"answer:   {build_chain(url).invoke(QUESTION)}")

    ragblame.flush()  # the writer works in the background; a long-lived service needs no such call
    with database.connect(url) as conn:
        trace = conn.execute("SELECT id FROM trace WHERE app = 'runbook' ORDER BY id DESC LIMIT 1").fetchone()
        captured = conn.execute(
            "SELECT source_table, source_id, text FROM trace_chunk JOIN chunk_text USING (sha256) "
            "WHERE trace_id = %s ORDER BY position",
            trace,
        ).fetchall()
        rows: dict[str, str] = dict(
            conn.execute(f"SELECT langchain_id::text, content FROM public.{TABLE}".encode()).fetchall()
        )
    print(f"trace:    {trace[0] if trace else 'none'}")
    for table, row_id, text in captured:
        same = "the same row" if rows.get(row_id) == text else "NOT in the table"
        print(f"chunk:    {table} {row_id}: {same}: {text}")
    if not captured or any(rows.get(row_id) != text for _, row_id, text in captured):
        raise SystemExit("the captured chunks are not the table's rows")


if __name__ == "__main__":
    main()
