"""Ridge regression against scikit-learn, and as a strategy like any other from training to export."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneGroupOut

from ray_ft.config import RidgeHyperparameters, load_config
from ray_ft.cross_validation import cross_validate, prepare
from ray_ft.ensemble import Ensemble
from ray_ft.ensemble.export import EnsembleModule
from ray_ft.errors import RunError
from ray_ft.fitting.fitter import FitSettings
from ray_ft.fitting.kernel_ridge import PENALTIES, STIFFNESS, fit_kernel, fit_rows
from ray_ft.fitting.preparation import prepare_strategy
from ray_ft.fitting.ridge import MAX_VALUES, RidgeFitter, compute_kernel, shrink
from ray_ft.fitting.starting import start_fitter
from ray_ft.results.records import load_predictions
from ray_ft.runs.folder import RunFolder
from ray_ft.search.problem import list_members

CPU = torch.device("cpu")


def draw_rows(n_groups: int = 8, n_views: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n_groups * n_views, 5)) + 3
    wanted = np.tanh(rows @ rng.normal(size=(5, 2))) + 0.3 * rng.normal(size=(len(rows), 2))
    return rows, wanted, np.tile(np.arange(n_groups), n_views)


def leave_groups_out(rows: np.ndarray, wanted: np.ndarray, groups: np.ndarray, penalty: float) -> float:
    """The plain loop: fit again without each group."""
    total = 0.0
    for kept, left in LeaveOneGroupOut().split(rows, groups=groups):
        found = Ridge(penalty).fit(rows[kept], wanted[kept]).predict(rows[left])
        total += float(((found - wanted[left]) ** 2).sum())
    return total


def test_penalty_and_error_are_those_of_scikit_learn_in_a_plain_loop() -> None:
    rows, wanted, groups = draw_rows()
    centred = rows - rows.mean(0)
    penalties = PENALTIES * np.linalg.eigvalsh(centred @ centred.T).clip(min=0).mean()
    errors = [leave_groups_out(rows, wanted, groups, penalty) for penalty in penalties]
    found = fit_kernel(rows @ rows.T, wanted, groups)
    assert found.error == pytest.approx(min(errors), rel=1e-6)
    reference = Ridge(penalties[int(np.argmin(errors))]).fit(rows, wanted)
    new = np.random.default_rng(1).normal(size=(7, 5)) + 3
    np.testing.assert_allclose(new @ rows.T @ found.coefficients + found.offset, reference.predict(new), rtol=1e-6)


class PlainRidge:
    """Ridge regression with what was said as one more column, for each target as tall as its own penalty asks for."""

    def __init__(self, penalty: float, stiffness: np.ndarray) -> None:
        self.penalty = penalty
        self.heights = np.where(np.isinf(stiffness), 0, np.sqrt(penalty / np.maximum(stiffness, 1e-9 * penalty)))

    def fit(self, rows: np.ndarray, said: np.ndarray, wanted: np.ndarray) -> "PlainRidge":
        columns = zip(self.heights, said.T, wanted.T, strict=True)
        self.fits = [
            Ridge(self.penalty, solver="svd").fit(np.c_[rows, height * own], target) for height, own, target in columns
        ]
        self.slopes = np.array([height * fit.coef_[-1] for height, fit in zip(self.heights, self.fits, strict=True)])
        return self

    def predict(self, rows: np.ndarray, said: np.ndarray) -> np.ndarray:
        columns = zip(self.fits, self.heights, said.T, strict=True)
        return np.stack([fit.predict(np.c_[rows, height * own]) for fit, height, own in columns], 1)


def search_plainly(
    rows: np.ndarray, said: np.ndarray, wanted: np.ndarray, groups: np.ndarray
) -> tuple[PlainRidge, float]:
    """The plain loop over both penalties, and over the groups without which each is fitted; also return its error."""
    centred = rows - rows.mean(0)
    spread = ((said - said.mean(0)) ** 2).sum(0)
    found: list[tuple[float, PlainRidge]] = []
    for penalty in PENALTIES * np.linalg.eigvalsh(centred @ centred.T).clip(min=0).mean():
        for share in STIFFNESS if said.any() else STIFFNESS[:1]:
            plain = PlainRidge(penalty, np.full_like(spread, np.inf) if np.isinf(share) else share * spread)
            error = 0.0
            for kept, left in LeaveOneGroupOut().split(rows, groups=groups):
                predicted = plain.fit(rows[kept], said[kept], wanted[kept]).predict(rows[left], said[left])
                error += float(((predicted - wanted[left]) ** 2).sum())
            found.append((error, plain))
    error, best = min(found, key=lambda each: each[0])
    return best.fit(rows, said, wanted), error


@pytest.mark.parametrize(("gain", "noise"), [(0.2, 0.02), (0.9, 0.3), (1.0, 0.3)])
def test_a_gain_is_one_more_column_of_scikit_learn_with_its_own_penalty(gain: float, noise: float) -> None:
    rows, wanted, groups = draw_rows()
    rng = np.random.default_rng(2)
    said = np.sin(rows[:, :2]) + rows[:, 2:4]
    wanted = gain * said + noise * wanted - said
    plain, error = search_plainly(rows, said, wanted, groups)
    found = fit_kernel(rows @ rows.T, wanted, groups, answers=said)
    assert found.error == pytest.approx(error, rel=1e-4)
    new, new_said = rng.normal(size=(7, 5)) + 3, rng.normal(size=(7, 2))
    expected = plain.predict(new, new_said)
    says = new @ rows.T @ found.coefficients + found.offset + (found.gain - 1) * new_said
    np.testing.assert_allclose(says, expected, rtol=1e-4, atol=1e-6)


def test_an_answer_on_another_clock_is_brought_to_this_one() -> None:
    """Where the answer says all but its scale, ridge regression of the residual alone has far to go."""
    rng = np.random.default_rng(0)
    rows, said = rng.normal(size=(30, 40)), 30 + 10 * rng.normal(size=(30, 1))
    targets = 0.2 * said - 3
    found = fit_kernel(rows @ rows.T, targets - said, np.arange(30), answers=said)
    assert found.gain == pytest.approx(0.2, abs=1e-3)
    np.testing.assert_allclose(rows @ rows.T @ found.coefficients, 0, atol=0.05)


def test_a_constant_answer_has_no_gain() -> None:
    rows, wanted, groups = draw_rows()
    said = np.full_like(wanted, 1 / 3, dtype=np.float32).astype(np.float64)
    found, without = (fit_kernel(rows @ rows.T, wanted, groups, answers=own) for own in (said, None))
    np.testing.assert_array_equal(found.gain, 1)
    np.testing.assert_allclose(found.coefficients, without.coefficients)


def test_a_gaussian_kernel_is_that_of_scikit_learn() -> None:
    rows, wanted, groups = draw_rows()
    found = fit_rows(torch.from_numpy(rows), groups, "rbf", partial(fit_kernel, wanted=wanted, groups=groups))
    distances = ((rows[:, None] - rows) ** 2).sum(-1)
    middle = np.median(distances[distances > 0])
    assert found.sharpness in [pytest.approx(1 / (2 * width**2 * middle), rel=0.1) for width in (0.3, 1.0, 3.0)]
    kernel = np.exp(-found.sharpness * distances)
    centred = kernel - kernel.mean(0) - kernel.mean(1, keepdims=True) + kernel.mean()
    penalties = PENALTIES * np.linalg.eigvalsh(centred).clip(min=0).mean()
    says = kernel @ found.coefficients + found.offset
    candidates = [
        KernelRidge(alpha=penalty, kernel="precomputed").fit(centred, wanted - wanted.mean(0)).predict(centred)
        for penalty in penalties
    ]
    assert min(np.abs(each + wanted.mean(0) - says).max() for each in candidates) < 1e-6


def start(folder: Path, **options: object) -> tuple[RidgeFitter, Path]:
    own = {"fit": "ridge", "train": ["head.*"], **options}
    prepared = prepare(load_config(folder / "toy.yaml", {"strategies.closed": own, "cv.strategies": ["closed"]}))
    problem, (spec,) = prepared.problem, prepared.first_round
    shared = prepare_strategy(problem, prepared.pretrained, prepared.strategies["closed"], "auto", CPU)
    fitter = start_fitter(problem, shared, spec, problem.keys, FitSettings(), CPU)
    assert isinstance(fitter, RidgeFitter)
    return fitter, prepared


@pytest.mark.long
@pytest.mark.parametrize("onto", ["residual", "targets"])
def test_members_are_fits_to_the_training_part_of_their_fold(toy_folder: Path, onto: str) -> None:
    fitter, prepared = start(toy_folder, onto=onto)
    fitter.run_epoch(0)
    predicted, splits = fitter.predict(), prepared.problem.splits
    network, x, y = prepared.pretrained.build(), torch.from_numpy(np.load("x.npy")), np.load("y.npy")
    with torch.no_grad():
        features, zero_shot = network.body(x).double().numpy(), network(x).double().numpy()
    base = zero_shot if onto == "residual" else 0 * zero_shot
    for place in {key.place: None for key in prepared.problem.keys}:
        train, held_out = splits.training(*place), splits.held_out(*place)
        plain, _ = search_plainly(features[train], base[train], y[train] - base[train], train)
        expected = plain.predict(features[held_out], base[held_out]) + base[held_out]
        for key in (key for key in prepared.problem.keys if key.place == place):
            np.testing.assert_allclose(predicted[key], expected, atol=2e-5)
            unseen = fitter.states[key]["coefficients"][torch.from_numpy(held_out)]
            assert not unseen.any(), "a member has nothing of the samples that it never saw"


def test_it_is_a_strategy_like_any_other_up_to_the_export(toy_folder: Path) -> None:
    values = {
        "strategies.closed": {"fit": "ridge", "train": ["head.*"]},
        "cv.strategies": ["closed", "last"],
        "cv.candidates": 1,
        "ensemble.strategies": ["closed", "last"],
        "ensemble.method": "uniform",
    }
    summary = cross_validate(load_config("toy.yaml", values), "run", inline=True)
    row = summary.strategies["closed"]
    assert (row.n_trained_params, row.n_members, row.stop_epochs) == (0, 6, [[1, 1, 1]])
    assert not any("closed" in note for note in summary.notes), "that its seeds are alike is no surprise"
    assert summary.ensemble.notes == ()
    ensemble, x, y = Ensemble.load("run"), np.load("x.npy"), np.load("y.npy")
    members = ensemble.predict_members(x, symmetric=False)[0]
    blind = load_predictions(RunFolder(Path("run")), "closed-000")[0]
    fold_of = ensemble.calibration.fold_of[0]
    for seed in range(2):
        found = members[0, 0, fold_of, seed, np.arange(30)]
        np.testing.assert_allclose(found, blind[seed], atol=1e-5)
        assert ((found - y) ** 2).mean() == pytest.approx(np.mean(row.scores, (0, 1))[seed], rel=1e-4)
    prediction = ensemble.predict(x)
    exported = torch.export.export(EnsembleModule(ensemble), (torch.from_numpy(x),)).module()(torch.from_numpy(x))
    np.testing.assert_allclose(exported[0], prediction.mean, atol=1e-5)
    np.testing.assert_allclose(exported[2], prediction.lower, atol=1e-5)


def test_it_goes_on_from_what_was_saved(toy_folder: Path) -> None:
    first, late = start(toy_folder)[0], start(toy_folder)[0]
    first.run_epoch(0)
    late.load(first.save())
    expected = first.predict()
    assert expected.keys() == set(list_members(1, 3, 2))
    for key, predicted in late.predict().items():
        np.testing.assert_array_equal(predicted, expected[key])
    assert not late.has_drifted()


def test_a_network_that_runs_whole_has_no_features_to_fit(toy_folder: Path) -> None:
    module = toy_folder / "toy_network.py"
    module.write_text(module.read_text().replace("self.body(x))", "self.body(x)) * (x.mean().item() > -9)"))
    values = {"strategies.closed": {"fit": "ridge", "train": ["head.*"]}, "cv.strategies": ["closed"]}
    with pytest.raises(RunError, match="fit: ridge needs a network that can be split at what it trains, but"):
        cross_validate(load_config("toy.yaml", values), "run", inline=True)


def test_large_features_are_averages_of_neighbours() -> None:
    feature = torch.arange(2.0 * 64 * 1024).view(2, 64, 1024)
    small = shrink(feature)
    assert small.shape == (2, 64, 512)
    assert small[0].numel() == MAX_VALUES
    torch.testing.assert_close(small, feature.view(2, 64, 512, 2).mean(-1))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lr": 0.1}, r"strategies\.closed\.lr: it is no key of fit: ridge"),
        ({"kernel": "cubic"}, r"strategies\.closed\.kernel: it should be 'linear' or 'rbf', got 'cubic'"),
        ({"fit": "lasso"}, r"strategies\.closed\.fit: it should be gradient or ridge, got 'lasso'"),
    ],
)
def test_its_keys_are_its_own(toy_folder: Path, options: dict, text: str) -> None:
    own = {"fit": "ridge", "train": ["head.*"], **options}
    with pytest.raises(Exception, match=text):
        load_config("toy.yaml", {"strategies.closed": own})
    assert RidgeHyperparameters("linear", "residual").n_epochs == 1


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("value", [0.0, 3.0])
def test_features_that_are_all_alike_predict_the_mean(kernel: str, value: float) -> None:
    wanted = np.random.default_rng(0).normal(size=(10, 2))
    rows = torch.full((10, 4), value, dtype=torch.float64)
    found = fit_rows(rows, np.arange(10), kernel, partial(fit_kernel, wanted=wanted, groups=np.arange(10)))
    said = compute_kernel(rows, rows, torch.tensor(found.sharpness), kernel).numpy() @ found.coefficients + found.offset
    np.testing.assert_allclose(said, np.broadcast_to(wanted.mean(0), said.shape), atol=1e-6)
