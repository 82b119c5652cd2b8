"""What tests of whole gateway runs share: a platform of a lab, and gateways that it knows."""

import asyncio
import itertools

from iotsim import Gateway, Platform
from tests.live import until as until

WAIT_S = 20
_NUMBERS = itertools.count(1)


def gateways(every="50ms", count=2, sensors=("temperature", "humidity"), **options):
    """Gateways whose names and factory ids nobody else in this process has."""
    name = f"m{next(_NUMBERS)}"
    made = Gateway(f"{name}-{{n}}", factory_id=f"f-{name}-{{n}}", factory_key="a-factory-key",
                   every=every, seed=42, count=count, **options)
    for one in sensors:
        made = made.sensor(one)
    return made


def platform_of(notip_lab, folder, gateway, *, known=None, **options):
    """A platform with a store of its own; the lab knows the first `known` gateways, or all."""
    lab = notip_lab.lab
    pairs = {one.factory_id: one.factory_key for one in gateway.records()[:known]}
    notip_lab.run(lab.register_many(pairs))
    return Platform(**{
        "provisioning_url": lab.provisioning_url, "nats_url": lab.nats_url, "nats_ca": lab.ca_path,
        "nats_cert": lab.simulator_cert, "nats_key": lab.simulator_key, "own_certificates": True,
        "store": folder / "gateways.db", **options})


def on_lab(notip_lab, coroutine):
    """Await a coroutine of the lab, which lives on another loop."""
    return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, notip_lab.loop))
