"""Which samples to measure next: those on which the members disagree, and far from one another.

With the head alone in training, `benchmarks.suggestion` finds no gain over random samples beyond its noise of half to
one percent; what the members cannot learn, more samples do not teach them, however chosen.

References:
    Gonzalez, "Clustering to minimize the maximum intercluster distance", Theor. Comput. Sci. 38 (1985): the farthest
    next. Sener & Savarese, "Active Learning for Convolutional Neural Networks: A Core-Set Approach", ICLR 2018, for its
    use on a network's features. We depart from both in that squared distances are weighted by the members' variance.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from ray_ft.ensemble import Ensemble, Raw, flatten_features
from ray_ft.ensemble.fingerprints import find_known
from ray_ft.errors import DataError

N_PROJECTED = 256  # a pool of 10,000 then takes 10 MB, whatever the features


def choose_batch(
    features: Float[np.ndarray, "pool feature"], disagreement: Float[np.ndarray, " pool"], n: int
) -> Int[np.ndarray, " chosen"]:
    """Choose samples to measure together, one after the other.

    The first is the one of the largest disagreement. Each other one has the largest product of the square of its
    disagreement and of its squared distance from the nearest one chosen before, so of two that are alike only one is.
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


@dataclass(frozen=True)
class Suggestion:
    """Samples of a pool to measure next.

    Attributes:
        indices: In the order of choice.
        disagreement: Of the members, for every sample of the pool: root mean square deviation, in units of the target.
        features: Of every sample of the pool, projected at random to few numbers that keep the distances.
        known: Which of the pool are training samples, or images of some, and so not chosen; None where the ensemble, of
            release 0.1, does not know them.
    """

    indices: Int[np.ndarray, " chosen"]
    disagreement: Float[np.ndarray, " pool"]
    p_value: Float[np.ndarray, " pool"]
    features: Float[np.ndarray, "pool projected"]
    known: Bool[np.ndarray, " pool"] | None


def suggest_samples(ensemble: Ensemble, pool: Raw, n: int, source: str = "the pool") -> Suggestion:
    """Choose samples of a pool, inputs as in the run's data, without labels; none that was measured for the run.

    Raises:
        DataError: The pool is not as the run's inputs were, or has fewer samples that are not training samples.
    """
    inputs, rng = ensemble.prepare(pool, source), np.random.default_rng(0)
    projected, disagreement, p_values = [], [], []
    projection: Any = None
    for members, found in ensemble.walk_members(inputs, ensemble.card.symmetric):
        features = flatten_features(ensemble.first, found, ensemble.card.inputs)
        if projection is None:
            n_kept = min(N_PROJECTED, features.shape[1])
            projection = rng.standard_normal((features.shape[1], n_kept), dtype=np.float32) / np.sqrt(n_kept)
        spread = ensemble.measure_spread(members).reshape(len(features), -1)
        projected.append(features @ projection)
        disagreement.append(np.sqrt((spread.astype(np.float64) ** 2).mean(1)))
        p_values.append(ensemble.measure_novelty(found)[1])
    together, spreads = np.concatenate(projected), np.concatenate(disagreement)
    known = list_known(ensemble, inputs)
    new = np.arange(len(inputs)) if known is None else np.flatnonzero(~known)
    if n > len(new) and len(new) < len(inputs):
        raise DataError(
            f"a batch must be of samples that are not measured yet, {len(new)} of {source}'s {len(inputs)}, got {n}; "
            "ask for fewer, or give a larger pool"
        )
    chosen = new[choose_batch(together[new], spreads[new], n)]
    return Suggestion(chosen, spreads, np.concatenate(p_values), together, known)


def list_known(ensemble: Ensemble, inputs: Float[np.ndarray, "pool *input"]) -> Bool[np.ndarray, " pool"] | None:
    """Find which of the inputs the run was trained on, or images of such, whatever its own symmetry is."""
    prints, domain = ensemble.calibration.prints, ensemble.domain
    return None if prints is None else find_known(inputs, prints, domain.list_views(domain.operations))
