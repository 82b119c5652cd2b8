"""The provisioning service: statuses and bodies as measured on the real one."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import secrets
from collections.abc import Mapping
from typing import Any

import nats
from aiohttp import web
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from nats.aio.client import Client

from iotsim.clock import wall_us
from iotsim.lab.authority import Authority
from iotsim.lab.moments import iso_ms

PATHS = ("/provision/onboard", "/api/provision/onboard")  # the service itself, and behind nginx
ATTEMPTS = 3
BODY_BYTES_MAX = 100 * 1024
NOBODY = "00000000-0000-0000-0000-000000000000"
_HEAD = "-----BEGIN CERTIFICATE REQUEST-----"


class Refused(Exception):
    """What is answered instead of a certificate."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(status)
        self.status, self.body = status, body


class ProvisioningService:
    """Answers onboarding requests over HTTP on loopback.

    Parameters
    ----------
    authority : Authority
    connection : Client
        Its own, to NATS.
    ttl_s : float
        How long certificates are valid.
    timeout_s : float
        For how long it waits for the management API, each of three times.
    backoff_s : float
        How long it waits before the second attempt; twice as long before the third.
    """

    def __init__(
        self, authority: Authority, connection: Client, *, ttl_s: float, timeout_s: float,
        backoff_s: float,
    ) -> None:  # fmt: skip
        self.url = ""
        self.ttl_s, self.timeout_s, self.backoff_s = ttl_s, timeout_s, backoff_s
        self._authority, self._connection = authority, connection
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen on a free port of loopback."""
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        for path in PATHS:
            app.router.add_post(path, self._onboard)
        app.router.add_route("*", "/{rest:.*}", _nothing_here)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Listen no longer; what is being answered is given half a second."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _onboard(self, request: web.Request) -> web.Response:
        try:
            body = await _body_of(request)
            answer = await self._onboarded(body, request.remote or "")
        except Refused as refused:
            return web.json_response(dict(refused.body), status=refused.status)
        return web.json_response(answer, status=201)

    async def _onboarded(self, body: Mapping[str, Any], source: str) -> dict[str, Any]:
        if troubles := list(_troubles(body)):
            raise Refused(400, _nest(troubles))
        if not body["csr"].startswith(_HEAD):
            raise Refused(400, {"error": "MALFORMED_CSR"})
        credentials, every_ms = body.get("credentials"), int(body["sendFrequencyMs"])
        if credentials is None:
            raise _internal()
        factory_id, factory_key = credentials["factoryId"], credentials["factoryKey"]
        who = await self._validated(factory_id, factory_key)
        key = _public_key(body["csr"])
        if "firmwareVersion" in body and body["firmwareVersion"] is None:
            raise _internal()
        cert = self._authority.sign_gateway(key, who["gateway_id"], who["tenant_id"], self.ttl_s)
        aes_key = base64.b64encode(secrets.token_bytes(32)).decode("ascii")
        await self._completed(who["gateway_id"], aes_key, body)
        await self._audited(factory_id, source, who)
        return {
            "certPem": cert,
            "aesKey": aes_key,
            "identity": {"gatewayId": who["gateway_id"], "tenantId": who["tenant_id"]},
            "sendFrequencyMs": every_ms,
        }

    async def _validated(self, factory_id: str, factory_key: str) -> dict[str, str]:
        asked = {"factory_id": factory_id, "factory_key": factory_key}
        reply = await self._asked("internal.mgmt.factory.validate", asked)
        if (error := reply.get("error")) is not None:
            raise {
                "INVALID": Refused(401, {"error": "INVALID_CREDENTIALS"}),
                "ALREADY_PROVISIONED": Refused(409, {"error": "ALREADY_PROVISIONED"}),
            }.get(str(error), _unavailable())
        who = {name: reply.get(name) for name in ("gateway_id", "tenant_id")}
        if not all(isinstance(value, str) and value for value in who.values()):
            raise _unavailable()
        return {name: str(value) for name, value in who.items()}

    async def _completed(self, gateway_id: str, aes_key: str, body: Mapping[str, Any]) -> None:
        asked = {"gateway_id": gateway_id, "key_material": aes_key, "key_version": 1,
                 "send_frequency_ms": int(body["sendFrequencyMs"])}
        if "firmwareVersion" in body:
            asked["firmware_version"] = body["firmwareVersion"]
        reply = await self._asked("internal.mgmt.provisioning.complete", asked)
        if reply.get("success") is not True:
            if reply.get("error") == "ALREADY_PROVISIONED":  # somebody was faster
                raise Refused(409, {"error": "ALREADY_PROVISIONED"})
            raise _unavailable()

    async def _asked(self, subject: str, request: Mapping[str, Any]) -> dict[str, Any]:
        payload = json.dumps(request).encode()
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(self.backoff_s * attempt)
            try:
                async with asyncio.timeout(self.timeout_s + 1):
                    reply = await self._connection.request(subject, payload, self.timeout_s)
            except (TimeoutError, OSError, nats.errors.Error):
                continue
            try:
                found = json.loads(reply.data)
            except ValueError:
                break
            if isinstance(found, dict):
                return found
            break
        raise _unavailable()

    async def _audited(self, factory_id: str, source: str, who: Mapping[str, str]) -> None:
        event = {
            "userId": NOBODY,
            "action": "PROVISIONING_ONBOARD_SUCCESS",
            "resource": who["gateway_id"],
            "details": {"factoryId": factory_id, "sourceIp": source, "outcome": "success",
                        "gatewayId": who["gateway_id"], "tenantId": who["tenant_id"]},
            "timestamp": iso_ms(wall_us()),
        }
        try:
            await self._connection.publish(f"log.audit.{who['tenant_id']}",
                                           json.dumps(event).encode())
        except (OSError, nats.errors.Error):  # an audit that fails fails nobody else
            pass


async def _body_of(request: web.Request) -> Mapping[str, Any]:
    # The real one hands bodies of another content type on as an empty object.
    if request.content_type != "application/json":
        return {}
    try:
        raw = await request.read()
    except web.HTTPRequestEntityTooLarge:
        text = "request entity too large"
        body = {"message": text, "error": "Payload Too Large", "statusCode": 413}
        raise Refused(413, body) from None
    if not raw:
        return {}
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Refused(400, _nest("the body is no JSON")) from None
    if not isinstance(body, dict):
        raise Refused(400, _nest(["the body must be an object"]))
    return body


def _troubles(body: Mapping[str, Any]) -> Any:
    # What the real one's ValidationPipe complains about, and in its words.
    credentials = body.get("credentials")
    if isinstance(credentials, dict):
        for name in ("factoryId", "factoryKey"):
            yield from _text_troubles(f"credentials.{name}", credentials.get(name))
    elif credentials is not None:
        yield "nested property credentials must be either object or array"
    yield from _text_troubles("csr", body.get("csr"))
    every_ms = body.get("sendFrequencyMs")
    if not isinstance(every_ms, (int, float)) or isinstance(every_ms, bool):
        every_ms = math.nan
    if not every_ms > 0:
        yield "sendFrequencyMs must be a positive number"
    if every_ms != every_ms // 1:
        yield "sendFrequencyMs must be an integer number"
    firmware = body.get("firmwareVersion")
    if firmware is not None and not isinstance(firmware, str):
        yield "firmwareVersion must be a string"


def _text_troubles(name: str, value: Any) -> Any:
    if value is None or value == "":
        yield f"{name} should not be empty"
    if not isinstance(value, str):
        yield f"{name} must be a string"


def _public_key(csr: str) -> rsa.RSAPublicKey:
    try:
        asked = x509.load_pem_x509_csr(csr.encode("utf-8", "replace"))
        key = asked.public_key()
        whole = not isinstance(key, rsa.RSAPublicKey) or asked.is_signature_valid
    except (ValueError, UnsupportedAlgorithm):
        if not _has_pem_tail(csr):
            raise Refused(400, {"error": "MALFORMED_CSR"}) from None
        raise _internal() from None
    if not isinstance(key, rsa.RSAPublicKey):
        raise Refused(400, {"error": "MALFORMED_CSR"})
    if not whole:
        raise _internal()
    return key


def _has_pem_tail(csr: str) -> bool:
    return "-----END CERTIFICATE REQUEST-----" in csr


def _nest(message: list[str] | str) -> dict[str, Any]:
    return {"message": message, "error": "Bad Request", "statusCode": 400}


def _internal() -> Refused:
    return Refused(500, {"error": "INTERNAL_ERROR"})


def _unavailable() -> Refused:
    return Refused(503, {"error": "SERVICE_UNAVAILABLE"})


async def _nothing_here(request: web.Request) -> web.Response:
    text = f"Cannot {request.method} {request.path}"
    body = {"message": text, "error": "Not Found", "statusCode": 404}
    return web.json_response(body, status=404)
