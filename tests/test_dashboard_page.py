"""`iotsim dashboard` as people use it: a page in a browser, and nothing left when it is closed."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.browser import chromium as chromium
from tests.browser import shots as shots
from tests.conftest import lacking

ROOT = Path(__file__).parent.parent
START_S, END_S = 90, 30
WAIT_MS = 60_000

pytestmark = [pytest.mark.ui, pytest.mark.slow, pytest.mark.timeout(300)]


class Served:
    """A dashboard that is served by a process of its own."""

    def __init__(self, home, *arguments):
        self._log = home / "log"
        env = {**os.environ, "PYTHONPATH": str(ROOT), "IPYTHONDIR": str(home / "ipython"),
               **{f"JUPYTER_{name}_DIR": str(home / name.lower())
                  for name in ("CONFIG", "DATA", "RUNTIME")}}
        self.folder = home
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "iotsim", "dashboard", "--no-browser", *arguments],
                stdout=subprocess.PIPE, stderr=log, text=True, env=env, cwd=home)
        self.line = self.process.stdout.readline()
        found = re.fullmatch(r"dashboard: (http://127\.0\.0\.1:\d+/\?token=[0-9a-f]{32}) "
                             r"\(Ctrl-C ends it\)\n", self.line)
        if found is None:
            self.end()
            pytest.fail(f"no address: {self.line!r}\n{self.log()}")
        self.url = found[1]

    def log(self):
        return self._log.read_text()

    def kernels(self):
        """Return the processes of its pages."""
        told = subprocess.run(["ps", "--ppid", str(self.process.pid), "-o", "pid=,args="],
                              capture_output=True, text=True, check=False).stdout
        return [int(line.split()[0]) for line in told.splitlines() if "ipykernel" in line]

    def end(self, number=signal.SIGTERM):
        """End it as a terminal or a supervisor does; return its exit status and what it said."""
        if self.process.stdout.closed:
            return self.process.returncode, ""
        self.process.send_signal(number)
        try:
            status = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        rest = self.process.stdout.read()
        self.process.stdout.close()
        return status, rest


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    if sys.platform != "linux":
        lacking("ps of procps is needed to count kernels")
    if importlib.util.find_spec("voila") is None:
        lacking("voila is not installed (pip install voila)")
    made = Served(tmp_path_factory.mktemp("served"))
    yield made
    made.end()


def gone(condition, limit_s):
    until_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.05)


def status_of(url, **headers):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_a_page_shows_the_fleet_and_does_what_people_click(served, chromium, shots):
    page = chromium.new_page(viewport={"width": 1180, "height": 900})
    page.set_default_timeout(WAIT_MS)
    troubles, outside = [], []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("requestfinished", lambda asked: outside.append(asked.url)
            if not asked.url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:"))
            else None)
    page.goto(served.url)
    page.get_by_text("100 devices", exact=True).wait_for()
    page.get_by_role("tab", name="Overview").wait_for()
    page.locator(".is-card", has_text="rate").get_by_text("acknowledged").wait_for()
    page.screenshot(path=shots / "dashboard_overview.png")

    page.get_by_role("tab", name="Overview").press("ArrowRight")
    page.get_by_role("tab", name="Devices", selected=True).wait_for()
    page.get_by_label("profile", exact=True).select_option("pump")
    page.get_by_role("button", name="Spawn").click()
    page.get_by_role("banner").get_by_text("105 devices", exact=True).wait_for()
    page.get_by_role("status").filter(has_text="add pump count=5").wait_for()

    page.get_by_role("tab", name="Telemetry").click()
    readings = page.get_by_role("region", name="readings")
    others = readings.get_by_role("cell", name=re.compile("^temperature_sensor-")).first
    others.wait_for()
    page.get_by_label("ids").fill("pump-003*")  # four of those that were spawned just now
    others.wait_for(state="hidden")
    readings.get_by_role("cell", name="pump-0034", exact=True).first.wait_for()
    assert set(readings.locator("tbody tr td:nth-child(2)").all_text_contents()) <= {
        f"pump-003{n}" for n in range(5)}
    page.screenshot(path=shots / "dashboard_telemetry.png")

    page.get_by_role("tab", name="Faults").click()
    faults = page.get_by_role("region", name="faults", exact=True)
    faults.get_by_label("where").fill("device_type=pump")
    faults.get_by_text("35 devices", exact=True).wait_for()
    faults.get_by_role("button", name="Inject", exact=True).click()
    page.get_by_role("list", name="active faults").get_by_text("35 devices").wait_for()
    page.screenshot(path=shots / "dashboard_faults.png")

    page.get_by_role("tab", name="Alerts").click()
    alert = page.get_by_role("list", name="alerts").get_by_text("35 pump devices are silent")
    alert.wait_for()
    page.screenshot(path=shots / "dashboard_alerts.png")
    page.get_by_role("button", name="Stop", exact=True).first.click()
    page.get_by_text("stopped", exact=True).first.wait_for()
    page.close()
    assert not troubles
    assert not outside
    assert served.log() == ""


def test_the_kernel_of_a_page_ends_when_the_page_is_closed(served):
    gone(lambda: not served.kernels(), END_S)


def test_it_listens_to_this_machine_alone_and_to_who_knows_the_token(served):
    plain, _, _ = served.url.partition("?")
    assert status_of(plain + "voila/api/shutdown/x") in (403, 404, 405)
    assert status_of(served.url, Host="elsewhere.example") == 403
    assert served.kernels() == [], "nobody without the token has a kernel"


def test_it_ends_when_it_is_told_to_with_nothing_left(served):
    status, rest = served.end(signal.SIGINT)
    assert (status, rest, served.log()) == (0, "", "")
    assert not any(path.suffix == ".ipynb" for path in served.folder.iterdir())
