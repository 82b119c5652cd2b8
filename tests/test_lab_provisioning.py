"""The lab's provisioning service gives the statuses and bodies of the real one, as measured."""

import asyncio
import base64
import datetime
import itertools
import json
import subprocess

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from tests.servers.notip import (
    client_context,
    connection,
    csr_of,
    notip_lab,
    onboard,
    post,
    request_of,
    rsa_key,
)

__all__ = ("notip_lab",)

SHA = hashes.SHA256()
NUMBERS = itertools.count()
INTERNAL = {"error": "INTERNAL_ERROR"}
MALFORMED = {"error": "MALFORMED_CSR"}


@pytest.fixture
def fresh(notip_lab):
    """A registered factory id that nobody has used."""
    name = f"f-{next(NUMBERS)}"
    notip_lab.run(notip_lab.lab.register(name, "the key"))
    return name


@pytest.fixture
def impatient(notip_lab):
    """The lab, whose provisioning service does not wait long for management; mended afterwards."""
    service, management = notip_lab.lab.provisioning, notip_lab.lab.management
    before = service.timeout_s, service.backoff_s
    service.timeout_s, service.backoff_s = 0.1, 0.01
    yield notip_lab
    service.timeout_s, service.backoff_s = before
    management.fail = management.fail_at = None


def good_csr():
    return csr_of(rsa_key(), algorithm=SHA)


def altered(csr):
    head, body = csr[:300], csr[300:]
    return head + ("A" if body[0] != "A" else "B") + body[1:]


