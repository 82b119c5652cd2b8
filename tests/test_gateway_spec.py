"""A gateway as people write it: frozen, checked, and a fleet like any other."""

import pickle

import numpy as np
import pytest

import iotsim
from iotsim import Fleet, Gateway, Profile, Scenario
from iotsim.gateway.crowd import fleet_of_gateways
from iotsim.gateway.record import local_name

SECRET = "k3y-of-the-factory"


def gateways(count=4, **options):
    options = {"factory_id": "f-{n}", "factory_key": SECRET, "every": "5s", "seed": 42, **options}
    return (Gateway("gw-{n}", count=count, **options)
            .sensor("temperature", algorithm="sine_wave", min=10, max=30).sensor("humidity"))


def test_each_verb_returns_another_gateway():
    plain = Gateway("gw-{n}", seed=1)
    more = plain.sensor("temperature")
    assert plain.sensors == ()
    assert [one.name for one in more.sensors] == ["temperature"]
    assert more.many(7).count == 7
    assert more.count == 1
    assert gateways() == gateways()
    assert pickle.loads(pickle.dumps(gateways())) == gateways()
    with pytest.raises(AttributeError):
        more.count = 3


def test_the_repr_says_what_it_is_and_not_the_key():
    gateway = gateways()
    assert repr(gateway) == ("<Gateway 'gw-{n}': 4 gateways with 2 sensors every 5s (temperature, "
                             "humidity), seed 42>")
    for text in (repr(gateway), str(gateway), gateway._repr_html_(), str(gateway.spec()),
                 str(gateway.fleet().spec()), repr(gateway.records())):
        assert SECRET not in text
    assert ">°C</td>" in gateway._repr_html_()


def test_sensors_of_a_gateway_share_its_tick_and_are_devices():
    result = gateways(count=50).generate("1m")
    frame = result.frame()
    assert len(frame) == 50 * 2 * 12
    assert list(frame.columns) == ["time", "device_id", "device_type", "seq", "gateway", "sensor",
                                   "value", "faults", "hit"]
    per_tick = frame.groupby(["gateway", "seq"], observed=True).time.nunique()
    assert (per_tick == 1).all()
    first = frame[frame.seq == 0].drop_duplicates("gateway").time
    assert first.nunique() == 50  # each gateway has a tick of its own


def test_a_reading_depends_on_seed_gateway_and_sensor_alone():
    few = gateways(count=3).generate("1m").frame()
    many = gateways(count=9).sensor("pressure").generate("1m").frame()
    same = many[many.device_id.isin(few.device_id.unique())]
    assert np.array_equal(few.value.to_numpy(), same.value.to_numpy())
    other = gateways(count=3, seed=43).generate("1m").frame()
    assert not np.array_equal(few.value.to_numpy(), other.value.to_numpy())
    renamed = (Gateway("other-{n}", count=3, seed=42, factory_id="x-{n}").sensor("humidity")
               .generate("1m").frame())
    humid = few[few.sensor == "humidity"]
    assert not np.array_equal(humid.value.to_numpy(), renamed.value.to_numpy())


def test_two_sensors_of_one_type_are_numbered_apart():
    gateway = (Gateway("gw-{n}", count=3, seed=1).sensor("temperature")
               .sensor("temperature").sensor("temperature", "outside"))
    names = sorted({name for member in gateway.fleet().members for name in member.group(0).ids})
    assert names == [f"gw-{n}:{sensor}" for n in (1, 2, 3)
                     for sensor in ("outside", "temperature", "temperature-2")]
    assert local_name("gw-1:temperature-2") == ("gw-1", "temperature-2")


def test_a_gateway_can_be_selected_and_a_fraction_takes_whole_ones():
    scenario = (Scenario("half", gateways(count=40)).at("20s")
                .inject("disconnect", where="gateway=gw-7", duration="20s")
                .at("30s").stop(where="fraction=50%").lasting("1m"))
    result = scenario.generate()
    wire = result.frame(wire=True)
    assert set(wire[wire.withheld == "disconnect"].gateway) == {"gw-7"}
    last = wire.groupby("device_id", observed=True).time.max()
    per_gateway = last.groupby([name.split(":")[0] for name in last.index]).nunique()
    assert (per_gateway == 1).all()
    ended = (last < last.max() - np.timedelta64(10, "s")).sum() // 2
    assert 8 < ended < 32
    one = Scenario("one", gateways(count=40)).stop(where="count=3").lasting("20s").generate()
    assert one.frame().gateway.nunique() == 37


def test_an_unknown_key_of_other_fleets_is_still_an_error():
    fleet = Fleet("plant", seed=1).add("pump", count=2)
    scenario = Scenario("x", fleet).stop(where="gateway=gw-1").lasting("1m")
    with pytest.raises(iotsim.IotsimError, match="no selector key called 'gateway'"):
        scenario.generate()


def test_a_session_of_gateways_is_saved_verified_and_written_as_code(tmp_path):
    scenario = (Scenario("half", gateways()).at("20s")
                .inject("packet_loss", where="gateway=gw-2", duration="20s", loss=0.5)
                .lasting("1m"))
    result = scenario.generate()
    path = result.save(tmp_path / "half.iotsim")
    assert iotsim.verify(path).ok
    space = {}
    exec(scenario.code(), space)
    assert space["scenario"].generate().digest == result.digest
    assert SECRET.encode() not in (tmp_path / "half.iotsim").read_bytes()


