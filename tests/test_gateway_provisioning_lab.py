"""Onboarding against the lab's platform: the keys are its keys, the certificates open its NATS."""

import asyncio

import pytest
from cryptography import x509

from iotsim.gateway import provisioning_errors as errors
from iotsim.gateway.keys import KeyMaker
from iotsim.gateway.provisioning import onboard, onboard_all
from tests.provisioning_rig import Shelf, gateway
from tests.servers.notip import client_context, connection, notip_lab  # noqa: F401

PATIENCE_S = 30


@pytest.fixture(scope="module")
def key():
    async def main():
        async with KeyMaker(1) as keys:
            return await keys.make()

    return asyncio.run(main())


def registered(lab, *records):
    lab.run(lab.lab.register_many([(one.factory_id, one.factory_key) for one in records]))
    return list(records)


def test_what_the_lab_provisions_it_knows_under_the_same_key_and_lets_in(notip_lab, tmp_path):  # noqa: F811
    lab = notip_lab.lab
    records = registered(
        notip_lab, *(gateway(number, send_frequency_ms=700) for number in range(3)))
    shelf = Shelf()
    found = asyncio.run(onboard_all(records, url=lab.provisioning_url, keeper=shelf))
    assert not found.errors
    authority = x509.load_pem_x509_certificate(lab.ca_path.read_bytes())
    for record in found.records:
        theirs = lab.register_of_gateways.get(record.gateway_id)
        assert (theirs.aes_key, theirs.factory_id, theirs.tenant_id) == (
            record.aes_key, record.factory_id, record.tenant_id)
        assert (theirs.firmware, theirs.send_frequency_ms) == ("1.2.0", 700)
        x509.load_pem_x509_certificate(
            record.cert_pem.encode()).verify_directly_issued_by(authority)
    record = found.records[0]
    cert, own = tmp_path / "gateway.crt", tmp_path / "gateway.key"
    cert.write_text(record.cert_pem, newline="")
    own.write_text(record.private_key_pem)

    async def send():
        context = client_context(lab, cert, own)
        async with connection(lab, context, inbox=f"_INBOX.{record.gateway_id}") as link:
            subject = f"telemetry.data.{record.tenant_id}.{record.gateway_id}"
            return await link.jetstream().publish(subject, b"{}", timeout=PATIENCE_S)

    assert asyncio.run(send()).stream == "TELEMETRY"
    with pytest.raises(errors.AlreadyProvisioned):
        asyncio.run(onboard(records[0], url=lab.provisioning_url))


def test_the_labs_refusals_are_the_errors_they_mean(notip_lab, key):  # noqa: F811
    url = notip_lab.lab.provisioning_url
    with pytest.raises(errors.InvalidFactoryCredentials):
        asyncio.run(onboard(gateway(100, key=key), url=url))
    with pytest.raises(errors.WrongPath, match="at /api/provision/onboard"):
        asyncio.run(onboard(gateway(100, key=key), url=f"{url}/provision"))
    (record,) = registered(notip_lab, gateway(101, key=key))
    assert asyncio.run(onboard(record, url=f"{url}/provision/onboard")).provisioned


def test_a_management_that_fails_for_a_moment_is_waited_for(notip_lab, key):  # noqa: F811
    management = notip_lab.lab.management
    (record,) = registered(notip_lab, gateway(102, key=key))

    async def main():
        before = management.asked.get("internal.mgmt.provisioning.complete", 0)
        management.fail, management.fail_at = "internal", "complete"
        try:
            asking = asyncio.create_task(
                onboard(record, url=notip_lab.lab.provisioning_url, attempts=20))
            async with asyncio.timeout(PATIENCE_S):
                while management.asked.get("internal.mgmt.provisioning.complete", 0) < before + 2:
                    await asyncio.sleep(0.01)
        finally:
            management.fail = management.fail_at = None
        return await asking

    made = asyncio.run(main())
    assert notip_lab.lab.register_of_gateways.get(made.gateway_id).aes_key == made.aes_key
