"""Pictures beside the readings: heat map, faults, a scenario before it is run."""

import io
import sys
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection, QuadMesh
from matplotlib.figure import Figure

from iotsim import Fleet, Scenario
from iotsim.errors import BadValue, MissingExtra, UnknownName
from iotsim.plotting.canvas import bins_of, edges_of, plain
from iotsim.plotting.lanes import LANES_MAX
from iotsim.plotting.windows import RUNS_MAX, Lane


def plant():
    return (Fleet("plant", seed=42).add("temperature_sensor", count=20, labels={"site": "north"})
            .add("temperature_sensor", count=20, labels={"site": "south"})
            .add("smart_lock", count=10))


def outage():
    return (Scenario("outage", plant())
            .at("2m").inject("disconnect", where="site=north", duration="2m")
            .at("5m").inject("packet_loss", where="device_type=smart_lock", loss=0.5)
            .at("6m").inject("drift", field="humidity", rate_per_sec=0.1, duration="1m")
            .lasting("10m"))


@pytest.fixture(scope="module")
def result():
    return outage().generate()


def picture(ax):
    out = io.BytesIO()
    ax.figure.savefig(out, format="png", dpi=60)
    assert out.getvalue()[:4] == b"\x89PNG"
    return ax


def left(ax):
    return [text.get_text() for text in ax.get_yticklabels()]


def right(ax):
    return [text.get_text() for text in ax.texts]


def told(ax):
    return [text.get_text() for text in ax.get_legend().get_texts()]


def minutes(boxes):
    """(from, to) of each box, in minutes since the first of January."""
    found = []
    for path in boxes.get_paths():
        days = path.vertices[:, 0] - mpl.dates.date2num(np.datetime64("2026-01-01"))
        found.append((round(days.min() * 1440, 3), round(days.max() * 1440, 3)))
    return found


def test_windows_of_faults_stand_above_and_behind_the_readings_they_concern(result):
    ax = picture(result.plot("temperature"))
    assert told(ax)[3:] == ["disconnect (20 devices)"]
    shades = [one for one in ax.collections
              if isinstance(one, PolyCollection) and one.get_alpha() == 0.12]
    assert [minutes(one) for one in shades] == [[(2, 4)]]
    assert told(result.plot("humidity"))[3:] == [
        "disconnect (20 devices)", "drift (40 devices)"]
    states = result.plot("state")
    assert told(states)[-1] == "packet_loss (10 devices)"
    lines = [one for one in states.collections if isinstance(one, LineCollection)]
    assert len(lines) == 1


def test_a_line_is_not_drawn_through_a_stretch_without_readings(result):
    few = Scenario("few", Fleet("few", seed=1).add("pump", count=2)).at("2m").inject(
        "disconnect", duration="2m").lasting("6m").generate()
    ax = few.plot("flow")
    for drawn in ax.lines:
        gap = np.flatnonzero(np.isnan(drawn.get_ydata()))
        assert len(gap) == 1
        assert 20 < gap[0] < len(drawn.get_ydata()) - 20
    assert result.plot("temperature").lines[0].get_ydata().shape == (122,)


def test_a_long_line_is_drawn_with_bounded_points_and_keeps_its_extremes():
    long = Scenario("long", Fleet("long", seed=1).add("pump", every="1s")).at("1h").inject(
        "outlier", field="flow", value=99.0, times=1).lasting("6h").generate()
    ax = long.plot("flow")
    drawn = ax.lines[0].get_ydata()
    assert long.rows == 21_600
    assert len(drawn) <= 4000
    assert np.nanmax(drawn) == 99.0
    assert np.nanmin(drawn) == long.frame(fields="flow")["flow"].min()


