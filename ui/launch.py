"""How the triage page is started: one Streamlit command with every safety switch and both themes spelled out.

Streamlit listens on all addresses and reports usage unless told otherwise, so no other file may start it.
"""

import sys
from collections.abc import Mapping
from importlib.resources import files
from typing import Final

# Pairs used as text on a background keep a contrast of at least 4.5:1 (tests/test_launch.py computes it).
LIGHT: Final[Mapping[str, str]] = {
    "primaryColor": "#2f5bd7",
    "backgroundColor": "#ffffff",
    "secondaryBackgroundColor": "#f4f6f9",
    "textColor": "#17202c",
    "borderColor": "#dde3ea",
    "linkColor": "#2550c4",
    "redColor": "#d92d20",
    "redTextColor": "#a81e12",
    "redBackgroundColor": "#fdeceb",
    "orangeColor": "#dc6803",
    "orangeTextColor": "#93450a",
    "orangeBackgroundColor": "#fef1e2",
    "yellowColor": "#c99700",
    "yellowTextColor": "#7a5a00",
    "yellowBackgroundColor": "#fff3c9",
    "greenColor": "#12915f",
    "greenTextColor": "#0a6644",
    "greenBackgroundColor": "#e6f6ee",
    "blueColor": "#2f6fde",
    "blueTextColor": "#1d4fae",
    "blueBackgroundColor": "#e8f0fd",
    "violetColor": "#7a5af8",
    "violetTextColor": "#5432c9",
    "violetBackgroundColor": "#f0ecfe",
    "grayColor": "#7c8794",
    "grayTextColor": "#556070",
    "grayBackgroundColor": "#eef1f5",
    "codeBackgroundColor": "#f4f6f9",
}
DARK: Final[Mapping[str, str]] = {
    "primaryColor": "#7ea2ff",
    "backgroundColor": "#10151c",
    "secondaryBackgroundColor": "#18202a",
    "textColor": "#e4e9f0",
    "borderColor": "#2c3745",
    "linkColor": "#8fb0ff",
    "redColor": "#f2695c",
    "redTextColor": "#ff9d92",
    "redBackgroundColor": "#3b1a19",
    "orangeColor": "#ee9440",
    "orangeTextColor": "#fdbb78",
    "orangeBackgroundColor": "#3a2612",
    "yellowColor": "#d9b33c",
    "yellowTextColor": "#f2d375",
    "yellowBackgroundColor": "#3c3312",
    "greenColor": "#3cb987",
    "greenTextColor": "#76dcb0",
    "greenBackgroundColor": "#10311f",
    "blueColor": "#5b93f5",
    "blueTextColor": "#9fc2ff",
    "blueBackgroundColor": "#152a4a",
    "violetColor": "#9b85f9",
    "violetTextColor": "#c3b5ff",
    "violetBackgroundColor": "#271f4a",
    "grayColor": "#8894a3",
    "grayTextColor": "#a9b4c1",
    "grayBackgroundColor": "#222c38",
    "codeBackgroundColor": "#18202a",
}

_OPTIONS: Final[Mapping[str, str]] = {
    "server.headless": "true",
    "server.fileWatcherType": "none",
    "browser.gatherUsageStats": "false",
    "client.toolbarMode": "viewer",
    "client.showErrorDetails": "none",  # a traceback may hold text of a stranger's document
    "runner.magicEnabled": "false",  # a bare expression must never be drawn as markdown
    "theme.baseFontSize": "15",
    "theme.baseRadius": "6px",
    "theme.showWidgetBorder": "true",
    "theme.paddingTop": "0.5rem",
    "theme.paddingBottom": "2rem",
}


def streamlit_command(*, address: str, port: int) -> list[str]:
    """The argument vector that serves the triage page on ``address:port`` with this interpreter."""
    options = {"server.address": address, "server.port": str(port), **_OPTIONS}
    options |= {f"theme.light.{name}": colour for name, colour in LIGHT.items()}
    options |= {f"theme.dark.{name}": colour for name, colour in DARK.items()}
    script = str(files("ragblame.ui") / "app.py")
    return [
        sys.executable,
        "-m",
        "streamlit",
        "run",
        script,
        *(f"--{name}={value}" for name, value in options.items()),
    ]
