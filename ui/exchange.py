"""`ragblame import` and `ragblame export`: answers from elsewhere in, traces with their verdicts out."""

import json
import sys
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from ragblame.errors import InputError
from ragblame.ui.evaluating import JsonOption

MAX_PROBLEMS: Final = 50  # lines named one by one


def import_(
    file: Annotated[
        Path | None, typer.Argument(help="JSONL, gzipped or not, one answer per line.", show_default=False)
    ] = None,
    openinference: Annotated[
        Path | None, typer.Option(help="Instead: spans as Phoenix or OTLP JSON gives them.")
    ] = None,
    langfuse: Annotated[
        Path | None, typer.Option(help="Instead: traces or observations exported from Langfuse.")
    ] = None,
    app_name: Annotated[
        str | None, typer.Option("--app", help="Name to file the answers under; default: their dataset.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many lines, of a tracer's file so many traces.")
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Import answers recorded elsewhere; importing a file again adds nothing."""
    from ragblame import database
    from ragblame.settings import load_settings
    from ragblame.ui.imports import ImportFormat, import_file
    from ragblame.ui.terminal import progress_bar, say, say_error, write_json

    given = [
        (kind, path)
        for kind, path in zip(ImportFormat, (file, openinference, langfuse), strict=True)
        if path is not None
    ]
    if len(given) != 1:
        raise typer.BadParameter("give one file: FILE, --openinference FILE or --langfuse FILE")
    kind, path = given[0]
    settings = load_settings()
    url = database.resolve_url(settings)
    database.require_schema(url)
    problems = 0

    def tell(number: int, message: str) -> None:
        nonlocal problems
        problems += 1
        if problems <= MAX_PROBLEMS:
            say_error(f"{path}, line {number}: {message}")

    with database.connect(url, autocommit=True) as conn, progress_bar(f"importing {path.name}") as bar:
        result = import_file(
            conn, path, settings, kind=kind, app=app_name, limit=limit, on_problem=tell, on_progress=bar.at
        )
    counts = {"imported": result.imported, "known": result.known, "malformed": result.malformed}
    passed_over = ""
    if kind is not ImportFormat.ANSWERS:
        counts["skipped"] = result.skipped
        passed_over = f", {result.skipped} traces without an answer"
    if json_output:
        write_json(counts)
    say(f"{result.imported} imported, {result.known} known already, {result.malformed} left out{passed_over}")
    if result.malformed:
        raise InputError(
            f"{result.malformed} of {result.lines} lines of {path} were not imported: correct them and "
            "import it again, the others are not doubled"
            if kind is ImportFormat.ANSWERS
            else f"{result.malformed} parts of the {result.lines} lines of {path} were not read: correct "
            "them and import it again, the others are not doubled"
        )


def export(
    file: Annotated[
        Path | None, typer.Argument(help="Where to; default: stdout.", show_default=False)
    ] = None,
    otlp_json: Annotated[
        bool, typer.Option("--otlp-json", help="One OTLP request per trace, for a collector.")
    ] = False,
    only_verdicts: Annotated[
        bool,
        typer.Option("--only-verdicts", help="Of each attributed trace the one span with what was found."),
    ] = False,
    app_name: Annotated[str | None, typer.Option("--app", help="Only traces of this app.")] = None,
    since: Annotated[
        datetime | None, typer.Option(help="Only traces that started at or after this time (UTC).")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many traces.")] = None,
) -> None:
    """Write traces with verdicts and shares as OpenInference spans, JSON lines, the oldest first."""
    from ragblame import database
    from ragblame.settings import load_settings
    from ragblame.ui.export import export_traces, to_otlp
    from ragblame.ui.terminal import say

    url = database.resolve_url(load_settings())
    database.require_schema(url)
    traces = lines = 0
    with ExitStack() as stack:
        conn = stack.enter_context(database.connect(url, autocommit=True, read_only=True))
        try:
            out = sys.stdout if file is None else stack.enter_context(file.open("w", encoding="utf-8"))
            for spans in export_traces(
                conn,
                app=app_name,
                since=None if since is None else since.replace(tzinfo=UTC),
                limit=limit,
                only_verdicts=only_verdicts,
            ):
                traces += 1
                for value in [to_otlp(spans)] if otlp_json else spans:
                    lines += 1
                    out.write(json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n")
        except OSError as error:
            if file is None:
                raise
            raise InputError(
                f"{file} cannot be written ({error.strerror}): give a file in a folder that exists"
            ) from error
    say(f"{traces} traces exported in {lines} lines")
