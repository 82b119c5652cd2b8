"""What is sent to the provisioning service, and what each of its answers becomes."""

import asyncio
import json
import socket
import sys
import traceback
from base64 import b64encode
from contextlib import closing
from dataclasses import replace

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from iotsim.errors import BadValue, IotsimError, MissingExtra
from iotsim.gateway import provisioning_errors as errors
from iotsim.gateway import provisioning_refusals
from iotsim.gateway.provisioning import onboard
from iotsim.gateway.provisioning_exchange import Service
from tests import provisioning_rig
from tests.provisioning_rig import AES_KEY, TENANT, Onboarding, Shelf, gateway
from tests.servers.certificates import Certificates
from tests.servers.http import Reply

key, service = provisioning_rig.key, provisioning_rig.service  # the fixtures

ID = "9f5a0a3e-0a53-4b2f-8c4e-0d8f3a1b2c3d"


def onboarded(record, service, **options):
    return asyncio.run(onboard(record, **{"url": service.url, "attempts": 1, **options}))


def refused(record, service, kind=errors.ProvisioningError, **options):
    with pytest.raises(kind) as caught:
        onboarded(record, service, **options)
    assert type(caught.value) is kind or kind is errors.ProvisioningError
    assert "\n" not in str(caught.value)
    return caught.value


def answer(body, status=201):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Reply(status, {"Content-Type": "application/json"}, raw)


# -- what is sent ---------------------------------------------------------------------------------


def test_the_request_is_the_contracts_and_the_answer_becomes_the_record(service):
    record = gateway(service=service, send_frequency_ms=1500, seed=7)
    shelf = Shelf()
    made = onboarded(record, service, keeper=shelf)
    (got,), (asked,) = service.endpoint.got, service.asked
    assert got.path == "/api/provision/onboard"
    assert got.headers["Content-Type"] == "application/json"
    assert list(asked) == ["credentials", "csr", "sendFrequencyMs", "firmwareVersion"]
    assert asked["credentials"] == {"factoryId": "F-1", "factoryKey": "factory s3cret/1"}
    assert (asked["sendFrequencyMs"], asked["firmwareVersion"]) == (1500, "1.2.0")
    csr = x509.load_pem_x509_csr(asked["csr"].encode())
    own = serialization.load_pem_private_key(made.private_key_pem.encode(), None)
    assert isinstance(own, rsa.RSAPrivateKey)
    assert csr.public_key() == own.public_key()
    assert made.provisioned
    assert (made.tenant_id, made.aes_key, made.status) == (TENANT, AES_KEY, "online")
    assert x509.load_pem_x509_certificate(made.cert_pem.encode()).public_key() == own.public_key()
    assert (made.name, made.seed, made.send_frequency_ms, made.intent) == (
        "gw-1", 7, 1500, "running")
    asked_with = replace(record, private_key_pem=made.private_key_pem)
    assert shelf.history == [asked_with, made]


@pytest.mark.parametrize(("path", "expected"), [
    ("", "/api/provision/onboard"), ("/", "/api/provision/onboard"),
    ("/provision/onboard", "/provision/onboard"), ("?zone=1", "/api/provision/onboard"),
])
def test_a_url_without_a_path_gets_the_usual_one(service, key, path, expected):
    onboarded(gateway(service=service, key=key), service, url=service.url + path)
    assert service.endpoint.got[0].path == expected
    assert service.endpoint.got[0].query == path.partition("?")[2]


def test_a_gateway_that_is_provisioned_comes_back_untouched_and_nobody_is_asked(service, key):
    record = gateway(service=service, key=key)
    made = onboarded(record, service)
    assert onboarded(made, service) is made
    assert len(service.endpoint.got) == 1


