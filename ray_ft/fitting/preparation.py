"""What the candidates of a strategy share: the network split where it begins to learn, and its features."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ray_ft.errors import StrategyError
from ray_ft.fitting.handover import Carry, carry_ridge
from ray_ft.fitting.ridge import attach_ridge, start_ridge
from ray_ft.models import Pretrained
from ray_ft.search.problem import Place, Problem
from ray_ft.search.strategies import Stage, Strategy
from ray_ft.split.network import Features, SplitNetwork, split_network
from ray_ft.split.sharing import describe_obstacle

ANY_DROPOUT = 0.5  # while the network is traced, so that its dropout is seen; each candidate sets its own
N_PROBED = 16  # samples of the batch whose operations are counted
FLOPS_PER_OPERATION = 10e6  # in smaller steps, casting costs a CPU more than the faster products save


@dataclass(frozen=True)
class PreparedStrategy:
    """What the candidates of a strategy share."""

    stage: Stage  # what learns, and how
    split: SplitNetwork  # the network, split where the trained parameters begin
    features: Features  # of each view and sample, without noise
    dtype: torch.dtype  # of the products in training
    note: str = ""  # on what went wrong before it was prepared
    earlier: tuple["PreparedStrategy", ...] = ()  # the stages before the last one, which this is
    carry: Carry | None = None  # what a closed form in the first stage leaves to the others
    solved: Mapping[Place, dict[str, Tensor]] = field(default_factory=dict)  # its solutions by fold, if others follow

    @property
    def stages(self) -> tuple["PreparedStrategy", ...]:
        """All stages, in their order."""
        return (*self.earlier, self)


def prepare_strategy(
    problem: Problem,
    pretrained: Pretrained,
    strategy: Strategy,
    precision: Literal["auto", "float32", "bf16"],
    device: torch.device,
    n_threads: int = 1,
) -> PreparedStrategy:
    """Split the network and run its backbone over all views, once for all candidates of a strategy."""
    own = every = torch.from_numpy(problem.move_inputs(step=problem.closed_step)).flatten(0, 1).to(device)
    if any(stage.closed is None for stage in strategy.stages):
        every = torch.from_numpy(problem.move_inputs(replayed=True)).flatten(0, 1).to(device)
    splits, carry = split_stages(pretrained, strategy, own, n_threads)
    prepared: list[PreparedStrategy] = []
    for stage, split in zip(strategy.stages, splits, strict=True):
        in_full = stage.closed is not None or (carry is not None and carry.is_term)  # coefficients may cancel
        dtype = torch.float32 if in_full else choose_dtype(precision, split, own)
        inputs = own if stage.closed else every
        features = split.compute_features(inputs, dtype=dtype, n_threads=n_threads)
        widened = tuple(feature.float() if feature.dtype == torch.bfloat16 else feature for feature in features)
        prepared.append(PreparedStrategy(stage, split, widened, dtype))
    if carry is not None and (closed := strategy.stages[0].closed):
        first = prepared[0]
        ridge = start_ridge(problem, first.split, first.features, closed, problem.keys, {})
        ridge.run_epoch(0)
        prepared[0] = replace(first, solved=ridge.solved)
    return replace(prepared.pop(), earlier=tuple(prepared), carry=carry)


def split_stages(
    pretrained: Pretrained, strategy: Strategy, inputs: Tensor, n_threads: int = 1
) -> tuple[list[SplitNetwork], Carry | None]:
    """Split the network for each stage where it, or a stage before it, begins to learn; on the device of the inputs.

    Raises:
        StrategyError: What a closed form solves cannot be carried over to the stages after it.
    """
    splits: list[SplitNetwork] = []
    moved: dict[str, Tensor] = {}
    for stage in strategy.stages:
        splits.append(split_at(pretrained, stage, inputs, moved))
        moved |= splits[-1].state
    closed = strategy.stages[0].closed
    if closed and not splits[0].reason:  # an ensemble could not keep what is solved beside a network that it builds
        splits[0] = replace(splits[0], reason=describe_obstacle({strategy.name: splits[0]}, inputs[:2]))
    first, *later = splits
    if closed is None or not later:
        return splits, None
    ridge = attach_ridge(first, features := first.compute_features(inputs, n_threads=n_threads), closed)
    carry = carry_ridge(first, ridge, features, closed)
    return [first, *(carry.attach(split, inputs[:4]) for split in later)], carry


def check_stages(
    pretrained: Pretrained, strategies: Iterable[Strategy], inputs: Float[np.ndarray, "sample *input"]
) -> None:
    """Try on a few samples whether what closed forms solve can be carried over to the stages after them.

    Raises:
        StrategyError: One cannot.
    """
    for strategy in strategies:
        if strategy.stages[0].closed and len(strategy.stages) > 1:
            try:
                split_stages(pretrained, strategy, torch.from_numpy(inputs[:N_PROBED]))
            except StrategyError as error:
                raise StrategyError(f"strategy {strategy.name}: {error}") from error


def split_at(pretrained: Pretrained, stage: Stage, inputs: Tensor, moved: Collection[str] = ()) -> SplitNetwork:
    """Split the network where a stage begins to learn, or what was moved before it; on the device of the inputs."""
    network = pretrained.build()
    for name in stage.dropouts:
        network.get_submodule(name).p = ANY_DROPOUT  # type: ignore[assignment]  # of a dropout
    return split_network(network.to(inputs.device), stage.trained, inputs[:4], moved)


def choose_dtype(precision: Literal["auto", "float32", "bf16"], split: SplitNetwork, inputs: Tensor) -> torch.dtype:
    """Take bf16 if asked to, or where the device multiplies it natively and products dominate a step."""
    if precision != "auto":
        return torch.bfloat16 if precision == "bf16" else torch.float32
    if inputs.is_cuda:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    gains = native and count_flops_per_operation(split, inputs) >= FLOPS_PER_OPERATION
    return torch.bfloat16 if gains else torch.float32


def count_flops_per_operation(split: SplitNetwork, inputs: Tensor) -> float:
    """Average the floating-point operations of a forward pass over the kernels that it starts."""
    taken = split.take(split.compute_features(inputs[:N_PROBED]))
    with torch.no_grad(), FlopCounterMode(display=False) as flops, CallCounter() as calls:  # type: ignore[no-untyped-call]
        split.apply_tail(split.state, taken)
    n_flops: float = flops.get_total_flops() / max(1, calls.n_calls)
    return n_flops


class CallCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that are called."""

    n_calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n_calls += 1
        return func(*args, **(kwargs or {}))
