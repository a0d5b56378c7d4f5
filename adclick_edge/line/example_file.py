"""A line.toml to start from. What is commented out is the default."""

__all__ = ["example_line_file"]

_EXAMPLE = """\
# What the line daemon is told. Paths are relative to the folder of this file.
# What is commented out shows the default, or (where marked) an example.

[line]
name = "line1"
# Endpoints that cameras connect to. Under systemd use /run/adclick; the service has no /tmp it could write to.
bind = ["ipc:///tmp/adclick/line.ipc"]
# Verdicts and counts are published here. (example)
# monitor = "ipc:///run/adclick/monitor.ipc"
# /healthz /readyz /metrics /status
# http = "127.0.0.1:8600"
# What must survive a restart: serving bundles, counts, the control socket.
# state = "state"
# Threads of the engine; default: all cores but one. (example)
# threads = 3
# decode_workers = 1
# max_batch = 4
# How long a frame may wait for others to share its batch; pays on GPUs only.
# batch_wait_ms = 0.0
# heartbeat_ms = 250
# A frame that waits is answered so long before its deadline.
# answer_margin_ms = 5.0
# At a stop, how long frames already taken may still be judged.
# drain_s = 5.0

[limits]
# max_width = 16384
# max_height = 16384
# max_pixels = 50000000
# max_payload_bytes = 160000000

[security]
# Cameras must prove a key on the allow-list: `adclick keys`.
# curve = false
# keys = "keys"
# Bind addresses that other hosts can reach without proof of anything. For networks that nobody else is on.
# plain_remote = false

[products.flange]
bundle = "bundles/flange.bundle"
# Codes in a frame's header that choose this product. (example)
# codes = ["4711"]

[cameras.cam1]
product = "flange"
# deadline_ms = 500.0
# Frames that may wait; what comes on top meets `overload`: reject_newest, drop_oldest or block.
# queue = 4
# overload = "reject_newest"

[routing]
# Where frames for operators are handed over; default: STATE/relabel. (example)
# spool = "state/relabel"
# budget_per_hour = 60.0
# Share of ok and ng frames queued at random, for audit; within the budget.
# audit_share = 0.002
# max_spool_bytes = 2147483648
# waiting = 16
# duplicate_similarity = 0.98

[alarms]
# How far, in standard deviations of the reference frames, the mean over `frames` may drift; 0 turns an alarm off.
# frames = 50
# reference_frames = 100
# light = 6.0
# focus = 6.0
# position = 6.0
# score = 6.0

[shift]
# starts = ["06:00", "14:00", "22:00"]
# Folder of the reports; default: STATE/shifts. (example)
# reports = "state/shifts"
"""


def example_line_file() -> str:
    """The text of a line.toml with one product and one camera; only the path of the bundle must be changed."""
    return _EXAMPLE
