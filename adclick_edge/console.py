"""Where people are told what goes on: stderr, so that stdout stays what a program may read."""

from rich.console import Console

__all__ = ["progress_console"]


def progress_console() -> Console:
    return Console(stderr=True, highlight=False)
