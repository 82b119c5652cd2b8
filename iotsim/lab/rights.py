"""Who may do what at the lab's NATS server, and the streams there are."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iotsim.lab.authority import ORGANISATION, SERVICES, Pair

COMMANDS, ACKS, TELEMETRY = "COMMANDS", "COMMAND_ACKS", "TELEMETRY"
_SECOND_NS = 1_000_000_000
_STREAMS = {  # subjects, and for how long
    TELEMETRY: ("telemetry.data.>", 2_592_000 * _SECOND_NS),
    COMMANDS: ("command.gw.>", 75 * _SECOND_NS),
    ACKS: ("command.ack.>", 300 * _SECOND_NS),
    "ALERTS": ("alert.>", 0),
    "AUDIT_LOG": ("log.audit.>", 7_776_000 * _SECOND_NS),
    "DECOMMISSION": ("gateway.decommissioned.>", 86_400 * _SECOND_NS),
}
# Only those of TLS 1.3: servers before 2.11 have no other way to insist on it.
_CIPHERS = '"TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"'
_DEFAULTS = """\
  default_permissions: {
    publish: {
      allow: ["telemetry.data.>", "command.ack.>"]
      deny: ["internal.>", "alert.>", "gateway.>", "log.>"]
    }
    subscribe: {
      allow: ["command.gw.>"]
      deny: ["internal.>", "telemetry.>", "alert.>", "log.>"]
    }
  }"""


def streams() -> dict[str, dict[str, Any]]:
    """Return the body of `$JS.API.STREAM.CREATE.<name>` for each of the platform's streams."""
    made: dict[str, dict[str, Any]] = {}
    for name, (subject, max_age) in _STREAMS.items():
        made[name] = {
            "name": name, "subjects": [subject], "retention": "limits", "storage": "file",
            "discard": "old", "num_replicas": 1, "max_age": max_age, "max_bytes": -1,
            "max_msgs": -1, "max_consumers": -1,
        }  # fmt: skip
    made[TELEMETRY]["max_msg_size"] = -1
    return made


def gateway_user(gateway_id: str, tenant_id: str) -> str:
    """Return the line of the configuration that lets a gateway in with its own certificate.

    It may publish and acknowledge what is its own, make and use its durable on COMMANDS with its
    own subject as the filter, and read its own inbox. The subject that creates the durable names
    the filter, and the server holds the body to it: with `CONSUMER.DURABLE.CREATE` it could read
    what is for others. What NATS cannot forbid: that a gateway names another's subject as where
    the server shall answer or deliver to.
    """
    own, durable = f"{tenant_id}.{gateway_id}", f"{COMMANDS}.gw-{gateway_id}"
    publish = [
        f"telemetry.data.{own}",
        f"command.ack.{own}",
        "$JS.API.STREAM.NAMES",
        f"$JS.API.CONSUMER.CREATE.{durable}.command.gw.{own}",
        f"$JS.API.CONSUMER.INFO.{durable}",
        f"$JS.API.CONSUMER.MSG.NEXT.{durable}",
        f"$JS.API.CONSUMER.DELETE.{durable}",
        f"$JS.ACK.{durable}.>",
    ]
    subscribe = [f"command.gw.{own}", f"_INBOX.{gateway_id}.>"]
    return (f'{{user: "CN={gateway_id}", permissions: {{publish: {json.dumps(publish)}, '
            f"subscribe: {json.dumps(subscribe)}}}}}")


def configuration(
    port: int, folder: Path, ca: Path, server: Pair, gateways: Iterable[str]
) -> str:
    """Return nats-server's configuration.

    Parameters
    ----------
    port : int
    folder : Path
        Its working folder.
    ca : Path
    server : Pair
        Its certificate.
    gateways : iterable of str
        What `gateway_user` returns for each that may come with its own certificate.
    """
    everything = 'permissions: {publish: ">", subscribe: ">"}'
    users = [f'{{user: "CN={name},O={ORGANISATION}", {everything}}}' for name in SERVICES]
    listed = ",\n    ".join([*users, *gateways])
    return f"""\
server_name: "notip-lab"
listen: "127.0.0.1:{port}"
jetstream {{
  store_dir: {json.dumps(str(folder / "data"))}
  max_memory_store: 512MB
  max_file_store: 10GB
}}
tls {{
  cert_file: {json.dumps(str(server.cert))}
  key_file: {json.dumps(str(server.key))}
  ca_file: {json.dumps(str(ca))}
  verify: true
  verify_and_map: true
  timeout: 5
  cipher_suites: [{_CIPHERS}]
}}
authorization {{
{_DEFAULTS}
  users: [
    {listed}
  ]
}}
"""
