"""PRO, the per-region overlap (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 4.2).

At a threshold, the overlap of a defect region is the share of its pixels that score at least that much; PRO is its mean
over all regions of all images. Every region weighs the same, whatever its size. The figure reported is the area under
PRO as a function of the pixel false-positive rate, from 0 to a limit (0.3), divided by the limit.

The mean over regions of recall is one sum over pixels, each weighing 1 / (area of its region) / (number of regions):
no region has to be remembered.
"""

import cv2
import numpy as np
import numpy.typing as npt

__all__ = ["limited_area", "region_weights"]

F64 = npt.NDArray[np.float64]
Bool = npt.NDArray[np.bool_]


def region_weights(mask: Bool, counted: Bool) -> tuple[F64, int]:
    """Return 1 / area of its region for each pixel of ``mask & counted`` in row-major order, and the number of regions.

    Regions are the 8-connected components of ``mask``. Only ``counted`` pixels make up an area; a region without any is
    left out.

    Args:
        mask: ``[H, W]``, True where defective.
        counted: ``[H, W]``, True where pixels are evaluated.
    """
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    labels_counted = labels[mask & counted]
    areas = np.bincount(labels_counted)
    return 1.0 / areas[labels_counted], int(np.count_nonzero(areas))


def limited_area(false_positive_rate: F64, overlap: F64, limit: float) -> float:
    """Return the area under ``overlap`` over ``false_positive_rate`` in [0, ``limit``], divided by ``limit``.

    Both arrays ``[T]`` ascend and end at 1; the curve starts at (0, 0), is linear between points, and is cut exactly at
    ``limit``.
    """
    x = np.concatenate(([0.0], false_positive_rate))
    y = np.concatenate(([0.0], overlap))
    end = int(np.searchsorted(x, limit, side="right"))  # first point past the limit
    x_end, y_end = x[:end], y[:end]
    if end < x.size:
        share = (limit - x[end - 1]) / (x[end] - x[end - 1])
        x_end = np.append(x_end, limit)
        y_end = np.append(y_end, y[end - 1] + share * (y[end] - y[end - 1]))
    return float(np.trapezoid(y_end, x_end) / limit)
