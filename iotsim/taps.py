"""What a broker delivers, recorded by an independent subscriber in a process of its own."""

from __future__ import annotations

import asyncio
import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from iotsim.clock import monotonic, stamp_us
from iotsim.errors import ConnectError
from iotsim.facts import facts_html, line
from iotsim.tapping.settings import settings_of
from iotsim.tapping.store import Record, unpacked
from iotsim.transport.discretion import discreet

if TYPE_CHECKING:
    import pandas as pd

READY_S = 10.0
FETCH_S = 30.0
HEARTBEAT_MISSING_S = 3.0
HEARTBEAT_AGAIN_S = 0.7  # for one that has not been heard: perhaps it is we who were frozen
PIECE_BYTES = 1 << 20
END_S = 2.0
FETCH_RECORDS = 50_000


@discreet
def tap(url: str, topic: str | None = None, **options: Any) -> Tap:
    """Return a tap that is subscribed; see `Tap` for the options.

    Raises
    ------
    ConnectError
        If no broker answers, or it refuses the subscription.
    """
    return Tap(url, topic, **options)


class Tap:
    """Records what the broker delivers, and knows when it is itself ill.

    Parameters
    ----------
    url : str
        Where to listen: a broker's address (`mqtt://`, `amqp://`, `nats://`,
        `nats+jetstream://`), or an address of our own that devices send to (`http://`, `coap://`).
    topic : str, optional
        What to subscribe to, in the protocol's own wildcards; everything that anybody publishes
        if not given (of JetStream: a whole stream).
    **options
        Every protocol has `capacity` (how many messages are kept; those beyond are counted, and
        make the tap ill), `tls`, `ca`, `cert`, `key`, `verify`, and `credentials` or what of
        `username`, `password`, `token` and `creds` it can use. MQTT also has `qos` (2 delivers
        every message as it was published) and `version` (only "5" carries message ids). Of MQTT
        it takes some 5,000 messages a second and core; where a broker queues little for a
        subscriber (mosquitto: 1,000 messages), more is dropped there, and the audit says so.

    Attributes
    ----------
    url, topic : str
    since_us, until_us : int
        From when, and until when, it has listened (wall clock, µs since 1970); `until_us` is 0
        while it does.
    """

    @discreet
    def __init__(self, url: str, topic: str | None = None, **options: Any) -> None:
        settings = settings_of(url, topic, options)
        self._url, self.topic = str(settings["url"]), str(settings["topic"])
        self._state: dict[str, Any] = {}
        self._news = threading.Condition()
        self._watchers: list[Callable[[], None]] = []
        self._heard_s = monotonic()
        self._answers: dict[int, bytes] = {}  # by the number of their first record
        self._records: list[Record] = []
        self._fetching = threading.Lock()
        self._closed_ill = self._closed_trouble = ""
        self._closed = False
        self.since_us = self.until_us = 0
        self._process, self._reader = self._started(settings)
        self._await_subscription()
        self.since_us = stamp_us()

    def __repr__(self) -> str:
        return f"<Tap {self.url} {self.topic!r}: {self.count:,} received, {line(self.health)}>"

    def _repr_html_(self) -> str:
        facts = (("topic", self.topic), ("messages", f"{self.count:,} received"),
                 ("health", self.health), ("is", "closed" if self._closed else "open"))
        return facts_html(f"Tap {self.url}", facts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Its address, without secrets; where it listens itself, with the port that it got."""
        return str(self._state.get("url", self._url))

    # -- what it holds --------------------------------------------------------------------------

    @property
    def count(self) -> int:
        """How many messages it holds; costs nothing."""
        return max(int(self._state.get("count", 0)), len(self._records))

    @property
    def ok(self) -> bool:
        """Whether it has seen everything since it began."""
        return self.health == "ok"

    @property
    def health(self) -> str:
        """In one line: "ok", or what is or was ill; then what it holds may be incomplete."""
        if self._closed:
            return self._closed_ill or "ok"
        state = self._state
        code = self._process.poll()
        if code is not None:
            return f"its process ended (exit status {code})"
        if self._silent():
            return f"no heartbeat of its process for {monotonic() - self._heard_s:.0f} s"
        if state.get("problem"):
            return str(state["problem"])
        if not state.get("connected"):
            return "not connected to the broker"
        if state["dropped"]:
            return f"over its capacity: {state['dropped']:,} messages dropped"
        return self._absence() or "ok"

    def _absence(self) -> str:
        losses = self._state.get("losses", 0)
        often = "once" if losses == 1 else f"{losses} times"
        return f"was disconnected {often}: messages may be missing" if losses else ""

    def _silent(self) -> bool:
        return monotonic() - self._heard_s > HEARTBEAT_MISSING_S

    def _trouble(self) -> str:
        # What is ill besides that it was away; a tap that is away now says so in `away`.
        if self._closed:
            return self._closed_trouble
        ill, absent = self.health, self._absence()
        away = self.away
        if ill in ("ok", absent) or (away and not away[-1][1] and ill.startswith("not connected")):
            return ""
        return ill

    @property
    def away(self) -> list[tuple[int, int]]:
        """From when until when it was cut off, in wall clock µs; until 0: it still is."""
        return [(since_us, until_us) for since_us, until_us in self._state.get("away", ())]

    def witness(self) -> dict[str, Any]:
        """Return what is to be known of it as a witness, as `frame().attrs["tap"]` has it.

        Returns
        -------
        dict
            url, topic; ill (why anything may be missing; empty: nothing), absence (in words) and
            away (when), since_us and until_us (now, while it listens).
        """
        return {
            "url": self.url, "topic": self.topic, "ill": self._trouble(),
            "absence": self._absence(), "away": self.away,
            "since_us": self.since_us, "until_us": self.until_us or stamp_us(),
        }

    def messages(self) -> list[tuple[str, bytes, str]]:
        """Return what was received, in order: (topic, payload, id)."""
        return [(topic, payload, ident) for _, topic, ident, payload, *_ in self._fetched()]

    def records(self) -> tuple[list[Record], str]:
        """Return what was received as the tap keeps it, and what is ill (empty: nothing).

        That it was away is no illness here: see `away`. Of a tap whose process is gone: what had
        been fetched before.
        """
        try:
            records = self._fetched()
        except ConnectError as error:
            return list(self._records), error.why
        return records, self._trouble()

    def digest(self) -> str:
        """Return the digest of what was received: the run's own, if all came and came once.

        Raises
        ------
        BadValue
            If a message is not a reading, or has no id (MQTT 3.1.1 carries none).
        """
        from iotsim.rebuilt import digest_of_messages

        return digest_of_messages((payload, name) for _, payload, name in self.messages())

    def frame(self) -> pd.DataFrame:
        """Return what was received, one row per message.

        Returns
        -------
        DataFrame
            time (of receipt, UTC), sent (as the message says, if it was stamped), topic, id,
            payload (bytes), qos, retain, dup. `attrs["tap"]` says how good a witness the tap was.
        """
        import numpy as np
        import pandas as pd

        witness, records = self.witness(), self._fetched()
        flags = np.array([record[4] for record in records], dtype=np.uint8)
        stamps = np.array([record[0] for record in records], dtype="datetime64[us]")
        frame = pd.DataFrame(
            {
                "time": pd.DatetimeIndex(stamps).tz_localize("UTC"),
                "sent": pd.DatetimeIndex(_instants(records)).tz_localize("UTC"),
                "topic": pd.Categorical([record[1] for record in records]),
                "id": [record[2] for record in records],
                "payload": pd.Series([record[3] for record in records], dtype=object),
                "qos": flags & 3,
                "retain": (flags & 4) > 0,
                "dup": (flags & 8) > 0,
            }
        )
        frame.attrs["tap"] = witness
        return frame

    # -- waiting --------------------------------------------------------------------------------

    def wait(self, count: int, timeout_s: float = 10.0) -> bool:
        """Wait until it holds so many messages; return False if time or the process ended first."""
        return self._until(lambda: self.count >= count, timeout_s)

    async def received(self, count: int, timeout_s: float = 10.0) -> bool:
        """Do as `wait` does, without blocking the event loop."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def watch() -> None:
            loop.call_soon_threadsafe(news.set)

        self._watchers.append(watch)
        try:
            async with asyncio.timeout(timeout_s):
                while self.count < count and self._alive():
                    news.clear()
                    await news.wait()
        except TimeoutError:
            pass
        finally:
            self._watchers.remove(watch)
        return self.count >= count

    def _alive(self) -> bool:
        return not self._closed and self._reader.is_alive()

    def _until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        deadline_s = monotonic() + timeout_s
        with self._news:
            while not condition() and self._alive():
                left_s = deadline_s - monotonic()
                if left_s <= 0:
                    break
                self._news.wait(min(left_s, 0.5))
        return condition()

    # -- the process behind it ------------------------------------------------------------------

    def close(self) -> None:
        """Fetch what is left, then end the process; what was received stays readable."""
        if self._closed:
            return
        ill, trouble = self.health, self._trouble()
        self.until_us = stamp_us()
        try:
            self._fetched()
        except ConnectError as error:
            trouble = trouble or error.why
            ill = error.why if ill == "ok" else ill
        self._end()
        self._closed_ill, self._closed_trouble = "" if ill == "ok" else ill, trouble

    def _started(
        self, settings: dict[str, Any]
    ) -> tuple[subprocess.Popen[bytes], threading.Thread]:
        home = str(Path(__file__).resolve().parents[1])
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        process = subprocess.Popen(
            [sys.executable, "-m", "iotsim.tapping.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # an interrupt of the kernel or terminal is not for it
        )
        atexit.register(self._end)
        reader = threading.Thread(
            target=self._read, args=(process,), name="iotsim tap", daemon=True
        )
        reader.start()
        if process.stdin is not None:
            process.stdin.write(json.dumps(settings).encode() + b"\n")
            process.stdin.flush()
        return process, reader

    def _await_subscription(self) -> None:
        state = self._state
        self._until(lambda: bool(state.get("subscribed") or state.get("problem")), READY_S)
        if state.get("subscribed"):
            return
        silent = "the broker does not answer the tap" if self._reader.is_alive() else self.health
        why = state.get("problem") or silent
        self._end()
        todo = "A tap needs a broker that is up." if "nothing listens" in str(why) else ""
        raise ConnectError(self.url, str(why), todo, "listen to")

    def _end(self) -> None:
        atexit.unregister(self._end)
        self._closed = True
        process = self._process
        if self._silent():
            process.kill()  # a goodbye would not be read
        try:
            if process.stdin is not None:
                process.stdin.close()
            process.wait(END_S)
        except (OSError, subprocess.TimeoutExpired):
            process.kill()
            process.wait()
        self._reader.join(END_S)
        if process.stdout is not None:
            process.stdout.close()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        # Our thread: it takes what the worker says until there is nothing more.
        source = process.stdout
        try:
            while source is not None and (line := source.readline()):
                facts = json.loads(line)
                body = self._body(source, facts["answer"]) if "answer" in facts else None
                with self._news:
                    self._heard_s = monotonic()
                    if body is None:
                        self._state.update(facts)
                    else:
                        self._answers[facts["first"]] = body
                    self._news.notify_all()
                self._call_watchers()
            process.wait(END_S)  # so that whoever is told sees the exit status
        except (OSError, ValueError, subprocess.TimeoutExpired):
            pass
        with self._news:
            self._news.notify_all()
        self._call_watchers()

    def _body(self, source: IO[bytes], size: int) -> bytes:
        pieces = []
        while size and (piece := source.read(min(size, PIECE_BYTES))):
            pieces.append(piece)
            size -= len(piece)
            self._heard_s = monotonic()  # no heartbeat comes while it answers
        return b"".join(pieces)

    def _call_watchers(self) -> None:
        for watch in list(self._watchers):
            try:
                watch()
            except RuntimeError:  # its loop is closed
                pass

    def _fetched(self) -> list[Record]:
        with self._fetching:
            while not self._closed and len(self._records) < self._state.get("count", 0):
                self._fetch(len(self._records))
        return self._records

    def _fetch(self, first: int) -> None:
        if self._silent():
            self._until(lambda: not self._silent(), HEARTBEAT_AGAIN_S)
        if self._silent() and self._alive():
            raise ConnectError(self.url, "the tap's process does not answer", verb="listen to")
        command = f"fetch {first} {first + FETCH_RECORDS}\n".encode()
        try:
            if self._process.stdin is not None:
                self._process.stdin.write(command)
                self._process.stdin.flush()
        except OSError:
            raise ConnectError(
                self.url, "the tap's process has ended, its messages with it", verb="listen to"
            ) from None
        self._until(lambda: first in self._answers or self._silent(), FETCH_S)
        if first not in self._answers:
            raise ConnectError(self.url, "the tap's process does not answer", verb="listen to")
        with self._news:
            body = self._answers[first]
            self._answers.clear()  # also what came too late for somebody before
        self._records.extend(unpacked(body))


def _instants(records: Sequence[Record]) -> Any:
    import numpy as np

    sent_us = np.array([record[5] for record in records], dtype=np.int64)
    return np.where(sent_us == 0, np.datetime64("NaT", "us"), sent_us.astype("datetime64[us]"))
