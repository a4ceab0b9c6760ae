"""A network split at its frozen boundary: what no trained parameter reaches is computed once per sample.

The network is exported as a graph, its trained modules in train mode and the rest in eval mode. The nodes
that a trained parameter, a buffer written in training or an active dropout reaches are the tail. The others
are the backbone; the values that the tail reads from it are the features. Where export or the check of the
split fails, the whole network is the tail and its inputs are the features.

Limits: a tail holds every size but the batch's as it was at the split. Python that is no tensor operation is
not in it either, such as batch norm's refusal to train on a single value per channel; `training` deals no such batch.
"""

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from jaxtyping import Int, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from ray_ft.split.dropout import DropoutSite, draw_masks
from ray_ft.split.graph import cut_network

__all__ = ["SplitNetwork", "set_training_modes", "silence", "split_network"]

Features = tuple[Shaped[Tensor, "..."], ...]
Tail = Callable[[Mapping[str, Tensor], Features, Features], Tensor]

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
        frozen: Every other parameter and buffer, the very memory that is computed with; it must not change.
        batch_axes: The axis of the samples in each feature; None for a feature that all samples share.
        reason: Empty if the network is split, else one line on why it runs whole.
        draws: Whether training draws from torch's global generator: whole networks may, and tails with random
            operations other than dropout. Such members train one after the other.
        sites: The tail's dropouts, whose masks are given to it.
    """

    state: dict[str, Tensor]
    trained_names: tuple[str, ...]
    frozen: dict[str, Tensor] = field(repr=False)
    batch_axes: tuple[int | None, ...]
    reason: str
    draws: bool
    sites: tuple[DropoutSite, ...]
    _backbone: Callable[[Tensor], Features] = field(repr=False)
    _tails: tuple[Tail, Tail] = field(repr=False)  # in evaluation, in training
    _network: nn.Module | None = field(repr=False)  # what trains where it is whole

    def set_dropout(self, shares: Mapping[str, float]) -> "SplitNetwork":
        """Return the network with other shares in these dropout modules, by name; a whole network is changed itself."""
        if self._network is not None:
            for name, share in shares.items():
                self._network.get_submodule(name).p = share  # type: ignore[assignment]  # of a dropout
        return replace(
            self, sites=tuple(replace(site, share=shares.get(site.module, site.share)) for site in self.sites)
        )

    def compute_features(
        self,
        inputs: Shaped[Tensor, " sample *input"],
        batch_size: int = 32,
        dtype: torch.dtype = torch.float32,
        n_threads: int = 1,
    ) -> Features:
        """Run the backbone without gradients on the parameters' device.

        Args:
            inputs: As the network takes them.
            batch_size: Samples at a time.
            dtype: Of the products.
            n_threads: Batches at a time.
        """
        device = next(iter(self.state.values())).device

        @torch.no_grad()
        def run(part: Tensor) -> Features:
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype != torch.float32):
                return self._backbone(part.to(device))

        parts = torch.split(inputs, batch_size)
        if n_threads == 1:
            slices = list(map(run, parts))
        else:
            with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                slices = list(pool.map(run, parts))
        return tuple(
            parts[0] if axis is None else torch.cat(parts, axis)
            for axis, parts in zip(self.batch_axes, zip(*slices, strict=True), strict=True)
        )

    def take_stacked(
        self, features: Features, index: Int[Tensor, "member sample"]
    ) -> tuple[Features, tuple[int | None, ...]]:
        """Copy these samples of each member; also return the axes of the members, for `torch.vmap`."""
        taken = self.take(features, index.flatten())
        stacked = (
            feature if axis is None else feature.unflatten(axis, index.shape)  # type: ignore[no-untyped-call]
            for axis, feature in zip(self.batch_axes, taken, strict=True)
        )
        return tuple(stacked), self.batch_axes

    def take(self, features: Features, index: Int[Tensor, " sample"]) -> Features:
        """Copy the features of these samples; copies, so the tail's in-place operations spare the store."""
        return tuple(
            feature.clone() if axis is None else feature.index_select(axis, index.to(feature.device))
            for axis, feature in zip(self.batch_axes, features, strict=True)
        )

    def draw_masks(self, n_samples: int, generator: torch.Generator) -> Features:
        """Draw what a step of training drops."""
        return draw_masks(self.sites, n_samples, generator)

    def apply_tail(
        self, state: Mapping[str, Tensor], features: Features, training: bool, masks: Features = ()
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
        return self._tails[training](state, features, masks)


def split_network(network: nn.Module, trained: Collection[str], example: Tensor) -> SplitNetwork:
    """Split a network of one tensor in and one tensor out where its trained parameters begin.

    Args:
        network: It stays as it is; a copy is split.
        trained: Names of the trained parameters; of a tied one, any of its names.
        example: Two or more different samples, shape (sample, *input); four serve to check the split.

    Returns:
        The split, or the whole network as tail with the reason.

    Raises:
        ValueError: No name is given, or one is not a parameter's.
    """
    network = deepcopy(network).requires_grad_(False)
    whole = keep_whole(network, order_names(network, trained))
    example = example[:N_CHECKED].to(next(network.parameters()).device)
    try:
        with silence():
            cut = cut_network(network, whole.state, set(whole.trained_names), example)
            split = replace(
                whole,
                batch_axes=cut.batch_axes,
                _backbone=cut.backbone,
                _tails=(cut.evaluation, cut.training),
                _network=None,
            )
            check_split(split, whole, example)
    # Export runs the network's own code under its tracer, and either may raise any class. Whatever it was,
    # the whole network is right, only slower.
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        return replace(whole, reason=f"the whole network runs at each step, as it cannot be split: {line}")
    finally:
        network.requires_grad_(False)
    return replace(split, _tails=(cut.evaluation, cut.masked), sites=cut.sites, draws=cut.draws)


def set_training_modes(network: nn.Module, trained: Collection[str]) -> None:
    """Put what trains into train mode and what is frozen, dropout and batch statistics too, into eval mode.

    A module with parameters trains if one of them, its submodules' included, is trained. One without
    (dropout) follows the nearest sibling before it that has some; if there is none, the module that holds it.
    """
    named = dict(network.named_parameters(remove_duplicate=False))
    wanted = {id(named[name]) for name in trained}
    network.training = bool(wanted)
    for module in network.modules():  # holders first
        mode = module.training
        for child in module.children():
            if parameters := list(child.parameters()):
                mode = any(id(parameter) in wanted for parameter in parameters)
            child.training = mode


def order_names(network: nn.Module, trained: Collection[str]) -> tuple[str, ...]:
    named = dict(network.named_parameters(remove_duplicate=False))
    unknown = sorted(set(trained) - named.keys())
    if unknown or not trained:
        raise ValueError(f"trained names must be parameters of the network, but got {', '.join(unknown) or 'none'}")
    wanted = {id(named[name]) for name in trained}
    return tuple(name for name, parameter in network.named_parameters() if id(parameter) in wanted)


def keep_whole(network: nn.Module, names: tuple[str, ...]) -> SplitNetwork:
    """Make the whole network the tail: the fallback, and what a split is checked against."""
    set_training_modes(network, names)
    state = {name: tensor.detach().clone() for name, tensor in member_tensors(network, names).items()}
    shared = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    named = dict(network.named_parameters()) | dict(network.named_buffers())
    frozen = {name: tensor.detach() for name, tensor in named.items() if name not in state}
    tails = (partial(call_whole, deepcopy(network, shared).eval()), partial(call_whole, network))
    return SplitNetwork(state, names, frozen, (0,), "", True, (), pass_inputs, tails, network)


def call_whole(network: nn.Module, state: Mapping[str, Tensor], features: Features, masks: Features) -> Tensor:
    output: Tensor = functional_call(network, dict(state), features)
    return output


def pass_inputs(inputs: Tensor) -> Features:
    return (inputs,)


def member_tensors(network: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {name: network.get_parameter(name) for name in names}
    wanted = {id(parameter) for parameter in tensors.values()}
    for prefix, module in network.named_modules():
        below, own = (set(map(id, module.parameters(recurse))) for recurse in (True, False))
        if module.training and (not below or own & wanted):
            tensors |= dict(module.named_buffers(prefix, recurse=False))
    return tensors


def check_split(split: SplitNetwork, whole: SplitNetwork, example: Tensor) -> None:
    # Gradients too, because the derivative of an autograd function of the network's own is lost in a graph.
    for training, what in ((False, "outputs"), (True, "gradients")):
        found, right = (probe_network(network, example, training) for network in (split, whole))
        tolerance = TOLERANCE_CPU if right.device.type == "cpu" else TOLERANCE_ACCELERATOR
        gap, scale = float((found - right).abs().max()), float(right.abs().max())
        if not gap <= tolerance * scale:  # "not", because of NaN
            raise ValueError(f"its {what} would be off by {gap:.1e}, of {scale:.1e}")


def probe_network(split: SplitNetwork, example: Tensor, training: bool) -> Tensor:
    """Compute outputs in evaluation, the gradients of a weighted sum of them in training."""
    state = {name: tensor.clone() for name, tensor in split.state.items()}
    trained = [state[name].requires_grad_() for name in split.trained_names]
    # Slices of unequal size show a value that depends on its batch.
    features = split.take(split.compute_features(example, len(example) - 1), torch.arange(len(example)))
    with torch.random.fork_rng([example.device] if example.is_cuda else []), torch.enable_grad():
        torch.manual_seed(0)
        outputs = split.apply_tail(state, features, training)
        if not training:
            return outputs.detach()
        weights = torch.arange(outputs.numel(), device=outputs.device).cos().view_as(outputs)
        gradients = torch.autograd.grad((outputs * weights).sum(), trained, materialize_grads=True)
    return torch.cat([gradient.flatten() for gradient in gradients])


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Export warns, logs and prints to stderr; the user needs the one line of the error alone."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
