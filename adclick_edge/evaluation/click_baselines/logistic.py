"""Weighted logistic regression with a ridge penalty, by Newton's method: small problems in a few milliseconds."""

from typing import Final

import numpy as np
import numpy.typing as npt

from adclick_edge.errors import UsageError

__all__ = ["fit_logistic"]

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]

MOST_STEPS: Final = 50
TOLERANCE: Final = 1e-6
"""Relative fall of the loss below which a step ends the search."""


def fit_logistic(points: F64, labels: Bool, weights: F64, ridge: float) -> F64:
    """Coefficients float64 ``[f + 1]``, the last one the intercept, that minimise

        sum_i weights_i * log(1 + exp(-s_i * (points_i . b + b0))) + ridge / 2 * |b|^2,  s_i = +1 or -1

    The intercept is not penalised (Hastie, Tibshirani, Friedman, "The Elements of Statistical Learning", 4.4).

    Args:
        points: float64 ``[n, f]``.
        labels: bool ``[n]``, both values present.
        weights: float64 ``[n]``, above 0.
        ridge: Above 0: without a penalty, separable points have no minimum.

    Raises:
        UsageError: Labels of one kind only, or ``ridge`` not above 0.
    """
    if not ridge > 0 or labels.all() or not labels.any():
        raise UsageError("logistic regression needs a ridge above 0 and points of both labels")
    design = np.column_stack([points, np.ones(len(points))])
    penalty = np.full(design.shape[1], ridge)
    penalty[-1] = 0
    target = labels.astype(np.float64)
    found = np.zeros(design.shape[1])
    loss = _loss(design, target, weights, penalty, found)
    for _ in range(MOST_STEPS):
        probability = 0.5 * (1 + np.tanh(0.5 * (design @ found)))
        gradient = design.T @ (weights * (probability - target)) + penalty * found
        curvature = weights * probability * (1 - probability)
        hessian = (design * curvature[:, None]).T @ design + np.diag(penalty)
        hessian[-1, -1] += 1e-9  # the intercept alone has no penalty that keeps the matrix regular
        direction = np.linalg.solve(hessian, gradient)
        # Far from the minimum a full Newton step may overshoot.
        length, better = 1.0, loss
        while length > 1e-4:
            better = _loss(design, target, weights, penalty, found - length * direction)
            if better <= loss:
                break
            length /= 2
        if better > loss:
            break
        found = found - length * direction
        if loss - better <= TOLERANCE * (loss + 1e-12):
            break
        loss = better
    return found


def _loss(design: F64, target: F64, weights: F64, penalty: F64, coefficients: F64) -> float:
    logits = design @ coefficients
    return float(weights @ (np.logaddexp(0, logits) - target * logits) + 0.5 * penalty @ coefficients**2)
