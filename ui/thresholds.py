"""`ragblame thresholds`: versions of the numbers that decide, fitted to labels, previewed, then activated.

Nothing is decided otherwise before somebody activates a version, and what that would change is shown first.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ragblame.errors import InputError
from ragblame.ui.evaluating import JsonOption

if TYPE_CHECKING:
    from ragblame.attribution.evaluation.threshold_fit import Judged

thresholds = typer.Typer(
    name="thresholds",
    help="The numbers that turn measurements into verdicts: versions, fitting, preview, activation.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
LEVEL_HELP = "What must not be missed: answers or spans."


@thresholds.command(name="list")
def list_(json_output: JsonOption = False) -> None:
    """All versions; the active one decides."""
    from ragblame.attribution.jobs.thresholds import read_versions
    from ragblame.ui.terminal import data, write_json
    from ragblame.ui.thresholds_tables import version_to_json, versions_table

    with _connect() as conn:
        versions = read_versions(conn)
    if json_output:
        write_json({"versions": [version_to_json(version) for version in versions]})
    else:
        data().print(versions_table(versions))


@thresholds.command()
def show(
    version: Annotated[str, typer.Argument(help="Name of a version, see `list`.")],
    json_output: JsonOption = False,
) -> None:
    """One version: its values, its digest and what it promises."""
    from ragblame.attribution.jobs.thresholds import read_thresholds
    from ragblame.ui.terminal import data, write_json
    from ragblame.ui.thresholds_tables import values_table

    with _connect() as conn:
        found = read_thresholds(conn, version)
    if json_output:
        write_json({**found.to_json(), "digest": found.digest})
    else:
        data().print(values_table(found))


@thresholds.command()
def fit(
    labels: Annotated[
        list[Path] | None, typer.Option("--labels", help="JSON lines of labelled answers; repeatable.")
    ] = None,
    reviews: Annotated[
        bool, typer.Option("--reviews", help="Instead: what people decided on the triage page.")
    ] = False,
    alpha: Annotated[float, typer.Option(help="Share of what is unsupported that may be missed.")] = 0.1,
    level: Annotated[str, typer.Option(help=LEVEL_HELP)] = "answers",
    part: Annotated[
        str | None,
        typer.Option(help="With --labels: only sources of this part of the support model's split."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="About so many answers of each file.")] = None,
    name: Annotated[str | None, typer.Option(help="Of the new version; none: made from the day.")] = None,
    note: Annotated[str, typer.Option(help="Kept with it.")] = "",
    seed: Annotated[int, typer.Option(help="How sources are halved.")] = 0,
    json_output: JsonOption = False,
) -> None:
    """Fit a new version to labels and store it. It decides nothing until it is activated."""
    from ragblame.attribution.evaluation.threshold_fit import fit as fit_thresholds
    from ragblame.attribution.jobs.thresholds import find_thresholds, read_active, store_thresholds
    from ragblame.attribution.verdicts.thresholds import LEVELS
    from ragblame.ui.terminal import data, say, write_json
    from ragblame.ui.thresholds_tables import fit_table, fit_to_json

    if level not in LEVELS:
        raise InputError(f"--level {level} is unknown: give {' or '.join(LEVELS)}")
    if reviews == bool(labels):
        raise InputError("give either --labels FILE or --reviews: one source of labels at a time")
    if not 0 < alpha < 1:
        raise InputError(f"--alpha {alpha:g} is no share: give one between 0 and 1, such as 0.1")
    version = name or f"{datetime.now(UTC):%Y-%m-%d}-{level}-{alpha:g}"
    with _connect() as conn:  # told now, not after minutes of reading
        if find_thresholds(conn, version) is not None:
            raise InputError(
                f"thresholds {version!r} are stored already and never change: give another --name"
            )
    if reviews:
        from ragblame.ui.reads_thresholds import read_reviewed

        with _connect() as conn:
            reviewed = read_reviewed(conn)
        judged, model, source = reviewed.judged, reviewed.model, reviewed.source
    else:
        judged, model, source = _read_files(labels or [], part, limit, seed)
    with _connect(read_only=False) as conn:
        fitted = fit_thresholds(
            judged,
            model=model,
            base=read_active(conn),
            version=version,
            alpha=alpha,
            level=level,
            labels=source,
            seed=seed,
        )
        store_thresholds(conn, fitted.thresholds, note=note)
    if json_output:
        write_json(fit_to_json(fitted))
    else:
        data().print(fit_table(fitted))
    say(f"stored as {version}, not active: see `ragblame thresholds preview {version}`", style="green")


@thresholds.command()
def preview(
    version: Annotated[str, typer.Argument(help="Name of a version, see `list`.")],
    json_output: JsonOption = False,
) -> None:
    """What a version would have decided otherwise in the last 7 and 30 days; changes nothing."""
    from ragblame.attribution.jobs.preview import preview as preview_thresholds
    from ragblame.attribution.jobs.thresholds import read_thresholds
    from ragblame.ui.terminal import data, words, write_json
    from ragblame.ui.thresholds_tables import preview_tables, preview_to_json

    with _connect() as conn, words().status("deciding history again …"):
        found = preview_thresholds(conn, read_thresholds(conn, version))
    if json_output:
        write_json(preview_to_json(found))
    else:
        data().print(preview_tables(found))


@thresholds.command()
def activate(
    version: Annotated[str, typer.Argument(help="Name of a version, see `list`.")],
) -> None:
    """Let a version decide from now on; stored verdicts keep theirs. Workers follow with their next trace."""
    from ragblame.attribution.jobs.thresholds import activate_thresholds
    from ragblame.ui.terminal import say

    with _connect(read_only=False) as conn:
        found = activate_thresholds(conn, version)
    say(f"{found.version} decides from the next trace on; stored verdicts keep theirs", style="green")


def _connect(*, read_only: bool = True) -> Any:
    from ragblame import database
    from ragblame.settings import load_settings

    url = database.resolve_url(load_settings())
    database.require_schema(url)
    return database.connect(url, read_only=read_only)


def _read_files(
    files: list[Path], part: str | None, limit: int | None, seed: int
) -> tuple["list[Judged]", str, str]:
    """The labelled answers as the support model reads them, the model's name, and where they came from."""
    from ragblame.attribution.evaluation.threshold_fit import read_all
    from ragblame.ui.terminal import progress_bar, say
    from ragblame.ui.thresholds_reader import configured_reader, read_labels

    rows, told = read_labels(files, part=part, limit=limit, seed=seed)
    for line in told:
        say(line, style="yellow")
    reader = configured_reader()
    with progress_bar("reading answers") as bar:
        judged = read_all(rows, reader, lambda done: bar.at(round(done * len(rows)), len(rows)))
    source = ", ".join(path.name.split(".")[0] for path in files)
    return judged, reader.model, source if part is None else f"{source} ({part} sources)"
