"""Sent against received, on recorded messages: the classes of readings, against a slow oracle."""

import asyncio
import math
from collections import Counter
from functools import cache

import numpy as np
import orjson
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from iotsim import Fleet, Scenario
from iotsim.audit_match import joined, overtaken
from iotsim.errors import BadValue, UnknownName
from iotsim.publishers import memory

START = "2026-03-01T12:00:00Z"


def fleet(name="plant", count=6, **options):
    made = Fleet(name, seed=42).add("temperature_sensor", count=count, every="1s",
                                    labels={"site": "north"})
    return made.publish_to(f"memory:{name}", **options)


def broken(name="broken", **options):
    return (Scenario(name, fleet(name, **options))
            .at("2s").inject("packet_loss", loss=0.5, duration="3s")
            .at("4s").inject("disconnect", where="count=2", duration="2s", store_and_forward=True)
            .at("6s").inject("duplicate", probability=0.5, duration="3s")
            .at("8s").inject("reorder", duration="4s")
            .at("10s").inject("latency_spike", latency_ms=1500, where="count=3", duration="3s")
            .at("12s").inject("rate", factor=3, where="count=1", duration="3s")
            .at("13s").inject("data_corruption", corruption_rate=0.5, duration="2s")
            .at("14s").inject("clock_drift", drift_rate_ms_per_sec=-400, duration="3s")
            .at("15s").inject("disconnect", where="count=3", duration="2s")
            .at("17s").stop(where="count=1")
            .lasting("20s"))


@cache
def ran(what=broken, **options):
    """A run at full speed, and what it published, in order."""
    made = what(**options)
    extra = {} if isinstance(made, Scenario) else {"duration": "10s"}
    result = asyncio.run(made.run(speed="max", start=START, **extra))
    return result, memory.messages(made.name if isinstance(made, Fleet) else made.fleet.name)


def oracle(result, sent, received):
    """The same counts by loops over dicts."""
    body = {ident: payload for _, payload, ident in sent}
    place = {ident: i for i, (_, _, ident) in enumerate(sent)}
    came, first, foreign, unexpected = Counter(), [], 0, 0
    wrong = set()
    for _, payload, ident in received:
        if ident in body:
            if not came[ident]:
                first.append(ident)
            came[ident] += 1
            if payload != body[ident]:
                wrong.add(ident)
        elif ident.partition("/")[0] == result.run_id:
            unexpected += 1
        else:
            foreign += 1
    last, behind = {}, 0
    for ident in first:
        device = ident.rsplit("/", 2)[0]
        behind += place[ident] < last.get(device, -1)
        last[device] = max(place[ident], last.get(device, -1))
    return {
        "sent": len(sent), "received": len(came), "lost_by_broker": len(sent) - len(came),
        "duplicated": sum(came.values()) - len(came), "corrupted": len(wrong),
        "out_of_order": behind, "unexpected": unexpected, "foreign": foreign,
        "lost_by_simulator": 0, "lost_in_flight": 0, "refused": 0, "unknown": 0,
    }


def counts(audit):
    names = ("sent", "received", "lost_by_broker", "duplicated", "corrupted", "out_of_order",
             "unexpected", "foreign", "lost_by_simulator", "lost_in_flight", "refused", "unknown")
    return {name: getattr(audit, name) for name in names}


MUTATIONS = st.lists(
    st.tuples(st.sampled_from(["drop", "twice", "swap", "alter", "foreign", "invent", "withheld"]),
              st.integers(0, 10_000), st.integers(0, 10_000)),
    max_size=25,
)


def mutated(messages, mutations, run_id):
    found = list(messages)
    for what, a, b in mutations:
        i, j = a % max(1, len(found)), b % (len(found) + 1)
        if what == "foreign":
            found.insert(j, ("t", b"{}", f"other/{a}/0/0"))
        elif what == "invent":
            found.insert(j, ("t", b"{}", f"{run_id}/temperature_sensor-0001/{a + 1000}/0"))
        elif not found or what == "withheld":
            continue
        elif what == "drop":
            del found[i]
        elif what == "twice":
            found.insert(j, found[i])
        elif what == "swap":
            k = b % len(found)
            found[i], found[k] = found[k], found[i]
        else:
            topic, payload, ident = found[i]
            found[i] = (topic, payload + b" ", ident)
    return found


