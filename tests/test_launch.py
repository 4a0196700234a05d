"""The triage page starts with every safety switch, readable colours, and without loading a model."""

import ast
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

import ragblame.ui.launch
from ragblame.ui.components import nodes
from ragblame.ui.components.palette import HEAT_ENDS
from ragblame.ui.launch import DARK, LIGHT, streamlit_command

UI = Path(ragblame.ui.launch.__file__).parent
THEMES = {"light": LIGHT, "dark": DARK}
HUES = ("red", "orange", "yellow", "green", "blue", "violet", "gray")
SMALLEST_CONTRAST = 4.5  # WCAG 2.1 AA for text of any size


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.1, relative luminance)."""

    def luminance(colour: str) -> float:
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("name", THEMES)
def test_text_can_be_read(name: str) -> None:
    """Every text colour has a contrast of at least 4.5:1 on every background it is drawn on."""
    theme = THEMES[name]
    plain = [theme["backgroundColor"], theme["secondaryBackgroundColor"]]
    pairs = list(product([theme["textColor"], theme["grayTextColor"], theme["linkColor"]], plain))
    for hue in HUES:
        pairs += [
            (theme[f"{hue}TextColor"], theme["backgroundColor"]),
            (theme[f"{hue}TextColor"], theme[f"{hue}BackgroundColor"]),
            (theme["textColor"], theme[f"{hue}BackgroundColor"]),
        ]
    poor = [(text, back, contrast(text, back)) for text, back in pairs]
    assert [pair for pair in poor if pair[2] < SMALLEST_CONTRAST] == []


@pytest.mark.parametrize("name", THEMES)
def test_numbers_on_the_heat_map_can_be_read(name: str) -> None:
    """At every strength of the diverging scale, the number in a cell keeps its contrast."""
    theme = THEMES[name]
    middle = theme["secondaryBackgroundColor"]
    for end, strength in product(HEAT_ENDS[name], range(101)):
        channels = [(int(middle[at : at + 2], 16), int(end[at : at + 2], 16)) for at in (1, 3, 5)]
        mixed = [round(low + (high - low) * strength / 100) for low, high in channels]
        assert contrast(theme["textColor"], "#{:02x}{:02x}{:02x}".format(*mixed)) >= SMALLEST_CONTRAST


def test_command_listens_where_it_was_told() -> None:
    """Address and port are passed on, and what Streamlit does by default is switched off."""
    command = streamlit_command(address="127.0.0.1", port=8599)
    assert command[:4] == [sys.executable, "-m", "streamlit", "run"]
    assert Path(command[4]) == UI / "app.py"
    for option in (
        "--server.address=127.0.0.1",
        "--server.port=8599",
        "--server.headless=true",
        "--server.fileWatcherType=none",
        "--browser.gatherUsageStats=false",
        "--client.toolbarMode=viewer",
        "--client.showErrorDetails=none",
    ):
        assert option in command


def test_streamlit_knows_every_option() -> None:
    """No option is misspelt: Streamlit has each of them."""
    from streamlit import config

    given = [part[2:].split("=", 1)[0] for part in streamlit_command(address="::1", port=1) if "=" in part]
    assert set(given) <= set(config.get_config_options())


def test_nothing_beside_the_script_shadows_the_standard_library() -> None:
    """Streamlit puts the script's folder first on the path, and takes a folder called pages for its own."""
    names = {entry.stem for entry in UI.iterdir() if entry.suffix == ".py" or entry.is_dir()}
    assert names & (sys.stdlib_module_names | {"pages"}) == set()


# What takes markup or directives, by the attribute of `st` or of a container that draws it.
MARKUP = {"markdown", "write", "caption", "table", "title", "header", "subheader", "latex", "html", "toast"}
MARKUP |= {"error", "warning", "info", "success", "exception", "json", "metric", "badge", "write_stream"}


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Method calls of a file, as (method, call)."""
    return [
        (node.func.attr, node)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    ]


def drawing_files() -> list[Path]:
    """Every file that may draw."""
    return [UI / "app.py", UI / "store.py", *UI.glob("components/*.py"), *UI.glob("screens/*.py")]


def test_nothing_draws_markup() -> None:
    """Only our own constant style sheet is ever drawn as markup; no file asks for unsafe HTML."""
    found = []
    for path in drawing_files():
        source = path.read_text("utf-8")
        assert "unsafe_allow" not in source
        assert "components.v1" not in source
        for method, call in calls(path):
            if method in MARKUP and not ast.unparse(call).startswith("logging."):
                found.append((path.name, ast.unparse(call.func)))
    assert found == [("app.py", "st.html")]


def test_labels_are_constants() -> None:
    """Labels of widgets are markdown, so each is a literal, a name of ours, or a fixed list of words."""
    widgets = {"button", "selectbox", "text_input", "segmented_control", "page_link", "download_button"}
    allowed = {"label", "kind.value.capitalize()", "f'Attribute it{again}'"}
    allowed.add("f\"Show {plural(more, 'new span', 'new spans')}\"")
    for path in drawing_files():
        for method, call in calls(path):
            if method in widgets:
                label = call.args[0]
                assert isinstance(label, ast.Constant) or ast.unparse(label) in allowed, path.name
                assert not any(keyword.arg == "help" for keyword in call.keywords), path.name


def test_browser_code_only_makes_text_nodes() -> None:
    """The script never parses text as markup, code, style or address."""
    script = (Path(nodes.__file__).parent / "nodes.js").read_text("utf-8")
    for sink in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval", "Function(", "srcdoc"):
        assert sink not in script
    assert re.findall(r"setAttribute\(([^,]+),", script) == ["name", '"href"']
    tags = set(re.findall(r'"(\w+)"', script[script.index("TAGS") : script.index("ATTRIBUTES")]))
    assert not tags & {"script", "style", "iframe", "img", "object", "embed", "form", "svg", "link", "meta"}


def test_page_loads_no_model() -> None:
    """Importing everything the page needs leaves torch, transformers and the queue's library out."""
    code = (
        "import sys, ragblame.ui.store, ragblame.ui.components.reviewing, ragblame.ui.components.filters, "
        "ragblame.ui.components.waterfall, ragblame.ui.components.numbers, ragblame.ui.components.prompt, "
        "ragblame.ui.components.rows, ragblame.ui.components.brand; "
        "heavy = {'torch', 'transformers', 'captum', 'shap', 'procrastinate', 'altair'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[]"
