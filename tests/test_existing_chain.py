"""The example: a chain on PGVectorStore that knows nothing of us, captured by one added line."""

import os
import re
import subprocess
import sys
from pathlib import Path

import psycopg

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "existing_chain.py"


def run_example(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the example as a reader of the README would."""
    return subprocess.run(
        [sys.executable, str(EXAMPLE), *arguments],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_captured_chunks_are_the_tables_rows(database_url: str) -> None:
    """Twice in a row: the printed ids are ids of the application's table, and so are those we stored."""
    for _ in range(2):
        done = run_example("--database", database_url)
        assert done.returncode == 0, done.stderr
        assert "answer:   The Kestrel gateway listens on port 2959." in done.stdout
        printed = re.findall(r"chunk:    public\.example_runbook ([0-9a-f-]{36}): the same row", done.stdout)
        assert len(printed) == 2
        with psycopg.connect(database_url) as conn:
            rows = {
                str(row[0]): row[1]
                for row in conn.execute("SELECT langchain_id, content FROM public.example_runbook").fetchall()
            }
            stored = conn.execute(
                "SELECT source_table, source_id, text FROM ragblame.trace_chunk "
                "JOIN ragblame.chunk_text USING (sha256) WHERE trace_id = "
                "(SELECT id FROM ragblame.trace ORDER BY id DESC LIMIT 1) ORDER BY position"
            ).fetchall()
        assert [row[1] for row in stored] == printed
        assert all(table == "public.example_runbook" and rows[key] == text for table, key, text in stored)


def test_one_line_is_added() -> None:
    """The application's half of the example does not mention us; the other half adds one marked line."""
    text = EXAMPLE.read_text("utf-8")
    application = text.split("# The existing application")[1].split("# What ragblame adds")[0]
    assert "ragblame" not in application
    assert len(re.findall(r"^ +ragblame\.attach\(.*# <-- the one added line$", text, re.MULTILINE)) == 1


def test_an_unreachable_database_is_one_clear_line() -> None:
    """With a wrong address the example ends with our error's text and no trace of a half-done capture."""
    done = run_example("--database", "postgresql://nobody@127.0.0.1:1/nothing")
    assert done.returncode != 0
    assert "nothing listens there" in done.stderr
