"""A small NoTIP platform for tests: on a loop and thread of its own, or on the test's loop.

    from tests.servers.notip import notip_lab, onboard       # noqa: F401 (a fixture)

    def test_it(notip_lab):                  # one platform for all tests of a module
        notip_lab.lab.nats_url               # attributes are read directly
        gateway = notip_lab.run(notip_lab.lab.register("f-1", "key"))       # coroutines on its loop
        frame = notip_lab.run(notip_lab.lab.console.telemetry())

    def test_that():                         # a platform of one's own, on the test's loop
        async def main():
            async with iotsim.lab.notip() as lab:
                gateway = await lab.register("f-1", "key")
                answer = await onboard(lab, "f-1", "key")         # status, body, private key
                context = own_context(lab, tmp_path, answer)      # or client_context(lab): shared
                async with connection(lab, context, inbox=f"_INBOX.{gateway.gateway_id}") as link:
                    ...
        asyncio.run(main())

The lab of a module lives on another thread, so that the loop under test is not slowed down by it.
"""

import asyncio
import contextlib
import ssl
import threading
from dataclasses import dataclass

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

import iotsim.lab
from iotsim.errors import BadValue
from iotsim.lab.connections import QuietClient
from iotsim.lab.nats_server import find_nats_server
from tests.conftest import lacking

WAIT_S = 30


def need_nats_server():
    """Skip where there is no nats-server; under tests/run, fail."""
    try:
        find_nats_server()
    except BadValue:
        lacking("nats-server is not installed (apt-get install nats-server)")


class LabThread:
    """A lab on a loop of its own; `run` waits for a coroutine on it."""

    def __init__(self, **options):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, name="notip lab", daemon=True)
        self._thread.start()
        self.lab = iotsim.lab.notip(**options)
        try:
            self.run(self.lab.__aenter__())
        except BaseException:
            self.stop()
            raise

    def run(self, coroutine):
        """Wait for a coroutine of the lab, from any other thread."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S)

    def stop(self):
        """End the lab, its loop and its thread."""
        try:
            self.run(self._ended())
        finally:
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(WAIT_S)
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

    async def _ended(self):
        await self.lab.stop()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:  # of tests that failed
            task.cancel()

    def _work(self):
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


@pytest.fixture(scope="module")
def notip_lab():
    """A running lab for all tests of a module; `.lab`, and `.run(coroutine)`."""
    need_nats_server()
    thread = LabThread()
    yield thread
    thread.stop()


_KEYS = []


def rsa_key(number=0):
    """One of a few RSA-2048 keys, made when they are first asked for."""
    while len(_KEYS) <= number:
        _KEYS.append(rsa.generate_private_key(public_exponent=65537, key_size=2048))
    return _KEYS[number]


def csr_of(key, subject=(), algorithm=None):
    """A signing request as PEM text; `subject` are x509.NameAttribute."""
    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(list(subject)))
    return made.sign(key, algorithm).public_bytes(serialization.Encoding.PEM).decode()


@dataclass
class Onboarded:
    """What the provisioning service answered; `key` is the gateway's."""

    status: int
    body: dict
    key: object
    text: str = ""


async def post(lab, body, path="/api/provision/onboard", **options):
    """(status, body as JSON or None, text) of a request to the provisioning service."""
    options = options or {"json": body}
    async with (aiohttp.ClientSession() as session,
                session.post(lab.provisioning_url + path, **options) as answer):
        text = await answer.text()
        try:
            return answer.status, await answer.json(), text
        except (aiohttp.ContentTypeError, ValueError):
            return answer.status, None, text


def request_of(factory_id, factory_key, csr, **changes):
    """The body of an onboarding request; a change to None leaves the key out."""
    body = {"credentials": {"factoryId": factory_id, "factoryKey": factory_key}, "csr": csr,
            "sendFrequencyMs": 1000, "firmwareVersion": "1.0.0", **changes}
    return {name: value for name, value in body.items() if value is not None}


async def onboard(lab, factory_id, factory_key, key=None, **changes):
    """Onboard a gateway by hand, as the reference simulator does."""
    key = key or rsa_key()
    csr = csr_of(key, algorithm=hashes.SHA256())
    status, body, text = await post(lab, request_of(factory_id, factory_key, csr, **changes))
    return Onboarded(status, body, key, text)


def key_pem(key):
    """An RSA key as the reference writes it: PKCS#1."""
    form = serialization.PrivateFormat.TraditionalOpenSSL
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def client_context(lab, cert=None, key=None):
    """A TLS 1.3 context; by default the shared CN=simulator one."""
    context = ssl.create_default_context(cafile=str(lab.ca_path))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(cert or lab.simulator_cert, key or lab.simulator_key)
    return context


def own_context(lab, folder, onboarded):
    """A context with the gateway's own certificate; files are written into `folder`."""
    cert, key = folder / "gateway.crt", folder / "gateway.key"
    cert.write_text(onboarded.body["certPem"], newline="")
    key.write_bytes(key_pem(onboarded.key))
    return client_context(lab, cert, key)


@contextlib.asynccontextmanager
async def connection(lab, context, inbox="_INBOX", errors=None, **options):
    """A nats-py connection; what the server complains about is appended to `errors`."""
    async def complained(error):
        if errors is not None:
            errors.append(error)

    options = {"allow_reconnect": False, "max_reconnect_attempts": 1, **options}
    async with asyncio.timeout(30):
        link = QuietClient()
        await link.connect(lab.nats_url, tls=context, tls_hostname="127.0.0.1",
                           inbox_prefix=inbox, error_cb=complained, **options)
    try:
        yield link
    finally:
        async with asyncio.timeout(20):
            await link.close()
