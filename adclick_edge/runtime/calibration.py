"""Thresholds of a product, each with the error rate it stands for.

Two bounds, both by split-conformal calibration, both holding without any assumption on the shape of the scores, only
that the frame to come is exchangeable with those calibrated on (same product, same light, none of them in the bank):

``t_ng``, from normal scores S_1..S_n and a false-alarm budget a. With k = ceil((n+1)(1-a)) and S_(k) the k-th
smallest, ``P(S > S_(k)) <= 1 - k/(n+1) <= a``: at most n+1-k of n+1 exchangeable scores have k or more of the others
strictly below them. ``t_ng`` is the next double above S_(k), so that ``score >= t_ng`` says exactly
``score > S_(k)`` and ties cost nothing.

``t_defect``, from defect scores D_1..D_m and a bound b on missed defects. With k = floor((m+1)b),
``P(D < D_(k)) <= k/(m+1) <= b``: at most k of m+1 exchangeable scores have k or fewer scores at or below them.

The band: ``lower = min(t_ng, t_defect)`` and ``upper = max(t_ng, t_defect)``; ``score >= upper`` is ng,
``score < lower`` is ok, between is uncertain. Both bounds hold whichever is larger:
``P(ng | normal) = P(S >= upper) <= P(S >= t_ng) <= a`` and ``P(ok | defect) = P(D < lower) <= P(D < t_defect) <= b``.
Where the classes are apart (``t_defect > t_ng``) even ``P(not ok | normal) <= a`` holds; an operator then sees the rare
frames that resemble neither class.

The probabilities include the draw of the calibration frames: over many calibrations the mean rate keeps the bound,
while one calibration with few frames can be above it.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from typing import Annotated, Any, Literal

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import ArrayLike, NDArray

from adclick_edge.bundle import Bundle
from adclick_edge.errors import BundleError, CalibrationError
from adclick_edge.runtime.regions import Regions, load_regions, regions_sha256

__all__ = [
    "Calibration",
    "calibrate",
    "check_held_out",
    "load_calibration",
    "made_under",
    "parse_calibration",
    "store_calibration",
]

Rate = Annotated[float, Meta(gt=0, le=0.5)]
Bound = Annotated[float, Meta(gt=0, le=1)]

# Without defects nothing can be promised about them; the band then takes this many times the false alarms.
_BAND_FACTOR = 5
_MAX_NAMED = 5


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The thresholds of one product with one bundle. Scores are raw, as the graphs give them.

    ``false_alarms`` was asked for, ``guaranteed_false_alarms`` is what the number of normals supports;
    ``missed_defects_bound`` is None where no defects were given, and ``lower`` is then a heuristic.
    """

    lower: float
    upper: float
    t_ng: float
    t_defect: float | None
    false_alarms: Rate
    guaranteed_false_alarms: Annotated[float, Meta(ge=0, le=0.5)]
    missed_defects_bound: Bound | None
    normals: Annotated[int, Meta(ge=1)]
    defects: Annotated[int, Meta(ge=0)]
    source: Literal["held_out", "leave_one_out"]
    created_utc: str
    author: str
    notes: tuple[str, ...]
    bundle_version: str | None = None
    regions_sha256: str | None = None
    """Of the regions the scores were taken under; None: the whole frame."""

    def __post_init__(self) -> None:
        thresholds = (self.lower, self.upper, self.t_ng, *(() if self.t_defect is None else (self.t_defect,)))
        if not all(math.isfinite(t) for t in thresholds):
            raise ValueError(f"thresholds must be finite, these are {thresholds}")
        known = self.t_defect is not None
        if known != (self.missed_defects_bound is not None) or known != (self.defects > 0):
            raise ValueError("t_defect, missed_defects_bound and defects go together: all given or none")
        # Thresholds moved by hand would still carry the bounds of those that were computed.
        if self.upper != max(self.t_ng, self.t_ng if self.t_defect is None else self.t_defect):
            raise ValueError(f"upper {self.upper} is not the larger of t_ng {self.t_ng} and t_defect {self.t_defect}")
        if self.lower > self.t_ng or (self.t_defect is not None and self.lower != min(self.t_ng, self.t_defect)):
            raise ValueError(f"lower {self.lower} does not follow from t_ng {self.t_ng} and t_defect {self.t_defect}")


