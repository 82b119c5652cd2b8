"""Readings as a DataFrame: columns, types, order, filters."""

import asyncio
import dataclasses

import numpy as np
import pandas as pd
import pytest

from iotsim import Fleet, Profile
from iotsim.errors import BadValue, UnknownName
from tests.fleets import fleet, profile

SENSORS = (Fleet("p", seed=1).add("temperature_sensor", count=3, labels={"site": "north"})
           .add("temperature_sensor", count=2, labels={"site": "south"}))


async def moody(dev):
    """Every kind of field, and fields that come and go."""
    for i in range(6):
        fields = {"count": i, "on": i % 2 == 0, "word": "ab"[i % 2], "body": {"i": i},
                  "number": [1, 2.5][i % 2], "late": None if i < 3 else i}
        if i == 4:
            del fields["count"], fields["on"], fields["word"]
        dev.emit(**fields)
        await dev.sleep("1s")


def test_columns_come_in_the_order_of_the_contract():
    frame = SENSORS.generate("10s").frame()
    assert list(frame.columns) == [
        "time", "device_id", "device_type", "seq", "category", "firmware", "site", "temperature",
        "humidity", "battery", "faults", "hit"]


def test_types_are_utc_time_and_categories_and_plain_numbers():
    types = SENSORS.generate("10s").frame().dtypes.astype(str)
    assert types["time"] == "datetime64[us, UTC]"
    assert types["seq"] == "int64"
    for name in ("device_id", "device_type", "category", "firmware", "site", "faults", "hit"):
        assert types[name] == "category", name
    for name in ("temperature", "humidity", "battery"):
        assert types[name] == "float64", name


def test_rows_are_ordered_by_time_then_device_then_seq():
    frame = fleet(50, phase=0, every="1s").add("pump", count=5).generate("20s").frame()
    keys = pd.DataFrame({"t": frame["time"], "d": frame["device_id"].cat.codes, "s": frame["seq"]})
    assert keys.equals(keys.sort_values(["t", "d", "s"], kind="stable"))
    assert frame.index.equals(pd.RangeIndex(len(frame)))


def test_categories_are_all_devices_of_the_fleet_and_no_fault_was_active():
    frame = SENSORS.generate("1s").frame()
    assert list(frame["device_id"].cat.categories) == [
        f"temperature_sensor-{i:04d}" for i in range(5)]
    assert set(frame["faults"]) <= {""}
    assert set(frame["hit"]) <= {""}


def test_values_are_what_the_device_reported():
    made = Profile("k", {"a": {"type": "static", "value": 7}, "b": {"type": "static", "value": "x"},
                         "c": {"type": "static", "value": True},
                         "d": {"type": "constant", "value": 0.5}})
    frame = Fleet("p", seed=1).add(made).generate("5s").frame()
    assert frame.iloc[0][["a", "b", "c", "d"]].tolist() == [7, "x", True, 0.5]


def test_a_mixed_fleet_has_nulls_where_a_type_lacks_a_field():
    both = fleet(2).add("smart_lock", count=2).generate("2m").frame()
    meters = both["device_type"] == "meter"
    assert both.loc[meters, "power"].notna().all()
    assert both.loc[~meters, "power"].isna().all()
    locks = both.loc[~meters].dropna(axis=1, how="all")
    assert {"battery"} <= set(locks.columns)
    assert both.loc[meters, "category"].isna().all()


def test_ints_and_bools_with_holes_keep_their_kind():
    made = Profile("k", {"n": {"type": "static", "value": 7},
                         "on": {"type": "static", "value": True}})
    frame = Fleet("p", seed=1).add(made).add(profile()).generate("20s").frame()
    assert str(frame["n"].dtype) == "Int64"
    assert str(frame["on"].dtype) == "boolean"
    assert set(frame["n"].dropna()) == {7}


