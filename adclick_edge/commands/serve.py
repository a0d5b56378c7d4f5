"""``adclick serve``"""

import signal
import threading
from pathlib import Path
from types import FrameType

from adclick_edge.errors import LineError, UsageError
from adclick_edge.files import write_text
from adclick_edge.line.daemon import Daemon
from adclick_edge.line.example_file import example_line_file
from adclick_edge.line.line_file import read_line_file
from adclick_edge.line.logs import configure_logs
from adclick_edge.line.systemd import READY, STOPPING, notify

__all__ = ["run", "write_example"]

LOOK_EVERY_S = 0.2


def run(line_file: Path, json_logs: bool | None) -> None:
    config = read_line_file(line_file)
    configure_logs(json_logs)
    asked = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with Daemon(config) as daemon:
            notify(READY)
            while not asked.wait(LOOK_EVERY_S) and not daemon.stop_asked.is_set():
                if ended := daemon.ended():
                    raise LineError(f"{', '.join(ended)}: ended by a fault of the program, see the log; start it again")
            notify(STOPPING)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_example(line_file: Path) -> None:
    if line_file.exists():
        raise UsageError(f"{line_file} exists; name a file that does not")
    write_text(line_file, example_line_file())
    print(line_file)
