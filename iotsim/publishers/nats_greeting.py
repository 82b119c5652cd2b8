"""CONNECT: who we are to a NATS server, with a signature of its nonce where it asks for one."""

from __future__ import annotations

import base64
import re
from typing import Any

import orjson

from iotsim.errors import BadValue, MissingExtra
from iotsim.transport.credentials import Credentials

CREDENTIALS = ("username", "password", "token", "creds")
_BLOCK = re.compile(r"-{3,}BEGIN [^-\r\n]*-{3,}\s*(\S+)\s*-{3,}END")
_SEED = re.compile(r"S[A-Z2-7]{40,}")
_ALLOWED = "Give the path of a .creds file (a user's JWT and seed), or of one with a seed alone."


def greeting(name: str, who: Credentials, info: dict[str, Any], secure: bool) -> bytes:
    """Return the CONNECT line that answers a server's INFO.

    Raises
    ------
    BadValue
        If the file of credentials cannot be used.
    MissingExtra
        If what signs is not installed.
    """
    said: dict[str, Any] = {
        "verbose": False, "pedantic": False, "tls_required": secure, "name": name,
        "lang": "python", "version": "iotsim", "protocol": 1, "echo": False, "headers": True,
        "no_responders": True,
    }  # fmt: skip
    if who.username:
        said["user"] = who.username
    if who.password:
        said["pass"] = who.password
    if who.token:
        said["auth_token"] = who.token
    if who.creds:
        said |= _signed(who.creds, str(info.get("nonce", "")))
    return b"CONNECT " + orjson.dumps(said) + b"\r\n"


def read_creds(path: str) -> tuple[str, str]:
    """Return a user's JWT, empty if the file has none, and the seed; raises BadValue."""
    try:
        with open(path, encoding="ascii") as file:
            body = file.read(65_536)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not text"
        raise BadValue("creds", path, f"cannot be read ({why})", _ALLOWED) from None
    blocks = _BLOCK.findall(body) or body.split()[:1]
    seeds = [block for block in blocks if _SEED.fullmatch(block)]
    tokens = [block for block in blocks if block.count(".") == 2]
    if not seeds:
        raise BadValue("creds", path, "holds no seed", _ALLOWED)
    return (tokens[0] if tokens else ""), seeds[0]


def _signed(path: str, nonce: str) -> dict[str, str]:
    token, seed = read_creds(path)
    try:
        import nkeys
    except ModuleNotFoundError:
        raise MissingExtra("creds= of NATS", "nkeys", "nats") from None
    try:
        pair = nkeys.from_seed(bytearray(seed.encode()))
        signature = base64.urlsafe_b64encode(pair.sign(nonce.encode())).rstrip(b"=").decode()
        public = bytes(pair.public_key).decode()
    except Exception:  # its texts may hold the seed
        raise BadValue("creds", path, "holds a seed that cannot sign", _ALLOWED) from None
    who = {"jwt": token} if token else {"nkey": public}
    return {**who, "sig": signature}
