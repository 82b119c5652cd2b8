"""What a platform's options may be, also those of the environment."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from iotsim.errors import BadValue, IotsimError

_NEEDED = ("PROVISIONING_URL", "NATS_URL", "NATS_CA_CERT_PATH")
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
PATH_CHARS_MAX = 4096
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


def checked_url(name: str, url: Any, schemes: Iterable[str]) -> str:
    """Return a URL with a host and one of some schemes, or raise BadValue."""
    listed = " or ".join(f"{scheme}://" for scheme in schemes)
    if not isinstance(url, str) or not url.isprintable():
        raise BadValue(name, type(url), "is no URL", f"Give {listed}host:port.")
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise BadValue(name, "…", "is no URL", f"Give {listed}host:port.") from None
    if parts.username or parts.password:
        raise BadValue(name, "…", "has a user or a password in it", f"Give {listed}host:port.")
    if parts.scheme not in schemes or not host:
        raise BadValue(name, url, "is no URL of a kind that is spoken there",
                       f"Give {listed}host:port.")
    return url


def checked_path(name: str, path: Any) -> None:
    """Raise BadValue for what is neither None nor the path of a file."""
    if path is None:
        return
    try:
        text = os.fspath(path)
        os.fsencode(text)
    except (TypeError, ValueError):
        text = ""
    if not isinstance(text, str) or not text.isprintable() or not (
        0 < len(text) <= PATH_CHARS_MAX
    ):
        raise BadValue(name, path, "is not the path of a file", "Give a str or a Path.")


def checked_file(name: str, path: Any) -> None:
    """Raise BadValue for what is neither None nor the path of a file that is there."""
    checked_path(name, path)
    if path is not None and not os.path.isfile(path):
        raise BadValue(name, path, "is not a file", "Give the path of a PEM file.")


def checked_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return the options that environment variables give, or one error for all that is wrong.

    Parameters
    ----------
    environment : mapping of str to str
        PROVISIONING_URL, NATS_URL, NATS_CA_CERT_PATH; NATS_TLS_CERT, NATS_TLS_KEY, SQLITE_PATH,
        GATEWAY_BUFFER_SIZE, RECOVERY_MODE.

    Examples
    --------
    >>> checked_environment({"PROVISIONING_URL": "http://p", "NATS_URL": "tls://n",
    ...                      "NATS_CA_CERT_PATH": "ca.crt"})["recover"]
    False
    """
    wrong = [f"{name} is missing" for name in _NEEDED if not environment.get(name)]
    cert, key = environment.get("NATS_TLS_CERT"), environment.get("NATS_TLS_KEY")
    if bool(cert) != bool(key):
        wrong.append("NATS_TLS_CERT and NATS_TLS_KEY belong together")
    size = environment.get("GATEWAY_BUFFER_SIZE") or "1000"
    if not size.isascii() or not size.isdigit() or not 0 < int(size) <= 10_000_000:
        wrong.append(f"GATEWAY_BUFFER_SIZE={size[:20]!r} is no number from 1 to 10,000,000")
    mode = environment.get("RECOVERY_MODE") or "false"
    if mode not in (*_TRUE, *_FALSE):
        wrong.append(f"RECOVERY_MODE={mode[:20]!r} is neither true nor false")
    if wrong:
        raise IotsimError(f"the environment describes no platform: {'; '.join(wrong)}. Set them, "
                          "or give Platform(provisioning_url=…, nats_url=…).")
    return {
        "provisioning_url": environment["PROVISIONING_URL"],
        "nats_url": environment["NATS_URL"],
        "nats_ca": environment["NATS_CA_CERT_PATH"],
        "nats_cert": cert or None,
        "nats_key": key or None,
        "store": Path(environment.get("SQLITE_PATH") or "/data/simulator.db"),
        "buffer": int(size),
        "recover": mode in _TRUE,
    }
