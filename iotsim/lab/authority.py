"""The platform's certificate authority: who the services are, and the gateways' certificates."""

from __future__ import annotations

import ipaddress
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from iotsim.clock import stamp_us

SERVICES = ("management-api", "data-api", "data-consumer", "provisioning", "simulator")
ORGANISATION = "notip"
TEN_YEARS_S = 10 * 365 * 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_HERE = (x509.DNSName("nats"), x509.DNSName("localhost"),
         x509.IPAddress(ipaddress.ip_address("127.0.0.1")))

_Public: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey


@dataclass(frozen=True, slots=True)
class Pair:
    """Paths of a certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """`CN=notip-ca, O=notip` and whom it signs, as PEM files in a folder.

    Its own key is RSA, since the gateways' certificates are signed with SHA-256 and RSA. Those of
    the services are of P-256: a thousand gateways shake hands with the server in a moment.

    Parameters
    ----------
    folder : Path
        Exists, and is nobody else's.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.name = _named("notip-ca")
        made = _draft(self.name, self.name, self._key.public_key(), TEN_YEARS_S)
        identifier = x509.SubjectKeyIdentifier.from_public_key(self._key.public_key())
        made = made.add_extension(identifier, critical=False)
        made = made.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier),
            critical=False,
        )
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        cert = made.sign(self._key, hashes.SHA256())
        self.ca_path = self._write("ca.crt", cert.public_bytes(serialization.Encoding.PEM))
        self._write("ca.key", _pem(self._key))
        self.server = self._issued("nats", names=_HERE)
        self.services = {name: self._issued(name) for name in SERVICES}

    def sign_gateway(
        self, key: rsa.RSAPublicKey, gateway_id: str, tenant_id: str, ttl_s: float
    ) -> str:
        """Return a gateway's certificate, PEM with CRLF, as the provisioning service makes it."""
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, gateway_id)])
        place = x509.DNSName(f"{gateway_id}.{tenant_id}.gateways.notip.internal")
        made = _draft(subject, self.name, key, ttl_s)
        made = made.add_extension(x509.SubjectAlternativeName([place]), critical=False)
        made = made.add_extension(_SIGNATURES, critical=True)
        made = made.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        cert = made.sign(self._key, hashes.SHA256())
        text = cert.public_bytes(serialization.Encoding.PEM).decode("ascii")
        return text.replace("\n", "\r\n")

    def _issued(self, name: str, names: tuple[x509.GeneralName, ...] = ()) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        made = _draft(_named(name), self.name, key.public_key(), TEN_YEARS_S)
        if names:
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        cert = made.sign(self._key, hashes.SHA256())
        return Pair(
            self._write(f"{name}.crt", cert.public_bytes(serialization.Encoding.PEM)),
            self._write(f"{name}.key", _pem(key)),
        )

    def _write(self, name: str, body: bytes) -> Path:
        path = self._folder / name
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(body)
        return path


_SIGNATURES = x509.KeyUsage(
    digital_signature=True, content_commitment=False, key_encipherment=False,
    data_encipherment=False, key_agreement=False, key_cert_sign=False, crl_sign=False,
    encipher_only=False, decipher_only=False,
)  # fmt: skip


def _named(name: str) -> x509.Name:
    return x509.Name([
        x509.NameAttribute(NameOID.COMMON_NAME, name),
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANISATION),
    ])  # fmt: skip


def _draft(
    subject: x509.Name, issuer: x509.Name, key: _Public, ttl_s: float
) -> x509.CertificateBuilder:
    now = _EPOCH + timedelta(seconds=stamp_us() // 1_000_000)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    # 128 bits, positive and never zero.
    made = made.serial_number(secrets.randbits(127) | 1 << 126)
    return made.not_valid_before(now).not_valid_after(now + timedelta(seconds=ttl_s))


def _pem(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )  # fmt: skip
