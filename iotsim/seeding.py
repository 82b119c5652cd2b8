"""The one door of randomness: draw n of a named stream, as a pure function.

A stream is named by (seed, device, field, generator version). Its 64-bit key is made by hashing
each name on its own, mixing, and only then combining, so that swapped names, close seeds and
`"dev1" + "2temp"` against `"dev12" + "temp"` never share a stream. Draw n is
`squares64(n, key)`: counter and key are mixed as two words (B. Widynski, "Squares: A Fast
Counter-Based RNG", arXiv:2004.06278), so no stream is a shifted piece of another.

All of it is integer arithmetic modulo 2**64, in numpy for blocks and in Python for one device:
the same bits on every machine.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from iotsim.errors import BadValue

Words: TypeAlias = npt.NDArray[np.uint64]

FNV_OFFSET = 0xCBF29CE484222325
FNV_PRIME = 0x100000001B3
GOLDEN = 0x9E3779B97F4A7C15
SEED_MAX = 2**63 - 1
_MASK = 2**64 - 1
_MIX_1, _MIX_2 = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_U32 = np.uint64(32)


def fnv1a(name: str) -> int:
    """Return the FNV-1a 64 hash of a name's UTF-8 bytes.

    Examples
    --------
    >>> hex(fnv1a("temperature"))
    '0x556575c1ce107955'
    """
    value = FNV_OFFSET
    for byte in name.encode("utf-8", "surrogatepass"):
        value = ((value ^ byte) * FNV_PRIME) & _MASK
    return value


def fnv1a_many(names: Sequence[str]) -> Words:
    """Return `fnv1a` of every name, shape (names,)."""
    encoded = [name.encode("utf-8", "surrogatepass") for name in names]
    sizes = np.fromiter(map(len, encoded), dtype=np.int64, count=len(encoded))
    hashes = np.full(len(encoded), FNV_OFFSET, dtype=np.uint64)
    if not len(encoded):
        return hashes
    width = int(sizes.max())
    padded = b"".join(raw.ljust(width, b"\0") for raw in encoded)
    grid = np.frombuffer(padded, dtype=np.uint8).reshape(len(encoded), width)
    prime = np.uint64(FNV_PRIME)
    for i in range(width):
        stepped = (hashes ^ grid[:, i]) * prime
        np.copyto(hashes, stepped, where=sizes > i)
    return hashes


def mix(value: int) -> int:
    """Return the SplitMix64 finaliser of a 64-bit word: a bijection with full avalanche."""
    value = ((value ^ (value >> 30)) * _MIX_1) & _MASK
    value = ((value ^ (value >> 27)) * _MIX_2) & _MASK
    return value ^ (value >> 31)


def mix_many(values: Words) -> Words:
    """Return `mix` of every word, same shape."""
    out = values ^ (values >> np.uint64(30))
    out *= np.uint64(_MIX_1)
    out ^= out >> np.uint64(27)
    out *= np.uint64(_MIX_2)
    out ^= out >> np.uint64(31)
    return out


def combine(parent: int, name_hash: int) -> int:
    """Return the key of a named child of a key; the order of levels matters."""
    return mix(parent ^ mix((name_hash + GOLDEN) & _MASK))


def combine_many(parents: Words | int, name_hashes: Words | int) -> Words:
    """Return `combine` of keys and name hashes, broadcast against each other."""
    children = mix_many(np.atleast_1d(_words(name_hashes) + np.uint64(GOLDEN)))
    return mix_many(np.atleast_1d(_words(parents)) ^ children)


def _words(values: Words | int) -> Words:
    return np.atleast_1d(np.asarray(values, dtype=np.uint64))


def check_seed(seed: Any, name: str = "seed") -> int:
    """Return the seed, or raise if it is not a whole number from 0 to 2**63 - 1."""
    allowed = f"Give a whole number from 0 to {SEED_MAX}, or leave it out and one is drawn."
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, (bool, np.timedelta64))
    if not whole:
        raise BadValue(name, seed, "is not a whole number", allowed)
    if not 0 <= seed <= SEED_MAX:
        raise BadValue(name, seed, "is out of range", allowed)
    return int(seed)


def fresh_seed() -> int:
    """Return a seed drawn from the operating system, short enough to be typed again."""
    return secrets.randbelow(2**32)


def device_key(seed: int, device_id: str) -> int:
    """Return the key of one device under a seed."""
    return combine(mix((seed + GOLDEN) & _MASK), fnv1a(device_id))


def device_keys(seed: int, device_ids: Sequence[str]) -> Words:
    """Return `device_key` of every device, shape (devices,)."""
    return combine_many(mix((seed + GOLDEN) & _MASK), fnv1a_many(device_ids))


def stream_key(parent: int, name: str, version: int) -> int:
    """Return the key of a stream of a device: odd, as squares64 wants it."""
    return combine(combine(parent, fnv1a(name)), version) | 1


def stream_keys(parents: Words, name: str, version: int) -> Words:
    """Return `stream_key` for every device key, shape (devices,)."""
    keys = combine_many(combine_many(parents, fnv1a(name)), version)
    return keys | np.uint64(1)


def squares64(counter: int, key: int) -> int:
    """Return 64 random bits: draw `counter` of the stream `key`, for one device."""
    y = (counter * key) & _MASK
    z = (y + key) & _MASK
    x = (y * y + y) & _MASK
    x = (x >> 32) | (x << 32) & _MASK
    x = (x * x + z) & _MASK
    x = (x >> 32) | (x << 32) & _MASK
    x = (x * x + y) & _MASK
    x = (x >> 32) | (x << 32) & _MASK
    t = x = (x * x + z) & _MASK
    x = (x >> 32) | (x << 32) & _MASK
    return t ^ (((x * x + y) & _MASK) >> 32)


def draws(keys: Words, counters: npt.NDArray[Any]) -> Words:
    """Return `squares64` for keys and counters broadcast against each other.

    Parameters
    ----------
    keys : uint64 array, typically shape (devices,)
    counters : integer array, typically shape (ticks, 1)

    Returns
    -------
    uint64 array of the broadcast shape
    """
    y = counters.astype(np.uint64, copy=False) * keys
    z = y + keys
    x = y * y
    x += y
    half = np.empty_like(x)
    _round(x, z, half)
    _round(x, y, half)
    _round(x, z, half)
    np.left_shift(x, _U32, out=half)
    np.right_shift(x, _U32, out=z)
    half |= z
    half *= half
    half += y
    half >>= _U32
    x ^= half
    return x


def _round(x: Words, addend: Words, half: Words) -> None:
    # x ← rotate(x, 32)² + addend, without allocating: these arrays are the hot path.
    np.left_shift(x, _U32, out=half)
    x >>= _U32
    x |= half
    x *= x
    x += addend


def unit(word: int) -> float:
    """Return a 64-bit word as a float in [0, 1): its top 53 bits, exactly."""
    return (word >> 11) * 2.0**-53


def unit_many(words: Words) -> npt.NDArray[np.float64]:
    """Return `unit` of every word, same shape."""
    top = (words >> np.uint64(11)).view(np.int64)
    return top.astype(np.float64) * 2.0**-53


def scaled(words: Words, limit: int) -> npt.NDArray[np.int64]:
    """Return whole numbers in [0, limit) from 64-bit words; `limit` below 2**53."""
    whole = np.floor(unit_many(words) * float(limit)).astype(np.int64)
    return np.minimum(whole, limit - 1)


def shared_key(seed: int, label: str, value: str) -> int:
    """Return the key that devices with the same value of a label share."""
    parent = combine(mix((seed + GOLDEN) & _MASK), fnv1a("\0shared label"))
    return combine(combine(parent, fnv1a(label)), fnv1a(value))
