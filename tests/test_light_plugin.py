"""Attaching the capture costs a production process next to nothing to load."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "numpy",
    "psycopg",
    "psycopg_pool",
    "streamlit",
    "transformers",
    "pydantic_settings",
    "procrastinate",
    "pandas",
    "altair",
    "typer",
    "rich",
)


def loaded_by(statement: str) -> tuple[set[str], float]:
    """Top-level modules of a fresh interpreter after a statement, and the seconds ours took of it.

    The host loads LangChain's callbacks and runnables anyway, so they are imported before the clock starts.
    """
    script = (
        "import sys, time, json\n"
        "import langchain_core.callbacks, langchain_core.runnables, langchain_core.tracers.context\n"
        "host = set(sys.modules); began = time.perf_counter()\n"
        f"{statement}\n"
        "spent = time.perf_counter() - began\n"
        "print(json.dumps([sorted({name.split('.')[0] for name in set(sys.modules) - host}), spent]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    modules, seconds = json.loads(done.stdout)
    return set(modules), seconds


@pytest.mark.parametrize(
    "statement",
    [
        "import ragblame",
        "import ragblame.plugin",
        "from ragblame import BlameHandler, attach, detach, flush, record_retrieval, Trace, Chunk",
        "import ragblame; ragblame.attach(app='x', source_table='y')",
        "import ragblame; ragblame.BlameHandler(app='x')",
    ],
)
def test_capture_loads_nothing_heavy(statement: str) -> None:
    """Neither a model library, nor a driver, nor the web page, nor the settings reader is loaded."""
    modules, seconds = loaded_by(statement)
    print(f"{statement}: {seconds * 1000:.0f} ms")
    assert modules & set(HEAVY) == set()
    assert seconds < 1.0  # about 0.03 s on an idle machine


@pytest.mark.parametrize(
    "module", ["ragblame.records", "ragblame.plugin.assembly", "ragblame.plugin.redaction"]
)
def test_what_only_later_threads_need_comes_later(module: str) -> None:
    """The classes of an explanation never, what makes traces of runs with the first one: both take time."""
    script = f"import sys, ragblame; ragblame.BlameHandler(); print({module!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_without_anything_else_the_package_is_bare() -> None:
    """`import ragblame` alone does not even load LangChain."""
    script = "import sys, ragblame; print('langchain_core' in sys.modules, ragblame.__version__)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[0] == "False"


def test_the_public_face_is_whole() -> None:
    """Every public name resolves, is listed, and an unknown one is an ordinary AttributeError."""
    import ragblame

    for name in ragblame.__all__:
        assert getattr(ragblame, name) is not None
        assert name in dir(ragblame)
    with pytest.raises(AttributeError, match="nonsense"):
        ragblame.nonsense  # noqa: B018


def test_without_its_extra_the_debugger_names_it() -> None:
    """Where the attribution extra is missing, the error says what to install."""
    script = (
        "import sys\n"
        "for name in ('torch', 'numpy', 'transformers', 'sentencex'): sys.modules[name] = None\n"
        "import ragblame\n"
        "from ragblame.errors import MissingExtraError\n"
        "try: ragblame.Debugger\n"
        "except MissingExtraError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "ragblame[attribution]" in done.stdout
