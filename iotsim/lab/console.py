"""The platform's people: they send commands, read acks, look at telemetry, take gateways away."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from nats.aio.client import Client

from iotsim.clock import wall_us
from iotsim.errors import BadValue
from iotsim.lab.answers import Answer, AnswerDesk
from iotsim.lab.management import Register
from iotsim.lab.moments import iso_ms
from iotsim.lab.telemetry import TelemetryDesk
from iotsim.units import duration_us

if TYPE_CHECKING:
    import pandas as pd

PUBLISH_S = 10.0
_CAMEL = {
    "command_id": "commandId", "issued_at": "issuedAt", "send_frequency_ms": "sendFrequencyMs",
    "firmware_version": "firmwareVersion", "download_url": "downloadUrl",
}  # fmt: skip
_COLUMNS: dict[str, Any] = {
    "gateway_id": "str", "tenant_id": "str", "factory_id": "str", "model": "str",
    "provisioned": "bool", "send_frequency_ms": "object", "firmware": "str", "status": "object",
    "revoked": "bool", "decommissioned": "bool",
}  # fmt: skip


class Console:
    """Everything that people do with gateways on the platform.

    A gateway is meant by its gateway id, its factory id, or what `register` returned.

    Attributes
    ----------
    rejected : Counter
        Telemetry messages that the platform's services would have dropped, by reason.
    skipped : Counter
        Acks that the management API would have skipped, by reason.
    """

    def __init__(
        self, register: Register, management: Client, consumer: Client,
        reload: Callable[[], Awaitable[None]],
    ) -> None:  # fmt: skip
        self._register, self._reload = register, reload
        self._streams = management.jetstream(timeout=PUBLISH_S)
        self._answers = AnswerDesk(register, management)
        self._telemetry = TelemetryDesk(register, consumer)
        self.rejected, self.skipped = self._telemetry.rejected, self._answers.skipped

    def __repr__(self) -> str:
        return f"<Console: {len(self._register):,} gateways, {self._answers.count:,} acks>"

    async def start(self) -> None:
        """Read acks from now on."""
        await self._answers.start()

    async def stop(self) -> None:
        """Read no more acks."""
        await self._answers.stop()

    def back(self) -> None:
        """Take note that the connections have been made again."""
        self._answers.ask_again()

    # -- commands -----------------------------------------------------------------------------

    async def config(
        self,
        gateway: object,
        *,
        send_frequency_ms: Any = None,
        status: Any = None,
        camel: bool = False,
    ) -> str:
        """Send a config_update, and return the command's id.

        As the management API it lets a frequency of 0 and any status pass.

        Parameters
        ----------
        gateway : str or Registered
        send_frequency_ms, status : optional
            What is left out is absent in the payload.
        camel : bool
            Spelled as in the AsyncAPI document instead of as the real one does.

        Raises
        ------
        BadValue
            If there is neither, or the frequency is negative.
        """
        if send_frequency_ms is None and status is None:
            raise BadValue("send_frequency_ms", None, "and status=None ask for nothing",
                           "Give one of them.")
        if isinstance(send_frequency_ms, (int, float)) and send_frequency_ms < 0:
            raise BadValue("send_frequency_ms", send_frequency_ms, "is negative",
                           "The management API answers 400, too; use send() for such bytes.")
        payload = {"send_frequency_ms": send_frequency_ms, "status": status}
        return await self._command(gateway, "config_update", payload, camel)

    async def firmware(
        self, gateway: object, version: str, url: str | None = None, *, camel: bool = False
    ) -> str:
        """Send a firmware_push, and return the command's id."""
        payload = {"firmware_version": version, "download_url": url}
        return await self._command(gateway, "firmware_push", payload, camel)

    async def send(self, gateway: object, raw: bytes) -> str:
        """Send these bytes as a command; returns the id that is in them, or an empty text."""
        found = self._register.get(gateway)
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError):
            body = None
        body = body if isinstance(body, dict) else {}
        command_id = body.get("command_id") or body.get("commandId") or ""
        command_id = command_id if isinstance(command_id, str) else ""
        if command_id:
            payload = body.get("payload")
            self._answers.issued(command_id, found, payload if isinstance(payload, dict) else {})
        subject = f"command.gw.{found.tenant_id}.{found.gateway_id}"
        await self._streams.publish(subject, bytes(raw))
        return command_id

    async def _command(
        self, gateway: object, kind: str, payload: dict[str, Any], camel: bool
    ) -> str:
        body: dict[str, Any] = {
            "command_id": str(uuid4()),
            "type": kind,
            "payload": {name: value for name, value in payload.items() if value is not None},
            "issued_at": iso_ms(wall_us()),
        }
        if camel:
            body["payload"] = {_CAMEL.get(name, name): value
                               for name, value in body["payload"].items()}
            body = {_CAMEL.get(name, name): value for name, value in body.items()}
        return await self.send(gateway, json.dumps(body, ensure_ascii=False).encode())

    # -- answers ------------------------------------------------------------------------------

    def acks(self) -> pd.DataFrame:
        """Return every ack that was read, one row each, in the order of their arrival.

        Returns
        -------
        DataFrame
            command_id, gateway_id, status, message, issued_at, answered_at, latency. The times
            are of this machine; issued_at is missing for a command that nobody here has sent.
        """
        return self._answers.frame()

    def last_acks(self, count: int) -> list[Answer]:
        """Return the last acks that were read, the newest first."""
        return self._answers.last(count)

    async def answer(self, command_id: str, timeout: Any = "10s") -> Answer:  # noqa: ASYNC109
        """Wait for the first ack of a command.

        Raises
        ------
        NoAnswer
            If there is none in time.
        """
        return await self._answers.answer(
            command_id, duration_us(timeout, "timeout") / 1_000_000
        )

    # -- gateways -----------------------------------------------------------------------------

    def gateways(self) -> pd.DataFrame:
        """Return what the platform knows of each gateway, one row each; no secrets.

        Returns
        -------
        DataFrame
            gateway_id, tenant_id, factory_id, model, provisioned, send_frequency_ms, firmware,
            status, revoked, decommissioned.
        """
        return gateways_of(self._register)

    def keys(self, gateway: object) -> list[dict[str, Any]]:
        """Return the keys of a gateway as the management API's `GET /keys?id=` does."""
        return self._telemetry.keys(self._register.get(gateway))

    async def revoke(self, gateway: object) -> None:
        """Take a gateway's own certificate its rights: it is cut off and not let in again."""
        self._register.get(gateway).revoked = True
        await self._reload()

    async def decommission(self, gateway: object) -> None:
        """Tell the simulators that a gateway is no more; its keys stay, to read what it sent.

        The gateway still may connect: it has to hear of it.
        """
        found = self._register.get(gateway)
        found.decommissioned = True
        body = {"gatewayId": found.gateway_id, "timestamp": iso_ms(wall_us())}
        subject = f"gateway.decommissioned.{found.tenant_id}.{found.gateway_id}"
        await self._streams.publish(subject, json.dumps(body).encode())

    async def telemetry(self, run: str | None = None) -> pd.DataFrame:
        """Read what has come into the TELEMETRY stream, and return all of it decrypted.

        What the platform's services would have dropped is counted in `rejected` instead.

        Parameters
        ----------
        run : str, optional
            The id of a run (`run.id`): what it sent alone. Each run counts its readings anew.

        Returns
        -------
        DataFrame
            time, gateway_id, tenant_id, sensor_id, sensor_type, value, unit, key_version,
            message_id; device_id and seq, to join it with `run.frame()`: they are in the message
            ids (a message without one has no seq).
        """
        found = await self._telemetry.frame()
        if run is None:
            return found
        mine = found["message_id"].str.startswith(f"{run}/")
        return found[mine].reset_index(drop=True)


def gateways_of(register: Register) -> pd.DataFrame:
    """Return a register as a frame, one row for each gateway; no secrets."""
    import pandas as pd

    from iotsim.lab.columns import text_column

    rows = register.all()
    made: dict[str, Any] = {}
    for name, kind in _COLUMNS.items():
        values = [getattr(row, name) for row in rows]
        made[name] = text_column(values) if kind == "str" else pd.Series(values, dtype=kind)
    return pd.DataFrame(made)
