"""Our own corpus in PostgreSQL: ingest, hybrid search, and a LangChain retriever that tells its scores."""
