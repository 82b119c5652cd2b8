"""A provisioning service that answers as contract A10 says, for tests of onboarding.

    with Onboarding() as service:
        service.register("F-1", "key-1")
        service.url, service.endpoint.got          # where to ask, and what was asked
        service.instead = Reply(503, body=b"…")    # or a function of what was asked
"""

import asyncio
import datetime
import json
import uuid
from base64 import b64encode

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from iotsim.gateway.keys import KeyMaker
from iotsim.gateway.record import GatewayRecord
from tests.servers.http import Endpoint, Reply

TENANT = "7d1b2c3d-0000-4000-8000-00000000000a"
AES_KEY = bytes(range(32))


class Shelf:
    """A keeper in memory: `kept` by name, `history` of all that was saved."""

    def __init__(self):
        self.kept, self.history = {}, []

    def save(self, record, /):
        self.history.append(record)
        self.kept[record.name] = record

    def get(self, name, /):
        return self.kept.get(name)


class Onboarding:
    """Knows factory ids; each is answered once. `instead` answers something else."""

    def __init__(self, certificate=None):
        self.endpoint = Endpoint(self._answer, certificate=certificate)
        self.factory, self.used = {}, set()
        self.instead = None
        self.delay_s = 0.0
        self._key = ec.generate_private_key(ec.SECP256R1())

    def __enter__(self):
        self.endpoint.__enter__()
        return self

    def __exit__(self, *_):
        self.endpoint.__exit__()

    @property
    def url(self):
        return self.endpoint.url.removesuffix(self.endpoint.path)

    @property
    def asked(self):
        return [json.loads(got.body) for got in self.endpoint.got]

    def register(self, factory_id, factory_key):
        self.factory[factory_id] = factory_key

    def _answer(self, got):
        special = self.instead(got) if callable(self.instead) else self.instead
        if special is not None:
            return special
        status, body = self._served(got)
        return Reply(status, {"Content-Type": "application/json"}, json.dumps(body).encode(),
                     delay_s=self.delay_s)

    def _served(self, got):
        if got.path not in ("/api/provision/onboard", "/provision/onboard"):
            return 404, {"message": f"Cannot POST {got.path}", "error": "Not Found",
                         "statusCode": 404}
        asked = json.loads(got.body)
        who = asked["credentials"]
        if self.factory.get(who["factoryId"]) != who["factoryKey"]:
            return 401, {"error": "INVALID_CREDENTIALS"}
        if who["factoryId"] in self.used:
            return 409, {"error": "ALREADY_PROVISIONED"}
        csr = x509.load_pem_x509_csr(asked["csr"].encode())
        if not isinstance(csr.public_key(), rsa.RSAPublicKey):
            return 400, {"error": "MALFORMED_CSR"}
        if not csr.is_signature_valid:
            return 500, {"error": "INTERNAL_ERROR"}
        self.used.add(who["factoryId"])
        return 201, self.success(csr.public_key(), who["factoryId"], asked["sendFrequencyMs"])

    def success(self, public_key, factory_id, frequency_ms=5000):
        """The body of a 201, for a key."""
        gateway_id = str(uuid.uuid5(uuid.NAMESPACE_DNS, factory_id))
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, gateway_id)])
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "notip-ca")])
        made = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer)
        made = made.public_key(public_key).serial_number(x509.random_serial_number())
        made = made.not_valid_before(now).not_valid_after(now + datetime.timedelta(days=90))
        pem = made.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        return {
            "certPem": pem.decode().replace("\n", "\r\n"),
            "aesKey": b64encode(AES_KEY).decode(),
            "identity": {"gatewayId": gateway_id, "tenantId": TENANT},
            "sendFrequencyMs": frequency_ms + 1,  # echoed, and to be ignored
        }


def gateway(number=1, service=None, key="", **changes):
    """A record that was not provisioned yet, known to the service."""
    record = GatewayRecord(
        f"gw-{number}", factory_id=f"F-{number}", factory_key=f"factory s3cret/{number}",
        private_key_pem=key, firmware="1.2.0", **changes,
    )
    if service is not None:
        service.register(record.factory_id, record.factory_key)
    return record


@pytest.fixture(scope="module")
def key():
    async def main():
        async with KeyMaker(1) as keys:
            return await keys.make()

    return asyncio.run(main())


@pytest.fixture
def service():
    with Onboarding() as started:
        yield started
