"""Keys of gateways: right, made elsewhere, and by processes that never stay behind."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from iotsim.clock import cpu_s, monotonic
from iotsim.errors import BadValue, MissingExtra
from iotsim.gateway import keys as keys_module
from iotsim.gateway.keys import KeyMaker, csr_pem
from iotsim.gateway.provisioning_errors import KeysUnavailable
from tests.conftest import lacking

PATIENCE_S = 60

# What a notebook is: no module of its own, a loop that is running, and an end by SIGKILL.
KERNEL = """
import asyncio
from iotsim.gateway.keys import KeyMaker
async def main():
    async with KeyMaker(1) as keys:
        await keys.make()
        (child,) = keys._children
        print(child._process.pid, flush=True)
        while True:
            await keys.make()
asyncio.run(main())
"""


def made(count, workers=1):
    async def main():
        async with KeyMaker(workers) as keys:
            return await asyncio.gather(*(keys.make() for _ in range(count)))

    return asyncio.run(main())


def alive(pid):
    # One that has ended and waits for its parent to hear of it is gone.
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


async def until(condition):
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def pids(keys):
    return [child._process.pid for child in keys._children if child._process is not None]


def test_a_key_is_rsa_2048_as_pkcs1_and_its_request_is_what_the_service_takes(tmp_path):
    first, second = made(2)
    assert first != second
    assert first.startswith("-----BEGIN RSA PRIVATE KEY-----\n")
    key = serialization.load_pem_private_key(first.encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    assert (key.key_size, key.public_key().public_numbers().e) == (2048, 65537)
    text = csr_pem(first)
    assert text.startswith("-----BEGIN CERTIFICATE REQUEST-----\n")
    assert "\r" not in text
    csr = x509.load_pem_x509_csr(text.encode())
    assert csr.is_signature_valid
    assert (list(csr.subject), csr.signature_hash_algorithm.name) == ([], "sha256")
    assert csr.public_key() == key.public_key()
    openssl = shutil.which("openssl") or lacking("openssl is not installed")
    (tmp_path / "request.pem").write_text(text)
    shown = subprocess.run(
        [openssl, "req", "-verify", "-noout", "-subject", "-in", str(tmp_path / "request.pem")],
        capture_output=True, text=True, timeout=PATIENCE_S, check=True,
    )
    assert "OK" in shown.stdout + shown.stderr
    assert shown.stdout.strip().splitlines()[-1].replace(" ", "") == "subject="


def test_twenty_keys_are_made_elsewhere_while_the_loop_turns(record_property):
    async def main():
        lags_s, over = [], asyncio.Event()

        async def beat():
            while not over.is_set():
                due_s = monotonic() + 0.005
                await asyncio.sleep(0.005)
                lags_s.append(monotonic() - due_s)

        async with KeyMaker() as keys:
            await keys.make()  # the process has begun
            beating = asyncio.create_task(beat())
            begun_s, used_s = monotonic(), cpu_s()
            await asyncio.gather(*(keys.make() for _ in range(20)))
            took_s, used_s = monotonic() - begun_s, cpu_s() - used_s
        over.set()
        await beating
        return sorted(lags_s), took_s, used_s

    lags_s, took_s, used_s = asyncio.run(main())
    record_property("keys_per_s", 20 / took_s)
    record_property("lag_p99_ms", 1e3 * lags_s[int(0.99 * len(lags_s))])
    assert used_s < 0.5 * took_s, "who asks for keys does not make them"
    assert len(lags_s) > 20, "the loop turned meanwhile"


def test_cancelled_a_key_costs_its_process_and_nobody_elses_key():
    async def main():
        async with KeyMaker(1) as keys:
            await keys.make()
            (before,) = pids(keys)
            asking = asyncio.create_task(keys.make())
            waiting = asyncio.create_task(keys.make())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            asking.cancel()
            assert await waiting
            assert asking.cancelled()
            (after,) = pids(keys)
            await until(lambda: not alive(before))
        assert before != after
        await until(lambda: not alive(after))

    asyncio.run(main())


def test_a_process_that_was_killed_while_it_waited_is_replaced():
    async def main():
        async with KeyMaker(1) as keys:
            await keys.make()
            os.kill(pids(keys)[0], signal.SIGKILL)
            assert await keys.make()

    asyncio.run(main())


def test_a_block_that_fails_leaves_no_process():
    async def main():
        found = []

        async def cell():
            async with KeyMaker(2) as keys:
                await asyncio.gather(keys.make(), keys.make())
                found.extend(pids(keys))
                raise RuntimeError("the cell failed")

        with pytest.raises(RuntimeError, match="the cell failed"):
            await cell()
        assert len(found) == 2
        await until(lambda: not any(map(alive, found)))

    asyncio.run(main())


def test_a_kernel_that_is_killed_leaves_no_process_and_no_key_on_a_command_line():
    with subprocess.Popen(
        [sys.executable, "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as kernel:
        try:
            kernel.stdin.write(KERNEL.encode())
            kernel.stdin.close()
            pid = int(kernel.stdout.readline())
            told = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            assert told[1:] == ["-P", str(Path(keys_module.__file__).with_name("key_worker.py")),
                                ""]
            assert alive(pid)
        finally:
            kernel.kill()
        asyncio.run(until(lambda: not alive(pid)))


def test_a_process_that_cannot_make_keys_is_one_line(tmp_path, monkeypatch):
    broken = tmp_path / "worker.py"
    broken.write_text("raise SystemExit(3)")
    monkeypatch.setattr(keys_module, "_PROGRAM", broken)
    with pytest.raises(KeysUnavailable, match=r"^no RSA key can be made: the process that makes "
                                              r"them (ended early|failed)") as caught:
        made(1)
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(KeysUnavailable, match="No such file"):
        made(1)


def test_a_closed_maker_says_how_to_open_one():
    keys = KeyMaker(1)
    with pytest.raises(KeysUnavailable, match="async with KeyMaker"):
        asyncio.run(keys.make())
    assert repr(keys) == "<KeyMaker of 1 processes at most: 0 keys made>"


@pytest.mark.parametrize("workers", [0, 33, True, 1.5, "2"])
def test_a_number_of_processes_that_is_none_is_refused(workers):
    with pytest.raises(BadValue, match="Give a whole number from 1 to 32"):
        KeyMaker(workers)


@pytest.mark.parametrize("pem", ["", "s3cret nonsense", "é"])
def test_what_is_no_key_is_refused_and_not_shown(pem):
    with pytest.raises(BadValue, match="is no RSA key in PEM") as caught:
        csr_pem(pem)
    assert "s3cret" not in str(caught.value)


def test_a_key_of_another_kind_is_refused():
    pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    with pytest.raises(BadValue, match="is no RSA key in PEM"):
        csr_pem(pem.decode())


def test_without_cryptography_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(keys_module, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"iotsim\[notip\]"):
        csr_pem("")
