"""What the candidates of a run share: its data, weights and splits, and by strategy the split network and features."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ray_ft.config import Config
from ray_ft.data.folds import Splits
from ray_ft.data.samples import Samples
from ray_ft.models import build_network
from ray_ft.runs.folder import RunFolder
from ray_ft.search.strategies import find_head_dropouts, select_trained
from ray_ft.split.network import SplitNetwork, split_network

__all__ = ["BYTES_PER_WEIGHT", "Part", "Task", "count_trained", "estimate_bytes", "prepare_part"]

BYTES_PER_WEIGHT = 20  # the weight, its gradient, two moments, a snapshot
BYTES_PER_MEMBER = 20_000  # whatever its size: measured with four small tensors, for the objects around them

ANY_DROPOUT = 0.5  # while the network is traced, so that its dropout is seen; each candidate sets its own
N_PROBED = 16  # samples of the batch whose operations are counted
FLOPS_PER_OPERATION = 10e6  # in smaller steps, casting costs a CPU more than the faster products save


@dataclass(frozen=True)
class Task:
    """What all candidates of a run share; it reaches their processes by the object store."""

    config: Config
    weights: Mapping[str, Tensor]
    dataset: Samples
    splits: Splits
    run: RunFolder

    def build_network(self) -> nn.Module:
        return build_network(self.config.model.factory, self.config.model.params, self.weights)


@dataclass(frozen=True)
class Part:
    """What the candidates of a strategy share.

    Attributes:
        split: The network, split where the strategy's trained parameters begin.
        features: Of each view and sample, without noise.
        head_dropouts: The dropout modules in the network's head, which a candidate sets.
        dtype: Of the products in training.
    """

    split: SplitNetwork
    features: tuple[Tensor, ...]
    head_dropouts: tuple[str, ...]
    dtype: torch.dtype


def count_trained(task: Task, strategy: str) -> int:
    """Count the parameters that learn in a strategy."""
    (stage,) = task.config.selected[strategy].stages
    return sum(task.weights[name].numel() for name in select_trained(strategy, stage, list(task.weights)))


def estimate_bytes(task: Task, strategy: str) -> int:
    """Bytes that a candidate of a strategy takes at least.

    They are those of its members, of every view of the samples with its noisy copies, and of what the members say of
    each sample. What a step of training takes in passing depends on the network and comes on top, as do features that
    are larger than the inputs from which they are computed.
    """
    cv, training, dataset = task.config.cv, task.config.training, task.dataset
    (stage,) = task.config.selected[strategy].stages
    n_copies = 1 + training.n_noisy_views * (stage.noise_std[1] > 0)
    of_member = BYTES_PER_MEMBER + count_trained(task, strategy) * BYTES_PER_WEIGHT
    n_views = len(dataset.domain.list_views(task.config.symmetry))
    views = n_views * (dataset.inputs.nbytes * n_copies + dataset.targets.nbytes)
    return cv.folds * cv.seeds * cv.repeats * of_member + views + cv.repeats * cv.seeds * dataset.targets.nbytes


def prepare_part(task: Task, strategy: str, device: torch.device, n_threads: int = 1) -> Part:
    """Split the network and run its backbone over all views, once for all candidates of a strategy."""
    network = task.build_network()
    (stage,) = task.config.selected[strategy].stages
    trained = select_trained(strategy, stage, [name for name, _ in network.named_parameters()])
    head_dropouts = find_head_dropouts(network) if stage.head_dropout is not None else ()
    for name in head_dropouts:
        network.get_submodule(name).p = ANY_DROPOUT  # type: ignore[assignment]  # of a dropout
    inputs = torch.from_numpy(task.dataset.build_views(task.config.symmetry)[0]).flatten(0, 1).to(device)
    split = split_network(network.to(device), trained, inputs[:4])
    dtype = choose_dtype(task.config.training.precision, split, inputs)
    features = split.compute_features(inputs, dtype=dtype, n_threads=n_threads)
    widened = tuple(feature.float() if feature.dtype == torch.bfloat16 else feature for feature in features)
    return Part(split, widened, head_dropouts, dtype)


def choose_dtype(precision: Literal["auto", "float32", "bf16"], split: SplitNetwork, inputs: Tensor) -> torch.dtype:
    """Take bf16 if asked to, or where the device multiplies it natively and products dominate a step."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if inputs.is_cuda:
        gains = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        gains = native and count_flops_per_operation(split, inputs) >= FLOPS_PER_OPERATION
    return torch.bfloat16 if gains else torch.float32


def count_flops_per_operation(split: SplitNetwork, inputs: Tensor) -> float:
    """Average the floating-point operations of a forward pass over the kernels that it starts."""
    features = split.compute_features(inputs[:N_PROBED])
    taken = split.take(features, torch.arange(len(inputs[:N_PROBED])))
    with torch.no_grad(), FlopCounterMode(display=False) as flops, CallCounter() as calls:  # type: ignore[no-untyped-call]
        split.apply_tail(split.state, taken, training=False)
    n_flops: float = flops.get_total_flops() / max(1, calls.n_calls)
    return n_flops


class CallCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that are called."""

    n_calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n_calls += 1
        return func(*args, **(kwargs or {}))
