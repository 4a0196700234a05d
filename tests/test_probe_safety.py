"""The probe cannot write, takes no name that the catalogue has not, and makes no SQL of a text or filter."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from ragblame import database
from ragblame.corpus import ProbeRequest, ProbeText
from ragblame.errors import DatabaseError, InputError
from ragblame.retriever import probe_clock, probe_words
from ragblame.retriever.probe import TableProbe
from ragblame.retriever.sources import CorpusSource, our_corpus, source_from
from tests.probe_corpus import Conn, PlantedEmbeddings, random_vector, reader, store

REQUEST = ProbeRequest(question="Which port?", claim="It is port 4000.", value="4000")
PLAIN = CorpusSource(table="notes", id="id", text="body", vector="v", metadata="extra")
HOSTILE = (
    'x"; DROP TABLE notes; --',
    "x'; DROP TABLE notes; --",
    "notes; DELETE FROM notes",
    "(SELECT 1)",
    "notes, pg_authid",
    "pg_sleep(10)",
    "NOTES",
    "notes ",
    'public"."notes',
    "*",
    "",
    "a" * 5_000,
    "n\u043etes",  # a Cyrillic o
    "x\0y",
    "\ud800",
    "%s%(id)s{id}",
)


@pytest.fixture
def notes(connection: Conn) -> Conn:
    """A foreign table of three notes."""
    with connection.transaction():
        connection.execute(
            "CREATE TABLE public.notes (id int PRIMARY KEY, body text, v vector(8), extra jsonb)"
        )
        for place, body in enumerate(["The port is 2959.", "A note.", "Another note."]):
            connection.execute(
                "INSERT INTO public.notes VALUES (%s, %s, %s::text::vector, %s::text::jsonb)",
                (place, body, str(random_vector(body)), '{"tenant": "a", "year": 2020}'),
            )
    return connection


@pytest.fixture
def reader_url(database_url: str, notes: Conn) -> Iterator[str]:
    """A role that may SELECT from the notes, and nothing else."""
    url = reader(database_url)
    with notes.transaction():
        notes.execute("GRANT SELECT ON public.notes TO probe_reader")
    yield url
    with notes.transaction():
        notes.execute("DROP OWNED BY probe_reader CASCADE")


def count(conn: Conn, table: str = "public.notes") -> int:
    """Rows of a table."""
    with conn.transaction():
        row = conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_a_role_with_select_only_is_enough(reader_url: str, notes: Conn) -> None:
    """Everything is answered by a role that may read one table."""
    with TableProbe(reader_url, PLAIN, PlantedEmbeddings()) as probe:
        report = probe.probe(replace(REQUEST, filter={"tenant": "a"}, retrieved=("1",)))
    assert {chunk.id for chunk in report.chunks} == {"0", "1", "2"}
    assert report.is_exact
    with psycopg.connect(reader_url) as conn, pytest.raises(psycopg.errors.InsufficientPrivilege):
        conn.execute("INSERT INTO public.notes VALUES (9)")


def test_a_right_that_lacks_is_named(database_url: str, reader_url: str, notes: Conn) -> None:
    """The message says what to grant, for a column and for our own corpus."""
    with notes.transaction():
        notes.execute("REVOKE ALL ON public.notes FROM probe_reader")
        notes.execute("GRANT SELECT (id, body) ON public.notes TO probe_reader")
    with (
        TableProbe(reader_url, PLAIN, PlantedEmbeddings()) as probe,
        pytest.raises(InputError, match=r"may not read column v of .*: GRANT SELECT"),
    ):
        probe.probe(REQUEST)
    store(notes, PlantedEmbeddings(), {"a.md": ["The port is 2959."]})
    with (
        TableProbe(reader_url, our_corpus(), PlantedEmbeddings()) as probe,
        pytest.raises((InputError, DatabaseError), match=r"GRANT USAGE|refuses us a right"),
    ):
        probe.probe(REQUEST)


def test_our_corpus_needs_three_grants(database_url: str, reader_url: str, notes: Conn) -> None:
    """As docs/probe.md lists them; without the document table only the fused order is missing, as noted."""
    id = store(notes, PlantedEmbeddings(), {"a.md": ["The port is 2959."]})["The port is 2959."]
    with notes.transaction():
        notes.execute("GRANT USAGE ON SCHEMA ragblame TO probe_reader")
        notes.execute("GRANT SELECT ON ragblame.chunk, ragblame.embedding_model TO probe_reader")
    with TableProbe(reader_url, our_corpus(), PlantedEmbeddings()) as probe:
        report = probe.probe(REQUEST)
        assert report.chunk(id) is not None
        assert any("GRANT SELECT ON ragblame.document" in note for note in report.notes)
        with notes.transaction():
            notes.execute("GRANT SELECT ON ragblame.document TO probe_reader")
        assert not any("ragblame.document" in note for note in probe.probe(REQUEST).notes)


@pytest.mark.parametrize(
    "statement",
    [
        "WITH gone AS (DELETE FROM public.notes RETURNING id) SELECT id::text, 1.0, 1 FROM gone",
        "WITH new AS (INSERT INTO public.notes VALUES (99) RETURNING id) SELECT id::text, 1.0, 1 FROM new",
        "SELECT '1', 1.0, nextval('public.counter')",
        "SELECT id::text, 1.0, 1 FROM public.notes FOR UPDATE",
    ],
)
def test_the_server_refuses_a_write_even_of_our_own_sql(
    database_url: str, notes: Conn, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    """With a writing statement planted in the probe and the owner's rights, nothing changes."""
    with notes.transaction():
        notes.execute("CREATE SEQUENCE public.counter")
    monkeypatch.setattr(probe_words, "_MATCHES", sql.SQL(statement))
    with (
        TableProbe(database_url, PLAIN, PlantedEmbeddings()) as probe,
        pytest.raises(DatabaseError),
    ):
        probe.probe(REQUEST)
    assert count(notes) == 3
    with notes.transaction():
        assert notes.execute("SELECT is_called FROM public.counter").fetchone() == (False,)


