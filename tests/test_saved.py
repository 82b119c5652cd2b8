"""Saved runs: run again and compared; damaged, foreign and newer files in one line."""

import asyncio
import io
import json
import warnings
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import iotsim
from iotsim import Fleet, Profile
from iotsim.errors import BadValue, IotsimError, SavedRunError
from tests.fleets import fleet

SENSORS = (Fleet("p", seed=1).add("temperature_sensor", count=5, labels={"site": "north"})
           .add("smart_lock", count=5))


async def meter(dev):
    while True:
        dev.emit(power=dev.draw("power", "gaussian", mean=400, stddev=25))
        await dev.sleep()


async def other(dev):
    while True:
        dev.emit(power=dev.draw("power", "gaussian", mean=401, stddev=25))
        await dev.sleep()


@pytest.fixture
def saved(tmp_path):
    return SENSORS.generate("2m").save(tmp_path / "run.iotsim")


def rewritten(path, change, name="changed.iotsim"):
    """A copy of a saved run whose members `change` may edit."""
    with zipfile.ZipFile(path) as archive:
        members = {entry: archive.read(entry) for entry in archive.namelist()}
    change(members)
    target = path.with_name(name)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in members.items():
            archive.writestr(entry, content)
    return target


def with_manifest(path, **changes):
    def change(members):
        manifest = json.loads(members["manifest.json"])
        manifest.update(changes)
        members["manifest.json"] = json.dumps(manifest).encode()

    return rewritten(path, change)


def with_spec(path, edit):
    def change(members):
        manifest = json.loads(members["manifest.json"])
        edit(manifest["spec"])
        members["manifest.json"] = json.dumps(manifest).encode()

    return rewritten(path, change)


# -- identical ----------------------------------------------------------------------------------


def test_a_saved_run_verifies(saved):
    found = iotsim.verify(saved)
    assert found.ok
    assert found
    assert found.difference == ""
    assert found.digest == found.expected == SENSORS.generate("2m").digest
    assert repr(found).startswith("<Verification: identical, digest ")


@pytest.mark.parametrize("name", Profile.names())
def test_every_profile_that_comes_along_verifies(name, tmp_path):
    made = Fleet("p", seed=2).add(name, count=3, labels={"site": "nørth"})
    assert iotsim.verify(made.generate("5m", start="2026-06-01").save(tmp_path / "r.iotsim"))


def test_ids_intervals_phases_and_jitter_of_ones_own_verify(tmp_path):
    made = (Fleet("p", seed=2).add("pump", count=3, id="gw-{n}", every="700ms")
            .add(Profile("k", {"v": {"type": "gaussian", "mean": 0, "stddev": 1}}, phase="1s",
                         jitter="3s"), count=2))
    assert iotsim.verify(made.generate("1m").save(tmp_path / "r.iotsim"))


def test_an_odd_number_of_microseconds_verifies(tmp_path):
    result = fleet(3).generate("10.000001s", start="2026-01-01T00:00:00.000007Z")
    assert iotsim.verify(result.save(tmp_path / "r.iotsim"))


def test_verify_works_while_a_loop_runs(saved):
    async def cell():
        return iotsim.verify(saved).ok

    assert asyncio.run(cell())


def test_a_saved_run_is_small_and_holds_no_code(saved, tmp_path):
    big = Fleet("p", seed=1).add("temperature_sensor", count=1000).generate("10m")
    assert big.save(tmp_path / "big.iotsim").stat().st_size < 100_000
    scripted = Fleet("p", seed=1).add(meter, every="1s").generate("10s")
    with zipfile.ZipFile(scripted.save(tmp_path / "s.iotsim")) as archive:
        assert not any(b"gaussian" in archive.read(name) for name in archive.namelist()
                       if name == "manifest.json" and b"400" in archive.read(name))


def test_a_run_of_no_readings_verifies(tmp_path):
    assert iotsim.verify(fleet(1, phase="4s").generate("1s").save(tmp_path / "r.iotsim"))


def test_playback_verifies_and_a_changed_recording_is_named(tmp_path):
    data = tmp_path / "x.csv"
    data.write_text("v\n1\n2\n3\n")
    made = Profile("k", {"v": {"type": "playback", "path": str(data), "column": "v"}})
    path = Fleet("p", seed=1).add(made).generate("1m").save(tmp_path / "r.iotsim")
    assert iotsim.verify(path)
    data.write_text("v\n1\n2\n4\n")
    with pytest.raises(IotsimError, match="is not what it was: its values have changed"):
        iotsim.verify(path)


