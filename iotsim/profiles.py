"""Profiles: what a kind of device measures, how often, and how it calls itself.

A `Profile` is a frozen value. It is read from YAML, found by name among those that come with
iotsim, or made in code with the same keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from iotsim import documents
from iotsim.documents import Document, Place
from iotsim.errors import BadValue, IotsimError, ProfileError, UnknownName, shown
from iotsim.facts import facts_html, table_html
from iotsim.fields import Field as Field
from iotsim.fields import make, ordered
from iotsim.topics import DEFAULT_TOPIC
from iotsim.topics import check_topic as check_topic
from iotsim.topics import topic as topic
from iotsim.units import duration_text


class Profile:
    """What a kind of device measures, how often, and how it calls itself.

    Parameters
    ----------
    type : str
        The kind of device; ids are `{type}-{index:04d}`.
    telemetry_fields : mapping of name to mapping
        `{"type": "gaussian", "mean": 20, "stddev": 1}` with, for each, optional `resolution`,
        `unit` and `shared`.
    telemetry_interval : duration
    labels : mapping of str to str
    protocol : str
        What it speaks when nobody says otherwise.
    topic_template : str
        With `{device_id}`, `{device_type}` and any `{label}`.
    qos : {0, 1, 2}, optional
    backpressure : {"block", "drop_oldest", "slow_down"}, optional
    publish : mapping of str to text, number or bool, optional
        More options for publishers of its protocol, such as `{"exchange": "plant"}`; those of
        `publish_to` win. No secrets.
    phase : duration, optional
        When in the interval the first reading is; from the seed if not given, `0` aligns.
    jitter : duration
        Spread of the published time; the grid stays.

    Raises
    ------
    ProfileError
        If a key or a parameter is unknown, missing or cannot be.

    Examples
    --------
    >>> Profile("pump", {"flow": {"type": "gaussian", "mean": 12, "stddev": 0.5}})
    <Profile 'pump': 1 field every 5s (flow)>
    """

    __slots__ = ("_frozen", "backpressure", "fields", "interval_us", "jitter_us", "labels",
                 "phase_us", "protocol", "publish", "qos", "topic_template", "type")

    type: str
    fields: tuple[Field, ...]
    interval_us: int
    phase_us: int | None
    jitter_us: int
    labels: Mapping[str, str]
    protocol: str
    topic_template: str
    qos: int | None
    backpressure: str | None
    publish: Mapping[str, Any]

    def __init__(
        self,
        type: str,
        telemetry_fields: Mapping[str, Mapping[str, Any]],
        *,
        telemetry_interval: Any = "5s",
        labels: Mapping[str, str] | None = None,
        protocol: str = "console",
        topic_template: str = DEFAULT_TOPIC,
        qos: int | None = None,
        backpressure: str | None = None,
        publish: Mapping[str, Any] | None = None,
        phase: Any = None,
        jitter: Any = 0,
    ) -> None:
        given = {
            "type": type,
            "telemetry_fields": _as_dicts(telemetry_fields),
            "telemetry_interval": telemetry_interval,
            "labels": _as_dicts({} if labels is None else labels),
            "protocol": protocol,
            "topic_template": topic_template,
            "qos": qos,
            "backpressure": backpressure,
            "publish": _as_dicts({} if publish is None else publish),
            "phase": phase,
            "jitter": jitter,
        }
        self._fill(Document(f"profile {shown(type)}", given), Path())

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "_frozen", False):
            raise AttributeError(f"a Profile is frozen; {name} cannot be set. Make another one.")
        object.__setattr__(self, name, value)

    def _fill(self, document: Document, folder: Path) -> None:
        from iotsim.profile_schema import check  # pydantic takes its time to import

        def fail(place: Place, problem: IotsimError | str) -> ProfileError:
            return ProfileError(document.where(place), str(problem))

        schema = check(document.value, fail)
        interval_us = schema.telemetry_interval
        found = {
            name: make(name, given, interval_us, document, folder)
            for name, given in schema.telemetry_fields.items()
        }
        labels = {name: text for name, text in schema.labels.items() if name != "device_type"}
        self.type, self.labels = schema.type, MappingProxyType(labels)
        self.fields = ordered(found, document)
        self.interval_us, self.phase_us = interval_us, schema.phase
        self.jitter_us, self.protocol = schema.jitter, schema.protocol
        self.topic_template, self.qos = schema.topic_template, schema.qos
        self.backpressure = schema.backpressure
        self.publish = MappingProxyType(dict(schema.publish))
        object.__setattr__(self, "_frozen", True)

    @classmethod
    def _of(cls, document: Document, folder: Path) -> Profile:
        value = document.value
        if not isinstance(value, dict) or not {"type", "telemetry_fields"} <= value.keys():
            raise ProfileError(document.name, "this is not a profile. It needs at least the keys "
                                              "type and telemetry_fields.")
        self = cls.__new__(cls)
        self._fill(document, folder)
        return self

    @classmethod
    def load(cls, source: str | Path) -> Profile:
        """Return the profile in a YAML file, or the one of that name that comes with iotsim.

        Parameters
        ----------
        source : str or Path
            A path if it is a `Path`, has a separator, or ends in .yaml or .yml; else a name.

        Raises
        ------
        UnknownName
            If no profile of that name comes with iotsim.
        ProfileError
            If the file is not a profile; names file, line and field.

        Examples
        --------
        >>> Profile.load("temperature_sensor").interval_us
        5000000
        """
        if not isinstance(source, (str, Path)):
            raise BadValue("profile", source, "is neither a name nor a path",
                           "Give 'temperature_sensor', 'my/pump.yaml' or a Profile.")
        text = str(source)
        is_path = isinstance(source, Path) or text.lower().endswith((".yaml", ".yml"))
        if not is_path and "/" not in text and "\\" not in text:
            if text not in cls.names():
                raise UnknownName("profile", text, cls.names())
            source = _bundled() / f"{text}.yaml"
        path = Path(source)
        return cls._of(documents.read(path), path.parent)

    @classmethod
    def parse(cls, text: str, *, name: str = "<text>") -> Profile:
        """Return the profile written in a YAML text; `name` is what errors call it."""
        return cls._of(documents.parse(text, name), Path())

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any], *, name: str = "spec") -> Profile:
        """Return the profile whose `spec()` this is."""
        return cls._of(Document(name, dict(spec)), Path())

    @classmethod
    def names(cls) -> list[str]:
        """Return the names of the profiles that come with iotsim, sorted."""
        return sorted(path.stem for path in _bundled().glob("*.yaml"))

    def labels_with(self, extra: Mapping[str, str], group: str = "") -> dict[str, str]:
        """Return the labels of devices that are added with labels of their own.

        Parameters
        ----------
        extra : mapping of str to str
            Wins over the profile's labels.
        group : str
            How errors call the devices.

        Raises
        ------
        BadValue, UnknownName
            If a label cannot be, is a field as well, or one is missing that the topic template or
            a `shared` field needs.
        """
        from iotsim.profile_schema import check_label

        group = group or self.type
        for name, text in extra.items():
            check_label(name, text)
            if any(field.name == name for field in self.fields):
                raise BadValue("label", name, f"is a field of {shown(group)} as well",
                               "Rename it: both are columns.")
        if extra.get("device_type", self.type) != self.type:
            raise BadValue("device_type", extra["device_type"], "is not the type of the profile",
                           "Leave the label out.")
        merged = {**self.labels, **extra}
        merged.pop("device_type", None)
        check_topic(self.topic_template, merged)
        for field in self.fields:
            if field.shared is not None and field.shared not in merged:
                why = f"is a label that the devices of {shown(group)} do not have"
                raise BadValue("shared", field.shared, f"{why} (field {shown(field.name)})",
                               f"Add them with labels={{{field.shared!r}: …}}.")
        return merged

    def spec(self) -> dict[str, Any]:
        """Return the profile as plain JSON values, under the keys of its YAML."""
        found: dict[str, Any] = {
            "type": self.type,
            "protocol": self.protocol,
            "topic_template": self.topic_template,
            "telemetry_interval": duration_text(self.interval_us),
            "labels": dict(self.labels),
            "telemetry_fields": {field.name: field.spec() for field in self.fields},
        }
        for name in ("qos", "backpressure"):
            if getattr(self, name) is not None:
                found[name] = getattr(self, name)
        if self.publish:
            found["publish"] = dict(self.publish)
        if self.phase_us is not None:
            found["phase"] = duration_text(self.phase_us)
        if self.jitter_us:
            found["jitter"] = duration_text(self.jitter_us)
        return found

    def to_yaml(self) -> str:
        """Return the profile as YAML that `parse` reads back to an equal one."""
        return documents.dump(self.spec())

    def _content(self) -> tuple[Any, ...]:
        ordered = sorted(self.fields, key=lambda field: field.name)
        return (self.type, self.interval_us, self.phase_us, self.jitter_us, self.protocol,
                self.topic_template, self.qos, self.backpressure, dict(self.publish),
                dict(self.labels), ordered)

    def __eq__(self, other: object) -> bool:
        return self._content() == other._content() if isinstance(other, Profile) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.type, self.interval_us, frozenset(f.name for f in self.fields)))

    def __reduce__(self) -> tuple[Any, ...]:
        return Profile.from_spec, (self.spec(),)

    def _facts(self) -> str:
        names = [field.name for field in self.fields]
        listed = ", ".join(names[:6]) + (", …" if len(names) > 6 else "")
        plural = "" if len(names) == 1 else "s"
        return f"{len(names)} field{plural} every {duration_text(self.interval_us)} ({listed})"

    def __repr__(self) -> str:
        return f"<Profile {self.type!r}: {self._facts()}>"

    def _repr_html_(self) -> str:
        labels = ", ".join(f"{name}={text}" for name, text in list(self.labels.items())[:6])
        facts = [("fields", self._facts()), ("protocol", self.protocol),
                 ("topic", self.topic_template), *([("labels", labels)] if labels else [])]
        fields = table_html(("field", "signal", "unit", "resolution"), map(_row, self.fields),
                            len(self.fields), "fields")
        return facts_html(f"Profile {self.type}", facts, fields)


def _row(field: Field) -> tuple[str, str, str, str]:
    parameters = ", ".join(
        f"{name}={shown(value)}" for name, value in field.signal.spec().items() if name != "type"
    )
    resolution = "" if field.resolution is None else f"{field.spec()['resolution']:g}"
    return field.name, f"{field.signal.type_name}({parameters})", field.unit or "", resolution


def _as_dicts(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {name: dict(part) if isinstance(part, Mapping) else part for name, part in value.items()}


def _bundled() -> Path:
    inside = Path(__file__).with_name("_profiles")
    return inside if inside.is_dir() else Path(__file__).parent.parent / "profiles"
