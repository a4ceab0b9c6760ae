"""What a ridge regression leaves to the stages after it: weights of the network, or else a term of their answer.

Where the ridge regression is on the network's last linear layer, its solution is that layer, which later stages train
on or freeze like any other. Elsewhere it is no layer of the network, so it stays beside it: each member's answer is
what its network says plus what its own ridge regression adds to the pretrained answer, and the latter learns no more.
"""

from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from ray_ft.config import RidgeHyperparameters
from ray_ft.errors import StrategyError
from ray_ft.fitting.ridge import attach_ridge
from ray_ft.split.network import Features, SplitNetwork
from ray_ft.split.sharing import add_answers

N_TRIED = 16  # samples on which a layer is compared with the ridge regression that it is to be
TOLERANCE = 1e-4  # of the largest answer
State = dict[str, Tensor]


@dataclass(frozen=True)
class Layer:
    """The linear layer that a ridge regression is on."""

    weight: str
    bias: str
    starts: State  # its pretrained tensors by name
    rows: Tensor

    def solve(self, state: State) -> State:
        """Return the layer that a member's coefficients and gain are."""
        rows, coefficients, offset = (own.double().cpu() for own in (self.rows, state["coefficients"], state["offset"]))
        gain = state["gain"].double().cpu() if "gain" in state else torch.zeros_like(offset)
        weight = gain[:, None] * self.starts[self.weight].cpu() + coefficients.mT @ rows
        bias = gain * self.starts[self.bias].cpu() + offset
        return {name: own.to(state["offset"]) for name, own in ((self.weight, weight), (self.bias, bias))}


@dataclass(frozen=True)
class Carry:
    """How members go on with a ridge regression: by the layer that it is, or with it as a term of their answer."""

    layer: Layer | None
    term: SplitNetwork | None  # it answers with what the ridge regression adds
    names: dict[str, str]  # of its tensors in the state of a member

    def to(self, device: str) -> "Carry":
        """Return it on a device, where it stands but to be read."""
        layer = self.layer and replace(self.layer, rows=self.layer.rows.to(device))
        return replace(self, layer=layer, term=self.term and self.term.to(device))

    @property
    def is_term(self) -> bool:
        return self.term is not None

    def translate(self, state: State) -> State:
        """Name what a member of the ridge regression has as members of later stages have it."""
        return self.layer.solve(state) if self.layer else {self.names[name]: own for name, own in state.items()}

    def attach(self, split: SplitNetwork, example: Tensor) -> SplitNetwork:
        """Return the network of a later stage with the term, where it is one.

        Raises:
            StrategyError: The network runs whole.
        """
        if self.term is None:
            return split
        if split.reason:
            raise StrategyError(
                "a ridge regression before another stage must be on the last linear layer, or the network must be "
                f"split in the later stage, but {split.reason}; train that layer alone by fit: ridge, or by gradient"
            )
        return add_answers(self.term, split, self.names, example)


def carry_ridge(split: SplitNetwork, ridge: SplitNetwork, features: Features, hyper: RidgeHyperparameters) -> Carry:
    """Find out how the solution of a ridge regression is carried over.

    Args:
        split: The network, split where the ridge regression takes its place.
        ridge: The same with the ridge regression attached.
        features: Of the training samples.
        hyper: How it is fitted.

    Raises:
        StrategyError: It takes the place of the network's answer, and is not its last linear layer.
    """
    if layer := find_layer(split, ridge, features, hyper):
        return Carry(layer, None, {})
    if hyper.onto == "targets":
        raise StrategyError(
            "fit: ridge with onto: targets before another stage must be on the last linear layer, with a bias, by "
            f"kernel: linear, as it takes the place of the network's answer, got kernel: {hyper.kernel} on what train "
            "names; say onto: residual, or kernel: linear on the last linear layer alone"
        )
    prefix = "ridge."
    while any(name.startswith(prefix) for name in split.tensors | split.state):
        prefix = "_" + prefix
    term = attach_ridge(split, features, hyper, beside=True)
    return Carry(None, term, {name: prefix + name for name in term.state})


@torch.no_grad()
def find_layer(
    split: SplitNetwork, ridge: SplitNetwork, features: Features, hyper: RidgeHyperparameters
) -> Layer | None:
    """Find the layer that answers as the ridge regression does, whatever its coefficients; None where there is none."""
    rows = next(tensor for name, tensor in ridge.tensors.items() if name not in split.tensors | split.state)
    n_outputs, n_values = len(ridge.state["offset"]), rows.shape[1]
    trained = {name: split.state[name] for name in split.trained_names}
    weights = [name for name, tensor in trained.items() if tensor.shape == (n_outputs, n_values)]
    biases = [name for name, tensor in trained.items() if tensor.shape == (n_outputs,)]
    if hyper.kernel != "linear" or not (weights and biases):
        return None
    few = torch.arange(min(N_TRIED, len(rows)), device=rows.device)
    trial = draw_trial(split, ridge, features, few)
    expected = ridge.apply_tail(trial, ridge.take(features, few))
    for weight, bias in product(weights, biases):
        layer = Layer(weight, bias, {name: trained[name] for name in (weight, bias)}, rows)
        found = split.apply_tail(split.state | layer.solve(trial), split.take(features, few))
        if (found - expected).abs().max() <= TOLERANCE * expected.abs().max():
            return layer
    return None


def draw_trial(split: SplitNetwork, ridge: SplitNetwork, features: Features, few: Tensor) -> State:
    """Draw coefficients that add about as much as the network says, so that either would be missed."""
    generator = torch.Generator().manual_seed(0)
    drawn = {
        name: torch.randn(own.shape, generator=generator).to(own) if own.dim() else own
        for name, own in ridge.state.items()
    }
    said = split.apply_tail(split.state, split.take(features, few))
    added = ridge.apply_tail(drawn, ridge.take(features, few))
    scale = said.abs().max() / added.abs().max()
    scale = torch.where((scale > 0) & scale.isfinite(), scale, torch.ones_like(scale))
    return drawn | {name: drawn[name] * scale for name in ("coefficients", "offset")}
