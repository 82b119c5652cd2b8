"""One request to the provisioning service, and what its answer means."""

from __future__ import annotations

import asyncio
import re
import ssl
from base64 import b64decode
from binascii import Error as NotBase64
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import orjson

from iotsim.clock import monotonic
from iotsim.errors import BadValue, shown
from iotsim.gateway.keys import csr_pem, private_key
from iotsim.gateway.provisioning_errors import (
    AnswerLost,
    AnswerNotJson,
    NoAnswerInTime,
    ProvisioningError,
    ServiceUnreachable,
    TlsFailed,
    WrongAnswer,
)
from iotsim.gateway.provisioning_refusals import LATER, USED_UP, refusal
from iotsim.gateway.record import FREQUENCY_MS_MAX, GatewayRecord
from iotsim.transport.addresses import Address, failure_text
from iotsim.transport.discretion import discreet
from iotsim.transport.tls import TLS

if TYPE_CHECKING:
    import aiohttp

ONBOARD_PATH = "/api/provision/onboard"
CONNECT_S = 10.0
TIMEOUT_S = 60.0  # the service itself may take twice 18 s
TIMEOUT_S_MAX = 600.0
BODY_BYTES_MAX = 65_536
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_HEADERS = {
    "Accept": "application/json",
    "Accept-Encoding": "identity",
    "Content-Type": "application/json",
    "User-Agent": "iotsim",
}


@dataclass(frozen=True, slots=True)
class Service:
    """Where gateways are provisioned.

    Attributes
    ----------
    url : str
        Without a query, as it is shown.
    target : str
        What is asked, query included.
    context : ssl.SSLContext or None
    timeout_s : float
        For one request, from connecting to the end of its answer.
    """

    url: str
    target: str = field(repr=False)
    context: ssl.SSLContext | None = field(repr=False)
    timeout_s: float

    @classmethod
    def at(cls, url: str, ca: str | Path | None = None, timeout_s: float = TIMEOUT_S) -> Self:
        """Return the service at a URL; one with a path is used as it is.

        Examples
        --------
        >>> Service.at("http://127.0.0.1:3004").url
        'http://127.0.0.1:3004/api/provision/onboard'
        >>> Service.at("http://127.0.0.1:3004/provision/onboard").url
        'http://127.0.0.1:3004/provision/onboard'
        """
        allowed = "Give http://host:port or https://host:port, with a path if it is not the usual."
        if not isinstance(url, str):
            raise BadValue("url", type(url), "is not text", allowed)
        address = Address.parse(url, 443 if url.lower().startswith("https") else 80, path=True)
        if address.scheme not in ("http", "https"):
            raise BadValue("url", str(address), "is neither http nor https", allowed)
        if address.credentials:
            raise BadValue("url", str(address), "names a user",
                           "Leave it out: the service knows factory ids alone.")
        path = address.path if address.path.strip("/") else ONBOARD_PATH
        context = None
        if address.scheme == "https":
            context = TLS(ca=None if ca is None else str(ca)).context()
            # The platform's certificates have no authority key identifier, which Python 3.13 wants.
            context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        seconds = isinstance(timeout_s, int | float) and not isinstance(timeout_s, bool)
        if not seconds or not 0 < timeout_s <= TIMEOUT_S_MAX:
            raise BadValue("timeout_s", timeout_s, "cannot be used",
                           f"Give seconds above 0 and up to {TIMEOUT_S_MAX:g}.")
        place = f"{address.scheme}://{address.authority}{path}"
        target = f"{place}?{address.query}" if address.query else place
        return cls(place, target, context, float(timeout_s))


