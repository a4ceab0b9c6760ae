"""Which samples to measure next: those on which the members disagree, and far from one another.

References:
    Gonzalez, "Clustering to minimize the maximum intercluster distance", Theor. Comput. Sci. 38 (1985): the farthest
    next. Sener & Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018, for its
    use on a network's features. We depart from both in that squared distances are weighted by the members' variance.
"""

import numpy as np
from jaxtyping import Float, Int

from ray_ft.errors import DataError

__all__ = ["choose_batch"]


def choose_batch(
    features: Float[np.ndarray, "pool feature"], disagreement: Float[np.ndarray, " pool"], n: int
) -> Int[np.ndarray, " chosen"]:
    """Choose samples to measure together, one after the other.

    The first is the one of the largest disagreement. Each other one has the largest product of the square of its
    disagreement and of its squared distance from the nearest one chosen before, so of two that are alike only one is.

    Args:
        features: Where samples are alike if they are near, such as those at the frozen boundary.
        disagreement: Standard deviation of the members, averaged over a sample's targets.
        n: How many.

    Returns:
        Their rows, in the order of choice.

    Raises:
        DataError: There are fewer samples than are to be chosen.
    """
    if not 1 <= n <= len(features):
        raise DataError(
            f"a batch must have one sample or more and at most the pool's {len(features)}, got {n}; ask for fewer, or "
            "give a larger pool"
        )
    weight = disagreement.astype(np.float64) ** 2
    chosen = [int(weight.argmax())]
    gap = np.full(len(features), np.inf)
    while len(chosen) < n:
        gap = np.minimum(gap, ((features - features[chosen[-1]]) ** 2).sum(1))
        worth = weight * gap
        worth[chosen] = -1  # where all that is left equals what was chosen, it still has to be another
        chosen.append(int(worth.argmax()))
    return np.array(chosen)
