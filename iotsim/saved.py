"""The saved run: a zip with the spec, the actions, the digests, and on request the readings.

Nothing in it is executed: JSON, plain arrays and Parquet only. Members of other names, absurd
sizes and newer formats are refused in one line.
"""

from __future__ import annotations

import io
import json
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iotsim import __version__, arrow
from iotsim.actions import PACE, records
from iotsim.comparison import Fingerprint, fingerprint
from iotsim.digest import DIGEST_VERSION, STRETCH_US_MIN, STRETCHES_MAX, Stretches
from iotsim.errors import BadValue, SavedRunError
from iotsim.progress import counted
from iotsim.seeding import Words

if TYPE_CHECKING:
    from iotsim.result import Result

FORMAT = 2
KIND = "iotsim run"
SUFFIX = ".iotsim"
_MEMBERS_MAX = 100_000
_SIZE_MAX = 8 * 1024**3
_JSON_MAX = 64 * 1024**2
_RATIO_MAX = 200
DAMAGE = (KeyError, ValueError, TypeError, AttributeError, IndexError, ArithmeticError,
          MemoryError, RecursionError, AssertionError)
_DAMAGE = (*DAMAGE, OSError, NotImplementedError, RuntimeError, SyntaxError, EOFError,
           tokenize.TokenError, zipfile.BadZipFile, zlib.error)
TIME_US_MIN, TIME_US_MAX = -62_135_596_800_000_000, 250_000_000_000_000_000  # years 1 to 9892


@dataclass(frozen=True, slots=True, eq=False)
class SavedRun:
    """What a saved run holds.

    Attributes
    ----------
    path : Path
    manifest : mapping
        Spec, window, versions.
    actions : list of mapping
    fingerprint : Fingerprint
    has_readings : bool
    """

    path: Path
    manifest: Mapping[str, Any]
    actions: list[Mapping[str, Any]]
    fingerprint: Fingerprint
    has_readings: bool


def save(result: Result, path: str | Path, *, readings: bool = False) -> Path:
    """Write a result to a file that `verify` can replay; returns its path."""
    target = arrow.target("path", path, f"run{SUFFIX}")
    if readings and result.capture.rows != result.rows:
        todo = "Run with capture='all'."
        if result.path is not None:
            todo = f"Save without; verify(path, against={str(result.path)!r}) reads them there."
        raise BadValue("readings", True, f"cannot be: {result.capture.rows:,} of {result.rows:,} "
                       "readings are held", todo)
    # Made in memory (it is small, or holds what memory holds already), so that a disk that is
    # full meets one plain write.
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        _write(archive, result, readings)
    with arrow.named_when_complete("path", target) as part:
        part.write_bytes(content.getvalue())
    return target


def _write(archive: zipfile.ZipFile, result: Result, readings: bool) -> None:
    mark = fingerprint(result)
    manifest = {
        "kind": KIND,
        "format": FORMAT,
        "versions": versions(),
        "spec": result.fleet.spec(),
        "start_us": result.start_us,
        "end_us": result.end_us,
        "digest": mark.digest,
        "rows": mark.rows,
        "groups": [len(ids) for ids, _, _ in mark.groups],
        "stretch_us": mark.stretches.width_us,
        "stretches": list(mark.stretches.sums),
        "readings": readings,
    }
    archive.writestr("manifest.json", json.dumps(manifest, indent=1))
    archive.writestr("actions.json", json.dumps(records(result.actions)))
    sums = np.array(list(mark.stretches.sums.values()), dtype="<u8").reshape(-1, STRETCHES_MAX)
    archive.writestr("stretches.npy", _bytes(sums))
    for i, (ids, words, rows) in enumerate(mark.groups):
        archive.writestr(f"devices/{i}.json", json.dumps(ids))
        archive.writestr(f"devices/{i}.npy", _bytes(np.array([words, rows.view(np.uint64)],
                                                             dtype="<u8")))
    if readings:
        pieces = io.BytesIO()
        parquet = arrow.parquet_module()
        table = result.to_arrow()
        width = arrow.ROWS_PER_GROUP
        parts = [table.slice(i, width) for i in range(0, len(table), width)]
        with parquet.ParquetWriter(pieces, table.schema, compression="zstd") as writer:
            for part in counted(f"saving {result.name}", parts):
                writer.write_table(part)
        archive.writestr("readings.parquet", pieces.getvalue())


def versions() -> dict[str, Any]:
    """Return the versions that decide what bytes a spec gives."""
    from importlib.metadata import version

    from iotsim.faults.draft import VERSION as FAULTS_VERSION
    from iotsim.signals.base import known

    generators = {name: cls.version for name, cls in sorted(known().items())}
    return {"iotsim": __version__, "digest": DIGEST_VERSION, "tzdata": version("tzdata"),
            "faults": FAULTS_VERSION, "generators": generators}


def _bytes(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=False)
    return stream.getvalue()


def load(path: str | Path) -> SavedRun:
    """Return what a saved run holds.

    Raises
    ------
    SavedRunError
        If the file is missing, truncated, not a saved run, or of a newer format.
    """
    target = Path(path)
    try:
        with zipfile.ZipFile(target) as archive:
            return _read(archive, target)
    except FileNotFoundError:
        raise SavedRunError(path, "there is no such file") from None
    except IsADirectoryError:
        raise SavedRunError(path, "this is a folder, not a saved run") from None
    except (zipfile.BadZipFile, EOFError, zipfile.LargeZipFile):
        raise SavedRunError(path, "this is not a saved run, or it is truncated",
                            "Save it again with result.save(path).") from None
    except _DAMAGE as error:
        if isinstance(error, SavedRunError):
            raise
        raise SavedRunError(path, f"this saved run is damaged ({type(error).__name__})",
                            "Save it again with result.save(path).") from None


