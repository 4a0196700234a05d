"""Pictures of the triage page for the documents, from a fresh run of the demo: `make screenshot`."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ragblame import database, postgres
from ragblame.settings import Settings
from tests.browsing import open_browser, screenshot, serve_page

TOLD = "distorted"  # the verdict whose example is shown: it has most to show


def main(folder: Path) -> None:
    """Run the demo in a database of its own, then write triage.png and queue.png."""
    with tempfile.TemporaryDirectory(prefix="ragblame-screenshot-") as name:
        data = Path(name)
        data.chmod(0o711)  # the embedded server runs as another account when we are root
        command = [sys.executable, "-m", "ragblame", "demo", "--no-ui", "--json"]
        environment = os.environ | {"RAGBLAME_DATA_DIR": str(data)}
        try:
            demo = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
            case = json.loads(demo.stdout)["examples"][TOLD]
            url = database.resolve_url(Settings(data_dir=data))
            with database.connect(url) as conn:
                row = conn.execute(
                    "SELECT span FROM verdict WHERE trace_id = %s AND verdict = %s ORDER BY severity DESC",
                    (case["trace"], TOLD),
                ).fetchone()
            assert row is not None
            with serve_page(url) as address, open_browser() as browser:
                trace = f"{address}/trace?id={case['trace']}&span={row[0]}"
                screenshot(browser, trace, folder / "triage.png")
                screenshot(browser, f"{address}/", folder / "queue.png")
        finally:
            postgres.stop(data)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
