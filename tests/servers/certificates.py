"""An authority and what it signs, as PEM files, for tests of TLS.

    files = Certificates(tmp_path)
    files.ca                                     # path of the authority's certificate
    files.server.cert, files.server.key          # for localhost, 127.0.0.1 and ::1
    files.client("pump-1").cert, .key            # CN=pump-1
    files.expired, files.elsewhere               # server certificates that must be refused
    files.stranger.ca, files.stranger.client()   # another authority altogether
"""

import datetime
import ipaddress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Pair:
    """Paths of a certificate and its key, and the key's password if it has one."""

    cert: str
    key: str
    password: str | None = None


class Certificates:
    """An authority in a folder; what it signs is made when it is first asked for."""

    def __init__(self, folder, name="iotsim test authority"):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._name = _named(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        made = _draft(self._name, self._name, self._key.public_key(), -1, 30)
        made = made.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        made = made.add_extension(_usage(authority=True), critical=True)
        self._cert = made.sign(self._key, hashes.SHA256())
        self.ca = self._write("ca.pem", self._cert.public_bytes(serialization.Encoding.PEM))

    @cached_property
    def server(self):
        """For localhost, 127.0.0.1 and ::1."""
        return self._signed("server", "localhost", names=_HERE)

    @cached_property
    def expired(self):
        """As `server`, but its time was over yesterday."""
        return self._signed("expired", "localhost", names=_HERE, days=(-30, -1))

    @cached_property
    def elsewhere(self):
        """For another host."""
        return self._signed("elsewhere", "example.org", names=[x509.DNSName("example.org")])

    @cached_property
    def stranger(self):
        """Another authority that nobody here trusts."""
        return Certificates(self.folder / "stranger", "a stranger")

    def client(self, name="device", password=None):
        """A client certificate with this common name, its key encrypted where asked for."""
        return self._signed(f"client-{name}", name, client=True, password=password)

    def _signed(self, file, common_name, names=(), days=(-1, 30), client=False, password=None):
        key = ec.generate_private_key(ec.SECP256R1())
        made = _draft(_named(common_name), self._name, key.public_key(), *days)
        if names:
            made = made.add_extension(x509.SubjectAlternativeName(names), critical=False)
        role = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        made = made.add_extension(x509.ExtendedKeyUsage([role]), critical=False)
        made = made.add_extension(_usage(authority=False), critical=True)
        made = made.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
            critical=False,
        )
        cert = made.sign(self._key, hashes.SHA256())
        lock = (serialization.BestAvailableEncryption(password.encode()) if password
                else serialization.NoEncryption())
        pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        return Pair(
            self._write(f"{file}.pem", cert.public_bytes(pem)),
            self._write(f"{file}.key", key.private_bytes(pem, form, lock)),
            password,
        )

    def _write(self, name, body):
        path = self.folder / name
        path.write_bytes(body)
        path.chmod(0o600 if name.endswith(".key") else 0o644)
        return str(path)


_HERE = [
    x509.DNSName("localhost"),
    x509.IPAddress(ipaddress.ip_address("127.0.0.1")),
    x509.IPAddress(ipaddress.ip_address("::1")),
]


def _named(name):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _draft(subject, issuer, key, first_day, last_day):
    now = datetime.datetime.now(datetime.UTC)
    made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    made = made.serial_number(x509.random_serial_number())
    made = made.not_valid_before(now + datetime.timedelta(days=first_day))
    made = made.not_valid_after(now + datetime.timedelta(days=last_day))
    return made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(authority):
    return x509.KeyUsage(
        digital_signature=True, key_cert_sign=authority, crl_sign=authority,
        content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, encipher_only=False, decipher_only=False,
    )
