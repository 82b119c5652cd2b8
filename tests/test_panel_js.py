"""The browser's half of the panels: modules that join into one, and what it does in a page."""

import base64
import json
import re
from importlib.resources import files
from itertools import pairwise

import comm
import pytest

from iotsim.panels.assets import MODULES, STYLES, joinable, script, style
from tests.browser import chromium as chromium
from tests.browser import page_of
from tests.panel_rig import Wire, live

FOLDER = files("iotsim.panels") / "js"
SOURCES = {name: (FOLDER / f"{name}.js").read_text("utf-8") for name in MODULES}
IMPORT = re.compile(r'^import \{([^}]*)\} from "\./(\w+)\.js";$', re.MULTILINE)
TOP = re.compile(r"^(?:export )?(?:async )?(?:function|class|const|let) (\w+)", re.MULTILINE)
EXPORT = re.compile(r"^export (?:async )?(?:function|class|const|let) (\w+)", re.MULTILINE)


def imports(source):
    """What a module imports: by module, names."""
    return {name: [one.strip() for one in names.split(",") if one.strip()]
            for names, name in IMPORT.findall(source)}


# -- as text --------------------------------------------------------------------------------------


def test_every_file_is_joined():
    found = {path.name for path in FOLDER.iterdir()}
    assert found == {f"{name}.js" for name in MODULES} | set(STYLES)
    assert MODULES[-1] == "main"


def test_names_are_unique_over_all_files():
    owners = {}
    for module, source in SOURCES.items():
        for name in TOP.findall(source):
            assert name not in owners, f"{name} is in {owners[name]}.js and {module}.js"
            owners[name] = module
    assert len(owners) > 50


@pytest.mark.parametrize("module", MODULES)
def test_what_a_module_imports_is_there_and_is_used(module):
    source = SOURCES[module]
    for name, wanted in imports(source).items():
        assert name in MODULES, f"{module}.js imports {name}.js, which is not joined"
        offered = EXPORT.findall(SOURCES[name])
        body = IMPORT.sub("", source)
        for one in wanted:
            assert one in offered, f"{name}.js does not export {one}"
            assert re.search(rf"\b{one}\b", body), f"{module}.js does not use {one}"
    # A name of another file that is not imported would work only when joined.
    own = set(TOP.findall(source)) | {one for names in imports(source).values() for one in names}
    plain = re.sub(r"//[^\n]*|`(?:\\.|[^`\\])*`|\"(?:\\.|[^\"\\\n])*\"", "", IMPORT.sub("", source))
    called = set(re.findall(r"(?<![.\w])(\w+)\(", plain))
    others = {name for text in SOURCES.values() for name in EXPORT.findall(text)}
    local = set(re.findall(r"(?:const|let|function|,|\{|\() ?(\w+)(?: =|\(|,|\))", plain))
    assert not (called & others) - own - local


def test_what_is_exported_is_imported_somewhere():
    wanted = {one for source in SOURCES.values() for names in imports(source).values()
              for one in names}
    unused = {f"{module}.js: {name}" for module, source in SOURCES.items()
              for name in EXPORT.findall(source) if name not in wanted | set(NAMES)}
    assert not unused


def test_the_joined_module_has_no_leftovers_of_its_parts():
    joined = script()
    assert not re.search(r"^\s*import\b", joined, re.MULTILINE)
    assert re.findall(r"^export .*$", joined, re.MULTILINE) == ["export default {"]
    assert "https://" not in joined  # nothing is loaded from elsewhere
    assert "innerHTML" not in joined
    assert "insertAdjacentHTML" not in joined
    assert joinable('import { h } from "./dom.js";\nexport const A = 1;\n') == "const A = 1;\n"
    assert "console." not in joined


def test_every_rule_of_the_style_sheet_is_about_our_panels():
    plain = re.sub(r"/\*.*?\*/", "", style(), flags=re.DOTALL)
    for selector in re.findall(r"(?:^|\})\s*([^@{}]+)\{", plain):
        for one in re.sub(r"\([^)]*\)", "", selector).split(","):
            assert ".iotsim" in one or not one.strip(), one
    assert "http" not in plain


