"""The management API's part: the register of gateways, and what it answers over NATS."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from uuid import uuid4

from nats.aio.client import Client
from nats.aio.msg import Msg

from iotsim.errors import BadValue, UnknownName
from iotsim.logs import say

Failure: TypeAlias = Literal["internal", "silent", "shape"]

GATEWAYS_MAX = 1_000_000
_KNOWN_MAX = 5
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
_STATES = ("online", "offline")


@dataclass(slots=True, repr=False)
class Registered:
    """A gateway as the platform knows it.

    Attributes
    ----------
    gateway_id, tenant_id, factory_id, model : str
    provisioned : bool
    aes_key : bytes
        A secret; empty before it is provisioned.
    key_version, send_frequency_ms : int
    firmware : str
    status : str
        provisioning, online, offline, paused, or whatever a command asked for.
    revoked : bool
        Its certificate opens nothing any more.
    decommissioned : bool
    """

    gateway_id: str
    tenant_id: str
    factory_id: str
    model: str = ""
    provisioned: bool = False
    aes_key: bytes = b""
    key_version: int = 0
    send_frequency_ms: int = 0
    firmware: str = ""
    status: str = "provisioning"
    revoked: bool = False
    decommissioned: bool = False
    salt: bytes = b""
    factory_hash: bytes = b""

    def __repr__(self) -> str:
        return f"<gateway {self.gateway_id} of tenant {self.tenant_id}: {self.status}>"


@dataclass(slots=True)
class Register:
    """All gateways of the platform, by id and by factory id.

    Attributes
    ----------
    tenant_id : str
        Whose gateways are that name nobody.
    names : dict of name to factory id
        What gateways are called where they were started.
    """

    tenant_id: str = field(default_factory=lambda: str(uuid4()))
    names: dict[str, str] = field(default_factory=dict, repr=False)
    _by_id: dict[str, Registered] = field(default_factory=dict, repr=False)
    _by_factory: dict[str, Registered] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self._by_id)

    def all(self) -> list[Registered]:
        """Return them in the order in which they were registered."""
        return list(self._by_id.values())

    def add(
        self, pairs: Iterable[tuple[str, str]], *, tenant_id: str | None, model: str
    ) -> list[Registered]:
        """Register gateways by factory id and key; all of them or none.

        Raises
        ------
        BadValue
            If an id is taken or given twice, or one of the two is no text.
        """
        made: dict[str, Registered] = {}
        tenant = self.tenant_id if tenant_id is None else check_tenant(tenant_id)
        try:
            listed = [(factory_id, factory_key) for factory_id, factory_key in pairs]
        except (TypeError, ValueError):
            raise BadValue("gateways", type(pairs), "are no pairs of factory id and key",
                           "Give a dict, or a list of pairs.") from None
        for factory_id, factory_key in listed:
            if not isinstance(factory_id, str) or not factory_id:
                raise BadValue("factory_id", factory_id, "is no text", "Give a str.")
            if not isinstance(factory_key, str) or not factory_key:
                why = "is no text" if factory_key else "is empty"
                raise BadValue("factory_key", type(factory_key) if factory_key else "", why,
                               "Give text, such as Gateway('gw-{n}', factory_key='works once').")
            if factory_id in made or factory_id in self._by_factory:
                raise BadValue("factory_id", factory_id, "is registered already",
                               "Give another one.")
            salt = secrets.token_bytes(16)
            made[factory_id] = Registered(
                str(uuid4()), tenant, factory_id, model=model, salt=salt,
                factory_hash=_hashed(factory_key, salt),
            )  # fmt: skip
        if len(self) + len(made) > GATEWAYS_MAX:
            raise BadValue("gateways", len(self) + len(made), "are too many",
                           f"At most {GATEWAYS_MAX:,}.")
        self._by_factory |= made
        self._by_id |= {one.gateway_id: one for one in made.values()}
        return list(made.values())

    def find(self, name: str) -> Registered | None:
        """Return a gateway by its id, its factory id, or the name it was started by, or None."""
        return self._by_id.get(name) or self._by_factory.get(name) or self._by_factory.get(
            self.names.get(name, ""))

    def get(self, gateway: object) -> Registered:
        """Return a gateway by its id, its factory id, its name, or what `register` returned.

        Raises
        ------
        UnknownName
            If there is none.
        """
        name = getattr(gateway, "gateway_id", gateway)
        found = self.find(name) if isinstance(name, str) else None
        if found is None:
            some = [*self.names, *(one.factory_id for one in self.all())][:_KNOWN_MAX]
            raise UnknownName("gateway", name, some)
        return found


def check_tenant(tenant_id: Any) -> str:
    """Return a tenant's id; it becomes part of subjects, and of NATS' configuration."""
    if not isinstance(tenant_id, str) or not _TENANT.fullmatch(tenant_id):
        raise BadValue("tenant_id", tenant_id, "is no id", "Give a UUID as text, or none.")
    return tenant_id


class Management:
    """What the other services ask about gateways.

    Attributes
    ----------
    fail : {"internal", "silent", "shape"} or None
        How it answers the provisioning service instead of rightly: with the error INTERNAL, not
        at all, or with something else.
    fail_at : {"validate", "complete"} or None
        Which of the two calls fails; None: both.
    asked : dict of str to int
        How often each subject was asked.
    """

    def __init__(self, register: Register) -> None:
        self.fail: Failure | None = None
        self.fail_at: Literal["validate", "complete"] | None = None
        self.asked: dict[str, int] = {}
        self._register = register
        self._answers = {
            "internal.mgmt.factory.validate": self._validate,
            "internal.mgmt.provisioning.complete": self._complete,
            "internal.mgmt.gateway.get-status": self._get_status,
            "internal.mgmt.gateway.update-status": self._update_status,
        }

    async def listen(self, connection: Client) -> None:
        """Answer over a connection of the management API."""
        for subject in self._answers:
            await connection.subscribe(subject, cb=self._asked)

    async def _asked(self, message: Msg) -> None:
        self.asked[message.subject] = self.asked.get(message.subject, 0) + 1
        call = message.subject.rpartition(".")[2]
        if call in ("validate", "complete") and self.fail and self.fail_at in (None, call):
            if self.fail == "silent":
                return
            wrong: dict[str, Any] = {"success": False} if call == "complete" else {}
            reply = {**wrong, "error": "INTERNAL"} if self.fail == "internal" else {"hello": 1}
        else:
            request = _object(message.data)
            reply = self._answers[message.subject](request)
        await message.respond(json.dumps(reply).encode())

    def _validate(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found = self._register.find(str(request.get("factory_id")))
        if found is None or found.factory_id != request.get("factory_id"):
            return {"error": "INVALID"}
        if found.provisioned:
            return {"error": "ALREADY_PROVISIONED"}
        given = _hashed(str(request.get("factory_key")), found.salt)
        if found.decommissioned or not hmac.compare_digest(given, found.factory_hash):
            return {"error": "INVALID"}
        return {"gateway_id": found.gateway_id, "tenant_id": found.tenant_id}

    def _complete(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found = self._register.find(str(request.get("gateway_id")))
        if found is None:
            return {"success": False, "error": "INVALID"}
        if found.provisioned:
            return {"success": False, "error": "ALREADY_PROVISIONED"}
        try:
            key = base64.b64decode(request["key_material"], validate=True)
            version, every_ms = int(request["key_version"]), int(request["send_frequency_ms"])
        except (KeyError, TypeError, ValueError, binascii.Error):
            return {"success": False, "error": "INTERNAL"}
        found.aes_key, found.key_version, found.send_frequency_ms = key, version, every_ms
        found.firmware = str(request.get("firmware_version") or "")
        found.provisioned, found.status, found.factory_hash = True, "online", b""
        say(20, "lab", f"gateway {found.gateway_id} is provisioned", {"gateway": found.gateway_id})
        return {"success": True}

    def _get_status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found = self._register.find(str(request.get("gateway_id")))
        state = found.status if found is not None else "offline"
        return {"gateway_id": request.get("gateway_id"), "state": state}

    def _update_status(self, request: Mapping[str, Any]) -> dict[str, Any]:
        found = self._register.find(str(request.get("gateway_id")))
        if found is None or request.get("status") not in _STATES:
            return {"success": False, "error": "INVALID"}
        found.status = request["status"]
        return {"success": True}


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _hashed(key: str, salt: bytes) -> bytes:
    # The keys of a lab live as long as the lab: a slow hash would only make a thousand slow.
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), salt=salt).digest()
