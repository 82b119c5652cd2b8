"""Names that are resolved on first use: public names, doors, publishers.

`import iotsim` must stay cheap, and a lower layer must not import a door above it. Both are a
name here and a module imported when somebody asks.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from iotsim.errors import UnknownName

PUBLIC = {
    "DeviceIds": "iotsim.script_names:DeviceIds",
    "FaultType": "iotsim.script_names:FaultType",
    "Gateway": "iotsim.gateway.spec:Gateway",
    "Platform": "iotsim.gateway.platform:Platform",
    "lab": "iotsim.lab",
    "Fleet": "iotsim.fleet:Fleet",
    "LabelSelector": "iotsim.script_names:LabelSelector",
    "Profile": "iotsim.profiles:Profile",
    "Result": "iotsim.result:Result",
    "Run": "iotsim.run:Run",
    "Scenario": "iotsim.scenario:Scenario",
    "Tap": "iotsim.taps:Tap",
    "Verification": "iotsim.verification:Verification",
    "Credentials": "iotsim.transport.credentials:Credentials",
    "TLS": "iotsim.transport.tls:TLS",
    "IotsimError": "iotsim.errors:IotsimError",
    "ids": "iotsim.selectors:ids",
    "logs": "iotsim.logs",
    "metrics": "iotsim.metrics",
    "runs": "iotsim.live_runs:runs",
    "tap": "iotsim.taps:tap",
    "verify": "iotsim.verification:verify",
}

DOORS = {
    "dashboard": "iotsim.panels.dashboard:dashboard_of",
    "panel_fleet": "iotsim.panels.fleet_panel:panel_of",
    "panel_result": "iotsim.panels.result_panel:panel_of",
    "panel_gateway": "iotsim.panels.gateway_panel:gateway_panel_of",
    "panel_lab": "iotsim.panels.lab_panel:lab_panel_of",
    "panel_run": "iotsim.panels.run_panel:panel_of",
    "panel_scenario": "iotsim.panels.scenario_panel:panel_of",
    "plot": "iotsim.plots:plot_result",
    "plot_audit": "iotsim.audit_plot:plot_audit",
    "plot_faults": "iotsim.plotting.faults:plot_faults",
    "plot_heatmap": "iotsim.plotting.heatmap:plot_heatmap",
    "plot_scenario": "iotsim.plotting.scenario:plot_scenario",
}

TAPS = {  # settings_of(...) and Source(...) of each
    "mqtt": "iotsim.tapping.mqtt",
    "mqtts": "iotsim.tapping.mqtt",
    "amqp": "iotsim.tapping.amqp",
    "amqps": "iotsim.tapping.amqp",
    "http": "iotsim.tapping.http",
    "coap": "iotsim.tapping.coap",
    "nats": "iotsim.tapping.nats",
    "nats+tls": "iotsim.tapping.nats",
    "nats+jetstream": "iotsim.tapping.nats",
    "nats+jetstream+tls": "iotsim.tapping.nats",
}

PUBLISHERS = {
    "memory": "iotsim.publishers.memory:MemoryPublisher",
    "console": "iotsim.publishers.console:ConsolePublisher",
    "file": "iotsim.publishers.files:FilePublisher",
    "mqtt": "iotsim.publishers.mqtt:MqttPublisher",
    "mqtts": "iotsim.publishers.mqtt:MqttPublisher",
    "amqp": "iotsim.publishers.amqp:AmqpPublisher",
    "amqps": "iotsim.publishers.amqp:AmqpPublisher",
    "http": "iotsim.publishers.http:HttpPublisher",
    "https": "iotsim.publishers.http:HttpPublisher",
    "coap": "iotsim.publishers.coap:CoapPublisher",
    "coaps": "iotsim.publishers.coap:CoapPublisher",
    "nats": "iotsim.publishers.nats:NatsPublisher",
    "nats+tls": "iotsim.publishers.nats:NatsPublisher",
    "nats+jetstream": "iotsim.publishers.nats:NatsPublisher",
    "nats+jetstream+tls": "iotsim.publishers.nats:NatsPublisher",
}


def resolve(table: dict[str, str], name: str, kind: str) -> Any:
    """Return the object that `name` stands for, importing its module on first use.

    Raises
    ------
    UnknownName
        If the table has no such name; the text lists those it has.
    """
    if name not in table:
        raise UnknownName(kind, name, table)
    module, _, attribute = table[name].partition(":")
    found = import_module(module)
    return getattr(found, attribute) if attribute else found


def door(name: str) -> Any:
    """Return the function behind a door such as `plot`."""
    return resolve(DOORS, name, "door")
