"""Who we are to a peer; no secret ever stands in a repr, an error, a log or a saved file."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from iotsim.errors import BadValue


@dataclass(frozen=True, slots=True, repr=False)
class Credentials:
    """A user and a password, a token, or a NATS credentials file; none of them is shown.

    Parameters
    ----------
    username, password : str
    token : str
        NATS: an authentication token. HTTP: a bearer token.
    creds : str
        NATS: the path of a `.creds` file.

    Examples
    --------
    >>> Credentials("ann", "s3cret")
    <Credentials: username, password>
    """

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    creds: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        for name in NAMES:
            if not isinstance(getattr(self, name), str):
                kind = type(getattr(self, name))
                raise BadValue(name, kind, "is not text", "Give a str.")
            _check(name, getattr(self, name))

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in NAMES)

    def __repr__(self) -> str:
        return f"<Credentials: {', '.join(self.given) or 'none'}>"

    @property
    def given(self) -> tuple[str, ...]:
        """The names of what was given."""
        return tuple(name for name in NAMES if getattr(self, name))

    @classmethod
    def from_env(cls, prefix: str) -> Self:
        """Return what the environment has: `IOTSIM_<prefix>_USERNAME`, `_PASSWORD` and so on."""
        return cls(**{name: os.environ.get(f"IOTSIM_{prefix}_{name.upper()}", "")
                      for name in NAMES})

    @classmethod
    def take(
        cls, options: Mapping[str, Any], in_url: Credentials, prefix: str, allowed: tuple[str, ...]
    ) -> Credentials:
        """Return what was given as options, else in the URL, else in the environment.

        Parameters
        ----------
        options : mapping
            With `credentials` or some of `allowed`; None is as good as absent.
        in_url : Credentials
        prefix : str
            Of the names in the environment, such as "MQTT".
        allowed : tuple of str
            What the protocol can use, among username, password, token and creds.

        Raises
        ------
        BadValue
            If it is no text, given twice, or nothing that the protocol can use.
        """
        own = {name: options[name] for name in allowed if options.get(name) is not None}
        whole = options.get("credentials")
        if whole is not None:
            if not isinstance(whole, Credentials):
                raise BadValue("credentials", type(whole), "are no credentials",
                               "Give iotsim.Credentials(username, password).")
            if own:
                raise BadValue(next(iter(own)), "…", "is given beside credentials",
                               "Give one of the two.")
            found = whole
        elif own:
            found = cls(**own)
        else:
            found = in_url or cls.from_env(prefix)
        for name in found.given:
            if name not in allowed:
                raise BadValue("credentials", name, f"mean nothing to {prefix}",
                               f"It takes: {', '.join(allowed)}.")
        return found


def _check(name: str, value: str) -> None:
    # The value may be a secret: it is not shown.
    wrong = ""
    if UNSENDABLE.search(value):
        wrong = "has a control character, or half a character"
    elif len(value.encode()) > BYTES_MAX:
        wrong = f"is longer than {BYTES_MAX:,} bytes of UTF-8"
    if wrong:
        raise BadValue(name, "…", wrong, f"Give printable text of up to {BYTES_MAX:,} bytes.")


BYTES_MAX = 65_535  # as long as a text of MQTT can be
UNSENDABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")

NAMES = tuple(one.name for one in fields(Credentials))
