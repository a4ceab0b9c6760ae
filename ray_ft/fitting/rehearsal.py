"""A network of a user's own, tried before the first epoch: what is trained, scored, saved and served is one function.

It is built twice, passed twice in evaluation and, with the way back, in training, and called with its tensors from
outside, as members call it. Where two of these disagree it is refused, and what it holds besides its parameters and
buffers is named.
"""

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from ray_ft.errors import NetworkError, StrategyError, first_few
from ray_ft.models import SAME, Pretrained, agree, predict_all, seed_all
from ray_ft.search.strategies import Strategy, name_stages
from ray_ft.split.network import keep_whole, order_names
from ray_ft.split.whole import blame_network, find_written, hold, pull_back, set_training_modes

N_TRIED = 4  # samples
OWN = frozenset(vars(nn.Module()))  # what PyTorch keeps in a module


def rehearse(
    network: nn.Module,
    pretrained: Pretrained,
    strategies: Iterable[Strategy],
    inputs: Float[np.ndarray, "sample *input"],
) -> Pretrained:
    """Try a network; return what builds it, with the answers that all builds must give.

    Args:
        network: As it was built first, in evaluation mode.
        pretrained: What builds it.
        strategies: What is trained.
        inputs: Samples, shape (sample, *input).

    Raises:
        NetworkError: It raises, or is not one function.
        StrategyError: Nothing that a strategy trains reaches the answer.
    """
    inputs, known = choose_unlike(inputs), list_held(network)
    answers = predict_all(network, inputs)
    if not agree(predict_all(network, inputs), answers):
        moved = name_changes(known, list_held(network))
        raise NetworkError(
            f"{SAME}, but two passes in evaluation disagree{moved or find_random(network, inputs)}; a dropout must "
            "know self.training, and what a pass writes must stand under it"
        )
    if not agree(torch.cat([predict_all(network, inputs[i : i + 1]) for i in range(len(inputs))]), answers):
        raise NetworkError(
            "what a network answers must depend on each sample alone, but beside others it answers differently; "
            "take what it computes over the batch out of evaluation"
        )
    again = pretrained.build()
    if not agree(predict_all(again, inputs), answers):
        changed = name_changes(list_held(network), list_held(again))
        raise NetworkError(
            f"{SAME}, but built twice it answers differently{changed}; what is drawn when it is built must be in its "
            "state dict: make it a parameter or a persistent buffer"
        )
    for strategy in strategies:
        for place, stage in zip(name_stages(strategy.name, len(strategy.stages)), strategy.stages, strict=True):
            rehearse_training(again, place, stage.trained, torch.from_numpy(inputs), answers)
    return replace(pretrained, witness=(inputs, answers))


def choose_unlike(inputs: Float[np.ndarray, "sample *input"]) -> Float[np.ndarray, "few *input"]:
    """Choose a few samples that are unlike one another, in an order that is that of no sorting by size.

    What is padded shows by samples of unequal sizes, and what is sorted by an order that sorting changes.
    """
    sizes = np.count_nonzero(inputs.reshape(len(inputs), -1), axis=1)
    ordered = np.lexsort((np.arange(len(inputs)), sizes))
    few = np.unique(np.linspace(0, len(inputs) - 1, N_TRIED).round().astype(int))
    chosen: np.ndarray = inputs[ordered[np.roll(few, 1)[::-1]]]
    return chosen


def rehearse_training(
    network: nn.Module, place: str, trained: tuple[str, ...], inputs: Tensor, answers: Tensor
) -> None:
    """Train and answer by turns: nothing but tensors may carry over from one pass to the next.

    `place` is the strategy's name, with the stage where there are several.
    """
    known, passes = list_held(network), []
    for seed in range(2):
        passes.append(pass_once(network, place, trained, inputs, seed))
        network.eval()
        if not agree(predict_all(network, inputs.numpy()), answers):
            raise NetworkError(
                f"{SAME}, but after a pass in training it answers differently with the same parameters and buffers"
                f"{name_changes(known, list_held(network))}; what training writes must be buffers"
            )
    (told, gradient), (again, _) = passes
    if told.shape != answers.shape:
        shapes = f"{tuple(told.shape)} for {tuple(answers.shape)}"
        raise NetworkError(f"the network must answer in training with the shape of its evaluation, got {shapes}")
    if not agree(told, again):
        raise NetworkError(
            f"{SAME}, but two passes in training disagree by one seed of torch"
            f"{name_changes(known, list_held(network))}; it must draw by torch's own generator, and what training "
            "writes must be buffers"
        )
    check_outside(network, trained, inputs, answers, told, gradient)