def calibrate(
    normal_scores: ArrayLike,
    *,
    false_alarms: float,
    defect_scores: ArrayLike | None = None,
    missed_defects: float = 0.05,
    source: Literal["held_out", "leave_one_out"],
    author: str = "",
    created_utc: str | None = None,
) -> Calibration:
    """Thresholds from the scores [n] of normal frames and, where there are any, [m] of labelled defect frames.

    ``false_alarms`` and ``missed_defects`` are rates in (0, 0.5]. With fewer normals than ``false_alarms`` needs,
    ``t_ng`` lies just above the largest normal score and ``guaranteed_false_alarms`` is 1/(n+1); with fewer defects
    than ``missed_defects`` needs, ``t_defect`` is the smallest defect score and the bound 1/(m+1). Either is said in
    ``notes``, with the number of frames that would do.

    Without defects ``lower`` is a heuristic: the conformal quantile that five times the false alarms stay above (half
    of the normals at most), and ``missed_defects_bound`` is None.

    Raises CalibrationError for empty scores, NaN, infinities and rates out of range.
    """
    if source not in ("held_out", "leave_one_out"):
        raise CalibrationError(f"source is {source!r}; expected 'held_out' or 'leave_one_out'")
    budget = _rate("false_alarms", false_alarms)
    missed = _rate("missed_defects", missed_defects)
    normals = _sorted_scores("normal", normal_scores)
    notes: list[str] = []
    if source == "leave_one_out":
        notes.append(
            "leave-one-out scores come from banks of one frame less each, so both bounds are approximate; calibrate on "
            "held-out normals for bounds that hold"
        )
    t_ng, guaranteed = _t_ng(normals, budget, notes)
    if defect_scores is None:
        lower, t_defect, bound, defects_count = _heuristic_lower(normals, budget), None, None, 0
        notes.append("no labelled defects: lower is a heuristic and nothing is promised about missed defects")
        upper = t_ng
    else:
        defects = _sorted_scores("defect", defect_scores)
        defects_count = int(defects.size)
        t_defect, bound = _t_defect(defects, missed, notes)
        lower, upper = min(t_ng, t_defect), max(t_ng, t_defect)
        if t_defect <= float(np.median(normals)):
            notes.append(
                "the bound on missed defects makes at least half of the normal frames uncertain: the scores do not "
                "separate these defects; look at their maps and labels"
            )
    if normals[0] == normals[-1] and normals.size > 1:
        notes.append(f"all {normals.size} normal scores are equal; check that the frames differ and the engine works")
    return Calibration(
        lower=lower,
        upper=upper,
        t_ng=t_ng,
        t_defect=t_defect,
        false_alarms=float(false_alarms),
        guaranteed_false_alarms=float(guaranteed),
        missed_defects_bound=None if bound is None else float(bound),
        normals=int(normals.size),
        defects=defects_count,
        source=source,
        created_utc=created_utc or datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        author=author,
        notes=tuple(notes),
    )


def check_held_out(
    bank_image_hashes: Collection[str],
    calibration_hashes: Mapping[str, str] | Sequence[str],
    training_image_hashes: Collection[str] = (),
) -> None:
    """Refuse calibration frames whose content is in the bank or was trained on. A mapping is from name to hash.

    A frame of the bank finds itself there and scores near zero; thresholds from such frames are far too low. Defects
    the network was trained on score higher than those to come, and the bound on missed defects would not hold.
    Raises CalibrationError that names them.
    """
    named = calibration_hashes if isinstance(calibration_hashes, Mapping) else {h: h for h in calibration_hashes}
    if inside := _inside(named, bank_image_hashes):
        raise CalibrationError(
            f"{len(inside)} of {len(named)} calibration frames are in the bank: {_some(inside)}; they match themselves "
            "and would give thresholds that are too low: take frames that the bank was not built from, or calibrate "
            "with source='leave_one_out'"
        )
    if inside := _inside(named, training_image_hashes):
        raise CalibrationError(
            f"{len(inside)} of {len(named)} calibration frames were trained on: {_some(inside)}; the network knows them "
            "better than any frame to come, so the error rates would not hold: take other frames"
        )


def parse_calibration(body: Mapping[str, Any], where: str) -> Calibration:
    """The calibration in a JSON object; ``where`` names its file. Raises CalibrationError."""
    try:
        return msgspec.convert(body, Calibration)
    except msgspec.ValidationError as e:
        raise CalibrationError(f"{where}: not a calibration: {e}; calibrate again") from e


