"""Frames for operators, on disk, until the relabel store has taken them over.

One folder per frame, ``20260131T235959.123456-CAMERA-SEQ/``, written aside, synced and renamed: it is there whole or not at
all, whenever the power fails. It holds ``record.json`` (`SpoolRecord`), ``frame.png`` or ``frame.jpg``, and ``map.npy``
(float32 [h4, w4]). Names sort by time. A frame handed over is never deleted to make room for another.

One process puts (`Spool.sweep` first), another may read and remove meanwhile.
"""

import hashlib
import io
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import numpy as np
import numpy.typing as npt
from msgspec import Meta

from adclick_edge.errors import LineError
from adclick_edge.files import atomic_folder, fsync_folder
from adclick_edge.line.likeness import Signature
from adclick_edge.runtime.decision import Blob, Reason, Verdict

__all__ = ["SCHEMA", "Spool", "SpoolRecord", "SpooledFrame", "Why"]

Why = Literal["uncertain", "audit"]
"""Why a frame was handed over: the thresholds do not decide it, or it was drawn by lot."""

SCHEMA = 1
RECORD, MAP = "record.json", "map.npy"
SUFFIXES = (".png", ".jpg")
MAX_RECORD_BYTES = 1 << 20
RESCAN_NS = 2_000_000_000
_CAMERA = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")

F32 = npt.NDArray[np.float32]


class _StoredFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    name: str
    size_bytes: int
    sha256: str


class SpoolRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is known about a frame that was handed over. ``verdict``, ``reason`` and scores are the daemon's."""

    schema: int = SCHEMA
    camera: str
    session: int
    seq: int
    part: str | None = None
    product: str
    bundle_version: str | None = None
    verdict: Verdict
    reason: Reason | None = None
    why: Why
    usefulness: float | None
    """0..1; None of a frame drawn by lot."""
    score: float | None = None
    lower: float | None = None
    upper: float | None = None
    regions: tuple[Blob, ...] = ()
    regions_found: int = 0
    stage_ms: dict[str, float] = {}
    judged_utc: Annotated[datetime, Meta(tz=True)]
    signature: Signature | None = None
    files: tuple[_StoredFile, ...] = ()
    """Filled in by `Spool.put`: the picture first, then the map."""


@dataclass(frozen=True, eq=False)
class SpooledFrame:
    """A frame read back whole. ``image`` is the picture's file, ``map`` float32 [h4, w4]."""

    path: Path
    record: SpoolRecord
    image: bytes
    suffix: str
    map: F32