def test_every_kind_of_scripted_field_has_its_type():
    frame = Fleet("p", seed=1).add(moody).generate("10s").frame()
    types = frame.dtypes.astype(str)
    assert types[["count", "on", "word", "body", "number", "late"]].tolist() == [
        "Int64", "boolean", "category", "object", "float64", "Int64"]
    assert frame["count"].tolist() == [0, 1, 2, 3, pd.NA, 5]
    assert frame["number"].tolist() == [1, 2.5, 1, 2.5, 1, 2.5]
    assert frame["late"].tolist()[3:] == [3, 4, 5]
    assert frame["body"].tolist() == [{"i": i} for i in range(6)]
    assert frame["word"].isna().tolist() == [False] * 4 + [True, False]


def test_types_do_not_depend_on_how_the_run_was_cut():
    made = Fleet("p", seed=1).add(moody)
    short, long = made.generate("10s").frame(), made.generate("1000s").frame()
    pd.testing.assert_frame_equal(short, long)


# -- filters --------------------------------------------------------------------------------------


def test_fields_chooses_and_orders_the_fields():
    result = SENSORS.generate("10s")
    assert list(result.frame(fields="battery").columns)[-3:] == ["battery", "faults", "hit"]
    assert list(result.frame(fields=["battery", "humidity"]).columns)[-4:-2] == [
        "battery", "humidity"]
    with pytest.raises(UnknownName, match="Did you mean 'battery'"):
        result.frame(fields="batery")


def test_device_type_keeps_only_its_devices_fields_and_labels():
    result = SENSORS.add("pump", count=4, labels={"hall": "2"}).generate("10s")
    pumps = result.frame(device_type="pump")
    assert set(pumps["device_type"]) == {"pump"}
    assert "temperature_sensor-0000" not in pumps["device_id"].cat.categories
    assert "site" not in pumps.columns
    assert "humidity" not in pumps.columns
    with pytest.raises(UnknownName, match="Did you mean 'pump'"):
        result.frame(device_type="pumps")


def test_last_keeps_the_last_stretch_of_simulated_time():
    result = fleet(3, phase=0, every="1s").generate("1m")
    kept = result.frame(last="10s")
    assert len(kept) == 30
    assert kept["seq"].min() == 50
    assert len(result.frame(last="1h")) == 180


def test_tidy_has_a_row_per_reading_and_field():
    result = SENSORS.generate("10s")
    wide, long = result.frame(), result.frame(tidy=True)
    assert len(long) == 3 * len(wide)
    assert list(long.columns) == ["time", "device_id", "device_type", "seq", "category", "firmware",
                                  "site", "faults", "hit", "field", "value"]
    back = long.pivot_table(index=["time", "device_id"], columns="field", values="value",
                            observed=True)
    assert back["humidity"].tolist() == wide["humidity"].tolist()
    assert str(long["device_id"].dtype) == "category"
    assert set(result.frame(tidy=True, fields="battery")["field"]) == {"battery"}


def test_no_readings_make_an_empty_frame_of_the_same_columns():
    empty = fleet(1, phase="4s").generate("1s")
    assert len(empty) == 0
    frame = empty.frame()
    assert list(frame.columns) == [
        "time", "device_id", "device_type", "seq", "power", "drift", "faults", "hit"]
    assert str(frame["time"].dtype) == "datetime64[us, UTC]"
    assert len(empty.frame(tidy=True)) == 0
    assert list(empty.frame(fields="drift").columns)[4:5] == ["drift"]


@pytest.mark.parametrize("name", Profile.names())
def test_a_frame_without_rows_has_the_columns_and_types_of_one_with_rows(name):
    made = Fleet("p", seed=1).add(name, count=2, labels={"site": "north"})
    result = made.generate("1h")
    some, none = result.frame(), result.frame(last="1us")
    assert len(none) == 0 < len(some)
    assert list(none.columns) == list(some.columns)
    for column in some.columns:
        assert none[column].dtype.kind == some[column].dtype.kind, column
    assert none.dtypes.astype(str).tolist() == some.dtypes.astype(str).tolist()
    assert list(result.to_arrow().column_names) == list(some.columns)


