"""Industrial cameras (GigE Vision, USB3 Vision) through a GenTL producer and the optional package harvesters."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from adclick_edge.errors import LineError, UsageError
from adclick_edge.line.protocol import PixelFormat
from adclick_edge.line.sources.source import SourceFrame

__all__ = ["FORMATS", "Acquirer", "Device", "GenicamSource", "Wire", "open_with_harvesters"]

FIRST_BACK_OFF_S = 0.25
LONGEST_BACK_OFF_S = 10.0
FETCH_S = 0.5
"""Of one fetch, so that `close` need not wait for long."""


class Wire(NamedTuple):
    """How a pixel format of the GenICam standard goes to the daemon."""

    format: PixelFormat
    bits: int
    channels: int


FORMATS = {
    "Mono8": Wire("mono8", 8, 1),
    "Mono10": Wire("mono16", 10, 1),
    "Mono12": Wire("mono16", 12, 1),
    "Mono14": Wire("mono16", 14, 1),
    "Mono16": Wire("mono16", 16, 1),
    "RGB8": Wire("rgb8", 8, 3),
    "RGB8Packed": Wire("rgb8", 8, 3),
    "BGR8": Wire("bgr8", 8, 3),
    "BGR8Packed": Wire("bgr8", 8, 3),
    "BayerRG8": Wire("bayer_rg8", 8, 1),
    "BayerGR8": Wire("bayer_gr8", 8, 1),
    "BayerGB8": Wire("bayer_gb8", 8, 1),
    "BayerBG8": Wire("bayer_bg8", 8, 1),
}


class Acquirer(Protocol):
    """What is used of harvesters' ImageAcquirer. ``fetch`` returns a buffer that is a context manager."""

    def start(self) -> None: ...
    def fetch(self, *, timeout: float) -> Any: ...
    def stop(self) -> None: ...
    def destroy(self) -> None: ...


class Device(NamedTuple):
    """A camera that was opened, and what closes the library behind it."""

    acquirer: Acquirer
    close: Callable[[], None]


def open_with_harvesters(producer: Path, serial: str | None) -> Device:
    """The first camera that the GenTL producer (a .cti file) finds, or the one with that serial number.

    Raises UsageError without the package harvesters or the file, LineError where no camera is found.
    """
    try:
        from harvesters.core import Harvester
    except ImportError as error:
        raise UsageError(
            f"GenICam cameras need the package harvesters ({error}); install adclick-edge[genicam]"
        ) from error
    if not producer.is_file():
        raise UsageError(f"{producer}: no such file; name the .cti file of the camera maker's GenTL producer")
    harvester = Harvester()
    try:
        harvester.add_file(str(producer))
        harvester.update()
        if not harvester.device_info_list:
            raise LineError(f"{producer}: finds no camera; check cable, power and the network's address range")
        return Device(harvester.create(0 if serial is None else {"serial_number": serial}), harvester.reset)
    except BaseException:
        harvester.reset()
        raise


class GenicamSource:
    """Each frame of a GenICam camera, copied out of its buffer, which goes back to the camera at once.

    The rate, and what triggers a frame, are set in the camera. When none comes for ``stall_s`` (None: one may be waited
    for for ever, as on a line that stands still), or the library raises anything, the device is opened anew, for ever,
    after 0.25 s doubling to 10 s. Counts: ``stalls``, ``restarts``, ``incomplete`` (buffers whose data do not fill their
    picture; they get no trigger). `last_error` says why.

    ``open_device`` makes the device, also each time anew. What it raises at the first time is raised here.
    """

    def __init__(
        self,
        open_device: Callable[[], Device],
        *,
        name: str = "genicam",
        stall_s: float | None = 10.0,
        clock: Callable[[], float] = time.monotonic,
        first_back_off_s: float = FIRST_BACK_OFF_S,
    ) -> None:
        self._open_device = open_device
        self._name = name
        self._stall_s = stall_s
        self._clock = clock
        self._first_back_off_s = self._back_off_s = first_back_off_s
        self._closing = threading.Event()
        self._lock = threading.Lock()
        """Of the device."""
        self._number = 0
        self._counts = {"stalls": 0, "restarts": 0, "incomplete": 0}
        self.last_error: str | None = None
        self._device: Device | None = self._start()

    @property
    def counts(self) -> dict[str, int]:
        return dict(self._counts)

    def __iter__(self) -> Iterator[SourceFrame]:
        return self

    def __next__(self) -> SourceFrame:
        heard_s = self._clock()
        while not self._closing.is_set():
            try:
                with self._lock:
                    if self._device is None:
                        self._device = self._start()
                        heard_s = self._clock()
                    frame = self._fetch(self._device.acquirer)
            except Exception as error:  # GenTL producers raise what they like, and none of it may end the line
                silent_s = self._clock() - heard_s
                if not _is_timeout(error):
                    self._fail(f"{type(error).__name__}: {error}")
                elif self._stall_s is not None and silent_s >= self._stall_s:
                    self._counts["stalls"] += 1
                    self._fail(f"no frame for {silent_s:.1f} s")
                continue
            heard_s = self._clock()
            if frame is not None:
                self._back_off_s = self._first_back_off_s
                return frame
        self.close()
        raise StopIteration

    def close(self) -> None:
        """From another thread, it may take as long as one fetch."""
        self._closing.set()
        with self._lock:
            self._stop()

    def _start(self) -> Device:
        device = self._open_device()
        try:
            device.acquirer.start()
        except BaseException:
            _close(device)
            raise
        return device

    def _fetch(self, acquirer: Acquirer) -> SourceFrame | None:
        with acquirer.fetch(timeout=FETCH_S if self._stall_s is None else min(FETCH_S, self._stall_s)) as buffer:
            captured_ns = time.monotonic_ns()
            component = buffer.payload.components[0]
            wire = FORMATS.get(component.data_format)
            if wire is None:
                raise LineError(
                    f"the pixel format {component.data_format} is not supported; "
                    f"set the camera to one of {', '.join(FORMATS)}"
                )
            dtype = np.uint8 if wire.bits == 8 else np.uint16
            shape = (component.height, component.width) + ((3,) if wire.channels == 3 else ())
            data = np.asarray(component.data)
            if data.size != np.prod(shape) or data.dtype != dtype:
                self._counts["incomplete"] += 1
                self.last_error = f"{data.size} samples {data.dtype} for {component.width} x {component.height} pixels"
                return None
            pixels = data.reshape(shape).copy()
        name = f"{self._name}#{self._number}"
        self._number += 1
        return SourceFrame(
            name, captured_ns, wire.format, shape[1], shape[0], pixels=pixels, bit_depth=max(8, wire.bits)
        )

    def _fail(self, why: str) -> None:
        self.last_error = why
        with self._lock:
            self._stop()
        if not self._closing.wait(self._back_off_s):
            self._back_off_s = min(2 * self._back_off_s, LONGEST_BACK_OFF_S)
            self._counts["restarts"] += 1

    def _stop(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            _close(device)


def _close(device: Device) -> None:
    for step in (device.acquirer.stop, device.acquirer.destroy, device.close):
        with contextlib.suppress(Exception):  # a device that is gone cannot be closed in order
            step()


def _is_timeout(error: Exception) -> bool:
    # genicam.gentl.TimeoutException, which cannot be named without importing it, or the built-in one.
    return "timeout" in type(error).__name__.lower()
