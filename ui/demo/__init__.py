"""The demo: a real chain over real PostgreSQL whose wrong answers happen by themselves."""
