"""The corpus probe on our own corpus: each way of missing a row shows in what it reports."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ragblame.corpus import (
    CorpusProbe,
    FoundChunk,
    ProbeReport,
    ProbeRequest,
    ProbeText,
    ProbeWay,
    request_for,
)
from ragblame.errors import InputError, ModelError
from ragblame.records import MASK, Chunk, Span, SpanKind, Trace
from ragblame.retriever import probe_words
from ragblame.retriever.embedding_models import EmbeddingModel, register_model
from ragblame.retriever.probe import TableProbe, probe_texts
from ragblame.retriever.search import search
from ragblame.retriever.sources import our_corpus
from ragblame.traces import new_trace_id
from tests.probe_corpus import (
    SIZE,
    Conn,
    PlantedEmbeddings,
    fill,
    near,
    random_vector,
    set_for_database,
    store,
)

QUESTION = "Which port does the Kestrel gateway listen on?"
CLAIM = "The Kestrel gateway listens on port 4000."
GOLD = "The Kestrel gateway listens on port 2959 since March."
ASKED = random_vector("asked")
MASKED = "Which port does the Kestrel gateway listen on? The Kestrel gateway listens on port ."


@pytest.fixture
def embeddings() -> PlantedEmbeddings:
    """The question's direction is known; the gold text lies 0.6 radians from it."""
    return PlantedEmbeddings(
        {QUESTION: ASKED, MASKED: near(ASKED, 0.3, "masked"), GOLD: near(ASKED, 0.6, "gold")}
    )


@pytest.fixture
def model(connection: Conn) -> EmbeddingModel:
    """The registered model."""
    return register_model(connection, "planted", SIZE)


@pytest.fixture
def probe(database_url: str, embeddings: PlantedEmbeddings) -> Iterator[TableProbe]:
    """A patient probe of our corpus: the machine may be slow, and limits have tests of their own."""
    with TableProbe(database_url, our_corpus(), embeddings, seconds=30.0) as opened:
        yield opened


def request(**changes: object) -> ProbeRequest:
    """The question about the wrong port."""
    return replace(ProbeRequest(question=QUESTION, claim=CLAIM, value="4000"), **changes)  # type: ignore[arg-type]


def found(report: ProbeReport, id: str) -> FoundChunk:
    """The chunk, which must have been found."""
    chunk = report.chunk(id)
    assert chunk is not None, [entry.text for entry in report.chunks]
    return chunk


def brute_ranks(conn: Conn, vector: list[float], where: str = "true") -> dict[str, int]:
    """Row id -> 1 + number of nearer rows, by a sort of the whole table in a session of its own."""
    with conn.transaction():
        conn.execute("SET LOCAL enable_indexscan = off")
        rows = conn.execute(
            f"SELECT id::text, rank() OVER (ORDER BY embedding <=> %s::text::halfvec({SIZE})) "
            f"FROM ragblame.chunk c WHERE {where}".encode(),
            ("[" + ",".join(map(str, vector)) + "]",),
        ).fetchall()
    return dict(rows)


def rank(chunk: FoundChunk | None, text: ProbeText = ProbeText.QUERY, *, is_filtered: bool = False) -> int:
    """Its exact rank by vectors."""
    assert chunk is not None
    seen = chunk.sighting(text, is_filtered=is_filtered)
    assert seen is not None, chunk
    assert seen.is_exact, chunk
    return seen.rank


@pytest.mark.parametrize(("rows", "by_index"), [(300, False), (6_000, True)])
def test_exact_ranks_are_those_of_a_full_sort(
    database_url: str,
    connection: Conn,
    model: EmbeddingModel,
    embeddings: PlantedEmbeddings,
    rows: int,
    by_index: bool,
) -> None:
    """By a scan within the index' distances, and without index: an exact rank is that of a full sort."""
    store(connection, embeddings, {"gateway.md": [GOLD]})
    fill(connection, model, rows)
    if by_index:
        set_for_database(database_url, "enable_seqscan", "off")  # which only makes it dear
    with TableProbe(database_url, our_corpus(), embeddings, seconds=30.0) as probe:
        report = probe.probe(request())
    assert report.is_exact
    retriever = [search for search in report.searches if search.way is ProbeWay.RETRIEVER]
    assert [search.is_exact for search in retriever] == [not by_index]
    for text in (ProbeText.QUERY, ProbeText.MASKED, ProbeText.CLAIM):
        truth = brute_ranks(connection, embeddings.embed_query(probe_texts(request())[text]))
        ranks = {chunk.id: rank(chunk, text) for chunk in report.chunks if chunk.sighting(text) is not None}
        assert len(ranks) >= 40
        assert ranks == {id: truth[id] for id in ranks}
        assert [id for id, place in truth.items() if place <= 20 and id not in ranks] == []


