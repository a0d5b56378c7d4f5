"""What became of a change of a product's bundle."""

import msgspec

__all__ = ["SwapOutcome"]


class SwapOutcome(msgspec.Struct, frozen=True, kw_only=True):
    ok: bool
    product: str
    version: str | None
    """What serves now; of a shadow: the candidate that judges now."""
    previous_version: str | None
    """What served before; of a shadow: what serves."""
    message: str
    seconds: float
