"""Ports for servers that take seconds to bind theirs."""

import secrets
import socket

# Below those that Linux gives to whoever connects (32768 and up): nobody gets one meanwhile.
FIRST, END = 20_000, 32_000


def quiet_port():
    """Return a TCP port of the loopback interface that is free, and that nobody is given."""
    while True:
        port = FIRST + secrets.randbelow(END - FIRST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
