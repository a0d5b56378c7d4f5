"""Pictures of a folder as if a camera took them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from adclick_edge.data.image_header import read_header
from adclick_edge.data.images import IMAGE_SUFFIXES, natural_key, read_image
from adclick_edge.errors import DataError, ImageError
from adclick_edge.line.protocol import PixelFormat
from adclick_edge.line.sources.pace import Pace
from adclick_edge.line.sources.source import SourceFrame

__all__ = ["FolderSource"]


class FolderSource:
    """Replays the pictures in ``folder`` and the folders in it, in natural order, at ``rate_hz``.

    ``encoded`` hands JPEG and PNG files over as they are; the others, and without it all, are decoded to rgb8. Each
    picture is read before its tick, so that a trigger is not late by the time of its decoding. Files that cannot be
    read are passed over and counted as ``unreadable``; their names and faults are in `faults`.
    Raises DataError where there is no picture, also when in a loop none could be read.
    """

    def __init__(self, folder: Path, rate_hz: float, *, loop: bool = False, encoded: bool = False) -> None:
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; check the path")
        found = (p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
        self._files = sorted((p for p in found if p.is_file()), key=lambda p: _place(p.relative_to(folder)))
        if not self._files:
            raise DataError(f"{folder}: no pictures in it ({', '.join(sorted(IMAGE_SUFFIXES))}); check the path")
        self._folder = folder
        self._loop = loop
        self._encoded = encoded
        self._pace = Pace(rate_hz)
        self._next = 0
        self._bad_in_a_row = 0
        self.faults: dict[str, str] = {}
        self._unreadable = 0

    @property
    def counts(self) -> dict[str, int]:
        return {"missed_ticks": self._pace.missed, "unreadable": self._unreadable}

    def __iter__(self) -> Iterator[SourceFrame]:
        return self

    def __next__(self) -> SourceFrame:
        while True:
            if self._next == len(self._files):
                if not self._loop:
                    raise StopIteration
                self._next = 0
            path = self._files[self._next]
            self._next += 1
            try:
                frame = self._read(path)
            except ImageError as error:
                self._unreadable += 1
                self._bad_in_a_row += 1
                self.faults[str(path.relative_to(self._folder))] = str(error)
                if self._bad_in_a_row == len(self._files) and self._loop:
                    raise DataError(f"{self._folder}: none of its pictures can be read; the last: {error}") from error
                continue
            self._bad_in_a_row = 0
            tick_ns = self._pace.wait()
            if tick_ns is None:
                raise StopIteration
            return replace(frame, captured_ns=tick_ns)

    def close(self) -> None:
        self._loop = False
        self._pace.stop()

    def _read(self, path: Path) -> SourceFrame:
        name = str(path.relative_to(self._folder))
        if self._encoded:
            try:
                data = path.read_bytes()
            except OSError as error:
                raise ImageError(f"{path}: cannot be read ({error.strerror}); check the file's rights") from error
            header = read_header(data, str(path))
            if header.format in ("jpeg", "png"):
                kind: PixelFormat = "jpeg" if header.format == "jpeg" else "png"
                return SourceFrame(name, 0, kind, header.width, header.height, encoded=data)
        pixels = read_image(path)
        return SourceFrame(name, 0, "rgb8", pixels.shape[1], pixels.shape[0], pixels=pixels)


def _place(path: Path) -> tuple[object, ...]:
    """Sort key: natural order, pictures before the folders beside them."""
    return tuple(natural_key(Path(part)) for part in path.parts[:-1]), natural_key(path)
