"""Colours of the charts for the theme on screen; Vega draws on a canvas and cannot read CSS variables."""

from collections.abc import Mapping
from typing import Any, Final

import streamlit as st

from ragblame.ui.launch import DARK, LIGHT

# Strongest cells of the heat map, below and above zero: strong enough to see, and the text on them stays
# readable at every strength in between (tests/test_launch.py computes it).
HEAT_ENDS: Final[Mapping[str, tuple[str, str]]] = {
    "light": ("#eb9a55", "#6a9cf0"),
    "dark": ("#93540f", "#2c5db8"),
}


def theme_name() -> str:
    """The theme on screen: light or dark."""
    return "dark" if st.context.theme.type == "dark" else "light"


def theme_colours() -> Mapping[str, str]:
    """The colours of ui/launch.py that are on screen now."""
    return DARK if theme_name() == "dark" else LIGHT


def quiet_axis(**options: Any) -> dict[str, Any]:
    """A Vega-Lite axis of names: every name, no lines."""
    colour = theme_colours()["textColor"]
    return {"labelOverlap": False, "labelColor": colour, "domain": False, "ticks": False, **options}


def distinct(label: str, number: int) -> str:
    """The label with ``number`` invisible marks: equal words of two spans must not share a row."""
    return label + "\u200b" * number
