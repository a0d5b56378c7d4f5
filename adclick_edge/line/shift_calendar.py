"""When shifts begin and end: at local times of the day, on days of 23 and 25 hours too."""

from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo

from adclick_edge.errors import UsageError

__all__ = ["local_time", "shift_bounds"]


def shift_bounds(now_s: float, starts: Sequence[str], zone: tzinfo | None = None) -> tuple[float, float]:
    """Unix times of the start and the end of the shift that ``now_s`` lies in.

    A start that the clocks skip in spring happens when they have been put forward; one that they pass twice in autumn
    happens the first time. ``zone`` is this computer's by default. UsageError for no starts, or one that is not HH:MM.
    """
    if not starts:
        raise UsageError("shift starts: none given; one HH:MM at least is needed")
    today = local_time(now_s, zone).date()
    instants = sorted(
        {
            _instant(datetime(day.year, day.month, day.day, *_hours_minutes(start)), zone)
            for day in (today + timedelta(days=shift) for shift in (-2, -1, 0, 1, 2))
            for start in starts
        }
    )
    begun = max(instant for instant in instants if instant <= now_s)
    return begun, min(instant for instant in instants if instant > now_s)


def local_time(unix_s: float, zone: tzinfo | None = None) -> datetime:
    """With its offset from UTC; ``zone`` is this computer's by default."""
    return datetime.fromtimestamp(unix_s).astimezone() if zone is None else datetime.fromtimestamp(unix_s, zone)


def _instant(wall: datetime, zone: tzinfo | None) -> float:
    # fold=0: the first of two equal wall times; for one that is skipped, the offset from before, so an hour later.
    return (wall if zone is None else wall.replace(tzinfo=zone)).timestamp()


def _hours_minutes(start: str) -> tuple[int, int]:
    hours, _, minutes = start.partition(":")
    if len(start) != 5 or not (hours.isdecimal() and minutes.isdecimal()) or int(hours) > 23 or int(minutes) > 59:
        raise UsageError(f"shift start {start!r}: expected HH:MM, such as 06:00")
    return int(hours), int(minutes)
