"""The texts of errors: what was given, why it cannot be, what is allowed, what to do. One line."""

import asyncio
import socket

import pytest

import iotsim
from iotsim import Fleet, IotsimError, Profile
from iotsim.capture import Bound
from iotsim.clock import check_speed
from iotsim.errors import MissingExtra, NameInUse, NoLoop, RunFailed, StalledError

DURATION = ("Give seconds (5, 0.5), text with a unit (us, ms, s, m, h, d) such as '5s' or "
            "'1h30m', or a timedelta; from 1 us to 1,000 years.")
WHERE = ("Give 'all', terms such as 'device_type=pump,site=north', 'id=a|b', 'fraction=10%', "
         "'count=5', or ids([...]).")
SEED = "Give a whole number from 0 to 9223372036854775807, or leave it out and one is drawn."
NAMES = ("air_quality, industrial_valve, pump, smart_lock, smart_meter, temperature_sensor, "
         "vehicle_tracker, wearable")
LEVEL = {"level": {"type": "gaussian", "mean": 1, "stddev": 0}}


async def bad_field(dev):
    dev.emit(time=1)


async def no_interval(dev):
    await dev.sleep()


def plain_function(dev):
    pass


def fleet():
    return Fleet("plant", seed=1).add("pump", count=2, labels={"site": "north"})


def failed(script):
    return Fleet("f", seed=7).add(script).generate("1s").raise_for_errors()


def one(**changes):
    return Profile("p", {"level": {"type": "gaussian", "mean": 1, "stddev": 0, **changes}})


