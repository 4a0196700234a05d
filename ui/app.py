"""The triage page's entry script: navigation, look, and the last word on every failure. Nothing else."""

import logging
from importlib.resources import files

import streamlit as st

from ragblame.errors import RagblameError
from ragblame.ui.components.brand import LOGO, MARK
from ragblame.ui.components.nodes import draw
from ragblame.ui.components.notices import problem

_FRAME_CSS = (files("ragblame.ui.components") / "frame.css").read_text("utf-8")

st.set_page_config(page_title="ragblame", page_icon=MARK, layout="wide")
st.logo(LOGO, size="large")
st.html(f"<style>{_FRAME_CSS}</style>")  # a constant of ours; no data may ever come here

page = st.navigation(
    [
        st.Page("screens/queue.py", title="Queue", default=True),
        st.Page("screens/trace.py", title="Trace", url_path="trace", visibility="hidden"),
        st.Page("screens/health.py", title="Health", url_path="health"),
    ],
    position="top",
)
try:
    page.run()
except RagblameError as error:
    draw([problem("This page cannot be shown", str(error), ["ragblame doctor"])], key="failure")
    st.button("Try again", shortcut="t")
except Exception:  # details may hold a stranger's text: they belong in the log, not on the page
    logging.getLogger(__name__).exception("page %s failed", page.title)
    text = "This is a fault of ragblame. The log of `ragblame ui` has the details; please report them."
    draw([problem("This page broke", text)], key="fault")
    st.button("Try again", shortcut="t")