@dataclass(frozen=True, slots=True)
class Request:
    """What is sent for one gateway; `body` and `secret` are not shown."""

    name: str
    factory_id: str
    body: bytes = field(repr=False)
    public_key: bytes = field(repr=False)
    secret: str = field(repr=False)

    @classmethod
    @discreet
    def of(cls, record: GatewayRecord) -> Request:
        """Return the request of a record that has a private key; takes some milliseconds."""
        body = {
            "credentials": {"factoryId": record.factory_id, "factoryKey": record.factory_key},
            "csr": csr_pem(record.private_key_pem),
            "sendFrequencyMs": record.send_frequency_ms,
            "firmwareVersion": record.firmware,
        }
        public = private_key(record.private_key_pem).public_key()
        return Request(record.name, record.factory_id, orjson.dumps(body), _spki(public),
                       record.factory_key)


@dataclass(frozen=True, slots=True, repr=False)
class Granted:
    """What the platform made of a gateway."""

    gateway_id: str
    tenant_id: str
    cert_pem: str
    aes_key: bytes


@discreet
def check_record(record: GatewayRecord) -> None:
    """Raise BadValue if the service would refuse this record, or fail; it is not asked then."""
    who = f"gateway {shown(record.name)}: "
    for name, value in (("factory_id", record.factory_id), ("factory_key", record.factory_key),
                        ("firmware", record.firmware)):
        given = value if name != "factory_key" or not value else "…"
        if not isinstance(value, str) or (not value and name != "firmware"):
            raise BadValue(f"{who}{name}", given, "is not a text with something in it",
                           "Give what the platform gave at registration.")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadValue(f"{who}{name}", given, "is no valid text",
                           "Leave out lone surrogates.") from None
    every_ms = record.send_frequency_ms
    whole = isinstance(every_ms, int) and not isinstance(every_ms, bool)
    if not whole or not 1 <= every_ms <= FREQUENCY_MS_MAX:
        raise BadValue(f"{who}send_frequency_ms", every_ms, "is no frequency",
                       f"Give whole milliseconds from 1 to {FREQUENCY_MS_MAX}.")


async def ask(
    service: Service, session: aiohttp.ClientSession, request: Request, *, asked: bool
) -> Granted:
    """Return what the service grants, or raise a ProvisioningError; asks once.

    Parameters
    ----------
    service : Service
    session : aiohttp.ClientSession
    request : Request
    asked : bool
        Whether it may have been asked for this gateway before; for the text.
    """
    begun_s = monotonic()
    status, raw = await _answer(service, session, request)
    if 200 <= status < 300:
        return granted(raw, request, service.url)
    raise refusal(service.url, request, status, raw, asked, monotonic() - begun_s)


async def _answer(
    service: Service, session: aiohttp.ClientSession, request: Request
) -> tuple[int, bytes]:
    import aiohttp

    waits = aiohttp.ClientTimeout(total=None, connect=min(CONNECT_S, 0.9 * service.timeout_s))
    try:
        async with asyncio.timeout(service.timeout_s), session.post(
            service.target, data=request.body, headers=_HEADERS, allow_redirects=False,
            ssl=service.context or True, timeout=waits, raise_for_status=False,
        ) as answer:
            raw = await _body(answer)
            if 300 <= answer.status < 400 and (place := answer.headers.get("Location")):
                raw = place.encode("utf-8", "replace")[:BODY_BYTES_MAX]
            return answer.status, raw
    except Exception as error:  # whatever it is, its frames hold the request
        found = _without_answer(service, request.name, error)
    raise found


async def _body(answer: aiohttp.ClientResponse) -> bytes:
    raw = b""
    while len(raw) <= BODY_BYTES_MAX and (chunk := await answer.content.readany()):
        raw += chunk
    if len(raw) > BODY_BYTES_MAX:
        answer.close()
    return raw[: BODY_BYTES_MAX + 1]


