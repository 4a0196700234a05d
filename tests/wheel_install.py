"""The built wheel in an empty environment outside the repository: the demo and the page run the same.

Not part of the suite, because the installation alone takes minutes; `make test-wheel` runs it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PORT = 8599


def main() -> int:
    """Build, install, run; prints what happened and returns 0 when both commands worked."""
    with tempfile.TemporaryDirectory(prefix="ragblame-wheel-") as name:
        place = Path(name)
        place.chmod(0o755)  # the embedded server runs as another account when we are root
        source, wheels, environment = place / "source", place / "wheels", place / "env"
        source.mkdir()
        archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True)
        subprocess.run(["tar", "-x", "-C", str(source)], input=archive.stdout, check=True)
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
        build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(wheels), str(source)]
        subprocess.run(build, check=True)
        venv.create(environment, with_pip=False)
        python = environment / "bin" / "python"
        wheel = next(wheels.glob("*.whl"))
        print(f"built {wheel.name}, {wheel.stat().st_size / 1e6:.1f} MB; installing [all]", flush=True)
        install = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q"]
        subprocess.run([*install, "-c", str(ROOT / "constraints.txt"), f"{wheel}[all]"], check=True)

        settings = {"RAGBLAME_DATA_DIR": str(place / "data"), "HF_HUB_OFFLINE": "1"}
        command = [str(environment / "bin" / "ragblame")]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("RAGBLAME_")}
        started = time.monotonic()
        demo = subprocess.run(
            [*command, "demo", "--no-ui", "--json"],
            cwd=place,
            env=clean | settings,
            capture_output=True,
            text=True,
            check=False,
        )
        if demo.returncode != 0:
            print(demo.stderr[-2_000:], file=sys.stderr)
            return 1
        summary = json.loads(demo.stdout)
        print(f"demo: {summary['traces']} traces, verdicts {summary['verdicts']}", flush=True)
        print(f"demo took {time.monotonic() - started:.0f} s", flush=True)
        return _check_page(command, place, clean | settings)


def _check_page(command: list[str], place: Path, environment: dict[str, str]) -> int:
    page = subprocess.Popen([*command, "ui", "--port", str(PORT)], cwd=place, env=environment)
    try:
        for _ in range(120):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{PORT}/_stcore/health", timeout=2) as reply:
                    print(f"page: {reply.read().decode()}", flush=True)
                    return 0
            except OSError:
                time.sleep(0.5)
        print("page: no answer in 60 s", file=sys.stderr)
        return 1
    finally:
        page.terminate()
        page.wait(20)


if __name__ == "__main__":
    sys.exit(main())
