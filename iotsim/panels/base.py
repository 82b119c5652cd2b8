"""What every panel is: one widget with a state that is sent whole, and messages that come back."""

from __future__ import annotations

import asyncio
import html
import math
from collections.abc import Callable, Coroutine, Mapping
from itertools import islice
from typing import Any

from iotsim.clock import monotonic
from iotsim.errors import IotsimError, MissingExtra
from iotsim.logs import LOG
from iotsim.panels.assets import script, style

try:
    import anywidget
    import traitlets
except ModuleNotFoundError:
    raise MissingExtra("panel()", "anywidget", "panels") from None

VIEW = "application/vnd.jupyter.widget-view+json"
SAID_CHARS_MAX = 600
BURST, BURST_HZ = 20, 20.0  # answers at once and then: a server drops more than 1,000 a second
WHOLE_S = 1.0  # between answers with what has not changed, too
CHOSEN_MAX, CHOSEN_CHARS_MAX = 64, 1000  # of what the controls show


class Panel(anywidget.AnyWidget):
    """A widget that shows something of ours and does what people ask for.

    A subclass sets `kind`, fills `facts` in `look`, and has a method `do_<name>` for every
    message `{"do": name, …}`. All of them run on the panel's loop, whoever calls.

    Parameters
    ----------
    loop : event loop or None
        None: what is asked for is done where it is asked for.
    """

    _esm = script()
    _css = style()
    kind = traitlets.Unicode().tag(sync=True)
    menu = traitlets.Dict().tag(sync=True)
    facts = traitlets.Dict().tag(sync=True)
    lines = traitlets.Bytes().tag(sync=True)
    cells = traitlets.Bytes().tag(sync=True)

    def __init__(self, loop: asyncio.AbstractEventLoop | None, **state: Any) -> None:
        super().__init__(**state)
        self.loop = loop
        self.chosen: dict[str, Any] = {}
        self._said: dict[str, Any] = {}
        self._said_count = 0
        self._tasks: set[asyncio.Task[Any]] = set()
        self._due: asyncio.TimerHandle | None = None
        self._sent_s = self._whole_s = -math.inf
        self._at_once = float(BURST)
        self.on_msg(self._arrived)

    # -- from the browser -----------------------------------------------------------------------

    def _arrived(self, _widget: object, message: Any, _buffers: object) -> None:
        # On any thread, with any loop, or none.
        self.enter(lambda: self.hear(message))

    def enter(self, act: Callable[[], None]) -> None:
        """Do something on the panel's loop; where that is gone, here."""
        loop = self.loop
        if loop is None or loop.is_closed():
            act()
            return
        try:
            loop.call_soon_threadsafe(act)
        except RuntimeError:  # it was closed just now
            act()

    def hear(self, message: Any) -> None:
        """Do what a message asks for; what goes wrong is said in the panel."""
        loop, message = self.loop, _sendable(message)
        name = message.get("do") if isinstance(message, Mapping) else None
        handler = getattr(self, f"do_{name}", None) if isinstance(name, str) else None
        if handler is None:
            self.tell(f"this panel does not know what to do with {name!r}", wrong=True)
        else:
            try:
                done = handler(message)
            except Exception as error:  # whatever it is, people see it where they clicked
                self.tell(_told(error), wrong=True)
            else:
                if asyncio.iscoroutine(done):
                    self._begin(done)
        if self.loop is loop:
            self.stale()
        else:
            self.enter(self.stale)

    def _begin(self, doing: Coroutine[Any, Any, None]) -> None:
        async def whole() -> None:
            try:
                await doing
            except Exception as error:
                self.tell(_told(error), wrong=True)
            self.renew()

        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # nobody's loop: it is done to its end, here
            asyncio.run(whole())
            return
        task = loop.create_task(whole())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def do_choose(self, message: Mapping[str, Any]) -> None:
        """Remember what the controls show, for a page that is loaded again."""
        given = message.get("chosen")
        for key, value in islice(given.items(), 32) if isinstance(given, Mapping) else ():
            self.chosen.pop(str(key), None)
            if _is_small(str(key)) and _is_small(value):
                self.chosen[str(key)] = value
        while len(self.chosen) > CHOSEN_MAX:
            self.chosen.pop(next(iter(self.chosen)))

    def tell(self, text: str, *, wrong: bool = False) -> None:
        """Say something to who looks at the panel."""
        self._said_count += 1
        self._said = {"number": self._said_count, "text": text[:SAID_CHARS_MAX], "wrong": wrong}

    # -- to the browser -------------------------------------------------------------------------

    def stale(self) -> None:
        """Send the state soon; what comes in a burst is answered once. On the panel's loop."""
        loop = self.loop
        if loop is None or loop.is_closed():
            self.renew()
        elif self._due is None:
            rested = (monotonic() - self._sent_s) * BURST_HZ
            self._at_once = min(BURST, self._at_once + rested)
            if self._at_once >= 1:
                self._at_once -= 1
                self.renew()
            else:
                self._due = loop.call_later(1 / BURST_HZ, self.renew)

    def renew(self) -> None:
        """Send the state as it is now; what is wrong with that is said in the panel."""
        self.due_no_more()
        self._sent_s = monotonic()
        try:
            self.refresh()
        except Exception as error:
            text = _told(error)
            if self._said.get("text") != text[:SAID_CHARS_MAX]:
                self.tell(text, wrong=True)
            try:
                self.show_state(dict(self.facts))
            except Exception as lost:  # the page or the kernel is gone: nobody is left to be told
                LOG.warning("a panel could not be shown: %s", _told(lost))

    def due_no_more(self) -> None:
        """Let go of an answer that is to come: it is sent now, or its loop is closed."""
        if self._due is not None:
            self._due.cancel()
            self._due = None

    def send_whole(self) -> None:
        """Send also what has not changed: a message may have been dropped on its way."""
        if monotonic() - self._whole_s > WHOLE_S:
            self._whole_s = monotonic()
            self.send_state([name for name in self.keys if not name.startswith("_")
                             and name not in ("layout", "tabbable", "tooltip", "menu")])

    def refresh(self) -> None:
        """Send the state as it is now."""
        self.show_state(self.look())

    def look(self) -> dict[str, Any]:
        """Return the facts as they are now, as plain JSON."""
        raise AssertionError(f"{type(self).__name__} lacks look()")

    def show_state(self, facts: dict[str, Any], **arrays: bytes) -> None:
        """Send facts and arrays in one message."""
        facts = {**facts, "said": self._said, "chosen": dict(self.chosen)}
        with self.hold_sync():
            self.facts = facts
            for name, value in arrays.items():
                setattr(self, name, value)

    # -- where nothing runs ---------------------------------------------------------------------

    def still(self) -> str:
        """Return the panel as HTML, for pages where no widget lives."""
        return ""

    def _repr_mimebundle_(self, **_given: Any) -> Any:
        bundle: dict[str, Any] = {"text/plain": repr(self), "text/html": self.still()}
        if self._view_name is not None:
            bundle[VIEW] = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return bundle

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


def _is_small(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= CHOSEN_CHARS_MAX
    return isinstance(value, (int, float)) and abs(value) < 2**53  # NaN is not


def _sendable(given: Any, depth: int = 3) -> Any:
    # Half of an emoji cannot be sent back: no later state would arrive.
    if isinstance(given, str):
        return given.encode("utf-8", "replace").decode()
    if isinstance(given, Mapping) and depth:
        return {_sendable(name): _sendable(value, depth - 1) for name, value in given.items()}
    return given


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, IotsimError) else f"{type(error).__name__}: {error}"


def still_html(title: str, body: str) -> str:
    """Return a still picture of a panel; `body` is HTML already."""
    return (f"<div style='border:1px solid #8886;border-radius:6px;padding:8px 12px;"
            f"max-width:60em'><b>{html.escape(title)}</b>{body}</div>")
