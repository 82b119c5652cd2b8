"""How a connection is made secure: whom we trust, and who we are."""

from __future__ import annotations

import os
import ssl
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from iotsim.errors import BadValue

TLS_OPTIONS: dict[str, Any] = {
    "tls": None, "ca": None, "cert": None, "key": None, "key_password": None, "verify": None,
}
_MINIMUM = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
_PEM = "Give the path of a PEM file."


@dataclass(frozen=True, slots=True)
class TLS:
    """Whom to trust and who we are, as paths of PEM files; the key's password is not shown.

    Parameters
    ----------
    ca : str or None
        The authorities to trust instead of the system's.
    cert, key : str or None
        Our own certificate and its key; `key` may be left out if `cert` holds both.
    key_password : str or None
        Of an encrypted key.
    verify : bool
        False: the peer's certificate is not looked at.
    minimum : {"1.2", "1.3"}
        The oldest version of TLS.

    Examples
    --------
    >>> TLS(verify=False)
    TLS(ca=None, cert=None, key=None, verify=False, minimum='1.2')
    """

    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    key_password: str | None = field(default=None, repr=False)
    verify: bool = True
    minimum: str = "1.2"

    def __post_init__(self) -> None:
        for name in ("ca", "cert", "key", "key_password"):
            value = getattr(self, name)
            if isinstance(value, Path):
                object.__setattr__(self, name, str(value))
            elif value is not None and not isinstance(value, str):
                raise BadValue(name, type(value), "is not text", "Give a str.")
        if not isinstance(self.verify, bool):
            raise BadValue("verify", self.verify, "is not a yes or no", "Give True or False.")
        if self.minimum not in _MINIMUM:
            raise BadValue("minimum", self.minimum, "is no version of TLS", "Use '1.2' or '1.3'.")
        if self.key is not None and self.cert is None:
            raise BadValue("key", self.key, "belongs to no certificate", "Give cert=, too.")

    def context(self) -> ssl.SSLContext:
        """Return a fresh client context.

        Raises
        ------
        BadValue
            If a file cannot be read, holds something else, or does not fit the other.
        """
        _check_file("ca", self.ca)
        try:
            context = ssl.create_default_context(cafile=self.ca)
        except (ssl.SSLError, OSError):
            raise BadValue("ca", self.ca, "holds no certificate", _PEM) from None
        context.minimum_version = _MINIMUM[self.minimum]
        if not self.verify:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert is not None:
            self._identify(context, self.cert)
        return context

    def check_identity(self) -> None:
        """Raise BadValue if our own certificate and key cannot be used; nobody is trusted."""
        if self.cert is not None:
            self._identify(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), self.cert)

    def _identify(self, context: ssl.SSLContext, cert: str) -> None:
        _check_file("cert", cert)
        _check_file("key", self.key)
        # Without a password of ours OpenSSL would ask for one on the terminal.
        try:
            context.load_cert_chain(cert, self.key, self.key_password or "")
        except ssl.SSLError as error:
            if error.reason == "KEY_VALUES_MISMATCH":
                raise BadValue("key", self.key, "does not belong to cert", _PEM) from None
            todo = "Give PEM files, and key_password= if the key is encrypted."
            raise BadValue("cert", cert, "and its key cannot be used", todo) from None
        except OSError as error:
            raise BadValue("cert", cert, f"cannot be read ({error.strerror})", _PEM) from None


