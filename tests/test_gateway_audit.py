"""Sent against received for gateways: envelopes by a tap, opened, judged and joined."""

import asyncio
import dataclasses

import numpy as np
import pandas as pd
import pytest

import iotsim
from iotsim import Gateway
from iotsim.gateway.comparing import EnvelopeForm
from iotsim.gateway.envelope import EnvelopeEncoder
from iotsim.gateway.opening import frame_of
from iotsim.gateway.publisher import GatewayPublisher
from iotsim.publishers.backoff import Pace
from tests.gateway_platforms import gateways, on_lab, platform_of, until
from tests.servers.notip import notip_lab

__all__ = ("notip_lab",)


@dataclasses.dataclass
class Heard:
    """A run that is over, the tap that heard it, and what the platform's people see."""

    result: object
    tap: object
    records: dict
    telemetry: pd.DataFrame
    names: list
    saw: str = ""

    @property
    def messages(self):
        return self.tap.messages()


def tap_of(lab):
    """A tap on the telemetry, with the certificate of the data API."""
    cert, key = lab.service("data-api")
    return iotsim.tap(f"nats+jetstream+{lab.nats_url}", stream="TELEMETRY", ca=str(lab.ca_path),
                      cert=str(cert), key=str(key))


@pytest.fixture(scope="module")
def heard(notip_lab, tmp_path_factory):
    """Gateways through a restart of NATS, with faults on their links before it."""
    lab, gateway = notip_lab.lab, gateways(every="30ms", count=3)
    platform = platform_of(notip_lab, tmp_path_factory.mktemp("audit"), gateway)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(GatewayPublisher, "pace", Pace(0.2, 0.2, 0.2))
        tap = tap_of(lab)

        async def main():
            run = await platform.start(gateway, capture="all")
            pump = run.works.pumps[0]
            names = list(run.gateways().gateway)
            run.degrade(names[0], "500ms", loss=0.5, duplicate=0.3, reorder=0.3, latency_ms=5)
            run.disconnect(names[1], "500ms")
            run.inject("rate", f"gateway={names[2]}", "500ms", factor=3)
            await until(lambda: pump.snapshot().acknowledged > 200
                        and not run.snapshot().faults)
            await on_lab(notip_lab, lab.restart_nats())
            before = pump.snapshot().acknowledged
            await until(lambda: pump.snapshot().acknowledged > before + 200
                        and pump.connected == 3)
            return names, run.crew.records, await run.stop()

        names, records, result = asyncio.run(main())
        saw = result.audit(tap).verdict  # while it listens
        tap.close()
    return Heard(result, tap, records, notip_lab.run(lab.console.telemetry()), names, saw)


def test_a_restart_of_nats_loses_nothing_and_doubles_nothing(heard):
    audit = heard.result.audit(heard.tap)
    assert audit.ok
    assert (audit.lost, audit.duplicated, audit.unknown, audit.unexpected) == (0, 0, 0, 0)
    assert (audit.corrupted, audit.out_of_order, audit.foreign, audit.unheard) == (0, 0, 0, 0)
    (ledger,) = heard.result.publishers.values()
    assert audit.sent == audit.received == ledger.acknowledged > 400
    assert ledger.reconnects >= 3
    assert heard.saw.startswith(f"ok: {audit.sent:,} sent, {audit.sent:,} received, 0 lost")


def test_what_anomalies_withhold_is_expected_to_be_missing(heard):
    audit = heard.result.audit(heard.tap)
    by_fault = audit.by_fault().set_index("fault")
    assert by_fault.loc["packet_loss", "expected"] > 3
    assert by_fault.loc["disconnect", "expected"] > 10
    assert by_fault.loc["no fault", "expected"] == 0
    assert audit.expected == len(heard.result.frame(wire=True).query("withheld != ''"))
    assert f"{audit.expected:,} withheld by faults" in audit.verdict


def test_a_verdict_says_where_a_tap_would_have_to_listen(heard):
    with pytest.raises(iotsim.IotsimError, match=r"nats\+jetstream\+tls://127.0.0.1"):
        heard.result.audit(heard.messages, publisher="mqtt://elsewhere")


