"""The keys of a profile, checked with pydantic; loaded only when a profile is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from iotsim.documents import Place
from iotsim.errors import BadValue, IotsimError, UnknownName, shown
from iotsim.readings import RESERVED, WIRE_COLUMNS
from iotsim.topics import DEFAULT_TOPIC, check_topic
from iotsim.units import duration_us

NAME_CHARS_MAX = 128
FIELDS_MAX = 1000
LABELS_MAX = 100
_PRIVATE = ("ca", "cert", "credentials", "creds", "headers", "key", "key_password", "password",
            "tls", "token", "username", "verify")
_TAKEN = (*RESERVED, *WIRE_COLUMNS, "true_time")

Fail = Callable[[Place, IotsimError | str], Exception]


class Schema(BaseModel):
    """What a profile says, as it is written: the keys of contract B7 and a few more."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, validate_default=True)

    type: str
    telemetry_fields: dict[str, dict[str, Any]] = Field(min_length=1, max_length=FIELDS_MAX)
    telemetry_interval: Any = "5s"
    labels: dict[str, str] = Field(default_factory=dict, max_length=LABELS_MAX)
    protocol: Literal["amqp", "coap", "console", "file", "http", "memory", "mqtt", "nats",
                      "notip"] = (
        "console"
    )
    topic_template: str = DEFAULT_TOPIC
    qos: Literal[0, 1, 2] | None = None
    backpressure: Literal["block", "drop_oldest", "slow_down"] | None = None
    publish: dict[str, Any] = Field(default_factory=dict, max_length=100)
    phase: Any = None
    jitter: Any = 0

    @field_validator("type")
    @classmethod
    def _type(cls, value: str) -> str:
        return check_type(value)

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: dict[str, str]) -> dict[str, str]:
        for name, text in value.items():
            check_label(name, text)
        return value

    @field_validator("topic_template")
    @classmethod
    def _topic(cls, value: str) -> str:
        return check_topic(value)

    @field_validator("qos", mode="before")
    @classmethod
    def _qos(cls, value: Any) -> Any:
        if isinstance(value, (bool, float)):  # equal to 1, and so among the choices
            raise BadValue("qos", value, "is not one of the choices", "Give 0, 1 or 2.")
        return value

    @field_validator("publish")
    @classmethod
    def _publish(cls, value: dict[str, Any]) -> dict[str, Any]:
        for name, given in value.items():
            if name in _PRIVATE:
                why = "has no place in a profile, which others read"
                raise BadValue(f"publish.{name}", "…", why,
                               "Give it to publish_to, or in the environment.")
            if not isinstance(given, (str, int, float, bool)) or given != given:
                raise BadValue(f"publish.{name}", given, "is no text, number or yes or no",
                               "Give options of publish_to, such as {exchange: plant}.")
        return value

    @field_validator("telemetry_interval")
    @classmethod
    def _interval(cls, value: Any) -> int:
        return duration_us(value, "telemetry_interval")

    @field_validator("phase")
    @classmethod
    def _phase(cls, value: Any) -> int | None:
        return None if value is None else duration_us(value, "phase", zero=True)

    @field_validator("jitter")
    @classmethod
    def _jitter(cls, value: Any) -> int:
        return duration_us(value, "jitter", zero=True)


def check(given: Mapping[str, Any], fail: Fail) -> Schema:
    """Return the keys of a profile, checked one by one.

    Parameters
    ----------
    given : mapping
        The profile as it was written.
    fail : callable (place, problem) -> exception
        Makes the error, which knows file and line.
    """
    try:
        schema = Schema.model_validate(dict(given))
    except ValidationError as problems:
        first = problems.errors(include_url=False)[0]
        raise fail(*_problem(first)) from None
    _check_together(schema, fail)
    return schema


