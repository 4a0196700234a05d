"""Strict mypy over the mapped folders.

A type checker does not see setuptools' package-dir mapping in an editable install, so ``ragblame.plugin``
would silently resolve to nothing. A tree of links under build/typing gives it the package as installed.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "build" / "typing"


def make_tree() -> Path:
    """Lay out the package as installed, as links to the real files; returns its root."""
    shutil.rmtree(TREE, ignore_errors=True)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    folders = project["tool"]["setuptools"]["package-dir"]
    home = TREE / "ragblame"
    home.mkdir(parents=True)
    for name, folder in folders.items():
        source = ROOT / folder
        if name == "ragblame":
            for entry in source.iterdir():
                if entry.is_file():
                    (home / entry.name).symlink_to(os.path.relpath(entry, home))
        else:
            (home / name.split(".", 1)[1]).symlink_to(os.path.relpath(source, home))
    return TREE


def main() -> int:
    """Run mypy as configured in pyproject.toml on the linked tree; returns its exit code."""
    make_tree()
    return subprocess.run([sys.executable, "-m", "mypy", *sys.argv[1:]], cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