ACCEPTED = {
    "RSA 2048 with SHA-256": good_csr,
    "RSA 3072": lambda: csr_of(rsa.generate_private_key(public_exponent=65537, key_size=3072),
                               algorithm=SHA),
    "SHA-512": lambda: csr_of(rsa_key(), algorithm=hashes.SHA512()),
    "any subject": lambda: csr_of(
        rsa_key(), [x509.NameAttribute(NameOID.COMMON_NAME, "attacker")], SHA),
    "CRLF": lambda: good_csr().replace("\n", "\r\n"),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_a_gateway_is_provisioned_with(case, notip_lab, fresh):
    status, body, _ = notip_lab.run(
        post(notip_lab.lab, request_of(fresh, "the key", ACCEPTED[case]())))
    assert status == 201
    assert list(body) == ["certPem", "aesKey", "identity", "sendFrequencyMs"]
    assert list(body["identity"]) == ["gatewayId", "tenantId"]
    assert len(base64.b64decode(body["aesKey"], validate=True)) == 32
    assert len(body["aesKey"]) == 44
    assert body["sendFrequencyMs"] == 1000
    subject = x509.load_pem_x509_certificate(body["certPem"].encode()).subject
    assert subject.rfc4514_string() == f"CN={body['identity']['gatewayId']}"


REFUSED_CSRS = {
    "EC P-256": (lambda: csr_of(ec.generate_private_key(ec.SECP256R1()), algorithm=SHA),
                 400, MALFORMED),
    "Ed25519": (lambda: csr_of(ed25519.Ed25519PrivateKey.generate()), 400, MALFORMED),
    "no PEM": (lambda: "hello", 400, MALFORMED),
    "a leading newline": (lambda: "\n" + good_csr(), 400, MALFORMED),
    "the label NEW": (lambda: good_csr().replace("CERTIFICATE REQ", "NEW CERTIFICATE REQ"),
                      400, MALFORMED),
    "one altered byte": (lambda: altered(good_csr()), 500, INTERNAL),
}


@pytest.mark.parametrize("case", REFUSED_CSRS)
def test_a_csr_is_refused_for(case, notip_lab, fresh):
    made, expected, body = REFUSED_CSRS[case]
    status, found, _ = notip_lab.run(post(notip_lab.lab, request_of(fresh, "the key", made())))
    assert (status, found) == (expected, body)
    # Whatever was wrong, the credentials can still be used.
    assert notip_lab.run(onboard(notip_lab.lab, fresh, "the key")).status == 201


def test_a_csr_without_its_label_is_refused_before_the_credentials_are_looked_at(notip_lab):
    found = notip_lab.run(post(notip_lab.lab, request_of("nobody", "nothing", "hello")))
    assert found[:2] == (400, MALFORMED)


def test_the_kind_of_key_is_looked_at_after_the_credentials(notip_lab):
    csr = csr_of(ec.generate_private_key(ec.SECP256R1()), algorithm=SHA)
    found = notip_lab.run(post(notip_lab.lab, request_of("nobody", "nothing", csr)))
    assert found[:2] == (401, {"error": "INVALID_CREDENTIALS"})


def test_wrong_credentials_are_401_and_used_ones_409(notip_lab, fresh):
    lab, refused = notip_lab.lab, (401, {"error": "INVALID_CREDENTIALS"})
    assert notip_lab.run(post(lab, request_of("nobody", "the key", good_csr())))[:2] == refused
    assert notip_lab.run(post(lab, request_of(fresh, "another", good_csr())))[:2] == refused
    gateway_id = notip_lab.run(lab.register("known-by-id", "the key")).gateway_id
    assert notip_lab.run(post(lab, request_of(gateway_id, "the key", good_csr())))[:2] == refused
    assert notip_lab.run(onboard(lab, fresh, "the key")).status == 201
    again = notip_lab.run(post(lab, request_of(fresh, "the key", good_csr())))
    assert again[:2] == (409, {"error": "ALREADY_PROVISIONED"})


def test_one_of_many_at_once_gets_the_gateway(notip_lab, fresh):
    async def all_at_once():
        tries = (onboard(notip_lab.lab, fresh, "the key") for _ in range(5))
        return [found.status for found in await asyncio.gather(*tries)]

    assert sorted(notip_lab.run(all_at_once())) == [201, 409, 409, 409, 409]


@pytest.mark.parametrize("at", ["validate", "complete"])
@pytest.mark.parametrize("how", ["internal", "shape", "silent"])
def test_a_management_that_fails_is_503(how, at, impatient, fresh):
    management = impatient.lab.management
    management.fail, management.fail_at = how, at
    subject = f"internal.mgmt.{'factory' if at == 'validate' else 'provisioning'}.{at}"
    before = management.asked.get(subject, 0)
    found = impatient.run(onboard(impatient.lab, fresh, "the key"))
    assert (found.status, found.body) == (503, {"error": "SERVICE_UNAVAILABLE"})
    assert management.asked[subject] - before == (3 if how == "silent" else 1)
    management.fail = None
    assert impatient.run(onboard(impatient.lab, fresh, "the key")).status == 201


FREQUENCIES = {"missing": None, "zero": 0, "negative": -1, "a fraction": 1.5, "text": "5000",
               "yes": True}


@pytest.mark.parametrize("case", FREQUENCIES)
def test_a_frequency_is_refused_that_is(case, notip_lab, fresh):
    status, body, _ = notip_lab.run(post(notip_lab.lab, request_of(
        fresh, "the key", good_csr(), sendFrequencyMs=FREQUENCIES[case])))
    assert status == 400
    assert list(body) == ["message", "error", "statusCode"]
    assert (body["error"], body["statusCode"]) == ("Bad Request", 400)
    assert body["message"]
    assert all("sendFrequencyMs" in line for line in body["message"])


def raw(body):
    return {"data": json.dumps(body), "headers": {"Content-Type": "application/json"}}


def test_firmware_may_be_missing_or_empty_but_not_null_or_a_number(notip_lab):
    lab = notip_lab.lab
    for number, (version, status) in enumerate([("missing", 201), ("", 201), (None, 500),
                                                (7, 400)]):
        notip_lab.run(lab.register(f"firmware-{number}", "the key"))
        body = request_of(f"firmware-{number}", "the key", good_csr())
        body["firmwareVersion"] = version
        if version == "missing":
            del body["firmwareVersion"]
        found = notip_lab.run(post(lab, None, **raw(body)))
        assert found[0] == status, version
        if status == 500:
            assert found[1] == INTERNAL
    # Null fails only after the credentials held.
    body = request_of("nobody", "the key", good_csr()) | {"firmwareVersion": None}
    assert notip_lab.run(post(lab, None, **raw(body)))[0] == 401


def test_missing_credentials_are_an_internal_error(notip_lab):
    body = {"csr": good_csr(), "sendFrequencyMs": 1000}
    assert notip_lab.run(post(notip_lab.lab, body))[:2] == (500, INTERNAL)


@pytest.mark.parametrize("credentials", [
    {"factoryId": "", "factoryKey": "k"}, {"factoryId": "f", "factoryKey": ""},
    {"factoryId": 7, "factoryKey": "k"}, {"factoryId": "f", "factoryKey": ["k"]},
    {"factoryId": "f"}, "f:k",
])
def test_credentials_that_are_no_text_are_told_apart_from_wrong_ones(credentials, notip_lab):
    body = request_of("f", "k", good_csr(), credentials=credentials)
    status, found, _ = notip_lab.run(post(notip_lab.lab, body))
    assert (status, found["error"], found["statusCode"]) == (400, "Bad Request", 400)
    assert any("credentials" in line for line in found["message"])


def test_unknown_fields_are_ignored(notip_lab, fresh):
    body = request_of(fresh, "the key", good_csr(), colour="red")
    body["credentials"]["shape"] = "round"
    assert notip_lab.run(post(notip_lab.lab, body))[0] == 201


@pytest.mark.parametrize("data", ["{", "", "[]", "[1]", "null", "7", '"text"', "[" * 50_000])
def test_a_body_that_is_no_object_is_400(data, notip_lab):
    status, body, _ = notip_lab.run(post(
        notip_lab.lab, None, data=data, headers={"Content-Type": "application/json"}))
    assert (status, body["statusCode"]) == (400, 400)


def test_both_paths_lead_there_and_no_other(notip_lab, fresh):
    for path in ("/api/provision/onboard", "/provision/onboard"):
        found = notip_lab.run(post(notip_lab.lab, request_of(fresh, "no", good_csr()), path))
        assert found[0] == 401, path
    assert notip_lab.run(post(notip_lab.lab, {}, "/provision"))[0] == 404


def test_the_certificate_is_as_the_real_one_makes_it(notip_lab, fresh, tmp_path):
    lab = notip_lab.lab
    found = notip_lab.run(onboard(lab, fresh, "the key"))
    gateway_id, tenant_id = found.body["identity"].values()
    text = found.body["certPem"]
    assert text.count("\r\n") == text.count("\n") == len(text.splitlines())
    cert = x509.load_pem_x509_certificate(text.encode())
    ca = x509.load_pem_x509_certificate(lab.ca_path.read_bytes())
    assert cert.version == x509.Version.v3
    assert 0 < cert.serial_number < 2**128
    assert cert.serial_number.bit_length() > 120
    assert cert.issuer == ca.subject
    assert cert.issuer.rfc4514_string() == "O=notip,CN=notip-ca"
    assert cert.public_key() == found.key.public_key()
    assert cert.signature_algorithm_oid._name == "sha256WithRSAEncryption"
    assert cert.not_valid_after_utc - cert.not_valid_before_utc == datetime.timedelta(days=90)
    age = datetime.datetime.now(datetime.UTC) - cert.not_valid_before_utc
    assert datetime.timedelta(0) <= age < datetime.timedelta(minutes=5)
    assert {one.oid for one in cert.extensions} == {
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME, ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE}
    names = cert.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [
        f"{gateway_id}.{tenant_id}.gateways.notip.internal"]
    usage = cert.extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature
    assert not any((usage.key_encipherment, usage.key_cert_sign, usage.content_commitment))
    extended = cert.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(extended) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    path = tmp_path / "gateway.crt"
    path.write_text(text, newline="")
    checked = subprocess.run(
        ["openssl", "verify", "-purpose", "sslclient", "-CAfile", str(lab.ca_path), str(path)],
        capture_output=True, text=True, timeout=20, check=False)
    assert checked.stdout.strip() == f"{path}: OK", checked.stderr


def test_success_is_audited_and_failure_is_not(notip_lab, fresh):
    lab = notip_lab.lab

    async def both():
        async with connection(lab, client_context(lab)) as link:
            heard = await link.subscribe("log.audit.>")
            await link.flush(5)
            await onboard(lab, fresh, "wrong")
            await onboard(lab, fresh, "the key")
            message = await heard.next_msg(5)
            return message.subject, json.loads(message.data), heard.pending_msgs

    subject, event, more = notip_lab.run(both())
    gateway = lab.register_of_gateways.get(fresh)
    assert subject == f"log.audit.{gateway.tenant_id}"
    assert more == 0
    assert list(event) == ["userId", "action", "resource", "details", "timestamp"]
    assert event["userId"] == "00000000-0000-0000-0000-000000000000"
    assert event["action"] == "PROVISIONING_ONBOARD_SUCCESS"
    assert event["resource"] == gateway.gateway_id
    assert event["details"] == {
        "factoryId": fresh, "sourceIp": "127.0.0.1", "outcome": "success",
        "gatewayId": gateway.gateway_id, "tenantId": gateway.tenant_id}
    assert event["timestamp"].endswith("Z")


def test_what_was_onboarded_is_in_the_register_without_its_factory_key(notip_lab, fresh):
    lab = notip_lab.lab
    found = notip_lab.run(onboard(lab, fresh, "the key", sendFrequencyMs=7000))
    row = lab.console.gateways().set_index("factory_id").loc[fresh]
    assert (row["gateway_id"], row["tenant_id"]) == tuple(found.body["identity"].values())
    assert (row["provisioned"], row["status"], row["send_frequency_ms"], row["firmware"]) == (
        True, "online", 7000, "1.0.0")
    assert lab.console.keys(fresh) == [{
        "gateway_id": row["gateway_id"], "key_material": found.body["aesKey"], "key_version": 1}]
    gateway = lab.register_of_gateways.get(fresh)
    assert gateway.factory_hash == b""
    assert found.body["aesKey"] not in repr(gateway)
    assert "aes" not in str(list(lab.console.gateways().columns))