# -- in a browser ---------------------------------------------------------------------------------

LOAD = """async ({ source, names }) => {
  const text = `${source}\\nexport const inner = { ${names.join(", ")} };`;
  const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  const found = await import(url);
  window.ours = found.inner;
  window.view = found.default;
  return Object.keys(found);
}"""

# A page whose timers, observers and frames are counted, and a model as a widget has it.
RIG = """({ state, buffers }) => {
  const live = window.live = { intervals: new Set(), timeouts: new Set(), observers: new Set() };
  const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
  const [every, noMore, later, never] = [setInterval, clearInterval, setTimeout, clearTimeout]
    .map((one) => one.bind(window));
  window.setInterval = (...given) => {
    const id = every(...given);
    live.intervals.add(id);
    return id;
  };
  window.clearInterval = (id) => { live.intervals.delete(id); noMore(id); };
  window.setTimeout = (call, ...given) => {
    const id = later(() => { live.timeouts.delete(id); call(); }, ...given);
    live.timeouts.add(id);
    return id;
  };
  window.clearTimeout = (id) => { live.timeouts.delete(id); never(id); };
  const Real = window.ResizeObserver;
  window.ResizeObserver = class extends Real {
    observe(...given) { live.observers.add(this); super.observe(...given); }
    disconnect() { live.observers.delete(this); super.disconnect(); }
  };
  let frames = new Map(), count = 0;
  live.frames = () => frames.size;
  window.requestAnimationFrame = (call) => { frames.set(++count, call); return count; };
  window.cancelAnimationFrame = (id) => frames.delete(id);
  window.paint = () => {
    const now = [...frames.values()];
    frames = new Map();
    for (const call of now) call(performance.now());
  };
  const views = Object.fromEntries(Object.entries(buffers).map(
    ([name, text]) => [name, new DataView(bytes(text).buffer)]));
  const listeners = new Map();
  window.model = {
    state: { ...state, ...views }, sent: [], listeners,
    get(name) { return this.state[name]; },
    send(message) { this.sent.push(message); },
    on(name, call) { listeners.set(name, [...(listeners.get(name) || []), call]); },
    off(name, call) {
      listeners.set(name, (listeners.get(name) || []).filter((one) => one !== call));
    },
    change(values) {
      Object.assign(this.state, values);
      for (const name of Object.keys(values)) {
        for (const call of listeners.get(`change:${name}`) || []) call();
      }
    },
    heard() { return [...listeners.values()].reduce((sum, calls) => sum + calls.length, 0); },
  };
}"""

NAMES = ("short", "whole", "rate", "milliseconds", "plural", "clock", "left", "ticks", "timeTicks",
         "layout", "cellAt")


