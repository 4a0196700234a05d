"""`ragblame eval faults`: put a fault into a chain that answered right, and see which cause is named.

Everything is real: PostgreSQL, ingest, retrievers, LangChain, the small model that answers, capture,
attribution and corpus probe. Only the faults are ours, and each case's label is the fault that was put in.
"""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from ragblame import database
from ragblame.attribution.debugger import Debugger
from ragblame.attribution.evaluation.evidence import Evidence
from ragblame.attribution.evaluation.faults import (
    LEAST_CASES,
    NOT_FLAGGED,
    UNDETERMINED,
    Draw,
    Fault,
    Outcome,
    class_of,
    count_draws,
)
from ragblame.attribution.world.answering import read_statements
from ragblame.attribution.world.episodes import ask
from ragblame.attribution.world.facts import NOT_STATED
from ragblame.errors import ModelError
from ragblame.records import Explanation, Trace, VerdictKind
from ragblame.retriever.embedding_models import find_model, name_of
from ragblame.retriever.minilm import MiniLMEmbeddings
from ragblame.retriever.probe import TableProbe
from ragblame.retriever.sources import our_corpus
from ragblame.ui.demo.chat import SmallChatModel
from ragblame.ui.faults import corpus
from ragblame.ui.faults.chain import Bench, Parts
from ragblame.ui.faults.corpus import Source
from ragblame.ui.faults.host import Host, host
from ragblame.ui.faults.injections import LISTS, Asked, Injected, Site, inject, inverted_file
from ragblame.ui.faults.server import own_folder, start_in

DEMOS: Final = 8  # joined into one corpus
QUICK_DEMOS: Final = 1
QUICK_CASES: Final = 2  # of each fault
CONTROLS: Final = 2  # for each case of one fault: the rate of false alarms wants more
HYBRID: Final = 0.5  # share of the chains with our own retriever; the others search nearest vectors only

Progress = Callable[[str, float], None]


def evaluate(
    *,
    seed: int = 0,
    is_quick: bool = False,
    progress: Progress | None = None,
    url: str | None = None,
) -> Evidence:
    """Put in every fault until enough cases are found, and count the causes given.

    ``is_quick``: a few cases each, for tests. ``url``: a migrated database that may be filled and broken;
    None: an embedded server is started for this and removed afterwards.
    Raises ``RagblameError`` when a part cannot be started.
    """
    report = progress or (lambda what, part: None)
    cases = QUICK_CASES if is_quick else LEAST_CASES
    with own_folder() as folder:
        report("start PostgreSQL", 0.0)
        with _suite(url or start_in(folder), folder, seed=seed, is_quick=is_quick, report=report) as suite:
            draws = [draw for fault in (*Fault, None) for draw in suite.draw(fault, cases)]
            facts = suite.facts()
    found = count_draws(draws, seed=seed)
    report("done", 1.0)
    return Evidence(
        name="faults put in" + (", quick" if is_quick else ""),
        command=f"ragblame eval faults{' --quick' if is_quick else ''} --seed {seed}",
        seed=seed,
        tables=tuple(found.tables),
        confusions=tuple(found.confusions),
        bars=tuple(found.bars),
        notes=(*found.notes, *facts),
    )


@contextmanager
def _suite(url: str, folder: Path, *, seed: int, is_quick: bool, report: Progress) -> Iterator["_Suite"]:
    """Corpus, chain and debugger, ready to be put at fault."""
    embeddings = MiniLMEmbeddings()
    everything = corpus.pages(seed, QUICK_DEMOS if is_quick else DEMOS)
    with (
        database.connect(url, autocommit=True, application_name="ragblame faults") as conn,
        database.open_pool(url, application_name="ragblame faults chain") as pool,
        TableProbe(url, our_corpus(), embeddings) as probe,
    ):
        # one thread: the model is so small that a second one costs more than it does
        debugger = Debugger.from_pretrained(is_own_model=True, threads=1, probe=probe)
        rows = corpus.store(conn, everything, embeddings, folder, lambda done, total: report("ingest", 0.0))
        model = find_model(conn, name_of(embeddings))
        if model is None:
            raise ModelError("the corpus was stored without an embedding model: run `ragblame doctor`")
        sources = corpus.sources(everything, rows)
        site = Site(
            conn=conn,
            embeddings=embeddings,
            embedding_model=model,
            pages={page.slug: page for page in everything},
            sources=sources,
            folder=folder,
        )
        bench = Bench(pool=pool, embeddings=embeddings, embedding_model=model, chat_model=SmallChatModel())
        with host(bench, url, folder) as asking:
            yield _Suite(site, bench, asking, debugger, len(rows), seed, report)


