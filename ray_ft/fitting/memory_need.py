"""Memory that a candidate takes, as far as it can be known before anything is trained."""

from collections.abc import Collection

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from ray_ft.config import count_replayed
from ray_ft.search.problem import Problem
from ray_ft.search.strategies import Strategy

BYTES_PER_WEIGHT = 20  # the weight, its gradient, two moments, a snapshot
BYTES_PER_MEMBER = 20_000  # whatever its size: measured with four small tensors, for the objects around them

# Of a process on a GPU beside its tensors: CUDA's context, its libraries' workspaces (882 to 950 MiB on an H100).
CONTEXT_BYTES = 2**30
# Times what a forward pass keeps for its gradients: those gradients, dropout's masks, what the allocator rounds up.
STEP_SLACK = 2
N_PROBED = 2  # samples


def estimate_bytes(problem: Problem, strategy: Strategy, n_noisy_views: int, n_seeds: int) -> int:
    """Bytes that a candidate of a strategy takes at least, which trains so many seeds.

    They are those of its members, of every view of the samples with its noisy copies, and of what the members say of
    each sample. What a step of training takes in passing depends on the network and comes on top, as do features that
    are larger than the inputs from which they are computed.
    """
    n_copies, targets = 1 + n_noisy_views * any(stage.noisy for stage in strategy.stages), problem.samples.targets
    of_member = BYTES_PER_MEMBER + strategy.n_trained * BYTES_PER_WEIGHT
    views = problem.n_views * sum(part.inputs.nbytes * n_copies + part.targets.nbytes for part in problem.parts)
    n_members = problem.splits.n_repeats * problem.splits.n_folds * n_seeds
    return n_members * of_member + views + problem.splits.n_repeats * n_seeds * targets.nbytes


def estimate_gpu_bytes(
    problem: Problem, network: nn.Module, strategy: Strategy, n_noisy_views: int, n_members: int
) -> int:
    """Bytes of a GPU that a process takes which trains so many members, packed, in float32.

    They are those of CUDA, of the network, of every view of the samples with its noisy copies as features, of the
    members, and of a step of all of them. The network's parameters are left with or without gradients by this.
    """
    of_step, views = 0, sum(part.inputs.nbytes + part.targets.nbytes for part in problem.parts)
    for stage in strategy.stages:  # which train one after the other; the features of all of them are there
        kept, features = measure_step(network, stage.trained, torch.from_numpy(problem.samples.inputs[:N_PROBED]))
        n_in_step = stage.batch_size + count_replayed(stage.batch_size, stage.replay)
        of_step = max(of_step, kept * n_in_step)
        views += sum(len(part) for part in problem.parts) * features * (1 + n_noisy_views * stage.noisy)
    weights = sum(tensor.nbytes for tensor in (*network.parameters(), *network.buffers()))
    of_member = strategy.n_trained * BYTES_PER_WEIGHT + STEP_SLACK * of_step
    views *= problem.n_views
    return CONTEXT_BYTES + weights + views + n_members * of_member


def measure_step(
    network: nn.Module, trained: Collection[str], inputs: Float[Tensor, "sample *input"]
) -> tuple[int, int]:
    """Bytes a sample that a forward pass keeps for its gradients, and of them those that no trained parameter reaches.

    The latter are the features, but for those of which no gradient needs the value.
    """
    network.requires_grad_(False)
    named = dict(network.named_parameters(remove_duplicate=False))
    for name in trained:
        named[name].requires_grad_()
    own = {tensor.untyped_storage().data_ptr() for tensor in (*named.values(), *network.buffers())}
    kept: dict[int, tuple[int, bool]] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes(), tensor.requires_grad
        return tensor

    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
        _outputs = network(inputs.clone())  # while it is there, so is what was kept, and no address is taken twice
    every = sum(n_bytes for n_bytes, _ in kept.values())
    return every // len(inputs), sum(n_bytes for n_bytes, reached in kept.values() if not reached) // len(inputs)