def pass_once(
    network: nn.Module, place: str, trained: tuple[str, ...], inputs: Tensor, seed: int
) -> tuple[Tensor, Tensor]:
    """Pass once in training and back on copies of its tensors, by one seed of torch and another of NumPy and Python.

    Returns:
        What it answers, and the gradients of what is trained, as one vector.
    """
    names = order_names(network, trained)
    set_training_modes(network, names)
    named = (*network.named_parameters(), *network.named_buffers())
    given = {name: tensor.detach().clone().requires_grad_(name in names) for name, tensor in named}

    def learn() -> tuple[Tensor, list[Tensor]]:
        with blame_network("in training"):
            outputs = network(inputs.clone())
        if not isinstance(outputs, Tensor):
            kind = type(outputs).__name__
            raise NetworkError(f"the network must answer with one tensor in training too, got {kind}")
        if not outputs.requires_grad:
            return outputs, []
        with blame_network("on the way back"):
            return outputs.detach(), pull_back(outputs, [given[name] for name in names])

    with seed_all(others=seed), torch.enable_grad(), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        outputs, gradients = hold(network, given, learn)
    idle = [name for name in names if given[name].grad is None]
    if idle and any("requires_grad=True. Gradients will be None" in str(each.message) for each in said):
        rule = "torch.utils.checkpoint passes no gradient where nothing before it is trained"
        raise StrategyError(f"strategy {place}: {rule}, got none for {first_few(idle)}; say use_reentrant=False")
    if not gradients:
        raise StrategyError(f"strategy {place}: what it trains must reach the answer, got {first_few(names)}")
    return outputs, flatten(gradients)


def check_outside(
    network: nn.Module, trained: Iterable[str], inputs: Tensor, answers: Tensor, told: Tensor, gradient: Tensor
) -> None:
    """Call it as members do, with tensors that are not its own."""
    names = order_names(network, tuple(trained))
    set_training_modes(network, names)
    written = find_written(network, inputs)
    with blame_network("copied and called with a member's tensors"):
        whole = keep_whole(network, names, written=written)
        if moved := sorted(written & whole.tensors.keys()):
            raise NetworkError(
                f"what is frozen must not move, but training writes {first_few(moved)}; write it under self.training, "
                "in a module that holds a trained parameter, or train it"
            )
        found = whole.apply_tail(whole.state, whole.take((inputs,)))
        leaves = [whole.state[name].requires_grad_() for name in names]

        def learn() -> tuple[Tensor, Tensor]:
            outputs = whole.apply_tail(whole.state, whole.take((inputs,)), training=True)
            return outputs.detach(), flatten(pull_back(outputs, leaves))

        with seed_all(), torch.enable_grad():
            learning, slope = whole.hold(whole.state, learn)
    pairs = (
        (found, answers, "evaluation"),
        (learning, told, "training"),
        (slope, gradient, "the way back"),
    )
    for ours, own, mode in pairs:
        if not agree(ours.detach(), own):
            raise NetworkError(
                f"{SAME}, but with its tensors given from outside it answers differently in {mode}: it must read "
                "its parameters where it registers them, and change none of them between modes"
            )


def flatten(gradients: Iterable[Tensor]) -> Tensor:
    real = (torch.view_as_real(own.resolve_conj()) if own.is_complex() else own for own in gradients)
    return torch.cat([own.flatten() for own in real])


def list_held(network: nn.Module) -> dict[str, Any]:
    """List, by name, the numbers, arrays and tensors that modules hold besides their parameters, as they are now."""
    held: dict[str, Any] = {}
    for prefix, module in network.named_modules():
        own = {name: value for name, value in vars(module).items() if name not in OWN} | module._buffers
        pairs = ((name, *pair) for name, value in own.items() for pair in tree_flatten_with_path(value)[0])
        for first, path, leaf in pairs:
            name = f"{prefix}.{first}".lstrip(".") + keystr(path)
            if isinstance(leaf, Tensor):
                held[name] = leaf.detach().clone()
            elif isinstance(leaf, np.ndarray | int | float | complex):
                held[name] = np.array(leaf)
    return held


def name_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    """Name what is not as it was; nothing where all is."""
    changed = [name for name in before.keys() | after.keys() if not same(before.get(name), after.get(name))]
    return f" ({first_few(sorted(changed))} changed)" if changed else ""


def same(first: Any, second: Any) -> bool:
    """Whether all tensors and arrays, of nested values, are equal; what else there is counts as equal."""
    pairs = zip(tree_leaves(first), tree_leaves(second), strict=False)
    return all(
        np.array_equal(np.asarray(one), np.asarray(other))
        for one, other in pairs
        if isinstance(one, Tensor | np.ndarray) or isinstance(other, Tensor | np.ndarray)
    )


def find_random(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> str:
    """Name the first module that answers the same arguments differently in two passes."""
    first, second = record_calls(network, inputs), record_calls(network, inputs)
    for name, (given, answer) in first.items():  # in the order of their ends
        if name and name in second and same(given, second[name][0]) and not same(answer, second[name][1]):
            return f" ({name} first)"
    return ""


def record_calls(network: nn.Module, inputs: Float[np.ndarray, "sample *input"]) -> dict[str, tuple[Any, Any]]:
    """List the arguments and the answer of the first call of each module, by name."""
    seen: dict[str, tuple[Any, Any]] = {}

    def record(name: str, _: nn.Module, given: Any, answer: Any) -> None:
        seen.setdefault(name, (given, answer))

    handles = [module.register_forward_hook(partial(record, name)) for name, module in network.named_modules()]
    predict_all(network, inputs)
    for handle in handles:
        handle.remove()
    return seen
