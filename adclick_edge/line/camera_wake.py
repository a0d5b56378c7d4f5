"""An eventfd that wakes a thread from its poll."""

import os

__all__ = ["Wake"]


class Wake:
    """Closed with its last user, so that nobody can wake a file that took over the number."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def set(self) -> None:
        os.eventfd_write(self.fd, 1)

    def clear(self) -> None:
        os.eventfd_read(self.fd)

    def __del__(self) -> None:
        os.close(self.fd)
