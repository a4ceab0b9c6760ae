"""Memory that a candidate takes, as far as it can be known before anything is trained."""

from ray_ft.search.problem import Problem
from ray_ft.search.strategies import Strategy

BYTES_PER_WEIGHT = 20  # the weight, its gradient, two moments, a snapshot
BYTES_PER_MEMBER = 20_000  # whatever its size: measured with four small tensors, for the objects around them


def estimate_bytes(problem: Problem, strategy: Strategy, n_noisy_views: int, n_seeds: int) -> int:
    """Bytes that a candidate of a strategy takes at least, which trains so many seeds.

    They are those of its members, of every view of the samples with its noisy copies, and of what the members say of
    each sample. What a step of training takes in passing depends on the network and comes on top, as do features that
    are larger than the inputs from which they are computed.
    """
    inputs, targets = problem.samples.inputs, problem.samples.targets
    n_copies = 1 + n_noisy_views * any(stage.noisy for stage in strategy.stages)
    of_member = BYTES_PER_MEMBER + strategy.n_trained * BYTES_PER_WEIGHT
    views = problem.n_views * (inputs.nbytes * n_copies + targets.nbytes)
    n_members = problem.splits.n_repeats * problem.splits.n_folds * n_seeds
    return n_members * of_member + views + problem.splits.n_repeats * n_seeds * targets.nbytes
