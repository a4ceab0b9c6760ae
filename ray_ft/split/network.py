"""A network split at its frozen boundary: what no trained parameter reaches is computed once per sample.

The network is exported as a graph, its trained modules in train mode and the rest in eval mode. The nodes that a
trained parameter, a buffer written in training or an active dropout reaches are the tail. The others are the backbone;
the values that the tail reads from it are the features. Both become programs over one set of tensors. Where export or
the check of the split fails, the whole network is the tail and its inputs are the features.

Training, out-of-fold predictions, ensembles and exports all ask the same object, so a member says the same everywhere.

Limits: a tail holds every size but the batch's as it was at the split. Python that is no tensor operation is not in it
either, such as batch norm's refusal to train on a single value per channel; `fitting` deals no such batch.
"""

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn

from ray_ft.files.memory import is_out_of_memory
from ray_ft.split.adapters import Adapter, merge_weights, name_part
from ray_ft.split.dropout import DropoutSite, draw_masks
from ray_ft.split.graph import Cut, cut_network
from ray_ft.split.program import Program
from ray_ft.split.silence import silence
from ray_ft.split.whole import (
    PASS_INPUTS,
    WholeTail,
    copy_network,
    empty_copy,
    find_written,
    hold,
    list_member_tensors,
    pull_back,
    set_training_modes,
)

T = TypeVar("T")
Features = tuple[Shaped[Tensor, "..."], ...]
Tail = Program | WholeTail

HUGE = 1e9  # from which on a number says no more than its sign
N_CHECKED = 4  # samples on which a split is compared with its network
# Of the largest value. Accelerators may round products to TF32, and not alike for one sample and for several.
TOLERANCE_CPU, TOLERANCE_ACCELERATOR = 1e-4, 1e-2


