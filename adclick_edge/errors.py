"""Every error this package raises on purpose.

::

    AdclickError
    ├── UsageError          the call itself is wrong (exit code 2)
    ├── DataError           a dataset folder does not hold what it should
    │   └── ImageError      one image file cannot be used
    ├── WeightsError        network weights are missing or do not fit
    ├── BundleError         a bundle is incomplete, altered or of another schema
    ├── CalibrationError    thresholds cannot be derived from what was given
    ├── TrainingError       a training run cannot start or go on
    ├── ExportError         a graph cannot be exported
    │   └── ParityError     the exported graph does not compute what was trained
    ├── EngineError         a back end cannot be loaded or failed on a batch
    └── LineError           the line daemon or a camera cannot start, go on or be reached
        ├── ConfigError     a line.toml is not what it should be (exit code 2)
        └── ProtocolError   bytes on the wire are not what they should be

Each message names the thing, what is wrong with it, and what to do.
"""

__all__ = [
    "AdclickError",
    "BundleError",
    "CalibrationError",
    "ConfigError",
    "DataError",
    "EngineError",
    "ExportError",
    "ImageError",
    "LineError",
    "ParityError",
    "ProtocolError",
    "TrainingError",
    "UsageError",
    "WeightsError",
]


class AdclickError(Exception):
    """Base of all errors of this package; the command line prints its message and exits with ``exit_code``."""

    exit_code = 1


class UsageError(AdclickError):
    exit_code = 2


class DataError(AdclickError):
    pass


class ImageError(DataError):
    pass


class WeightsError(AdclickError):
    pass


class BundleError(AdclickError):
    pass


class CalibrationError(AdclickError):
    pass


class TrainingError(AdclickError):
    pass


class ExportError(AdclickError):
    pass


class ParityError(ExportError):
    pass


class EngineError(AdclickError):
    pass


class LineError(AdclickError):
    pass


class ConfigError(LineError):
    exit_code = 2


class ProtocolError(LineError):
    """``code`` is one of `adclick_edge.line.protocol.ErrorCode`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
