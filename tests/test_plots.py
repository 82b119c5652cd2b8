"""Plots: what is drawn for whom, what is returned, and that nothing global is touched."""

import io
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes

from iotsim import Fleet
from iotsim.errors import BadValue, MissingExtra, UnknownName


def rooms(count, duration="10m"):
    return Fleet("rooms", seed=1).add("temperature_sensor", count=count).generate(duration)


def states(result, field):
    ax = result.plot(field)
    return {text.get_text() for text in ax.get_legend().get_texts()}


def drawn(ax):
    """Bytes of the picture: it must be possible to draw it at all."""
    axes = np.atleast_1d(ax)
    out = io.BytesIO()
    axes[0].figure.savefig(out, format="png")
    return out.getvalue()


def test_a_fleet_is_two_bands_and_a_median_whatever_its_size():
    for count in (9, 300):
        ax = rooms(count, "2m").plot("temperature")
        assert isinstance(ax, Axes)
        assert len(ax.lines) == 1
        assert len(ax.collections) == 2
        labels = [text.get_text() for text in ax.get_legend().get_texts()]
        assert labels == ["5–95 %", "25–75 %", "median"]


def test_up_to_eight_devices_are_lines_with_their_names():
    result = rooms(8)
    ax = result.plot("temperature")
    assert len(ax.lines) == 8
    assert not ax.collections
    frame = result.frame(fields="temperature")
    for line in ax.lines:
        values = frame[frame["device_id"] == line.get_label()]["temperature"]
        assert list(line.get_ydata()) == list(values)


