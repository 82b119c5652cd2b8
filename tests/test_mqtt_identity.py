"""Who a device is to an MQTT broker: its own certificate, its own name, its own password."""

import asyncio
import json

import pytest

import iotsim
from iotsim import Fleet
from iotsim.errors import BadValue, ConnectError, UnknownName
from iotsim.publishers.base import Identity, build
from iotsim.publishers.pump import Pump
from tests.live import START
from tests.publishing import CheckedLedger, block, own, pumping, until
from tests.servers.certificates import Certificates

pytestmark = pytest.mark.broker
OWN = {"sessions": "per-device"}
BY_NAME = ["user tap", "topic read #", "pattern write devices/%u/#"]


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Certificates(tmp_path_factory.mktemp("authority"))


def files_of(authority, devices):
    """Certificates called as the devices, and the options that find them."""
    pairs = {device: authority.client(device) for device in devices}
    one = pairs[devices[0]]
    template = {name: getattr(one, name).replace(devices[0], "{device_id}")
                for name in ("cert", "key")}
    for device, pair in pairs.items():
        assert pair.cert == template["cert"].format(device_id=device)
    return {"ca": authority.ca, **template}


def secured(mosquitto, authority, **more):
    """A mosquitto that lets in who has a certificate, under the name that stands there."""
    pair = authority.server
    conf = ["use_identity_as_username true"]
    return mosquitto(certificate=(pair.cert, pair.key), clients_ca=authority.ca, conf=conf, **more)


async def published(url, devices, count=5, topic_of=None, **options):
    """What became of a few messages of each device; topics may be another device's."""
    pump = Pump(build(url, **OWN, **options), names=[Identity(name) for name in devices],
                ledger=CheckedLedger())
    await pump.open()
    try:
        for lane, device in enumerate(devices):
            messages = own(device, count)
            if topic_of is not None:
                messages.topics[:] = [f"devices/{topic_of(device)}/telemetry"] * count
            await pump.offer(lane, messages)
        await pump.drain(45)
    finally:
        await pump.close()
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("iotsim")]
    return pump.snapshot()


@pytest.mark.parametrize("version", ["5", "3.1.1"])
def test_each_device_shows_its_own_certificate_and_may_write_only_what_is_its_own(
    mosquitto, authority, version
):
    devices = [f"pump-{i}" for i in range(4)]
    broker = secured(mosquitto, authority, acl=BY_NAME)
    options = files_of(authority, devices) | {"version": version}
    watcher = authority.client("tap")
    with iotsim.tap(broker.url, "devices/#", ca=authority.ca, cert=watcher.cert,
                    key=watcher.key) as tap:
        account = asyncio.run(published(broker.url, devices, **options))
        assert account.acknowledged == 20
        assert asyncio.run(tap.received(20, 45))
        stolen = asyncio.run(published(
            broker.url, devices[:2], topic_of=lambda device: "pump-3", **options))
        assert tap.count == 20  # nothing of it went through
    if version == "5":
        assert dict(stolen.refusals) == {"not authorized (135)": 10}
    else:  # there the broker cannot say so
        assert stolen.acknowledged == 10


def test_connections_that_are_shared_show_one_certificate(mosquitto, authority):
    broker = secured(mosquitto, authority)
    pair = authority.client("gateway", password="open sesame")
    whole = {"ca": authority.ca, "cert": pair.cert, "key": pair.key}

    async def publish(**options):
        async with pumping(broker.url, **options) as pump:
            await pump.offer(0, block(50))
            assert await pump.drain(45)
            return pump.snapshot().acknowledged

    assert asyncio.run(publish(**whole, key_password="open sesame")) == 50
    # Its reset may come before its alert has been read.
    for version in ("5", "3.1.1"):
        words = "it wants a certificate of ours|the peer reset"
        with pytest.raises(ConnectError, match=words) as caught:
            asyncio.run(publish(ca=authority.ca, version=version))
        assert "\n" not in str(caught.value)
    foreign = authority.stranger.client("gateway")
    with pytest.raises(ConnectError, match=r"does not accept our certificate|the peer reset"):
        asyncio.run(publish(ca=authority.ca, cert=foreign.cert, key=foreign.key))
    with pytest.raises(BadValue, match="cannot be used") as refused:
        build(broker.url, **whole, key_password="open barley")
    assert "barley" not in str(refused.value)


def test_a_device_without_its_certificate_is_named_before_anybody_connects(mosquitto, authority):
    broker = secured(mosquitto, authority)
    options = files_of(authority, ["valve-0", "valve-1"])
    with pytest.raises(BadValue, match=r"cert=.* is not a file \(device 'valve-7'\)"):
        asyncio.run(published(broker.url, ["valve-0", "valve-1", "valve-7"], **options))
    assert "valve-0" not in broker.log()
    crossed = options | {"key": authority.client("valve-1").key}
    with pytest.raises(BadValue, match=r"does not belong to cert \(device 'valve-0'\)"):
        asyncio.run(published(broker.url, ["valve-0"], **crossed))


