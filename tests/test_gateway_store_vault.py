"""Secrets of a store: encrypted each in its place, under a key that is kept elsewhere."""

import base64
import logging
import os
import sqlite3
import traceback
from contextlib import closing

import pytest

from iotsim.errors import BadValue, MissingExtra, StoreError
from iotsim.gateway.commands import Answer
from iotsim.gateway.record import GatewayRecord
from iotsim.gateway.store import Store
from iotsim.gateway.vault import KEY_ENV, Vault, parse_key
from tests import in_memory

tmp_path = in_memory.tmp_path  # the fixture

KEY = bytes(range(100, 132))
KEY_TEXT = base64.b64encode(KEY).decode()
AES = bytes(range(50, 82))
FACTORY, PEM = "sesame-open-very-secretly", "-----BEGIN RSA PRIVATE KEY-----\nMIIEthisisit\n"
SECRETS = ("factory_key", "private_key_pem", "aes_key")


@pytest.fixture(autouse=True)
def _no_key_in_the_environment(monkeypatch):
    monkeypatch.delenv(KEY_ENV, raising=False)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "gateways.db")


def record(name="gw-1"):
    return GatewayRecord(name, f"f {name}", FACTORY, private_key_pem=PEM, aes_key=AES,
                         gateway_id=f"id {name}", cert_pem="certificate")


def spellings(secret):
    raw = secret.encode() if isinstance(secret, str) else secret
    return raw, base64.b64encode(raw), raw.hex().encode(), repr(raw)[2:-1].encode()


def damage(path, statement, *values):
    with closing(sqlite3.connect(path)) as plain:
        assert plain.execute(statement, values).rowcount == 1
        plain.commit()


# -- where secrets are not ------------------------------------------------------------------------


def test_no_secret_stands_in_any_file_of_a_store(path, tmp_path):
    with Store.open(path) as store:
        store.save(record())
        store.update("gw-1", factory_key=FACTORY + "!", aes_key=AES[::-1])
        store.apply("gw-1", {"private_key_pem": PEM + "\n", "aes_key": AES}, Answer("c", "ack"))
        store.save(record("gw-2"))
        store.delete("gw-2")

        def holding():
            return [(file.name, secret) for file in tmp_path.iterdir()
                    for secret in (FACTORY, PEM, PEM[32:], AES, AES[::-1])
                    for spelled in spellings(secret) if spelled in file.read_bytes()]

        assert {file.suffix for file in tmp_path.iterdir()} >= {".db", ".db-wal", ".db-shm"}
        assert holding() == []
    assert holding() == []


def test_the_same_secret_is_never_encrypted_alike(path):
    with Store.open(path) as store:
        store.save(record(), record("gw-2"))
        store.save(record("gw-2"))
        with store._file.reading() as connection:
            sealed = [value for row in connection.execute(
                f"SELECT {', '.join(SECRETS)} FROM gateways") for value in row]
    assert len(set(sealed)) == 6
    assert len({value[1:13] for value in sealed}) == 6


def test_no_secret_stands_in_a_repr_an_error_its_traceback_or_a_log(path, caplog):
    caplog.set_level(logging.DEBUG)
    said = []

    def failing(call):
        try:
            call()
        except Exception as error:
            lines = traceback.TracebackException.from_exception(error, capture_locals=True)
            said.extend(("".join(lines.format()), repr(error.__context__), repr(error.__cause__)))
        else:
            raise AssertionError("no error")

    with Store.open(path, key=KEY_TEXT) as store:
        store.save(record())
        said += [repr(store), repr(store.records()), str(store.get("gw-1"))]
        failing(lambda: store.add(record()))
        failing(lambda: store.update("gw-2", factory_key=FACTORY))
        failing(lambda: store.update("gw-1", factory_key=FACTORY, aes_key=AES[1:]))
        failing(lambda: store.update("gw-1", factory_key=FACTORY + "\ud800"))
        failing(lambda: store.update("gw-1", private_key_pem=PEM.encode()))
        failing(lambda: store.apply("gw-1", {"aes_key": [AES]}, Answer("c", "ack")))
    failing(lambda: Store.open(path, key=KEY_TEXT[::-1]))
    failing(lambda: Store.open(path, key=KEY_TEXT[1:]))
    failing(lambda: Store.open(path, key=KEY[1:]))
    damage(path, "UPDATE gateways SET factory_key = private_key_pem")
    with Store.open(path, key=KEY_TEXT) as store:
        failing(store.records)
    text = "\n".join([*said, caplog.text])
    for secret in (FACTORY, PEM, "MIIEthisisit", AES, AES[1:], KEY, KEY[1:], KEY_TEXT,
                   KEY_TEXT[::-1], KEY_TEXT[1:]):
        for spelled in spellings(secret):
            assert spelled.decode("latin-1") not in text


