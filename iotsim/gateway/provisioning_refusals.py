"""What the service's refusals mean, each a class and a line that says what to do."""

from __future__ import annotations

import html
from base64 import b64encode
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import orjson

from iotsim.errors import shown
from iotsim.gateway.provisioning_errors import (
    AlreadyProvisioned,
    InvalidFactoryCredentials,
    MalformedCsr,
    ProvisioningError,
    RequestRefused,
    ServiceFailed,
    ServiceUnavailable,
    UnexpectedStatus,
    WrongPath,
)
from iotsim.transport.addresses import redacted

if TYPE_CHECKING:
    from iotsim.gateway.provisioning_exchange import Request

SAID_CHARS = 200
MESSAGES_MAX = 5
QUICK_S = 4.5  # the service waits 5 s for the platform: so soon, nothing can be on its way
USED_UP = (
    "its factory key is used up and what the platform answered is lost: restore a store that "
    "holds this gateway, or register it anew at the platform and give its new factory key"
)
LATER = (
    "The platform may have provisioned it all the same: ask again in a minute, and if it then says "
    "409, " + USED_UP
)


def refusal(
    url: str, request: Request, status: int, raw: bytes, asked: bool, elapsed_s: float
) -> ProvisioningError:
    """Return the error of an answer that is no success.

    Parameters
    ----------
    url : str
        As it is shown.
    request : Request
    status : int
    raw : bytes
        The body, or where a redirect points to.
    asked : bool
        Whether it may have been asked for this gateway before.
    elapsed_s : float
        How long the answer took.
    """
    text = safe_text(raw, request.secret)
    body = _json(raw)
    code = body.get("error") if isinstance(body, dict) else None
    says = f', saying "{text}"' if text else ""
    who = f"factory id {shown(request.factory_id)}"
    make: Any = None
    if status == 401:
        make, why = InvalidFactoryCredentials, f"does not take {who} with its key (401)"
        todo = "Give id and key as the platform gave them when the gateway was registered"
    elif status == 409 and asked:
        make, why = AlreadyProvisioned, (f"says {who} is provisioned already (409), and it was "
                                         "asked before without an answer that was kept")
        todo = USED_UP[0].upper() + USED_UP[1:]
    elif status == 409:
        make, why = AlreadyProvisioned, f"says {who} is provisioned already (409)"
        todo = ("A factory key works once: restore the store that holds this gateway, or register "
                "it anew at the platform")
    elif status == 400 and code == "MALFORMED_CSR":
        make, why = MalformedCsr, "does not take its certificate request (400 MALFORMED_CSR)"
        todo = "Clear private_key_pem of its record: a fresh RSA key is made then"
    elif status == 400:
        make, why = RequestRefused, f"refuses the request (400){_messages(body, request) or says}"
        todo = "Change what it names and ask again; the factory key is as good as before"
    elif status == 404:
        make, why = WrongPath, "is not where the service is (404)"
        todo = ("Give the whole URL: the platform's proxy has it at /api/provision/onboard, the "
                "service itself at /provision/onboard")
    elif status == 503:
        # A late 503 is one of a timeout: what the platform has not answered may yet be carried out,
        # and a second request would have it store another AES key than the one we are given.
        quick = elapsed_s < QUICK_S
        return ServiceUnavailable(
            request.name, url, f"cannot reach the platform's management API (503){says}", LATER,
            status=status, again=quick,
        )
    elif status == 500:
        make, why, todo = ServiceFailed, f"failed (500){says}", f"See the service's log. {LATER}"
    elif 300 <= status < 400:
        place = safe_text(redacted(raw.decode("utf-8", "replace")).encode(), request.secret)
        make, why = UnexpectedStatus, f"answers {status} and points to {place or 'nowhere'}"
        todo = "Give that URL if it is the service's"
    else:
        make, why = UnexpectedStatus, f"answers {status}{says}"
        todo = f"See what stands at this URL. {LATER}"
    made: ProvisioningError = make(request.name, url, why, todo, status=status)
    return made


def safe_text(raw: bytes, secret: str) -> str:
    r"""Return the beginning of what somebody said, on one line, with our secret taken out.

    Examples
    --------
    >>> safe_text(b"no: s3cret \x1b[1m is wrong", "s3cret")
    'no: *** ?[1m is wrong'
    """
    text = raw.decode("utf-8", "replace")
    plain = secret.encode()
    forms = {
        secret, secret.strip(), html.escape(secret), quote(secret), quote(secret, safe=""),
        b64encode(plain).decode(), repr(secret)[1:-1], orjson.dumps(secret).decode()[1:-1],
    }
    for form in sorted(filter(None, forms), key=len, reverse=True):
        text = text.replace(form, "***")
    text = " ".join("".join(c if c.isprintable() or c.isspace() else "?" for c in text).split())
    return text if len(text) <= SAID_CHARS else text[: SAID_CHARS - 1] + "…"


def _json(raw: bytes) -> Any:
    try:
        return orjson.loads(raw)
    except ValueError:
        return None


def _messages(body: Any, request: Request) -> str:
    # Nest lists what is wrong with each field.
    found = body.get("message") if isinstance(body, dict) else None
    if isinstance(found, str):
        found = [found]
    if not isinstance(found, list) or not found:
        return ""
    told = [safe_text(str(one).encode("utf-8", "replace"), request.secret)
            for one in found[:MESSAGES_MAX]]
    more = f"; and {len(found) - MESSAGES_MAX} more" if len(found) > MESSAGES_MAX else ""
    return f', saying "{"; ".join(told)}{more}"'