@pytest.mark.parametrize(("change", "found"), [
    (lambda one, other: (one[0], one[1].replace(b'"keyVersion":1', b'"keyVersion":2'), one[2]),
     "corrupted"),
    (lambda one, other: (one[0], other[1], one[2]), "corrupted"),
    (lambda one, other: (one[0], one[1][:-30] + b"A" + one[1][-29:], one[2]), "corrupted"),
    (lambda one, other: (one[0], b"", one[2]), "corrupted"),
    (lambda one, other: (one[0], one[1], other[2]), "duplicated"),
])
def test_an_envelope_that_is_another_or_was_changed_is_noticed(heard, change, found):
    messages = heard.messages
    # Not two that a fault made alike.
    plain = [i for i, one in enumerate(messages) if one[2].endswith("/0")][-2:]
    messages[plain[0]] = change(messages[plain[0]], messages[plain[1]])
    audit = heard.result.audit(messages)
    assert not audit.ok
    assert getattr(audit, found) == 1
    assert not heard.result.audit(heard.tap).corrupted


def test_an_envelope_that_the_stream_lost_is_blamed_on_it(heard):
    messages = heard.messages
    name = messages.pop(7)[2]
    audit = heard.result.audit(messages)
    assert (audit.lost_by_broker, audit.lost) == (1, 1)
    assert list(audit.readings("lost").id) == [name]
    assert "1 lost after the broker acknowledged them" in audit.verdict


def test_events_of_a_gateway_are_those_of_its_sensors(heard):
    first, second, _ = heard.names
    events = heard.result.events(["connected", "disconnected"], second)
    for name in ("temperature", "humidity"):
        mine = events[events.device_id == f"{second}:{name}"]
        assert sorted(mine.event) == ["connected", "connected", "disconnected"]
        assert set(mine.message) == {
            "the link is up", "the link is gone: disconnect", "the link is back"}
    assert list(heard.result.events("disconnected", first).event) == []
    with pytest.raises(iotsim.IotsimError, match="device"):
        heard.result.events(device_id=second[:-1])


KEYS = ["device_id", "seq"]


def test_envelopes_that_a_tap_heard_join_with_what_was_sent(heard):
    frame = heard.result.frame(wire=True)
    sent = frame[frame.withheld == ""].copy()
    read = frame_of([(ident, payload) for _, payload, ident in heard.messages], heard.records)
    assert set(read.reason) == {""}
    assert len(read) == len(sent)
    keys = [*KEYS, "sub", "copy"]
    both = sent.astype({"device_id": str}).merge(read.astype({"device_id": str}), on=keys,
                                                 suffixes=("_sent", "_read"))
    assert len(both) == len(sent)
    assert (both.value_sent == both.value_read).all()
    assert (both.time_sent == both.time_read).all()


def test_what_the_platforms_people_see_joins_in_one_line(heard):
    sent = heard.result.frame()
    sent = sent[sent.gateway == heard.names[1]]  # neither copies nor sub-ticks
    both = heard.telemetry.merge(sent, on=KEYS, suffixes=("_read", "_sent"))
    assert len(both) == len(sent) > 50
    assert (both.value_sent == both.value_read).all()
    assert (both.time_sent == both.time_read).all()
    assert (both.unit == both.device_type.map({"temperature": "°C", "humidity": "%"})).all()


def provisioned(gateway):
    """Its records, as if a platform had answered."""
    return {one.name: dataclasses.replace(
        one, gateway_id=f"00000000-0000-4000-8000-{i:012}", aes_key=bytes([i + 1] * 32),
        tenant_id="00000000-0000-4000-8000-00000000000a", cert_pem="x")
        for i, one in enumerate(gateway.records())}


def test_a_timestamp_that_was_moved_for_the_platforms_key_is_no_corruption():
    gateway = Gateway("gw-{n}", count=2, every="1s", seed=1).sensor("temperature")
    records = provisioned(gateway)
    (readings,) = gateway.generate("10s").capture.chunks()[:1]
    same = np.full(len(readings), int(readings.time_us[0]))
    readings = dataclasses.replace(readings, time_us=same)
    payloads = EnvelopeEncoder("r", records).encode(readings).payloads
    form = EnvelopeForm(records)
    bodies = form.bodies(readings)
    assert len(set(payloads)) == len(payloads) > 4
    assert all(map(form.same, bodies, payloads))
    assert not any(map(form.same, bodies[1:], payloads))
    assert not form.same(bodies[0], b"no envelope")
    assert not EnvelopeForm({}).same(bodies[0], payloads[0])


def test_a_form_shows_no_key():
    records = provisioned(Gateway("gw-{n}", count=2, every="1s", seed=1).sensor("temperature"))
    form = EnvelopeForm(records)
    assert repr(form) == "<EnvelopeForm of 2 gateways>"
