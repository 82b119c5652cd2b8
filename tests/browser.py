"""A JupyterLab and a Chromium for tests that use panels as people do.

    from tests.browser import chromium, lab  # fixtures of a module

    def test_it(lab, chromium):
        page = lab.open(chromium, "a", "from iotsim import Fleet\\n…", "run.panel()")
        page.get_by_role("button", name="Inject", exact=True).click()

Both live as long as a test module: while Playwright's synchronous half is open, nothing else in
this thread can run an event loop. Pictures go to IOTSIM_SHOTS, or to a folder of pytest's.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from tests.conftest import lacking

ROOT = Path(__file__).parent.parent
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium")
OLD_KERNEL = "IOTSIM_OLD_IPYKERNEL"  # names a folder with the oldest ipykernel that we support
FLAGS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--disable-extensions",
         "--disable-background-networking", "--mute-audio")
START_S = 120
PAGE_MS = 60_000

READY = """() => {
  const kernel = window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel;
  return !!(window.jupyterapp?.shell.currentWidget?.context?.isReady && kernel
    && kernel.connectionStatus === "connected" && kernel.status === "idle");
}"""
# The promise is not returned: it hangs where a kernel dies.
RUN_ALL = "() => { jupyterapp.commands.execute('notebook:run-all-cells'); return null; }"

# What a notebook does not need to be shown and run: less to load, less to draw.
UNUSED = (
    "lsp-extension", "extensionmanager-extension", "help-extension", "terminal-extension",
    "hub-extension", "celltags-extension", "csvviewer-extension", "debugger-extension",
    "htmlviewer-extension", "imageviewer-extension", "inspector-extension", "launcher-extension",
    "logconsole-extension", "pdf-extension", "running-extension", "settingeditor-extension",
    "toc-extension", "tooltip-extension", "vega5-extension",
    "workspaces-extension", "console-extension", "fileeditor-extension", "mermaid-extension",
    "documentsearch-extension", "javascript-extension", "json-extension", "statusbar-extension",
    "apputils-extension:announcements", "apputils-extension:notification",
)
SERVERS_UNUSED = ("jupyter_lsp", "jupyter_server_terminals", "notebook_shim",
                  "voila.server_extension", "nbclassic", "notebook")


@pytest.fixture(scope="module")
def chromium():
    """A Chromium that is driven by Playwright."""
    playwright = _playwright()
    with playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield browser
        browser.close()


def _playwright():
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        lacking("playwright is not installed (pip install playwright)")
    if CHROMIUM is None:
        lacking("chromium is not installed (apt-get install chromium)")
    return sync_playwright


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab on a free port, with the kernels `python3` and, if it is there, `old`."""
    home = tmp_path_factory.mktemp("lab")
    server = Lab(home)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shots(tmp_path_factory):
    """The folder that pictures go to."""
    folder = os.environ.get("IOTSIM_SHOTS")
    if not folder:
        return tmp_path_factory.mktemp("shots")
    Path(folder).mkdir(parents=True, exist_ok=True)
    return Path(folder)


class Lab:
    """A JupyterLab of its own: nothing of the user's settings, and nothing left behind.

    Attributes
    ----------
    root : Path
        Where its notebooks are, and where their kernels run.
    """

    def __init__(self, home):
        self.home, self.root = home, home / "root"
        self.root.mkdir()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        self._settings()

    def _settings(self):
        config = self.home / "config"
        (config / "labconfig").mkdir(parents=True)
        (config / "labconfig/page_config.json").write_text(json.dumps({
            "disabledExtensions": {f"@jupyterlab/{name}": True for name in UNUSED}}))
        (config / "jupyter_server_config.json").write_text(json.dumps({"ServerApp": {
            "jpserver_extensions": dict.fromkeys(SERVERS_UNUSED, False)}}))
        old = os.environ.get(OLD_KERNEL)
        if old:
            spec = self.home / "data/kernels/old"
            spec.mkdir(parents=True)
            (spec / "kernel.json").write_text(json.dumps({
                "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                "display_name": "old", "language": "python",
                "env": {"PYTHONPATH": f"{old}{os.pathsep}{ROOT}"}}))

    def start(self):
        """Start the server and wait until it answers."""
        home, port = self.home, self.url.rpartition(":")[2]
        folders = {f"JUPYTER{name}_DIR": str(home / name.rpartition("_")[2].lower()) for name in (
            "_CONFIG", "_DATA", "_RUNTIME", "LAB_SETTINGS", "LAB_WORKSPACES")}
        env = {**os.environ, **folders, "IPYTHONDIR": str(home / "ipython"),
               "PYTHONPATH": str(ROOT), "JUPYTER_PLATFORM_DIRS": "1"}
        with open(home / "log", "w") as log:
            self._process = subprocess.Popen([
                sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root",
                "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
                "--IdentityProvider.token=", "--ServerApp.password=",
                "--ServerApp.disable_check_xsrf=True", "--LabApp.expose_app_in_browser=True",
                f"--ServerApp.root_dir={self.root}"], stdout=log, stderr=subprocess.STDOUT, env=env)
        until_s = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > until_s:
                self.stop()
                pytest.fail(f"JupyterLab does not start:\n{self.log()}")
            time.sleep(0.05)

    def _answers(self):
        try:
            with urllib.request.urlopen(f"{self.url}/api/status", timeout=2):
                return True
        except OSError:
            return False

    def log(self):
        """Return what the server has said."""
        return (self.home / "log").read_text()[-4000:]

    def stop(self):
        """End the server and its kernels."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def open(self, browser, name, *cells, kernel="python3"):
        """Return a page with a notebook of these cells, which begins to run them all."""
        book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        book.metadata["kernelspec"] = {"name": kernel, "display_name": kernel, "language": "python"}
        nbformat.write(book, self.root / f"{name}.ipynb")
        page = page_of(browser)
        page.goto(f"{self.url}/doc/tree/{name}.ipynb")
        page.wait_for_function(READY)
        page.evaluate(RUN_ALL)
        return page

    def reload(self, page):
        """Save the notebook and load its page again, as people do."""
        page.evaluate("() => jupyterapp.commands.execute('docmanager:save')")
        page.reload()
        page.wait_for_function(READY)


def page_of(browser):
    """Return a new page; all of a browser's pages share what it has loaded."""
    if not browser.contexts:
        browser.new_context(viewport={"width": 1180, "height": 1000},
                            permissions=["clipboard-read", "clipboard-write"])
    page = browser.contexts[0].new_page()
    page.set_default_timeout(PAGE_MS)
    page.troubles = []  # what a browser says to developers, and nobody else sees
    page.on("pageerror", lambda error: page.troubles.append(str(error)))
    return page


def has_old_kernel():
    """Return whether the folder of the oldest ipykernel is named and there."""
    folder = os.environ.get(OLD_KERNEL)
    return bool(folder) and (Path(folder) / "ipykernel").is_dir()