def _without_answer(service: Service, name: str, error: Exception) -> ProvisioningError:
    # The texts of aiohttp hold the URL, query and all.
    import aiohttp

    nothing_sent = "Nothing was sent, and the factory key is as good as before"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        why = failure_text(error.certificate_error)
        return TlsFailed(name, service.url, f"cannot be trusted ({why})",
                         f"Give ca= the file of the authority that signed it. {nothing_sent}")
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return TlsFailed(name, service.url, f"has no TLS for us ({failure_text(error.os_error)})",
                         f"See whether this port speaks https, and since TLS 1.2. {nothing_sent}")
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return ServiceUnreachable(name, service.url, "does not let us connect in time",
                                  f"See host, port and firewall. {nothing_sent}", again=True)
    if isinstance(error, aiohttp.ClientConnectorError):
        unknown = isinstance(error, aiohttp.ClientConnectorDNSError)
        why = "the host name is unknown" if unknown else failure_text(error.os_error)
        return ServiceUnreachable(name, service.url, f"cannot be reached: {why}",
                                  f"See that it runs there. {nothing_sent}", again=not unknown)
    if isinstance(error, TimeoutError):
        why = f"did not answer in {service.timeout_s:g} s"
        return NoAnswerInTime(name, service.url, why, LATER)
    if isinstance(error, aiohttp.InvalidURL):
        return ServiceUnreachable(name, service.url, "is no URL that can be asked",
                                  f"Give another. {nothing_sent}")
    if isinstance(error, aiohttp.ClientResponseError | aiohttp.ClientPayloadError):
        return AnswerLost(name, service.url, "answered something that is not HTTP, or half of it",
                          LATER)
    if isinstance(error, aiohttp.ClientError | OSError):
        return AnswerLost(name, service.url, "ended the connection without an answer", LATER)
    return AnswerLost(name, service.url, f"could not be asked ({type(error).__name__})", LATER)


# -- what a success must hold ---------------------------------------------------------------------


def granted(raw: bytes, request: Request, url: str) -> Granted:
    """Return what a successful answer holds; raises if it is not exactly what it must be."""
    body, why = None, ""
    if len(raw) > BODY_BYTES_MAX:
        why = f"is longer than {BODY_BYTES_MAX:,} bytes"
    else:
        try:
            body = orjson.loads(raw)
        except ValueError:  # whose text holds the body
            why = "is no JSON"
    if why:
        raise AnswerNotJson(request.name, url, f"said yes, but its answer {why}",
                            f"See that this is the provisioning service. If it is, {USED_UP}")
    found = _checked(body, request.public_key)
    if isinstance(found, Granted):
        return found
    body = None
    raise WrongAnswer(request.name, url, f"said yes, but its answer {found}",
                      f"It is not used. Tell the platform's people; {USED_UP}")


def _checked(body: Any, public_key: bytes) -> Granted | str:
    if not isinstance(body, dict):
        return "is no object"
    identity = body.get("identity")
    if not isinstance(identity, dict):
        return "has no identity"
    ids = []
    for name in ("gatewayId", "tenantId"):
        value = identity.get(name)
        if not isinstance(value, str) or not _UUID.fullmatch(value.lower()):
            return f"has a {name} that is no UUID"
        ids.append(value.lower())
    aes_key = _key_bytes(body.get("aesKey"))
    if isinstance(aes_key, str):
        return aes_key
    cert_pem = body.get("certPem")
    if not isinstance(cert_pem, str):
        return "has no certPem"
    trouble = _trouble_with(cert_pem, public_key)
    return trouble or Granted(ids[0], ids[1], cert_pem, aes_key)


def _key_bytes(text: Any) -> bytes | str:
    if not isinstance(text, str):
        return "has no aesKey"
    try:
        key = b64decode(text, validate=True)
    except (NotBase64, ValueError):
        return "has an aesKey that is no base64"
    return key if len(key) == 32 else f"has an aesKey of {len(key)} bytes instead of 32"


def _trouble_with(cert_pem: str, public_key: bytes) -> str:
    from cryptography import x509

    try:
        cert = x509.load_pem_x509_certificate(cert_pem.encode())
        theirs = _spki(cert.public_key())
    except Exception:  # of many kinds, all of which mean this
        return "has a certPem that is no certificate"
    return "" if theirs == public_key else "has a certificate for another key than ours"


def _spki(public: Any) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return bytes(public.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    ))
