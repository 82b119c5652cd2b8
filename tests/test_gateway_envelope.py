"""Envelopes of gateways, against a decryptor, a converter and Go's rules written down here."""

import base64
import hmac
import io
import json
import logging
import math
import os
import struct
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import redirect_stdout
from dataclasses import replace
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal, localcontext

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from iotsim.errors import BadValue, IotsimError, MissingExtra
from iotsim.gateway import sealing
from iotsim.gateway.envelope import NO_GATEWAY, NO_NUMBER, EnvelopeEncoder
from iotsim.gateway.go_text import go_float, go_floats, go_string
from iotsim.gateway.instants import RUNS_MAX, Instants
from iotsim.gateway.opening import opened
from iotsim.gateway.record import GatewayRecord, sensor_id
from iotsim.gateway.sealing import Seal, looks_like_hex
from iotsim.publishers.base import build
from iotsim.publishers.pump import Pump
from iotsim.readings import Column, Group, Marks, Readings
from iotsim.units import instant_us

START_US = instant_us("2026-03-01T12:00:00Z")
KEYS = ["gatewayId", "sensorId", "sensorType", "timestamp", "keyVersion", "encryptedData", "iv",
        "authTag"]


def record(n=1, **changes):
    made = GatewayRecord(
        f"gw-{n}", f"f-{n}", factory_key=f"factory-secret-{n}", private_key_pem=f"pem-secret-{n}",
        gateway_id=f"9f5a0a3e-0a53-4b2f-8c4e-{n:012d}",
        tenant_id=f"7c1e0000-0a53-4b2f-8c4e-{n:012d}", cert_pem="cert",
        aes_key=bytes([n % 256]) * 32, status="online",
        sensors=({"name": "temperature", "type": "temperature"},))
    return replace(made, **changes)


def records(count=3):
    return {f"gw-{n}": record(n) for n in range(1, count + 1)}


def group(count=3, kind="temperature", index=0):
    return Group(index, kind, [f"gw-{n}:{kind}" for n in range(1, count + 1)], {"sensor": kind})


def readings(values, *, of=None, device=None, seq=None, time_us=None, kind="float", marks=None):
    """Rows of one tick, one device after the other, unless told otherwise."""
    values = np.asarray(values)
    of = of or group(len(values))
    n = len(values)
    device = np.arange(n) if device is None else np.asarray(device)
    seq = np.zeros(n) if seq is None else np.asarray(seq)
    time_us = START_US + seq * 1_000_000 if time_us is None else np.asarray(time_us)
    return Readings(of, device.astype(np.int32), seq.astype(np.int64), time_us.astype(np.int64),
                    {"value": Column(kind, values)}, None, marks)


def marked(rows, sub=None, copy=None):
    zeros = np.zeros(rows, np.int16)
    return Marks(("",), zeros, zeros, None,
                 None if sub is None else np.asarray(sub, np.int32),
                 None if copy is None else np.asarray(copy, np.int32))


def decrypted(payload, key):
    """What a consumer makes of an envelope: JSON, base64, AES-256-GCM; nothing of iotsim's."""
    found = json.loads(payload)
    nonce, tag = base64.b64decode(found["iv"]), base64.b64decode(found["authTag"])
    assert (len(nonce), len(tag)) == (12, 16)
    return found, AESGCM(key).decrypt(nonce, base64.b64decode(found["encryptedData"]) + tag, None)


def dapi_converted(text):
    """The data API's converter (contract fact 4): base64 to bytes, but hex where it looks so."""
    if len(text) % 2 == 0 and all(c in "0123456789abcdefABCDEF" for c in text):
        return bytes.fromhex(text)
    return base64.b64decode(text, validate=True)


def shortest(x):
    """The fewest digits that read back as x, the nearest of those, of two the even."""
    exact = Decimal(x)
    for digits in range(1, 18):
        step = Decimal(1).scaleb(exact.adjusted() - digits + 1)
        near = [exact.quantize(step, rounding) for rounding in (ROUND_FLOOR, ROUND_CEILING)]
        fit = [one for one in near if float(one) == x]
        if fit:
            return min(fit, key=lambda one: (abs(one - exact), one.as_tuple().digits[-1] % 2))
    raise AssertionError(x)


