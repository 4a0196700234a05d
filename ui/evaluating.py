"""`ragblame eval`: measures how right attribution and verdicts are, here and now, and says it in every form.

Whatever the bars say, a measurement that could run ends with exit code 0: a bar that falls short is a result.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ragblame.errors import InputError

if TYPE_CHECKING:
    from ragblame.attribution.evaluation.evidence import Evidence

QUICK_ANSWERS: Final = 40  # of each file; enough to see that it works, too few to quote

evaluation = typer.Typer(
    name="eval",
    help="Measure attribution and verdicts against known causes and human labels.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, for a program.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="A small part of it, in about a minute.")]
ReportOption = Annotated[
    Path | None,
    typer.Option("--report", help="Also write a page here: HTML, or Markdown if named so."),
]
SeedOption = Annotated[int, typer.Option(help="What items are drawn and how rows are resampled.")]


@evaluation.command()
def world(
    models: Annotated[
        list[Path] | None,
        typer.Option(
            "--model", help="A folder of another training run, beside the shipped model; repeatable."
        ),
    ] = None,
    quick: QuickOption = False,
    report: ReportOption = None,
    json_output: JsonOption = False,
    seed: SeedOption = 0,
) -> None:
    """Against answers whose cause is known by intervention, written by the shipped small model."""
    _check_report(report)
    for folder in models or []:
        if not folder.is_dir():
            raise InputError(
                f"{folder} is no folder: give the model folder that a training run wrote "
                "(python -m ragblame.attribution.world.training)"
            )
    from ragblame.attribution.evaluation import known_cause

    with _progress() as progress:
        evidence = known_cause.evaluate([None, *(models or [])], seed=seed, is_quick=quick, progress=progress)
    _hand_over(evidence, report, json_output)


@evaluation.command()
def labels(
    files: Annotated[list[Path], typer.Argument(help="JSON lines of labelled answers, gzipped or not.")],
    limit: Annotated[int | None, typer.Option(min=1, help="About so many answers of each file.")] = None,
    part: Annotated[
        str | None,
        typer.Option(help="Only sources of this part of the split: held-out, tuning or training."),
    ] = None,
    support_model: Annotated[
        str | None,
        typer.Option(help="shipped, none (rules alone), or a token classifier; as configured if not given."),
    ] = None,
    quick: QuickOption = False,
    report: ReportOption = None,
    json_output: JsonOption = False,
    seed: SeedOption = 0,
) -> None:
    """Against what people found unsupported in real answers."""
    _check_report(report)
    from ragblame.attribution.evaluation import labels as labelled
    from ragblame.attribution.evaluation.span_scorers import TextOnly
    from ragblame.attribution.support_model.choice import load_support_reader
    from ragblame.attribution.support_model.examples import Part
    from ragblame.settings import load_settings

    if part is not None and part not in set(Part):
        raise InputError(f"there is no part {part!r}: choose one of {', '.join(Part)}")
    reader = load_support_reader(support_model or load_settings().support_model)
    if quick:
        limit = min(QUICK_ANSWERS, limit or QUICK_ANSWERS)
    with _progress() as progress:
        evidence = labelled.evaluate(
            files,
            seed=seed,
            limit=limit,
            progress=progress,
            scorer=None if reader is None else TextOnly(reader),
            part=None if part is None else Part(part),
        )
    _hand_over(evidence, report, json_output)


@evaluation.command()
def faults(
    quick: QuickOption = False,
    report: ReportOption = None,
    json_output: JsonOption = False,
    seed: SeedOption = 0,
) -> None:
    """Against nine faults put into a working chain: is the cause that is named the one put in?"""
    _check_report(report)
    from ragblame.ui.faults import run

    with _progress() as progress:
        evidence = run.evaluate(seed=seed, is_quick=quick, progress=progress)
    _hand_over(evidence, report, json_output)


def _check_report(report: Path | None) -> None:
    """Refuse before the work, not after it, a page that could not be written."""
    if report is not None and (report.is_dir() or not report.absolute().parent.is_dir()):
        raise InputError(f"{report} cannot be written: name a file in a folder that exists")


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr, named after the step at hand; a log file gets one line per step instead."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from ragblame.ui.terminal import plain, say, words

    console = words()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("starting", total=1.0)
        current = ""

        def at(what: str, part: float) -> None:
            nonlocal current
            if what != current and not console.is_terminal:
                say(what)
            current = what
            bar.update(task, description=plain(what), completed=part)

        yield at


def _hand_over(evidence: "Evidence", report: Path | None, json_output: bool) -> None:
    """The page, and either the object or the tables."""
    from ragblame.attribution.evaluation.page import compose
    from ragblame.attribution.evaluation.report import to_html
    from ragblame.attribution.evaluation.terminal import show
    from ragblame.ui.terminal import data, say, write_json

    if json_output:
        write_json(evidence.to_json())
    else:
        show(evidence, data())
    if report is not None:  # last: should the disk refuse it, the figures are out already
        try:
            page = compose([evidence]) if report.suffix == ".md" else to_html(evidence)
            report.write_text(page, "utf-8")
        except OSError as error:
            raise InputError(f"{report} was not written: {error.strerror}: name another file") from error
        say(f"written: {report}", style="green")
