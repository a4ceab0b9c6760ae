"""Random patterns that could be fabricated: smooth blobs, opened and closed with a 78 nm disc.

The closing comes last, so no gap is narrower than the disc; where it bridges two blobs, a few
pixels of Si3N4 may be.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

PIXELS = 128
SEED_CELLS = 16  # the noise has one value a cell
BLUR_CELLS = (0.55, 1.1)  # range of the blur's standard deviation
FILL = (0.3, 0.7)  # range of the share of Si3N4
DISC_PIXELS = 5  # diameter of the smallest detail: 5 pixels of 15.6 nm


def draw_blobs(n: int, seed: int | np.random.SeedSequence) -> NDArray[np.uint8]:
    """Draws periodic random patterns.

    Noise on 16 x 16 cells is blurred, cut at a random fill, opened and closed with a disc; blur
    and cell edges wrap around, as the structure is periodic.

    Args:
        n: How many patterns.
        seed: The same seed and n give the same patterns.

    Returns:
        Patterns of shape (n, 128, 128), 1 where there is Si3N4; axis 1 is x, axis 2 is y.
    """
    rng = np.random.default_rng(seed)
    noise = rng.random((n, SEED_CELLS, SEED_CELLS))
    blur = rng.uniform(*BLUR_CELLS, size=n)
    fill = rng.uniform(*FILL, size=n)

    cell = PIXELS // SEED_CELLS
    heights = noise.repeat(cell, axis=1).repeat(cell, axis=2)
    for i in range(n):
        heights[i] = ndimage.gaussian_filter(heights[i], blur[i] * cell, mode="wrap")
    solid = _cut_at_fill(heights, fill)
    opened = _dilate(~_dilate(~solid))
    closed = ~_dilate(~_dilate(opened))
    return closed.astype(np.uint8)


def _cut_at_fill(heights: NDArray[np.float64], fill: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Marks the highest pixels (n, 128, 128), a share of `fill` (n,) of each pattern."""
    n = len(heights)
    ranked = np.sort(heights.reshape(n, -1), axis=1)
    first = np.rint((1 - fill) * ranked.shape[1]).astype(np.intp)
    solid: NDArray[np.bool_] = heights >= ranked[np.arange(n), first][:, None, None]
    return solid


def _dilate(solid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Grows periodic patterns (n, 128, 128) by the disc; on the complement, this is erosion."""
    radius = DISC_PIXELS / 2
    steps = range(-(DISC_PIXELS // 2), DISC_PIXELS // 2 + 1)
    grown = solid.copy()
    for dx in steps:
        for dy in steps:
            if dx**2 + dy**2 <= radius**2:
                grown |= np.roll(solid, (dx, dy), axis=(1, 2))
    return grown