@pytest.fixture(scope="module")
def state():
    """The state of a panel; made first, as no loop runs beside Playwright."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm, "create_comm", Wire)
        return real_state()


@pytest.fixture(scope="module")
def page(state, chromium):
    found = page_of(chromium)
    found.goto("about:blank")
    found.set_content("<!doctype html><body style='width:900px'></body>")
    assert found.evaluate(LOAD, {"source": script(), "names": list(NAMES)}) == ["default", "inner"]
    found.add_style_tag(content=style())
    yield found
    assert found.troubles == []


def said(page, name, values):
    return page.evaluate("([name, values]) => values.map((one) => ours[name](one))", [name, values])


@pytest.mark.ui
def test_numbers_are_as_people_read_them(page):
    nan = float("nan")
    assert said(page, "short", [0, 1, -1.5, 0.123456, 1234.5, 12345678, 0.00001, nan]) == [
        "0", "1", "-1.5", "0.1235", "1,235", "1.2e+7", "1.0e-5", "–"]
    assert said(page, "whole", [0, 999, 1000, 10**9, nan]) == [
        "0", "999", "1,000", "1,000,000,000", "–"]
    assert said(page, "rate", [0, 0.123, 9.99, 99.4, 100, 48210.4, nan]) == [
        "0", "0.12", "10", "99", "100", "48,210", "–"]
    assert said(page, "milliseconds", [0, 0.0001234, 0.0099, 0.01, 0.5, 9.9, 12.345, nan]) == [
        "0 ms", "0.12 ms", "9.9 ms", "10 ms", "500 ms", "9900 ms", "12.3 s", "–"]
    assert said(page, "clock", [0, 59.9, 3600, 86399, 86400, 90061, -5, nan]) == [
        "00:00:00", "00:00:59", "01:00:00", "23:59:59", "1d 00:00:00", "1d 01:01:01", "00:00:00",
        "–"]
    assert said(page, "left", [0, 0.1, 43, 60, 3599, 3600, 90000]) == [
        "00:00", "00:01", "00:43", "01:00", "59:59", "1:00:00", "25:00:00"]
    assert page.evaluate("() => [0, 1, 2, 1e6].map((one) => ours.plural(one, 'device'))") == [
        "0 devices", "1 device", "2 devices", "1,000,000 devices"]


@pytest.mark.ui
def test_ticks_are_few_round_and_within(page):
    cases = [[0, 1, 4], [-5, 5, 4], [24.1, 24.9, 5], [0, 1e9, 3], [1e-7, 2e-7, 4], [3, 3, 4],
             [99.99, 100.01, 6], [-1e-3, 1e-3, 2]]
    found = page.evaluate("cases => cases.map(([a, b, n]) => ours.ticks(a, b, n))", cases)
    for (low, high, count), ticks in zip(cases, found, strict=True):
        assert 1 <= len(ticks) <= count + 2
        slack = 1e-6 * (high - low)
        assert all(low - slack <= value <= high + slack for value in ticks)
        steps = {round((b - a) / (high - low), 6)
                 for a, b in pairwise(ticks)}
        assert len(steps) <= 1
    times = page.evaluate("""() => [[0, 10], [0, 100], [50, 5000], [0, 9e5], [0, 1e9], [7, 7]]
      .map(([a, b]) => ours.timeTicks(a, b, 8))""")
    assert all(len(ticks) <= 9 for ticks in times[:4])
    assert len(times[4]) <= 2000


@pytest.mark.ui
def test_squares_of_the_map_fit_and_are_found_again_where_they_are_drawn(page):
    found = page.evaluate("""() => {
      const wrong = [], box = { getBoundingClientRect: () => ({ left: 3, top: 5 }) };
      for (const [wide, high] of [[700, 130], [320, 130], [60, 400], [1, 1]]) {
        for (const count of [1, 2, 7, 50, 999, 2500, 10000]) {
          const grid = ours.layout(count, wide, high);
          const rows = Math.ceil(count / grid.across);
          if (grid.across * grid.side > wide + 1e-6) wrong.push(["wide", count, wide, high]);
          if (rows * grid.side > high + 1e-6 && grid.across < count) {
            wrong.push(["high", count, wide, high]);
          }
          for (const cell of [0, count >> 1, count - 1]) {
            const event = { clientX: 3 + ((cell % grid.across) + 0.5) * grid.side,
              clientY: 5 + (Math.floor(cell / grid.across) + 0.5) * grid.side };
            if (ours.cellAt(event, box, grid, count) !== cell) wrong.push([cell, count, wide]);
          }
          const outside = { clientX: 3 + (grid.across + 0.5) * grid.side, clientY: 6 };
          if (ours.cellAt(outside, box, grid, count) !== -1) wrong.push(["outside", count]);
        }
      }
      return wrong;
    }""")
    assert found == []


@pytest.mark.ui
def test_a_view_is_drawn_a_thousand_times_and_leaves_nothing(page, state):
    state = dict(state)
    buffers = {name: base64.b64encode(state.pop(name)).decode() for name in ("lines", "cells")}
    plain = {name: state[name] for name in ("kind", "menu", "facts", "code")}
    page.evaluate(RIG, {"state": plain, "buffers": buffers})
    made = page.evaluate("""() => {
      window.el = document.body.appendChild(document.createElement("div"));
      window.end = view.render({ model, el });
      for (let i = 0; i < 3; i += 1) paint();
      return { nodes: el.querySelectorAll("*").length, heard: model.heard(), text: el.textContent };
    }""")
    assert "50 devices" in made["text"]
    assert made["heard"] >= 3
    painted = page.evaluate("""() => [...el.querySelectorAll("canvas")].map((one) => {
      const data = one.getContext("2d").getImageData(0, 0, one.width, one.height).data;
      return data.some((part) => part !== 0);
    })""")
    assert painted == [True, True, True]
    after = page.evaluate("""() => {
      const facts = model.get("facts"), began = performance.now();
      let most = 0;
      for (let i = 0; i < 1000; i += 1) {
        const windows = facts.windows.map((one) => ({ ...one, left: one.left + i }));
        model.change({ facts: { ...facts, time: facts.time + i, windows: i % 2 ? windows : [],
          said: { number: i, text: `said ${i}`, wrong: i % 3 === 0 },
          log: i % 2 ? facts.log : facts.log.slice(0, 1), match: { where: "all", count: i } },
          lines: model.get("lines"), cells: model.get("cells") });
        most = Math.max(most, live.frames());
        paint();
      }
      model.change({ facts });
      paint();
      return { nodes: el.querySelectorAll("*").length,
        canvases: document.querySelectorAll("canvas").length, timeouts: live.timeouts.size,
        intervals: live.intervals.size, heard: model.heard(), most,
        took: performance.now() - began };
    }""")
    print(f"\na thousand updates took {after['took']:.0f} ms in the page")
    assert after["nodes"] == made["nodes"]
    assert after["heard"] == made["heard"]
    assert after["canvases"] == 3
    assert after["most"] <= 1  # however much changes, it is drawn once a frame
    assert after["intervals"] == 1
    assert after["timeouts"] <= 3
    left = page.evaluate("""async () => {
      model.change({ facts: { ...model.get("facts"), time: 1 } });  // a frame is due
      el.querySelector("input").dispatchEvent(new Event("input"));  // and a question
      end();
      const sent = model.sent.length;
      el.remove();
      paint();
      await new Promise((done) => setTimeout(done, 250));
      return { heard: model.heard(), intervals: live.intervals.size, frames: live.frames(),
        observers: live.observers.size, sent: model.sent.length - sent,
        timeouts: live.timeouts.size };
    }""")
    assert left == {"heard": 0, "intervals": 0, "frames": 0, "observers": 0, "sent": 0,
                    "timeouts": 0}


def real_state():
    """The state of a panel of a run with a fault, as a page gets it; HTML wherever text is."""
    html = "<img src=x onerror='window.hacked = 1'>"

    async def work(stage):
        await stage.said(do="inject", where="site=north", fault="offset", duration="60s",
                         parameters={"by": "5"}, reason=html)
        stage.run.log(html)
        await stage.ask(do="match", where="all")
        await stage.ask(do="pick", cell=3)
        await stage.ticks(8)
        return dict(stage.wire.state)

    state = live(work)
    facts = state["facts"]
    facts["title"] = facts["picked"]["id"] = facts["picked"]["type"] = html
    facts["errors"] = {"count": 2, "texts": [html]}
    for one in facts["windows"]:
        one["name"] = one["where"] = html
    return json.loads(json.dumps({name: value for name, value in state.items()
                                  if not isinstance(value, bytes)})) | {
        name: value for name, value in state.items() if isinstance(value, bytes)}


@pytest.mark.ui
def test_html_in_ids_labels_and_reasons_stays_text(page):
    assert page.evaluate("() => window.hacked") is None
    assert page.evaluate("() => document.querySelectorAll('img').length") == 0