@given(MUTATIONS)
def test_whatever_becomes_of_the_messages_the_counts_are_those_of_a_slow_oracle(mutations):
    result, sent = ran()
    received = mutated(sent, mutations, result.run_id)
    audit = result.audit(received)
    assert counts(audit) == oracle(result, sent, received)
    assert audit.sent == audit.received + audit.lost + audit.refused + audit.unknown
    frame = audit.frame()
    for name in ("sent", "received", "lost_by_broker", "duplicated", "corrupted", "expected",
                 "out_of_order"):
        assert frame[name].sum() == getattr(audit, name), name


@given(st.lists(st.integers(0, 12), max_size=30), st.lists(st.integers(0, 15), max_size=40))
def test_a_key_that_was_sent_several_times_takes_as_many_arrivals(sent, received):
    found = joined(np.array(sent, dtype=np.int64), np.array(received, dtype=np.int64))
    waiting = {key: [i for i, one in enumerate(sent) if one == key] for key in set(sent)}
    rows, firsts = [], []
    for key in received:
        there = waiting.get(key, [])
        taken = [row for row, first in zip(rows, firsts, strict=True) if first]
        fresh = [row for row in there if row not in taken]
        rows.append(fresh[0] if fresh else there[-1] if there else -1)
        firsts.append(bool(fresh))
    assert found.row_of.tolist() == rows
    assert found.first.tolist() == firsts
    assert found.copies.sum() == sum(row >= 0 for row in rows)


@given(st.permutations(list(range(8))), st.sets(st.integers(0, 7)))
def test_who_was_overtaken_is_who_came_after_one_that_left_later(order, gone):
    arrival_of = np.array([-1 if i in gone else order.index(i) for i in range(8)])
    stream = np.repeat([0, 1], 4)
    late = overtaken(np.arange(8), stream, arrival_of)
    for i in range(8):
        before = [j for j in range(i + 1, 8) if stream[j] == stream[i] and arrival_of[j] >= 0
                  and arrival_of[j] < arrival_of[i]]
        assert late[i] == bool(before and arrival_of[i] >= 0)


def test_all_faults_together_are_nobodys_loss():
    result, sent = ran()
    audit = result.audit(sent)
    assert audit.ok
    assert bool(audit)
    wire = result.frame(wire=True)
    assert audit.expected == (wire["withheld"] != "").sum() > 5
    assert audit.sent == len(sent) == (wire["withheld"] == "").sum()
    assert audit.duplicated == audit.out_of_order == audit.corrupted == audit.unexpected == 0
    assert audit.verdict == (
        f"ok: {len(sent)} sent, {len(sent)} received, 0 lost, 0 duplicated; "
        f"{audit.expected} withheld by faults; "
        "no latency: at speed 'max' a timestamp is no time of day"
    )


def test_the_readings_say_which_fault_withheld_them():
    result, sent = ran()
    table = result.audit(sent).readings("expected")
    wire = result.frame(wire=True)
    expected = Counter(wire.loc[wire["withheld"] != "", "withheld"].astype(str))
    assert Counter(table["whose"].astype(str)) == expected
    assert table["left"].isna().all()
    assert not table["copies"].any()


def test_a_withheld_reading_that_comes_is_unexpected():
    result, sent = ran()
    ident = result.audit(sent).readings("expected")["id"].iloc[0]
    audit = result.audit([*sent, ("t", b"{}", ident)])
    assert audit.unexpected == 1
    assert not audit.ok
    assert audit.readings("unexpected")["id"].tolist() == [ident]


def test_the_table_has_every_reading_once_with_its_id():
    result, sent = ran()
    table = result.audit(sent).readings()
    assert len(table) == len(table["id"].unique()) == result.rows
    assert set(table.loc[table["class"] == "ok", "id"]) == {ident for _, _, ident in sent}
    assert table["time"].is_monotonic_increasing
    assert table["acked"][table["class"] == "ok"].all()
    assert list(table.columns) == [
        "id", "device_id", "seq", "sub", "copy", "time", "left", "acked", "received", "copies",
        "latency", "class", "whose"]
    with pytest.raises(UnknownName, match="no class of readings called 'gone'"):
        result.audit(sent).readings("gone")