def load_calibration(bundle: Bundle) -> Calibration | None:
    """The calibration a bundle carries now, or None. Raises CalibrationError for one made with another bundle."""
    body = bundle.calibration
    if body is None:
        return None
    where = f"{bundle.location}: calibration.json"
    calibration = parse_calibration(body, where)
    if calibration.bundle_version not in (None, bundle.manifest.version):
        raise CalibrationError(
            f"{where} was made with bundle version {calibration.bundle_version}, this is "
            f"{bundle.manifest.version}; scores differ between bundles: calibrate again"
        )
    return calibration


def made_under(calibration: Calibration, regions: Regions) -> bool:
    """Whether the scores behind a calibration were taken under ``regions``."""
    return (calibration.regions_sha256 or regions_sha256(Regions())) == regions_sha256(regions)


def store_calibration(bundle: Bundle, calibration: Calibration) -> Calibration:
    """Put a calibration made with ``bundle`` into it, marked with its version and regions; returns what was stored.

    Raises BundleError for one made with another bundle, CalibrationError for one marked with other regions.
    """
    version = bundle.manifest.version
    if calibration.bundle_version not in (None, version):
        raise BundleError(
            f"{bundle.location}: this calibration was made with bundle version {calibration.bundle_version}, not with "
            f"{version}; calibrate again"
        )
    regions = load_regions(bundle)
    if calibration.regions_sha256 is not None and not made_under(calibration, regions):
        raise CalibrationError(
            f"{bundle.location}: the regions changed since the scores of this calibration were taken; calibrate again"
        )
    stamped = msgspec.structs.replace(calibration, bundle_version=version, regions_sha256=regions_sha256(regions))
    bundle.set_calibration(stamped)
    return stamped


def _inside(named: Mapping[str, str], hashes: Collection[str]) -> list[str]:
    known = frozenset(hashes)
    return sorted(name for name, digest in named.items() if digest in known)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more


def _rate(name: str, rate: float) -> Fraction:
    if not isinstance(rate, (int, float)) or not 0 < rate <= 0.5:
        raise CalibrationError(f"{name} is {rate!r}; expected a rate above 0 and up to 0.5, such as 0.01")
    # As typed: the double nearest to 0.07 is not 7/100, and (n+1)*0.07 may then miss an integer by one ulp.
    return Fraction(repr(float(rate)))


def _sorted_scores(what: str, scores: ArrayLike) -> NDArray[np.float64]:
    try:
        array = np.asarray(scores, np.float64)
    except (TypeError, ValueError) as e:
        raise CalibrationError(f"{what} scores are not numbers: {e}") from e
    if array.ndim != 1 or array.size == 0:
        raise CalibrationError(f"{what} scores have shape {array.shape}; expected at least one score, [n]")
    if bad := np.flatnonzero(~np.isfinite(array)).tolist():
        raise CalibrationError(
            f"{what} scores hold {len(bad)} NaN or infinite values, the first at index {bad[0]}; find out why that "
            "frame has no score, and leave it out only once you know"
        )
    return np.sort(array)


def _just_above(score: float) -> float:
    return math.nextafter(score, math.inf)


def _t_ng(normals: NDArray[np.float64], budget: Fraction, notes: list[str]) -> tuple[float, Fraction]:
    n = int(normals.size)
    above = math.floor((n + 1) * budget)  # n+1-k: how many of n+1 scores may lie above the threshold
    if above == 0:
        needed = math.ceil(1 / budget) - 1
        notes.append(
            f"{n} normal frames cannot support {float(budget):g} false alarms: 1 in {n + 1} is guaranteed; calibrate "
            f"on at least {needed} normals ({needed - n} more)"
        )
        above = 1
    return _just_above(float(normals[n - above])), Fraction(above, n + 1)


def _t_defect(defects: NDArray[np.float64], missed: Fraction, notes: list[str]) -> tuple[float, Fraction]:
    m = int(defects.size)
    k = math.floor((m + 1) * missed)
    if k == 0:
        needed = math.ceil(1 / missed) - 1
        notes.append(
            f"{m} labelled defects cannot support {float(missed):g} missed defects: 1 in {m + 1} is guaranteed; label "
            f"at least {needed} defect frames ({needed - m} more)"
        )
        k = 1
    return float(defects[k - 1]), Fraction(k, m + 1)


def _heuristic_lower(normals: NDArray[np.float64], budget: Fraction) -> float:
    n = int(normals.size)
    share = min(_BAND_FACTOR * max(budget, Fraction(1, n + 1)), Fraction(1, 2))
    return _just_above(float(normals[n - math.floor((n + 1) * share)]))
