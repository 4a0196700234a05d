"""What the support model costs an answer: wall and CPU time of one reading, by number of threads.

The work: answers of 172 tokens beside three chunks of 97 tokens, the median of RAGTruth's questions, drawn
from this repository's own English (docs/*.md), so that no labelled file is needed; every answer is read once
and alone, as the worker does. The share of the frozen encoder is told apart, and the rules beside it.
Run: python benchmarks/support_reading.py [--quick] [--json] [--write]
"""

import random
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from evidence import bar, report, spread

from ragblame.attribution.spans import split_spans
from ragblame.attribution.support_model import weights
from ragblame.attribution.support_model.cutting import Cutter
from ragblame.attribution.support_model.model import SupportModel
from ragblame.attribution.verdicts.support import examine
from ragblame.records import Chunk

SEED: Final = 7
ANSWER: Final = 172  # tokens
CHUNK: Final = 97
CHUNKS: Final = 3
ANSWERS: Final = 60  # 12 with --quick
QUESTION: Final = "What does the worker do with an answer?"
DOCS: Final = Path(__file__).parents[1] / "docs"


def work(count: int) -> list[tuple[str, list[str]]]:
    """Answers with their chunks; half of an answer's sentences stand in its chunks."""
    tokenizer = weights.fresh().tokenizer
    draw = random.Random(SEED)
    text = " ".join(path.read_text("utf-8") for path in sorted(DOCS.glob("*.md")))
    sentences = [s for s in re.split(r"(?<=[.!?])\s+", re.sub(r"[|`*#]", " ", text)) if 40 < len(s) < 300]

    def fill(own: Sequence[str], tokens: int) -> str:
        chosen = list(own)
        while len(tokenizer.tokenize(" ".join(chosen))) < tokens:
            chosen.append(draw.choice(sentences))
        ids = tokenizer(" ".join(chosen), add_special_tokens=False, truncation=True, max_length=tokens)
        return str(tokenizer.decode(ids["input_ids"]))

    found = []
    for _ in range(count):
        chunks = [fill([], CHUNK) for _ in range(CHUNKS)]
        found.append((fill([chunks[0].split(". ")[0]], ANSWER), chunks))
    return found


def main() -> None:
    """Time it."""
    warm, *answers = work(1 + (12 if "--quick" in sys.argv else ANSWERS))
    parts = weights.fresh()
    cutter = Cutter(parts.tokenizer)
    rows = []
    single = 0.0
    for threads in sorted({1, torch.get_num_threads()}):
        torch.set_num_threads(threads)
        model = SupportModel.load()  # anew: it remembers chunks
        costs: dict[str, list[tuple[float, float]]] = {"reading": [], "encoder alone": [], "rules": []}
        model.read(QUESTION, *warm)
        for answer, chunks in answers:
            reading = cutter.cut(QUESTION, answer, chunks)
            spans = split_spans(answer, QUESTION)
            records = [Chunk(position=place, text=text) for place, text in enumerate(chunks)]
            for name, run in (
                ("reading", lambda: model.read(QUESTION, answer, chunks)),  # noqa: B023
                ("encoder alone", lambda: parts.encoder([*reading.said, *reading.evidence])),  # noqa: B023
                ("rules", lambda: examine(QUESTION, answer, spans, records)),  # noqa: B023
            ):
                wall, cpu = time.perf_counter(), time.process_time()
                run()
                costs[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        for name, found in costs.items():
            middle, low, high = spread([1000 * wall for wall, _ in found])
            rows.append(
                {
                    "threads": threads,
                    "what": name,
                    "wall ms": middle,
                    "quartiles": f"{low:.1f} to {high:.1f}",
                    "CPU ms": spread([1000 * cpu for _, cpu in found])[0],
                }
            )
            if name == "reading":
                single = middle
    report(
        "support model, one answer",
        rows,
        [bar(f"wall ms of one reading, {rows[-1]['threads']} threads", single, "<=", 60.0)],
        seed=SEED,
        packages=("torch", "transformers"),
    )


if __name__ == "__main__":
    main()
