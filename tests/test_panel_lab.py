"""`run.panel()` in JupyterLab, in a browser, by hand: with the newest ipykernel and the oldest.

With ipykernel 7 messages of widgets come on a thread of their own, with 6 they do not.
"""

import json
import time

import pytest

import iotsim
from tests.browser import OLD_KERNEL, chromium, has_old_kernel, lab, shots
from tests.conftest import lacking

__all__ = ("chromium", "lab", "shots")
pytestmark = [pytest.mark.ui, pytest.mark.timeout(420)]

SPEED = 5
CELLS = (f"""
import json
import ipykernel
from iotsim import Fleet
fleet = (Fleet("plant", seed=42)
         .add("temperature_sensor", count=8_000, labels={{"site": "north"}})
         .add("pump", count=2_000, labels={{"site": "south"}}))
run = fleet.start(speed={SPEED})
run.panel()
""", """
looks = []
def look(change):  # what each message to the page said
    facts = change["new"]
    looks.append({"at": facts.get("series", {}).get("now"), "state": facts["state"],
                  "active": [one["name"] for one in facts["windows"] if one["active"]]})
    if facts["state"] == "stopped":
        with open(f"looks-{ipykernel.version_info[0]}.json", "w") as file:
            json.dump({"looks": looks, "ipykernel": ipykernel.__version__,
                       "injected": [one.at_us / 1e6 for one in run.actions
                                    if one.verb == "inject"]}, file)
run.panel().observe(look, "facts")
""")

# From the click on: when the countdown is there, and when the chart is shaded at its right edge.
MEASURE = """() => {
  const root = document.querySelector(".iotsim"), canvas = root.querySelector(".is-upper");
  const button = [...root.querySelectorAll("button")].find((one) => one.textContent === "Inject");
  const edge = () => {
    const ratio = canvas.width / canvas.clientWidth, right = canvas.clientWidth - 10;
    return canvas.getContext("2d").getImageData((right - 4) * ratio, 8 * ratio, 3, 2).data;
  };
  const before = [...edge()];
  window.seen = {};
  button.addEventListener("click", () => {
    const began = performance.now();
    const look = () => {
      const now = performance.now() - began, data = edge();
      if (!window.seen.text && root.querySelector(".is-active time")) window.seen.text = now;
      if (!window.seen.shade && before.some((part, i) => Math.abs(part - data[i]) > 8)) {
        window.seen.shade = now;
      }
      if (!(window.seen.text && window.seen.shade)) requestAnimationFrame(look);
    };
    look();
  }, { once: true });
}"""


@pytest.fixture(params=["python3", "old"], ids=["the newest ipykernel", "ipykernel 6.31"])
def kernel(request):
    if request.param == "old" and not has_old_kernel():
        lacking(f"{OLD_KERNEL} names no folder with ipykernel 6.31 (tests/run makes one)")
    return request.param


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def has_state(page, wanted):
    page.wait_for_function("wanted => document.querySelector('.is-state')?.textContent === wanted",
                           arg=wanted)


def clock_s(page):
    hours, minutes, seconds = page.locator(".is-state + span").text_content().split(":")
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds)


def test_a_run_of_ten_thousand_is_steered_by_mouse(lab, chromium, shots, kernel):
    page = lab.open(chromium, f"by-mouse-{kernel}", *CELLS, kernel=kernel)
    button(page, "Inject").wait_for()
    page.get_by_text("10,000 devices", exact=True).first.wait_for()
    choose_and_inject(page, shots, kernel)
    type_keys_of_the_notebook(page)
    pause_and_hurry(page)
    save_and_copy(page, lab)
    reload_in_the_middle(page, lab, shots, kernel)
    button(page, "Stop").click()
    has_state(page, "stopped")
    page.get_by_text("ended with").wait_for()
    assert button(page, "Start").is_visible()
    assert button(page, "Inject").is_disabled()
    page.screenshot(path=shots / f"run-{kernel}-3-stopped.png")
    assert page.troubles == []
    page.close()
    seen_within_a_second(lab, kernel)


def choose_and_inject(page, shots, kernel):
    where = page.get_by_label("where", exact=True)
    where.fill("site=nort")  # half of it
    page.wait_for_function("() => document.querySelector('.is-count.is-wrong')")
    where.press_sequentially("h")
    page.get_by_text("8,000 devices", exact=True).wait_for()
    page.get_by_label("fault", exact=True).select_option("offset")
    page.get_by_label("by", exact=True).fill("8")
    page.get_by_label("for", exact=True).fill("10m")
    page.wait_for_function("""() => document.querySelector(".is-upper").getContext("2d")
      .getImageData(0, 0, 1000, 300).data.some((part) => part > 0)""")
    page.evaluate(MEASURE)
    button(page, "Inject").click()
    page.wait_for_function("() => window.seen.text && window.seen.shade")
    seen = page.evaluate("() => window.seen")
    print(f"\n{kernel}: after the click the countdown was there in {seen['text']:.0f} ms, "
          f"the chart shaded in {seen['shade']:.0f} ms")
    left = page.locator(".is-active time")
    first = left.text_content()
    assert first.endswith("left")
    page.wait_for_function(
        "first => document.querySelector('.is-active time').textContent !== first", arg=first)
    page.wait_for_timeout(1500)
    page.screenshot(path=shots / f"run-{kernel}-1-offset.png")