def test_one_scan_keeps_the_filtered_lists_apart(
    database_url: str, connection: Conn, model: EmbeddingModel, embeddings: PlantedEmbeddings
) -> None:
    """Both lists of one query come from the same scan; each has the ranks of a full sort of its own rows."""
    store(connection, embeddings, {"gateway.md": [GOLD]}, tenant="north")
    fill(connection, model, 3_000, tenant="north")
    fill(connection, model, 3_001, tenant="south")
    set_for_database(database_url, "enable_seqscan", "off")
    set_for_database(database_url, "enable_bitmapscan", "off")  # or the filter would be the way in
    with TableProbe(database_url, our_corpus(), embeddings, seconds=30.0) as probe:
        report = probe.probe(request(filter={"tenant": "north"}))
    assert report.is_exact
    retriever = [search for search in report.searches if search.way is ProbeWay.RETRIEVER]
    assert [search.is_exact for search in retriever] == [False, False]
    for is_filtered, where in ((False, "true"), (True, 'metadata @> \'{"tenant": "north"}\'')):
        truth = brute_ranks(connection, ASKED, where)
        ranks = {
            chunk.id: rank(chunk, is_filtered=is_filtered)
            for chunk in report.chunks
            if chunk.sighting(ProbeText.QUERY, is_filtered=is_filtered) is not None
        }
        assert len(ranks) >= 30
        assert ranks == {id: truth[id] for id in ranks}


def test_a_crippled_index_shows_as_the_difference_of_two_ranks(
    database_url: str, connection: Conn, model: EmbeddingModel, embeddings: PlantedEmbeddings
) -> None:
    """With ef_search 1 the index returns one row of the four asked for; the true second is there exactly."""
    embeddings.table["Best."] = near(ASKED, 0.001, "best")
    embeddings.table[GOLD] = near(ASKED, 0.002, "gold")
    gold = store(connection, embeddings, {"best.md": ["Best."], "gateway.md": [GOLD]})[GOLD]
    fill(connection, model, 3_000)
    set_for_database(database_url, "enable_seqscan", "off")
    source = replace(our_corpus(), ef_search=1, iterative_scan="off")
    with TableProbe(database_url, source, embeddings, seconds=30.0) as probe:
        report = probe.probe(request(k=4))
    [search] = [search for search in report.searches if search.way is ProbeWay.RETRIEVER]
    assert (search.found, search.is_exact) == (1, False)
    assert found(report, gold).sighting(ProbeText.QUERY, ProbeWay.RETRIEVER) is None
    assert rank(found(report, gold)) == 2


def test_the_settings_of_one_list_do_not_leak_into_the_next(
    database_url: str, connection: Conn, model: EmbeddingModel, embeddings: PlantedEmbeddings
) -> None:
    """The deep list looks at 400 rows; the retriever's next list still gets the server's own 1."""
    store(connection, embeddings, {"gateway.md": [GOLD]})
    fill(connection, model, 3_000)
    set_for_database(database_url, "enable_seqscan", "off")
    set_for_database(database_url, "hnsw.ef_search", "1")
    source = replace(our_corpus(), ef_search=None, iterative_scan=None)
    with TableProbe(database_url, source, embeddings, seconds=30.0) as probe:
        report = probe.probe(request(query="kestrel gateway port"))
    searches = [search for search in report.searches if search.way is ProbeWay.RETRIEVER]
    assert [(search.text, search.found) for search in searches] == [
        (ProbeText.QUERY, 1),
        (ProbeText.QUESTION, 1),
    ]