def slow_go_float(x):
    """Go's encoding/json for a float64, from its rules, by searching the shortest digits."""
    if x == 0:
        return "-0" if math.copysign(1, x) < 0 else "0"
    with localcontext(prec=1100):
        found = shortest(x)
        digits = "".join(map(str, found.as_tuple().digits)).rstrip("0")
        exponent, sign = found.adjusted(), "-" if x < 0 else ""
    if 1e-6 <= abs(x) < 1e21:
        if exponent < 0:
            return f"{sign}0.{'0' * (-exponent - 1)}{digits}"
        whole, rest = digits[:exponent + 1].ljust(exponent + 1, "0"), digits[exponent + 1:]
        return f"{sign}{whole}.{rest}" if rest else sign + whole
    rest = "." + digits[1:] if digits[1:] else ""
    return f"{sign}{digits[0]}{rest}e{'-' if exponent < 0 else '+'}{abs(exponent)}"


def fields(messages):
    return [json.loads(payload) for payload in messages.payloads]


# -- the wire -------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [3, 40])
def test_an_envelope_is_what_the_contract_says_byte_for_byte(count):
    known = records(count)
    encoder = EnvelopeEncoder("run", known)
    messages = encoder.encode(readings([20.0 + n / 4 for n in range(count)]))
    assert len(messages) == count
    for n, payload in enumerate(messages.payloads, 1):
        who = known[f"gw-{n}"]
        found, plain = decrypted(payload, who.aes_key)
        assert list(found) == KEYS
        expected = (
            f'{{"gatewayId":"{who.gateway_id}",'
            f'"sensorId":"{sensor_id(who.gateway_id, "temperature")}",'
            '"sensorType":"temperature","timestamp":"2026-03-01T12:00:00.000000Z","keyVersion":1,'
            f'"encryptedData":"{found["encryptedData"]}","iv":"{found["iv"]}",'
            f'"authTag":"{found["authTag"]}"}}')
        assert payload == expected.encode()
        value = format(20 + (n - 1) / 4, "g")
        assert plain == f'{{"value":{value},"unit":"°C"}}'.encode()
        assert len(found["iv"]) == 16
        assert len(found["authTag"]) == 24
    first = known["gw-1"]
    assert messages.topics[0] == f"telemetry.data.{first.tenant_id}.{first.gateway_id}"
    assert messages.ids[0] == "run/gw-1:temperature/0/0"
    assert not messages.missing


@pytest.mark.parametrize(("kind", "unit"), [
    ("temperature", "°C"), ("humidity", "%"), ("pressure", "hPa"), ("movement", "m/s"),
    ("biometric", "bpm"), ("unheard", ""),
])
def test_the_unit_is_that_of_the_type(kind, unit):
    encoder = EnvelopeEncoder("run", records(1))
    messages = encoder.encode(readings([1.5], of=group(1, kind)))
    found, plain = decrypted(messages.payloads[0], records(1)["gw-1"].aes_key)
    assert found["sensorType"] == kind
    assert plain == f'{{"value":1.5,"unit":"{unit}"}}'.encode()


def test_the_longest_number_fits_the_platforms_column():
    longest = [-1.2345678901234567e-6, -1.7976931348623157e308, -2.2250738585072014e-308,
               -999999999999999868928.0]
    encoder = EnvelopeEncoder("run", records(4))
    for kind in ("temperature", "pressure", "biometric"):
        made = fields(encoder.encode(readings(longest, of=group(4, kind, hash(kind) % 1000))))
        assert max(len(one["encryptedData"]) for one in made) <= 72


def test_whole_numbers_of_a_field_are_floats_on_the_wire():
    encoder = EnvelopeEncoder("run", records(2))
    for block in (readings([20, 2**53 + 1], kind="int"),
                  readings(np.full(40, 7), kind="int", of=group(40, index=1))):
        known = records(40)
        encoder = EnvelopeEncoder("run", known)
        plain = [decrypted(payload, known[f"gw-{n}"].aes_key)[1]
                 for n, payload in enumerate(encoder.encode(block).payloads, 1)]
        assert json.loads(plain[0])["value"] in (20, 7)
        assert b"." not in plain[0]
    assert go_floats(Column("int", np.array([2**53 + 1]))) == [b"9007199254740992"]


def test_few_rows_and_many_are_encoded_alike():
    known, values = records(40), [20 + n / 7 for n in range(40)]
    whole = EnvelopeEncoder("run", known, replayable=True).encode(readings(values))
    apart = EnvelopeEncoder("run", known, replayable=True)
    rows = [apart.encode(readings(values).take(slice(n, n + 1))) for n in range(40)]
    assert [one.payloads[0] for one in rows] == whole.payloads
    assert [one.ids[0] for one in rows] == whole.ids
    assert [one.topics[0] for one in rows] == whole.topics


