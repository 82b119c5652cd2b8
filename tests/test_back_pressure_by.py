"""What back-pressure began it ends itself, also in files, scenarios and their source."""

import pytest

import iotsim
from iotsim import Fleet, verbs
from iotsim.actions import Action
from iotsim.errors import BadValue
from iotsim.verbs import BACK_PRESSURE
from tests.fault_rig import START_US
from tests.live import replayed

SECOND = 1_000_000


def pressed(*steps):
    """A minute of three devices to which things were done: (at_s, verb, where, by)."""
    actions = [Action(verb, at_s * SECOND, getattr(verbs, verb)("slow_down", where, by=by))
               for at_s, verb, where, by in steps]
    fleet = Fleet("pressed", seed=1).add("pump", count=3, every="1s")
    return replayed(fleet, actions, START_US, START_US + 60 * SECOND)


def slowed(result, device):
    rows = result.frame(wire=True)
    rows = rows[(rows["device_id"] == device) & (rows["withheld"] == "slow_down")]
    return sorted((rows["time"] - result.start).dt.total_seconds().round().astype(int))


BOTH = ((10, "inject", "all", BACK_PRESSURE), (15, "inject", "id=pump-0000", None),
        (20, "clear", "all", BACK_PRESSURE), (40, "clear", "id=pump-0000", None))


def test_its_clear_does_not_end_what_somebody_injected():
    result = pressed(*BOTH)
    assert 14 <= len(slowed(result, "pump-0000")) <= 16
    assert 4 <= len(slowed(result, "pump-0001")) <= 6


def test_the_clear_of_somebody_ends_all():
    result = pressed(*BOTH[:1], (15, "clear", "all", None), (20, "clear", "all", BACK_PRESSURE))
    assert max(slowed(result, "pump-0001")) <= 15


@pytest.mark.parametrize("steps", [
    BOTH, BOTH[:1], BOTH[:2], BOTH[:3],
    (*BOTH, (45, "inject", "all", BACK_PRESSURE), (50, "clear", "all", BACK_PRESSURE)),
    (BOTH[0], (10, "clear", "all", BACK_PRESSURE), *BOTH[1:]),
    (BOTH[0], (12, "clear", "id=pump-0002", None), *BOTH[1:]),
])
def test_the_file_the_scenario_and_its_source_do_it_again(steps, tmp_path):
    result = pressed(*steps)
    verified = iotsim.verify(result.save(tmp_path / "pressed.iotsim"))
    assert verified.ok, verified.difference
    scenario = result.to_scenario()
    assert scenario.generate().digest == result.digest
    names = {}
    exec(compile(scenario.code(), "pressed", "exec"), names)
    assert names["scenario"].generate().digest == result.digest
    assert "back-pressure" not in scenario.code()


def test_nobody_else_injects_by_itself():
    with pytest.raises(BadValue, match="nobody who injects by itself"):
        verbs.clear("slow_down", by="somebody")