def _problem(problem: Mapping[str, Any]) -> tuple[Place, IotsimError | str]:
    place: Place = tuple(part for part in problem["loc"] if part != "[key]")
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, IotsimError):
        return place, cause
    name, given, kind = str(place[-1]), problem["input"], problem["type"]
    if kind == "extra_forbidden":
        return place, UnknownName("profile key", name, Schema.model_fields)
    if kind == "missing":
        return (), BadValue("profile", dict(given).get("type"), f"lacks {name}", "Add it.")
    if place[0] == "telemetry_fields" and len(place) == 2:
        return place, (f"field {shown(name)} is {shown(given)}. Give a mapping with a type, "
                       "such as {type: gaussian, mean: 20, stddev: 1}.")
    why = {"string_type": "is not text", "dict_type": "is not a mapping",
           "literal_error": "is not one of the choices", "too_short": "is empty",
           "too_long": "has too many entries"}.get(kind, "cannot be")
    return place, BadValue(name, given, why, _allowed(place, problem))


def _allowed(place: Place, problem: Mapping[str, Any]) -> str:
    if "expected" in problem.get("ctx", {}):
        return f"Give {problem['ctx']['expected']}."
    if place[0] == "labels" and len(place) == 2:
        return "Labels are text: put quotes around it."
    if place[0] == "telemetry_fields":
        return "Give a mapping of 1 to 1,000 field names to {type: …}."
    return {"labels": "Give a mapping of names to text, at most 100."}.get(
        str(place[0]), "Give text.")


def _check_together(schema: Schema, fail: Fail) -> None:
    interval_us = schema.telemetry_interval
    for name in ("phase", "jitter"):
        value = getattr(schema, name)
        if value is not None and value >= interval_us:
            why = "is not shorter than telemetry_interval"
            raise fail((name,), BadValue(name, f"{value}us", why, "Give less than one interval."))
    device_type = schema.labels.get("device_type", schema.type)
    if device_type != schema.type:
        why = f"contradicts type={shown(schema.type)}"
        raise fail(("labels", "device_type"),
                   BadValue("device_type", device_type, why, "Leave the label out."))
    for name in schema.telemetry_fields:
        place = ("telemetry_fields", name)
        try:
            check_name("field", name)
        except BadValue as error:
            raise fail(place, error) from None
        if name in schema.labels:
            why = "is a label as well, and both are columns"
            raise fail(place, BadValue("field", name, why, "Rename one of them."))
        if name.startswith("true_") and name[5:] in schema.telemetry_fields:
            why = f"is the column of the truth of {name[5:]!r}"
            raise fail(place, BadValue("field", name, why, "Rename one of them."))
    labels = {name: text for name, text in schema.labels.items() if name != "device_type"}
    try:
        # Other labels may come with Fleet.add; the values of those known here are checked now.
        used = {**dict.fromkeys(_names_in(schema.topic_template), "x"), **labels}
        check_topic(schema.topic_template, used)
    except IotsimError as error:
        raise fail(("topic_template",), error) from None


def _names_in(template: str) -> list[str]:
    return [part.partition("}")[0] for part in template.split("{")[1:]]


def check_name(what: str, name: Any) -> str:
    """Return the name of a field or label, or raise if it cannot be a column's."""
    allowed = "Give printable text of 1 to 128 characters."
    if not isinstance(name, str):
        raise BadValue(what, name, "is not text", allowed)
    if not name or len(name) > NAME_CHARS_MAX or not name.isprintable() or name != name.strip():
        raise BadValue(what, name, "cannot be a name", allowed)
    if name in _TAKEN and (what, name) != ("label", "device_type"):
        raise BadValue(what, name, "is a column that iotsim makes itself", "Choose another name.")
    return name


def check_label(name: Any, text: Any) -> None:
    """Raise if a label cannot have this name or this value."""
    check_name("label", name)
    allowed = "Give printable text of at most 128 characters."
    if not isinstance(text, str):
        raise BadValue(name, text, "is not text", allowed)
    if len(text) > NAME_CHARS_MAX or not text.isprintable():
        raise BadValue(name, text, "cannot be the value of a label", allowed)


def check_type(value: Any) -> str:
    """Return the type of a device, or raise if ids and topics could not be made of it."""
    allowed = "Give 1 to 128 printable characters without blanks and / + # * | , = { } > quotes."
    if not isinstance(value, str):
        raise BadValue("type", value, "is not text", allowed)
    banned = set("/+#*|,={}><&'\"\\")
    bad = not value.isprintable() or any(c in banned or c.isspace() for c in value)
    if not value or len(value) > NAME_CHARS_MAX or bad:
        raise BadValue("type", value, "cannot be the type of a device", allowed)
    return value
