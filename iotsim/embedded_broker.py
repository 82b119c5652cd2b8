"""The embedded broker's process: amqtt on one loopback port, until standard input ends.

It speaks MQTT 3.1.1 only and carries a few hundred messages a second; for machines without
mosquitto.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from typing import Any


async def serve(port: int) -> None:
    """Run the broker until the process ends."""
    from amqtt.broker import Broker

    settings: dict[str, Any] = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    await Broker(settings).start()
    await asyncio.Event().wait()


def _end_with_parent() -> None:
    while sys.stdin.buffer.read(1024):
        pass
    os._exit(0)


def main() -> None:
    """Serve on the port that the command line names."""
    logging.disable(logging.WARNING)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asyncio.run(serve(int(sys.argv[1])))


if __name__ == "__main__":
    main()
