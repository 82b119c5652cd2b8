"""`lab.panel()`: the platform's side of gateways: what it knows, commands and hears."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, ref

import traitlets

from iotsim.errors import BadValue
from iotsim.lab.answers import Answer
from iotsim.lab.platform import NotipLab
from iotsim.panels.base import Panel
from iotsim.panels.gateway_table import Book, form, still_of
from iotsim.units import instant_text

LOOK_S = 1.0
ACKS_SHOWN = 100
ACKS_LOOKED = 5000
COLUMNS = ("gateway", "status", "provisioned", "every ms", "firmware", "last answer", "ended",
           "gateway id")
ACK_COLUMNS = ("answered", "gateway", "status", "latency", "message", "command id")

FORMS = (
    form("frequency", "Tell it to send so often.", ("send_frequency_ms", "every ms", "1000")),
    form("status", "Tell it to be online, paused or offline.",
         ("status", "status", "paused", ("paused", "online", "offline"))),
    form("firmware", "Push a firmware.", ("version", "version", "2.0.0"), ("url", "from", "")),
    form("decommission", "Tell the simulators that it is no more.", sure=True),
    form("revoke", "Take its certificate its rights: it is cut off and not let in again.",
         sure=True),
)

ENDED = {"decommission": "decommissioned", "revoke": "revoked"}

_PANELS: WeakKeyDictionary[NotipLab, LabPanel] = WeakKeyDictionary()


def lab_panel_of(lab: NotipLab) -> LabPanel:
    """Return the panel of a lab that runs; there is one, however often it is asked for."""
    found = _PANELS.get(lab)
    if found is None or found.comm is None:  # it was closed
        found = _PANELS[lab] = LabPanel(lab)
        found.enter(found.begin)
    return found


class LabPanel(Panel):
    """What people of the platform see and do.

    Parameters
    ----------
    lab : NotipLab
        One that runs.
    """

    gateways = traitlets.Dict().tag(sync=True)

    def __init__(self, lab: NotipLab) -> None:
        super().__init__(lab.loop, kind="lab", menu={"forms": list(FORMS)})
        self._lab = ref(lab)  # whoever has the lab has it, and its panel with it
        self._called = repr(lab)
        self.book = Book()
        self.renew()

    @property
    def lab(self) -> NotipLab:
        """The lab.

        Raises
        ------
        BadValue
            If nobody holds it any more.
        """
        found = self._lab()
        if found is None:
            raise BadValue("lab", self._called, "is over", "Start another one.")
        return found

    def begin(self) -> None:
        """Look at the platform now, and every second while it runs."""
        self.renew()
        lab = self._lab()
        if lab is not None and lab.running and self.comm is not None:
            asyncio.get_running_loop().call_later(LOOK_S, self.begin)

    # -- looking --------------------------------------------------------------------------------

    def look(self) -> dict[str, Any]:
        """Return what there is to say, as plain JSON."""
        lab = self.lab
        where = f"{lab.nats_url} · {lab.provisioning_url}" if lab.running else ""
        return {"name": f"platform {lab.name}", "running": lab.running, "where": where}

    def show_state(self, facts: dict[str, Any], **arrays: bytes) -> None:
        """Send facts and gateways in one message."""
        with self.hold_sync():
            if self._lab() is not None:
                self.gateways = self._look_around()
            super().show_state(facts, **arrays)

    def _look_around(self) -> dict[str, Any]:
        register = self.lab.register_of_gateways
        names = {factory: name for name, factory in register.names.items()}
        called = {one.gateway_id: names.get(one.factory_id, one.factory_id)
                  for one in register.all()}
        acks = self.lab.console.last_acks(ACKS_LOOKED)
        last: dict[str, Answer] = {}
        for ack in acks:
            last.setdefault(ack.gateway_id, ack)
        rows = []
        for one in register.all():
            said = last.get(one.gateway_id)
            ended = [word for word, yes in (("decommissioned", one.decommissioned),
                                            ("revoked", one.revoked)) if yes]
            rows.append([called[one.gateway_id], one.status, "yes" if one.provisioned else "no",
                         f"{one.send_frequency_ms:,}", one.firmware,
                         "" if said is None else said.status, ", ".join(ended), one.gateway_id])
        said_rows = [_told(ack, called.get(ack.gateway_id, "")) for ack in acks[:ACKS_SHOWN]]
        return self.book.page(COLUMNS, rows, lambda _: [], ACK_COLUMNS, said_rows)

    def still(self) -> str:
        """Return it as HTML, for pages where no widget lives."""
        return still_of(str(self.facts.get("name", "")), self.gateways)

    # -- what people click ----------------------------------------------------------------------

    def do_seen(self, message: Mapping[str, Any]) -> None:
        """Know that a page shows it."""
        self.send_whole()

    def do_gateways(self, message: Mapping[str, Any]) -> None:
        """Show those gateways that a text is about, and choose one of them."""
        self.book.ask(message)

    async def do_gateway(self, message: Mapping[str, Any]) -> None:
        """Command a gateway, and wait for its answer."""
        given, what = self.book.given(message, FORMS), str(message.get("form"))
        name, console = str(message.get("gateway")), self.lab.console
        register = self.lab.register_of_gateways
        gateway = register.names.get(name, name)
        if what in ENDED:
            await getattr(console, what)(gateway)
            self.tell(f"gateway {name} is {ENDED[what]}")
            return
        if what == "firmware":
            sent = await console.firmware(gateway, str(given.get("version", "")),
                                          str(given["url"]) if "url" in given else None)
        else:
            sent = await console.config(gateway, **given)
        self.tell(f"command {sent} is on its way to {name}")
        self.stale()
        answer = await console.answer(sent)
        told = f"gateway {name} says {answer.status} after {answer.latency_s * 1000:,.0f} ms"
        self.tell(f"{told}: {answer.message}" if answer.message else told,
                  wrong=answer.status != "ack")


def _told(ack: Answer, name: str) -> list[str]:
    latency = "" if ack.issued_us is None else f"{ack.latency_s * 1000:,.0f} ms"
    return [instant_text(ack.answered_us)[:23] + "Z", name, ack.status, latency, ack.message,
            ack.command_id]
