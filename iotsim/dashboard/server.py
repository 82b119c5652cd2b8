"""Voila with one notebook, on this machine alone, quiet, and gone when it is told to go."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import socket
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop
from traitlets.config import Config
from voila.app import Voila

from iotsim.dashboard.pages import PageKernels

HOST = "127.0.0.1"
# Nothing is fetched from anywhere else, and no other page may show this one.
POLICY = ("default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob: data:; "
          "style-src 'self' 'unsafe-inline' blob: data:; img-src 'self' data: blob:; "
          "font-src 'self' data:; connect-src 'self' data: blob: ws://127.0.0.1:* "
          "ws://localhost:*; worker-src 'self' blob:; frame-ancestors 'none'")
EXTENSIONS = ("@jupyter-widgets/jupyterlab-manager", "@voila-dashboards/widgets-manager8",
              "anywidget")


class Server(Voila):  # type: ignore[misc]
    """A Voila that listens on a socket that is there already, and ends with its kernels."""

    def serve(self, listening: socket.socket, say: Callable[[str], None], browser: bool) -> None:
        """Serve until a signal ends it."""
        self._listening, self._say, self._browser = listening, say, browser
        self.start()

    def listen(self) -> None:
        """Take pages until somebody says stop; called by `start`."""
        self.port = self._listening.getsockname()[1]
        server = HTTPServer(self.app)
        server.add_sockets([self._listening])
        self.ioloop = IOLoop.current()
        url = f"http://{HOST}:{self.port}/?token={self.token}"
        self._end_by_signals()
        self._say(f"dashboard: {url} (Ctrl-C ends it)")
        if self._browser:
            threading.Thread(target=_opened, args=(url,), daemon=True).start()
        try:
            self.ioloop.start()
        except KeyboardInterrupt:
            pass
        finally:
            server.stop()
            self.stop()

    def _end_by_signals(self) -> None:
        loop = asyncio.get_event_loop()
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            ignored = number is not None and signal.getsignal(number) == signal.SIG_IGN
            if number is None or (ignored and name == "SIGHUP"):
                continue
            with suppress(NotImplementedError):  # Windows: KeyboardInterrupt does it
                loop.add_signal_handler(number, loop.stop)


def _opened(url: str) -> None:
    with suppress(webbrowser.Error):
        webbrowser.open(url)


def serve(
    book: Path, listening: socket.socket, say: Callable[[str], None], *, theme: str,
    pages_max: int, browser: bool,
) -> None:
    """Serve a notebook until a signal ends it; the one line that is said has the address."""
    logging.getLogger("tornado").setLevel(logging.CRITICAL)  # one line is said, and no other
    config = Config()
    config.VoilaConfiguration.theme = theme
    config.VoilaConfiguration.multi_kernel_manager_class = PageKernels
    config.VoilaConfiguration.extension_allowlist = list(EXTENSIONS)
    config.PageKernels.pages_max = pages_max
    server = Server(
        config=config, notebook_path=str(book), root_dir=str(book.parent), ip=HOST,
        connection_dir_root=str(book.parent), token=secrets.token_hex(16), open_browser=False,
        config_file_paths=[], log_level=logging.CRITICAL,
        tornado_settings={
            "headers": {"Content-Security-Policy": POLICY},
            "allow_remote_access": False,  # a foreign name that means this machine is refused
            "local_hostnames": ["localhost", HOST],
            "log_function": lambda _handler: None,
        },
    )
    server.initialize([])
    server.serve(listening, say, browser)
