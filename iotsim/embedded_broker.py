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


def _patient_broker() -> type:
    from amqtt.broker import Broker

    class PatientBroker(Broker):  # type: ignore[misc]
        """Passes on all that it has acknowledged before it lets a client go; amqtt forgets it."""

        async def _client_message_loop(self, session: Any, handler: Any) -> None:
            take = handler.mqtt_deliver_next_message

            async def taking() -> Any:
                message = await take()
                handler.taken = [message]
                return message

            handler.taken, handler.mqtt_deliver_next_message = None, taking
            await super()._client_message_loop(session, handler)

        async def _handle_message_delivery(self, session: Any, handler: Any, message: Any) -> Any:
            if handler.taken is None:  # passed on already, when the client left
                return True
            handler.taken = None
            return await super()._handle_message_delivery(session, handler, message)

        async def _handle_disconnect(self, session: Any, handler: Any, waiter: Any) -> None:
            waiting = session.delivered_message_queue
            while handler.taken is not None or not waiting.empty():
                if handler.taken is None:
                    handler.taken = [waiting.get_nowait()]
                message = asyncio.get_running_loop().create_future()
                message.set_result(handler.taken[0])
                if not await self._handle_message_delivery(session, handler, message):
                    break
            await super()._handle_disconnect(session, handler, waiter)

    return PatientBroker


async def serve(port: int) -> None:
    """Run the broker until the process ends."""
    settings: dict[str, Any] = {
        "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{port}"}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    await _patient_broker()(settings).start()
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