def test_a_filter_that_hides_the_row(
    connection: Conn, model: EmbeddingModel, probe: TableProbe, embeddings: PlantedEmbeddings
) -> None:
    """Found only without the filter, with the metadata that says why; others have both ranks."""
    gold = store(connection, embeddings, {"gateway.md": [GOLD]}, tenant="north")[GOLD]
    other = store(connection, embeddings, {"other.md": ["Something else."]}, tenant="south")[
        "Something else."
    ]
    fill(connection, model, 200, tenant="south")
    report = probe.probe(request(filter={"tenant": "south"}, retrieved=(other,)))
    hidden = found(report, gold)
    assert hidden.passes_filter is False
    assert hidden.metadata["tenant"] == "north"
    assert rank(hidden) == brute_ranks(connection, ASKED)[gold]
    assert [seen for seen in hidden.sightings if seen.is_filtered] == []
    assert found(report, other).passes_filter is True
    assert (
        rank(found(report, other), is_filtered=True)
        == brute_ranks(connection, ASKED, 'metadata @> \'{"tenant": "south"}\'')[other]
    )


def test_the_slot_finds_what_the_wrong_value_does_not(
    connection: Conn, model: EmbeddingModel, probe: TableProbe, embeddings: PlantedEmbeddings
) -> None:
    """No row has the claim's words; without the value its rarest words lead to the row with another value."""
    gold = store(connection, embeddings, {"gateway.md": [GOLD]})[GOLD]
    fill(connection, model, 300)
    report = probe.probe(request())
    chunk = found(report, gold)
    for way in (ProbeWay.PHRASE, ProbeWay.ALL_WORDS):
        assert chunk.sighting(ProbeText.CLAIM, way) is None
    slot = chunk.sighting(ProbeText.MASKED, ProbeWay.SOME_WORDS)
    assert slot is not None
    assert (slot.rank, slot.is_exact) == (1, True)


def test_the_value_is_found_where_it_was_borrowed(
    connection: Conn, model: EmbeddingModel, probe: TableProbe, embeddings: PlantedEmbeddings
) -> None:
    """The wrong value's own words lead to the other subject that has it; a true phrase leads to its row."""
    sibling = "The Merlin queue listens on port 4000."
    ids = store(connection, embeddings, {"gateway.md": [GOLD], "queue.md": [sibling]})
    report = probe.probe(request())
    assert found(report, ids[sibling]).sighting(ProbeText.VALUE, ProbeWay.PHRASE) is not None
    assert found(report, ids[GOLD]).sighting(ProbeText.VALUE, ProbeWay.PHRASE) is None
    right = probe.probe(request(claim="listens on port 2959", value="2959"))
    assert found(right, ids[GOLD]).sighting(ProbeText.CLAIM, ProbeWay.PHRASE) is not None


def test_a_fact_cut_in_two_is_whole_with_its_neighbour(
    connection: Conn, model: EmbeddingModel, probe: TableProbe, embeddings: PlantedEmbeddings
) -> None:
    """Previous and next chunk of the same document come along, never another document's."""
    parts = ["Chapter one.", "The Kestrel gateway listens on", "port 2959 since March.", "The end."]
    ids = store(connection, embeddings, {"a.md": ["Before."], "gateway.md": parts, "z.md": ["After."]})
    report = probe.probe(request(retrieved=(ids[parts[1]],)))
    cut = found(report, ids[parts[1]])
    assert cut.is_retrieved
    assert cut.joined == ("\n".join(parts[:2]), "\n".join(parts[1:3]))
    first, last = found(report, ids[parts[0]]), found(report, ids[parts[3]])
    assert (first.previous, last.next) == (None, None)
    assert last.previous is not None
    assert last.previous.id == ids[parts[2]]


