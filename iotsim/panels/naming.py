"""What a panel saves something as, beside the notebook."""

from __future__ import annotations

import re


def file_name(name: str) -> str:
    """Return the file that a run of this name is saved as.

    Examples
    --------
    >>> file_name("night shift/2")
    'night-shift-2.iotsim'
    """
    return f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name).strip('.-') or 'run'}.iotsim"
