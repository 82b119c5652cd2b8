"""Where a broker is and who we are there; no secret ever stands in a repr or an error."""

from __future__ import annotations

import errno
import re
import ssl
from dataclasses import dataclass, field
from urllib.parse import SplitResult, unquote, urlsplit

from iotsim.errors import BadValue
from iotsim.registry import PUBLISHERS
from iotsim.transport.credentials import Credentials

_SCHEME = re.compile(r"([A-Za-z][\w+.-]*):(//)?")
_ALLOWED = "Give scheme://host or scheme://host:port."


def redacted(url: str) -> str:
    """Return a URL without user, password, query and fragment, however malformed it is.

    Examples
    --------
    >>> redacted("mqtt://ann:s3cret@broker:1883")
    'mqtt://***@broker:1883'
    >>> redacted("mqtt:ann:s3cret@broker")
    'mqtt:***@broker'
    """
    start, at, rest = url.rpartition("@")
    if at:
        scheme = _SCHEME.match(start)
        known = scheme is not None and (scheme[2] or scheme[1].lower() in PUBLISHERS)
        url = f"{scheme[0] if scheme is not None and known else ''}***@{rest}"
    return re.split(r"[?#]", url, maxsplit=1)[0]


def _portless(url: str) -> str:
    # What stands where a port should, and is no number, may be a password.
    return re.sub(r":(?!\d+(?:/|$))[^:/\]]+(?=/|$)", ":***", redacted(url))


@dataclass(frozen=True, slots=True)
class Address:
    """A scheme, a host and a port, with what else stood in the URL.

    Attributes
    ----------
    credentials : Credentials
    path : str
        As it was written, with its leading slash; empty if there was none.
    query : str
        May hold a key, and is never shown.
    """

    scheme: str
    host: str
    port: int
    credentials: Credentials = field(default_factory=Credentials, repr=False)
    path: str = ""
    query: str = field(default="", repr=False)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.path}"

    @property
    def authority(self) -> str:
        """Host and port as they stand in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(
        cls, url: str, default_port: int, *, path: bool = False, port_zero: bool = False
    ) -> Address:
        """Return the address that a URL names.

        Parameters
        ----------
        url : str
        default_port : int
        path : bool
            Whether it may have a path and a query.
        port_zero : bool
            Whether port 0 may be asked for: any that is free, to listen on.

        Raises
        ------
        BadValue
            If it has no host, a port that is none, or more than may be.
        """
        safe = redacted(url)
        if not url.isprintable():  # urlsplit leaves some out in silence, and passes on others
            raise BadValue("url", safe, "has a line break or another invisible character", _ALLOWED)
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            parts = None
        if parts is None:  # out here: the error's own text holds part of the URL
            raise BadValue("url", _portless(url), "is not a URL with a valid port", _ALLOWED)
        if not host:
            raise BadValue("url", safe, "names no host", _ALLOWED)
        if parts.fragment or (not path and (parts.path.strip("/") or parts.query)):
            raise BadValue("url", safe, "has a path or a query", f"{_ALLOWED} Topics are topic=.")
        if port == 0 and not port_zero:
            raise BadValue("url", safe, "has port 0", _ALLOWED)
        port = default_port if port is None else port
        rest = (parts.path, parts.query) if path else ("", "")
        return cls(parts.scheme, host, port, _credentials(parts), *rest)


def _credentials(parts: SplitResult) -> Credentials:
    return Credentials(unquote(parts.username or ""), unquote(parts.password or ""))


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
        reason = error.reason or ""
        if "CERTIFICATE_REQUIRED" in reason:
            return "it wants a certificate of ours"
        if "ALERT_UNKNOWN_CA" in reason or "ALERT_BAD_CERTIFICATE" in reason:
            return "it does not accept our certificate"
        if "WRONG_VERSION_NUMBER" in reason:
            return "no TLS is spoken there: use the scheme without it, or the port that has it"
        if "UNEXPECTED_EOF" in reason:
            return "it ended the connection when TLS began: perhaps none is spoken there"
        return f"TLS failed ({error.reason or 'no reason given'})"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there (connection refused)"
    if isinstance(error, ConnectionResetError):
        return "the peer reset the connection"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return "another program has this address already in use"
    if type(error).__name__ == "gaierror":
        return "the host name is unknown"
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    return text or type(error).__name__
