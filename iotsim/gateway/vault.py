"""Secrets at rest: each value sealed by itself, under a key that is not in the store."""

from __future__ import annotations

import binascii
import os
import stat
from base64 import b64decode, b64encode
from typing import Any

from iotsim.errors import BadValue, MissingExtra, StoreError
from iotsim.transport.discretion import STORE_KEY_ENV

KEY_ENV = STORE_KEY_ENV
KEY_BYTES = 32
_NONCE_BYTES, _TAG_BYTES = 12, 16
_VERSION = b"\x01"
_KEY_FILE_BYTES_MAX = 1000
_ALLOWED = "Give 32 bytes as base64 (44 characters) or hex (64 characters)."


class Vault:
    """Seals and opens single values with AES-256-GCM.

    Parameters
    ----------
    key : bytes
        32 of them.
    """

    __slots__ = ("_cipher",)

    def __init__(self, key: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise MissingExtra("encrypting gateways' secrets at rest", "cryptography", "notip"
                               ) from None
        self._cipher = AESGCM(key)

    def __repr__(self) -> str:
        return "<Vault>"

    def seal(self, secret: bytes, place: str) -> bytes:
        """Return a secret, encrypted for one place: moved to another one it does not open."""
        nonce = os.urandom(_NONCE_BYTES)
        return _VERSION + nonce + self._cipher.encrypt(nonce, secret, _bound(place))

    def unseal(self, sealed: Any, place: str) -> bytes | None:
        """Return the secret; None if it is damaged, of another place or of another key."""
        from cryptography.exceptions import InvalidTag

        if not isinstance(sealed, bytes) or sealed[:1] != _VERSION:
            return None
        if len(sealed) < len(_VERSION) + _NONCE_BYTES + _TAG_BYTES:
            return None
        nonce, rest = sealed[1:_NONCE_BYTES + 1], sealed[_NONCE_BYTES + 1:]
        try:
            return self._cipher.decrypt(nonce, rest, _bound(place))
        except InvalidTag:
            return None


def _bound(place: str) -> bytes:
    return b"iotsim store\x00" + place.encode()


def find_key(store: str, given: str | bytes | None, *, new: bool) -> bytes:
    """Return the key of a store: as given, else of the environment, else of its key file.

    Parameters
    ----------
    store : str
        Its path; the key file is beside it.
    given : str or bytes, optional
    new : bool
        Whether nothing was ever sealed in it: only then a key file is made.

    Raises
    ------
    BadValue, StoreError
        If it is no key; if its file is missing, or others can read it.
    """
    if given is not None:
        return parse_key("key", given)
    in_env = os.environ.get(KEY_ENV, "")
    if in_env:
        return parse_key(KEY_ENV, in_env)
    path = f"{store}.key"
    try:
        text = _read(path)
    except FileNotFoundError:
        if new:
            return _make(path)
        raise StoreError(store, f"its secrets are encrypted, and its key file {path} is missing",
                         f"Put that file back, or give the key as key= or {KEY_ENV}.") from None
    except OSError as error:
        raise StoreError(path, f"the key cannot be read: {error.strerror}") from None
    try:
        return parse_key("key", text)
    except BadValue:
        raise StoreError(path, "holds no key of 32 bytes as base64 or hex",
                         "Put back the key that the store was made with.") from None


def parse_key(name: str, given: str | bytes) -> bytes:
    """Return 32 bytes of what was given: themselves, or as base64 or hex text.

    Examples
    --------
    >>> parse_key("key", "00" * 32) == bytes(32)
    True
    """
    if isinstance(given, bytes) and len(given) == KEY_BYTES:
        return given
    if not isinstance(given, str | bytes):
        raise BadValue(name, type(given), "is no key", _ALLOWED)
    text = given if isinstance(given, str) else given.decode("ascii", "replace")
    text = "".join(text.split())
    try:
        if len(text) == 2 * KEY_BYTES:
            return binascii.unhexlify(text)
        plain = text.rstrip("=").replace("-", "+").replace("_", "/")
        found = b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except ValueError:  # binascii.Error is one; neither shows the text
        found = b""
    if len(found) != KEY_BYTES:
        raise BadValue(name, "…", "is no key", _ALLOWED) from None
    return found


def _read(path: str) -> bytes:
    file = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    try:
        facts = os.fstat(file)
        if not stat.S_ISREG(facts.st_mode):
            raise StoreError(path, "is not a file", "Put the key there, or remove it.")
        if os.name == "posix" and facts.st_mode & 0o077:
            raise StoreError(path, "others than its owner can read or write this key",
                             f"Type: chmod 600 {path}")
        return os.read(file, _KEY_FILE_BYTES_MAX)
    finally:
        os.close(file)


def _make(path: str) -> bytes:
    # Whole or not at all: killed half-way, a key file of no use would stand beside a new store.
    key = os.urandom(KEY_BYTES)
    draft = f"{path}.new"
    try:
        if os.path.lexists(draft):
            os.unlink(draft)
        file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(file, b64encode(key) + b"\n")
            os.fsync(file)
        finally:
            os.close(file)
        os.rename(draft, path)
        sync_folder(path)
    except OSError as error:
        raise StoreError(path, f"the key cannot be written: {error.strerror}",
                         f"Give it as key= or {KEY_ENV}.") from None
    return key


def sync_folder(path: str) -> None:
    """Write the folder of a file to the disk: a new name in it is safe only then."""
    if os.name != "posix":
        return
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
