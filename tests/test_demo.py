"""The demonstration: what it says and leaves, its exit status, and that nothing stays behind."""

import asyncio
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

import iotsim
from iotsim import Fleet
from iotsim.broker import find_mosquitto
from iotsim.cli import main
from iotsim.demo import auditing, demo, plan_of
from iotsim.demo.plan import EMBEDDED_DEVICES_MAX
from iotsim.errors import BadValue, IotsimError
from iotsim.publishers.payload import Encoder
from tests.conftest import lacking
from tests.proxy import Proxy

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


@pytest.fixture
def needs_mosquitto():
    if find_mosquitto() is None:
        lacking("mosquitto is not installed (apt-get install mosquitto)")


@contextmanager
def dispositions(ignored):
    """What a child inherits in here: these signals ignored, the others not, whoever runs us."""
    before = {
        number: signal.signal(
            number, signal.SIG_IGN if number in ignored else signal.default_int_handler
        )
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Shown:
    """A demo in a process group of its own, as a terminal would start it."""

    def __init__(self, *arguments, code="", ignored=()):
        self.mark = f"IOTSIM_TEST={uuid.uuid4().hex}"
        name, value = self.mark.split("=")
        program = ["-c", code] if code else ["-m", "iotsim", "demo"]
        self.terminal, inside = pty.openpty()  # only a terminal is shown a progress bar
        with dispositions(ignored):
            self.process = subprocess.Popen(
                [sys.executable, *program, *map(str, arguments)], text=True,
                stdout=subprocess.PIPE, stderr=inside, start_new_session=True,
                env={**os.environ, name: value},
            )
        os.close(inside)
        self.errors = ""

    def until(self, pattern):
        """Read what the terminal shows until a pattern is there."""
        while not re.search(pattern, self.errors) and self._more():
            pass
        assert re.search(pattern, self.errors), self.errors

    def end(self):
        """(exit status, standard output, what the terminal showed)."""
        while self._more():
            pass
        out, _ = self.process.communicate(timeout=60)
        return self.process.returncode, out, self.errors

    def close(self):
        """Kill what is left; a test that passes leaves nothing."""
        if self.left():
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdout.close()
        os.close(self.terminal)

    def _more(self):
        try:
            piece = os.read(self.terminal, 65536)
        except OSError:
            return False
        self.errors += piece.decode("utf-8", "replace")
        return bool(piece)

    def left(self):
        """Command lines of processes that it started and that still live, after a moment."""
        for _ in range(100):
            found = list(self._alive())
            if not found:
                break
            time.sleep(0.05)
        return found

    def _alive(self):
        for place in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (place / "environ").read_bytes():
                    yield (place / "cmdline").read_bytes().replace(b"\0", b" ")
            except OSError:
                continue


@pytest.fixture
def show():
    """A function that starts a demo; none of them outlives the test."""
    started = []

    def start(*arguments, **options):
        started.append(Shown(*arguments, **options))
        return started[-1]

    yield start
    for shown in started:
        shown.close()


def holds(folder, rows, devices):
    """Verify what a demo left, without believing it."""
    assert {path.name for path in folder.iterdir()} == {
        "run.iotsim", "readings.parquet", "plot.png"
    }
    found = iotsim.verify(folder / "run.iotsim", against=folder / "readings.parquet")
    assert found.ok, found.difference
    frame = pd.read_parquet(folder / "readings.parquet")
    assert len(frame) == rows
    assert frame["device_id"].nunique() == devices
    picture = (folder / "plot.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture[-8:-4] == b"IEND"
    return found.digest


def test_with_no_options_it_is_a_thousand_devices_for_ten_seconds_at_sixty_times_real_time(
    tmp_path, monkeypatch, needs_mosquitto
):
    plans = []
    monkeypatch.setattr("iotsim.demo.demo", lambda plan, _say: plans.append(plan) or 0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["demo"]) == 0
    assert plans == [plan_of(devices=1000, seconds=10, seed=42, folder=Path("iotsim-demo"))]
    assert (plans[0].messages, plans[0].speed, plans[0].embedded) == (64_000, 60, False)


@pytest.mark.slow
def test_it_shows_a_thousand_devices_and_exits_0(show, tmp_path, needs_mosquitto):
    folder = tmp_path / "new" / "folder"
    shown = show("--folder", folder, "--seconds", "2")
    status, out, errors = shown.end()
    assert status == 0, out + errors
    assert shown.left() == []
    digest = holds(folder, 12_800, 1000)
    assert out.count(digest) == 3
    assert "1,000 devices: 200 temperature_sensor, 400 smart_lock, 400 smart_meter" in out
    assert "sent 12,800, received 12,800: none lost" in out
    assert re.search(r"smart_meter +400 +3,200 +3,200 +3,200 +[\d.,]+ ms +[\d.,]+ ms\n", out)
    assert "\nverify       identical\n" in out
    assert str(folder) in out
    assert out.rstrip().splitlines()[-1].startswith("All of it holds.")
    assert "sent " in errors  # the progress bar
    again = Fleet("demo", seed=42)
    for name, count in (("temperature_sensor", 200), ("smart_lock", 400), ("smart_meter", 400)):
        again = again.add(name, count=count)
    assert again.generate("2m").digest == digest


def test_without_mosquitto_it_is_smaller_and_under_nohup_the_end_of_the_terminal_is_not_its_end(
    show, tmp_path
):
    folder = tmp_path / "d"  # what is there stays
    folder.mkdir()
    (folder / "run.iotsim").write_text("precious")
    (tmp_path / "d-2").write_text("a file")
    shown = show("--folder", folder, "--broker", "embedded", "--seconds", "1", "--seed", "7",
                 ignored=(signal.SIGHUP,))
    shown.until("received [1-9]")
    shown.process.send_signal(signal.SIGHUP)
    status, out, errors = shown.end()
    assert status == 0, out + errors
    assert shown.left() == []
    assert [path.read_text() for path in folder.iterdir()] == ["precious"]
    assert (tmp_path / "d-2").read_text() == "a file"
    assert f"folder       {tmp_path / 'd-3'}\n" in out
    digest = holds(tmp_path / "d-3", 640, EMBEDDED_DEVICES_MAX)
    assert "embedded on mqtt://127.0.0.1:" in out
    assert "100 devices instead of 1,000; install mosquitto for more" in out
    assert "no digest of what was received" in out
    assert out.count(digest) == 2


@pytest.mark.parametrize("broker", ["mosquitto", "embedded"])
def test_an_interrupt_stops_it_gracefully_and_exits_130(show, tmp_path, broker, needs_mosquitto):
    shown = show("--folder", tmp_path / "d", "--devices", "60", "--broker", broker)
    shown.until("received [1-9][0-9]{2}")
    os.killpg(shown.process.pid, signal.SIGINT)  # as a terminal does: to everybody in the group
    status, out, errors = shown.end()
    assert status == 130, out + errors
    assert shown.left() == []
    assert "iotsim: interrupted; everything it started has ended" in errors
    assert "Traceback" not in errors
    made, acknowledged = re.search(
        r"stopped +([\d,]+) readings made, ([\d,]+) acknowledged", out).groups()
    assert acknowledged != "0"
    if broker == "mosquitto":  # the other is too slow to be sure of it
        assert made == acknowledged


@pytest.mark.parametrize(("number", "ignored"), [
    (signal.SIGHUP, (signal.SIGINT,)),  # as a shell starts `command &` in a script
    (signal.SIGINT, (signal.SIGINT,)),
    (signal.SIGTERM, (signal.SIGINT, signal.SIGHUP, signal.SIGTERM)),
])
def test_being_told_to_end_leaves_nothing_behind(
    show, tmp_path, number, ignored, needs_mosquitto
):
    shown = show("--folder", tmp_path / "d", "--devices", "60", ignored=ignored)
    shown.until("received [1-9]")
    shown.process.send_signal(number)
    status, out, errors = shown.end()
    assert status == 130, out + errors
    assert re.search("stopped +[1-9]", out)
    assert shown.left() == []


def test_a_missing_guest_is_one_line_with_the_command_and_exit_1(show, tmp_path, needs_mosquitto):
    guests = {"pyarrow": "pyarrow", "matplotlib": "matplotlib", "mqtt5": "mqtt5",
              "paho": "paho-mqtt"}
    code = f"""
import sys
from iotsim.cli import main
for module in {list(guests)}:
    sys.modules[module] = None
    print(main(["demo", *sys.argv[1:]]), "=", module)
    del sys.modules[module]
"""
    shown = show("--folder", tmp_path / "d", code=code)
    status, out, errors = shown.end()
    assert status == 0, out + errors
    for module, package in guests.items():
        said, out = out.split(f"1 = {module}\n")
        assert said.splitlines()[-1] == (
            f"did not hold: packages: {package} is not installed. "
            'Install with: pip install "iotsim[all]"'
        )
    assert not (tmp_path / "d").exists()


def test_a_message_that_never_arrives_makes_it_exit_1_and_say_so(
    tmp_path, monkeypatch, needs_mosquitto
):
    # Between the tap and the audit one message is taken away, and one changed by one byte.
    def thieving(result, messages, **options):
        first, *rest = messages
        return auditing.audit(result, [(first[0].replace(b"2026", b"2027"), first[1]), *rest[1:]],
                              **options)

    monkeypatch.setattr("iotsim.demo.audit", thieving)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    said = []
    plan = plan_of(devices=30, seconds=1, seed=1, folder=tmp_path / "d")
    assert demo(plan, said.append) == 1
    problems = [line.removeprefix("did not hold: ") for line in said if "did not hold" in line]
    assert "2 readings never arrived" in problems
    assert "1 messages arrived that nobody sent" in problems
    assert "the digest of what was received differs from the run's" in problems
    assert any("DIFFERENT" in line for line in said)
    assert "verify       identical" in said


def test_a_subscriber_that_is_cut_off_and_comes_back_misses_nothing_and_is_not_ill(
    tmp_path, monkeypatch, needs_mosquitto
):
    passed = Counter()

    def cut_off(number, data):
        passed[number] += len(data)
        return None if number == 0 and passed[0] > 20_000 else data

    def through_a_proxy(url, *more, **options):
        proxy.target = int(url.rpartition(":")[2])
        return iotsim.tap(proxy.url, *more, **options)

    async def forward():
        async with proxy:
            up.set()
            await asyncio.to_thread(over.wait)

    said, proxy, up, over = [], Proxy(0, cut_off), threading.Event(), threading.Event()
    monkeypatch.setattr("iotsim.demo.tap", through_a_proxy)
    thread = threading.Thread(target=asyncio.run, args=(forward(),))
    thread.start()
    try:
        assert up.wait(30)
        plan = plan_of(devices=30, seconds=1, seed=1, folder=tmp_path / "d")
        status = demo(plan, said.append)
    finally:
        over.set()
        thread.join()
    assert status == 0, said
    assert proxy.connections == 2
    assert any("the subscriber was cut off meanwhile, and missed nothing" in line for line in said)


# -- the audit by itself ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sent():
    result = Fleet("f", seed=1).add("pump", count=3).add("smart_lock", count=2).generate("1m")
    encoder = Encoder("run", lambda _group, _i: "t")
    made = [encoder.encode(chunk) for chunk in result.capture.chunks()]
    return result, [pair for block in made for pair in zip(block.payloads, block.ids, strict=True)]


def test_the_audit_of_everything_in_any_order_finds_nothing(sent):
    result, messages = sent
    found = auditing.audit(result, messages[::-1], has_ids=True)
    assert (found.lost, found.foreign, found.doubled, found.trouble) == (0, 0, 0, "")
    assert found.digest == result.digest
    assert found.by_type == {"pump": 90, "smart_lock": 12}


def test_the_audit_counts_what_is_lost_doubled_and_foreign(sent):
    result, messages = sent
    doctored = [*messages[3:], *messages[5:7], (b"{}", "x/y/0/0")]
    found = auditing.audit(result, doctored, has_ids=True)
    assert (found.lost, found.doubled, found.foreign) == (3, 2, 1)
    assert found.digest is None
    assert "is not a reading" in found.trouble
    blind = auditing.audit(result, doctored, has_ids=False)
    assert (blind.lost, blind.doubled, blind.foreign) == (3, 2, 1)
    assert (blind.digest, blind.trouble) == (None, "")


def test_a_redelivery_counts_as_twice_and_leaves_the_digest(sent):
    result, messages = sent
    found = auditing.audit(result, [*messages, messages[0]], has_ids=True)
    assert (found.lost, found.doubled, found.foreign) == (0, 1, 0)
    assert found.digest == result.digest


def test_one_flipped_byte_is_one_lost_and_one_foreign(sent):
    result, messages = sent
    payload, name = messages[0]
    place = payload.index(b'"flow":') + 7
    flipped = payload[:place] + bytes([payload[place] ^ 1]) + payload[place + 1 :]
    found = auditing.audit(result, [(flipped, name), *messages[1:]], has_ids=True)
    assert (found.lost, found.foreign) == (1, 1)
    assert found.digest != result.digest


# -- the plan -----------------------------------------------------------------------------------


def planned(**options):
    wanted = {"devices": 1000, "seconds": 10, "seed": 1, "folder": Path("d"), **options}
    return plan_of(**wanted)


def test_more_devices_run_slower_and_too_many_are_refused_with_a_number(needs_mosquitto):
    assert planned().speed == 60
    assert planned(devices=5000).speed == 12
    assert planned(devices=50_000).speed == 1
    pace = planned(devices=1_000_000).findings()[-1]
    assert not pace.ok
    fitting = int(re.search(r"Choose --devices (\d+) or fewer", pace.text)[1])
    assert planned(devices=fitting).findings()[-1].ok


@pytest.mark.parametrize("devices", [1, 2, 3, 7, 10, 999])
def test_every_number_of_devices_is_shared_out_whole(devices):
    plan = planned(devices=devices, broker="embedded")
    assert plan.devices == len(plan.fleet()) == min(devices, EMBEDDED_DEVICES_MAX)
    assert all(count for _, count in plan.counts)


def test_mosquitto_that_was_asked_for_and_is_not_there_is_one_line(monkeypatch):
    monkeypatch.setattr("iotsim.demo.plan.find_mosquitto", lambda: None)
    with pytest.raises(IotsimError, match="apt-get install mosquitto"):
        planned(broker="mosquitto")
    assert planned().embedded


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path, needs_mosquitto):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadValue, match="cannot be made"):
        demo(planned(folder=tmp_path / "file" / "d"), lambda _line: None)
