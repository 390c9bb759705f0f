"""The intervals between the thresholds of a feature, and in which of them values lie."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.intp]
Values = npt.NDArray[np.float32]

# Cells of equal width are found by one multiplication; a binary search takes ten times as long.
_CELLS = 1 << 16


class Intervals:
    """The intervals between sorted thresholds: the i-th ends with the i-th threshold."""

    def __init__(self, thresholds: Values) -> None:
        self.thresholds = thresholds
        self._low, self._factor = _range_of(thresholds)
        # A cell without a threshold lies in one interval; -1 stands for those of the others.
        cells, every = self._cells(thresholds), np.arange(_CELLS)
        first, last = (np.searchsorted(cells, every, side) for side in ("left", "right"))
        self._interval = np.where(first == last, first, -1).astype(np.int32)

    def __len__(self) -> int:
        return len(self.thresholds) + 1

    def numbers(self, values: Values) -> Codes:
        """The number of the interval of each value; a value at a threshold is below it.

        Values may be infinite, but not NaN.
        """
        numbers = np.take(self._interval, self._cells(values), mode="clip").astype(np.intp)
        unknown = np.flatnonzero(numbers < 0)
        if len(unknown):
            numbers[unknown] = np.searchsorted(self.thresholds, values[unknown], "left")
        return numbers

    def _cells(self, values: Values) -> Codes:
        """The cell of each value: a larger value is never in a lower cell."""
        # Products that overflow are infinite, and clipped like other far values.
        with np.errstate(over="ignore"):
            cells = np.subtract(values, self._low)
            cells *= self._factor
        return np.clip(cells, 0, _CELLS - 1, out=cells).astype(np.intp)


def _range_of(thresholds: Values) -> tuple[np.float32, np.float32]:
    """Where the cells begin, and their number per unit: they cover twice the narrowest range with
    half of the thresholds, as a few outliers can make the range of all of them very wide. Infinite
    thresholds do not count: they have no width, and lie in the first or the last cell.
    """
    thresholds = thresholds[np.isfinite(thresholds)]
    half = len(thresholds) // 2
    if not half:
        return np.float32(0), np.float32(1)
    widths = thresholds[half:].astype(np.float64) - thresholds[: len(thresholds) - half]
    narrowest = int(np.argmin(widths))
    width, low = float(widths[narrowest]), float(thresholds[narrowest])
    factor = np.float32(min((_CELLS - 1) / (2 * width), 1e30))
    return np.float32(max(low - width / 2, float(np.finfo(np.float32).min))), factor