TABLE = {
    "a duration of nothing": (lambda: fleet().generate("0s"), f"duration='0s' is zero. {DURATION}"),
    "a negative duration": (lambda: fleet().generate(-1), f"duration=-1 is negative. {DURATION}"),
    "an interval of nothing": (lambda: Fleet("p").add("pump", every="0s"),
                               f"every='0s' is zero. {DURATION}"),
    "a start without a zone": (
        lambda: fleet().generate("1s", start="soon"),
        "start='soon' is not an instant. Give ISO text such as '2026-01-01T00:00:00Z' or a "
        "datetime with a time zone."),
    "an unknown profile": (
        lambda: Fleet("p").add("temprature_sensor"),
        f"no profile called 'temprature_sensor'. Did you mean 'temperature_sensor'? Known: {NAMES}."
    ),
    "a profile without its keys": (
        lambda: Profile.parse("type: pump", name="pump.yaml"),
        "pump.yaml: this is not a profile. It needs at least the keys type and telemetry_fields."),
    "a wrong parameter in a profile": (
        lambda: Profile.parse("type: p\ntelemetry_fields:\n  flow:\n    type: gaussian\n    "
                              "mean: 1\n    stddev: -2\n", name="pump.yaml"),
        "pump.yaml:6: field 'flow': stddev=-2 is out of range. Give a finite number, at least 0."),
    "an unknown signal in a profile": (
        lambda: Profile.parse("type: p\ntelemetry_fields:\n  flow: {type: gausian}\n",
                              name="pump.yaml"),
        "pump.yaml:3: field 'flow': no signal called 'gausian'. Did you mean 'gaussian'? Known: "
        "brownian, composite, constant, depends_on, diurnal, gaussian, markov, playback, "
        "sine_wave, spike, static, uniform_random."),
    "an unknown parameter in code": (
        lambda: one(sttdev=1),
        "profile 'p': field 'level': no parameter of 'gaussian' called 'sttdev'. Did you mean "
        "'stddev'? Known: mean, stddev."),
    "a plain function as a device": (
        lambda: Fleet("p").add(plain_function),
        None),
    "a number as a device": (
        lambda: Fleet("p").add(5),
        "profile=5 is not a device. Give the name of a profile, a path, a Profile, or an `async "
        "def device(dev)`."),
    "no devices": (
        lambda: Fleet("p").generate("1s"),
        "fleet='p' has no devices. Give it some: fleet.add('pump')."),
    "a count of none": (
        lambda: Fleet("p").add("pump", count=0),
        "count=0 is out of range. Give a whole number from 1 to 10,000,000."),
    "a count that is no whole number": (
        lambda: Fleet("p").add("pump", count=1.5),
        "count=1.5 is not a whole number. Give a whole number from 1 to 10,000,000."),
    "a label named like a column": (
        lambda: Fleet("p").add("pump", labels={"seq": "1"}),
        "label='seq' is a reserved name. Choose another one."),
    "a label that is no text": (
        lambda: Fleet("p").add("pump", labels={"floor": 1}),
        "labels['floor']=1 is not 1 to 128 printable characters. Give {'site': 'north'}."),
    "a label named like a field": (
        lambda: Fleet("p").add("pump", labels={"flow": "x"}),
        "profile 'pump': 'flow' is a field and a label. Rename one."),
    "one id for many": (
        lambda: Fleet("p").add("pump", count=2, id="p"),
        "id='p' gives 2 devices the same id. Give text with {index}, {n} or {type}, such as "
        "'gw-{n}'."),
    "an id with a slash": (
        lambda: Fleet("p").add("pump", id="a/{n}"),
        "id='a/{n}' has a sign that ids cannot hold. Give text with {index}, {n} or {type}, such "
        "as 'gw-{n}'."),
    "an id that is taken": (
        lambda: Fleet("p").add("pump", id="a").add("wearable", id="a"),
        "id='a' is taken by another device of this fleet. Give another template, such as "
        "id='b-{index:04d}'."),
    "a seed that is negative": (lambda: Fleet("p", seed=-1), f"seed=-1 is out of range. {SEED}"),
    "a seed that is text": (
        lambda: Fleet("p", seed="7"), f"seed='7' is not a whole number. {SEED}"),
    "a fleet without a name": (
        lambda: Fleet(""), "name='' is not printable text. Give a name such as 'plant'."),
    "a speed of nothing": (
        lambda: check_speed(0),
        "speed=0 is out of range. Give a factor of real time above 0 and up to 1e+09, or 'max'."),
    "a speed that is text": (
        lambda: check_speed("fast"),
        "speed='fast' is not a speed. Give a factor of real time above 0 and up to 1e+09, or "
        "'max'."),
    "a capture without a unit": (
        lambda: Bound.of("10"),
        "capture='10' has no unit. Give a time such as '10m', a number of rows such as 1_000_000, "
        "or 'all'."),
    "an unknown scheme": (
        lambda: fleet().publish_to("mqqt://x"),
        "no publisher called 'mqqt'. Did you mean 'mqtt'? Known: amqp, amqps, coap, coaps, "
        "console, file, http, https, memory, mqtt, mqtts, nats, nats+jetstream, "
        "nats+jetstream+tls, nats+tls."),
    "a topic with a wildcard": (
        lambda: fleet().publish_to("memory:a", topic="a/#"),
        "topic_template='a/#' has a wildcard. Give text such as 'devices/{device_id}/telemetry'."),
    "an empty selector": (
        lambda: fleet().publish_to("memory:a", where=""), f"where='' is empty. {WHERE}"),
    "an unknown field": (
        lambda: fleet().generate("10s").frame(fields="flwo"),
        "no field called 'flwo'. Did you mean 'flow'? Known: bearing_temperature, flow, "
        "power, pressure, rpm, status, vibration."),
    "an unknown device type": (
        lambda: fleet().generate("10s").frame(device_type="pmp"),
        "no device type called 'pmp'. Did you mean 'pump'? Known: pump."),
    "a file that is no Parquet": (
        lambda: fleet().generate("10s", to="x.csv"),
        "to='x.csv' does not end in .parquet. Write 'x.parquet'."),
    "a folder that is not there": (
        lambda: fleet().generate("10s", to="/nowhere/x.parquet"),
        "to='/nowhere/x.parquet' is in a folder that does not exist. Make it first."),
    "a saved run of another name": (
        lambda: fleet().generate("10s").save("x.zip"),
        "path='x.zip' does not end in .iotsim. Write 'run.iotsim'."),
    "a saved run that is not there": (
        lambda: iotsim.verify("/nowhere/x.iotsim"), "/nowhere/x.iotsim: there is no such file."),
    "a device that emits a reserved field": (
        lambda: failed(bad_field),
        "run 'f' ended with errors: device 'bad_field-0000' failed at 2026-01-01T00:00:00.000000Z "
        "(seed=7): BadValue: field='time' is the name of a column of every frame."),
    "a sleep without an interval": (
        lambda: failed(no_interval),
        "run 'f' ended with errors: device 'no_interval-0000' failed at "
        "2026-01-01T00:00:00.000000Z (seed=7): BadValue: every=None is missing: dev.sleep() "
        "without a duration needs it. Use add(…, every='5s')."),
    "two runs of other starts": (
        lambda: raises(fleet().generate("1m").diff(fleet().generate("1m", start="2026-01-02"))),
        "the runs do not compare: one starts at 2026-01-01T00:00:00.000000Z, the other at "
        "2026-01-02T00:00:00.000000Z. Give both the same start=."),
    "no loop": (
        lambda: raises(NoLoop("fleet.start()", "asyncio.run(fleet.run('10m'))")),
        "fleet.start() needs a running event loop and there is none here. In a script write "
        "`asyncio.run(fleet.run('10m'))`."),
    "a name in use": (
        lambda: raises(NameInUse("plant")),
        "a different fleet is already live under the name 'plant'. Stop it first, give this one "
        "another name, or call start(replace=True)."),
    "a library that is missing": (
        lambda: raises(MissingExtra("publishing over MQTT", "paho-mqtt", "mqtt")),
        'publishing over MQTT needs paho-mqtt. Install it with: pip install "iotsim[mqtt]"'),
    "a stall": (
        lambda: raises(StalledError(["device 'a' awaits a Future at x.py:3"] * 5, 10)),
        "virtual time has stood still for 10 s: device 'a' awaits a Future at x.py:3; device 'a' "
        "awaits a Future at x.py:3; device 'a' awaits a Future at x.py:3 and 2 more. Devices may "
        "only await dev.sleep, or the kernel's Event and Queue."),
    "several errors": (
        lambda: raises(RunFailed("plant", [ValueError("one"), ValueError("two")])),
        "run 'plant' ended with errors: one (and 1 more)"),
}