def test_rows_made_after_the_answer_are_told_apart(
    connection: Conn, model: EmbeddingModel, probe: TableProbe, embeddings: PlantedEmbeddings
) -> None:
    """A row that came later is marked, and the ranks of the others say how it was without it."""
    embeddings.table["Late."] = near(ASKED, 0.1, "late")
    ids = store(connection, embeddings, {"gateway.md": [GOLD], "late.md": ["Late."]})
    with connection.transaction():
        connection.execute("UPDATE ragblame.chunk SET created_at = now() - interval '1 day'")
        connection.execute(
            "UPDATE ragblame.chunk SET created_at = now() + interval '1 day' WHERE text = 'Late.'"
        )
    report = probe.probe(request(answered_at=datetime.now(UTC)))
    late, gold = found(report, ids["Late."]), found(report, ids[GOLD])
    assert (late.is_newer, gold.is_newer) == (True, False)
    assert rank(late) == 1
    seen = gold.sighting(ProbeText.QUERY)
    assert seen is not None
    assert (seen.rank, seen.rank_then) == (2, 1)
    assert probe.probe(request()).chunks[0].is_newer is None


def test_a_query_that_lost_the_question(
    connection: Conn, model: EmbeddingModel, probe: TableProbe, embeddings: PlantedEmbeddings
) -> None:
    """The rewritten query misses the row that the question itself has at the top."""
    embeddings.table["weather in Oslo"] = [-value for value in ASKED]
    embeddings.table[GOLD] = near(ASKED, 0.01, "gold")
    gold = store(connection, embeddings, {"gateway.md": [GOLD]})[GOLD]
    fill(connection, model, 200)
    chunk = found(probe.probe(request(query="weather in Oslo")), gold)
    assert rank(chunk, ProbeText.QUESTION) == 1
    assert rank(chunk, ProbeText.QUERY) == 201  # counted, though no list reaches so far
    assert chunk.sighting(ProbeText.QUESTION, ProbeWay.RETRIEVER) is not None
    assert chunk.sighting(ProbeText.QUERY, ProbeWay.RETRIEVER) is None


def test_the_fused_order_is_our_own_retrievers(
    connection: Conn, model: EmbeddingModel, probe: TableProbe, embeddings: PlantedEmbeddings
) -> None:
    """The hybrid order is what ``search`` returns for the query, rank by rank."""
    store(connection, embeddings, {"gateway.md": [GOLD], "b.md": ["A gateway."], "c.md": ["A port."]})
    fill(connection, model, 100)
    hits = search(connection, QUESTION, ASKED, model, k=50)
    report = probe.probe(request())
    fused = {
        seen.rank: chunk.id
        for chunk in report.chunks
        for seen in chunk.sightings
        if seen.way is ProbeWay.HYBRID
    }
    assert [fused[hit.rank] for hit in hits] == [str(hit.chunk_id) for hit in hits]


def test_without_a_model_the_callers_vectors_and_the_words_remain(
    database_url: str, connection: Conn, model: EmbeddingModel, embeddings: PlantedEmbeddings
) -> None:
    """A vector that the caller gives is used as it is; what has none is said not to be complete."""
    gold = store(connection, embeddings, {"gateway.md": [GOLD]})[GOLD]
    fill(connection, model, 50)
    with TableProbe(database_url, our_corpus("planted"), seconds=30.0) as probe:
        report = probe.probe(request(vectors={ProbeText.QUERY: ASKED}))
        assert rank(found(report, gold)) == brute_ranks(connection, ASKED)[gold]
        lacking = [search for search in report.searches if not search.is_complete]
        assert [search.text for search in lacking] == [ProbeText.MASKED, ProbeText.CLAIM]
        assert not report.is_exact
        bare = probe.probe(request())
        assert found(bare, gold).sightings[0].way in (ProbeWay.ALL_WORDS, ProbeWay.SOME_WORDS)


def test_rows_that_are_gone_or_never_were_are_named(
    connection: Conn, model: EmbeddingModel, probe: TableProbe, embeddings: PlantedEmbeddings
) -> None:
    """Deleted rows and ids of another form cost a note, not the probe."""
    gold = store(connection, embeddings, {"gateway.md": [GOLD]})[GOLD]
    gone = str(new_trace_id())
    report = probe.probe(request(retrieved=(gold.upper(), gone, "7", "a\0b", "\ud800")))
    assert found(report, gold).is_retrieved
    assert "4 of the 5 retrieved rows are not in ragblame.chunk any more." in report.notes


def test_an_empty_corpus_is_an_answer(model: EmbeddingModel, probe: TableProbe) -> None:
    """Nothing found, everything complete; seen through the door that attribution knows."""
    door: CorpusProbe = probe
    report = door.probe(request())
    assert report.chunks == ()
    assert report.is_exact


