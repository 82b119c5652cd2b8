"""The process of a tap: a source on a thread, a bounded store, a heartbeat.

Settings come as one JSON line on the standard input (so that no password stands in a command
line), then commands: `fetch <first> <last>`. On the standard output go JSON lines: the state
whenever it changes and at least twice a second, and before each answer its size. The process
ends when its standard input does, so it never outlives its parent.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from typing import Any, BinaryIO, cast

from iotsim.registry import TAPS, resolve
from iotsim.tapping.store import Source, Store
from iotsim.transport.addresses import failure_text

STATE_S = 0.02
HEARTBEAT_S = 0.5
LEAVE_S = 0.5


class Worker:
    """Answers the parent, and says how its source is.

    Parameters
    ----------
    settings : dict
        With `scheme`, `capacity`, and what the protocol needs.
    out : binary file
    """

    def __init__(self, settings: dict[str, Any], out: BinaryIO) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._store = Store(int(settings["capacity"]))
        module = resolve(TAPS, settings["scheme"], "tap")
        self._source = cast(Source, module.Source(settings, self._store))
        self._thread = threading.Thread(target=self._run, name="iotsim tap source", daemon=True)

    def serve(self, commands: BinaryIO) -> None:
        """Work until the parent closes our standard input."""
        self._thread.start()
        threading.Thread(target=self._report, name="iotsim tap state", daemon=True).start()
        for line in commands:
            _, first, last = line.split()
            body = self._store.packed(int(first), int(last))
            self._say({"answer": len(body), "first": int(first)}, body)
        self._source.close()
        self._thread.join(LEAVE_S)

    def _run(self) -> None:
        try:
            self._source.run()
        except Exception as error:  # whatever it was, the parent must hear of it
            self._store.fail(failure_text(error))

    def _report(self) -> None:
        pace = threading.Event()
        while True:
            self._store.changed.wait(HEARTBEAT_S)
            self._store.changed.clear()
            if not self._thread.is_alive() and not self._store.state["problem"]:
                self._store.fail("its source ended")
            self._say(self._store.state)
            pace.wait(STATE_S)

    def _say(self, facts: dict[str, Any], body: bytes = b"") -> None:
        with self._lock:
            self._out.write(json.dumps(facts).encode() + b"\n" + body)
            self._out.flush()


def main() -> None:
    """Serve one tap."""
    settings = json.loads(sys.stdin.buffer.readline() or b"null")
    if settings is None:
        return
    if settings["scheme"].startswith("nats"):
        # nats-py would import it for the sake of websockets, for half of its time to begin.
        sys.modules["aiohttp"] = cast(Any, None)
    try:
        Worker(settings, sys.stdout.buffer).serve(sys.stdin.buffer)
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    finally:
        os._exit(0)  # threads of a client's and a parent that is gone must not hold us


if __name__ == "__main__":
    main()