def type_keys_of_the_notebook(page):
    cells = page.locator(".jp-Cell").count()
    button(page, "Clear all").focus()
    for key in "bdd":  # a cell below; delete the cell
        page.keyboard.press(key)
    fault = page.get_by_label("fault", exact=True)
    fault.focus()
    page.keyboard.press("ArrowDown")
    assert fault.input_value() != "offset"
    page.keyboard.press("ArrowUp")
    assert fault.input_value() == "offset"
    assert page.locator(".jp-Cell").count() == cells


def pause_and_hurry(page):
    button(page, "Pause").click()
    has_state(page, "paused")
    stood_s = clock_s(page)
    page.wait_for_timeout(700)
    assert clock_s(page) == stood_s
    button(page, "Resume").click()
    has_state(page, "running")
    button(page, "10×").click()
    page.wait_for_function("""() => [...document.querySelectorAll(".is-speeds button")]
      .some((one) => one.textContent === "10×" && one.getAttribute("aria-pressed") === "true")""")
    page.wait_for_function(f"""() => {{
      const [h, m, s] = document.querySelector(".is-state + span").textContent.split(":");
      return Number(h) * 3600 + Number(m) * 60 + Number(s) > {stood_s};
    }}""")


def save_and_copy(page, lab):
    button(page, "Pause").click()
    has_state(page, "paused")
    button(page, "Save session").click()
    text = page.locator(".is-said").filter(has_text="saved").text_content()
    file = text.removeprefix("saved ").partition(":")[0]
    verified = iotsim.verify(lab.root / file)
    assert verified.ok, verified.difference
    button(page, "Copy as scenario").click()
    code = page.get_by_label("the session as a scenario")
    code.wait_for()
    source = code.input_value()
    assert page.evaluate("() => navigator.clipboard.readText()") == source
    names = {}
    exec(compile(source, "copied", "exec"), names)
    assert names["scenario"].generate().digest == verified.digest
    button(page, "Resume").click()
    has_state(page, "running")


def reload_in_the_middle(page, lab, shots, kernel):
    before_s = clock_s(page)
    lab.reload(page)
    button(page, "Inject").wait_for()
    has_state(page, "running")
    page.get_by_text("8,000 devices", exact=True).first.wait_for()
    assert page.get_by_label("where", exact=True).input_value() == "site=north"
    assert page.get_by_label("fault", exact=True).input_value() == "offset"
    assert page.get_by_label("by", exact=True).input_value() == "8"
    assert page.locator(".is-active li").count() == 1
    assert not page.get_by_label("the session as a scenario").is_visible()
    assert clock_s(page) > before_s
    at_s = clock_s(page)
    page.wait_for_function(f"""() => {{
      const [h, m, s] = document.querySelector(".is-state + span").textContent.split(":");
      return Number(h) * 3600 + Number(m) * 60 + Number(s) > {at_s};
    }}""")
    page.locator(".is-map").click(position={"x": 60, "y": 30})
    page.wait_for_function("""() => /^(temp|pump)/.test(
      document.querySelector("[aria-label='picked device']").value)""")
    page.wait_for_timeout(500)
    page.screenshot(path=shots / f"run-{kernel}-2-loaded-again.png")


def seen_within_a_second(lab, kernel):
    # By the panel's own clock: a crowded machine has another.
    until_s = time.monotonic() + 30
    paths = []
    while not paths and time.monotonic() < until_s:
        paths = [path for path in lab.root.glob("looks-*.json") if path.stat().st_size]
        time.sleep(0.05)
    said = json.loads(paths[0].read_text())
    paths[0].unlink()
    [injected_s] = said["injected"]
    before = [one for one in said["looks"] if one["at"] is not None and one["at"] < injected_s]
    after = [one for one in said["looks"] if one["at"] is not None and one["at"] >= injected_s]
    shown = next(i for i, one in enumerate(after) if one["active"] == ["offset"])
    assert before
    assert all(one["active"] == [] for one in before)
    assert shown <= 5  # looks, of which there are five a second
    late_s = (after[shown]["at"] - injected_s) / SPEED
    print(f"ipykernel {said['ipykernel']}: in look {shown + 1} after it, {late_s:.2f} s of the run")
    old = said["ipykernel"].startswith("6.")
    assert old == (kernel == "old")