# -- numbers and texts as Go writes them ----------------------------------------------------------


@pytest.mark.parametrize(("value", "text"), [
    (20.0, "20"), (0.0, "0"), (-0.0, "-0"), (23.47, "23.47"), (1e-6, "0.000001"),
    (9.999999999999997e-7, "9.999999999999997e-7"), (2.0**-24, "5.960464477539063e-8"),
    (3 * 2.0**-24, "1.7881393432617188e-7"), (1e-7, "1e-7"), (1.5e-9, "1.5e-9"),
    (1e-10, "1e-10"), (1e20, "100000000000000000000"), (999999999999999900000.0,
    "999999999999999900000"), (1e21, "1e+21"), (1.5e21, "1.5e+21"), (1e100, "1e+100"),
    (5e-324, "5e-324"), (1.7976931348623157e308, "1.7976931348623157e+308"),
    (0.1 + 0.2, "0.30000000000000004"), (1e15, "1000000000000000"), (1e16, "10000000000000000"),
    (123456789.125, "123456789.125"), (0.0001, "0.0001"), (0.00001, "0.00001"), (-1e-7, "-1e-7"),
    (9007199254740993.0, "9007199254740992"), (2251799813685248.5, "2251799813685248.5"),
])
def test_a_float_is_written_as_go_writes_it(value, text):
    assert go_float(value) == text.encode()
    assert go_floats(Column("float", np.full(20, value))) == [text.encode()] * 20


@given(st.lists(st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-2**64, 2**64).map(float),
    st.floats(1e-8, 1e-3), st.floats(1e14, 1e23), st.integers(-10**6, 10**6).map(lambda n: n / 100),
), min_size=1, max_size=40))
def test_floats_are_written_by_gos_rules(values):
    expected = [slow_go_float(x).encode() for x in values]
    assert [go_float(x) for x in values] == expected
    padded = np.array(values + [1.5] * 16)
    assert go_floats(Column("float", padded))[:len(values)] == expected


@given(st.integers(0, 2**64 - 1))
def test_any_bits_that_are_a_number_read_back_as_the_same(bits):
    value = struct.unpack("<d", struct.pack("<Q", bits))[0]
    if math.isfinite(value):
        assert struct.pack("<d", float(go_float(value))) == struct.pack("<d", value)


def test_texts_are_escaped_as_go_does():
    assert go_string('a<b>&"\\/°\n\t\x01\u2028é') == (
        '"a\\u003cb\\u003e\\u0026\\"\\\\/°\\n\\t\\u0001\\u2028é"'.encode())


# -- nonces ---------------------------------------------------------------------------------------


def test_a_million_envelopes_have_a_million_nonces():
    # Of 10,000,000, two are equal with a probability of 10**14 / 2**97 = 6e-16.
    known = {"gw-1": record(1)}
    drawn = set()
    for _ in range(100):
        nonces, _ = sealing._random(10_000)
        drawn.update(nonces)
    assert len(drawn) == 1_000_000
    encoder = EnvelopeEncoder("run", known)
    seqs = np.arange(2000)
    made = fields(encoder.encode(readings(np.full(2000, 20.0), of=group(1),
                                          device=np.zeros(2000), seq=seqs)))
    assert len({one["iv"] for one in made}) == 2000


class Entropy:
    """An operating system whose randomness begins with what the test wants."""

    def __init__(self, *first):
        self.first, self.asked = list(first), 0

    def __call__(self, size):
        self.asked += 1
        if self.first:
            begin = self.first.pop(0)
            return begin + os.urandom(size)[:size - len(begin)]
        return os.urandom(size)


LOOK_ALIKE = base64.b64decode("abcdef0123456789")