def test_a_heat_map_is_the_mean_of_each_row_and_column(result):
    ax = picture(result.plot.heatmap("temperature"))
    assert isinstance(ax, Axes)
    mesh = next(one for one in ax.collections if isinstance(one, QuadMesh))
    cells = np.ma.filled(mesh.get_array(), np.nan)
    assert cells.shape == (40, 120)
    frame = result.frame(fields="temperature", device_type="temperature_sensor")
    since = frame["time"].dt.floor("10min")
    column = ((frame["time"] - since).dt.total_seconds() // 5).astype(int)
    wide = frame.pivot_table("temperature", "device_id", column, observed=True)
    assert np.allclose(cells, wide.reindex(columns=range(120)).to_numpy(), equal_nan=True)
    assert np.isnan(cells[:20, 24:48]).mean() > 0.9  # those that were gone
    assert ax.get_ylabel() == "40 devices"
    assert ax.get_xlabel() == "2026-01-01, UTC · grey: no reading"
    assert ax.get_title(loc="left") == "temperature · 40 × temperature_sensor"
    assert [one.get_ylabel() for one in ax.figure.axes[1:]] == ["temperature, °C"]
    assert told(ax) == ["disconnect (20 devices)"]


def test_a_heat_map_of_many_devices_and_long_times_is_bounded_and_says_so():
    many = Fleet("many", seed=1).add("temperature_sensor", count=210, every="1m").generate("4h")
    ax = many.plot.heatmap()
    mesh = next(one for one in ax.collections if isinstance(one, QuadMesh))
    assert mesh.get_array().shape == (70, 180)
    assert ax.get_ylabel() == "210 devices, 3 in each row"
    assert ax.get_xlabel() == "2026-01-01, UTC · 1m20s in each column"
    assert ax.figure.axes[1].get_ylabel() == "mean temperature, °C"
    assert ax.get_ylim() == (210.5, 0.5)


def test_a_heat_map_of_states_names_them_and_of_flags_shows_their_share(result):
    ax = picture(result.plot.heatmap("state"))
    states = {text.get_text() for legend in ax.findobj(mpl.legend.Legend)
              for text in legend.get_texts()}
    assert {"locked", "unlocked", "packet_loss (10 devices)"} <= states
    assert left(ax) == [f"smart_lock-{i:04d}" for i in range(10)]
    flags = result.plot.heatmap("tamper")
    assert flags.figure.axes[1].get_ylabel() == "tamper is true"
    assert flags.figure.axes[1].get_ylim() == (0, 1)


def test_the_faults_of_a_result_say_who_when_and_how_much_they_changed(result):
    ax = picture(result.plot.faults())
    assert left(ax) == ["disconnect · site=north", "packet_loss · device_type=smart_lock",
                        "drift · all"]
    assert right(ax)[0] == "20 devices, hit 100 %"
    assert right(ax)[1].startswith("10 devices, hit ")
    assert right(ax)[1].endswith(", not ended")
    assert [minutes(one) for one in ax.collections] == [[(2, 4)], [(5, 10)], [(6, 7)]]
    wire = result.frame(wire=True)
    lossy = wire[wire["faults"].astype(str).str.contains("packet_loss")]
    share = lossy["hit"].astype(str).str.contains("packet_loss").mean()
    assert f"hit {100 * share:.0f} %" in right(ax)[1]
    every = (wire["hit"] != "").mean()
    assert ax.get_title(loc="left") == (
        f"outage · 3 kinds of fault on 50 of 50 devices in 00:10:00, {100 * every:.0f} % of "
        "readings hit")
    assert ax.get_xlabel() == "2026-01-01, UTC"


def test_a_fault_that_was_cleared_for_some_is_a_lower_bar_from_then_on():
    cleared = (Scenario("part", plant()).at("1m").inject("stuck", duration="8m")
               .at("5m").clear("stuck", where="site=north").lasting("10m").generate())
    boxes = cleared.plot.faults().collections[0]
    assert minutes(boxes) == [(1, 5), (5, 9)]
    tall, low = (np.ptp(path.vertices[:, 1]) for path in boxes.get_paths())
    assert low < tall


def test_a_result_without_faults_says_so_and_one_without_readings_still_draws():
    none = Fleet("none", seed=1).add("pump").generate("1m")
    assert none.plot.faults().get_title(loc="left") == "none · no fault in 00:01:00"
    empty = Fleet("empty", seed=1).add("smart_meter").generate("1us")
    picture(empty.plot.faults())
    with pytest.raises(BadValue, match="holds no readings that can be drawn"):
        empty.plot.heatmap()


def test_a_scenario_is_drawn_before_it_is_run():
    ax = picture(outage().stop(where="count=2").expect("count() > 1").plot())
    assert left(ax) == ["disconnect · site=north", "packet_loss · device_type=smart_lock",
                        "drift · all", "stop", "expect"]
    assert right(ax) == ["20 devices", "10 devices, not ended", "50 devices", "where=count=2",
                         "count() > 1"]
    assert [[(path.vertices[:, 0].min(), path.vertices[:, 0].max()) for path in one.get_paths()]
            for one in ax.collections] == [[(120, 240)], [(300, 600)], [(360, 420)], [], []]
    assert ax.get_xlim() == (0, 600)
    assert ax.get_xlabel() == "simulated time since the start"
    assert ax.get_title(loc="left") == (
        "outage · 5 steps over 10m on fleet 'plant', 50 devices")
    later = Scenario("later", plant(), start="2026-03-29T00:00Z").at("1m").inject("stuck")
    assert later.plot().get_xlabel() == "simulated time since 2026-03-29T00:00:00.000000Z (UTC)"

    async def script(ctx):
        await ctx.wait("1m")

    with pytest.raises(BadValue, match="is a script: what it does shows when it runs"):
        Scenario("script", plant(), script=script).plot()


def test_thirty_lanes_are_bounded_and_long_or_odd_names_do_not_break_a_picture():
    fleet = Fleet("$odd$ " + "x" * 100, seed=1).add(
        "pump", count=3, id="_a-{n}-" + "y" * 60 + "$z$", labels={"site": "s" * 80})
    told_off = Scenario("many " + "z" * 100, fleet)
    for i in range(30):
        where = f"id={'|'.join(f'nobody-{j}' for j in range(i + 1))}|_a-1-{'y' * 60}$z$"
        told_off = told_off.at(f"{i}s").inject("stuck", where=where, duration="5s")
    told_off = told_off.lasting("1m")
    assert len(left(picture(told_off.plot()))) == LANES_MAX + 1
    found = told_off.generate()
    assert len(left(picture(found.plot.faults()))) == LANES_MAX
    assert len(told(picture(found.plot("flow")))) == 4


def test_they_draw_where_they_are_told_and_touch_nothing_global(result, monkeypatch):
    from matplotlib import pyplot

    before = dict(mpl.rcParams)
    for draw in (result.plot.faults, result.plot.heatmap, outage().plot):
        ax = Figure().add_subplot()
        assert draw(ax=ax) is ax
        assert tuple(draw(figsize=(5, 3)).figure.get_size_inches()) == (5, 3)
    assert pyplot.get_fignums() == []
    assert dict(mpl.rcParams) == before
    with pytest.raises(UnknownName, match="no field called 'temprature'"):
        result.plot.heatmap("temprature")
    assert repr(result.plot) == "<pictures of 'outage': plot(), plot.heatmap(), plot.faults()>"
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    for draw in (result.plot.faults, result.plot.heatmap):
        with pytest.raises(MissingExtra, match=r'pip install "iotsim\[lab\]"'):
            draw()


def test_thousands_of_windows_are_a_bounded_number_of_runs():
    lane = Lane("slow_down", "shard=0/4")
    slots = np.arange(10)
    for i in range(2000):
        lane.add(i * 10, np.full(10, i * 10 + 5), slots)
    runs = lane.runs(0, 20_000)
    assert len(runs) <= RUNS_MAX
    assert (runs[0][0], runs[-1][1], lane.count) == (0, 19_995, 10)
    fewer = Lane("stuck", "all")
    fewer.add(0, np.array([10, 20, 20]), np.arange(3))
    assert fewer.runs(0, 100) == [(0, 10, 3), (10, 20, 2)]


def test_bins_are_half_open_and_names_are_shown_as_they_are():
    edges = edges_of(100, 107, 3)
    assert edges.tolist() == [100, 103, 105, 107]
    assert bins_of(np.array([100, 102, 103, 104, 105, 106]), edges).tolist() == [0, 0, 1, 1, 2, 2]
    wide = edges_of(0, 2**60, 4)
    assert bins_of(np.array([0, 2**58, 2**60 - 1]), wide).tolist() == [0, 1, 3]
    assert plain("$x$") == r"\$x\$"
    assert plain("_a") == " _a"


def test_only_a_kernel_shows_figures_by_itself(monkeypatch):
    from iotsim.plotting.canvas import _in_notebook

    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert not _in_notebook()
    shell = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    assert _in_notebook()