# -- the key --------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [
    KEY, KEY.hex(), KEY.hex().upper(), base64.b64encode(KEY).decode(), base64.b64encode(KEY),
    base64.urlsafe_b64encode(KEY).decode().rstrip("="), f"  {KEY.hex()}\n",
])
def test_a_key_is_thirty_two_bytes_however_they_are_written(given):
    assert parse_key("key", given) == KEY


@pytest.mark.parametrize("given", [
    "", "password", "0" * 63, "g" * 64, KEY[1:], KEY + KEY, 5, KEY.hex() + "00", "é" * 44,
    bytearray(KEY), base64.b64encode(KEY + b"x").decode(),
])
def test_what_is_no_key_is_refused_and_makes_no_store(path, tmp_path, given):
    with pytest.raises(BadValue, match=r"is no key\. Give 32 bytes as base64") as caught:
        Store.open(path, key=given)
    assert "password" not in str(caught.value)
    Store.open(path, key=KEY).close()


def test_without_a_key_a_file_is_made_for_it_and_used_again(path):
    with Store.open(path) as store:
        store.save(record())
    with open(f"{path}.key") as file:
        text = file.read()
    assert len(base64.b64decode(text)) == 32
    assert os.stat(f"{path}.key").st_mode & 0o777 == 0o600
    with Store.open(path) as store:
        assert store.records() == [record()]
    with Store.open(path, key=text) as store:
        assert store.records() == [record()]
    with open(f"{path}.key") as file:
        assert file.read() == text


def test_a_key_of_the_environment_comes_before_the_file_and_makes_none(path, monkeypatch):
    monkeypatch.setenv(KEY_ENV, KEY.hex())
    with Store.open(path) as store:
        store.save(record())
    assert not os.path.exists(f"{path}.key")
    monkeypatch.delenv(KEY_ENV)
    with pytest.raises(StoreError, match=r"its key file .* is missing"):
        Store.open(path)
    with Store.open(path, key=KEY) as store:
        assert store.records() == [record()]
    monkeypatch.setenv(KEY_ENV, "nonsense")
    with pytest.raises(BadValue, match=f"{KEY_ENV}='…' is no key"):
        Store.open(path)


def test_a_lost_key_file_is_never_replaced_by_a_new_one(path):
    with Store.open(path) as store:
        store.save(record())
    os.rename(f"{path}.key", f"{path}.away")
    for _ in range(2):
        with pytest.raises(StoreError) as caught:
            Store.open(path)
        assert str(caught.value) == (
            f"{path}: its secrets are encrypted, and its key file {path}.key is missing. Put that "
            f"file back, or give the key as key= or {KEY_ENV}.")
        assert not os.path.exists(f"{path}.key")
    os.rename(f"{path}.away", f"{path}.key")
    with Store.open(path) as store:
        assert store.records() == [record()]


def test_what_a_kill_left_of_a_new_key_is_in_nobodys_way(path):
    with open(f"{path}.key.new", "w") as file:
        file.write("ha")
    with Store.open(path) as store:
        store.save(record())
    assert not os.path.exists(f"{path}.key.new")
    with Store.open(path) as store:
        assert store.records() == [record()]


def test_a_store_that_was_killed_before_its_key_was_tried_takes_the_key_file_that_is_there(path):
    Store.open(path).close()
    with open(f"{path}.key") as file:
        text = file.read()
    damage(path, "DELETE FROM facts WHERE name = 'check'")
    with Store.open(path) as store:
        store.save(record())
    with Store.open(path, key=text) as store:
        assert store.records() == [record()]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o622, 0o777])
def test_a_key_file_that_others_can_use_is_refused(path, mode):
    Store.open(path).close()
    os.chmod(f"{path}.key", mode)
    with pytest.raises(StoreError, match=f"Type: chmod 600 {path}.key"):
        Store.open(path)
    os.chmod(f"{path}.key", 0o600)
    Store.open(path).close()


@pytest.mark.parametrize("text", ["", "not a key", "A" * 5000])
def test_a_key_file_without_a_key_says_so(path, text):
    Store.open(path).close()
    with open(f"{path}.key", "w") as file:
        file.write(text)
    with pytest.raises(StoreError, match="holds no key of 32 bytes as base64 or hex"):
        Store.open(path)


def test_another_key_is_noticed_at_once(path):
    with Store.open(path, key=KEY) as store:
        store.save(record())
        with pytest.raises(StoreError, match="encrypted with another key"):
            Store.open(path, key=KEY[::-1])
        assert Store.open(path, key=KEY).records() == [record()]
        assert Store.open(path).records() == [record()]  # this process has shown that it has it
    with pytest.raises(StoreError, match="encrypted with another key"):
        Store.open(path, key=KEY[::-1])