# -- different ----------------------------------------------------------------------------------


def test_a_tampered_seed_is_seen_and_device_and_field_are_named(saved):
    found = iotsim.verify(with_spec(saved, lambda spec: spec.update(seed=2)))
    assert not found.ok
    assert not found
    assert "device 'temperature_sensor-0000' differs (10 of 10 devices do)" in found.difference
    assert "field 'temperature' differs between 00:00:00 and 00:00:01 of the run" in (
        found.difference)
    assert repr(found).startswith("<Verification: different: device ")


def test_a_tampered_digest_is_seen(saved):
    found = iotsim.verify(with_manifest(saved, digest="0" * 32))
    assert not found.ok
    assert found.expected == "0" * 32
    assert found.difference


def test_a_tampered_profile_names_its_field_and_no_other(saved):
    def edit(spec):
        spec["members"][0]["profile"]["telemetry_fields"]["humidity"]["volatility"] = 0.51

    found = iotsim.verify(with_spec(saved, edit))
    assert "(5 of 10 devices do)" in found.difference
    assert "field 'humidity' differs" in found.difference


def test_a_missing_device_is_named(saved):
    def edit(spec):
        spec["members"][1]["count"] = 4

    found = iotsim.verify(with_spec(saved, edit))
    assert "device 'smart_lock-0004' is only in the first (1 such devices)" in found.difference


def test_with_readings_the_exact_time_and_both_values_are_named(tmp_path):
    result = SENSORS.generate("2m")
    path = result.save(tmp_path / "run.iotsim", readings=True)
    assert iotsim.verify(path)

    def edit(spec):
        spec["members"][0]["profile"]["telemetry_fields"]["temperature"]["baseline"] = 23.0

    found = iotsim.verify(with_spec(path, edit))
    first = result.frame(device_type="temperature_sensor", fields="temperature").iloc[0]
    assert found.difference == (
        f"device {first['device_id']!r}, field 'temperature' at {first['time'].isoformat()} "
        f"(reading 0): {float(first['temperature'])} and "
        f"{round(float(first['temperature']) + 1, 2)}")


def test_against_a_file_names_the_one_reading_that_differs(tmp_path):
    result = fleet(3).generate("1m")
    path = result.save(tmp_path / "run.iotsim")
    stored = result.to_parquet(tmp_path / "x.parquet")
    assert iotsim.verify(path, against=stored)
    table = pq.read_table(stored)
    power = table["power"].to_numpy().copy()
    was, power[17] = float(power[17]), power[17] + 0.1
    place = table.column_names.index("power")
    pq.write_table(table.set_column(place, "power", pa.array(power)), stored)
    row = table.slice(17, 1).to_pylist()[0]
    found = iotsim.verify(path, against=stored)
    assert not found.ok
    assert found.difference == (
        f"device {row['device_id']!r}, field 'power' at "
        f"{row['time'].isoformat().replace('+00:00', '')}+00:00 (reading {row['seq']}): "
        f"{float(power[17])} and {was}")


async def listed(dev):
    for i in range(10):
        dev.emit(pair=[i, None], body={"b": i, "a": [True, 1.5]},
                 any=["x", 1, 2.5, True, None][i % 5], word="xy"[i % 2],
                 count=None if i == 3 else 2**60 + i)
        await dev.sleep("1s")


LISTED = Fleet("p", seed=1).add(listed, count=2)


def test_lists_and_mappings_in_a_file_are_the_same_values(tmp_path):
    streamed = LISTED.generate("1m", to=tmp_path / "x.parquet")
    path = streamed.save(tmp_path / "run.iotsim")
    held = LISTED.generate("1m").save(tmp_path / "held.iotsim", readings=True)
    for run in (path, held):
        found = iotsim.verify(run, devices={"listed": listed}, against=tmp_path / "x.parquet")
        assert found.ok, found.difference
    assert iotsim.verify(held, devices={"listed": listed})