@dataclass(slots=True)
class _Suite:
    """Draws sources, puts faults in, and notes what comes of it."""

    site: Site
    bench: Bench
    host: Host
    debugger: Debugger
    rows: int
    seed: int
    report: Progress
    done: float = 0.0  # faults

    def facts(self) -> list[str]:
        """What it ran on, in sentences."""
        return [
            f"A corpus of {self.rows} chunks stating {len(self.site.sources)} facts, k = {Parts().k}; half "
            "of the chains search with our own hybrid retriever, half for the nearest vectors only (with a "
            "crippled index all of them, since words find what the index misses)."
        ]

    def draw(self, fault: Fault | None, cases: int) -> list[Draw]:
        """Sources in random order, until so many cases are found or none is left; controls are more."""
        order = list(self.site.sources)
        random.Random(f"{self.seed} {fault}").shuffle(order)
        if fault is Fault.MEMORY:  # as often where the model has a memory as where it is told one
            known = [source for source in order if source.known is not None]
            others = [source for source in order if source.known is None]
            order = [source for pair in zip(known, others, strict=False) for source in pair]
        if fault is Fault.INDEX:  # half of the cases with either kind of index; changing it takes long
            draws = self._walk(fault, order, cases // 2, Parts(), share=0.5)
            self.done += 0.5
            with inverted_file(self.site):
                rest = order[len(draws) :]
                draws += self._walk(fault, rest, cases - cases // 2, Parts(probes=LISTS), share=0.5)
            self.done += 0.5
        else:
            draws = self._walk(fault, order, cases if fault is not None else CONTROLS * cases, None)
            self.done += 1.0
        return draws

    def _walk(
        self,
        fault: Fault | None,
        order: Sequence[Source],
        wanted: int,
        parts: Parts | None,
        share: float = 1.0,
    ) -> list[Draw]:
        """``parts``: of the chain without the fault; None: either retriever. ``share``: of its work."""
        draws: list[Draw] = []
        found = 0
        for source in order:
            self.report(fault or "no fault", (self.done + share * found / wanted) / (len(Fault) + 1))
            if found == wanted:
                break
            rng = random.Random(f"{self.seed} {fault} {source.claim}")
            draws.append(self._try(fault, source, rng, parts or Parts(is_hybrid=rng.random() < HYBRID)))
            found += draws[-1].outcome is Outcome.CASE
        return draws

    def _try(self, fault: Fault | None, source: Source, rng: random.Random, parts: Parts) -> Draw:
        question = ask(rng, [source.claim]).text
        draw = Draw(
            fault=fault,
            way="",
            cluster=source.claim.entity.name,
            outcome=Outcome.NOT_RIGHT_BEFORE,
            question=question,
            gold=source.value,
        )
        if fault is Fault.LOWER_K and not self._can_be_cut_off(question, parts, source):
            return replace(draw, outcome=Outcome.IMPOSSIBLE)
        trace = self.host.ask(question, parts)
        if _value(trace, source) != source.value or not _stands(trace, source):
            return draw
        if fault is None:
            return self._judged(replace(draw, outcome=Outcome.CASE), trace, source)
        asked = Asked(
            question=question,
            retrieved=tuple(chunk.source_id or "" for chunk in trace.chunks),
            parts=parts,
        )
        with inject(fault, source, asked, self.site, rng) as injected:
            if injected is None:
                return replace(draw, outcome=Outcome.IMPOSSIBLE)
            trace = self.host.ask(question, injected.parts)
            injected.after()
            draw = replace(
                draw,
                way=injected.way,
                answer=trace.answer,
                outcome=_outcome(fault, trace, source, injected),
            )
            return self._judged(draw, trace, source) if draw.outcome is Outcome.CASE else draw

    def _can_be_cut_off(self, question: str, parts: Parts, source: Source) -> bool:
        """Whether some chunk stands above the gold ones: looked at before the model is asked at all."""
        found = [document.id for document in self.bench.retriever(parts).invoke(question)]
        gold = {row.id for row in source.rows}
        return bool(found) and found[0] not in gold and not gold.isdisjoint(found)

    def _judged(self, draw: Draw, trace: Trace, source: Source) -> Draw:
        """The draw with what attribution says of it."""
        began = time.monotonic()
        explanation = self.debugger.explain_trace(trace)
        given, others = _given(explanation, source)
        return replace(
            draw,
            answer=trace.answer,
            given=given,
            others=others,
            is_flagged=any(verdict.is_flagged for verdict in explanation.verdicts),
            seconds=time.monotonic() - began,
        )


def _place(trace: Trace, source: Source) -> tuple[str, int, int] | None:
    """The value that the answer gives for the claim, and where it stands."""
    for one in read_statements(trace.answer):
        if (one.attribute, one.entity) == (source.claim.attribute, str(source.claim.entity)):
            return one.value, one.start, one.end
    return None


def _value(trace: Trace, source: Source) -> str | None:
    place = _place(trace, source)
    return None if place is None else place[0]


def _stands(trace: Trace, source: Source) -> bool:
    """Whether a gold chunk stands whole in the prompt."""
    prompt = "\n".join(message.text for message in trace.prompt)
    return any(row.text in prompt for row in source.rows)


def _outcome(fault: Fault, trace: Trace, source: Source, injected: Injected) -> Outcome:
    """What the draw counts as, by the answer and its prompt alone."""
    value = _value(trace, source)
    if value is None:
        return Outcome.UNREADABLE
    if value == NOT_STATED:
        return Outcome.ABSTAINED
    stands = _stands(trace, source)
    if fault is Fault.COPY:
        prompt = "\n".join(message.text for message in trace.prompt)
        both = stands and injected.copied_text is not None and injected.copied_text in prompt
        return Outcome.CASE if both and value in (source.value, injected.copied) else Outcome.NO_EFFECT
    if stands and value == source.value:
        return Outcome.NO_EFFECT
    if stands and fault is not Fault.MEMORY:
        return Outcome.MISREAD
    return Outcome.CASE


def _given(explanation: Explanation, source: Source) -> tuple[str, tuple[str, ...]]:
    """Class of the primary cause of the span that holds the asked value, and of the further ones."""
    place = _place(explanation.trace, source)
    assert place is not None  # a case was read before it was judged
    _, start, end = place
    spans = {span.index: span for span in explanation.spans}
    own = [
        verdict
        for verdict in explanation.verdicts
        if spans[verdict.span].start < end and spans[verdict.span].end > start
    ]
    flagged = sorted((one for one in own if one.is_flagged), key=lambda one: -one.severity)
    if flagged:
        return class_of(flagged[0].cause), tuple(map(class_of, flagged[0].other_causes))
    if any(one.verdict is VerdictKind.UNDETERMINED for one in own):
        return UNDETERMINED, ()
    return NOT_FLAGGED, ()
