"""AES-256-GCM as gateways use it: nonces, sealing, base64 that nobody mistakes for hex.

The platform's data API takes a base64 text that consists of hex digits only, and of an even number
of them, for hex, and what it makes of it cannot be opened any more. So a nonce whose own text, or
whose ciphertext's text, looks like that is never used: another one is drawn. (A tag's text ends in
`==`, a ciphertext's in `=` unless its size is a multiple of three; and `=` is no hex digit.)

Ordinary nonces are 96 bits of the operating system's randomness, asked for at every use: nothing
is kept that a forked process would share. That no two of n under one key are equal fails with a
probability of about n² / 2**97: 6e-16 for the 10,000,000 readings that a gateway sends in half a
year, 1.2e-10 at 2**32, the most that a key should seal.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from binascii import b2a_base64
from collections.abc import Callable, Sequence

import numpy as np

from iotsim.errors import BadValue, IotsimError, MissingExtra
from iotsim.publishers.payload import FEW
from iotsim.transport.discretion import discreet

KEY_BYTES, NONCE_BYTES, TAG_BYTES = 32, 12, 16
REDRAWS_MAX = 64
_NONCE_CHARS, _HASH_BLOCK_BYTES = 16, 64
_HEX = b"0123456789abcdefABCDEF"
_IS_HEX = np.isin(np.arange(256), list(_HEX)).astype(np.uint8)
_EIGHT_HEX = np.uint64(0x0101010101010101)
_DOMAIN = b"iotsim: nonces of a run that replays, version 1"

# sensor, tick, sub, time, how often it was drawn again, plaintext
Purpose = tuple[bytes, int, int, int, bytes]


class Seal:
    """A gateway's key, ready for use; nothing shows it.

    Parameters
    ----------
    key : bytes
        32 bytes.

    Raises
    ------
    BadValue
        If it has another size; the text says the size only.
    MissingExtra
        If the package cryptography is not installed.
    """

    __slots__ = ("_inner", "_outer", "encrypt")

    encrypt: Callable[[bytes, bytes, None], bytes]

    @discreet
    def __init__(self, key: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise MissingExtra("encrypted telemetry", "cryptography", "notip") from None
        if len(key) != KEY_BYTES:
            raise BadValue("aes_key", f"<{len(key)} bytes>", "is no key of AES-256",
                           "It has 32 bytes.")
        self.encrypt = AESGCM(key).encrypt
        padded = hmac.digest(key, _DOMAIN, "sha256").ljust(_HASH_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in padded))
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in padded))

    def __repr__(self) -> str:
        return "<Seal>"

    def nonce_for(self, purpose: Purpose, attempt: int) -> bytes:
        """Return the nonce of one reading: equal for equal readings, and for no others.

        The first 12 bytes of an HMAC-SHA256 over what it is for. The sensor's id has a fixed
        length and the plaintext stands last, so no two purposes are one text.
        """
        sensor, seq, sub, time_us, plain = purpose
        inner, outer = self._inner.copy(), self._outer.copy()  # hmac.digest takes twice as long
        inner.update(b"%b %d %d %d %d %b" % (sensor, seq, sub, time_us, attempt, plain))
        outer.update(inner.digest())
        return outer.digest()[:NONCE_BYTES]


def looks_like_hex(text: bytes) -> bool:
    """Return whether the data API would take a base64 text for hex.

    Examples
    --------
    >>> looks_like_hex(b"abcdef0123456789"), looks_like_hex(b"abcdef012345678+")
    (True, False)
    """
    return not len(text) % 2 and not text.translate(None, _HEX)


def sealed(
    seals: Sequence[Seal], plain: Sequence[bytes], purposes: Sequence[Purpose] | None
) -> tuple[list[bytes], list[bytes], list[bytes]]:
    """Return ciphertexts, nonces and tags as base64 with padding, none of which looks like hex.

    Parameters
    ----------
    seals, plain : sequences of equal length
    purposes : sequence of Purpose or None
        What each nonce is derived from; None: they are random.
    """
    nonces, ivs = _random(len(plain)) if purposes is None else _derived(seals, purposes)
    whole = [seal.encrypt(nonce, text, None)
             for seal, nonce, text in zip(seals, nonces, plain, strict=True)]
    texts = [b2a_base64(one[:-TAG_BYTES], newline=False) for one in whole]
    tags = [b2a_base64(one[-TAG_BYTES:], newline=False) for one in whole]
    for i, text in enumerate(texts):
        if text[-1] != 61 and text.isalnum() and looks_like_hex(text):
            purpose = None if purposes is None else purposes[i]
            texts[i], ivs[i], tags[i] = sealed_one(seals[i], plain[i], purpose)
    return texts, ivs, tags


def sealed_one(
    seal: Seal, plain: bytes, purpose: Purpose | None
) -> tuple[bytes, bytes, bytes]:
    """Return ciphertext, nonce and tag of one plaintext: what `sealed` makes of it."""
    for attempt in range(REDRAWS_MAX):
        nonce = os.urandom(NONCE_BYTES) if purpose is None else seal.nonce_for(purpose, attempt)
        iv, whole = b2a_base64(nonce, newline=False), seal.encrypt(nonce, plain, None)
        text = b2a_base64(whole[:-TAG_BYTES], newline=False)
        if not (looks_like_hex(iv) or looks_like_hex(text)):
            return text, iv, b2a_base64(whole[-TAG_BYTES:], newline=False)
    raise _broken()


def _random(count: int) -> tuple[list[bytes], list[bytes]]:
    raw = os.urandom(NONCE_BYTES * count)
    text = b2a_base64(raw, newline=False)  # 12 bytes are 16 characters: one text holds them all
    nonces = [raw[i:i + NONCE_BYTES] for i in range(0, len(raw), NONCE_BYTES)]
    ivs = [text[i:i + _NONCE_CHARS] for i in range(0, len(text), _NONCE_CHARS)]
    for i in _suspects(text, ivs):
        for _ in range(REDRAWS_MAX):
            nonces[i] = os.urandom(NONCE_BYTES)
            ivs[i] = b2a_base64(nonces[i], newline=False)
            if not looks_like_hex(ivs[i]):
                break
        else:
            raise _broken()
    return nonces, ivs


def _suspects(text: bytes, ivs: Sequence[bytes]) -> list[int]:
    if len(ivs) < FEW:
        return [i for i, iv in enumerate(ivs) if looks_like_hex(iv)]
    eights = _IS_HEX[np.frombuffer(text, dtype=np.uint8)].view(np.uint64).reshape(-1, 2)
    found: list[int] = np.flatnonzero((eights == _EIGHT_HEX).all(axis=1)).tolist()
    return found


def _derived(
    seals: Sequence[Seal], purposes: Sequence[Purpose]
) -> tuple[list[bytes], list[bytes]]:
    nonces, ivs = [], []
    for seal, purpose in zip(seals, purposes, strict=True):
        for attempt in range(REDRAWS_MAX):
            nonce = seal.nonce_for(purpose, attempt)
            iv = b2a_base64(nonce, newline=False)
            if not looks_like_hex(iv):
                break
        else:
            raise _broken()
        nonces.append(nonce)
        ivs.append(iv)
    return nonces, ivs


def _broken() -> IotsimError:
    return IotsimError(f"{REDRAWS_MAX} nonces in a row looked like hex digits: the operating "
                       "system's randomness is broken. Nothing was sent with them.")
