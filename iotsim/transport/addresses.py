"""Where a broker is and who we are there; no secret ever stands in a repr or an error."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit

from iotsim.errors import BadValue

_ALLOWED = "Give scheme://host or scheme://host:port."


def redacted(url: str) -> str:
    """Return a URL without user, password, query and fragment, however malformed it is.

    Examples
    --------
    >>> redacted("mqtt://ann:s3cret@broker:1883")
    'mqtt://***@broker:1883'
    """
    bare = re.sub(r"//.*@", "//***@", url, flags=re.DOTALL)
    return re.split(r"[?#]", bare, maxsplit=1)[0]


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and a password; neither is shown."""

    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)

    def __bool__(self) -> bool:
        return bool(self.username or self.password)

    @classmethod
    def of(
        cls, address: Address, username: str | None, password: str | None, prefix: str
    ) -> Credentials:
        """Return what was given as options, else in the URL, else in the environment.

        The environment is `IOTSIM_<prefix>_USERNAME` and `IOTSIM_<prefix>_PASSWORD`.
        """
        if username is not None or password is not None:
            return cls(username or "", password or "")
        if address.credentials:
            return address.credentials
        names = (f"IOTSIM_{prefix}_USERNAME", f"IOTSIM_{prefix}_PASSWORD")
        return cls(*(os.environ.get(name, "") for name in names))


@dataclass(frozen=True, slots=True)
class Address:
    """A scheme, a host and a port, with the credentials that stood in the URL."""

    scheme: str
    host: str
    port: int
    credentials: Credentials = field(default_factory=Credentials, repr=False)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @classmethod
    def parse(cls, url: str, default_port: int) -> Address:
        """Return the address that a URL names.

        Raises
        ------
        BadValue
            If it has no host, a port that is none, or a path, query or fragment.
        """
        safe = redacted(url)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            raise BadValue("url", safe, "is not a URL with a valid port", _ALLOWED) from None
        if not host:
            raise BadValue("url", safe, "names no host", _ALLOWED)
        if parts.path.strip("/") or parts.query or parts.fragment:
            raise BadValue("url", safe, "has a path or a query", f"{_ALLOWED} Topics are topic=.")
        if port == 0:
            raise BadValue("url", safe, "has port 0", _ALLOWED)
        return cls(parts.scheme, host, port or default_port, _credentials(parts))


def _credentials(parts: SplitResult) -> Credentials:
    return Credentials(unquote(parts.username or ""), unquote(parts.password or ""))


def tls_context(ca: str | None, verify: bool) -> ssl.SSLContext:
    """Return a client context: TLS 1.2 or newer, verified unless `verify` is False.

    Raises
    ------
    BadValue
        If `ca` is not a readable file of certificates.
    """
    allowed = "Give the path of a PEM file."
    if ca is not None and not Path(ca).is_file():
        raise BadValue("ca", ca, "is not a file", allowed)
    try:
        context = ssl.create_default_context(cafile=ca)
    except (ssl.SSLError, OSError):
        raise BadValue("ca", ca, "holds no certificate", allowed) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if not verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def failure_text(error: BaseException) -> str:
    """Return in a few words why a connection could not be made.

    Examples
    --------
    >>> failure_text(ConnectionRefusedError(111, "Connect call failed"))
    'nothing listens there (connection refused)'
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed ({error.reason or 'no reason given'})"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(error, ConnectionResetError):
        return "the peer reset the connection"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if type(error).__name__ == "gaierror":
        return "the host name is unknown"
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text or type(error).__name__
