"""Commands that devices are given, and what became of each: letters, answers, a table of them.

A command is an action of the run: stamped, logged, saved, replayed. What a device answers is
recorded in simulated time; whoever asked from outside gets it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from iotsim.errors import BadValue
from iotsim.readings import Ints

if TYPE_CHECKING:
    import pandas as pd

NAME_CHARS_MAX = 128
BYTES_MAX = 64 * 1024  # of a payload, and of an answer
DEPTH_MAX = 32
FEW = 16  # devices of one letter, up to which each is looked up by itself
LETTERS_MAX = 100_000  # commands of one run
REACHED_MAX = 20_000_000  # devices of all of them together

PENDING, ACKNOWLEDGED, ACK, FAIL, BUSY, OFFLINE, STOPPED = range(7)
STATUSES = ("pending", "acknowledged", "ack", "fail", "busy", "offline", "stopped")
NOT_YET_US = -(2**63)

Answered: TypeAlias = "Callable[[Letter, int], None]"


def plain(name: str, value: Any) -> Any:
    """Return plain JSON values of one's own, or raise if JSON cannot hold them, or they are huge.

    Examples
    --------
    >>> plain("payload", {"every": (1, 2)})
    {'every': [1, 2]}
    """
    import orjson

    try:
        text = orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except (TypeError, ValueError):
        raise BadValue(name, type(value), "is not plain JSON", "Give plain values.") from None
    # Text counts as it is, not as JSON escapes it: what came in so many bytes has no more of them.
    size = len(value) if isinstance(value, str) else len(text)
    if size > BYTES_MAX:
        raise BadValue(name, f"{size:,} bytes", f"is over {BYTES_MAX:,} bytes", "Send less.")
    made = orjson.loads(text)
    if is_deep(made):
        raise BadValue(name, type(value), f"is over {DEPTH_MAX} levels deep", "Make it flat.")
    return made


def is_deep(value: Any) -> bool:
    """Return whether JSON values are nested deeper than anything here looks into."""
    level = [value]
    for _ in range(DEPTH_MAX):
        level = [part for one in level if isinstance(one, (dict, list))
                 for part in (one.values() if isinstance(one, dict) else one)]
        if not level:
            return False
    return True


def checked_id(value: Any) -> str:
    """Return what a command can be called by, or raise."""
    if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= (
            NAME_CHARS_MAX):
        raise BadValue("id", value, f"is not 1 to {NAME_CHARS_MAX} printable characters",
                       "Give text such as 'c-17', or leave it out.")
    return value


def named(name: Any) -> str:
    """Return the name of a command, or raise: people do not send what has none."""
    if not isinstance(name, str) or not name:
        raise BadValue("command", name, "has no name", "Give one such as 'reboot'.")
    return name


class Command:
    """What a device that listens gets: answer it with `ack` or `fail`.

    Attributes
    ----------
    id, name : str
        The name is empty if what came was no command; `payload` is then its text.
    payload : JSON value
        The device's own copy; {} if there was none.
    at : float
        When it took effect, in simulated seconds since the start of the run.
    """

    __slots__ = ("_say", "answered", "at", "id", "name", "payload")

    def __init__(
        self, id: str, name: str, payload: Any, at: float, say: Callable[[int, Any], None]
    ) -> None:
        self.id, self.name, self.payload, self.at = id, name, payload, at
        self.answered = False
        self._say = say

    def ack(self, **result: Any) -> None:
        """Answer that it was done, with what came of it."""
        self._answer(ACK, plain("ack", result))

    def fail(self, why: str = "") -> None:
        """Answer that it could not be done."""
        self._answer(FAIL, plain("fail", str(why)))

    def _answer(self, code: int, answer: Any) -> None:
        if self.answered:
            raise BadValue("command", self.id, "is answered already", "Answer it once.")
        self.answered = True
        self._say(code, answer)

    def __repr__(self) -> str:
        return f"<Command {self.name!r} {self.id!r}{', answered' if self.answered else ''}>"


class Letter:
    """One command on its way to its devices, and their answers.

    Attributes
    ----------
    id, name, by : str
    payload : JSON value
    at_us : int
        Microseconds since 1970.
    slots : int64 array, ascending
        Whom it reached.
    codes : int8 array
        What became of it at each: a place in `STATUSES`.
    answered_us : int64 array
    answers : mapping of place to JSON value
        Of those who said more than that they have it.
    """

    __slots__ = ("_watchers", "answered_us", "answers", "at_us", "by", "codes", "id", "name",
                 "open", "payload", "slots")

    def __init__(
        self, id: str, name: str, payload: Any, by: str, at_us: int, slots: Ints
    ) -> None:
        self.id, self.name, self.payload, self.by, self.at_us = id, name, payload, by, at_us
        self.slots = slots
        self.codes: npt.NDArray[np.int8] = np.zeros(len(slots), dtype=np.int8)
        self.answered_us: Ints = np.full(len(slots), NOT_YET_US, dtype=np.int64)
        self.answers: dict[int, Any] = {}
        self.open = len(slots)
        self._watchers: list[Answered] = []

    def place(self, slot: int) -> int:
        """Return the place of a device, or −1."""
        place = int(np.searchsorted(self.slots, slot))
        found = place < len(self.slots) and int(self.slots[place]) == slot
        return place if found else -1

    def settle(self, mask: npt.NDArray[np.bool_], code: int, at_us: int) -> None:
        """Answer for all of these at once."""
        self.codes[mask] = code
        self.answered_us[mask] = at_us
        self.open -= int(mask.sum())

    def answer(self, slot: int, code: int, answer: Any, at_us: int) -> None:
        """Take what a device answers, once."""
        place = self.place(slot)
        if place < 0 or self.codes[place] != PENDING:
            return
        self.codes[place], self.answered_us[place] = code, at_us
        if answer not in (None, {}, ""):
            self.answers[place] = answer
        self.open -= 1
        for watch in list(self._watchers):
            watch(self, place)

    def watch(self, watch: Answered) -> None:
        """Let somebody be told of every answer from now on."""
        if self.open:
            self._watchers.append(watch)

    def status(self, place: int) -> str:
        """Return what became of it at one device."""
        return STATUSES[self.codes[place]]

    def body(self, place: int, device_id: str) -> dict[str, Any]:
        """Return the answer of one device as it goes out."""
        said: dict[str, Any] = {"status": self.status(place), "command_id": self.id,
                                "device_id": device_id}
        if place in self.answers:
            said["error" if self.codes[place] == FAIL else "result"] = self.answers[place]
        return said


class Book:
    """Every command of a run, bounded; which device has had which."""

    def __init__(self) -> None:
        self.letters: list[Letter] = []
        self._by_id: dict[str, list[Letter]] = {}
        self._few: dict[str, dict[int, Letter]] = {}  # by id and slot, of letters to a few
        self._many: dict[str, list[Letter]] = {}
        self._reached = 0

    def twin(self) -> Book:
        """Return a book that goes on by itself; what was answered is shared."""
        made = Book()
        made.letters, made._reached = list(self.letters), self._reached
        made._by_id = {name: list(letters) for name, letters in self._by_id.items()}
        made._few = {name: dict(letters) for name, letters in self._few.items()}
        made._many = {name: list(letters) for name, letters in self._many.items()}
        return made

    def fresh_id(self) -> str:
        """Return the id of a command that was given none: the same in every replay."""
        number = len(self.letters) + 1
        while f"command-{number:04d}" in self._by_id:
            number += 1
        return f"command-{number:04d}"

    def check_room(self, devices: int) -> None:
        """Raise if a run would have more than is kept."""
        for what, count, most in (("commands", len(self.letters) + 1, LETTERS_MAX),
                                  ("devices of commands", self._reached + devices, REACHED_MAX)):
            if count > most:
                raise BadValue("command", f"{count:,}", f"would be over {most:,} {what} of this "
                               "run", "Begin another run.")

    def add(self, letter: Letter) -> None:
        """Take in a letter."""
        self.letters.append(letter)
        self._by_id.setdefault(letter.id, []).append(letter)
        if len(letter.slots) > FEW:
            self._many.setdefault(letter.id, []).append(letter)
        else:
            few = self._few.setdefault(letter.id, {})
            few.update(dict.fromkeys(letter.slots.tolist(), letter))
        self._reached += len(letter.slots)

    def find(self, slot: int, id: str) -> Letter | None:
        """Return the letter with which a device has had a command; None: it has not."""
        found = self._few.get(id, {}).get(slot)
        if found is not None:
            return found
        return next((one for one in self._many.get(id, ()) if one.place(slot) >= 0), None)

    def under(self, id: str) -> list[Letter]:
        """Return all that was sent under an id."""
        return list(self._by_id.get(id, ()))

    def new_to(self, slots: Ints, id: str) -> Ints:
        """Return who has not had a command of that id: it is not done twice."""
        few = self._few.get(id)
        if few:
            slots = slots[np.fromiter((slot not in few for slot in slots.tolist()), np.bool_,
                                      len(slots))]
        for letter in self._many.get(id, ()):
            slots = slots[~np.isin(slots, letter.slots)]
        return slots


class People(Protocol):
    """Whom letters went to."""

    ids: list[str]
    ended_us: Ints


def table(letters: Sequence[Letter], people: People | None = None) -> pd.DataFrame:
    """Return a row per device and command, in order of time.

    Columns: device_id, command_id, command, status, answer, sent, answered, latency (simulated
    seconds), by (where it came from; empty if it was the run's own). A status is one of
    acknowledged (by a device that does not listen), ack, fail, busy (its inbox was full), offline
    (its link was down), stopped (before it answered), pending.

    Parameters
    ----------
    letters : sequence of Letter
    people : Population, optional
        The devices, by slot; nobody if not given.
    """
    import pandas as pd

    none = np.empty(0, dtype=np.int64)
    ids, ended_us = ([], none) if people is None else (people.ids, people.ended_us)
    counts = [len(letter.slots) for letter in letters]
    slots = np.concatenate([none, *(letter.slots for letter in letters)])
    codes = np.concatenate([none.astype(np.int8), *(letter.codes for letter in letters)])
    codes = np.where((codes == PENDING) & (ended_us[slots] < 2**62), np.int8(STOPPED), codes)
    sent_us = np.repeat(np.array([letter.at_us for letter in letters], dtype=np.int64), counts)
    answered_us = np.concatenate([none, *(letter.answered_us for letter in letters)])
    answered = answered_us != NOT_YET_US
    waited_us = np.where(answered, answered_us, sent_us) - sent_us
    answers = np.full(len(slots), None, dtype=object)
    first = 0
    for letter, count in zip(letters, counts, strict=True):
        for place, answer in letter.answers.items():
            answers[first + place] = answer
        first += count

    def each(values: list[str]) -> Any:
        return pd.Series(np.repeat(np.array(values, dtype=object), counts), dtype="str")

    return pd.DataFrame({
        "device_id": pd.Categorical.from_codes(slots, pd.Index(list(ids), dtype="str")),
        "command_id": each([letter.id for letter in letters]),
        "command": each([letter.name for letter in letters]),
        "status": pd.Categorical.from_codes(codes, pd.Index(STATUSES, dtype="str")),
        "answer": pd.Series(answers, dtype=object),
        "sent": _instants(sent_us),
        "answered": _instants(np.where(answered, answered_us, NOT_YET_US)),
        "latency": np.where(answered, waited_us / 1e6, np.nan),
        "by": each([letter.by for letter in letters]),
    })


def _instants(times_us: Ints) -> Any:
    import pandas as pd

    # The smallest number is what numpy calls "not a time".
    return pd.DatetimeIndex(times_us.astype("datetime64[us]")).tz_localize("UTC")


def message_of(value: Mapping[str, Any]) -> tuple[str, str, Any] | None:
    """Return name, id and payload of a JSON document that is a command; None: it is none.

    The payload is `payload` (or `params`, `parameters`), else whatever else is in it.

    Examples
    --------
    >>> message_of({"command": "set", "id": 7, "every": "1s"})
    ('set', '7', {'every': '1s'})
    """
    left = dict(value)
    name = left.pop("command", None)
    name = left.pop("name", None) if name is None else name
    if not isinstance(name, str) or not name or not name.isprintable() or (
            len(name) > NAME_CHARS_MAX):
        return None
    ident: Any = ""
    for key in ("id", "command_id"):
        given = left.pop(key, "")
        ident = ident or given
    if isinstance(ident, int) and not isinstance(ident, bool):
        ident = str(ident)
    if not isinstance(ident, str) or not ident.isprintable() or len(ident) > NAME_CHARS_MAX:
        ident = ""
    left.pop("device_id", None)
    for key in ("payload", "params", "parameters"):
        if key in left:
            return name, ident, left[key]
    return name, ident, left