def test_fields_that_only_a_silent_profile_declares_have_a_column_in_the_order_of_the_profiles():
    silent = Profile("silent", {"n": {"type": "static", "value": 7},
                                "word": {"type": "static", "value": "x"},
                                "on": {"type": "static", "value": True}}, phase="4s")
    result = Fleet("p", seed=1).add(silent).add(profile(phase=0)).generate("1s")
    frame = result.frame()
    assert list(frame.columns)[4:-2] == ["n", "word", "on", "power", "drift"]
    assert frame[["n", "word", "on"]].isna().all(axis=None)
    assert result.to_arrow().column_names[4:-2] == ["n", "word", "on", "power", "drift"]
    assert list(result.frame(device_type="meter").columns)[4:-2] == ["power", "drift"]


# -- labels and fields are columns of one table ---------------------------------------------------


async def hot(dev):
    dev.emit(zone=1.5, x=2)


def test_a_label_and_a_field_of_another_type_cannot_share_a_name():
    high, plain = {"power": "high"}, Fleet("p", seed=1)
    for made in (lambda: fleet(1).add("smart_lock", labels=high),
                 lambda: plain.add("smart_lock", labels=high).add(profile()),
                 lambda: plain.add(hot, labels=high).add(profile())):
        with pytest.raises(BadValue, match=r"^label='power' of '\w+' is a field of 'meter'\."):
            made()


def test_a_scripted_field_with_the_name_of_a_label_is_one_clear_line(tmp_path):
    made = Fleet("p", seed=1).add(hot).add("pump", labels={"zone": "a"})
    result = made.generate("10s")
    calls = (result.frame, result.to_arrow, lambda: result.to_parquet(tmp_path / "x.parquet"),
             lambda: made.generate("10s", to=tmp_path / "x.parquet"))
    for call in calls:
        with pytest.raises(BadValue, match=r"^field='zone' of 'hot' is a label of 'pump'\."):
            call()
    assert not (tmp_path / "x.parquet").exists()
    assert result.frame(fields="x")["x"].notna().sum() == 1
    assert result.frame(device_type="hot")["zone"].tolist() == [1.5]
    assert set(result.frame(device_type="pump")["zone"]) == {"a"}


def test_notes_of_a_result_are_in_its_repr_and_its_facts():
    plain = fleet(1).generate("10s")
    noted = dataclasses.replace(plain, notes=("nobody <there>", "another"))
    assert plain.notes == ()
    assert "note" not in repr(plain) + plain._repr_html_()
    assert repr(noted).endswith(", note: nobody <there> (and 1 more)>")
    assert "nobody &lt;there&gt;; another" in noted._repr_html_()


def test_a_frame_of_many_rows_warns_with_its_size_and_names_the_ways_out(monkeypatch):
    from iotsim import frames

    monkeypatch.setattr(frames, "ROWS_WARNED", 10)
    with pytest.warns(UserWarning, match=r"this frame has 60 rows, about .* GB\. Stream to disk"):
        fleet(5).generate("1m").frame()


def test_a_frame_is_a_copy_of_its_own():
    result = fleet(2).generate("10s")
    one = result.frame()
    one.loc[:, "power"] = 0.0
    one["seq"] += 1
    assert result.frame()["power"].ne(0).all()
    assert result.frame()["seq"].min() == 0


def test_a_frame_can_be_made_in_a_running_loop():
    async def cell():
        return len(fleet(2).generate("10s").frame())

    assert asyncio.run(cell()) == 4


def test_frames_of_the_same_fleet_are_equal_in_every_bit():
    one, other = (SENSORS.generate("5m").frame() for _ in range(2))
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    assert np.array_equal(one["temperature"].to_numpy().view(np.uint64),
                          other["temperature"].to_numpy().view(np.uint64))


def test_a_field_may_be_called_value_in_the_long_form():
    profile = Profile("odd", {"value": {"type": "constant", "value": 7}})
    long = Fleet("odd", seed=1).add(profile).generate("10s").frame(tidy=True)
    assert long[["field", "value"]].to_numpy().tolist() == [["value", 7.0]] * 2
