"""Which machine a benchmark ran on, and how busy it was: a number without them says little."""

import importlib.metadata
import os
import platform
import time
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["describe_machine"]

_PACKAGES = ("adclick-edge", "numpy", "onnxruntime", "opencv-python-headless", "torch")
_BUSY_SHARE = 0.1


def describe_machine(watch_s: float = 1.0) -> dict[str, object]:
    """JSON about this machine, taken before a run.

    For ``watch_s`` seconds nothing is done here: ``others_busy_share`` is the share of all cores' time (0 to 1) that other
    processes used meanwhile, and ``quiet`` says whether it is below 10 %. Both are None where /proc is not there to ask.
    """
    others = _others_busy_share(watch_s)
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := _version(name))},
        "load_average": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "others_busy_share": others,
        "quiet": None if others is None else others < _BUSY_SHARE,
        "time_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    if "SC_PHYS_PAGES" not in getattr(os, "sysconf_names", {}):
        return None
    return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _others_busy_share(watch_s: float) -> float | None:
    before = _ticks()
    time.sleep(watch_s)
    after = _ticks()
    if before is None or after is None or after[1] == before[1]:
        return None
    return round((after[0] - before[0]) / (after[1] - before[1]), 3)


def _ticks() -> tuple[int, int] | None:
    """Busy and all clock ticks of all cores since the machine started."""
    stat = Path("/proc/stat")
    if not stat.is_file():
        return None
    # user nice system idle iowait irq softirq steal; what follows is counted in user already
    ticks = [int(number) for number in stat.read_text().split("\n", 1)[0].split()[1:9]]
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)