@pytest.mark.parametrize(("url", "why"), [
    ("ftp://127.0.0.1", "is neither http nor https"),
    ("http://ann:s3cret@127.0.0.1", "names a user"),
    ("http://", "names no host"),
    (None, "is not text"),
])
def test_a_url_that_cannot_be_asked_is_refused_at_the_call(key, url, why):
    with pytest.raises(BadValue, match=why) as caught:
        asyncio.run(onboard(gateway(key=key), url=url))
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(("changes", "why"), [
    ({"factory_id": ""}, "factory_id='' is not a text"),
    ({"factory_key": ""}, "factory_key='' is not a text"),
    ({"factory_key": "\ud800s3cret"}, "factory_key='…' is no valid text"),
    ({"firmware": None}, "firmware=None is not a text"),
    ({"send_frequency_ms": 0}, "send_frequency_ms=0 is no frequency"),
    ({"send_frequency_ms": 1.5}, "send_frequency_ms=1.5 is no frequency"),
    ({"send_frequency_ms": True}, "send_frequency_ms=True is no frequency"),
])
def test_what_the_service_would_refuse_is_refused_before_it_is_asked(service, key, changes, why):
    with pytest.raises(BadValue) as caught:
        onboarded(replace(gateway(key=key), **changes), service)
    assert f"gateway 'gw-1': {why}" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert not service.endpoint.got


