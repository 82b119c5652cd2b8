"""The program of a process that makes RSA keys: a line in is a key out, until its input ends.

It is run as a file, with nothing of iotsim in it, so that it starts in a moment. What it is told
stands in its input and what it makes in its output: neither in a file nor on a command line.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys

NICE = 5  # beside a busy machine a third of a share; 10 would be starved
KEY_BITS = 2048


def serve() -> None:
    """Read where modules are found, then answer each line with a size and a PEM."""
    with contextlib.suppress(ValueError, OSError):
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for who asked
    with contextlib.suppress(AttributeError, OSError):
        os.nice(NICE)
    asked, told = sys.stdin.buffer, sys.stdout.buffer
    sys.path[:] = json.loads(asked.readline())
    while asked.readline():
        pem = private_key_pem()
        told.write(b"%d\n%s" % (len(pem), pem))
        told.flush()


def private_key_pem() -> bytes:
    """Return a fresh key of RSA as PKCS#1."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    return rsa.generate_private_key(65537, KEY_BITS).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        serve()
