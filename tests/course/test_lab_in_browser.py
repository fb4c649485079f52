"""The notebooks in the real application: JupyterLab as `d3s2 lab` starts it, in Chromium. Each is
opened and run to its end, and a control in it is moved by keyboard.

The chapters 00 to 02 here; D3S2_THOROUGH=1 goes on to 04, some minutes more. What was seen last
lies in build/screenshots.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import browser
import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
THOROUGH = bool(os.environ.get("D3S2_THOROUGH"))
NAMES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
if not THOROUGH:  # what paints or trains takes minutes
    NAMES = [name for name in NAMES if name[:2] in ("00", "01", "02")]
pytestmark = [
    pytest.mark.notebooks,
    pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "-"),
]

SETTINGS = """
c.LabApp.expose_app_in_browser = True
c.ServerApp.open_browser = False
"""
NEWS = {"fetchNews": "false", "checkForUpdates": False}


def checkout(folder: Path) -> Path:
    """A copy of package and notebooks, since the application saves what it opens: every notebook
    has the profile `smoke` in its parameters, as a reader would type it there.
    """
    leave = shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    shutil.copytree(ROOT / "d3s2", folder / "d3s2", ignore=leave)
    shutil.copytree(ROOT / "notebooks", folder / "notebooks", ignore=leave)
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=leave)
    for path in (folder / "notebooks").glob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        for cell in notebook.cells:
            if "parameters" in cell.metadata.get("tags", []):
                cell.source = re.sub(
                    r"^(profile: str = )\S+", r'\1"smoke"', cell.source, flags=re.M
                )
                assert 'profile: str = "smoke"' in cell.source
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, path)
    return folder


def environment(home: Path, sources: Path) -> dict[str, str]:
    """For a server that knows nothing of this machine's user."""
    config = home / "jupyter"
    notify = config / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    notify.mkdir(parents=True)
    (notify / "notification.jupyterlab-settings").write_text(json.dumps(NEWS))
    (config / "jupyter_lab_config.py").write_text(SETTINGS)
    kept = {
        name: value
        for name, value in os.environ.items()
        if "JUPYTER" not in name and not name.startswith("D3S2_")
    }
    return kept | {
        "D3S2_HOME": str(home),
        "HOME": str(home),
        "PYTHONPATH": str(sources),
        "JUPYTER_CONFIG_DIR": str(config),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTERLAB_SETTINGS_DIR": str(config / "lab" / "user-settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(config / "lab" / "workspaces"),
    }


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """`d3s2 lab` and a tab on it: address, token, page."""
    folder = tmp_path_factory.mktemp("lab")
    sources = checkout(folder / "checkout")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [sys.executable, "-P", "-m", "d3s2.runs.cli", "lab", "--port", port, "--allow-root"]
    log = (folder / "log").open("w+")
    server = subprocess.Popen(words, env=environment(folder, sources), cwd=folder, stderr=log)
    try:
        token = waited_for(r"/lab/tree/notebooks\?token=(\w+)", folder / "log", server)
        with browser.opened() as chromium:
            page = chromium.new_page(viewport={"width": 1280, "height": 1000})
            yield SimpleNamespace(
                url=f"http://127.0.0.1:{port}", token=token, page=page, home=folder
            )
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(timeout=60)


def waited_for(pattern: str, log: Path, server: subprocess.Popen) -> str:
    """What the server's log says, once it does."""
    while server.poll() is None:
        if found := re.search(pattern, log.read_text(errors="replace")):
            return found.group(1)
        time.sleep(0.2)
    raise AssertionError(log.read_text(errors="replace"))


def opened(lab: SimpleNamespace, name: str) -> Any:
    """The tab, with this notebook in front and its kernel idle."""
    page = lab.page
    page.goto(f"{lab.url}/lab/tree/notebooks/{name}.ipynb?token={lab.token}&reset")
    page.wait_for_function(
        """name => {
            const shown = window.jupyterapp?.shell.currentWidget;
            return shown?.context?.path === name && shown.context.isReady
              && shown.sessionContext.session?.kernel?.status === "idle";
        }""",
        arg=f"notebooks/{name}.ipynb",
        timeout=120_000,
    )
    return page


CELLS = "() => window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells"
ANSWER = """control => [...control.closest(".jp-OutputArea-output").querySelectorAll("img")]
  .map((image) => image.src).join("|")"""
"""The pictures beside a control; its own readout and a busy sign are no answer."""
CONTROLS = ".jp-OutputArea .noUi-handle, .jp-OutputArea select"
STATE = "control => control.ariaValueNow ?? control.selectedIndex"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs_to_its_end_and_answers(lab: SimpleNamespace, name: str) -> None:
    page = opened(lab, name)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
    codes = [cell for cell in page.evaluate(CELLS) if cell["cell_type"] == "code"]
    wrong = [
        f"{out.get('ename')}: {out.get('evalue')}"
        for cell in codes
        for out in cell["outputs"]
        if out["output_type"] == "error"
    ]
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    if wrong:
        page.screenshot(path=SCREENSHOTS / f"lab-{name}-failed.png")
    assert wrong == []
    assert [cell["execution_count"] for cell in codes] == list(range(1, len(codes) + 1))
    assert (lab.home / "runs" / "smoke" / "run.json").is_file()
    move_a_control(page, codes)
    page.screenshot(path=SCREENSHOTS / f"lab-{name}.png")
    page.evaluate("() => window.jupyterapp.shell.currentWidget.sessionContext.shutdown()")


def move_a_control(page: Any, codes: list[dict[str, Any]]) -> None:
    """Where the notebook shows controls: one is moved by keyboard, and what it shows changes."""
    live = [
        place
        for place, cell in enumerate(codes)
        if any(
            "application/vnd.jupyter.widget-view+json" in out.get("data", {})
            for out in cell["outputs"]
        )
    ]
    asked = any(re.search(r"\bwidgets\.\w+\(", cell["source"]) for cell in codes)
    assert bool(live) == asked
    if not live:
        return
    # Only cells near the window are drawn: go to the first that has a control
    page.evaluate(
        """place => {
            const book = window.jupyterapp.shell.currentWidget.content;
            const cells = book.widgets.filter((cell) => cell.model.type === "code");
            return book.scrollToCell(cells[place], "start");
        }""",
        live[0],
    )
    control = page.locator(CONTROLS).first
    control.wait_for(timeout=60_000)
    before = control.evaluate(ANSWER)
    stood = control.evaluate(STATE)
    control.focus()
    for key in ("ArrowRight", "ArrowLeft", "ArrowUp", "ArrowDown"):  # it may begin at its end
        page.keyboard.press(key)
        if control.evaluate(STATE) != stood:
            break
    handle = control.element_handle()
    page.wait_for_function(
        f"([control, before]) => ({ANSWER})(control) !== before",
        arg=[handle, before],
        timeout=120_000,
    )