@pytest.mark.parametrize("timeout_s", [0, -1, 601, True, "5", float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout_s):
    with pytest.raises(BadValue, match="Give seconds above 0 and up to 600"):
        Service.at("http://127.0.0.1", timeout_s=timeout_s)


def test_without_aiohttp_the_extra_is_named(monkeypatch, key):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(MissingExtra, match=r"needs aiohttp.*iotsim\[notip\]"):
        asyncio.run(onboard(gateway(key=key), url="http://127.0.0.1"))


def test_a_session_of_somebody_else_is_used_and_left_open(service, key):
    async def main():
        async with aiohttp.ClientSession(raise_for_status=True, headers={"X-Site": "n"}) as session:
            for number in (1, 2):
                record = gateway(number, service, key)
                await onboard(record, url=service.url, session=session)
            with pytest.raises(errors.InvalidFactoryCredentials):
                await onboard(gateway(3, key=key), url=service.url, session=session)
            assert not session.closed
        with pytest.raises(BadValue, match="session='…' is closed"):
            await onboard(gateway(4, key=key), url=service.url, session=session)

    asyncio.run(main())
    assert [got.headers["X-Site"] for got in service.endpoint.got] == ["n"] * 3


def test_a_mistake_while_asking_is_one_line_without_the_request(service, key, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("factory s3cret/1")

    monkeypatch.setattr(aiohttp.ClientSession, "post", broken)
    error = refused(gateway(key=key), service, errors.AnswerLost)
    assert "could not be asked (RuntimeError)" in str(error)
    assert "s3cret" not in str(error)


# -- each row of contract A10 ---------------------------------------------------------------------

REFUSALS = {
    "wrong key": (401, {"error": "INVALID_CREDENTIALS"}, errors.InvalidFactoryCredentials, False,
                  "does not take factory id 'F-1' with its key (401). Give id and key as"),
    "used": (409, {"error": "ALREADY_PROVISIONED"}, errors.AlreadyProvisioned, True,
             "provisioned already (409). A factory key works once"),
    "csr": (400, {"error": "MALFORMED_CSR"}, errors.MalformedCsr, False,
            "400 MALFORMED_CSR). Clear private_key_pem of its record"),
    "validation": (400, {"message": ["sendFrequencyMs must be positive", "a\x1b[31m\u202eb"],
                         "error": "Bad Request", "statusCode": 400}, errors.RequestRefused, False,
                   'refuses the request (400), saying "sendFrequencyMs must be positive; '
                   'a?[31m?b". Change what it names'),
    "bad json": (400, {"message": "Unexpected token", "error": "Bad Request", "statusCode": 400},
                 errors.RequestRefused, False, 'saying "Unexpected token"'),
    "plain": (400, b"<h1>Bad</h1>", errors.RequestRefused, False, 'saying "<h1>Bad</h1>"'),
    "path": (404, {"message": "Cannot POST /x"}, errors.WrongPath, False,
             "the platform's proxy has it at /api/provision/onboard, the service itself at "
             "/provision/onboard"),
    "failed": (500, {"error": "INTERNAL_ERROR"}, errors.ServiceFailed, None,
               'failed (500), saying "{"error": "INTERNAL_ERROR"}". See the service\'s log'),
    "unavailable": (503, {"error": "SERVICE_UNAVAILABLE"}, errors.ServiceUnavailable, None,
                    "cannot reach the platform's management API (503)"),
    "proxy": (502, b"", errors.UnexpectedStatus, None, "answers 502. See what stands at this URL"),
    "teapot": (418, b"tea", errors.UnexpectedStatus, None, 'answers 418, saying "tea"'),
}


@pytest.mark.parametrize("row", REFUSALS.values(), ids=REFUSALS)
def test_each_refusal_is_an_error_of_its_own_that_says_what_to_do(service, key, row):
    status, body, kind, consumed, text = row
    service.instead = answer(body, status)
    with pytest.raises(kind) as caught:  # with a key of its own it may have been asked before
        onboarded(gateway(key="" if status == 409 else key), service)
    error = caught.value
    assert text in str(error)
    assert str(error).startswith(
        f"gateway 'gw-1' is not provisioned: {service.url}/api/provision/onboard ")
    assert (error.gateway, error.status, error.consumed) == ("gw-1", status, consumed)
    assert len(service.endpoint.got) == 1
    assert isinstance(error, IotsimError)


def test_what_the_service_itself_answers_to_wrong_credentials_and_a_second_time(service, key):
    refused(gateway(key=key), service, errors.InvalidFactoryCredentials)
    record = gateway(service=service)
    onboarded(record, service)
    refused(record, service, errors.AlreadyProvisioned)
    refused(gateway(2, service, key), service, errors.WrongPath, url=f"{service.url}/elsewhere")


def test_a_redirect_is_shown_and_not_followed(service, key):
    service.instead = Reply(307, {"Location": "https://ann:pw@other/provision?token=s3cret"})
    error = refused(gateway(key=key), service, errors.UnexpectedStatus)
    assert "answers 307 and points to https://***@other/provision. Give that URL" in str(error)
    assert len(service.endpoint.got) == 1


def test_a_list_of_messages_is_bounded(service, key):
    service.instead = answer({"message": ["x" * 1000, *map(str, range(100))]}, 400)
    text = str(refused(gateway(key=key), service, errors.RequestRefused))
    assert "x" * 199 + "…; 0; 1; 2; 3; and 96 more" in text
    assert len(text) < 700


def test_a_body_without_end_is_cut(service, key):
    service.instead = Reply(500, body=b"y" * 1_000_000)
    text = str(refused(gateway(key=key), service, errors.ServiceFailed))
    assert 'saying "' + "y" * 199 + "…" in text


@pytest.mark.parametrize("secret", ["factory s3cret/1", 'q"uo<te>\\ \u20ac', "k"])
def test_a_secret_that_comes_back_is_not_shown(service, key, secret):
    def echo(got):
        said = json.loads(got.body)["credentials"]["factoryKey"]
        forms = (said, json.dumps(said), b64encode(said.encode()).decode(), repr(said))
        return Reply(500, body=" ".join(forms).encode() + got.body)

    service.instead = echo
    record = replace(gateway(key=key), factory_key=secret)
    text = str(refused(record, service, errors.ServiceFailed)).partition("saying")[2]
    assert "***" in text
    said = text.partition('". See')[0]
    assert secret not in said
    assert "s3cret" not in said


# -- a success must be one ------------------------------------------------------------------------

WRONG = {
    "an array": (lambda body: [body], "is no object"),
    "no identity": (lambda body: {**body, "identity": "x"}, "has no identity"),
    "a short id": (lambda body: {**body, "identity": {"gatewayId": "gw-1", "tenantId": TENANT}},
                   "has a gatewayId that is no UUID"),
    "a braced id": (lambda body: {**body, "identity": {"gatewayId": f"{{{ID}}}",
                                                       "tenantId": TENANT}},
                    "has a gatewayId that is no UUID"),
    "no tenant": (lambda body: {**body, "identity": {"gatewayId": ID}},
                  "has a tenantId that is no UUID"),
    "no key": (lambda body: {**body, "aesKey": None}, "has no aesKey"),
    "a hex key": (lambda body: {**body, "aesKey": "-" * 44}, "has an aesKey that is no base64"),
    "a url-safe key": (lambda body: {**body, "aesKey": "_" * 43 + "="},
                       "has an aesKey that is no base64"),
    "a short key": (lambda body: {**body, "aesKey": b64encode(b"x" * 31).decode()},
                    "has an aesKey of 31 bytes instead of 32"),
    "no certificate": (lambda body: {**body, "certPem": 5}, "has no certPem"),
    "nonsense": (lambda body: {**body, "certPem": "-----BEGIN CERTIFICATE-----\nAA=="},
                 "has a certPem that is no certificate"),
}


def success(service, got, **changes):
    asked = json.loads(got.body)
    public = x509.load_pem_x509_csr(asked["csr"].encode()).public_key()
    return {**service.success(public, asked["credentials"]["factoryId"]), **changes}


@pytest.mark.parametrize("row", WRONG.values(), ids=WRONG)
def test_a_success_that_lacks_something_is_no_success(service, key, row):
    change, why = row
    service.instead = lambda got: answer(change(success(service, got)))
    error = refused(gateway(key=key), service, errors.WrongAnswer)
    assert f"said yes, but its answer {why}. It is not used." in str(error)
    assert error.consumed is True
    assert b64encode(AES_KEY).decode() not in str(error)


def test_a_certificate_for_another_key_is_refused(service, key):
    other = rsa.generate_private_key(65537, 2048).public_key()
    service.instead = lambda got: answer(service.success(other, "F-1"))
    error = refused(gateway(key=key), service, errors.WrongAnswer)
    assert "has a certificate for another key than ours" in str(error)


@pytest.mark.parametrize(("raw", "why"), [
    (b"<html>welcome s3cret-aes</html>", "is no JSON"), (b"", "is no JSON"),
    (b"[" * 100_000, "is longer than 65,536 bytes"), (b"\xff{}", "is no JSON"),
])
def test_a_success_without_json_is_no_success_and_not_shown(service, key, raw, why):
    service.instead = answer(raw, 200)
    error = refused(gateway(key=key), service, errors.AnswerNotJson)
    assert f"said yes, but its answer {why}" in str(error)
    assert "s3cret" not in str(error)


def test_any_2xx_will_do_ids_become_lower_case_and_what_is_unknown_is_ignored(service, key):
    def shout(got):
        body = success(service, got, sendFrequencyMs="whatever", more=[1])
        return answer({**body, "identity": {"gatewayId": ID.upper(), "tenantId": TENANT.upper()}},
                      200)

    service.instead = shout
    made = onboarded(gateway(key=key), service)
    assert (made.gateway_id, made.tenant_id) == (ID, TENANT)
    assert made.send_frequency_ms == 5000


# -- without an answer ----------------------------------------------------------------------------


def test_a_port_where_nothing_listens_is_tried_again_and_then_an_error(key):
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(errors.ServiceUnreachable, match="connection refused") as caught:
            asyncio.run(onboard(gateway(key=key), url=url, attempts=2))
    assert "Nothing was sent, and the factory key is as good as before." in str(caught.value)
    assert caught.value.consumed is False


def test_a_service_that_comes_back_is_reached(service, key):
    async def main():
        service.endpoint.kill()
        asking = asyncio.create_task(onboard(gateway(service=service, key=key), url=service.url))
        await asyncio.sleep(0.15)
        await asyncio.to_thread(service.endpoint.start)
        return await asking

    assert asyncio.run(main()).provisioned


def test_a_host_that_is_unknown_is_not_tried_again(key):
    with pytest.raises(errors.ServiceUnreachable, match="the host name is unknown"):
        asyncio.run(onboard(gateway(key=key), url="http://no-such-host.invalid"))


def test_an_early_503_is_asked_again_and_a_late_one_is_not(service, key, monkeypatch):
    service.instead = lambda got: None if got.number else answer({"error": "SERVICE_UNAVAILABLE"},
                                                                 503)
    assert onboarded(gateway(service=service, key=key), service, attempts=3).provisioned
    assert len(service.endpoint.got) == 2
    monkeypatch.setattr(provisioning_refusals, "QUICK_S", 0)
    service.instead = answer({"error": "SERVICE_UNAVAILABLE"}, 503)
    error = refused(gateway(2, service, key), service, errors.ServiceUnavailable, attempts=3)
    assert "ask again in a minute" in str(error)
    assert len(service.endpoint.got) == 3


@pytest.mark.parametrize("status", [400, 401, 404, 409, 500, 502])
def test_what_may_have_been_carried_out_or_stays_as_it_is_is_asked_once(service, key, status):
    service.instead = Reply(status)
    refused(gateway(key=key), service, attempts=5)
    assert len(service.endpoint.got) == 1


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_connection_that_ends_without_an_answer_is_not_asked_again(service, key, cut):
    service.instead = Reply(201, cut=cut)
    error = refused(gateway(key=key), service, errors.AnswerLost, attempts=5)
    assert "ended the connection without an answer. The platform may have provisioned" in str(error)
    assert (error.consumed, len(service.endpoint.got)) == (None, 1)


def test_a_service_that_says_nothing_is_left_at_our_deadline(service, key):
    service.endpoint.freeze()
    error = refused(gateway(key=key), service, errors.NoAnswerInTime, timeout_s=0.3, attempts=5)
    assert "did not answer in 0.3 s" in str(error)


def test_a_body_that_never_ends_is_left_at_our_deadline(service, key):
    service.instead = Reply(201, body=b"{" * 100, drip_s=0.1)
    refused(gateway(key=key), service, errors.NoAnswerInTime, timeout_s=0.3)


def test_another_protocol_is_one_line(key):
    async def main():
        async def greet(reader, writer):
            writer.write(b"220 mail.example ESMTP\r\n")
            await writer.drain()
            await reader.read()
            writer.close()

        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(errors.AnswerLost, match="something that is not HTTP"):
                await onboard(gateway(key=key), url=f"http://127.0.0.1:{port}")

    asyncio.run(main())


# -- TLS ------------------------------------------------------------------------------------------


def test_a_private_authority_is_trusted_when_it_is_given(tmp_path, key):
    files = Certificates(tmp_path)
    with Onboarding(certificate=files.server) as service:
        record = gateway(service=service, key=key)
        error = refused(record, service, errors.TlsFailed)
        assert "cannot be trusted (its certificate is not accepted: " in str(error)
        assert "Give ca= the file of the authority" in str(error)
        refused(record, service, errors.TlsFailed, ca=files.stranger.ca)
        assert not service.endpoint.got
        assert onboarded(record, service, ca=files.ca).provisioned


@pytest.mark.parametrize("name", ["expired", "elsewhere"])
def test_a_certificate_that_is_not_the_hosts_or_expired_is_refused(tmp_path, key, name):
    files = Certificates(tmp_path)
    with Onboarding(certificate=getattr(files, name)) as service:
        refused(gateway(service=service, key=key), service, errors.TlsFailed, ca=files.ca)
        assert not service.endpoint.got


def test_https_where_http_is_spoken_is_one_line(service, key):
    url = service.url.replace("http://", "https://")
    error = refused(gateway(key=key), service, errors.TlsFailed, url=url)
    assert "no TLS is spoken there" in str(error)


def test_an_authority_that_cannot_be_read_is_refused_at_the_call(tmp_path, key):
    with pytest.raises(BadValue, match="ca="):
        asyncio.run(onboard(gateway(key=key), url="https://127.0.0.1", ca=tmp_path / "no.pem"))


# -- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("instead", [
    Reply(401), Reply(500, body=b"boom"), Reply(201, cut="after"), Reply(201, body=b"{}"),
    Reply(201, body=b"no json"),
])
def test_no_secret_stands_in_an_error_its_chain_or_its_frames(service, key, instead):
    service.instead = instead
    record = gateway(key=key)
    error = refused(record, service)
    told = traceback.TracebackException.from_exception(error, capture_locals=True)
    shown = "".join(told.format())
    for secret in (record.factory_key, key.splitlines()[5], key.splitlines()[1]):
        assert secret not in shown
    assert error.__cause__ is None
    assert error.__context__ is None
    held = repr(vars(error)) + repr(error.args)
    assert record.factory_key not in held
