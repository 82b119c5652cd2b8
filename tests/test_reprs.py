"""How things look: one line of text, the same facts as HTML, escaped, at once, no secrets."""

import asyncio
import dataclasses
import html
import re
from time import perf_counter

import pytest

import iotsim
from iotsim import Fleet, Gateway, Platform, Profile, Scenario
from iotsim.actions import Action
from iotsim.errors import BadValue, IotsimError
from iotsim.gateway.provisioning import Enrolment
from iotsim.gateway.run import GatewayRun
from iotsim.lab.platform import NotipLab
from iotsim.preflight import Finding
from iotsim.preflight_fleet import Preflight
from iotsim.run import Run

NASTY = "<script>alert('x')</script>&"
SECRET = "s3cret"
# Words between facts, not facts.
GLUE = {"a", "action", "and", "at", "by", "error", "in", "more", "note", "of", "on", "over",
        "result", "the", "with", "where"}


def fleet():
    return (Fleet(NASTY, seed=7).add("pump", count=3, labels={"site": NASTY})
            .publish_to(f"mqtt://ann:{SECRET}@localhost"))


def scenario():
    return (Scenario(NASTY, Fleet("plain", seed=7).add("pump", count=3)).at("10s")
            .inject("stuck", where="device_type=pump", duration="10s", reason=NASTY)
            .expect("count() > 1000", message=NASTY).lasting("1m"))


def result():
    return dataclasses.replace(scenario().generate(), notes=(NASTY, "another"),
                               errors=(IotsimError(NASTY),))


def live():
    """What a run has to show while it goes on, and an audit of what it left."""
    async def begun():
        loud = Fleet(NASTY, seed=7).add("pump", count=3).publish_to("memory:reprs")
        run = loud.start("1h")
        await run.ready()
        run.inject("stuck", "count=2")
        shown = [Shown(run), Shown(run.snapshot())]
        await run.stop()
        left = await loud.run("10s", speed="max")
        return [*shown, left.audit([(NASTY, b"{}", "x/y/1/0")])]

    return asyncio.run(begun())


class Shown:
    """A moment of something alive: it says what it said then."""

    def __init__(self, thing):
        self.text, self.html = repr(thing), thing._repr_html_()

    def __repr__(self):
        return self.text

    def _repr_html_(self):
        return self.html


def tap():
    with iotsim.tap("http://127.0.0.1:0") as made:
        return Shown(made)


def verification(tmp_path):
    made = Fleet("plain", seed=7).add("pump").generate("10s").save(tmp_path / "x.iotsim")
    same = iotsim.verify(made)
    return [same, dataclasses.replace(same, ok=False, difference=f"device {NASTY!r}\nand more")]


def gateway():
    made = Gateway("gw-{n}", factory_key=SECRET, count=4, seed=7)
    return made.sensor("temperature").sensor("humidity")


def profile():
    return Profile("pump", {"flow": {"type": "gaussian", "mean": 1, "stddev": 1, "unit": NASTY}})


def platform():
    return Platform(provisioning_url="http://localhost:3004", nats_url="tls://localhost:4222",
                    store_key=SECRET, replayable=True)


THINGS = {
    "fleet": fleet,
    "scenario": scenario,
    "result": result,
    "run, snapshot, audit": live,
    "expectations": lambda: list(result().expectations),
    "action": lambda: Action("inject", 0, {"fault": "stuck", "reason": NASTY}, 3, NASTY),
    "actions": lambda: result().actions,
    "many actions": lambda: many(40).actions,
    "tap": tap,
    "verification": verification,
    "preflight": lambda: Preflight(NASTY, (Finding(NASTY, False, "is too\nmany"),)),
    "profile": profile,
    "gateway": gateway,
    "lab": lambda: NotipLab(name=NASTY),
    "platform": platform,
    "enrolment": lambda: Enrolment((), {NASTY: BadValue("key", "x", "is used", NASTY)}),
}


def made(name, tmp_path):
    make = THINGS[name]
    found = make(tmp_path) if name == "verification" else make()
    return found if isinstance(found, list) else [found]


def words(text):
    """What a text says: numbers, names and words, without what stands between them."""
    found = re.findall(r"[\w]+(?:[.,:/-]+\w+)*", text)
    return {word for word in found if word.lower() not in GLUE}


def seen(made_html):
    return html.unescape(re.sub(r"<[^>]*>", " ", made_html))


def many(count):
    """A result with so many actions and notes, on so many devices."""
    plain = Fleet("many", seed=1).add("pump", count=count).generate("5s")
    deeds = [Action("inject", i, {"fault": "stuck", "where": "site=north"}, 3, f"note {i}")
             for i in range(count)]
    return dataclasses.replace(plain, actions=deeds, notes=tuple(one.note for one in deeds),
                               errors=(IotsimError("no"),) * count)


@pytest.mark.parametrize("name", THINGS)
def test_a_look_shows_one_line_and_the_same_facts_as_html_escaped_without_secrets(name, tmp_path):
    for thing in made(name, tmp_path):
        text, shown = repr(thing), thing._repr_html_()
        assert text.isprintable()
        assert len(text) < 1000
        assert len(shown) < 8000
        assert "<script" not in shown
        assert shown.startswith("<div>")
        assert shown.endswith("</div>")
        assert SECRET not in text + shown
        # No colours of its own, and nothing that runs.
        assert set(re.findall(r"<(\w+)", shown)) <= {"div", "b", "table", "tr", "th", "td", "p"}
        assert set(re.findall(r"style='([^']*)'", shown)) <= {"text-align:left"}
        told = seen(shown)
        lost = {word for word in words(text) if word not in told and word not in dir(iotsim)}
        assert not lost - {type(thing).__name__, "Shown"}, told


def test_runs_of_gateways_look_like_other_runs():
    assert GatewayRun.__repr__ is Run.__repr__
    assert GatewayRun._repr_html_ is Run._repr_html_


def test_few_actions_look_like_any_tuple_and_many_are_short():
    few = result().actions
    assert few == tuple(few)
    assert repr(few) == repr(tuple(few))
    assert repr(many(40).actions).startswith("<40 actions: <Action at 00:00:00: inject stuck")


def test_a_look_takes_no_longer_because_a_thing_is_large():
    # Compared with a loop that takes some milliseconds on the same machine at the same time.
    def fastest(look):
        took = []
        for _ in range(7):
            began = perf_counter()
            look()
            took.append(perf_counter() - began)
        return min(took)

    steps = Scenario("steps", Fleet("plant", seed=1).add("pump", count=3))
    for i in range(1000):
        steps = steps.at(f"{i}s").inject("stuck", duration="1s")
    large = (Fleet("large", seed=1).add("pump", count=1_000_000), steps, many(10_000))
    milliseconds = fastest(lambda: sum(i % 7 for i in range(60_000)))
    for thing in large:
        repr(thing)  # what is computed once is computed now
        took = fastest(lambda thing=thing: (repr(thing), thing._repr_html_()))
        assert took < milliseconds, f"{type(thing).__name__}: {took * 1e3:.2f} ms"
