"""A TCP proxy for tests: forwards, and may cut a connection instead of passing an answer on."""

import asyncio


class Proxy:
    """Listens on a free port and forwards to `port`.

    `answer(number, data)` sees what the server sends to the client of connection `number` and
    returns what is passed on, or None to reset both sides.
    """

    def __init__(self, port, answer=lambda number, data: data):
        self.target, self.answer = port, answer
        self.connections = 0
        self._tasks = set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"mqtt://127.0.0.1:{self.port}"
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def _accept(self, reader, writer):
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader, writer):
        number, self.connections = self.connections, self.connections + 1
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)

        async def back():
            while data := await far_reader.read(4096):
                data = self.answer(number, data)
                if data is None:
                    return
                writer.write(data)

        async def forth():
            while data := await reader.read(65536):
                far_writer.write(data)
                await far_writer.drain()

        both = [asyncio.ensure_future(back()), asyncio.ensure_future(forth())]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)
            writer.transport.abort()
            far_writer.close()