def test_the_same_json_in_another_spelling_is_the_same_and_another_value_is_named(tmp_path):
    path = LISTED.generate("1m").save(tmp_path / "run.iotsim")
    table = pq.read_table(LISTED.generate("1m", to=tmp_path / "x.parquet").path)

    def against(body, name):
        place = table.column_names.index(name)
        pq.write_table(table.set_column(place, name, pa.array(body)), tmp_path / "y.parquet")
        return iotsim.verify(path, devices={"listed": listed}, against=tmp_path / "y.parquet")

    bodies = table["body"].to_pylist()
    assert against([json.dumps(json.loads(text), sort_keys=True) for text in bodies], "body")
    assert against([json.loads(text) for text in table["pair"].to_pylist()], "pair")
    row = table.slice(4, 1).to_pylist()[0]
    found = against([*bodies[:4], '{"a": [true, 1.5], "b": 99}', *bodies[5:]], "body")
    assert not found.ok
    assert found.difference == (
        f"device {row['device_id']!r}, field 'body' at {row['time'].isoformat()} (reading "
        f"{row['seq']}): {{\"a\":[true,1.5],\"b\":99}} and "
        f"{{\"a\":[true,1.5],\"b\":{row['seq']}}}").replace(".000000", "")
    counts = [None if n is None else n + (n == 2**60 + 5) for n in table["count"].to_pylist()]
    assert f"{2**60 + 6} and {2**60 + 5}" in against(counts, "count").difference


@pytest.mark.parametrize("change", [
    lambda t: t.append_column("seq", t["seq"]),
    lambda t: t.set_column(0, "time", t["seq"].cast(pa.string())),
    lambda t: t.set_column(3, "seq", pa.array(["x"] * len(t))),
])
def test_a_file_that_is_not_of_readings_is_one_clear_line(tmp_path, change):
    result = fleet(3).generate("1m")
    path = result.save(tmp_path / "run.iotsim")
    table = change(pq.read_table(result.to_parquet(tmp_path / "x.parquet")))
    pq.write_table(table, tmp_path / "y.parquet")
    with pytest.raises(SavedRunError, match="this is not a Parquet file of readings"):
        iotsim.verify(path, against=tmp_path / "y.parquet")


def test_the_first_difference_in_time_is_named_whatever_the_order_of_the_columns(tmp_path):
    result = fleet(3, every="1s", phase=0).generate("20s")
    path = result.save(tmp_path / "run.iotsim")
    table = pq.read_table(result.to_parquet(tmp_path / "x.parquet"))

    def changed(name, at):
        values = table[name].to_pylist()
        for seq, device in at:
            i = next(i for i, row in enumerate(table.to_pylist())
                     if (row["seq"], row["device_id"]) == (seq, device))
            values[i] += 1
        return table.set_column(table.column_names.index(name), name, pa.array(values))

    table = changed("power", [(8, "meter-0000"), (2, "meter-0002")])
    table = changed("drift", [(2, "meter-0001"), (2, "meter-0002")])
    pq.write_table(table, tmp_path / "x.parquet")
    found = iotsim.verify(path, against=tmp_path / "x.parquet").difference
    assert found.startswith("device 'meter-0001', field 'drift' at 2026-01-01T00:00:02+00:00 ")
    table = table.filter(pa.array([row["seq"] != 1 or row["device_id"] != "meter-0002"
                                   for row in table.to_pylist()]))
    pq.write_table(table, tmp_path / "x.parquet")
    found = iotsim.verify(path, against=tmp_path / "x.parquet").difference
    assert found.startswith("device 'meter-0002': reading 1 at 2026-01-01T00:00:01+00:00 is miss")


def test_diff_of_scripted_devices_compares_lists_by_value():
    async def listed(dev):
        for i in range(10):
            dev.emit(pair=[i, True if i == 4 else 1], body={"b": i})
            await dev.sleep("1s")

    one = Fleet("p", seed=1).add(listed)

    async def listed(dev):
        for i in range(10):
            dev.emit(pair=[i, 1], body={"b": i})
            await dev.sleep("1s")

    found = one.generate("1m").diff(Fleet("p", seed=1).add(listed).generate("1m"))
    assert found == ("device 'listed-0000', field 'pair' at 2026-01-01T00:00:04+00:00 (reading 4): "
                     "[4,true] and [4,1]")