def test_an_unknown_model_and_a_wrong_vector_are_refused(
    database_url: str, connection: Conn, model: EmbeddingModel, embeddings: PlantedEmbeddings
) -> None:
    """The message names what was expected."""
    with (
        TableProbe(database_url, our_corpus("other"), embeddings) as probe,
        pytest.raises(InputError, match="nothing is ingested under the embedding model other"),
    ):
        probe.probe(request())
    with TableProbe(database_url, our_corpus(), embeddings) as probe:
        with pytest.raises(InputError, match="has 3 dimensions and ragblame"):
            probe.probe(request(vectors={ProbeText.QUERY: [1.0, 2.0, 3.0]}))
        with pytest.raises(ModelError, match="NaN"):
            probe.probe(request(vectors={ProbeText.QUERY: [0.0] * SIZE}))
        with pytest.raises(InputError, match="k is 0"):
            probe.probe(request(k=0))
        with pytest.raises(InputError, match="k is 1001"):
            probe.probe(request(k=1_001))


def test_a_failing_model_is_an_error_of_ours(database_url: str) -> None:
    """Whatever the host's embeddings raise, the caller sees the one family."""

    class Broken(PlantedEmbeddings):
        def embed_query(self, text: str) -> list[float]:
            raise RuntimeError("no GPU")

    with TableProbe(database_url, our_corpus(), Broken()) as probe, pytest.raises(ModelError, match="no GPU"):
        probe.probe(request())


def test_a_request_is_made_of_a_trace_and_a_span() -> None:
    """Claim is the sentence, value the span; ids in order, once; masked characters are not searched."""
    answer = f"Hello. {CLAIM} Bye {MASK}{MASK}."
    start = answer.index("4000")
    sentence = answer.index(CLAIM)
    trace = Trace(
        id=new_trace_id(),
        app="a",
        question=f"{QUESTION}{MASK}",
        query="kestrel",
        chunks=tuple(
            Chunk(position=place, text="", source_id=id) for place, id in enumerate(["b", "a", "b", None])
        ),
        answer=answer,
        started_at=datetime.now(UTC),
    )
    span = Span(
        index=0,
        start=start,
        end=start + 4,
        kind=SpanKind.NUMBER,
        sentence_start=sentence,
        sentence_end=sentence + len(CLAIM),
    )
    made = request_for(trace, span, k=3)
    assert (made.question, made.query, made.claim, made.value) == (QUESTION, "kestrel", CLAIM, "4000")
    assert (made.retrieved, made.k, made.answered_at) == (("b", "a"), 3, trace.started_at)
    whole = request_for(trace, replace(span, start=sentence, end=sentence + len(CLAIM)))
    assert whole.value is None
    assert ProbeText.MASKED not in probe_texts(whole)
    assert probe_texts(replace(made, query=None))[ProbeText.MASKED] == MASKED


def test_frequent_words_known_to_the_planner_change_nothing_but_the_time(
    connection: Conn,
    model: EmbeddingModel,
    probe: TableProbe,
    embeddings: PlantedEmbeddings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whether a frequent word is known from statistics or counted, the same rows come in the same order."""
    monkeypatch.setattr(probe_words, "COMMON", 100)
    store(connection, embeddings, {"gateway.md": [GOLD], "b.md": ["The weather at the Kestrel gateway."]})
    fill(connection, model, 400)
    asked = request(question="Is the weather dull at the Kestrel gateway paragraph?")

    def some_words() -> list[tuple[str, float]]:
        seen = [
            (sighting.rank, chunk.id, sighting.measure)
            for chunk in probe.probe(asked).chunks
            for sighting in chunk.sightings
            if sighting.way is ProbeWay.SOME_WORDS
        ]
        return [(id, measure) for _, id, measure in sorted(seen)]

    learnt = some_words()
    assert len(learnt) == 2
    with connection.transaction():  # statistics that know no word
        connection.execute("ALTER TABLE ragblame.chunk ALTER COLUMN search SET STATISTICS 0")
        connection.execute("DELETE FROM pg_statistic WHERE starelid = 'ragblame.chunk'::regclass")
    assert some_words() == learnt
