"""So many per hour, and a few at once."""

__all__ = ["TokenBucket"]

NS_PER_S = 1_000_000_000


class TokenBucket:
    """``per_s`` tokens a second, at most ``burst`` of them, full at first. Not thread-safe."""

    def __init__(self, per_s: float, burst: float, now_ns: int) -> None:
        self._per_s, self._burst, self._tokens, self._at_ns = per_s, burst, burst, now_ns

    def take(self, now_ns: int) -> bool:
        self._fill(now_ns)
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def give_back(self) -> None:
        self._tokens = min(self._burst, self._tokens + 1)

    def wait_s(self, now_ns: int) -> float:
        """Seconds until a token is there; infinite where none ever will be."""
        self._fill(now_ns)
        if self._tokens >= 1:
            return 0.0
        return (1 - self._tokens) / self._per_s if self._per_s > 0 else float("inf")

    def _fill(self, now_ns: int) -> None:
        if now_ns <= self._at_ns:
            return
        # A rounding error must not turn "exactly one token" into none.
        gained = (now_ns - self._at_ns) / NS_PER_S * self._per_s + 1e-9
        self._tokens = min(self._burst, self._tokens + gained)
        self._at_ns = now_ns
