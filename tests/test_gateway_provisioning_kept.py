"""The factory key works once: what was answered is kept, whatever happens to who asked."""

import asyncio
import signal
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from iotsim.errors import BadValue, StoreError
from iotsim.gateway import provisioning_desk
from iotsim.gateway import provisioning_errors as errors
from iotsim.gateway.provisioning import Enrolment, onboard, onboard_all
from iotsim.gateway.provisioning_desk import waiting
from iotsim.gateway.store import Store
from tests import provisioning_rig
from tests.provisioning_rig import AES_KEY, Shelf, gateway
from tests.servers.http import Reply

key, service = provisioning_rig.key, provisioning_rig.service  # the fixtures

PATIENCE_S = 60
CHILD = Path(__file__).with_name("onboarding_child.py")


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def settled():
    while tasks := waiting():
        await asyncio.wait(tasks, timeout=PATIENCE_S)


class Failing(Shelf):
    """Fails at the given savings."""

    def __init__(self, *at):
        super().__init__()
        self._at, self._saved = at, 0

    def save(self, record, /):
        self._saved += 1
        if self._saved in self._at:
            raise StoreError("gateways.db", "the disk is full", "Make room.")
        super().save(record)


# -- killed, interrupted, cancelled ---------------------------------------------------------------


@contextmanager
def child(service, store, record):
    arguments = [service.url, str(store), record.name, record.factory_id]
    with subprocess.Popen(
        [sys.executable, str(CHILD), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, cwd=CHILD.parent.parent,
    ) as process:
        try:
            process.stdin.write(record.factory_key.encode() + b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"asking\n"
            yield process
        finally:
            process.kill()


def test_killed_between_answer_and_connection_the_store_has_it_all(service, tmp_path):
    record = gateway(service=service)
    with child(service, tmp_path / "gateways.db", record) as process:
        assert process.stdout.readline() == b"answered\n"
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_S)
    with Store.open(tmp_path / "gateways.db") as store:
        kept = store.get("gw-1")
    assert kept.provisioned
    assert (kept.aes_key, kept.status, kept.factory_id) == (AES_KEY, "online", "F-1")
    assert kept.private_key_pem.startswith("-----BEGIN RSA PRIVATE KEY-----")


def test_killed_before_the_answer_the_key_is_kept_and_a_409_says_what_happened(service, tmp_path):
    record, path = gateway(service=service), tmp_path / "gateways.db"
    service.delay_s = PATIENCE_S
    with child(service, path, record) as process:
        asyncio.run(until(lambda: service.endpoint.got))
        process.send_signal(signal.SIGKILL)
        process.wait(PATIENCE_S)
    service.delay_s = 0
    with Store.open(path) as store:
        kept = store.get("gw-1")
        assert (kept.provisioned, bool(kept.private_key_pem)) == (False, True)
        with pytest.raises(errors.AlreadyProvisioned) as caught:  # without the private key
            asyncio.run(onboard(record, url=service.url, keeper=store))
        assert store.get("gw-1").private_key_pem == kept.private_key_pem
    assert service.asked[0]["csr"].splitlines()[1] == service.asked[1]["csr"].splitlines()[1]
    assert ("it was asked before without an answer that was kept. Its factory key is used up and "
            "what the platform answered is lost: restore a store that holds this gateway, or "
            "register it anew at the platform and give its new factory key.") in str(caught.value)


def test_a_script_that_is_interrupted_waits_for_an_answer_that_is_nearly_there(service, tmp_path):
    record = gateway(service=service)
    service.delay_s = 0.5
    with child(service, tmp_path / "gateways.db", record) as process:
        asyncio.run(until(lambda: service.endpoint.got))
        process.send_signal(signal.SIGINT)
        assert process.stdout.readline() == b"interrupted\n"
        process.wait(PATIENCE_S)
    with Store.open(tmp_path / "gateways.db") as store:
        assert store.get("gw-1").provisioned


def test_cancelled_while_the_service_is_asked_the_answer_is_kept(service, key, monkeypatch):
    monkeypatch.setattr(provisioning_desk, "SETTLE_S", 0.05)
    shelf = Shelf()

    async def main():
        record = gateway(service=service, key=key)
        service.delay_s = 0.4
        asking = asyncio.create_task(onboard(record, url=service.url, keeper=shelf))
        await until(lambda: service.endpoint.got)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not shelf.kept["gw-1"].provisioned
        again = await onboard(record, url=service.url, keeper=shelf)  # the cell is run again
        assert again == shelf.kept["gw-1"]
        await settled()

    asyncio.run(main())
    assert shelf.kept["gw-1"].aes_key == AES_KEY
    assert len(service.endpoint.got) == 1


def test_a_loop_that_ends_with_an_exchange_on_its_way_leaves_nothing_open(
    service, key, monkeypatch
):
    monkeypatch.setattr(provisioning_desk, "SETTLE_S", 0.05)
    shelf = Shelf()

    async def main():
        service.delay_s = PATIENCE_S
        record = gateway(service=service, key=key)
        asking = asyncio.create_task(onboard(record, url=service.url, keeper=shelf))
        await until(lambda: service.endpoint.got)
        asking.cancel()
        await asyncio.wait([asking])

    asyncio.run(main())
    assert not waiting()
    assert shelf.kept["gw-1"].private_key_pem == key


def test_cancelled_anywhere_what_the_platform_provisioned_is_kept(service, key, monkeypatch):
    monkeypatch.setattr(provisioning_desk, "SETTLE_S", 0.01)
    service.delay_s = 0.01

    async def main(number):
        shelf = Shelf()
        record = gateway(number, service, key)
        asking = asyncio.create_task(onboard(record, url=service.url, keeper=shelf))
        await asyncio.sleep(0.002 * number)
        asking.cancel()
        await asyncio.wait([asking])
        await settled()
        kept = shelf.kept.get(record.name)
        assert (kept is not None and kept.provisioned) == (record.factory_id in service.used)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    for number in range(16):
        asyncio.run(main(number))


def test_cancelled_before_the_service_is_asked_nothing_is_asked(service):
    async def main():
        asking = asyncio.create_task(onboard(gateway(service=service), url=service.url))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await settled()

    asyncio.run(main())
    assert not service.endpoint.got


def test_of_two_who_onboard_one_gateway_the_second_goes_on_when_the_first_gives_up(service):
    async def main():
        record = gateway(service=service)
        first = asyncio.create_task(onboard(record, url=service.url))
        second = asyncio.create_task(onboard(record, url=service.url))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        first.cancel()
        assert (await second).provisioned
        assert first.cancelled()

    asyncio.run(main())
    assert len(service.endpoint.got) == 1


def test_one_factory_id_under_two_names_at_a_time_is_refused(service, key):
    async def main():
        service.delay_s = 0.1
        record = gateway(service=service, key=key)
        first = asyncio.create_task(onboard(record, url=service.url))
        await until(lambda: service.endpoint.got)
        with pytest.raises(BadValue, match="is being provisioned as gateway 'gw-1'"):
            await onboard(replace(record, name="gw-2"), url=service.url)
        assert (await first).provisioned

    asyncio.run(main())


# -- the store ------------------------------------------------------------------------------------


def test_the_private_key_is_kept_before_the_service_is_asked(service):
    shelf, then = Shelf(), []
    service.instead = lambda got: then.append(dict(shelf.kept))
    made = asyncio.run(onboard(gateway(service=service), url=service.url, keeper=shelf))
    assert then[0]["gw-1"].private_key_pem == made.private_key_pem
    assert not then[0]["gw-1"].provisioned


def test_what_people_changed_meanwhile_stays(service, key):
    shelf = Shelf()

    def stop(got):
        shelf.kept["gw-1"] = replace(shelf.kept["gw-1"], intent="stopped", model="changed")

    service.instead = stop
    made = asyncio.run(onboard(gateway(service=service, key=key), url=service.url, keeper=shelf))
    assert (made.intent, made.model, made.aes_key) == ("stopped", "changed", AES_KEY)
    assert shelf.kept["gw-1"] == made
    shelf = Shelf()
    service.instead = lambda got: shelf.kept.clear()  # deleted; its key would be lost for ever
    made = asyncio.run(onboard(gateway(2, service, key), url=service.url, keeper=shelf))
    assert shelf.kept["gw-2"] == made


def test_a_store_that_fails_before_stops_it_and_the_service_is_not_asked(service, key):
    record = gateway(service=service, key=key)
    with pytest.raises(StoreError, match="the disk is full"):
        asyncio.run(onboard(record, url=service.url, keeper=Failing(1)))
    assert not service.endpoint.got


def test_a_store_that_fails_after_leaves_the_answer_in_the_error(service, key):
    with pytest.raises(errors.NotKept) as caught:
        asyncio.run(onboard(gateway(service=service, key=key), url=service.url, keeper=Failing(2)))
    text = str(caught.value)
    assert "said yes, and then the store failed (gateways.db: the disk is full. Make room.)" in text
    assert caught.value.record.provisioned
    assert caught.value.record.aes_key == AES_KEY


def test_what_the_store_knows_better_is_taken_from_there(service, key):
    shelf = Shelf()
    record = gateway(service=service, key=key)
    made = asyncio.run(onboard(record, url=service.url, keeper=shelf))
    assert asyncio.run(onboard(record, url=service.url, keeper=shelf)) == made
    assert len(service.endpoint.got) == 1


def test_another_gateway_of_the_same_name_is_not_written_over(service, key):
    shelf = Shelf()
    made = asyncio.run(onboard(gateway(service=service, key=key), url=service.url, keeper=shelf))
    other = replace(gateway(2, service, key), name="gw-1")
    with pytest.raises(BadValue, match="is in the store, provisioned, with factory id 'F-1'"):
        asyncio.run(onboard(other, url=service.url, keeper=shelf))
    assert shelf.kept["gw-1"] == made


# -- many -----------------------------------------------------------------------------------------


def enrolled(records, service, **options):
    return asyncio.run(onboard_all(records, **{"url": service.url, "attempts": 1, **options}))


def test_of_many_each_is_a_row_and_one_that_fails_stops_nobody(service, key):
    done = asyncio.run(onboard(gateway(0, service, key), url=service.url))
    good = [gateway(number, service, key) for number in range(1, 8)]
    unknown = gateway(8, key=key)
    odd = replace(gateway(9, service, key), send_frequency_ms=0)
    shelf, told = Shelf(), []
    service.delay_s = 0.05
    found = enrolled([*good[:3], unknown, done, odd, *good[3:]], service, keeper=shelf,
                     concurrency=3, progress=lambda *far: told.append(far))
    assert [record.name for record in found.records] == [
        "gw-1", "gw-2", "gw-3", "gw-0", "gw-4", "gw-5", "gw-6", "gw-7"]
    assert found.records[3] is done
    assert {name: type(error) for name, error in found.errors.items()} == {
        "gw-8": errors.InvalidFactoryCredentials, "gw-9": BadValue}
    assert service.endpoint.running_most <= 3
    assert sorted(told) == [(far, 10) for far in range(1, 11)]
    assert {name for name, record in shelf.kept.items() if record.provisioned} == {
        record.name for record in good}
    table = found.table().set_index("name")
    assert list(table.columns) == ["gateway_id", "tenant_id", "status", "error", "seconds"]
    assert table.status.value_counts().to_dict() == {
        "provisioned": 7, "failed": 2, "provisioned before": 1}
    assert table.loc["gw-1", "gateway_id"] == found.records[0].gateway_id
    assert table.loc["gw-8", "error"] == str(found.errors["gw-8"])
    assert (table.loc["gw-1", "seconds"] >= 0.05, table.seconds.isna().sum()) == (True, 1)
    assert repr(found) == "<Enrolment: 8 gateways provisioned, 2 failed>"


def test_keys_are_made_where_there_are_none(service):
    found = enrolled([gateway(number, service) for number in range(4)], service)
    assert len({record.private_key_pem for record in found.records}) == 4
    assert not found.errors


def test_nobody_is_an_empty_table(service):
    found = enrolled([], service)
    assert isinstance(found, Enrolment)
    assert list(found.table().columns) == [
        "name", "gateway_id", "tenant_id", "status", "error", "seconds"]


@pytest.mark.parametrize(("changes", "why"), [
    ({"factory_id": "F-1"}, "use one factory id more than once: 'F-1'"),
    ({"name": "gw-1"}, "use one name more than once: 'gw-1'"),
])
def test_what_is_there_twice_is_one_error_beforehand(service, key, changes, why):
    twice = [gateway(1, service, key), replace(gateway(2, service, key), **changes)]
    with pytest.raises(BadValue) as caught:
        enrolled(twice, service)
    assert why in str(caught.value)
    assert not service.endpoint.got


@pytest.mark.parametrize("options", [
    {"concurrency": 0}, {"concurrency": 201}, {"concurrency": True}, {"attempts": 0},
    {"attempts": 21}, {"timeout_s": 0},
])
def test_options_that_cannot_be_used_are_refused(service, options):
    with pytest.raises(BadValue, match="Give "):
        enrolled([], service, **options)


def test_many_that_are_cancelled_keep_what_was_on_its_way(service, key):
    shelf = Shelf()

    async def main():
        service.delay_s = 0.3
        records = [gateway(number, service, key) for number in range(9)]
        asking = asyncio.create_task(
            onboard_all(records, url=service.url, keeper=shelf, concurrency=3))
        await until(lambda: len(service.endpoint.got) == 3)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await settled()

    asyncio.run(main())
    assert sum(record.provisioned for record in shelf.kept.values()) == 3
    assert len(service.used) == 3


def test_a_service_that_fails_half_of_them_leaves_all_accounted_for(service, key):
    service.instead = lambda got: Reply(500) if got.number % 2 else None
    records = [gateway(number, service, key) for number in range(10)]
    found = enrolled(records, service)
    assert len(found.records) + len(found.errors) == 10
    assert {type(error) for error in found.errors.values()} == {errors.ServiceFailed}
    assert {record.factory_id for record in found.records} == service.used