def test_against_a_file_that_lacks_a_reading_or_has_one_twice(tmp_path):
    result = fleet(3).generate("1m")
    path = result.save(tmp_path / "run.iotsim")
    table = pq.read_table(result.to_parquet(tmp_path / "x.parquet"))
    pq.write_table(pa.concat_tables([table.slice(0, 5), table.slice(6)]), tmp_path / "less.parquet")
    assert "is missing in the first (1 such readings)" in iotsim.verify(
        path, against=tmp_path / "less.parquet").difference
    pq.write_table(pa.concat_tables([table, table.slice(5, 1)]), tmp_path / "more.parquet")
    assert "twice" in iotsim.verify(path, against=tmp_path / "more.parquet").difference


def test_diff_of_two_results_names_the_exact_reading():
    one, two = fleet(3).generate("1m"), fleet(3, seed=2).generate("1m")
    assert one.diff(two) == (
        "device 'meter-0001', field 'time' at 2026-01-01T00:00:00.179763+00:00 (reading 0): "
        "2026-01-01T00:00:00.179763+00:00 and 2026-01-01T00:00:04.820052+00:00")
    assert one.diff(fleet(3).generate("1m")) == ""
    assert "one lasts 1m, the other 2m" in one.diff(fleet(3).generate("2m")) or (
        "is missing in the first" in one.diff(fleet(3).generate("2m")))


def test_other_versions_are_named_when_something_differs(saved):
    def change(members):
        manifest = json.loads(members["manifest.json"])
        manifest["versions"]["generators"]["gaussian"] = 0
        manifest["spec"]["seed"] = 2
        members["manifest.json"] = json.dumps(manifest).encode()

    found = iotsim.verify(rewritten(saved, change))
    assert "generator 'gaussian' was version 0 and is 1" in found.difference


# -- scripted devices -----------------------------------------------------------------------------


def test_scripted_devices_need_their_code(tmp_path):
    path = Fleet("p", seed=1).add(meter, count=3, every="1s").generate("10s").save(
        tmp_path / "run.iotsim")
    with pytest.raises(SavedRunError) as caught:
        iotsim.verify(path)
    assert str(caught.value) == (
        f"{path}: it has scripted devices 'meter', and holds no code. Give it: verify(path, "
        "devices={'meter': meter}).")
    assert iotsim.verify(path, devices={"meter": meter})
    found = iotsim.verify(path, devices={"meter": other})
    assert not found
    assert found.difference.endswith("; the code of 'meter' is not what was saved")


def spread(stddev):
    async def meter(dev, mean=400):
        while True:
            dev.emit(power=dev.draw("power", "gaussian", mean=mean, stddev=stddev))
            await dev.sleep()

    return meter


def test_code_that_differs_only_in_what_it_closes_over_is_named(tmp_path):
    path = Fleet("p", seed=1).add(spread(25), every="1s").generate("10s").save(
        tmp_path / "run.iotsim")
    assert iotsim.verify(path, devices={"meter": spread(25)})
    found = iotsim.verify(path, devices={"meter": spread(26)})
    assert found.difference.endswith("; the code of 'meter' is not what was saved")


@pytest.mark.parametrize("changes", [
    {"id": "{type.__class__}"}, {"id": "{index:0100000d}"}, {"count": 10**12}, {"count": 0},
    {"first": -1}, {"first": 10**30}, {"first": "x"}, {"type": 5}, {"labels": {"time": "x"}},
])
def test_members_that_no_fleet_has_are_refused(saved, changes):
    path = with_spec(saved, lambda spec: spec["members"][0].update(changes))
    with pytest.raises(IotsimError) as caught:
        iotsim.verify(path)
    assert "\n" not in str(caught.value)


# -- files that cannot be --------------------------------------------------------------------------


def test_a_file_cut_anywhere_is_one_clear_line(saved):
    whole = saved.read_bytes()
    target = saved.with_name("cut.iotsim")
    for size in {0, 1, 3, 4, 30, *range(0, len(whole), 97), len(whole) - 1}:
        target.write_bytes(whole[:size])
        with pytest.raises(SavedRunError) as caught:
            iotsim.verify(target)
        assert str(caught.value).startswith(f"{target}: this is not a saved run, or it is "), size
        assert "\n" not in str(caught.value)


