"""MQTT 3.1.1 through paho, which runs in a thread of its own; its callbacks enter our loop.

paho neither reconnects nor replays here: each opening is a new client with a clean session, and
the lane sends again what had no verdict. The broker of MQTT 3.1.1 cannot refuse a message; what
it forbids it acknowledges or drops the connection for. With QoS 0 the verdict is paho's, once it
has written a message: what waits in paho is bounded by the window, as it is with QoS 1 and 2.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, cast

from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion

from iotsim.errors import ConnectError
from iotsim.publishers.base import Item, Loss, Verdicts
from iotsim.publishers.mqtt import MqttPublisher
from iotsim.publishers.sessions import LastWill
from iotsim.transport.addresses import failure_text

WINDOW = 20  # paho looks through all of its outgoing messages at each acknowledgement
WINDOW_UNACKNOWLEDGED = 512  # QoS 0: paho writes these one after the other and looks for none
CONNECT_S = 5.0
CONNACK_S = 4.0
CLOSE_S = 0.4
LEAVE_S = 1.0


class _Client(paho.Client):
    # paho leaves the socket open when the TLS handshake fails.
    def _ssl_wrap_socket(self, tcp_sock: Any) -> Any:
        wrapped: list[Any] = [tcp_sock]
        context = cast("ssl.SSLContext", self._ssl_context)
        try:
            secure = context.wrap_socket(
                tcp_sock, server_hostname=self._host, do_handshake_on_connect=False
            )
            wrapped.append(secure)
            secure.settimeout(CONNECT_S)
            secure.do_handshake()
        except Exception:
            wrapped[-1].close()
            raise
        return secure


class Mqtt311Link:
    """One MQTT 3.1.1 connection of a lane (a `Link`)."""

    def __init__(
        self,
        publisher: MqttPublisher,
        client_id: str,
        verdicts: Verdicts,
        will: LastWill | None = None,
    ) -> None:
        self._publisher = publisher
        self._will = will
        self._client_id = client_id
        self._verdicts = verdicts
        self._client: paho.Client | None = None
        self._connack: asyncio.Future[str] | None = None
        self._ended = asyncio.Event()  # whether the thread of the last client has
        self._ended.set()
        self._tokens: dict[int, int] = {}  # paho's message id → token

    async def open(self) -> int:
        """Connect, and return how many messages may be in flight."""
        publisher = self._publisher
        self.drop()
        await self._left()
        loop = asyncio.get_running_loop()
        self._connack = loop.create_future()
        self._tokens.clear()
        client = self._client = self._made(loop)
        ended = self._ended = asyncio.Event()
        threading.Thread(
            target=self._work,
            args=(client, loop, ended),
            name=f"iotsim {self._client_id}",
            daemon=True,
        ).start()
        try:
            async with asyncio.timeout(CONNECT_S + CONNACK_S):
                problem = await self._connack
        except TimeoutError:
            problem = "the broker does not answer"
        except BaseException:
            self.drop()
            raise
        if client is not self._client:  # it has ended while this was woken
            problem = problem or "the broker closed the connection at once"
        if problem:
            self.drop()
            who = f"{self._client_id}: " if publisher.per_device else ""
            raise ConnectError(publisher.url, who + problem)
        return WINDOW if publisher.qos else WINDOW_UNACKNOWLEDGED

    async def _left(self) -> None:
        # A client that still connects would take the session over from the next one.
        try:
            async with asyncio.timeout(LEAVE_S):
                await self._ended.wait()
        except TimeoutError:
            why = "the attempt before has not ended yet"
            raise ConnectError(self._publisher.url, why) from None

    def _made(self, loop: asyncio.AbstractEventLoop) -> paho.Client:
        publisher = self._publisher
        client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._client_id,
            clean_session=True,
            protocol=paho.MQTTv311,
            reconnect_on_failure=False,
        )
        client.suppress_exceptions = True
        client.connect_timeout = CONNECT_S
        client.max_inflight_messages_set(WINDOW)
        client.max_queued_messages_set(WINDOW)
        if publisher.credentials:
            client.username_pw_set(
                publisher.credentials.username, publisher.credentials.password or None
            )
        will = self._will
        if will is not None:
            client.will_set(will.topic, will.payload.encode(), publisher.qos, will.retain)
        context = publisher.context
        if context is not None:
            client.tls_set_context(context)

        def enter(callback: Callable[..., None], *args: Any) -> None:
            try:
                loop.call_soon_threadsafe(callback, client, *args)
            except RuntimeError:  # the loop is closed: nobody is left to tell
                client.disconnect()

        client.on_connect = lambda _c, _u, _f, code, _p: enter(self._connected, code)
        done: deque[int] = deque()

        def published(_client: Any, _data: Any, mid: int, _code: Any, _properties: Any) -> None:
            # One call into our loop takes all that are there by then, in order.
            done.append(mid)
            if len(done) == 1:
                enter(self._published, done)

        client.on_publish = published
        client.on_disconnect = lambda _c, _u, _f, code, _p: enter(
            self._gone, f"the broker closed: {code}"
        )
        return client

    def _work(
        self, client: paho.Client, loop: asyncio.AbstractEventLoop, ended: asyncio.Event
    ) -> None:
        # A thread of ours: it connects, waits for paho's network thread, and always says so.
        address = self._publisher.address
        why = "paho's thread ended"
        try:
            client.connect(address.host, address.port, self._publisher.keepalive)
            if client is self._client:
                client.loop_start()
                thread = client._thread
                if thread is not None:
                    thread.join()
            else:  # given up while it connected
                _cut(client)
        except Exception as error:
            why = failure_text(error)
        finally:
            client._reset_sockets()  # now, and not when the garbage is collected: files are few
            try:
                loop.call_soon_threadsafe(self._over, client, ended, why)
            except RuntimeError:
                pass

    # -- on our loop --------------------------------------------------------------------------

    def _connected(self, client: paho.Client, code: Any) -> None:
        if client is self._client and self._connack is not None and not self._connack.done():
            refused = f"the broker refused us: {code}" if code.is_failure else ""
            self._connack.set_result(refused)

    def _published(self, client: paho.Client, done: deque[int]) -> None:
        mids: list[int] = []
        while done:  # until it is empty, or paho's thread would not call again
            mids.append(done.popleft())
        if client is self._client:
            found = [self._tokens.pop(mid, -1) for mid in mids]
            self._verdicts.acknowledged([token for token in found if token >= 0])

    def _gone(self, client: paho.Client, why: str) -> None:
        if client is not self._client:
            return
        opening = self._connack is not None and not self._connack.done()
        if opening and self._connack is not None:
            self._connack.set_result(why)
        self.drop()
        if not opening:
            self._verdicts.lost(Loss(why, "cut"))

    def _over(self, client: paho.Client, ended: asyncio.Event, why: str) -> None:
        ended.set()
        self._gone(client, why)

    def send(self, tokens: Sequence[int], items: Sequence[Item]) -> bool:
        """Hand messages to paho; False if there is no connection."""
        client, publisher = self._client, self._publisher
        if client is None:
            return False
        for token, (topic, payload, _, _) in zip(tokens, items, strict=True):
            try:
                if "\0" in topic:
                    raise ValueError("NUL in the topic")
                info = client.publish(topic, payload, publisher.qos, publisher.retain)
            except (ValueError, TypeError) as error:
                self._verdicts.refused([token], str(error))
                continue
            if info.rc in (paho.MQTT_ERR_SUCCESS, paho.MQTT_ERR_NO_CONN):
                # Its verdict comes through our loop, so never before this. Without a connection
                # none comes but the end of the link.
                self._tokens[info.mid] = token
            else:
                self._verdicts.refused([token], paho.error_string(info.rc), retry=True)
        return True

    def drop(self) -> None:
        """End the connection at once; no verdict comes after it."""
        client, self._client = self._client, None
        if client is not None:
            _cut(client)

    async def close(self) -> None:
        """Send DISCONNECT and let paho's thread end, within a deadline."""
        client, self._client = self._client, None
        if client is None:
            return
        client.disconnect()
        try:
            async with asyncio.timeout(CLOSE_S):
                await self._ended.wait()
        except TimeoutError:
            _cut(client)


def _cut(client: paho.Client) -> None:
    # Without its socket paho's network thread ends; stopping it properly could wait for ever.
    connection = cast("socket.socket | None", client.socket())
    if connection is not None:
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:  # it was closed already
            pass