@pytest.mark.parametrize("count", [1, 40])
def test_a_nonce_that_looks_like_hex_is_drawn_again(monkeypatch, count):
    entropy = Entropy(LOOK_ALIKE, LOOK_ALIKE, LOOK_ALIKE)
    real = os.urandom
    monkeypatch.setattr(sealing, "os", type("os", (), {"urandom": staticmethod(
        lambda size: entropy(size) if entropy.first else real(size))}))
    known = records(count)
    for one in fields(EnvelopeEncoder("run", known).encode(readings(np.full(count, 20.25)))):
        who = next(each for each in known.values() if each.gateway_id == one["gatewayId"])
        nonce, tag = dapi_converted(one["iv"]), dapi_converted(one["authTag"])
        sealed = dapi_converted(one["encryptedData"]) + tag
        assert AESGCM(who.aes_key).decrypt(nonce, sealed, None) == (
            '{"value":20.25,"unit":"°C"}'.encode())
    assert not entropy.first


def test_a_look_alike_would_be_misread_without_it():
    assert looks_like_hex(b"abcdef0123456789")
    assert dapi_converted("abcdef0123456789") != LOOK_ALIKE
    assert not looks_like_hex(b"abcdef012345678/")
    assert not looks_like_hex(b"abcdef012345678")  # an odd number of digits is no hex


@pytest.mark.parametrize("replayable", [False, True])
@pytest.mark.parametrize("count", [1, 40])
def test_a_ciphertext_that_looks_like_hex_is_sealed_again(monkeypatch, replayable, count):
    seen = []
    real = Seal.__init__

    def hexed(self, key):
        real(self, key)
        encrypt = self.encrypt

        def first_hex(nonce, plain, data):
            seen.append(nonce)
            # As if the cipher stream gave it: 24 bytes whose base64 are hex digits.
            fake = base64.b64decode("0a1b2c3d" * 4) + bytes(16)
            refused = len({one for one in seen if one == nonce}) and nonce == seen[0]
            return fake if refused else encrypt(nonce, plain, data)

        self.encrypt = first_hex

    monkeypatch.setattr(sealing.Seal, "__init__", hexed)
    known = records(count)
    encoder = EnvelopeEncoder("run", known, replayable=replayable)
    made = fields(encoder.encode(readings(np.full(count, 20.25))))
    assert not any(looks_like_hex(one["encryptedData"].encode()) for one in made)
    assert len(set(seen)) == count + 1


@pytest.mark.parametrize("count", [1, 40])
def test_a_derived_nonce_that_looks_like_hex_gives_way_to_the_next(monkeypatch, count):
    real, asked = Seal.nonce_for, []

    def unlucky(self, purpose, attempt):
        asked.append(attempt)
        return LOOK_ALIKE if attempt < 2 else real(self, purpose, attempt)

    monkeypatch.setattr(Seal, "nonce_for", unlucky)
    encoder = EnvelopeEncoder("run", records(count), replayable=True)
    made = fields(encoder.encode(readings(np.full(count, 20.25))))
    assert not any(looks_like_hex(one["iv"].encode()) for one in made)
    assert len({one["iv"] for one in made}) == count
    assert asked == [0, 1, 2] * count