def test_each_window_of_a_fault_has_its_counts():
    result, sent = ran()
    ident = next(ident for _, _, ident in sent if ident.endswith("-0003/7/0"))
    received = [message for message in sent if message[2] != ident]
    audit = result.audit(received)
    table = audit.by_fault()
    wire = result.frame(wire=True)
    assert table["fault"].tolist() == [
        "packet_loss", "disconnect", "duplicate", "reorder", "latency_spike", "rate",
        "data_corruption", "clock_drift", "disconnect", "no fault"]
    active = wire["faults"].astype(str).str.split("+")
    for fault, rows in table.groupby("fault"):
        if fault == "disconnect":  # two windows with one name
            continue
        name = "" if fault == "no fault" else fault
        inside = active.map(lambda all, name=name: name in all)
        assert int(rows["sent"].iloc[0] + rows["expected"].iloc[0]) == inside.sum(), fault
    assert (table["until"] - table["at"])[0] == pd.Timedelta(seconds=3)
    assert audit.lost_by_broker == 1
    assert table.set_index("fault").loc["duplicate", "lost_by_broker"] == 1


def test_an_acknowledged_message_that_did_not_come_is_the_brokers_loss():
    result, sent = ran()
    audit = result.audit(sent[:-3])
    assert (audit.lost, audit.lost_by_broker, audit.lost_by_simulator) == (3, 3, 0)
    assert not audit.ok
    assert audit.lost_by_simulator == 0
    assert audit.verdict.startswith(
        "3 lost after the broker acknowledged them, 0 lost by the simulator: ")
    lost = audit.readings("lost")
    assert lost["whose"].tolist() == ["after acknowledgement"] * 3
    assert set(lost["id"]) == {ident for _, _, ident in sent[-3:]}


async def odd(dev):
    n = 0
    while True:
        n += 1
        dev.emit(level=n / 3, word="on" if n % 2 else None, many=[n, {"a": None}], flag=n > 3,
                 **({"rare": n} if n % 3 == 0 else {}))
        dev.emit(level=float(n))
        await dev.sleep()


def test_what_scripted_devices_say_is_compared_byte_by_byte_too():
    made = (Fleet("odd", seed=3).add(odd, count=3, every="1s")
            .add("temperature_sensor", count=2, every="1s").publish_to("memory:odd"))
    story = (Scenario("odd", made).at("3s").inject("noise", stddev=2, duration="3s")
             .at("4s").inject("duplicate", duration="2s").lasting("9s"))
    result = asyncio.run(story.run(speed="max", start=START))
    sent = memory.messages("odd")
    audit = result.audit(sent)
    assert audit.ok, audit.verdict
    assert audit.sent == len(sent) > 70
    spoilt = [(topic, body.replace(b"3", b"4") if i % 2 else body, name)
              for i, (topic, body, name) in enumerate(sent)]
    assert result.audit(spoilt).corrupted == sum(p != q for (_, p, _), (_, q, _)
                                                 in zip(sent, spoilt, strict=True))


def test_what_a_device_stores_at_the_end_was_withheld_and_not_lost():
    made = fleet("stored")
    story = (Scenario("stored", made)
             .at("5s").inject("disconnect", store_and_forward=True, where="count=3")
             .at("6s").inject("latency_spike", latency_ms=9000, where="count=2")
             .lasting("9s"))
    result = asyncio.run(story.run(speed="max", start=START))
    audit = result.audit(memory.messages("stored"))
    assert audit.ok, audit.verdict
    assert audit.expected == 12
    assert set(audit.readings("expected")["whose"]) == {"disconnect"}
    assert not audit.drops


def test_a_table_of_a_tap_saved_earlier_is_as_good_as_the_tap():
    result, sent = ran()
    frame = pd.DataFrame({"topic": [t for t, _, _ in sent], "payload": [p for _, p, _ in sent],
                          "id": [i for _, _, i in sent]})
    assert counts(result.audit(frame)) == counts(result.audit(sent))
    with pytest.raises(BadValue, match="tap='a DataFrame' lacks the column id"):
        result.audit(frame.drop(columns="id"))