@dataclass(frozen=True, slots=True)
class HeldTLS(TLS):
    """TLS with a platform: 1.3, and who we are may be texts in memory.

    Authorities of platforms sign without an identifier of their key, which Python 3.13 refuses
    unless `VERIFY_X509_STRICT` is cleared; chain, dates and host name are looked at as ever.

    Parameters
    ----------
    ca, cert, key, key_password, verify
        As those of `TLS`.
    minimum : {"1.2", "1.3"}
    cert_pem, key_pem : str
        Our certificate and its key, instead of `cert` and `key`. Never shown.

    Examples
    --------
    >>> HeldTLS(ca="ca.pem").minimum
    '1.3'
    """

    minimum: str = "1.3"
    cert_pem: str = field(default="", repr=False)
    key_pem: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        TLS.__post_init__(self)
        if (self.cert is not None) + bool(self.cert_pem) > 1:
            raise BadValue("cert_pem", "…", "is given beside cert", "Give one of the two.")
        if bool(self.cert_pem) != bool(self.key_pem):
            raise BadValue("key_pem", "…", "and cert_pem belong together", "Give both or neither.")

    def context(self) -> ssl.SSLContext:
        """Return a fresh client context; raises BadValue."""
        context = TLS.context(self)
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        if self.cert_pem and (problem := self._hold(context)):
            # Raised here, where no local variable is a key.
            raise BadValue("cert_pem", "…", problem, "Provision the gateway anew.")
        return context

    def _hold(self, context: ssl.SSLContext) -> str:
        # What is wrong with the texts, in words.
        try:
            with _as_file(f"{self.cert_pem.strip()}\n{self.key_pem.strip()}\n") as path:
                context.load_cert_chain(path, password="")
        except ssl.SSLError as error:
            mismatch = error.reason == "KEY_VALUES_MISMATCH"
            return "does not belong to its key" if mismatch else "and its key cannot be used"
        except OSError as error:
            return f"cannot be handed to OpenSSL ({error.strerror})"
        return ""

    def not_after_us(self) -> int | None:
        """Return when our certificate ends, in µs since 1970; None if that cannot be told."""
        try:
            from cryptography import x509

            body = self.cert_pem.encode() or Path(self.cert or "").read_bytes()
            end = x509.load_pem_x509_certificate(body).not_valid_after_utc
        except (ImportError, OSError, ValueError):
            return None
        return int(end.timestamp()) * 1_000_000


@contextmanager
def _as_file(text: str) -> Iterator[str]:
    # OpenSSL reads files only. In memory where there is such a thing; else for us alone, for as
    # long as it takes.
    body = text.encode()
    if hasattr(os, "memfd_create") and os.path.isdir("/proc/self/fd"):
        handle = os.memfd_create("iotsim", os.MFD_CLOEXEC)
        try:
            os.write(handle, body)
            yield f"/proc/self/fd/{handle}"
        finally:
            os.close(handle)
        return
    handle, path = tempfile.mkstemp(prefix="iotsim-")  # mode 0600
    try:
        os.write(handle, body)
        os.close(handle)
        yield path
    finally:
        os.unlink(path)


def _check_file(name: str, path: str | None) -> None:
    if path is None:
        return
    try:
        with open(path, "rb"):
            return
    except OSError as error:
        why = "is not a file" if not os.path.isfile(path) else f"cannot be read ({error.strerror})"
        raise BadValue(name, path, why, _PEM) from None


def take_tls(options: Mapping[str, Any], *, secure: bool, scheme: str) -> TLS | None:
    """Return what options say of TLS, or None for a plain connection.

    Parameters
    ----------
    options : mapping
        With the keys of `TLS_OPTIONS`; None is as good as absent.
    secure : bool
        Whether the URL's scheme asks for TLS.
    scheme : str
        The secure one, for the text.

    Raises
    ------
    BadValue
        If something is given for a plain connection, or twice.
    """
    own = {name: options[name] for name in TLS_OPTIONS
           if name != "tls" and options.get(name) is not None}
    whole = options.get("tls")
    if not secure:
        name = next(iter(own), "tls" if whole is not None else "")
        if name:
            given = "…" if name == "key_password" else options[name]
            raise BadValue(name, given, "needs TLS", f"Use {scheme}:// in the URL.")
        return None
    if whole is None:
        return TLS(**own)
    if not isinstance(whole, TLS):
        raise BadValue("tls", type(whole), "is no TLS", "Give iotsim.TLS(ca='ca.pem').")
    if own:
        raise BadValue(next(iter(own)), "…", "is given beside tls", "Give one of the two.")
    return whole
