"""Arrow and Parquet: the same readings, streamed, and whole or not at all."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from iotsim import Fleet, IotsimError, Profile, arrow
from iotsim.errors import BadValue, MissingExtra, SavedRunError
from tests.fleets import START_US, digest_of, fleet, profile

SENSORS = (Fleet("p", seed=1).add("temperature_sensor", count=5, labels={"site": "north"})
           .add("smart_lock", count=5))


async def moody(dev):
    values = ["a", 1, None, {"k": [1, None]}, 2.5, True]
    for i in range(12):
        dev.emit(any=values[i % 6], word="xy"[i % 2], number=float(i), flag=i % 2 == 0, n=i)
        await dev.sleep("1s")


async def late(dev):
    dev.emit(x=1.5)
    await dev.sleep("8s")
    dev.emit(x=2.5, y=3.5)


async def turns(dev):
    dev.emit(x=1.5)
    await dev.sleep("8s")
    dev.emit(x="now text")


def test_a_table_has_utc_time_and_dictionary_columns():
    table = SENSORS.generate("1m").to_arrow()
    kinds = {field.name: str(field.type) for field in table.schema}
    word = "dictionary<values=string, indices=int32, ordered=0>"
    assert kinds["time"] == "timestamp[us, tz=UTC]"
    assert kinds["seq"] == "int64"
    assert kinds["temperature"] == "double"
    for name in ("device_id", "device_type", "site", "faults", "hit"):
        assert kinds[name] == word, name


def test_the_c_stream_hands_the_readings_to_any_library():
    result = SENSORS.generate("1m")
    table = pa.table(result)
    assert table.num_rows == len(result)
    assert table.equals(result.to_arrow())


def test_nan_and_what_a_type_lacks_are_null():
    table = SENSORS.generate("2m").to_arrow()
    frame = SENSORS.generate("2m").frame()
    for name in ("temperature", "site"):
        assert table[name].null_count == int(frame[name].isna().sum()) > 0


def test_no_readings_make_an_empty_table():
    table = fleet(1, phase="4s").generate("1s").to_arrow()
    assert table.num_rows == 0
    assert table.column_names[:4] == ["time", "device_id", "device_type", "seq"]


def sorted_frame(frame):
    plain = frame.astype({"device_id": object, "device_type": object})
    return plain.sort_values(["device_id", "seq"], ignore_index=True)


def test_parquet_and_frame_hold_the_same(tmp_path):
    result = SENSORS.generate("2m")
    path = result.to_parquet(tmp_path / "x.parquet")
    one, other = sorted_frame(pd.read_parquet(path)), sorted_frame(result.frame())
    for name in ("time", "device_id", "seq", "temperature", "battery"):
        pd.testing.assert_series_equal(one[name], other[name], check_dtype=False)


@pytest.mark.parametrize("name", Profile.names())
def test_a_file_read_back_has_the_digest_of_the_run(name, tmp_path):
    made = Fleet("p", seed=1).add(name, count=7, labels={"site": "north"})
    result = made.generate("10m", to=tmp_path / "x.parquet")
    back = arrow.read(result.path, result.groups)
    assert sum(map(len, back)) == result.rows
    assert digest_of(back) == result.digest == made.generate("10m").digest


def test_a_file_of_scripted_devices_read_back_has_the_digest_of_the_run(tmp_path):
    made = Fleet("p", seed=1).add(moody, count=2).add("pump", count=3)
    result = made.generate("12s", to=tmp_path / "x.parquet")
    assert digest_of(arrow.read(result.path, result.groups)) == result.digest
    pd.testing.assert_frame_equal(result.frame(fields="number"),
                                  made.generate("12s").frame(fields="number"))


def test_playback_with_missing_values_read_back_has_the_digest_of_the_run(tmp_path):
    (tmp_path / "x.csv").write_text("v\n" + "\n".join(["1.5", "NA", "2.5"] * 20))
    made = Profile("k", {"v": {"type": "playback", "path": str(tmp_path / "x.csv"),
                               "column": "v"}}, telemetry_interval="1s")
    result = Fleet("p", seed=1).add(made, count=3).generate("1m", to=tmp_path / "x.parquet")
    assert digest_of(arrow.read(result.path, result.groups)) == result.digest
    assert pq.read_table(result.path)["v"].null_count == 60


def test_a_streamed_run_holds_nothing_and_shows_its_frame_from_the_file(tmp_path):
    result = SENSORS.generate("2m", to=tmp_path / "x.parquet")
    assert result.capture.rows == 0
    assert len(result.frame()) == result.rows == pq.read_metadata(result.path).num_rows
    assert len(result.frame(device_type="smart_lock", last="1m")) > 0
    pd.testing.assert_frame_equal(result.frame(fields="temperature"),
                                  SENSORS.generate("2m").frame(fields="temperature"))


def test_row_groups_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "ROWS_PER_GROUP", 1000)
    result = fleet(100, every="1s").generate("1m", to=tmp_path / "x.parquet")
    file = pq.ParquetFile(result.path)
    sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    assert sum(sizes) == result.rows == 6000
    assert max(sizes) < 1000 + 16_384
    assert digest_of(arrow.read(result.path, result.groups)) == result.digest


def test_a_file_takes_its_name_when_it_is_complete(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(arrow, "ROWS_PER_GROUP", 10)
    done = arrow.Writer.close

    def close(self):
        seen.append(sorted(path.name for path in tmp_path.iterdir()))
        done(self)

    monkeypatch.setattr(arrow.Writer, "close", close)
    fleet(5).generate("1m", to=tmp_path / "x.parquet")
    assert seen == [["x.parquet.part"]]
    assert [path.name for path in tmp_path.iterdir()] == ["x.parquet"]


def test_a_run_that_fails_leaves_no_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "ROWS_PER_GROUP", 1)
    with pytest.raises(IotsimError):
        Fleet("p", seed=1).add(late).generate("10s", to=tmp_path / "x.parquet")
    assert not (tmp_path / "x.parquet").exists()


def test_a_field_that_comes_too_late_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "ROWS_PER_GROUP", 1)
    with pytest.raises(IotsimError) as caught:
        Fleet("p", seed=1).add(late).generate("10s", to=tmp_path / "x.parquet")
    assert str(caught.value) == (
        "device type 'late' began to publish 'y' after the file was begun. Emit every field (None "
        "is allowed) from the first reading on.")
    assert list(Fleet("p", seed=1).add(late).generate("10s").frame().columns[4:6]) == ["x", "y"]


def test_a_field_that_changes_its_kind_too_late_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "ROWS_PER_GROUP", 1)
    with pytest.raises(IotsimError) as caught:
        Fleet("p", seed=1).add(turns).generate("10s", to=tmp_path / "x.parquet")
    assert str(caught.value) == (
        "device type 'turns' began to publish 'x' as text after the file was begun with float. "
        "Emit one kind of value in it.")


@pytest.mark.parametrize("to", ["x.csv", "x", "nowhere/x.parquet", "x" * 300 + "/x.parquet",
                                "x\0.parquet"])
def test_what_cannot_be_written_is_known_before_anything_runs(to, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadValue, match=r"^to="):
        fleet(5).generate("1000d", to=to)
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_known_before_anything_runs(tmp_path):
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "busy.parquet.part").mkdir()
    for name in ("folder.parquet", "busy.parquet", "x" * 300 + ".parquet"):
        for call in (lambda to: fleet(5).generate("1000d", to=to),
                     fleet(5).generate("10s").to_parquet):
            with pytest.raises(BadValue, match=r"^to=.* cannot be written: ") as caught:
                call(tmp_path / name)
            assert "\n" not in str(caught.value)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_disk_that_is_full_is_one_clear_line_and_leaves_no_half_file(tmp_path, monkeypatch):
    monkeypatch.setattr(arrow, "ROWS_PER_GROUP", 1000)
    (tmp_path / "x.parquet.part").symlink_to("/dev/full")
    for call in (lambda to: fleet(50, every="1s").generate("5m", to=to),
                 fleet(5).generate("10s").to_parquet):
        with pytest.raises(BadValue, match=r"cannot be written: .*[Nn]o space left on device"):
            call(tmp_path / "x.parquet")
        assert not (tmp_path / "x.parquet").exists()


def test_readings_whose_file_is_gone_or_damaged_are_one_clear_line(tmp_path):
    result = fleet(2).generate("10s", to=tmp_path / "x.parquet")
    result.path.write_bytes(b"PAR1")
    with pytest.raises(SavedRunError, match=r"x\.parquet: the readings in it cannot be read\."):
        result.frame()
    result.path.unlink()
    for call in (result.frame, result.to_arrow, lambda: result.to_parquet(tmp_path / "y.parquet")):
        with pytest.raises(SavedRunError, match=r"x\.parquet: .* written to it, and it is gone\."):
            call()


def test_without_pyarrow_the_error_says_what_to_install(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtra, match=r'pip install "iotsim\[arrow\]"'):
        fleet(2).generate("10s", to=tmp_path / "x.parquet")
    assert len(fleet(2).generate("10s").frame()) == 4


def test_a_file_of_others_is_one_clear_line(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "other.parquet")
    groups = [member.group(0) for member in fleet(2).members]
    with pytest.raises(IotsimError, match="these are not readings of iotsim"):
        arrow.read(tmp_path / "other.parquet", groups)
    path = fleet(3).generate("10s").to_parquet(tmp_path / "x.parquet")
    with pytest.raises(IotsimError, match="'meter-0002' that the fleet has not"):
        arrow.read(path, groups)


def test_memory_does_not_grow_with_the_length_of_a_stream(tmp_path, monkeypatch):
    import tracemalloc

    monkeypatch.setattr(arrow, "ROWS_PER_GROUP", 20_000)
    monkeypatch.setattr("iotsim.offline.WINDOW_ROWS", 20_000)

    def peak(duration):
        tracemalloc.start()
        fleet(100, every="1s").generate(duration, to=tmp_path / "x.parquet", progress=False)
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak("1m")
    assert peak("60m") < 1.5 * peak("10m")


def test_text_of_many_blocks_shares_one_dictionary(tmp_path):
    result = Fleet("p", seed=1).add("smart_lock", count=50).generate("10m")
    table = result.to_arrow()
    chunks = table["device_id"].chunks
    assert all(chunk.dictionary.equals(chunks[0].dictionary) for chunk in chunks)
    assert set(np.unique(table["device_id"].to_pandas())) == set(result.groups[0].ids)


def test_time_in_the_file_is_exact_to_the_microsecond(tmp_path):
    result = Fleet("p", seed=1).add(profile(phase="123456us")).generate("5s",
                                                                        to=tmp_path / "x.parquet")
    (at,) = pq.read_table(result.path)["time"].cast("int64").to_pylist()
    assert at == START_US + 123_456