def test_a_device_that_joins_shows_its_own_certificate_or_is_told_at_once(mosquitto, authority):
    broker = secured(mosquitto, authority)
    options = files_of(authority, ["late-0", "late-1"])

    async def work():
        pump = Pump(build(broker.url, **OWN, **options), names=[Identity("late-0")])
        await pump.open()
        try:
            with pytest.raises(BadValue, match=r"\(device 'late-9'\)"):
                pump.add_lane(Identity("late-9"))
            lane = pump.add_lane(Identity("late-1"))
            await pump.offer(lane, own("late-1", 3))
            assert await pump.drain(45)
            return lane, pump.snapshot().acknowledged
        finally:
            await pump.close()

    assert asyncio.run(work()) == (1, 3)


def test_a_device_that_cannot_join_a_run_is_not_counted_by_it(mosquitto, authority):
    broker = secured(mosquitto, authority)
    fleet = Fleet("late", seed=1).add("temperature_sensor", count=2, id="late-{n}", every="1s")
    fleet = fleet.publish_to(
        broker.url, topic="devices/{device_id}/x", **OWN,
        **files_of(authority, ["late-1", "late-2"]))

    async def work():
        live = fleet.start(start=START)
        await live.ready()
        await until(lambda: live.snapshot().readings)
        with pytest.raises(BadValue, match=r"is not a file \(device "):
            live.add("temperature_sensor", count=3, id="later-{n}")
        return await live.stop()

    result = asyncio.run(work())
    assert " of 2 devices " in repr(result)
    assert not [action for action in result.actions if action.verb == "add"]


def test_each_device_has_its_own_name_and_password(mosquitto, tmp_path):
    users = {f"gw-{i}": f"s3cret-{i}" for i in range(3)}
    broker = mosquitto(users=users | {"tap": "t"}, acl=BY_NAME)
    path = tmp_path / "passwords.json"
    path.write_text(json.dumps({str(i): f"s3cret-{i}" for i in range(3)}))
    options = {"username": "gw-{device_id}", "passwords": str(path)}

    async def publish(devices):
        return await published(broker.url, devices, topic_of=lambda device: f"gw-{device}",
                               client_id="x{device_id}", **options)

    assert asyncio.run(publish(["0", "1", "2"])).acknowledged == 15
    with pytest.raises(BadValue, match=r"passwords=.* has none for the device '7'"):
        asyncio.run(publish(["0", "7"]))
    path.write_text(json.dumps({"0": "s3cret-0", "1": "s3cret-9"}))
    with pytest.raises(ConnectError, match=r"x1: .*(not authorized|bad user)") as caught:
        asyncio.run(publish(["0", "1"]))
    shown = repr(build(broker.url, **OWN, **options)) + str(caught.value)
    assert "s3cret" not in shown
    assert str(path) in shown


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"username": "{device_id}"}, "names a device, but devices share connections"),
        ({"cert": "c/{device_id}.crt"}, "names a device, but devices share connections"),
        ({"passwords": "x.json"}, "passwords='…' are each device's own"),
        ({**OWN, "passwords": 3}, "is no path"),
        ({**OWN, "passwords": "none.json", "username": "u"}, "cannot be read"),
        ({**OWN, "passwords": "pw.json"}, "needs a username"),
        ({**OWN, "passwords": "pw.json", "username": "u", "password": "p"}, "password for all"),
        ({**OWN, "passwords": "bad.json", "username": "u"}, "is not JSON"),
        ({**OWN, "passwords": "list.json", "username": "u"}, "does not map names to text"),
        ({**OWN, "cert": "missing.pem"}, "is not a file"),
    ],
)
def test_what_is_asked_for_wrongly_is_one_line(options, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, content in (("pw", '{"a": "b"}'), ("bad", "hush"), ("list", '["hush"]')):
        (tmp_path / f"{name}.json").write_text(content)
    with pytest.raises(BadValue, match=words) as caught:
        build("mqtts://h", **options)
    assert "hush" not in str(caught.value)


def test_a_placeholder_that_nobody_has_is_an_error_with_those_there_are():
    publisher = build("mqtt://h", **OWN, username="{gateway}")
    with pytest.raises(UnknownName, match="username: no placeholder called 'gateway'"):
        publisher.link(0, "run", None, Identity("pump-1", labels={"site": "north"}))


def test_a_fleet_publishes_with_a_certificate_for_each_device(mosquitto, authority):
    broker = secured(mosquitto, authority, acl=BY_NAME)
    fleet = Fleet("plant", seed=1).add("temperature_sensor", count=5, every="1s")
    options = files_of(authority, [f"temperature_sensor-{i:04d}" for i in range(5)])
    fleet = fleet.publish_to(broker.url, **OWN, **options)
    result = asyncio.run(fleet.run("3s", speed=20))
    account, = result.publishers.values()
    assert account.acknowledged == account.offered > 0
