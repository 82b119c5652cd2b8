"""DTLS 1.2 under a CoAP endpoint: pyOpenSSL does the records, the socket stays ours."""

from __future__ import annotations

import asyncio
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from OpenSSL import SSL

from iotsim.publishers.coap_wire import Listener, Wire
from iotsim.transport.tls import TLS

DATAGRAM_BYTES = 1200
RECORD_HEAD = 13  # type, version, epoch, sequence number, size
DTLS_1_2 = 0xFEFD
_COMPLAINTS = {
    9: "certificate is not yet valid", 10: "certificate has expired",
    18: "self-signed certificate", 19: "self-signed certificate in certificate chain",
    20: "unable to get local issuer certificate", 21: "unable to verify the first certificate",
}  # fmt: skip


class HandshakeError(OSError):
    """Why there is no session, in a few words."""


class DtlsWire(Wire):
    """A wire whose datagrams are encrypted.

    Parameters
    ----------
    listener : Listener
    tls : TLS
        Certificates; there is no pre-shared key in pyOpenSSL.
    """

    def __init__(self, listener: Listener, tls: TLS) -> None:
        super().__init__(listener)
        self._tls = tls
        self._host = ""
        self._complaint = ""
        self._session: SSL.Connection | None = None
        self._ready: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def connect(self, host: str, port: int) -> None:
        """Bind a local port and agree on keys with the peer; raises OSError."""
        await super().connect(host, port)
        self.waits_for = "no answer to a DTLS handshake"
        self._host = host
        session = self._session = SSL.Connection(self._context(), None)
        session.set_connect_state()
        session.set_ciphertext_mtu(DATAGRAM_BYTES)
        if not _is_address(host):
            session.set_tlsext_host_name(host.encode("idna"))
        ready = self._ready = asyncio.get_running_loop().create_future()
        self._shake(session, ready)
        await ready

    def send(self, data: bytes) -> None:
        """Encrypt one datagram and hand it to the socket."""
        session = self._session
        if session is not None:
            try:
                session.send(data)
            except SSL.Error as error:
                self.error_received(HandshakeError(f"DTLS failed ({_reason(error)})"))
            self._flush(session)

    def abort(self) -> None:
        """End at once."""
        self._cancel()
        self._session = None
        super().abort()

    async def close(self) -> None:
        """Say goodbye, and end when everything is handed over."""
        self._cancel()
        session, self._session = self._session, None
        if session is not None:
            try:
                session.shutdown()
            except SSL.Error:
                pass
            self._flush(session)
        await super().close()

    def datagram_received(self, data: bytes, addr: Any) -> None:
        """Take a datagram; what is no record of this session has no effect."""
        session, ready = self._session, self._ready
        if session is None or ready is None or not data:
            return
        session.bio_write(data)
        if not ready.done():
            self._shake(session, ready)
        try:
            while ready.done() and self._session is session:
                super().datagram_received(session.recv(65_536), addr)
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.error_received(HandshakeError("the server ended the DTLS session"))
        except SSL.Error as error:
            self.error_received(HandshakeError(f"DTLS failed ({_reason(error)})"))
        self._flush(session)

    def _tell(self, exc: Exception) -> None:
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(exc)
        else:
            super()._tell(exc)

    # -- handshake ----------------------------------------------------------------------------

    def _context(self) -> SSL.Context:
        tls = self._tls
        tls.context()  # says in words what is wrong with the files
        context = SSL.Context(SSL.DTLS_CLIENT_METHOD)
        context.set_min_proto_version(DTLS_1_2)
        context.set_verify(SSL.VERIFY_PEER if tls.verify else SSL.VERIFY_NONE, self._look)
        if tls.ca is None:
            context.set_default_verify_paths()
        else:
            context.load_verify_locations(tls.ca)
        if tls.cert is not None:
            context.use_certificate_chain_file(tls.cert)
            password = tls.key_password.encode() if tls.key_password else None
            pem = Path(tls.key or tls.cert).read_bytes()
            key: Any = serialization.load_pem_private_key(pem, password)
            context.use_privatekey(key)
        return context

    def _look(self, _session: Any, _cert: Any, number: int, _depth: int, good: int) -> bool:
        if not good and not self._complaint:
            self._complaint = _COMPLAINTS.get(number, f"error {number}")
        return bool(good)

    def _shake(self, session: SSL.Connection, ready: asyncio.Future[None]) -> None:
        self._cancel()
        try:
            session.do_handshake()
        except SSL.WantReadError:
            wait_s = session.DTLSv1_get_timeout()
            if wait_s is not None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(max(0.01, wait_s), self._repeat, session, ready)
        except SSL.Error as error:
            why = f"DTLS failed ({_reason(error)})"
            if self._complaint:
                why = f"its certificate is not accepted: {self._complaint}"
            ready.set_exception(HandshakeError(why))
        else:
            why = self._unnamed(session) if self._tls.verify else ""
            if why:
                ready.set_exception(HandshakeError(f"its certificate is not accepted: {why}"))
            else:
                ready.set_result(None)
        self._flush(session)

    def _repeat(self, session: SSL.Connection, ready: asyncio.Future[None]) -> None:
        if not ready.done():
            session.DTLSv1_handle_timeout()
            self._shake(session, ready)

    def _unnamed(self, session: SSL.Connection) -> str:
        # OpenSSL looked at the chain; whether it is for this host is ours to see.
        certificate = session.get_peer_certificate(as_cryptography=True)
        if certificate is not None and names_host(certificate, self._host):
            return ""
        kind = "IP address" if _is_address(self._host) else "Hostname"
        return f"{kind} mismatch, certificate is not valid for '{self._host}'"

    def _flush(self, session: SSL.Connection) -> None:
        # OpenSSL writes records one behind the other; each leaves as a datagram.
        try:
            while data := session.bio_read(65_536):
                for record in records(data):
                    super().send(record)
        except SSL.WantReadError:
            pass

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def records(data: bytes) -> list[bytes]:
    r"""Return the DTLS records that stand one behind the other.

    Examples
    --------
    >>> [len(one) for one in records(bytes(12) + b"\1" + b"x" + bytes(13))]
    [14, 13]
    """
    found: list[bytes] = []
    place = 0
    while place < len(data):
        size = int.from_bytes(data[place + 11 : place + RECORD_HEAD], "big")
        found.append(data[place : place + RECORD_HEAD + size])
        place += RECORD_HEAD + size
    return found


def names_host(certificate: x509.Certificate, host: str) -> bool:
    """Whether a certificate's subject alternative names hold a host name or an address."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return False
    names = extension.value
    if _is_address(host):
        return ipaddress.ip_address(host) in names.get_values_for_type(x509.IPAddress)
    wanted = host.lower().rstrip(".")
    parent = wanted.partition(".")[2]
    return any(
        name == wanted or (name.startswith("*.") and "." in parent and name[2:] == parent)
        for name in map(str.lower, names.get_values_for_type(x509.DNSName))
    )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _reason(error: SSL.Error) -> str:
    found = error.args[0] if error.args else ()
    return str(found[0][2]) if isinstance(found, list) and found else "no reason given"
