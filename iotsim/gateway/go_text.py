"""Numbers and texts as Go's encoding/json writes them, byte for byte."""

from __future__ import annotations

import json
import math
from decimal import Decimal

import numpy as np
import orjson

from iotsim.publishers.payload import FEW
from iotsim.readings import Column

_PLAIN_FROM, _PLAIN_BELOW = 1e-4, 1e15  # between them Go, Python and orjson write the same digits
_POINT_FROM, _POINT_BELOW = 1e-6, 1e21  # what Go writes without an exponent
_ESCAPES = str.maketrans({
    "<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029",
})


def go_float(value: float) -> bytes:
    """Return a finite float as Go writes it.

    The fewest digits that read back as the same number; no point where none is needed; an
    exponent, without a leading zero, below 1e-6 and from 1e21.

    Examples
    --------
    >>> [go_float(x).decode() for x in (20.0, 23.47, 1e-7, 1.5e21, -0.0, 1e16)]
    ['20', '23.47', '1e-7', '1.5e+21', '-0', '10000000000000000']
    """
    size = abs(value)
    assert math.isfinite(size), "JSON has no such number"
    if _PLAIN_FROM <= size < _PLAIN_BELOW or not size:
        return repr(value).removesuffix(".0").encode()
    if _POINT_FROM <= size < _POINT_BELOW:
        return f"{Decimal(repr(value)):f}".removesuffix(".0").encode()
    digits, _, exponent = f"{Decimal(repr(value)):e}".partition("e")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return f"{digits}e{int(exponent):+d}".encode()


def go_floats(column: Column) -> list[bytes]:
    """Return every value of a column of finite numbers as Go writes it, as a float.

    Parameters
    ----------
    column : Column
        float or int; an int is written as the float nearest to it.
    """
    values = np.ascontiguousarray(column.values, dtype=np.float64)
    if len(values) < FEW:
        return [go_float(value) for value in values.tolist()]
    size = np.abs(values)
    rare = np.flatnonzero(((size < _PLAIN_FROM) & (size > 0)) | (size >= _PLAIN_BELOW))
    dumped = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1] + b","
    texts = dumped.replace(b".0,", b",")[:-1].split(b",")
    for i in rare.tolist():
        texts[i] = go_float(float(values[i]))
    return texts


def go_string(text: str) -> bytes:
    r"""Return a text as a JSON string as Go writes it: UTF-8, and safe within HTML.

    Examples
    --------
    >>> go_string("°C <5 & more").decode()
    '"°C \\u003c5 \\u0026 more"'
    """
    return json.dumps(text, ensure_ascii=False).translate(_ESCAPES).encode("utf-8", "replace")