def _read(archive: zipfile.ZipFile, path: Path) -> SavedRun:
    _check_members(archive, path)
    manifest = json.loads(_member(archive, "manifest.json", _JSON_MAX))
    if manifest.get("kind") != KIND:
        raise SavedRunError(path, "this is a zip file, but not a saved run of iotsim")
    if int(manifest["format"]) > FORMAT:
        raise SavedRunError(
            path, f"it has format {manifest['format']}; this iotsim reads up to {FORMAT}",
            "Install a newer iotsim.",
        )
    _check_numbers(manifest)
    names = manifest["stretches"]
    rows = _array(archive, "stretches.npy", (len(names), STRETCHES_MAX))
    stretches = Stretches(manifest["start_us"], manifest["stretch_us"],
                          dict(zip(names, rows, strict=True)))
    mark = Fingerprint(
        digest=str(manifest["digest"]),
        start_us=int(manifest["start_us"]),
        end_us=int(manifest["end_us"]),
        rows=int(manifest["rows"]),
        groups=tuple(_group(archive, i, size) for i, size in enumerate(manifest["groups"])),
        stretches=stretches,
    )
    if mark.rows != sum(sum(rows.tolist()) for _, _, rows in mark.groups):
        raise ValueError("rows")
    actions = json.loads(_member(archive, "actions.json", _JSON_MAX))
    _check_actions(actions, mark.end_us - mark.start_us)
    return SavedRun(path, manifest, actions, mark, bool(manifest["readings"]))


def _check_actions(actions: Any, span_us: int) -> None:
    before_us = 0
    for action in actions:
        at_us = action["at_us"]
        if type(at_us) is not int or type(action["verb"]) is not str:
            raise ValueError("actions")
        if abs(at_us) > TIME_US_MAX:
            raise ValueError("actions")
        if action["verb"] not in PACE and not before_us <= at_us <= span_us:
            raise ValueError("actions")
        before_us = max(before_us, 0 if action["verb"] in PACE else at_us)


def _check_numbers(manifest: Mapping[str, Any]) -> None:
    for name in ("start_us", "end_us", "rows", "stretch_us"):
        if type(manifest[name]) is not int or not TIME_US_MIN <= manifest[name] < TIME_US_MAX:
            raise ValueError(name)
    widths = manifest["stretch_us"] // STRETCH_US_MIN
    if widths * STRETCH_US_MIN != manifest["stretch_us"] or widths.bit_count() != 1:
        raise ValueError("stretch_us")
    if not isinstance(manifest["versions"], dict) or not isinstance(manifest["spec"], dict):
        raise ValueError("spec")
    if not all(type(name) is str for name in manifest["stretches"]):
        raise ValueError("stretches")


def _group(archive: zipfile.ZipFile, i: int, size: int) -> Any:
    ids = json.loads(_member(archive, f"devices/{i}.json", _SIZE_MAX))
    if type(ids) is not list or len(ids) != size or not all(type(name) is str for name in ids):
        raise ValueError("devices")
    pair = _array(archive, f"devices/{i}.npy", (2, size))
    rows = pair[1].view(np.int64)
    if (rows < 0).any():
        raise ValueError("devices")
    return tuple(ids), pair[0], rows


def _array(archive: zipfile.ZipFile, name: str, shape: tuple[int, int]) -> Words:
    # np.load makes room for whatever shape a header claims; here the shape is known.
    content = _member(archive, name, _SIZE_MAX)
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(name)
    if np.lib.format.read_array_header_1_0(stream) != (shape, False, np.dtype("<u8")):
        raise ValueError(name)
    if len(content) != stream.tell() + shape[0] * shape[1] * 8:
        raise ValueError(name)
    return np.frombuffer(content, dtype="<u8", offset=stream.tell()).reshape(shape)


def _check_members(archive: zipfile.ZipFile, path: Path) -> None:
    infos = archive.infolist()
    if "manifest.json" not in archive.namelist():
        raise SavedRunError(path, "this is a zip file, but not a saved run of iotsim")
    total = sum(info.file_size for info in infos)
    packed = sum(info.compress_size for info in infos)
    if len(infos) > _MEMBERS_MAX or total > _SIZE_MAX or total > 10**7 + packed * _RATIO_MAX:
        raise SavedRunError(path, "its contents are too large to be a saved run")
    for info in infos:
        name = info.filename
        plain = name in ("manifest.json", "actions.json", "stretches.npy", "readings.parquet")
        if not plain and not (name.startswith("devices/") and ".." not in name):
            raise SavedRunError(path, f"it holds a member {name[:60]!r} that no saved run has")


def _member(archive: zipfile.ZipFile, name: str, size_max: int) -> bytes:
    if archive.getinfo(name).file_size > size_max:
        raise ValueError(name)
    return archive.read(name)


def readings_table(saved: SavedRun) -> Any:
    """Return the readings that are stored with a saved run, as an Arrow table."""
    parquet = arrow.parquet_module()
    try:
        with zipfile.ZipFile(saved.path) as archive:
            content = io.BytesIO(archive.read("readings.parquet"))
        return parquet.read_table(content)
    except _DAMAGE:
        raise SavedRunError(saved.path, "the readings in it are damaged") from None
