"""A member is the same whatever stands beside it: packed or looped, alone or among others, in one fitter or three."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_ft.config import load_config
from ray_ft.cross_validation import prepare
from ray_ft.fitting.fitter import FitSettings
from ray_ft.fitting.gradient import GradientFitter
from ray_ft.fitting.preparation import PreparedStrategy, choose_dtype, prepare_strategy
from ray_ft.fitting.starting import start_fitter
from ray_ft.fitting.training import draw_batches
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.problem import MemberKey, Problem, list_members
from ray_ft.split.network import SplitNetwork

CPU = torch.device("cpu")
KEYS = list_members(1, 4, 2)
NO_GRADIENT = "body.0.bias"  # before batch norm, so that it would have but rounding, which Adam blows up

Parts = tuple[Problem, PreparedStrategy, CandidateSpec]


def build_parts(folder: Path, strategy: str, **overrides: object) -> Parts:
    """Four folds of thirty samples: unequal, so that last batches differ in size and members in their steps."""
    own = {"train": ["*"], "freeze": [NO_GRADIENT], "lr": 1e-2, "epochs": 6, "batch_size": 5, "head_dropout": 0.3}
    values = {"strategies.all": own, "cv.folds": 4, "cv.strategies": [strategy], "cv.candidates": 1}
    config = load_config(folder / "toy.yaml", values | {key.replace("__", "."): v for key, v in overrides.items()})
    prepared = prepare(config)
    own = (prepared.problem, prepared.pretrained, prepared.strategies[strategy], config.training.precision, CPU)
    return prepared.problem, prepare_strategy(*own), prepared.first_round[0]


def start(parts: Parts, keys: tuple[MemberKey, ...], packing: str, n_threads: int = 1) -> GradientFitter:
    fitter = start_fitter(*parts, keys, FitSettings(packing=packing), CPU, n_threads)
    assert isinstance(fitter, GradientFitter)
    return fitter


def run_epoch(fitter: GradientFitter, epoch: int) -> dict:
    fitter.run_epoch(epoch)
    return fitter.predict()


def train(parts: Parts, keys: tuple[MemberKey, ...], packing: str, n_threads: int = 1) -> dict:
    fitter = start(parts, keys, packing, n_threads)
    for epoch in range(3):
        predicted = run_epoch(fitter, epoch)
    assert not fitter.has_drifted()
    states = {member.key: {n: t.detach() for n, t in member.state.items()} for member in fitter.whole.members}
    return {key: (predicted[key], states[key]) for key in keys}


def assert_same(found: dict, expected: dict, tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for key, (predicted, state) in expected.items():
        np.testing.assert_allclose(found[key][0], predicted, rtol=tolerance, atol=tolerance)
        for name, tensor in state.items():
            torch.testing.assert_close(found[key][1][name], tensor, rtol=tolerance, atol=tolerance)


RATES = {"strategies.all.lr_decay": 0.5, "strategies.all.lr_scale": {"head.3.*": 2.0}}
LORA = RATES | {"strategies.all.adapter": {"kind": "lora", "rank": 2}, "strategies.all.ema": 0.7}


@pytest.mark.parametrize(("strategy", "rates"), [("top", {}), ("all", {}), ("all", LORA)])
def test_packed_members_equal_looped_ones_with_dropout_and_batch_norm(
    toy_folder: Path, strategy: str, rates: dict[str, object]
) -> None:
    parts = build_parts(toy_folder, strategy, **rates)
    assert parts[1].split.sites
    assert_same(train(parts, KEYS, "packed"), train(parts, KEYS, "looped"), 1e-5)


def test_a_member_is_bit_identical_alone_in_fitters_and_in_threads(toy_folder: Path) -> None:
    parts = build_parts(toy_folder, "all")
    together = train(parts, KEYS, "looped")
    dealt = {key: value for i in range(3) for key, value in train(parts, KEYS[i::3], "looped").items()}
    assert_same({key: dealt[key] for key in KEYS}, together, 0)
    assert_same(train(parts, KEYS, "looped", n_threads=3), together, 0)
    assert_same(train(parts, KEYS[5:6], "looped"), {KEYS[5]: together[KEYS[5]]}, 0)


@pytest.mark.parametrize("rates", [RATES, LORA])
def test_a_strategy_has_learning_rates_of_its_parameters(toy_folder: Path, rates: dict[str, object]) -> None:
    fitter = start(build_parts(toy_folder, "all", **rates), KEYS, "looped")
    names, optimizer = fitter.recipe.split.trained_names, fitter.whole.members[0].optimizer
    places = {id(fitter.whole.members[0].state[name]): name for name in names}
    found = {places[id(own)]: group["lr"] for group in optimizer.param_groups for own in group["params"]}
    depths = {"body.0": 2, "body.1": 2, "head.0": 1, "head.3": 0}
    assert found == {own: 1e-2 * (2 * (own[:6] == "head.3") or 0.5 ** depths[own[:6]]) for own in names}


@pytest.mark.parametrize("rates", [{}, LORA])
def test_a_fitter_goes_on_from_what_another_saved(toy_folder: Path, rates: dict[str, object]) -> None:
    parts = build_parts(toy_folder, "all", **rates)
    whole = start(parts, KEYS, "looped")
    whole.run_epoch(0)
    late = start(parts, KEYS[1::2], "packed")
    late.load(deepcopy(whole.save()))
    assert late.pack_size == 1, "it goes on as it was begun"
    expected = run_epoch(whole, 1)
    for key, predicted in run_epoch(late, 1).items():
        np.testing.assert_array_equal(predicted, expected[key])


class Tight(SplitNetwork):
    """A network on a device that has no memory for more than three members at once."""

    def take_stacked(self, features, index):
        if len(index) > 3:
            raise torch.OutOfMemoryError("no more memory")
        return super().take_stacked(features, index)


def test_a_pack_that_does_not_fit_is_halved_until_it_does(toy_folder: Path) -> None:
    parts = build_parts(toy_folder, "all")
    fitter = start(parts, KEYS, "packed")
    fitter.recipe = replace(fitter.recipe, split=Tight(**vars(fitter.recipe.split)))
    fitter.run_epoch(0)
    assert fitter.pack_size == 2
    calm = start(parts, KEYS, "looped")
    calm.run_epoch(0)
    for found, expected in zip(fitter.whole.members, calm.whole.members, strict=True):
        for name, tensor in expected.state.items():
            torch.testing.assert_close(found.state[name], tensor, rtol=1e-5, atol=1e-5)


def test_a_last_batch_of_one_joins_the_one_before_it_where_there_is_batch_norm(toy_folder: Path) -> None:
    problem, prepared, spec = build_parts(toy_folder, "all")  # 22 and 23 samples for training
    spec = replace(spec, stages=(replace(spec.stages[0], batch_size=7),))
    fitter = start((problem, prepared, spec), KEYS, "looped")
    sizes = [[len(batch.rows) for batch in draw_batches(member, fitter.recipe, 0)] for member in fitter.whole.members]
    assert sorted(map(tuple, sizes)) == [(7, 7, 7, 2)] * 4 + [(7, 7, 8)] * 4
    assert all(np.isfinite(predicted).all() for predicted in run_epoch(fitter, 0).values())


def test_bf16_keeps_float32_weights_and_nearly_the_predictions(toy_folder: Path) -> None:
    parts = build_parts(toy_folder, "all", training__precision="bf16")
    assert parts[1].dtype == torch.bfloat16
    found = train(parts, KEYS, "looped")
    expected = train(build_parts(toy_folder, "all", training__precision="float32"), KEYS, "looped")
    for key, (predicted, state) in found.items():
        assert all(tensor.dtype in (torch.float32, torch.int64) for tensor in state.values())
        assert np.abs(predicted - expected[key][0]).mean() < 0.05
    assert not np.array_equal(found[KEYS[0]][0], expected[KEYS[0]][0])
    for key, (predicted, _) in train(parts, KEYS, "packed").items():
        assert np.abs(predicted - found[key][0]).mean() < 0.05


def test_small_products_stay_in_float32_on_a_cpu(toy_folder: Path) -> None:
    problem, prepared, _ = build_parts(toy_folder, "all")
    assert choose_dtype("auto", prepared.split, torch.from_numpy(problem.samples.inputs)) == torch.float32


class Unpackable(SplitNetwork):
    """A network with an operation that `vmap` does not know."""

    def take_stacked(self, features, index):
        raise RuntimeError("vmap: no rule for frobnicate\nand more lines")


def test_members_that_cannot_be_packed_are_looped_and_say_why(toy_folder: Path) -> None:
    problem, prepared, spec = build_parts(toy_folder, "top")
    prepared = replace(prepared, split=Unpackable(**vars(prepared.split)))
    how = start((problem, prepared, spec), KEYS, "auto").describe().training
    assert how == "looped, float32 (cannot be packed: vmap: no rule for frobnicate)"
    with pytest.raises(RuntimeError, match="frobnicate"):
        start((problem, prepared, spec), KEYS, "packed").run_epoch(0)


def test_a_network_that_runs_whole_is_looped_and_says_why(toy_folder: Path) -> None:
    module = toy_folder / "toy_network.py"
    module.write_text(module.read_text().replace("self.body(x))", "self.body(x)) * (x.mean().item() > -9)"))
    how = start(build_parts(toy_folder, "top"), KEYS, "packed").describe().training
    assert how == "looped, float32 (cannot be packed: the network may draw random numbers itself)"


def test_the_timed_choice_changes_nothing_but_the_packing(toy_folder: Path) -> None:
    parts = build_parts(toy_folder, "top")
    assert_same(train(parts, KEYS, "auto"), train(parts, KEYS, "looped"), 1e-5)
