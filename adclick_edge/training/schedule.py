"""Learning-rate schedule."""

import math

__all__ = ["warm_cosine"]


def warm_cosine(step: int, steps: int, warm_up_steps: int) -> float:
    """Factor of the learning rate: a linear rise over ``warm_up_steps``, then half a cosine down to 1 %."""
    if step < warm_up_steps:
        return (step + 1) / warm_up_steps
    progress = (step - warm_up_steps) / max(1, steps - warm_up_steps)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