def test_a_table_that_writes_when_it_is_read_is_refused(reader_url: str, notes: Conn) -> None:
    """A row policy whose function writes as its owner: the transaction is read-only for it too."""
    with notes.transaction():
        notes.execute("CREATE TABLE public.log (at timestamptz DEFAULT now())")
        notes.execute(
            "CREATE FUNCTION public.spy() RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS "
            "$$ BEGIN INSERT INTO public.log DEFAULT VALUES; RETURN true; END $$"
        )
        notes.execute("ALTER TABLE public.notes ENABLE ROW LEVEL SECURITY")
        notes.execute("CREATE POLICY spied ON public.notes FOR SELECT USING (public.spy())")
    with (
        TableProbe(reader_url, PLAIN, PlantedEmbeddings()) as probe,
        pytest.raises(DatabaseError),
    ):
        probe.probe(REQUEST)
    assert count(notes, "public.log") == 0


def test_nothing_is_asked_where_the_server_would_let_us_write(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the transaction ever not read-only, the probe would stop before its first question."""
    monkeypatch.setattr(probe_clock, "_START", "SELECT 1")
    with (
        database.connect(database_url) as conn,
        pytest.raises(DatabaseError, match="does not keep the probe from writing"),
        probe_clock.read_only(conn, 1.0),
    ):
        pass


def test_operators_that_somebody_planted_are_not_found(database_url: str, notes: Conn) -> None:
    """A `<=>` of the same types in a schema of the search path is not the one that is called."""
    with notes.transaction():
        notes.execute(
            "CREATE FUNCTION ragblame.trap(vector, vector) RETURNS float8 LANGUAGE plpgsql IMMUTABLE AS "
            "$$ BEGIN RAISE EXCEPTION 'trapped'; END $$"
        )
        notes.execute(
            "CREATE OPERATOR ragblame.<=> (LEFTARG = vector, RIGHTARG = vector, FUNCTION = ragblame.trap)"
        )
    with TableProbe(database_url, PLAIN, PlantedEmbeddings()) as probe:
        assert len(probe.probe(REQUEST).chunks) == 3


@pytest.mark.parametrize(
    "entry",
    ["table", "schema", "id", "text", "vector", "metadata", "created_at", "document", "position", "search",
     "language", "collection"],
)  # fmt: skip
def test_a_hostile_name_is_refused(database_url: str, notes: Conn, entry: str) -> None:
    """Whatever stands where a name should: one clear error, and the table is as it was."""
    with TableProbe(database_url, PLAIN, PlantedEmbeddings()) as probe:
        for name in HOSTILE:
            probe.source = replace(PLAIN, **{entry: name})  # type: ignore[arg-type]
            with pytest.raises(InputError) as caught:
                probe.probe(REQUEST)
            assert len(str(caught.value)) < 600
    assert count(notes) == 3


def test_a_strange_name_that_is_really_there_is_only_a_name(database_url: str, connection: Conn) -> None:
    """Quotes, semicolons, braces and percent signs in the names of a real table are taken literally."""
    table, column = 'x"; DROP TABLE y; --', "%s {id} %(words)s"
    with connection.transaction():
        connection.execute(
            sql.SQL("CREATE TABLE public.{} ({} text PRIMARY KEY, body text, v vector(8))").format(
                sql.Identifier(table), sql.Identifier(column)
            )
        )
        connection.execute(
            sql.SQL("INSERT INTO public.{} VALUES ('a', 'The port is 2959.', %s::text::vector)").format(
                sql.Identifier(table)
            ),
            (str(random_vector("a")),),
        )
    source = CorpusSource(table=table, id=column, text="body", vector="v")
    embeddings = PlantedEmbeddings({"The port is 2959.": random_vector("a")})
    with TableProbe(database_url, source, embeddings) as probe:
        report = probe.probe(replace(REQUEST, filter={column: "a"}, retrieved=("a",)))
    assert [(chunk.id, chunk.is_retrieved, chunk.passes_filter) for chunk in report.chunks] == [
        ("a", True, True)
    ]


REFUSED: list[Any] = [
    {"$where": "1=1"},
    {"tenant": {"$regex": "a"}},
    {"tenant": {"$eq": "a", "$sql": "1"}},
    {"$and": []},
    {"$and": "1=1"},
    {"$or": ["1=1"]},
    {"tenant": {"$in": "a"}},
    {"tenant": {"$in": []}},
    {"tenant": {"$in": ["a"] * 501}},
    {"year": {"$between": [1]}},
    {"year": {"$lt": {"a": 1}}},
    {"year": {"$gt": True}},
    {"tenant": {"$like": 7}},
    {"id": {"$eq": None}},
    {"id": [1, 2]},
    {"id": "no number"},
    {"id": {"$like": "1"}},
    {str(place): 1 for place in range(100)},
    {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"$not": {"a": 1}}}}}}}}},
    {1: 2},
    "tenant = 'a'",
    ["tenant"],
]


def test_a_hostile_filter_is_refused(database_url: str, notes: Conn) -> None:
    """A filter outside the small form is an error that says what the form is."""
    with TableProbe(database_url, PLAIN, PlantedEmbeddings()) as probe:
        for filter in REFUSED:
            with pytest.raises(InputError):
                probe.probe(replace(REQUEST, filter=filter))


TEXT = st.one_of(st.sampled_from(HOSTILE), st.text(max_size=20))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(TEXT.filter(lambda key: not key.startswith("$")), TEXT, max_size=3), TEXT, TEXT, TEXT)
def test_texts_and_values_are_data(
    database_url: str, notes: Conn, filter: dict[str, str], question: str, claim: str, value: str
) -> None:
    """Any question, claim, value, filter key and value, row id: an answer or our error, never another one."""
    vectors = {text: random_vector("q") for text in ProbeText}
    request = ProbeRequest(
        question=question, claim=claim, value=value, filter=filter, retrieved=(value, claim), vectors=vectors
    )
    with TableProbe(database_url, PLAIN) as probe:
        try:
            report = probe.probe(request)
        except InputError:
            assert any(key in ("id", "body", "v", "extra") for key in filter)
        else:
            assert {chunk.id for chunk in report.chunks} == {"0", "1", "2"}
    assert count(notes) == 3


MEANT: list[tuple[dict[str, Any], list[int]]] = [
    ({"year": 2020}, [2020]),
    ({"year": {"$ne": 2020}}, [2021, 2022]),
    ({"year": {"$gte": 2021}}, [2021, 2022]),
    ({"year": {"$between": [2020, 2021]}}, [2020, 2021]),
    ({"year": {"$in": [2020, 2022]}}, [2020, 2022]),
    ({"year": {"$nin": [2020, 2022]}}, [2021]),
    ({"year": {"$gt": 2020, "$lt": 2022}}, [2021]),
    ({"$or": [{"year": 2020}, {"tenant": "c"}]}, [2020, 2022]),
    ({"$not": {"tenant": "a"}}, [2021, 2022]),
    ({"tenant": {"$like": "_"}, "year": 2021}, [2021]),
    ({"tenant": {"$ilike": "B"}}, [2021]),
    ({"draft": {"$exists": True}}, [2022]),
    ({"draft": {"$exists": False}}, [2020, 2021]),
    ({"draft": {"$ne": "x"}}, [2022]),
    ({"id": {"$gte": 1}}, [2021, 2022]),
    ({"tenant": {"$lt": "b"}}, [2020]),
    ({"year": {"$lt": "b"}}, []),  # a number is never less than a text
    ({}, [2020, 2021, 2022]),
]


def test_the_form_means_what_langchain_means(database_url: str, notes: Conn) -> None:
    """Each operator on metadata and on columns keeps the rows it should."""
    with notes.transaction():
        notes.execute(
            "UPDATE public.notes SET extra = jsonb_build_object('tenant', chr(97 + id), 'year', 2020 + id)"
            " || CASE id WHEN 2 THEN '{\"draft\": true}' ELSE '{}' END::jsonb"
        )
    with TableProbe(database_url, PLAIN, PlantedEmbeddings()) as probe:
        for filter, years in MEANT:
            report = probe.probe(replace(REQUEST, filter=filter))
            passing = {2020 + int(chunk.id) for chunk in report.chunks if chunk.passes_filter}
            ranked = {
                2020 + int(chunk.id)
                for chunk in report.chunks
                if chunk.sighting(ProbeText.QUERY, is_filtered=True) is not None
            }
            assert (filter, passing, ranked) == (filter, set(years), set(years))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"kind": "Chroma"}, "is not known"),
        ({"kind": "PGVectorStore"}, "add `table`"),
        ({"table": "t", "id": "i", "text": "t"}, "needs the entry vector"),
        ({"table": "t", "id": "i", "text": "t", "vector": "v", "where": "1=1"}, "no entry 'where'"),
        ({"table": 7, "id": "i", "text": "t", "vector": "v"}, "table is no str"),
        ({"table": "t", "id": "i", "text": "t", "vector": "v", "probes": "1; DROP"}, "probes is no int"),
    ],
)
def test_a_wrong_configuration_names_the_entry(entries: dict[str, Any], said: str) -> None:
    """Nothing is guessed, and nothing unknown is ignored."""
    with pytest.raises(InputError, match=said):
        source_from(entries)


@pytest.mark.parametrize(
    "change",
    [
        {"distance": "<=>"},
        {"ef_search": 0},
        {"ef_search": 1_001},
        {"iterative_scan": "on; DROP"},
        {"probes": 0},
    ],
)
def test_a_setting_out_of_range_is_refused(database_url: str, notes: Conn, change: dict[str, Any]) -> None:
    """Settings of the server come from a short list."""
    with (
        TableProbe(database_url, replace(PLAIN, **change), PlantedEmbeddings()) as probe,
        pytest.raises(InputError),
    ):
        probe.probe(REQUEST)