def test_only_some_devices_are_looked_at_and_the_others_are_not_unexpected():
    result, sent = ran()
    audit = result.audit(sent[5:], where="id=temperature_sensor-0002|temperature_sensor-0004")
    assert audit.lost == 2
    assert audit.frame()["device_id"].tolist() == [
        "temperature_sensor-0002", "temperature_sensor-0004"]
    assert audit.unexpected == audit.foreign == 0
    whole = result.audit(sent[5:]).frame().set_index("device_id")
    assert audit.sent == whole.loc[["temperature_sensor-0002", "temperature_sensor-0004"],
                                   "sent"].sum()


def test_without_ids_the_audit_field_says_which_reading_a_message_is():
    result, sent = ran(audit_field="_seq")
    bare = [(topic, payload, "") for topic, payload, _ in sent]
    assert orjson.loads(bare[0][1])["_seq"] == sent[0][2]
    audit = result.audit(bare[2:])
    assert counts(audit) == oracle(result, sent, sent[2:])
    assert result.audit(bare[2:], audit_field="_seq").lost_by_broker == 2
    spoilt = [(t, p.replace(b'"fields"', b'"Fields"') if i == 7 else p, "")
              for i, (t, p, _) in enumerate(bare)]
    assert result.audit(spoilt).corrupted == 1


def test_without_any_ids_payloads_are_compared():
    result, sent = ran()
    bare = [(topic, payload, "") for topic, payload, _ in sent]
    audit = result.audit([*bare[2:], bare[9], ("t", b"spoilt", "")])
    assert (audit.lost_by_broker, audit.duplicated, audit.foreign) == (2, 1, 1)
    assert "messages carry no ids: matched by their payload" in audit.verdict


def test_what_carries_no_id_is_found_beside_messages_of_others_that_do():
    result, sent = ran()
    others = [(topic, payload, f"other/{i}/0/0") for i, (topic, payload, _) in enumerate(sent)]
    bare = [(topic, payload, "") for topic, payload, _ in sent]
    audit = result.audit([*others, *bare[2:], ("t", b"{}", "")])
    assert (audit.lost_by_broker, audit.foreign) == (2, len(sent) + 1)
    assert (audit.unexpected, audit.duplicated, audit.corrupted) == (0, 0, 0)
    mixed = [bare[i] if i % 3 else one for i, one in enumerate(sent)]
    assert result.audit([*others, *mixed]).ok


def test_a_key_that_no_message_has_does_not_spoil_those_that_carry_ids():
    result, sent = ran()
    assert result.audit(sent, audit_field="x").ok
    assert result.audit([(t, p, "") for t, p, _ in sent], audit_field="x").corrupted == 0


def test_what_the_capture_forgot_is_neither_lost_nor_unexpected():
    made = fleet("forgetful")
    result = asyncio.run(made.run("60s", speed="max", start=START, capture="10s"))
    sent = memory.messages("forgetful")
    audit = result.audit([*sent, ("t", b"{}", f"{result.run_id}/temperature_sensor-0001/99/0")])
    assert audit.sent == audit.received == result.capture.rows == 60
    assert audit.unheld == 300
    assert audit.unexpected == 1
    assert "of the 60 readings that are held" in audit.verdict
    assert result.audit(sent).ok


def test_what_a_full_queue_dropped_is_the_simulators_loss():
    made = fleet("narrow", queue_messages=5, backpressure="drop_oldest")
    result = asyncio.run(made.run("30s", speed="max", start=START))
    audit = result.audit(memory.messages("narrow"))
    (ledger,) = result.publishers.values()
    assert audit.lost_by_simulator == ledger.dropped > 0
    assert not audit.ok
    assert "lost by the simulator (queue full, oldest dropped)" in audit.verdict
    assert set(audit.readings("lost")["whose"]) == {"never sent"}


def test_a_reading_that_goes_to_one_place_twice_is_expected_twice():
    made = fleet("double").publish_to("memory:double", topic="again/{device_id}")
    result = asyncio.run(made.run("10s", speed="max", start=START))
    sent = memory.messages("double")
    audit = result.audit(sent)
    assert audit.sent == audit.received == len(sent) == 120
    assert audit.duplicated == audit.out_of_order == 0
    assert result.audit(sent[:-1]).lost_by_broker == 1
    first = [message for message in sent if not message[0].startswith("again/")]
    again = [message for message in sent if message[0].startswith("again/")]
    for name, own, others in (("memory:double (1)", first, again),
                              ("memory:double (2)", again, first)):
        assert result.audit(sent, publisher=name).ok
        audit = result.audit([*others, *own[3:], own[9]], publisher=name)
        assert (audit.sent, audit.received, audit.duplicated) == (60, 57, 1)
        moved = [(f"bridge/{topic}", *rest) for topic, *rest in own]
        assert result.audit(moved, publisher=name).received == 60
    assert result.audit(sent, publisher="memory:double").sent == 120
    with pytest.raises(BadValue, match=r"Known: memory:double \(1\), memory:double \(2\)\."):
        result.audit(sent, publisher="memory:double (3)")