def test_without_the_library_it_says_which_extra_brings_it(path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules,
                        "cryptography.hazmat.primitives.ciphers.aead", None)
    with pytest.raises(MissingExtra, match=r'pip install "iotsim\[notip\]"'):
        Store.open(path)


# -- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", SECRETS)
@pytest.mark.parametrize("value", [
    b"", b"\x01", b"\x01" + bytes(40), b"\x02" + bytes(40), "text", 5, 1.5,
], ids=repr)
def test_a_damaged_secret_names_its_gateway_and_leaves_the_others(path, column, value):
    with Store.open(path) as store:
        store.save(record(), record("gw-2"))
    damage(path, f"UPDATE gateways SET {column} = ? WHERE name = 'gw-1'", value)
    with Store.open(path) as store:
        with pytest.raises(StoreError) as caught:
            store.records()
        assert str(caught.value) == (
            f"{path}: the {column} of gateway 'gw-1' is damaged. Put back a copy of the store, or "
            "delete that gateway.")
        unreadable = []
        assert store.records(unreadable=unreadable) == [record("gw-2")]
        assert list(map(str, unreadable)) == [str(caught.value)]
        with pytest.raises(StoreError):
            store.get("gw-1")
        assert store.names() == ["gw-1", "gw-2"]
        store.delete("gw-1")
        assert store.records() == [record("gw-2")]


@pytest.mark.parametrize("column", SECRETS)
def test_one_bit_is_damage_enough(path, column):
    with Store.open(path) as store:
        store.save(record())
        with store._file.reading() as connection:
            (sealed,) = connection.execute(f"SELECT {column} FROM gateways").fetchone()
        for at in (0, 1, 12, 13, len(sealed) - 1):
            wrong = bytearray(sealed)
            wrong[at] ^= 1
            with store._file.writing() as connection:
                connection.execute(f"UPDATE gateways SET {column} = ?", (bytes(wrong),))
            with pytest.raises(StoreError, match=f"the {column} of gateway 'gw-1' is damaged"):
                store.get("gw-1")


def test_a_secret_opens_in_its_own_place_alone(path):
    with Store.open(path) as store:
        store.save(record(), record("gw-2"))
    damage(path, "UPDATE gateways SET private_key_pem = factory_key, "
                 "factory_key = private_key_pem WHERE name = 'gw-1'")
    with closing(sqlite3.connect(path)) as plain:
        (of_other,) = plain.execute("SELECT aes_key FROM gateways WHERE name = 'gw-2'").fetchone()
    with Store.open(path) as store:
        with pytest.raises(StoreError, match="the factory_key of gateway 'gw-1' is damaged"):
            store.get("gw-1")
        store.save(record())
    damage(path, "UPDATE gateways SET aes_key = ? WHERE name = 'gw-1'", of_other)
    with Store.open(path) as store, \
            pytest.raises(StoreError, match="the aes_key of gateway 'gw-1' is damaged"):
        store.get("gw-1")
    damage(path, "UPDATE gateways SET aes_key = NULL, name = 'gw-9' WHERE name = 'gw-1'")
    with Store.open(path) as store, pytest.raises(StoreError, match="gateway 'gw-9' is damaged"):
        store.get("gw-9")


@pytest.mark.parametrize(("column", "value"), [
    ("status", "broken"), ("seed", "text"), ("send_frequency_ms", -1), ("model", b"\xff"),
])
def test_other_damage_of_a_row_names_its_gateway_too(path, column, value):
    with Store.open(path) as store:
        store.save(record(), record("gw-2"))
    damage(path, f"UPDATE gateways SET {column} = ? WHERE name = 'gw-1'", value)
    with Store.open(path) as store:
        unreadable = []
        assert store.records(unreadable=unreadable) == [record("gw-2")]
        assert f"gateway 'gw-1' is damaged: {column}=" in str(unreadable[0])
        store.update("gw-1", **{column: getattr(record(), column)})
        assert store.records() == [record(), record("gw-2")]


def test_a_damaged_sensor_names_its_gateway(path):
    with Store.open(path) as store:
        store.save(record())
        store.update("gw-1", sensors=({"name": "a", "type": "temperature"},))
    damage(path, "UPDATE sensors SET spec = '{half'")
    with Store.open(path) as store, pytest.raises(StoreError, match="gateway 'gw-1' is damaged"):
        store.records()


def test_a_vault_opens_what_it_sealed_and_nothing_else():
    vault, other = Vault(KEY), Vault(KEY[::-1])
    sealed = vault.seal(b"secret", "here")
    assert vault.unseal(sealed, "here") == b"secret"
    assert vault.unseal(vault.seal(b"", "here"), "here") == b""
    assert vault.unseal(sealed, "there") is None
    assert other.unseal(sealed, "here") is None
    assert repr(vault) == "<Vault>"
