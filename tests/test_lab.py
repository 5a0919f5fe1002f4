"""The lessons in the real interface: JupyterLab as `make lab` starts it, a reader's clicks in headless Chromium.

Every lesson is opened with its gaps filled, run by Run → Run All Cells and looked at: no red cell, every picture there,
and what a slider moves does move. The notebooks are a copy, and so is what the reader keeps: nobody's own is touched.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import nbformat
import pytest
from chromium import CHROMIUM
from filling import filled
from nbformat.reader import NotJSONError
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
from playwright.sync_api import Browser, Page, sync_playwright

from warp_nb.course.exercises import KEPT
from warp_nb.report.guide import steps

pytestmark = pytest.mark.browser
ROOT = Path(__file__).resolve().parents[1]
LESSONS = [f"lessons/{path.name}" for path in sorted((ROOT / "notebooks" / "lessons").glob("*.ipynb"))]
SECONDS = 900
"""Most a lesson may take here: ten times what it takes alone on the machine."""
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},  # cells out of sight are drawn as well
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
WIDGET = "application/vnd.jupyter.widget-view+json"
LOOK = """() => {
  const cells = [...document.querySelectorAll(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell")];
  const shown = selector => cells.flatMap(cell => [...cell.querySelectorAll(".jp-OutputArea " + selector)]);
  const texts = mime => shown(`[data-mime-type="${mime}"]`).map(e => e.textContent.trim()).filter(Boolean);
  const pictures = shown("img");
  return {
    prompts: cells.map(cell => cell.querySelector(".jp-InputPrompt").textContent.trim()),
    errors: texts("application/vnd.jupyter.error").concat(texts("application/vnd.jupyter.stderr")),
    pictures: pictures.length,
    broken: pictures.filter(picture => !picture.complete || !picture.naturalWidth).length,
    sliders: shown(".widget-slider").length,
    widgets: shown(".jp-OutputArea-output").map(e => e.textContent).filter(t => /^(Loading|Error \\w+) widget/.test(t)),
    dialogs: [...document.querySelectorAll("dialog.jp-Dialog")].map(e => e.textContent.trim()),
  };
}"""
SLIDER = """
import io

import ipywidgets as widgets
import matplotlib.pyplot as plt
from IPython.display import display

pictures = []
for height in range(3):
    figure, axes = plt.subplots(figsize=(2, 1))
    axes.plot([0, height])
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    pictures.append(stream.getvalue())
    plt.close(figure)
picture, words = widgets.Image(value=pictures[0]), widgets.HTML("0")
slider = widgets.SelectionSlider(options=["0", "1", "2"], description="η")


def moved(change):
    picture.value, words.value = pictures[int(change.new)], change.new


slider.observe(moved, "value")
display(widgets.VBox([slider, picture, words]))
"""
PLANTED = {
    "an error": "raise ValueError('planted')",
    "a warning": "import sys\nprint('planted', file=sys.stderr)",
    "a broken picture": "from IPython.display import HTML\nHTML('<img src=\"data:image/png;base64,AAAA\">')",
    "a lost widget": f"from IPython.display import display\ndisplay({{'{WIDGET}': {{'model_id': 'x'}}}}, raw=True)",
}
WORDS = {"an error": "planted", "a warning": "planted", "a broken picture": "broken: 1", "a lost widget": "widgets: "}


def sample(*sources: str) -> nbformat.NotebookNode:
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [new_markdown_cell("# Проба"), *map(new_code_cell, sources)]
    return new_notebook(cells=cells, metadata={"kernelspec": kernel})


def copied(folder: Path) -> None:
    """The notebooks as a reader has them, with the gaps filled, and the samples of this file."""
    shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for lesson in LESSONS:
        nbformat.write(filled(nbformat.read(folder / lesson, as_version=4)), folder / lesson)
    plot = "import matplotlib.pyplot as plt\n\nplt.plot([0, 1])\nplt.show()"
    nbformat.write(sample(plot, SLIDER), folder / "sample.ipynb")
    for name, source in PLANTED.items():
        nbformat.write(sample(source, "1 + 1"), folder / f"{name}.ipynb")


class Lab:
    """A server of JupyterLab on a copy of the notebooks."""

    def __init__(self, folder: Path) -> None:
        self.notebooks, self.token = folder / "notebooks", "of-this-test"
        copied(self.notebooks)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        settings = folder / "settings"
        for name, values in SETTINGS.items():
            path = settings / f"{name}.jupyterlab-settings"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values), encoding="utf-8")
        own = {
            KEPT: folder / "kept",
            "JUPYTERLAB_SETTINGS_DIR": settings,
            "JUPYTERLAB_WORKSPACES_DIR": folder / "workspaces",
            "JUPYTER_CONFIG_DIR": folder / "config",
            "JUPYTER_RUNTIME_DIR": folder / "runtime",
        }
        environment = {name: value for name, value in os.environ.items() if name != "MPLBACKEND"}
        self.log = (folder / "log").open("w")
        self.process = subprocess.Popen(
            [
                *self.command(),
                "--no-browser",
                "--allow-root",
                f"--port={self.port}",
                "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={self.token}",
            ],
            env=environment | {name: str(path) for name, path in own.items()},
            stdout=self.log,
            stderr=self.log,
        )

    def command(self) -> list[str]:
        """What `make lab` runs, on the copy."""
        told = subprocess.run(
            ["make", "-n", "--no-print-directory", "lab"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        python, *words, opened = told.strip().splitlines()[-1].split()
        assert python.endswith("python") and opened == "notebooks/index.ipynb"
        return [sys.executable, *words, str(self.notebooks / "index.ipynb")]

    def address(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}/{path}{'&' if '?' in path else '?'}token={self.token}"

    def ask(self, path: str, method: str = "GET") -> bytes:
        with urlopen(Request(self.address(path), method=method), timeout=30) as answer:
            return answer.read()

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                self.ask("api/status")
                return
            except OSError:
                time.sleep(0.5)
        raise AssertionError(Path(self.log.name).read_text()[-3000:])

    def stop_kernels(self) -> None:
        for session in json.loads(self.ask("api/sessions")):
            self.ask(f"api/sessions/{session['id']}", "DELETE")

    def saved(self, path: str) -> list[nbformat.NotebookNode]:
        """Code cells of the file as the lab saved it; for a moment the server leaves the file cut off."""
        deadline = time.monotonic() + 20
        while True:
            try:
                notebook = nbformat.read(self.notebooks / path, as_version=4)
                break
            except NotJSONError:
                assert time.monotonic() < deadline, path
                time.sleep(0.1)
        return [cell for cell in notebook.cells if cell.cell_type == "code"]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    started = Lab(tmp_path_factory.mktemp("lab"))
    try:
        started.wait()
        yield started
    finally:
        started.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    assert CHROMIUM, "Chromium is missing: apt-get install chromium"
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture
def page(lab: Lab, browser: Browser) -> Iterator[Page]:
    opened = browser.new_page(viewport={"width": 1300, "height": 1000})
    opened.set_default_timeout(120_000)
    yield opened
    opened.close()
    lab.stop_kernels()


def open_notebook(lab: Lab, page: Page, path: str) -> None:
    """Open by its address, wait until its kernel is ready."""
    page.goto(lab.address(f"lab/tree/{path}?reset"))
    page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell")
    page.wait_for_function(  # the indicator above the notebook is idle before there is a kernel, too
        "() => /Python 3.* [|] Idle/.test(document.querySelector('#jp-main-statusbar')?.innerText ?? '')"
    )


def run_all(page: Page) -> dict:
    """Run → Run All Cells; what is on the page when every cell has run, or one has stopped."""
    page.click('.lm-MenuBar-itemLabel:text-is("Run")')
    page.click('.lm-Menu-itemLabel:text-is("Run All Cells")')
    deadline, found = time.monotonic() + SECONDS, page.evaluate(LOOK)
    while time.monotonic() < deadline:
        found = page.evaluate(LOOK)
        stopped = found["errors"] and "[*]:" not in found["prompts"]
        if stopped or all(re.fullmatch(r"\[\d+\]:", prompt) for prompt in found["prompts"]):
            break
        page.wait_for_timeout(300)
    for _ in range(20):  # the last outputs are drawn, widgets a while after their cell
        page.wait_for_timeout(500)
        found = page.evaluate(LOOK)
        if not found["widgets"]:
            break
    return found


def save(page: Page) -> None:
    page.keyboard.press("Escape")
    page.keyboard.press("Control+s")
    page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden).jp-mod-dirty", state="detached")
    page.wait_for_function("() => !document.querySelector('.lm-TabBar-tab.lm-mod-current.jp-mod-dirty')")


def faults(found: dict) -> list[str]:
    """What is wrong with a notebook that was run, in words."""
    wrong = [f"red: {text[-800:]}" for text in found["errors"]]
    wrong += [f"a dialog: {text}" for text in found["dialogs"]]
    wrong += [f"{name}: {found[name]}" for name in ("broken", "widgets") if found[name]]
    return wrong + [f"not run: {prompt}" for prompt in found["prompts"] if not re.fullmatch(r"\[\d+\]:", prompt)]


def pictures(cells: list[nbformat.NotebookNode]) -> int:
    return sum("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)


def move_slider(page: Page) -> None:
    """Move the first slider by an arrow key; the picture and the words beside it must follow."""
    slider = page.locator(".jp-OutputArea .widget-slider").first
    box = slider.locator("xpath=ancestor::*[contains(@class, 'jp-OutputArea ')][last()]")
    picture, handle = box.locator("img.widget-image").first, slider.locator(".noUi-handle").first
    slider.scroll_into_view_if_needed()
    before, words, seen = picture.get_attribute("src"), box.inner_text(), picture.screenshot()
    for key in ("ArrowRight", "ArrowLeft", "ArrowLeft"):  # whichever way there is room
        handle.press(key)
        page.wait_for_timeout(700)
        if picture.get_attribute("src") != before and picture.screenshot() != seen:
            assert box.inner_text() != words, "the slider moved the picture and no text"
            return
    raise AssertionError("the slider moved nothing")


@pytest.mark.parametrize("path", LESSONS)
def test_a_lesson_runs_and_shows_everything(lab: Lab, page: Page, path: str) -> None:
    open_notebook(lab, page, path)
    found = run_all(page)
    assert not faults(found)
    if found["sliders"]:
        move_slider(page)
    save(page)
    cells = lab.saved(path)
    assert len(cells) == len(found["prompts"]) and all(cell.execution_count for cell in cells)
    assert not [output for cell in cells for output in cell.outputs if output.output_type == "error"]
    assert found["pictures"] >= pictures(cells)
    assert found["sliders"] >= any(WIDGET in output.get("data", {}) for cell in cells for output in cell.outputs)


def test_the_index_leads_to_every_notebook(lab: Lab, page: Page) -> None:
    open_notebook(lab, page, "index.ipynb")
    found = run_all(page)
    assert not faults(found)
    links = page.locator(".jp-RenderedHTML table a").all()
    assert len(links) == len(list((ROOT / "notebooks").rglob("*.ipynb"))) - 1
    links[0].click()
    page.wait_for_function(
        "name => document.querySelector('.lm-DockPanel-tabBar .lm-mod-current')?.textContent === name",
        arg=Path(steps(ROOT / "notebooks")[0].path).name,
    )


def test_a_picture_and_a_slider_are_seen(lab: Lab, page: Page) -> None:
    open_notebook(lab, page, "sample.ipynb")
    found = run_all(page)
    assert not faults(found) and (found["pictures"], found["sliders"]) == (2, 1)
    move_slider(page)
    save(page)
    assert pictures(lab.saved("sample.ipynb")) == 1


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_seen(lab: Lab, page: Page, name: str) -> None:
    open_notebook(lab, page, f"{name}.ipynb")
    assert WORDS[name] in faults(run_all(page))[0]
