"""Colours of the charts for the theme on screen; Vega draws on a canvas and cannot read CSS variables."""

from collections.abc import Mapping

import streamlit as st

from ragblame.ui.launch import DARK, LIGHT


def theme_colours() -> Mapping[str, str]:
    """The colours of ui/launch.py that are on screen now."""
    return DARK if st.context.theme.type == "dark" else LIGHT
