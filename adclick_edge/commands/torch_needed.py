"""A clear word where a verb needs torch and the box has none."""

from collections.abc import Iterator
from contextlib import contextmanager

from adclick_edge.errors import UsageError

__all__ = ["needs_torch"]


@contextmanager
def needs_torch(what: str) -> Iterator[None]:
    """Turn the ImportError of a missing training library into a UsageError that says what to install."""
    try:
        yield
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] not in ("torch", "onnx", "onnxscript"):
            raise
        raise UsageError(
            f"{what}: needs {error.name}, which is not installed; pip install 'adclick-edge[train]'"
        ) from error
