"""`Platform`: what it may be given, what it says when that cannot be, and how runs begin."""

import asyncio
import os
import ssl

import pytest

import iotsim.gateway.platform
from iotsim import Gateway, Platform
from iotsim.errors import BadValue, ConnectError, IotsimError, NameInUse, NoLoop, StoreError
from iotsim.gateway import provisioning_desk
from tests.gateway_life_rig import (  # noqa: F401
    STORE_KEY,
    Site,
    left_over,
    readings,
    row,
    sees,
    swift,
)
from tests.publishing import until
from tests.servers.notip import notip_lab  # noqa: F401

URLS = {"provisioning_url": "http://localhost:3004", "nats_url": "tls://localhost:4222"}


@pytest.fixture(scope="module")
def site(notip_lab, swift, tmp_path_factory):  # noqa: F811
    return Site(notip_lab, tmp_path_factory.mktemp("platform"))


@pytest.fixture
def environment(site):
    return {"PROVISIONING_URL": "http://p:3004/provision/onboard", "NATS_URL": "tls://n:4222",
            "NATS_CA_CERT_PATH": str(site.lab.ca_path)}


# -- what it may be given -------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "says"), [
    ({"provisioning_url": "localhost:3004"}, "Give http:// or https://host:port"),
    ({"provisioning_url": "tls://localhost"}, "Give http:// or https://host:port"),
    ({"provisioning_url": "http://"}, "is no URL"),
    ({"provisioning_url": None}, "is no URL"),
    ({"provisioning_url": "http://a:pass@b"}, "has a user or a password in it"),
    ({"nats_url": "mqtt://localhost"}, "Give tls:// or nats://host:port"),
    ({"nats_url": "tls://localhost:99999"}, "is no URL"),
    ({"nats_url": 4222}, "is no URL"),
    ({"nats_cert": __file__}, "and nats_key belong together"),
    ({"nats_key": __file__}, "and nats_key belong together"),
    ({"nats_ca": "/no/ca.crt"}, "nats_ca='/no/ca.crt' is not a file"),
    ({"nats_ca": 5}, "nats_ca=5 is not the path of a file"),
    ({"provisioning_ca": "/no"}, "provisioning_ca='/no' is not a file"),
    ({"connection": "pool"}, "own.*shared"),
    ({"connection": "shared"}, "needs one certificate for all gateways"),
    ({"own_certificates": False}, "leaves gateways without a certificate"),
    ({"own_certificates": "no"}, "own_certificates"),
    ({"buffer": 0}, "buffer=0"),
    ({"buffer": 1.5}, "buffer=1.5"),
    ({"buffer": True}, "buffer=True"),
    ({"concurrency": 0}, "concurrency=0"),
    ({"concurrency": 1000}, "concurrency=1000"),
    ({"recover": "yes"}, "recover='yes'"),
    ({"replayable": 1}, "replayable=1"),
])
def test_wrong_values_are_one_clear_line(wrong, says):
    with pytest.raises(BadValue, match=says) as error:
        Platform(**{**URLS, **wrong})
    assert "\n" not in str(error.value)
    assert "pass" not in str(error.value).replace("password", "")


def test_a_platform_is_frozen_equal_by_value_and_shows_no_secret(site):
    one = site.platform()
    assert one == site.platform() != site.platform(buffer=5)
    assert STORE_KEY not in repr(one)
    assert str(site.lab.simulator_key) not in repr(one)
    with pytest.raises(AttributeError):
        one.buffer = 3
    assert "no TLS" in repr(Platform(**{**URLS, "nats_url": "nats://localhost"}))


def test_the_environment_of_the_reference_makes_a_platform(site, environment):
    pair = site.lab.simulator_cert, site.lab.simulator_key
    made = Platform.from_env({**environment, "NATS_TLS_CERT": str(pair[0]),
                              "NATS_TLS_KEY": str(pair[1]), "SQLITE_PATH": "/tmp/x.db",
                              "GATEWAY_BUFFER_SIZE": "7", "RECOVERY_MODE": "T",
                              "SIMULATOR_PORT": "8090"})
    assert (made.provisioning_url, made.nats_url) == ("http://p:3004/provision/onboard",
                                                      "tls://n:4222")
    assert made.nats_ca == str(site.lab.ca_path)
    assert (made.nats_cert, made.nats_key) == tuple(map(str, pair))
    assert (str(made.store), made.buffer, made.recover) == ("/tmp/x.db", 7, True)
    plain = Platform.from_env(environment)
    assert (str(plain.store), plain.buffer, plain.recover) == ("/data/simulator.db", 1000, False)
    assert Platform.from_env(environment, buffer=9, store=None).buffer == 9
    with pytest.raises(BadValue, match=r"nats_ca='/no\.crt' is not a file"):
        Platform.from_env({**environment, "NATS_CA_CERT_PATH": "/no.crt"})


