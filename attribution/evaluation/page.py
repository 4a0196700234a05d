"""docs/evaluation.md from the JSON of finished evaluations: what the document says is what was measured.

`python -m ragblame.attribution.evaluation.page FILE... --out docs/evaluation.md`, where each FILE is what
`ragblame eval … --json` printed. `make evaluation` runs both.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ragblame.attribution.evaluation.evidence import Evidence, from_json
from ragblame.attribution.evaluation.markdown import to_markdown
from ragblame.errors import InputError, RagblameError

INTRODUCTION: Final = """# Evaluation

Written by the evaluations (`make evaluation`, `make faults`) from what they measured; do not edit it. Each
section names the command that makes its figures again. Intervals are 95 %. A bar was set before its figure
was measured; one that falls short stays here.
"""


def read(file: Path) -> Evidence:
    """The evidence in a JSON file. Raises ``InputError`` naming the file."""
    try:
        return from_json(json.loads(file.read_text("utf-8")))
    except OSError as error:
        raise InputError(
            f"{file}: {error.strerror}: make it with `ragblame eval … --json > {file}`"
        ) from error
    except (ValueError, InputError) as error:
        raise InputError(f"{file}: {error}") from error


def compose(evidences: Sequence[Evidence]) -> str:
    """The whole document."""
    return "\n".join([INTRODUCTION, *map(to_markdown, evidences)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the document; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("files", nargs="+", type=Path, help="JSON of `ragblame eval … --json`")
    parser.add_argument("--out", type=Path, required=True, help="the document to write")
    options = parser.parse_args(arguments)
    try:
        text = compose([read(file) for file in options.files])
    except RagblameError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    options.out.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