def test_a_file_with_a_flipped_byte_is_an_error_or_the_same_or_different_but_never_a_crash(saved):
    whole = saved.read_bytes()
    target = saved.with_name("flipped.iotsim")
    lines = []
    for place in range(0, len(whole), max(1, len(whole) // 100)):
        content = bytearray(whole)
        content[place] ^= 0x55
        target.write_bytes(bytes(content))
        try:
            iotsim.verify(target)
        except IotsimError as error:
            lines.append(str(error).count("\n"))
    assert not any(lines)


def test_foreign_zips_and_files_are_told_apart(tmp_path):
    foreign = tmp_path / "foreign.iotsim"
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    with pytest.raises(SavedRunError, match="this is a zip file, but not a saved run of iotsim"):
        iotsim.verify(foreign)
    with zipfile.ZipFile(foreign, "w") as archive:
        archive.writestr("manifest.json", '{"kind": "something else"}')
    with pytest.raises(SavedRunError, match="this is a zip file, but not a saved run of iotsim"):
        iotsim.verify(foreign)
    with pytest.raises(SavedRunError, match="this is a folder, not a saved run"):
        iotsim.verify(tmp_path)


def test_a_newer_format_says_so(saved):
    with pytest.raises(SavedRunError) as caught:
        iotsim.verify(with_manifest(saved, format=99))
    assert str(caught.value).endswith(
        "changed.iotsim: it has format 99; this iotsim reads up to 2. Install a newer iotsim.")


@pytest.mark.parametrize("name", ["../evil.json", "/etc/passwd", "devices/../../x", "evil.pkl"])
def test_a_member_that_no_saved_run_has_is_refused(saved, name):
    path = rewritten(saved, lambda members: members.update({name: b"x"}))
    with pytest.raises(SavedRunError, match="that no saved run has"):
        iotsim.verify(path)


def test_contents_that_are_too_large_are_refused(saved):
    path = rewritten(saved, lambda members: members.update(
        {"readings.parquet": b"\0" * 60_000_000}))
    with pytest.raises(SavedRunError, match="too large to be a saved run"):
        iotsim.verify(path)


def test_an_array_of_objects_is_refused(saved):
    stream = io.BytesIO()
    np.save(stream, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    path = rewritten(saved, lambda members: members.update({"stretches.npy": stream.getvalue()}))
    with pytest.raises(SavedRunError, match="this saved run is damaged"):
        iotsim.verify(path)


@pytest.mark.parametrize(
    "changes",
    [{"spec": None}, {"spec": {}}, {"spec": {"name": "p", "seed": "x", "members": []}},
     {"start_us": "x"}, {"end_us": None}, {"groups": [6]}, {"groups": "x"}, {"stretches": [1, 2]},
     {"format": "new"}, {"rows": []}, {"stretch_us": 0}, {"versions": []}, {"stretch_us": "x"},
     {"stretch_us": 3_000_000}, {"start_us": 1.5}, {"rows": True}, {"groups": [-1]},
     {"spec": {"name": "p", "seed": 1, "members": [{}]}}, {"end_us": 0}, {"end_us": 10**30},
     {"start_us": 10**30}, {"start_us": -(10**17)}, {"format": float("inf")}, {"rows": 1000},
     {"format": float("nan")}, {"stretches": {}}, {"groups": [10**9]},
     {"rows": 10**9, "end_us": 1767225600_000_000 + 10**15}],
)
def test_a_damaged_manifest_is_one_clear_line(saved, changes):
    path = with_manifest(saved, **changes)
    with pytest.raises(IotsimError) as caught:
        iotsim.verify(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_nobody_can_read_as_json_is_one_clear_line(saved):
    for name in ("manifest.json", "actions.json", "devices/0.json"):
        path = rewritten(saved, lambda members, name=name: members.update({name: b"{"}))
        with pytest.raises(SavedRunError, match="this saved run is damaged"):
            iotsim.verify(path)


def array_of(header):
    text = header.encode() + b" " * ((-len(header) - 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


@pytest.mark.parametrize("header", [
    "{'descr': '<u8', 'fortran_order': False, 'shape': (10000000000000, 128), }",
    "{'descr': '<u8', 'fortran_order': False, 'shape': (1e400, 128), }",
    "{'descr': '|O', 'fortran_order': False, 'shape': (6, 128), }",
    "{'descr': '<u8', 'fortran_order': True, 'shape': (6, 128), }",
    "{'descr': '<u8'", "(((", "'''", "\0", "{'descr': " + "(" * 5000,
])
def test_an_array_that_claims_another_shape_or_has_no_header_is_refused(saved, header):
    for name in ("stretches.npy", "devices/0.npy"):
        path = rewritten(saved, lambda members, name=name: members.update(
            {name: array_of(header) + b"x"}))
        with pytest.raises(SavedRunError, match="this saved run is damaged"):
            iotsim.verify(path)


def test_text_that_is_nested_too_deep_is_one_clear_line(saved):
    for name in ("manifest.json", "actions.json", "devices/0.json"):
        path = rewritten(saved, lambda members, name=name: members.update({name: b"[" * 10**5}))
        with pytest.raises(SavedRunError, match="this saved run is damaged"):
            iotsim.verify(path)


def test_a_window_and_a_number_of_readings_forged_together_are_not_computed(tmp_path):
    path = fleet(3).generate("1m").save(tmp_path / "long.iotsim")
    end_us = SENSORS.generate("1m").end_us + 10**15

    def forge(members):
        manifest = json.loads(members["manifest.json"])
        manifest.update(end_us=end_us, rows=10**10)
        members["manifest.json"] = json.dumps(manifest).encode()
        pair = np.load(io.BytesIO(members["devices/0.npy"]), allow_pickle=False).view("<i8")
        pair[1] = [10**10 - 20, 10, 10]
        stream = io.BytesIO()
        np.save(stream, pair.view("<u8"))
        members["devices/0.npy"] = stream.getvalue()

    with pytest.raises(SavedRunError, match="this saved run is damaged: device 'meter-0000' had 9"):
        iotsim.verify(rewritten(path, forge))
    with pytest.raises(SavedRunError, match="this saved run is damaged"):
        iotsim.verify(with_manifest(path, end_us=end_us, rows=10**10))


def test_save_checks_its_path_before_it_writes(tmp_path):
    result = fleet(2).generate("10s")
    for path in ("x.zip", "x", tmp_path / "nowhere" / "x.iotsim"):
        with pytest.raises(BadValue, match=r"^path="):
            result.save(path)
    assert not list(tmp_path.iterdir())


def test_a_saved_run_takes_its_name_when_it_is_complete(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("iotsim.saved._write", fail)
    with pytest.raises(OSError, match="the disk is full"):
        fleet(2).generate("10s").save(tmp_path / "x.iotsim")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved_is_one_clear_line_and_leaves_the_file_that_was_there(tmp_path):
    result = fleet(2).generate("10s")
    whole = result.save(tmp_path / "x.iotsim").read_bytes()
    (tmp_path / "x.iotsim.part").symlink_to("/dev/full")
    with pytest.raises(BadValue) as caught:
        result.save(tmp_path / "x.iotsim")
    assert str(caught.value).endswith(
        "cannot be written: no space left on device. Give a file in a folder that you may write "
        "to, with room left.")
    assert [path.name for path in tmp_path.iterdir()] == ["x.iotsim"]
    assert (tmp_path / "x.iotsim").read_bytes() == whole
    (tmp_path / "folder.iotsim").mkdir()
    (tmp_path / "busy.iotsim.part").mkdir()
    for name in ("folder.iotsim", "busy.iotsim", "x" * 300 + ".iotsim"):
        with pytest.raises(BadValue, match=r"^path=.* cannot be written: "):
            result.save(tmp_path / name)


def test_readings_that_are_not_held_cannot_be_saved(tmp_path):
    result = fleet(2).generate("10s", to=tmp_path / "x.parquet")
    with pytest.raises(BadValue, match="0 of 4 readings are held") as caught:
        result.save(tmp_path / "x.iotsim", readings=True)
    assert str(caught.value).endswith(
        f" Save without; verify(path, against={str(result.path)!r}) reads them there.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert iotsim.verify(result.save(tmp_path / "x.iotsim"))


def test_a_window_that_does_not_fit_its_readings_is_not_computed(tmp_path):
    path = fleet(3).generate("1m").save(tmp_path / "long.iotsim")
    far_us = 500 * 365 * 86_400_000_000
    with pytest.raises(SavedRunError, match="its window gives at least"):
        iotsim.verify(with_manifest(path, end_us=far_us * 10))