def test_records_become_the_fleet_of_their_spec_again_and_gaps_stay_gaps():
    gateway = gateways(count=20)
    records = gateway.records()
    assert fleet_of_gateways("gw", 42, records).spec() == gateway.fleet().spec()
    some = fleet_of_gateways("gw", 42, records[:4] + records[5:12])
    assert len(some.members) == 4  # two rows of two sensors
    assert len(some) == 22
    whole = gateway.generate("1m").frame()
    part = some.generate("1m").frame()
    same = whole[whole.device_id.isin(part.device_id.unique())]
    assert np.array_equal(part.value.to_numpy(), same.value.to_numpy())


def test_every_algorithm_of_the_contract_and_any_signal():
    gateway = Gateway("gw", seed=5)
    for algorithm in ("uniform_random", "sine_wave", "spike", "constant"):
        gateway = gateway.sensor("pressure", algorithm, algorithm=algorithm, min=-10, max=10)
    gateway = gateway.sensor("biometric", "pulse", algorithm="gaussian", mean=70, stddev=5)
    frame = gateway.generate("1h").frame()
    by = {name: part.value for name, part in frame.groupby("sensor", observed=True)}
    assert (by["constant"] == 0).all()
    assert by["sine_wave"].iloc[0] == 0
    assert by["sine_wave"].iloc[1] > 0  # from the middle, rising
    assert by["sine_wave"].between(-10, 10).all()
    assert by["uniform_random"].between(-10, 10).all()
    assert set(by["spike"][~by["spike"].between(-10, 10)]) == {40.0, -40.0}
    assert 60 < by["pulse"].mean() < 80


@pytest.mark.parametrize(("make", "text"), [
    (lambda: Gateway("gw", count=2), "name='gw' gives 2 gateways the same id"),
    (lambda: Gateway("a:b"), "name='a:b' cannot be a gateway's name"),
    (lambda: Gateway("a|gw-{n}"), "name='a|gw-{n}' cannot be a gateway's name"),
    (lambda: Gateway("a,b-{n}"), "name='a,b-{n}' cannot be a gateway's name"),
    (lambda: Gateway("gw", labels={"sensor": "x"}), "label='sensor' is a column"),
    (lambda: Gateway("gw", labels=7), "labels=7 are no mapping"),
    (lambda: Gateway("gw", jitter=-1), "jitter=-1"),
    (lambda: Gateway("gw-{n}", count=2, factory_id="f"), "factory_id='f' gives 2 gateways"),
    (lambda: Gateway("gw", every=0), "every=0"),
    (lambda: Gateway("gw", every="500us"), "whole milliseconds"),
    (lambda: Gateway("gw", every="25h"), "whole milliseconds"),
    (lambda: Gateway("gw", factory_key=7), "factory_key=<class 'int'> cannot be used"),
    (lambda: Gateway("gw", model="a\nb"), "model="),
    (lambda: Gateway("gw").sensor("tempreature"), "Did you mean 'temperature'"),
    (lambda: Gateway("gw").sensor("humidity", min=3, max=3), "min=3 is not below max=3"),
    (lambda: Gateway("gw").sensor("humidity", min=float("nan"), max=3), "finite"),
    (lambda: Gateway("gw").sensor("humidity", "a b"), "name='a b' cannot be a sensor's name"),
    (lambda: Gateway("gw").sensor("humidity", algorithm="sinus"), "no signal called 'sinus'"),
    (lambda: Gateway("gw").sensor("humidity", algorithm="static", value="x"), "sends numbers"),
    (lambda: Gateway("gw").sensor("humidity").sensor("pressure", "humidity"), "another sensor"),
    (lambda: Gateway("gw").generate("1m"), "has no sensor"),
    (lambda: Gateway("gw").sensor("humidity").many(2), "count=2 gives 2 gateways the same name"),
])
def test_what_cannot_be_is_one_clear_error(make, text):
    with pytest.raises(iotsim.IotsimError) as caught:
        make()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_labels_and_jitter_are_those_of_all_its_sensors():
    gateway = (Gateway("gw-{n}", count=3, seed=1, labels={"site": "north"}, jitter="20ms")
               .sensor("temperature", shared="site").sensor("humidity"))
    assert fleet_of_gateways("gw", 1, gateway.records()).spec() == gateway.fleet().spec()
    assert pickle.loads(pickle.dumps(gateway)) == gateway
    frame = gateway.generate("1m").frame()
    assert set(frame.site) == {"north"}
    felt = frame[frame.sensor == "temperature"].groupby("seq").value.nunique()
    assert (felt == 1).all()  # the same weather at all of them
    assert frame.groupby(["gateway", "seq"], observed=True).time.nunique().max() == 2


def test_devices_that_only_look_like_sensors_are_none():
    profile = Profile("temperature", {"value": {"type": "constant", "value": 1}})
    fleet = Fleet("x", seed=1)
    for template in ("a-{n}:t", "b-{n}:t"):
        fleet = fleet.add(profile, count=2, labels={"sensor": "t"}, id=template)
    frame = fleet.generate("20s").frame()
    assert "gateway" not in frame
    assert sorted(set(frame.device_id)) == ["a-1:t", "a-2:t", "b-3:t", "b-4:t"]
    assert frame[frame.seq == 0].time.nunique() == 4


def test_numbers_that_go_on_belong_to_one_template():
    profile = Profile("temperature", {"value": {"type": "constant", "value": 1}}, protocol="notip")
    fleet = Fleet("x", seed=1)
    for template in ("a-{n}:t", "b-{n}:t", "a-{n}:t"):
        fleet = fleet.add(profile, count=2, labels={"sensor": "t"}, id=template)
    ids = [name for i, member in enumerate(fleet.members) for name in member.group(i).ids]
    assert ids == ["a-1:t", "a-2:t", "b-1:t", "b-2:t", "a-3:t", "a-4:t"]
