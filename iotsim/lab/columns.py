"""Columns of the lab's frames: of the same kind, however few rows there are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd


def text_column(values: Iterable[str]) -> Any:
    """Return text."""
    return pd.Series(list(values), dtype="str")


def time_column(instants: Iterable[int | None]) -> Any:
    """Return instants in UTC of microseconds since 1970; None is NaT."""
    found = [np.datetime64("NaT") if one is None else np.datetime64(one, "us") for one in instants]
    return pd.Series(np.array(found, dtype="datetime64[us]")).dt.tz_localize("UTC")