def test_of_several_publishers_only_the_one_in_question_counts():
    made = (Fleet("split", seed=1).add("temperature_sensor", count=4, every="1s")
            .publish_to("memory:east", where="id=temperature_sensor-0000")
            .publish_to("memory:west"))
    result = asyncio.run(made.run("10s", speed="max", start=START))
    assert result.audit(memory.messages("west"), publisher="memory:west").sent == 40
    east = result.audit(memory.messages("east"), publisher="memory:east")
    assert (east.sent, east.received, east.ok) == (10, 10, True)
    with pytest.raises(BadValue, match="publisher=None must say which messages these are"):
        result.audit([])
    with pytest.raises(BadValue, match="Known: memory:east, memory:west"):
        result.audit([], publisher="memory:south")


def test_what_cannot_be_audited_says_why():
    result, sent = ran()
    with pytest.raises(BadValue, match="published nothing"):
        fleet("offline").generate("1s").audit(sent)
    with pytest.raises(BadValue, match="is nothing that has received messages"):
        result.audit(7)
    with pytest.raises(BadValue, match="is nothing that has received messages"):
        result.audit([("topic", b"payload")])
    with pytest.raises(BadValue, match="clock='sun' is unknown"):
        result.audit(sent, clock="sun")


@pytest.mark.parametrize("given", [None, "", b"", {}, {"a": 1}, [1], [(None, None, None)],
                                   [("t", None, "x")], [("t", 7, "x")], [("t", b"", 1)], object()])
def test_what_holds_no_messages_is_one_line_and_no_loss(given):
    with pytest.raises(BadValue, match=r"tap=.*Give"):
        ran()[0].audit(given)


@pytest.mark.parametrize("edit", [{"payload": None}, {"payload": 1}, {"time": "x"}, {"sent": 1},
                                  {"id": 1}, {"topic": 1}, {"time": None}])
def test_a_table_that_was_edited_by_hand_is_told_what_is_wrong_with_it(edit):
    result, sent = ran()
    frame = pd.DataFrame(sent, columns=["topic", "payload", "id"]).assign(
        time=pd.Timestamp("2026-03-01T12:00:00Z"), sent=pd.NaT)
    assert result.audit(frame).received == len(sent)
    if edit == {"topic": 1}:
        assert result.audit(frame.assign(**edit)).received == len(sent)
    else:
        with pytest.raises(BadValue, match=r"tap='a (list|DataFrame)' has .*Give"):
            result.audit(frame.assign(**edit))


def test_nothing_received_is_all_lost():
    result, sent = ran()
    audit = result.audit([])
    assert audit.lost_by_broker == len(sent)
    assert "nothing was given" in audit.verdict
    assert all(math.isnan(one) for one in audit.latency)


def test_the_picture_is_readable_at_once():
    result, sent = ran()
    axes = result.audit(sent[:-4]).plot()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any(label.startswith("packet_loss (") for label in labels)
    assert "4 lost by others" in labels
    assert axes.get_xlabel() == "2026-03-01, UTC"
    assert axes.get_ylabel() == "latency is not known"
    assert "4 lost after the broker acknowledged them" in axes.get_title(loc="left")


def test_it_shows_the_same_facts_as_text_and_html_escaped():
    made = fleet("a<b>&c")
    result = asyncio.run(made.run("2s", speed="max", start=START))
    audit = result.audit(memory.messages("a<b>&c"))
    assert repr(audit).startswith("<Audit 'a<b>&c': ok: 12 sent, 12 received, 0 lost")
    html = audit._repr_html_()
    assert "a&lt;b&gt;&amp;c" in html
    assert audit.verdict.split(",", maxsplit=1)[0] in html
    assert "\n" not in repr(audit)