def test_broken_randomness_is_an_error_not_a_loop(monkeypatch):
    broken = type("os", (), {"urandom": staticmethod(lambda size: LOOK_ALIKE * (size // 12))})
    monkeypatch.setattr(sealing, "os", broken)
    for count in (1, 40):
        with pytest.raises(IotsimError, match="randomness is broken"):
            EnvelopeEncoder("run", records(count)).encode(readings(np.full(count, 20.25)))


def test_the_converter_never_misreads_what_is_sent():
    known = records(1)
    encoder = EnvelopeEncoder("run", known)
    seqs = np.arange(3000)
    values = np.round(np.linspace(-1000, 1000, 3000), 3)
    block = readings(values, of=group(1), device=np.zeros(3000), seq=seqs)
    for one in fields(encoder.encode(block)):
        for name in ("encryptedData", "iv", "authTag"):
            assert dapi_converted(one[name]) == base64.b64decode(one[name], validate=True)


FORKS = """
import os, sys
from iotsim.gateway.sealing import Seal, sealed
def nonces():
    return b" ".join(sealed([Seal(b"k" * 32)] * 100, [b"plain"] * 100, None)[1])
nonces()
child = os.fork()
os.write(1, nonces() + b" ")
if child:
    os.waitpid(child, 0)
"""


def test_a_forked_process_draws_other_nonces():
    done = subprocess.run([sys.executable, "-c", FORKS], check=True, timeout=60,
                          capture_output=True)
    drawn = done.stdout.split()
    assert len(drawn) == len(set(drawn)) == 200


# -- the mode that replays ------------------------------------------------------------------------


def test_a_run_replays_byte_for_byte_in_the_mode_for_tests_alone():
    def sent(replayable):
        encoder = EnvelopeEncoder("run", records(), replayable=replayable)
        return [payload for n in range(5)
                for payload in encoder.encode(readings([20, 21.5, n], seq=[n] * 3)).payloads]

    assert sent(True) == sent(True)
    assert not set(sent(False)) & set(sent(False))
    assert "replayable" in repr(EnvelopeEncoder("run", {}, replayable=True))


@given(st.lists(st.tuples(
    st.integers(0, 3), st.integers(0, 2), st.integers(0, 3), st.sampled_from([1.0, 11.0, 1.5])),
    min_size=2, max_size=30, unique=True))
def test_no_derived_nonce_serves_two_plaintexts(rows):
    seal, used = Seal(b"k" * 32), {}
    uuid = sensor_id(record().gateway_id, "temperature").encode()
    for seq, sub, time_us, value in rows:
        plain = b'{"value":%b}' % go_float(value)
        nonce = seal.nonce_for((uuid, seq, sub, time_us, plain), 0)
        assert used.setdefault(nonce, (seq, sub, time_us, plain)) == (seq, sub, time_us, plain)
    assert len(used) == len(rows)


def test_derived_nonces_depend_on_the_key_and_the_sensor_too():
    purpose = (b"4f20438c-4d5d-5ea7-ae23-5bdb22c2c85a", 1, 0, START_US, b"plain")
    nonces = {Seal(key).nonce_for(purpose, 0) for key in (b"a" * 32, b"b" * 32)}
    nonces.add(Seal(b"a" * 32).nonce_for((b"0" * 36, *purpose[1:]), 0))
    nonces.add(Seal(b"a" * 32).nonce_for(purpose, 1))
    assert len(nonces) == 4
    key = hmac.digest(b"a" * 32, b"iotsim: nonces of a run that replays, version 1", "sha256")
    text = b"%b 1 0 %d 0 plain" % (purpose[0], START_US)
    assert Seal(b"a" * 32).nonce_for(purpose, 0) == hmac.digest(key, text, "sha256")[:12]


# -- one timestamp, one reading -------------------------------------------------------------------


def stamps(messages):
    return [one["timestamp"] for one in fields(messages)]


@pytest.mark.parametrize("rows", [6, 60])
def test_readings_of_a_sensor_that_show_one_microsecond_are_moved_apart(rows):
    encoder = EnvelopeEncoder("run", records(2))
    same = readings(np.arange(rows, dtype=float), of=group(2), device=np.arange(rows) % 2,
                    seq=np.arange(rows) // 2, time_us=np.full(rows, START_US))
    found = list(zip((n % 2 for n in range(rows)), stamps(encoder.encode(same)), strict=True))
    assert len(set(found)) == rows
    assert [text for device, text in found if device == 0] == [
        f"2026-03-01T12:00:00.{n:06d}Z" for n in range(rows // 2)]
    assert (same.time_us == START_US).all()  # the model's own time stays


def test_a_clock_that_jumps_back_meets_what_it_showed_before():
    encoder = EnvelopeEncoder("run", records(1))
    seconds = [0, 1, 2, 3, 4, 5, 2, 3, 4, 5, 6, 7]
    block = readings(np.zeros(12), of=group(1), device=np.zeros(12), seq=np.arange(12),
                     time_us=START_US + np.array(seconds) * 1_000_000)
    found = stamps(encoder.encode(block))
    assert len(set(found)) == 12
    assert [text[17:26] for text in found[6:]] == [
        "02.000001", "03.000001", "04.000001", "05.000001", "06.000000", "07.000000"]


def test_another_group_of_the_same_device_knows_what_was_shown():
    encoder = EnvelopeEncoder("run", records(1))
    first = encoder.encode(readings([1.0], of=group(1)))
    again = encoder.encode(readings([1.0], of=group(1, index=7), seq=[1], time_us=[START_US]))
    assert stamps(first) != stamps(again)


@given(st.lists(st.integers(0, 12), max_size=80))
def test_no_instant_is_shown_twice_and_the_first_free_one_is_taken(times):
    seen, used = Instants(), set()
    for time_us in times:
        free = next(t for t in range(time_us, 1000) if t not in used)
        assert seen.claim(time_us) == free
        used.add(free)
    assert not seen.forgotten


def test_an_instant_that_a_moved_reading_took_is_taken():
    seen = Instants()
    assert [seen.claim(t) for t in (5, 5, 6, 6, 5)] == [5, 6, 7, 8, 9]


def test_a_regular_sensor_is_remembered_for_ever_in_24_bytes():
    seen = Instants()
    for n in range(10_000):
        assert seen.claim(n * 1000) == n * 1000
    assert len(seen._runs) == 3
    assert seen.claim(1000) == 1001
    assert seen.claim(1500) == 1500


def test_what_is_remembered_of_an_irregular_one_is_bounded_and_counted():
    seen, time_us = Instants(), 0
    for n in range(10_000):
        time_us += 1000 + n * n % 97
        seen.claim(time_us)
    assert len(seen._runs) <= 3 * RUNS_MAX
    assert seen.forgotten
    assert seen.claim(time_us) == time_us + 1


def test_a_clock_that_stands_still_costs_no_more_the_longer_it_stands():
    seen = Instants()
    assert [seen.claim(5) for _ in range(50_000)] == list(range(5, 50_005))
    assert len(seen._runs) <= 6


# -- copies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("replayable", [False, True])
def test_a_copy_is_the_same_envelope_under_another_id(replayable):
    encoder = EnvelopeEncoder("run", records(2), replayable=replayable)
    block = readings([20.0, 20.0, 21.0, 22.0], of=group(2), device=[0, 0, 1, 1], seq=[3, 3, 3, 4],
                     marks=marked(4, copy=[0, 1, 0, 0]))
    messages = encoder.encode(block)
    assert messages.payloads[0] == messages.payloads[1]
    assert len(set(messages.payloads)) == 3
    assert messages.ids == ["run/gw-1:temperature/3/0", "run/gw-1:temperature/3/1",
                            "run/gw-2:temperature/3/0", "run/gw-2:temperature/4/0"]


def test_a_copy_of_a_reading_that_was_moved_is_moved_with_it():
    encoder = EnvelopeEncoder("run", records(1))
    encoder.encode(readings([20.0], of=group(1)))
    pair = readings([20.0, 20.0], of=group(1), device=[0, 0], seq=[1, 1], time_us=[START_US] * 2,
                    marks=marked(2, copy=[0, 1]))
    messages = encoder.encode(pair)
    assert stamps(messages) == ["2026-03-01T12:00:00.000001Z"] * 2
    assert messages.payloads[0] == messages.payloads[1]


def test_a_copy_without_its_original_still_tells_the_truth():
    encoder = EnvelopeEncoder("run", records(1))
    alone = readings([20.0], of=group(1), seq=[5], marks=marked(1, copy=[1]))
    messages = encoder.encode(alone)
    assert stamps(messages) == ["2026-03-01T12:00:05.000000Z"]
    assert messages.ids == ["run/gw-1:temperature/5/1"]


def test_a_reading_between_two_ticks_is_one_of_its_own():
    encoder = EnvelopeEncoder("run", records(1), replayable=True)
    block = readings([20.0] * 3, of=group(1), device=[0] * 3, seq=[1] * 3, time_us=[START_US] * 3,
                     marks=marked(3, sub=[0, 1, 2]))
    messages = encoder.encode(block)
    assert messages.ids == [f"run/gw-1:temperature/{seq}/0" for seq in ("1", "1.1", "1.2")]
    made = fields(messages)
    assert len({one["iv"] for one in made}) == len({one["timestamp"] for one in made}) == 3


# -- what has no envelope -------------------------------------------------------------------------


@pytest.mark.parametrize("count", [4, 40])
def test_what_is_no_number_has_no_message_and_is_counted(count):
    values = np.linspace(20, 21, count)
    values[1], values[2] = math.nan, -math.inf
    messages = EnvelopeEncoder("run", records(count)).encode(readings(values))
    assert len(messages) == count - 2
    assert messages.missing == {NO_NUMBER: 2}
    assert messages.ids[1] == "run/gw-4:temperature/0/0"
    assert messages.kept.tolist() == [n not in (1, 2) for n in range(count)]
    assert len(messages.time_us) == count - 2


@pytest.mark.parametrize("count", [4, 40])
def test_a_gateway_that_is_gone_or_not_there_yet_is_counted_too(count):
    known = records(count)
    del known["gw-1"]
    known["gw-2"] = GatewayRecord("gw-2", "f-2")
    encoder = EnvelopeEncoder("run", known)
    encoder.prepare(group(count))  # no error: it may come
    block = readings(np.full(count, 20.0))
    messages = encoder.encode(block)
    assert messages.missing == {NO_GATEWAY: 2}
    assert len(messages) == count - 2
    known |= {"gw-1": record(1), "gw-2": record(2)}
    messages = encoder.encode(readings(np.full(count, 20.0), seq=np.ones(count)))
    assert not messages.missing
    assert len(messages) == count
    known.pop("gw-3")
    assert encoder.encode(block).missing == {NO_GATEWAY: 1}


@pytest.mark.parametrize("count", [2, 40])
def test_a_column_of_other_than_numbers_is_counted_not_an_error(count):
    text = readings(np.zeros(count, np.int32), kind="text")
    assert EnvelopeEncoder("run", records(count)).encode(text).missing == {NO_NUMBER: count}
    absent = readings(np.zeros(count))
    column = Column("float", np.zeros(count), (), np.arange(count) > 0)
    absent = replace(absent, columns={"value": column})
    assert EnvelopeEncoder("run", records(count)).encode(absent).missing == {NO_NUMBER: 1}


def test_a_new_key_is_used_from_the_moment_that_the_record_has_it():
    known = records(1)
    encoder = EnvelopeEncoder("run", known)
    encoder.encode(readings([20.0]))
    known["gw-1"] = replace(known["gw-1"], aes_key=b"n" * 32, status="paused")
    payload = encoder.encode(readings([20.0], seq=[1])).payloads[0]
    assert decrypted(payload, b"n" * 32)[1] == '{"value":20,"unit":"°C"}'.encode()


def test_what_has_no_envelope_is_dropped_in_the_ledger_with_its_reason():
    from iotsim.feeders import Feeder

    pump = Pump(build("memory:envelopes"))
    feeder = Feeder(pump, 0, lambda: None)
    feeder.put(EnvelopeEncoder("run", records(2)).encode(readings([math.nan, math.inf])))
    account = pump.snapshot()
    assert account.drops == {NO_NUMBER: 2}
    assert account.balanced
    assert feeder.empty


# -- secrets --------------------------------------------------------------------------------------


def every_text(error):
    """All that a printed traceback could show, with the locals of its frames but for our own."""
    known = traceback.TracebackException.from_exception(error, capture_locals=True)
    frames = [frame for frame in known.stack if frame.filename != __file__]
    return repr(error) + "".join(f"{frame.name} {frame.locals}" for frame in frames)


def test_no_key_is_shown_by_anything(caplog):
    caplog.set_level(logging.DEBUG)
    key = bytes(range(65, 97))
    secrets = (repr(key)[2:-1], key.hex(), base64.b64encode(key).decode(), "factory-secret",
               "pem-secret")
    known = {"gw-1": record(1, aes_key=key)}
    encoder = EnvelopeEncoder("run", known, replayable=True)
    printed = io.StringIO()
    with redirect_stdout(printed):
        messages = encoder.encode(readings([20.0]))
    known_sensor = encoder._known_of(group(1)).sensors[0]
    texts = [repr(encoder), repr(known_sensor), repr(known_sensor.seal), repr(messages),
             repr(encoder._known), repr(encoder._seals), printed.getvalue(), caplog.text]
    with pytest.raises(BadValue, match="32 bytes") as caught:
        Seal(key[:31])
    texts.append(str(caught.value))
    for text in texts:
        assert not any(secret in text for secret in secrets), text


def test_a_key_of_another_size_is_an_error_that_holds_none_of_it():
    known: Mapping[str, GatewayRecord] = {"gw-1": record(1, aes_key=b"shortsecret")}
    with pytest.raises(BadValue, match="<11 bytes>' is no key of AES-256") as caught:
        EnvelopeEncoder("run", known).encode(readings([20.0]))
    assert "shortsecret" not in every_text(caught.value)


def test_without_the_library_the_error_says_which_extra_brings_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingExtra, match=r'iotsim\[notip\]'):
        EnvelopeEncoder("run", records(1)).encode(readings([20.0]))
    with pytest.raises(MissingExtra, match=r'encrypted telemetry needs cryptography'):
        opened(b"{}", b"k" * 32)


def test_the_modules_of_envelopes_load_without_the_library():
    code = ("import sys; sys.modules['cryptography'] = None; "
            "import iotsim.gateway.envelope, iotsim.gateway.opening, iotsim.gateway.sealing")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