@dataclass(frozen=True, eq=False)
class SplitNetwork:
    """A network as backbone and tail.

    Attributes:
        state: What a member starts from, detached copies: the trained parameters, then the buffers of modules
            that hold one, and of modules without parameters that train (batch norm without weights).
        trained_names: The parameters' names in `state`.
        tensors: Every other tensor that it computes with, by name, and the only place where it has them: none may
            change.
        backbone: From inputs to features.
        batch_axes: The axis of the samples in each feature; None for a feature that all samples share.
        reads: Which of the features the tail reads; strategies that share a backbone read different ones.
        evaluation: The tail, from (state, features, masks) to outputs.
        training: The same in training; its dropouts are products with masks.
        sites: Where the masks go.
        draws: Whether training draws from torch's global generator: whole networks may, and tails with random
            operations other than dropout. Such members train one after the other.
        reason: Empty if the network is split, else one line on why it runs whole at each step.
        adapted: The parts by which weights learn, which `state` has in their place, by the weights' names.
        moved: Names in `state` that an earlier stage may have changed, and that stay as they are in this one.
    """

    state: dict[str, Tensor] = field(repr=False)
    trained_names: tuple[str, ...]
    tensors: dict[str, Tensor] = field(repr=False)
    backbone: Program = field(repr=False)
    batch_axes: tuple[int | None, ...]
    reads: tuple[int, ...]
    evaluation: Tail = field(repr=False)
    training: Tail = field(repr=False)
    sites: tuple[DropoutSite, ...] = ()
    draws: bool = False
    reason: str = ""
    adapted: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    moved: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        return next(iter(self.state.values())).device

    def to(self, device: str | torch.device) -> "SplitNetwork":
        """Return it on a device."""
        state, tensors = (
            {name: tensor.to(device) for name, tensor in own.items()} for own in (self.state, self.tensors)
        )
        return replace(self, state=state, tensors=tensors)

    def set_dropout(self, shares: Mapping[str, float]) -> "SplitNetwork":
        """Return the network with other shares in these dropout modules, by name; a whole network is changed itself."""
        if isinstance(self.training, WholeTail):
            self.training.set_dropout(shares)
        sites = tuple(replace(site, share=shares.get(site.module, site.share)) for site in self.sites)
        return replace(self, sites=sites)

    def adapt(self, adapter: Adapter) -> "SplitNetwork":
        """Return the network with an adapter in the place of each trained weight that takes one."""
        started = {name: adapter.start(self.state[name]) for name in self.trained_names}
        adapted = {name: tuple(parts) for name, parts in started.items() if parts}
        new = {name: {name_part(name, part): own for part, own in started[name].items()} for name in adapted}
        trained = {name: new.get(name, {name: self.state[name]}) for name in self.trained_names}
        state = {own: tensor for name in trained for own, tensor in trained[name].items()}
        names, buffers = tuple(state), {name: own for name, own in self.state.items() if name not in trained}
        tensors = {**self.tensors, **{name: self.state[name] for name in adapted}}
        return replace(self, state=state | buffers, trained_names=names, tensors=tensors, adapted=adapted)

    def merge(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Merge what weights learn by into them; the names are those of the network then."""
        return merge_weights(self.adapted, state, self.tensors) if self.adapted else state

    def run_backbone(self, inputs: Shaped[Tensor, " sample *input"]) -> Features:
        """Compute the features of samples, all at a time."""
        return tuple(self.backbone.run((inputs.clone(),), self.tensors))  # which it may change in place

    def compute_features(
        self,
        inputs: Shaped[Tensor, " sample *input"],
        batch_size: int = 32,
        dtype: torch.dtype = torch.float32,
        n_threads: int = 1,
    ) -> Features:
        """Compute the features of samples without gradients, on the network's device.

        Args:
            inputs: As the network takes them.
            batch_size: Samples at a time.
            dtype: Of the products.
            n_threads: Batches at a time.
        """

        @torch.no_grad()
        def run(part: Tensor) -> Features:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=dtype != torch.float32):
                return self.run_backbone(part.to(self.device))

        parts = torch.split(inputs, batch_size)
        if n_threads == 1 or self.device.type != "cpu":  # threads would take turns at one stream
            slices = list(map(run, parts))
        else:
            with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                slices = list(pool.map(run, parts))
        return tuple(
            parts[0] if axis is None else torch.cat(parts, axis)
            for axis, parts in zip(self.batch_axes, zip(*slices, strict=True), strict=True)
        )

    @property
    def sampled(self) -> list[tuple[int, int]]:
        """The features that the tail reads and that differ between samples, with their axes of samples."""
        pairs = ((index, self.batch_axes[index]) for index in self.reads)
        return [(index, axis) for index, axis in pairs if axis is not None]

    def take_stacked(
        self, features: Features, index: Int[Tensor, "member sample"]
    ) -> tuple[Features, tuple[int | None, ...]]:
        """Copy what the tail reads of these samples of each member; also return the members' axes, for `torch.vmap`."""
        axes = tuple(self.batch_axes[i] for i in self.reads)
        stacked = (
            feature if axis is None else feature.unflatten(axis, index.shape)  # type: ignore[no-untyped-call]
            for axis, feature in zip(axes, self.take(features, index.flatten()), strict=True)
        )
        return tuple(stacked), axes

    def take(self, features: Features, index: Int[Tensor, " sample"] | None = None) -> Features:
        """Copy what the tail reads, of these samples or of all; copies, so its in-place operations spare the store."""
        pairs = ((features[i], self.batch_axes[i]) for i in self.reads)
        return tuple(
            feature.clone() if axis is None or index is None else feature.index_select(axis, index.to(feature.device))
            for feature, axis in pairs
        )

    def draw_masks(self, n_samples: int, generator: torch.Generator) -> Features:
        """Draw what a step of training drops."""
        return draw_masks(self.sites, n_samples, generator)

    def apply_tail(
        self, state: Mapping[str, Tensor], features: Features, training: bool = False, masks: Features = ()
    ) -> Tensor:
        """Run the tail of a member; in training, the buffers in `state` are updated in place.

        Args:
            state: The member's tensors under the names of `self.state`.
            features: What `take` returned; in-place operations of the network may change them.
            training: Whether there is dropout and batch norm uses the batch.
            masks: What `draw_masks` returned, in training.

        Returns:
            The network's outputs, shape (sample, *target).
        """
        tail = self.training if training else self.evaluation
        output: Tensor = tail.run((self.merge(state), features, masks), self.tensors)
        return output

    def hold(self, state: Mapping[str, Tensor], work: Callable[[], T]) -> T:
        """Do a member's pass and the pass back, where a whole network may compute parts of the first again."""
        if isinstance(self.training, WholeTail):
            return hold(self.training.network, {**self.tensors, **self.merge(state)}, work)
        return work()


def split_network(
    network: nn.Module, trained: Collection[str], example: Tensor, moved: Collection[str] = ()
) -> SplitNetwork:
    """Split a network of one tensor in and one tensor out where its trained parameters begin, or what was trained.

    Args:
        network: It stays as it is; a copy is split.
        trained: Names of the trained parameters; of a tied one, any of its names.
        example: Two or more different samples, shape (sample, *input); four serve to check the split.
        moved: Names in the state of earlier stages, of which each member has its own.

    Returns:
        The split, or the whole network as tail with the reason.

    Raises:
        ValueError: No name is given, or one is not a parameter's.
        NetworkError: It raises in training, whatever that is.
    """
    network = copy_network(network).requires_grad_(False)
    names = order_names(network, trained)
    example = example[:N_CHECKED].to(next(network.parameters()).device)
    set_training_modes(network, names)
    written = find_written(network, example)
    whole = keep_whole(network, names, written=written, moved=moved)
    try:
        with silence():
            cut = cut_network(network, whole.state, {*names, *whole.moved}, example)
            split = replace(
                whole,
                tensors=keep_shared(cut, whole.state, written),
                backbone=cut.backbone,
                batch_axes=cut.batch_axes,
                reads=tuple(range(len(cut.batch_axes))),
                evaluation=cut.evaluation,
                training=cut.training,
                draws=cut.draws,
            )
            check_split(split, whole, example)
    # Export runs the network's own code under its tracer, and either may raise any class. Whatever it was,
    # the whole network is right, only slower.
    except Exception as error:
        if is_out_of_memory(error):  # the machine's, of which the network is no worse
            raise
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return replace(whole, reason=f"it cannot be split: {line}")
    return replace(split, training=cut.masked, sites=cut.sites)


def keep_shared(cut: Cut, state: Collection[str], written: Collection[str]) -> dict[str, Tensor]:
    """Keep what all members share. A member may have a buffer of its own that the backbone reads, as nothing writes it.

    Raises:
        ValueError: Training writes what the backbone reads.
    """
    read = cut.backbone.constants
    if moving := sorted(cut.tensors.keys() & set(state) & set(read) & set(written)):
        raise ValueError(f"training writes {', '.join(moving)}, which what is frozen reads")
    return {name: tensor for name, tensor in cut.tensors.items() if name not in state or name in read}


def as_numbers(feature: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
    """Make a feature real and of moderate size, for what measures samples by it.

    Infinities, and the huge numbers in their place, by which attention hides what is padding, become 1 and -1. The real
    and the imaginary part of complex numbers lie side by side, along a last axis.
    """
    real = torch.view_as_real(feature.resolve_conj()) if feature.is_complex() else feature
    return torch.where(real.abs() < HUGE, real, real.sign()) if real.is_floating_point() else real


def order_names(network: nn.Module, trained: Collection[str]) -> tuple[str, ...]:
    named = dict(network.named_parameters(remove_duplicate=False))
    unknown = sorted(set(trained) - named.keys())
    if unknown or not trained:
        raise ValueError(f"trained names must be parameters of the network, but got {', '.join(unknown) or 'none'}")
    wanted = {id(named[name]) for name in trained}
    return tuple(name for name, parameter in network.named_parameters() if id(parameter) in wanted)


def keep_whole(
    network: nn.Module,
    trained: tuple[str, ...],
    reason: str = "",
    written: Collection[str] = (),
    moved: Collection[str] = (),
) -> SplitNetwork:
    """Make the whole network the tail: the fallback, and what a split is checked against.

    Args:
        network: It is put into the modes of training.
        trained: Names of the trained parameters, each tied one once.
        reason: Why it is not split.
        written: Names of tensors that training was seen to write.
        moved: Names of tensors that members have of their own besides.
    """
    set_training_modes(network, trained)
    named = {name: tensor.detach() for name, tensor in (*network.named_parameters(), *network.named_buffers())}
    learning = list_member_tensors(network, trained, written)
    resting_names = tuple(name for name in moved if name not in learning)
    state = {name: named[name].clone() for name in (*learning, *resting_names)}
    empty, resting = empty_copy(network), empty_copy(network)
    resting.eval()
    return SplitNetwork(
        state=state,
        trained_names=trained,
        tensors={name: tensor for name, tensor in named.items() if name not in state},
        backbone=PASS_INPUTS,
        batch_axes=(0,),
        reads=(0,),
        evaluation=WholeTail(resting, trained, training=False),
        training=WholeTail(empty, trained, training=True),
        draws=True,
        reason=reason,
        moved=resting_names,
    )


def check_split(split: SplitNetwork, whole: SplitNetwork, example: Tensor) -> None:
    # Gradients too, because the derivative of an autograd function of the network's own is lost in a graph.
    for training, what in ((False, "outputs"), (True, "gradients and buffers")):
        found, right = (probe_network(network, example, training) for network in (split, whole))
        tolerance = TOLERANCE_CPU if right.device.type == "cpu" else TOLERANCE_ACCELERATOR
        gap, scale = float((found - right).abs().max()), float(right.abs().max())
        if not gap <= tolerance * scale:  # "not", because of NaN
            raise ValueError(f"its {what} would be off by {gap:.1e}, of {scale:.1e}")


def probe_network(split: SplitNetwork, example: Tensor, training: bool) -> Tensor:
    """Compute outputs in evaluation; in training, gradients of a weighted sum of them, and what buffers then hold."""
    state = {name: tensor.clone() for name, tensor in split.state.items()}
    trained = [state[name].requires_grad_() for name in split.trained_names]
    # Slices of unequal size show a value that depends on its batch.
    features = split.take(split.compute_features(example, len(example) - 1))
    with torch.random.fork_rng([example.device] if example.is_cuda else []), torch.enable_grad():
        torch.manual_seed(0)
        if not training:
            return split.apply_tail(state, features).detach()
        gradients = split.hold(state, lambda: pull_back(split.apply_tail(state, features, True), trained))
    buffers = [tensor for name, tensor in state.items() if name not in split.trained_names]
    return torch.cat([tensor.flatten() for tensor in (*gradients, *buffers)])
