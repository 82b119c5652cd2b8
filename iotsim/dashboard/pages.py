"""The kernels behind the pages: one for each, ended when its page is closed."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

from jupyter_server.services.kernels.kernelmanager import AsyncMappingKernelManager
from tornado.web import HTTPError
from traitlets import Integer

GONE_S = 15.0  # a page that has lost its connection for a moment is back by then
NEVER_S = 120.0  # a page that never came
ROOM_S = 10.0  # how long a page waits for another to be gone
LOOK_S = 0.25


class PageKernels(AsyncMappingKernelManager):
    """As Jupyter's, but a kernel without a page ends, however busy it is with its fleet.

    Jupyter's own culling waits for a kernel that says nothing, and a live fleet always does.

    Attributes
    ----------
    pages_max : int
        How many kernels there are at a time.
    """

    pages_max = Integer(8, config=True)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)  # type: ignore[no-untyped-call]
        self._ends: dict[str, asyncio.TimerHandle] = {}
        self._left: set[str] = set()  # whose page is gone
        self._ending: set[asyncio.Task[None]] = set()

    async def start_kernel(  # type: ignore[override]
        self, *given: Any, **options: Any
    ) -> str:
        """Start a kernel for a page, as soon as there is room.

        Raises
        ------
        HTTPError
            503, if there is none.
        """
        if len(self) >= self.pages_max:
            await self._room()
        options.setdefault("extra_arguments", ["--IPKernelApp.log_level=40"])
        kernel_id: str = await super().start_kernel(*given, **options)
        self._end_later(kernel_id, NEVER_S)
        return kernel_id

    async def _room(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(ROOM_S):
                while len(self) >= self.pages_max:  # kernels tell nobody that they have ended
                    for kernel_id in list(self._left):
                        self._begin_end(kernel_id)
                    await asyncio.sleep(LOOK_S)
                return
        raise HTTPError(503, reason=f"this dashboard has {self.pages_max} open already: close one")

    def notify_connect(self, kernel_id: str) -> None:
        """Know that a page is there."""
        super().notify_connect(kernel_id)  # type: ignore[no-untyped-call]
        self._keep(kernel_id)

    def notify_disconnect(self, kernel_id: str) -> None:
        """Know that a page is gone, perhaps for a moment."""
        super().notify_disconnect(kernel_id)  # type: ignore[no-untyped-call]
        if kernel_id in self and not self._kernel_connections.get(kernel_id):
            self._end_later(kernel_id, GONE_S)
            self._left.add(kernel_id)

    def _keep(self, kernel_id: str) -> None:
        self._left.discard(kernel_id)
        timer = self._ends.pop(kernel_id, None)
        if timer is not None:
            timer.cancel()

    def _end_later(self, kernel_id: str, wait_s: float) -> None:
        self._keep(kernel_id)
        loop = asyncio.get_running_loop()
        self._ends[kernel_id] = loop.call_later(wait_s, self._begin_end, kernel_id)

    def _begin_end(self, kernel_id: str) -> None:
        self._keep(kernel_id)
        task = asyncio.get_running_loop().create_task(self._end(kernel_id))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, kernel_id: str) -> None:
        if kernel_id in self and not self._kernel_connections.get(kernel_id):
            try:
                await self.shutdown_kernel(kernel_id, now=True)  # type: ignore[no-untyped-call]
            except Exception as error:  # it may have ended by itself
                self.log.warning("the kernel of a page could not be ended: %s", error)