def test_bands_are_the_quantiles_of_what_the_devices_reported():
    result = rooms(40)
    ax = result.plot("temperature")
    frame = result.frame(fields="temperature")
    # 120 readings of a device in ten minutes: a bin is as wide as the interval.
    bins = ((frame["time"] - frame["time"].iloc[0].floor("10min")).dt.total_seconds() // 5)
    expected = frame["temperature"].groupby(bins).median()
    assert list(ax.lines[0].get_ydata()[1:-1]) == pytest.approx(list(expected))


def test_axes_name_the_field_its_unit_who_and_the_day_in_utc():
    ax = rooms(20).plot("temperature")
    assert ax.get_title(loc="left") == "temperature · 20 × temperature_sensor"
    assert ax.get_ylabel() == "°C"
    assert ax.get_xlabel() == "2026-01-01, UTC"
    assert ax.figure.get_suptitle() == "rooms: 2,400 readings of 20 × temperature_sensor"
    low, high = mpl.dates.num2date(ax.get_xlim())
    assert (low.isoformat(), high.isoformat()) == (
        "2026-01-01T00:00:00+00:00", "2026-01-01T00:10:00+00:00"
    )
    drawn(ax)
    assert [label.get_text() for label in ax.get_xticklabels()][1] == "00:02"


def test_text_and_booleans_are_shares_that_sum_to_one():
    result = Fleet("doors", seed=1).add("smart_lock", count=200).generate("1h")
    assert states(result, "state") == {"locked", "unlocked", "jammed"}
    assert states(result, "tamper") == {"false"}
    ax = result.plot("state")
    assert not ax.lines
    assert ax.get_ylim() == (0, 1)
    assert ax.get_ylabel() == "share of devices"
    top = ax.collections[-1].get_paths()[0].vertices[:, 1]
    assert top.max() == pytest.approx(1)


def test_one_field_gives_axes_and_several_an_array_in_the_order_asked():
    result = rooms(3)
    axes = result.plot(["humidity", "temperature"])
    assert axes.shape == (2,)
    assert [ax.get_title(loc="left").split()[0] for ax in axes] == ["humidity", "temperature"]
    assert result.plot().shape == (3,)
    assert drawn(axes)[:4] == b"\x89PNG"


def test_a_fleet_of_several_types_draws_each_field_for_those_that_have_it():
    result = (Fleet("mix", seed=1).add("temperature_sensor", count=10)
              .add("smart_lock", count=20).add("pump", count=3).generate("2m"))
    axes = result.plot(["battery", "state", "flow"])
    assert [ax.get_title(loc="left") for ax in axes] == [
        "battery · 30 devices (temperature_sensor, smart_lock)",
        "state · 20 × smart_lock",
        "flow · 3 × pump",
    ]
    assert len(axes[2].lines) == 3
    only = result.plot("battery", device_type="smart_lock")
    assert only.get_title(loc="left") == "battery · 20 × smart_lock"
    drawn(result.plot())


def test_it_draws_where_it_is_told_in_the_colour_and_size_it_is_told():
    from matplotlib.figure import Figure

    result = rooms(20)
    ax = Figure().add_subplot()
    assert result.plot("temperature", ax=ax, color="tab:red") is ax
    assert ax.lines[0].get_color() == "tab:red"
    assert tuple(result.plot("temperature", figsize=(4, 3)).figure.get_size_inches()) == (4, 3)
    few = rooms(2).plot("temperature", color=["black", (1.0, 0.0, 0.0)])
    assert [line.get_color() for line in few.lines] == ["black", (1.0, 0.0, 0.0)]


def test_a_gap_stays_a_gap():
    async def sleeper(dev):
        for pause in ["1s"] * 10 + ["40s"] + ["1s"] * 9:
            dev.emit(level=1.0)
            await dev.sleep(pause)

    ax = Fleet("f", seed=1).add(sleeper, count=10).generate("60s").plot("level")
    values = ax.lines[0].get_ydata()
    assert np.isnan(values[6:14]).all()
    assert not np.isnan(values[[0, 1, -2, -1]]).any()
    drawn(ax)


def test_one_reading_of_each_device_can_be_drawn():
    result = Fleet("f", seed=1).add("smart_lock", count=20).generate("10s")
    assert len(result) == 20
    drawn(result.plot())


def test_the_last_stretch_of_a_run_begins_where_its_readings_do():
    ax = rooms(10).plot("temperature", last="2m")
    low, high = mpl.dates.num2date(ax.get_xlim())
    assert 0 < (high - low).total_seconds() - 115 <= 5


def test_nothing_global_is_touched_and_pyplot_knows_no_figure():
    from matplotlib import pyplot

    before = dict(mpl.rcParams)
    for _ in range(30):
        rooms(9, "20s").plot()
    assert pyplot.get_fignums() == []
    assert dict(mpl.rcParams) == before


def test_what_cannot_be_drawn_is_one_clear_line(monkeypatch):
    result = rooms(2)
    with pytest.raises(UnknownName, match=r"no field called 'temprature'\. Did you mean 'temp"):
        result.plot("temprature")
    with pytest.raises(UnknownName, match="no device type called 'pump'"):
        result.plot(device_type="pump")
    with pytest.raises(BadValue, match=r"is one Axes for 3 fields. Name one field"):
        result.plot(ax=result.plot("battery"))
    with pytest.raises(BadValue, match=r"fields=\[\] names none"):
        result.plot([])
    empty = Fleet("e", seed=1).add("smart_meter").generate("1us")
    with pytest.raises(BadValue, match="holds no readings that can be drawn"):
        empty.plot()
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r'pip install "iotsim\[lab\]"'):
        result.plot()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_a_notebook_cell_shows_the_figure_once_and_keeps_none():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    cells = [
        "from iotsim import Fleet\n"
        "r = Fleet('n', seed=1).add('temperature_sensor', count=20).generate('2m')",
        "r.plot('temperature')",
        "ax = r.plot()",
        "from matplotlib import pyplot\npyplot.get_fignums()",
    ]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(book, timeout=60, kernel_name="python3").execute()
    pictures = [sum("image/png" in output.get("data", {}) for output in cell["outputs"])
                for cell in book.cells]
    assert pictures == [0, 1, 1, 0]
    assert book.cells[3]["outputs"][0]["data"]["text/plain"] == "[]"