class Spool:
    """``folder`` is made where it is missing. Thread-safe. Raises LineError where it cannot be used."""

    def __init__(self, folder: Path, max_bytes: int, *, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.folder = folder
        self._max_bytes, self._clock = max_bytes, clock
        self._lock = threading.Lock()
        self._damaged: tuple[Path, ...] = ()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._bytes = self._measure()
        except OSError as error:
            raise LineError(f"{folder}: the spool cannot be used: {error}; check path and permissions") from error
        self._measured_ns = clock()

    @property
    def size_bytes(self) -> int:
        """Bytes of all frames, as this object knows; looked up anew before a frame is refused."""
        with self._lock:
            return self._bytes

    @property
    def damaged(self) -> tuple[Path, ...]:
        """Folders that the last `records` skipped."""
        return self._damaged

    def sweep(self) -> int:
        """Remove what a crash left half-written; how many folders. Only for the process that puts, before it does."""
        left = [path for path in self.folder.iterdir() if path.name.startswith(".") and path.is_dir()]
        for path in left:
            shutil.rmtree(path, ignore_errors=True)
        size = self._measure()
        with self._lock:
            self._bytes = size
        return len(left)

    def put(self, record: SpoolRecord, image: bytes, suffix: str, anomaly_map: F32) -> Path:
        """Store a frame; returns its folder once it is durable. ``image`` is a whole .png or .jpg file.

        Raises LineError where the spool is full, the disk is full or cannot be written: nothing is left behind then.
        """
        if suffix not in SUFFIXES or not image:
            raise LineError(f"a picture of {len(image)} bytes as {suffix!r}; expected a {' or '.join(SUFFIXES)} file")
        if not _CAMERA.fullmatch(record.camera) or record.seq < 0:
            raise LineError(f"camera {record.camera!r}, frame {record.seq}: no name for a folder of the spool")
        contents = {f"frame{suffix}": image, MAP: _npy(anomaly_map)}
        files = tuple(_StoredFile(name=n, size_bytes=len(d), sha256=_sha256(d)) for n, d in contents.items())
        contents[RECORD] = msgspec.json.encode(msgspec.structs.replace(record, schema=SCHEMA, files=files))
        size = sum(len(data) for data in contents.values())
        self._make_room(size)
        path = self._free_name(record)
        try:
            with atomic_folder(path) as new:
                for name, data in contents.items():
                    with open(new / name, "xb") as file:
                        file.write(data)
        except OSError as error:
            raise LineError(
                f"{path}: a frame for the operators could not be stored: {error}; make room on the disk or check its mount"
            ) from error
        with self._lock:
            self._bytes += size
        return path

    def paths(self) -> list[Path]:
        """Folders of the frames, oldest first."""
        return sorted(path for path in self.folder.iterdir() if not path.name.startswith(".") and path.is_dir())

    def records(self, *, newest_first: bool = False) -> Iterator[tuple[Path, SpoolRecord]]:
        """Every frame's folder and record. Damaged ones are skipped and named by `damaged` afterwards.

        Files must be there in their full size; only `take` reads them. A frame removed meanwhile is passed over.
        """
        damaged = []
        for path in sorted(self.paths(), reverse=newest_first):
            try:
                record = self._record(path)
            except LineError:
                if path.is_dir():
                    damaged.append(path)
                continue
            yield path, record
        self._damaged = tuple(damaged)

    def take(self, path: Path) -> SpooledFrame:
        """Read a frame back, checked against its hashes; it stays until `remove`. LineError where it is damaged."""
        record = self._record(path)
        contents = []
        for file in record.files:
            try:
                data = (path / file.name).read_bytes()
            except OSError as error:
                raise _damage(path, f"{file.name} cannot be read: {error}") from error
            if _sha256(data) != file.sha256:
                raise _damage(path, f"{file.name} was altered")
            contents.append(data)
        try:
            anomaly_map = np.load(io.BytesIO(contents[1]), allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise _damage(path, f"{MAP}: {error}") from error
        if anomaly_map.ndim != 2 or anomaly_map.dtype != np.float32:
            raise _damage(path, f"{MAP} is {anomaly_map.dtype} {list(anomaly_map.shape)}, not float32 [h4, w4]")
        return SpooledFrame(path, record, contents[0], Path(record.files[0].name).suffix, anomaly_map)

    def remove(self, path: Path) -> None:
        """Delete a frame that was taken over (or is damaged), in one step for whoever looks. Gone already is fine."""
        self._inside(path)
        size = _folder_bytes(path)
        try:
            aside = tempfile.mkdtemp(prefix=f".{path.name}.gone.", dir=self.folder)
            try:
                os.rename(path, aside)
            except FileNotFoundError:
                return
            finally:
                shutil.rmtree(aside, ignore_errors=True)
            fsync_folder(self.folder)
        except OSError as error:
            raise LineError(f"{path}: cannot be removed: {error}; check permissions") from error
        with self._lock:
            self._bytes = max(0, self._bytes - size)

    def _make_room(self, size: int) -> None:
        """The relabel store removes frames behind our back, so a spool that seems full is measured again."""
        held = self.size_bytes
        if held + size > self._max_bytes and self._clock() - self._measured_ns >= RESCAN_NS:
            held = self._measure()
            with self._lock:
                self._bytes, self._measured_ns = held, self._clock()
        if held + size > self._max_bytes:
            raise LineError(
                f"{self.folder}: the spool is full: {held} bytes of {self._max_bytes}, and a frame of {size} bytes to "
                "store; let the relabel store take its frames, or raise max_spool_bytes in [routing]"
            )

    def _free_name(self, record: SpoolRecord) -> Path:
        at = record.judged_utc.astimezone(UTC).strftime("%Y%m%dT%H%M%S.%f")
        path = self.folder / f"{at}-{record.camera}-{record.seq}"
        again = 1
        while path.exists():  # a wall clock that was set back
            again += 1
            path = self.folder / f"{at}-{record.camera}-{record.seq}-{again}"
        return path

    def _record(self, path: Path) -> SpoolRecord:
        self._inside(path)
        try:
            with open(path / RECORD, "rb") as file:
                data = file.read(MAX_RECORD_BYTES + 1)
            record = msgspec.json.decode(data, type=SpoolRecord)
            sizes = [(path / file.name).stat().st_size for file in record.files if file.name == Path(file.name).name]
        except OSError as error:
            raise _damage(path, str(error)) from error
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            raise _damage(path, f"{RECORD}: {error}") from error
        if record.schema != SCHEMA:
            raise _damage(path, f"schema {record.schema}, not {SCHEMA}: another version of this software wrote it")
        names = [file.name for file in record.files]
        if names not in [[f"frame{suffix}", MAP] for suffix in SUFFIXES]:
            raise _damage(path, f"{RECORD} names the files {names}")
        if sizes != [file.size_bytes for file in record.files]:
            raise _damage(path, "a file is shorter or longer than it was")
        return record

    def _inside(self, path: Path) -> None:
        if path.parent != self.folder or path.name.startswith("."):
            raise LineError(f"{path}: no frame of the spool {self.folder}; take paths from records()")

    def _measure(self) -> int:
        return sum(_folder_bytes(path) for path in self.folder.iterdir())


def _damage(path: Path, what: str) -> LineError:
    return LineError(f"{path}: damaged: {what}; look at it, then remove the folder")


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _npy(anomaly_map: F32) -> bytes:
    if anomaly_map.ndim != 2:
        raise LineError(f"the map has shape {list(anomaly_map.shape)}; expected [h4, w4]")
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(anomaly_map, np.float32), allow_pickle=False)
    return file.getvalue()


def _folder_bytes(folder: Path) -> int:
    """Of the files in it; 0 where it is gone."""
    size = 0
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                size += entry.stat(follow_symlinks=False).st_size
    except (FileNotFoundError, NotADirectoryError):
        return size
    return size