def test_the_environment_of_the_process_is_read_if_none_is_given(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Platform.from_env().nats_url == "tls://n:4222"


def test_all_that_is_wrong_with_an_environment_is_said_in_one_line():
    with pytest.raises(IotsimError) as error:
        Platform.from_env({"NATS_URL": "tls://n", "NATS_TLS_CERT": "/c", "RECOVERY_MODE": "maybe",
                           "GATEWAY_BUFFER_SIZE": "-1"})
    said = str(error.value)
    for part in ("PROVISIONING_URL is missing", "NATS_CA_CERT_PATH is missing",
                 "NATS_TLS_CERT and NATS_TLS_KEY belong together", "RECOVERY_MODE='maybe'",
                 "GATEWAY_BUFFER_SIZE='-1'"):
        assert part in said
    assert "\n" not in said


# -- what start says before it asks anybody -------------------------------------------------------


def test_without_a_loop_start_says_what_to_write():
    starting = Platform(**URLS).start(Gateway("gw", seed=1).sensor("humidity"))
    with pytest.raises(NoLoop, match=r"asyncio\.run"):
        starting.send(None)


@pytest.mark.parametrize(("arguments", "options", "says"), [
    (("gw",), {}, "is not a Gateway"),
    (({"gw"},), {}, "is not a Gateway"),
    ((), {}, "is nothing to start.*recover=True"),
    (([],), {}, "is nothing to start"),
    ((Gateway("gw", seed=1),), {}, "has no sensor"),
    ((Gateway("gw", seed=1).sensor("humidity"),), {"count": 2}, "same name"),
    ((Gateway("gw", seed=1).sensor("humidity"),), {"count": 0}, "count=0"),
    ((Gateway("gw", seed=1).sensor("humidity"),), {"speed": 60}, "is no pace for gateways"),
    ((Gateway("gw", seed=1).sensor("humidity"),), {"speed": "max"}, "is no pace for gateways"),
    ((Gateway("gw", seed=1).sensor("humidity"),), {"recover": 1}, "recover=1"),
    ((), {"recover": True}, "has no gateway to recover"),
    ((), {"recover": True, "count": 3}, "counts nothing without a Gateway"),
    (([Gateway("a", seed=1).sensor("humidity"), Gateway("b", seed=2).sensor("humidity")],), {},
     "are several.*same seed="),
    (([Gateway("a", seed=1).sensor("humidity")] * 2,), {}, "give two gateways one name"),
    (([Gateway("a", factory_id="f", seed=1).sensor("humidity"),
       Gateway("b", factory_id="f", seed=1).sensor("humidity")],), {}, "one factory id"),
])
def test_start_refuses_what_cannot_be_in_one_line(arguments, options, says, tmp_path):
    async def main():
        platform = Platform(**URLS, store=tmp_path / "s.db", store_key=STORE_KEY)
        with pytest.raises(IotsimError, match=says) as error:
            await platform.start(*arguments, **options)
        assert "\n" not in str(error.value)
        assert left_over() == []

    asyncio.run(main())


# -- against a platform ---------------------------------------------------------------------------


async def refused(platform, gateway, error, says):
    with pytest.raises(error, match=says) as found:
        await platform.start(gateway, progress=False)
    assert "\n" not in str(found.value)
    await until(lambda: not provisioning_desk.waiting())
    assert left_over() == []
    assert not iotsim.gateway.platform.live_runs.runs()


@pytest.mark.broker
def test_what_cannot_be_reached_or_trusted_is_an_error_that_says_so(site, tmp_path):
    async def main():
        gateway = site.gateway(count=1)
        (await site.platform().start(gateway, progress=False)).end_soon()
        await until(lambda: not iotsim.gateway.platform.live_runs.runs())
        fresh = Gateway("fresh", factory_key="key", seed=42).sensor("humidity")
        await refused(site.platform(provisioning_url="http://127.0.0.1:9"), fresh,
                      IotsimError, "127.0.0.1:9")
        await refused(site.platform(provisioning_url=site.lab.provisioning_url + "/onboard"),
                      fresh, IotsimError, "404|not found")
        await refused(site.platform(), fresh, IotsimError, "401|credentials")
        await refused(site.platform(nats_url="tls://127.0.0.1:9"), gateway, ConnectError,
                      "127.0.0.1:9")
        await refused(site.platform(nats_url=site.lab.nats_url.replace("tls", "nats")), gateway,
                      IotsimError, "TLS")
        await refused(site.platform(nats_ca=None), gateway, ConnectError, "certificate|trust")
        (tmp_path / "bad.crt").write_text("nothing")
        with pytest.raises(BadValue, match="holds no certificate"):
            site.platform(nats_ca=tmp_path / "bad.crt")
        await refused(site.platform(store=tmp_path), gateway, StoreError, "is a folder")
        await refused(site.platform(store_key="ab" * 32), gateway, StoreError, "another key")
        await refused(site.platform(store_key="short"), gateway, IotsimError, "32 bytes")

    asyncio.run(main())


@pytest.mark.broker
def test_an_equal_start_returns_the_same_run_and_doubles_nothing(site):
    async def main():
        gateway = site.gateway("same-{n}", 2)
        platform = site.platform()
        first, second = await asyncio.gather(platform.start(gateway, progress=False),
                                             site.platform().start(gateway, progress=False))
        assert first is second
        assert await platform.start(site.gateway("same-{n}", 1), count=2) is first
        await first.attach("same-1", "humidity")
        await first.stop_gateway("same-2")
        assert await platform.start(gateway) is first  # a cell that is run again
        assert row(first, "same-2").state == "stopped"
        with pytest.raises(NameInUse, match="replace=True"):
            await platform.start(gateway, count=1)
        with pytest.raises(NameInUse, match="replace=True"):
            await site.platform(buffer=5).start(gateway)
        assert left_over()
        assert first.state == "running"
        other = await platform.start(gateway, count=1, replace=True, progress=False)
        assert other is not first
        assert first.state == "stopped"
        await readings(other, "same-1:temperature", 2)
        assert list(other.gateways().gateway) == ["same-1"]
        assert len(await site.received(first.id)) == first._result.publishers[
            next(iter(first._result.publishers))].acknowledged
        registered = site.lab.register_of_gateways.get("f-same-1")
        assert registered.provisioned
        await site.check(await other.stop())
        assert left_over() == []

    asyncio.run(main())


@pytest.mark.broker
def test_several_gateways_run_together_and_those_not_provisioned_are_named(site):
    async def main():
        good = site.gateway("part-{n}", 2)
        both = [good.many(3), site.gateway("lone", 1, every="100ms")]  # part-3 is not registered
        async with site.running(both) as run:
            assert list(run.gateways().gateway) == ["part-1", "part-2", "lone"]
            table = run.enrolment.table().set_index("name")
            assert table.status.to_dict() == {"part-1": "provisioned", "part-2": "provisioned",
                                              "lone": "provisioned", "part-3": "failed"}
            (error,) = run.errors
            assert str(error) == table.error["part-3"]
            assert "f-part-3" in str(error)
            await readings(run, "lone:temperature", 2)
            assert run.gateways().set_index("gateway").send_frequency_ms["lone"] == 100
        assert "part-3" in set(site.platform().gateways().query("not provisioned").gateway)
        result = run._result
        assert any("f-part-3" in str(error) for error in result.errors)
        async with site.running(both[0].many(2)) as run:  # the store has them: nobody is asked
            assert set(run.enrolment.table().status) == {"provisioned before"}

    asyncio.run(main())


@pytest.mark.broker
def test_a_url_with_a_path_is_used_as_it_is(site):
    async def main():
        platform = site.platform(
            provisioning_url=site.lab.provisioning_url + "/provision/onboard")
        async with site.running(site.gateway("path-{n}", 1), platform=platform) as run:
            assert row(run, "path-1").connected

    asyncio.run(main())


@pytest.mark.broker
def test_a_store_that_nobody_named_is_a_passing_one_with_a_key_beside_it(site):
    async def main():
        platform = site.platform(store=None, store_key=None)
        gateway = site.gateway("pass-{n}", 1)
        async with site.running(gateway, platform=platform) as run:
            path = run.crew.store.path
            assert os.path.exists(path)
            assert os.stat(f"{path}.key").st_mode & 0o777 == 0o600
        async with site.running(gateway, platform=platform) as run:
            assert run.crew.store.path == path
            assert set(run.enrolment.table().status) == {"provisioned before"}

    asyncio.run(main())


@pytest.mark.broker
def test_cancelled_at_any_moment_start_leaves_nothing_behind_and_loses_nothing(site):
    async def main():
        platform, gateway = site.platform(), site.gateway("can-{n}", 2)
        steps = [
            lambda: False,  # at once
            lambda: any(one.factory_id == "f-can-1" and one.provisioned
                        for one in site.lab.register_of_gateways.all()),
            lambda: bool(iotsim.gateway.platform.live_runs.runs()),
        ]
        for there in steps:
            starting = asyncio.create_task(platform.start(gateway, progress=False))
            await asyncio.sleep(0.01)
            if there():
                pass
            elif there is not steps[0]:
                await until(lambda there=there, task=starting: there() or task.done(), 15)
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            await until(lambda: not provisioning_desk.waiting(), 15)
            assert left_over() == []
            assert not iotsim.gateway.platform.live_runs.runs()
            assert len(platform.gateways()) >= 0  # the store is free
        async with site.running(gateway, platform=platform) as run:
            await readings(run, "can-2:temperature", 1)
            assert run.enrolment.errors == {}
            await sees(run, "can-1", connected=True)

    asyncio.run(main())


def test_the_platforms_certificates_need_no_authority_key_identifier(site):
    context = site.platform()._nats().tls.context()
    assert not context.verify_flags & ssl.VERIFY_X509_STRICT
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
