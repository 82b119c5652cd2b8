"""The views of a fleet's, a scenario's and a result's panel in a page, without a kernel."""

import base64

import pytest

pytest.importorskip("anywidget")

from iotsim import Fleet, Scenario
from iotsim.panels.assets import script, style
from tests.browser import chromium as chromium
from tests.browser import page_of

pytestmark = pytest.mark.ui

# Models as widgets have them, known by an id; what is sent is kept.
RIG = """async ({ source, states }) => {
  const url = URL.createObjectURL(new Blob([source], { type: "text/javascript" }));
  const view = (await import(url)).default;
  const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const models = window.models = {};
  for (const [id, state] of Object.entries(states)) {
    const calls = new Map();
    models[id] = {
      sent: [], calls,
      state: { ...state, lines: bytes(state.lines), cells: bytes(state.cells) },
      widget_manager: { get_model: async (wanted) => models[wanted] },
      get(name) { return this.state[name]; },
      send(message) { this.sent.push(message); },
      on(name, call) { calls.set(name, [...(calls.get(name) || []), call]); },
      off(name, call) { calls.set(name, calls.get(name).filter((one) => one !== call)); },
      tell(facts) {
        this.state.facts = { ...this.state.facts, ...facts };
        for (const call of calls.get("change:facts") || []) call();
      },
      heard() { return [...calls.values()].reduce((sum, all) => sum + all.length, 0); },
    };
  }
  window.show = (id) => {
    const el = document.createElement("div");
    document.body.replaceChildren(el);
    window.leave = view.render({ model: models[id], el });
  };
}"""


def state_of(panel):
    return {"kind": panel.kind, "menu": panel.menu, "facts": panel.facts,
            **{name: base64.b64encode(getattr(panel, name)).decode() for name in
               ("lines", "cells")}}


@pytest.fixture(scope="module")
def page(chromium):
    fleet = Fleet("paged", seed=42).add("pump", count=20, labels={"site": "<i>north</i>"})
    scenario = (Scenario("paged", fleet).at("1m").inject("disconnect", duration="30s")
                .at("2m").expect("count() > 10", "alive").lasting("3m"))
    panels = {"fleet": fleet.panel(), "scenario": scenario.panel(),
              "result": scenario.generate().panel()}
    found = page_of(chromium)
    found.set_content("<!doctype html><body style='width:900px'></body>")
    found.add_style_tag(content=style())
    found.evaluate(RIG, {"source": script(),
                         "states": {id: state_of(panel) for id, panel in panels.items()}})
    yield found
    assert found.troubles == []


def sent(page, model):
    return page.evaluate("(id) => models[id].sent.splice(0)", model)


def test_a_fleet_is_looked_at_and_started_by_click_and_what_is_said_is_seen(page):
    page.evaluate("show('fleet')")
    assert page.get_by_role("cell", name="site=<i>north</i>").is_visible()
    page.get_by_label("speed").select_option("60")
    assert page.get_by_text("600/s at 60×").is_visible()
    page.get_by_label("for", exact=True).fill("10m")
    page.get_by_role("button", name="Pre-flight").click()
    page.get_by_label("own thread").check()
    page.get_by_role("button", name="Start").click()
    given = {"speed": "60", "duration": "10m"}
    asked = [one for one in sent(page, "fleet") if one["do"] != "choose"]
    assert asked == [{"do": "preflight", **given, "thread": False},
                     {"do": "start", **given, "thread": True}]
    page.evaluate("""models.fleet.tell({
      preflight: { busy: false, ok: false, lines: [[false, "memory", "too little"]] },
      taken: "yes", said: { number: 1, text: "already live", wrong: true } })""")
    assert page.get_by_text("too little").is_visible()
    assert page.get_by_text("already live").is_visible()
    assert page.get_by_role("button", name="Replace").is_visible()


def test_a_scenario_shows_lanes_progress_and_a_verdict_and_looks_back_in_place(page):
    page.evaluate("show('scenario')")
    assert [one.get_attribute("aria-label") for one in page.get_by_role("listitem").all()
            if one.get_attribute("aria-label")] == [
        "disconnect, all, 00:01:00 to 00:01:30, 20 devices", "expect, 00:02:00, alive"]
    page.get_by_role("button", name="Generate").click()
    assert sent(page, "scenario") == [{"do": "generate"}]
    page.evaluate("models.scenario.tell({ busy: { share: 0.4, at: '00:01:12', leaving: false } })")
    assert page.get_by_role("progressbar").get_attribute("value") == "0.4"
    page.get_by_role("button", name="Cancel").click()
    page.evaluate("""models.scenario.tell({ busy: null, past: "result",
      checks: [[120, "00:02:00", "passed", "alive", "count()=1"]],
      verdict: { passed: true, rows: 1800, duration: "00:03:00", digest: "abc", errors: [],
                 notes: [], counts: { passed: 1, failed: 0, "not evaluated": 0 } } })""")
    assert page.get_by_text("1 expectation passed").is_visible()
    page.get_by_role("slider", name="moment").wait_for()
    page.evaluate("models.scenario.tell({ past: '' })")
    assert page.get_by_role("slider", name="moment").count() == 0
    page.evaluate("leave()")
    assert page.evaluate("models.scenario.heard() + models.result.heard()") == 0


def test_the_slider_asks_for_one_moment_at_a_time_by_keys_too(page):
    page.evaluate("show('result')")
    sent(page, "result")
    slider = page.get_by_role("slider", name="moment")
    slider.focus()
    for key in ("Home", "PageUp", "ArrowRight"):
        slider.press(key)
    assert sent(page, "result") == [{"do": "moment", "at": 0}]
    page.evaluate("models.result.tell({ moment: 0, clock: '00:00:00' })")
    page.wait_for_function("models.result.sent.length")
    (asked,) = sent(page, "result")  # the latest wish, now that there is an answer
    assert 10 < asked["at"] < 30
    assert slider.get_attribute("aria-valuetext") == "00:00:18"
    page.evaluate("(at) => models.result.tell({ moment: at, before: null, after: 60 })",
                  asked["at"])
    page.get_by_role("button", name="next action").wait_for()
    page.wait_for_function("!document.querySelector('[aria-label=\"next action\"]').disabled")
    page.get_by_role("button", name="next action").click()
    page.get_by_role("button", name="inject disconnect").click()
    assert sent(page, "result") == [{"do": "moment", "at": 60}]
    page.evaluate("leave()")
    assert page.evaluate("models.result.heard()") == 0
