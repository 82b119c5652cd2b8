"""Why a gateway could not be provisioned: a class for each of the service's answers."""

from __future__ import annotations

from typing import ClassVar

from iotsim.errors import IotsimError, shown
from iotsim.gateway.record import GatewayRecord


class KeysUnavailable(IotsimError, RuntimeError):
    """No RSA key could be made: the process that makes them ended, or never began."""

    def __init__(self, why: str) -> None:
        self.why = why
        super().__init__(
            f"no RSA key can be made: {why}. See that this Python can start a process of its own "
            "(memory, limits on processes) and has the package cryptography."
        )


class ProvisioningError(IotsimError, RuntimeError):
    """A gateway that was not provisioned: `gateway`, `url`, `status` (0 without an answer).

    Attributes
    ----------
    consumed : bool or None
        Whether the factory key is used up; None if that cannot be known.
    again : bool
        Whether it is safe, and of use, to ask again at once.
    """

    consumed: ClassVar[bool | None] = False

    def __init__(
        self, gateway: str, url: str, why: str, todo: str, *, status: int = 0, again: bool = False
    ) -> None:
        self.gateway, self.url, self.status, self.again = gateway, url, status, again
        super().__init__(f"gateway {shown(gateway)} is not provisioned: {url} {why}. {todo}.")


class InvalidFactoryCredentials(ProvisioningError):
    """401: the platform knows no such factory id, or another key for it."""


class AlreadyProvisioned(ProvisioningError):
    """409: the factory key has been used, by us or by somebody else."""

    consumed = True


class MalformedCsr(ProvisioningError):
    """400 MALFORMED_CSR: the service takes RSA requests in PEM alone."""


class RequestRefused(ProvisioningError):
    """400 with a list of messages: something in the request is not allowed."""


class WrongPath(ProvisioningError):
    """404: the service is not at this path."""


class ServiceFailed(ProvisioningError):
    """500: the service failed; whether before or after it used the key cannot be seen."""

    consumed = None


class ServiceUnavailable(ProvisioningError):
    """503: the management API behind the service does not answer, or answers nonsense."""

    consumed = None


class UnexpectedStatus(ProvisioningError):
    """A status that the contract does not know; perhaps of a proxy in between."""

    consumed = None


class ServiceUnreachable(ProvisioningError, ConnectionError):
    """No connection: nothing was sent."""


class TlsFailed(ProvisioningError, ConnectionError):
    """No secure connection: nothing was sent."""


class AnswerLost(ProvisioningError, ConnectionError):
    """The connection ended after the request was sent, before its answer was read."""

    consumed = None


class NoAnswerInTime(ProvisioningError, TimeoutError):
    """The request was sent, and there was no answer before our deadline."""

    consumed = None


class AnswerNotJson(ProvisioningError):
    """A success whose body is no JSON."""

    consumed = None


class WrongAnswer(ProvisioningError):
    """A success whose body is not what the contract says, or whose certificate is not ours."""

    consumed = True


class NotKept(ProvisioningError):
    """The platform answered and the store failed: `record` is all there is of the answer."""

    consumed = True

    def __init__(self, record: GatewayRecord, url: str, why: str) -> None:
        self.record = record
        super().__init__(
            record.name, url, f"said yes, and then the store failed ({why})",
            "The record of this error holds what it said: mend the store, then save that",
        )
