"""Where a camera program's frames come from: folders and videos to replay, live cameras, GenICam devices."""

from adclick_edge.line.sources.source import FrameSource, SourceFrame

__all__ = ["FrameSource", "SourceFrame"]