def raises(error):
    raise error if isinstance(error, IotsimError) else IotsimError(error)


@pytest.mark.parametrize("case", TABLE)
def test_the_text_of(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call, text = TABLE[case]
    with pytest.raises(IotsimError) as caught:
        call()
    found = str(caught.value)
    assert "\n" not in found
    if text is None:
        assert "is a plain function" in found
    else:
        assert found == text
    assert not list(tmp_path.iterdir()), "an error leaves nothing behind"


def test_a_truncated_saved_run_is_one_clear_line(tmp_path):
    path = fleet().generate("10s").save(tmp_path / "run.iotsim")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(IotsimError) as caught:
        iotsim.verify(path)
    assert str(caught.value) == (
        f"{path}: this is not a saved run, or it is truncated. Save it again with "
        "result.save(path).")


def test_a_broker_that_nobody_is_is_one_clear_line():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"mqtt://127.0.0.1:{port}"
    with pytest.raises(IotsimError) as caught:
        asyncio.run(fleet().publish_to(url).run("1s", speed="max"))
    found = str(caught.value)
    assert found.startswith(f"cannot publish to {url}: ")
    assert "refused" in found
    assert "\n" not in found


def test_every_error_is_also_the_builtin_one_would_catch():
    for cls in IotsimError.__subclasses__():
        builtin = [base for base in cls.__mro__ if base.__module__ == "builtins"]
        assert builtin[0] not in (Exception, BaseException, object), cls


def test_there_are_few_error_classes_under_their_base():
    def below(cls):
        return set().union(*({child} | below(child) for child in cls.__subclasses__()))

    ours = {cls for cls in below(IotsimError) if cls.__module__.startswith("iotsim")}
    # Fifteen, one for stores and one for questions without an answer; and each answer of a
    # provisioning service is an error of its own, as contract A10 wants it.
    assert len({cls for cls in ours if cls.__module__ == "iotsim.errors"}) <= 17, ours
    assert {cls.__module__ for cls in ours} <= {
        "iotsim.errors", "iotsim.gateway.provisioning_errors"}, ours


@pytest.mark.parametrize("value", ["x" * 1000, "a\nb", b"\xff" * 100, {"k": "v" * 500}])
def test_what_was_given_is_shown_short_and_on_one_line(value):
    with pytest.raises(IotsimError) as caught:
        Fleet("p").add("pump", count=value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
