"""The house of DESIGN §2: imports go downward only, and each room leaves out what it must not load."""

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
FOLDERS: dict[str, str] = PROJECT["tool"]["setuptools"]["package-dir"]

# room -> the rooms it may import from, itself included. A room is the longest prefix named here.
MAY_IMPORT: dict[str, set[str]] = {
    "ragblame": {"ragblame", "ragblame.migrations"},
    "ragblame.migrations": set(),
    "ragblame.plugin": {"ragblame", "ragblame.plugin"},
    "ragblame.retriever": {"ragblame", "ragblame.retriever"},
    "ragblame.attribution": {"ragblame", "ragblame.attribution"},
    "ragblame.attribution.jobs": {
        "ragblame",
        "ragblame.attribution",
        "ragblame.attribution.jobs",
        "ragblame.retriever",
    },
    "ragblame.ui": {
        "ragblame",
        "ragblame.plugin",
        "ragblame.retriever",
        "ragblame.attribution",
        "ragblame.attribution.jobs",
        "ragblame.ui",
    },
}
# room -> libraries it must not import at all, not even inside a function
NEVER: dict[str, set[str]] = {
    "ragblame": {"torch", "transformers", "numpy", "streamlit", "langchain_core", "procrastinate"},
    "ragblame.plugin": {"torch", "transformers", "numpy", "streamlit", "procrastinate"},
    "ragblame.retriever": {"streamlit", "procrastinate"},
    "ragblame.attribution": {"streamlit", "psycopg", "psycopg_pool", "procrastinate", "langchain_core"},
    "ragblame.attribution.jobs": {"streamlit"},
    "ragblame.ui": set(),
}
# What a production chain loads, and what must not come along, however indirectly.
LIGHT = (
    "ragblame",
    "ragblame.plugin",
    "ragblame.plugin.attach",
    "ragblame.plugin.pending",
    "ragblame.records",
)
HEAVY = {
    "psycopg",
    "psycopg_pool",
    "pydantic_settings",
    "pydantic",
    "torch",
    "numpy",
    "streamlit",
    "procrastinate",
}
# The public face offers every room, lazily; nothing below a room may do so.
PUBLIC_FACE = "ragblame/__init__.py"


def sources() -> Iterator[tuple[str, Path]]:
    """Module name and path of every file of the package."""
    for package, folder in FOLDERS.items():
        paths = (ROOT / folder).glob("*.py") if package == "ragblame" else (ROOT / folder).rglob("*.py")
        for path in paths:
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            yield ".".join((package, *(part for part in parts if part != "__init__"))), path


def room_of(module: str) -> str:
    """The innermost room of MAY_IMPORT that a module stands in."""
    return max((room for room in MAY_IMPORT if f"{module}.".startswith(f"{room}.")), key=len)


def imports(path: Path) -> Iterator[tuple[str, bool, int]]:
    """Imported module, whether that happens at load time, and the line; typing-only imports are left out."""
    tree = ast.parse(path.read_text("utf-8"))

    def walk(node: ast.AST, is_loading: bool) -> Iterator[tuple[str, bool, int]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                yield from (found for other in child.orelse for found in walk(other, is_loading))
            elif isinstance(child, ast.Import):
                yield from ((alias.name, is_loading, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: a relative import"
                assert child.module is not None
                yield from (
                    (f"{child.module}.{alias.name}", is_loading, child.lineno) for alias in child.names
                )
            else:
                is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, is_loading and not is_function)

    yield from walk(tree, True)


FILES = sorted(sources())


@pytest.mark.parametrize(("module", "path"), FILES, ids=[module for module, _ in FILES])
def test_a_file_keeps_to_its_floor(module: str, path: Path) -> None:
    """Each import of each file is one that its room may make, at load time or at all."""
    place = path.relative_to(ROOT).as_posix()
    room = room_of(module)
    wrong = []
    for name, _, line in imports(path):
        library = name.split(".")[0]
        if library == "ragblame":
            if place != PUBLIC_FACE and room_of(name) not in MAY_IMPORT[room]:
                wrong.append(f"{place}:{line}: {room} must not import {name}")
        elif library in {"plugin", "retriever", "attribution", "ui", "migrations"}:
            wrong.append(f"{place}:{line}: write ragblame.{name}")
        elif library in NEVER.get(room, set()):
            wrong.append(f"{place}:{line}: {room} must never import {library}")
    assert wrong == []


@pytest.mark.parametrize("entry", LIGHT)
def test_light_files_lead_to_nothing_heavy(entry: str) -> None:
    """Following every load-time import from what a production chain loads never meets a heavy library."""
    files = dict(FILES)
    queue, seen, heavy = [entry], {entry}, []
    while queue:
        module = queue.pop()
        for name, is_loading, line in imports(files[module]):
            if not is_loading:
                continue
            if name.split(".")[0] in HEAVY:
                heavy.append(f"{module}:{line} loads {name}")
            targets = {known for known in (name, name.rpartition(".")[0]) if known in files}
            parents = {".".join(name.split(".")[:depth]) for depth in range(1, name.count(".") + 1)}
            for target in (targets | (parents & files.keys())) - seen:
                seen.add(target)
                queue.append(target)
    assert heavy == []
    assert len(seen) > 5 or entry in ("ragblame", "ragblame.plugin", "ragblame.records")


def test_the_table_names_every_room() -> None:
    """A new top-level folder needs a place in the table."""
    assert set(FOLDERS) <= set(MAY_IMPORT) | {"ragblame"}
    assert len(FILES) > 40
