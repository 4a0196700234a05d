"""The demo's host chain: LangChain parts only, knowing nothing of ragblame but the retriever's table.

It exists to be attached to, exactly as a user's own chain is: retriever | prompt | chat model | parser.
"""

from collections.abc import Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough

INSTRUCTION = "Answer the question from the context."


def build_chain(retriever: BaseRetriever, model: BaseChatModel) -> Runnable[str, str]:
    """A question in, an answer out; the prompt is the one form the small model was trained on."""
    prompt = ChatPromptTemplate.from_messages(
        [("system", INSTRUCTION + "\n{context}"), ("human", "Question: {question}")]
    )
    steps: dict[str, Any] = {
        "context": retriever | RunnableLambda(_as_bullets),
        "question": RunnablePassthrough(),
    }
    chain: Runnable[str, str] = steps | prompt | model | StrOutputParser()
    return chain.with_config(run_name="runbook questions")


def _as_bullets(documents: Sequence[Document]) -> str:
    return "\n".join(f"- {document.page_content}" for document in documents)
