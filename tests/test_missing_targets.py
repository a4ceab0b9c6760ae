"""Targets that are NaN are missing labels: what is masked is what a plain loop over the rest would say."""

import json
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import Ridge

from ray_ft import Ensemble, cross_validate
from ray_ft.config import load_config
from ray_ft.data.samples import load_samples
from ray_ft.domains import find_domain
from ray_ft.ensemble.evaluation import evaluate_ensemble, read_labelled
from ray_ft.ensemble.export import export_ensemble
from ray_ft.errors import DataError, EnsembleError
from ray_ft.fitting.kernel_ridge import PENALTIES, fit_kernel
from ray_ft.objectives import METRICS, REGRESSION, find_objective
from ray_ft.report.page import write_report
from ray_ft.results.summary import Summary
from ray_ft.statistics.intervals import build_pointwise, build_simultaneous, trace_calibration

Command = Callable[..., CompletedProcess[str]]
NUMBERS = [name for name, module in METRICS.items() if module == REGRESSION]
N = 40
NETWORK = """
import torch
from torch import nn


class Small(nn.Module):
    def __init__(self, n_outputs=1):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, n_outputs)

    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))
"""
CONFIG = """
model: {factory: "small_network:Small", checkpoint: w.pt}
data: {inputs: x.npy, targets: y.npy}
cv: {folds: 3, seeds: 2, candidates: 1, strategies: [top, closed]}
search: {method: guide}
compute: {packing: packed}
ensemble: {strategies: [top]}
strategies:
  top: {train: ["head.*"], lr: 1.0e-2, epochs: 3, batch_size: 8}
  closed: {fit: ridge, train: ["head.*"]}
"""


@pytest.fixture
def small_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network of two outputs, or of the first alone, and two targets of very different scales."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 6)).astype(np.float32)
    y = (np.tanh(x @ rng.normal(size=(6, 2))) * [1, 30]).astype(np.float32)
    for name, array in {"x": x, "y": y[:, :1], "pair": y}.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "small_network.py").write_text(NETWORK)
    (tmp_path / "c.yaml").write_text(CONFIG)
    torch.manual_seed(0)
    body = {"body.weight": torch.randn(8, 6) / 2, "body.bias": torch.zeros(8)}
    weight = torch.randn(2, 8) / 3
    torch.save(body | {"head.weight": weight[:1], "head.bias": torch.zeros(1)}, tmp_path / "w.pt")
    torch.save(body | {"head.weight": weight, "head.bias": torch.zeros(2)}, tmp_path / "w2.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "small_network", raising=False)
    torch.set_num_threads(1)
    return tmp_path


PAIR = {"model.params.n_outputs": 2, "model.checkpoint": "w2.pt", "data.targets": "pair.npy"}


def run(out: str, **values: Any) -> Summary:
    return cross_validate(load_config("c.yaml", values), out, inline=True)


def list_numbers(summary: Summary, out: str, output: int = 0) -> dict[str, np.ndarray]:
    """Scores of all kinds, out-of-fold answers and intervals of one output, which is the only one that has labels."""
    rows = summary.strategies | summary.baselines
    found = {name: np.array(row.scores) for name, row in rows.items()}
    found |= {f"{name} {key}": np.array(value) for name, row in rows.items() for key, value in row.beside.items()}
    found |= {name: np.array(score) for name, score in summary.ensemble.scores.items()}
    blind, prediction = np.load(Path(out) / "blind.npz"), Ensemble.load(out).predict(np.load("x.npy")[:7])
    found |= {name: blind[name][:, output] for name in ("mean", "std")}
    names = ("mean", "lower", "upper", "band_lower", "band_upper")
    return found | {f"new {name}": getattr(prediction, name)[:, output] for name in names}


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], rounded: str = "") -> None:
    """What has the name of a strategy that is `rounded` differs by its answers' rounding, in float32."""
    assert one.keys() == other.keys()
    for name, values in one.items():
        tolerance = 1e-5 if rounded and name.startswith(rounded) else 1e-6
        np.testing.assert_allclose(values, other[name], rtol=tolerance, atol=tolerance, err_msg=name)


def draw_gaps(seed: int, n: int, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Predictions, and targets with gaps in samples that have one value at least."""
    rng = np.random.default_rng(seed)
    predicted, targets = rng.normal(size=(2, n, *shape))
    missing = rng.random(targets.shape) < 0.4
    missing.reshape(n, -1)[np.arange(n), rng.integers(missing[0].size, size=n)] = False
    return predicted, np.where(missing, np.nan, targets)


ERRORS: dict[str, Callable[[float], float]] = {
    "mse": lambda e: e**2,
    "mae": abs,
    "huber": lambda e: e**2 / 2 if abs(e) < 1 else abs(e) - 0.5,
}


@given(seed=st.integers(0, 999), n=st.integers(1, 9), shape=st.sampled_from([(1,), (3,), (2, 3)]))
@pytest.mark.parametrize("metric", NUMBERS)
def test_losses_and_scores_are_means_over_what_is_there(metric: str, seed: int, n: int, shape: tuple[int, ...]) -> None:
    predicted, targets = draw_gaps(seed, n, shape)
    objective = find_objective(metric).settle(targets)
    flat = targets.reshape(n, -1)
    spread = [own[~np.isnan(own)].std() or 1.0 if (~np.isnan(own)).any() else 1.0 for own in flat.T]
    error, units = ERRORS[metric.split("_")[-1]], spread if metric.startswith("standardised") else [1.0] * len(spread)
    expected = [
        np.mean([error((p - t) / unit) for p, t, unit in zip(told, true, units, strict=True) if not np.isnan(t)])
        for told, true in zip(predicted.reshape(n, -1), flat, strict=True)
    ]
    np.testing.assert_allclose(objective.score(predicted, targets), expected, rtol=1e-6, atol=1e-9)
    outputs, truth = torch.tensor(predicted, requires_grad=True), torch.tensor(targets)
    losses = objective.losses(outputs, truth)
    np.testing.assert_allclose(losses.detach(), expected, rtol=1e-6, atol=1e-9)
    (slope,) = torch.autograd.grad(losses.sum(), outputs)
    assert slope.isfinite().all()
    assert not slope[truth.isnan()].any()
    packed = torch.vmap(objective.losses)(outputs.detach().expand(3, *outputs.shape), truth.expand(3, *truth.shape))
    torch.testing.assert_close(packed, losses.detach().expand(3, n))


def test_a_row_without_a_target_is_a_row_that_is_not_there(small_folder: Path) -> None:
    x, y = np.load("x.npy"), np.load("y.npy")
    gone = np.arange(N) % 7 == 3
    y[gone] = np.nan
    np.save("gaps.npy", y)
    np.save("short_x.npy", x[~gone])
    np.save("short_y.npy", y[~gone])
    masked = run("masked", **{"data.targets": "gaps.npy"})
    short = run("short", **{"data.inputs": "short_x.npy", "data.targets": "short_y.npy"})
    assert_same(list_numbers(masked, "masked"), list_numbers(short, "short"))
    assert "6 samples without any target are left out" in masked.notes


def test_an_output_without_labels_leaves_the_others_as_they_are_alone(small_folder: Path) -> None:
    """The second output of the network is trained by nothing, so the first is what it is without it."""
    pair = np.load("pair.npy")
    pair[:, 1] = np.nan
    np.save("pair.npy", pair)
    alone, beside = run("alone"), run("beside", **PAIR)
    # A layer of two outputs rounds otherwise, and a gain without penalty is of the hundredth that features leave of it.
    assert_same(list_numbers(beside, "beside"), list_numbers(alone, "alone"), rounded="closed")
    prediction = Ensemble.load("beside").predict(np.load("x.npy"))
    assert np.isfinite(prediction.mean).all()
    for name in ("lower", "upper", "band_lower", "band_upper"):
        assert np.isnan(getattr(prediction, name)[:, 1]).all()
    notes = [
        f"{N} of {2 * N} target values are missing",
        "1 of the 2 values of a target have no label at all",
        "too few samples have 1 of the 2 values of a target for intervals of 90 %: theirs are NaN",
    ]
    assert set(notes) <= set(beside.notes)


def test_a_run_with_gaps_goes_all_the_way(small_folder: Path, ray_ft_here: Command) -> None:
    pair = np.load("pair.npy")
    pair[::3, 0], pair[5:, 1] = np.nan, np.nan
    np.save("pair.npy", pair)
    summary = run("run", **PAIR, **{"cv.metric": "standardised_mse", "training.loss": "standardised_huber"})
    kept = len(pair) - np.isnan(pair).all(1).sum()
    assert f"{np.isnan(pair[~np.isnan(pair).all(1)]).sum()} of {2 * kept} target values are missing" in summary.notes
    write_report("run")
    ensemble, x = Ensemble.load("run"), np.load("x.npy")
    prediction = ensemble.predict(x)
    assert np.isnan(prediction.lower[:, 1]).all()  # of five samples there is no interval of 90 %
    assert np.isfinite(prediction.lower[:, 0]).all()
    assert np.isfinite(prediction.band_lower).all()
    export_ensemble(ensemble, Path("run.pt2"))
    exported = torch.export.load("run.pt2").module()(torch.from_numpy(x))
    for name, found in zip(ensemble.exported, exported, strict=True):
        np.testing.assert_allclose(found.numpy(), getattr(prediction, name), rtol=1e-3, atol=1e-4, err_msg=name)
    check_card(Path("run/ensemble/card.json"))
    np.save("fresh.npy", pair[:30])
    np.save("fresh_x.npy", x[:30])
    found = evaluate_ensemble(ensemble, read_labelled(ensemble, None, "fresh_x.npy", "fresh.npy"))
    there = ~np.isnan(pair[:30])
    labelled = there.any(1)
    errors = np.where(there, ((prediction.mean[:30] - pair[:30]) / ensemble.card.scales) ** 2, 0.0)
    for own, told, true in zip(found.outputs.values(), prediction.mean[:30].T, pair[:30].T, strict=True):
        known = ~np.isnan(true)
        assert own["mae"] == pytest.approx(np.abs(told - true)[known].mean(), rel=1e-5)
        for measure, of_band in (("coverage", "band_coverage"), ("width", "band_width")):
            assert (measure in own) == (of_band in own)
            assert own.get(measure, 0.0) == pytest.approx(own.get(of_band, 0.0), rel=1e-5), "a value is its whole band"
    by_sample = errors.sum(1)[labelled] / there.sum(1)[labelled]
    assert found.standardised_mse == pytest.approx(by_sample.mean(), rel=1e-5)
    inside = (prediction.lower[:30] <= pair[:30]) & (pair[:30] <= prediction.upper[:30])
    assert found.coverage == pytest.approx(inside[there[:, 0], 0].mean())
    assert found.n_samples == labelled.sum()
    said = ray_ft_here("evaluate", "run", "--inputs", "fresh_x.npy", "--targets", "fresh.npy", "--plot", "c.png")
    assert said.returncode == 0, said.stderr
    assert f"{found.n_missing} target values of these samples are missing" in said.stdout
    assert found.n_missing == (~there[labelled]).sum()


def check_card(path: Path) -> None:
    """Its scales must be there, and be such; without, as before there were any, it is of another metric."""
    card = json.loads(path.read_text())
    for changed in ({"scales": ()}, {"scales": (1.0,)}, {"scales": (1.0, 0.0)}, {"metric": "mse"}):
        path.write_text(json.dumps(card | changed))
        with pytest.raises(EnsembleError, match="scales must be one above 0 for each target value"):
            Ensemble.load("run")
    path.write_text(json.dumps({key: value for key, value in card.items() if key != "scales"} | {"metric": "mse"}))
    assert Ensemble.load("run").card.scales == ()
    path.write_text(json.dumps(card))


@given(seed=st.integers(0, 999))
def test_intervals_are_those_of_the_samples_that_have_the_value(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, n_folds, alpha = 30, 5, 0.2
    predictions, residuals = rng.normal(size=(1, n_folds, 4, 3)), rng.normal(size=(n, 3))
    residuals[rng.random(residuals.shape) < 0.3] = np.nan
    residuals[:, 2] = np.nan
    residuals[:3, 2] = 1.0  # three are too few
    fold_of = rng.permutation(np.arange(n) % n_folds)[None]
    lower, upper = build_pointwise(predictions, residuals, fold_of, alpha)
    for i in range(2):
        own = ~np.isnan(residuals[:, i])
        alone = build_pointwise(predictions[..., i], residuals[own, i], fold_of[:, own], alpha)
        np.testing.assert_array_equal((lower[:, i], upper[:, i]), alone)
    assert np.isnan((lower[:, 2], upper[:, 2])).all()
    band = build_simultaneous(predictions, residuals, fold_of, alpha)
    assert np.isfinite(band).all()
    targets = np.where(rng.random((4, 3)) < 0.3, np.nan, rng.normal(size=(4, 3)))
    (point,) = trace_calibration(predictions, residuals, fold_of, targets, [alpha])
    inside = (lower <= targets) & (targets <= upper)
    counted = ~np.isnan(targets) & ~np.isnan(lower)
    assert not counted.any() or point.values == pytest.approx(inside[counted].mean())
    whole = ((band[0] <= targets) & (targets <= band[1])) | np.isnan(targets)
    assert point.samples == pytest.approx(whole.all(1).mean())


def test_bands_hold_the_values_that_samples_have() -> None:
    """Each sample, old or new, has each of six values with a chance of one half, and one at least."""
    rng, held = np.random.default_rng(0), []
    for _ in range(150):
        targets = rng.standard_normal((80, 6)) * [1, 1, 5, 5, 20, 20]
        missing = rng.random(targets.shape) < 0.5
        missing[np.arange(80), rng.integers(6, size=80)] = False
        targets[missing] = np.nan
        fold_of = np.arange(60)[None] % 5
        means = np.stack([np.nanmean(targets[:60][fold_of[0] != k], 0) for k in range(5)])
        residuals = targets[:60] - means[fold_of[0]]
        lower, upper = build_simultaneous(np.repeat(means[None, :, None], 20, 2), residuals, fold_of, 0.1)
        held.append((((lower <= targets[60:]) & (targets[60:] <= upper)) | missing[60:]).all(1).mean())
    assert 0.87 < np.mean(held) < 0.94


def test_ridge_is_scikit_learns_on_the_rows_of_each_output() -> None:
    rng = np.random.default_rng(0)
    rows, groups = rng.normal(size=(24, 5)), np.arange(24) // 2
    wanted = rows @ rng.normal(size=(5, 3)) + 0.3 * rng.normal(size=(24, 3)) + 2
    wanted[:7, 0], wanted[9:20, 1] = np.nan, np.nan
    found = fit_kernel(rows @ rows.T, wanted, groups)
    errors, models = np.zeros(len(PENALTIES)), []
    for i in range(3):
        own = np.flatnonzero(~np.isnan(wanted[:, i]))
        centred = rows[own] - rows[own].mean(0)
        alphas = PENALTIES * (centred**2).sum() / len(own)  # the mean eigenvalue
        for j, alpha in enumerate(alphas):
            for group in np.unique(groups[own]):
                test, train = own[groups[own] == group], own[groups[own] != group]
                model = Ridge(alpha).fit(rows[train], wanted[train, i])
                errors[j] += ((model.predict(rows[test]) - wanted[test, i]) ** 2).sum()
        models.append([Ridge(alpha).fit(rows[own], wanted[own, i]) for alpha in alphas])
    best = int(errors.argmin())
    new = rng.normal(size=(6, 5))
    expected = np.stack([model[best].predict(new) for model in models], 1)
    np.testing.assert_allclose(new @ rows.T @ found.coefficients + found.offset, expected, rtol=1e-8)
    assert found.error == pytest.approx(errors[best])


def test_baselines_and_stacking_are_fitted_to_what_is_there() -> None:
    rng = np.random.default_rng(0)
    said, targets, new = rng.normal(size=(20, 2)), rng.normal(size=(20, 2)), rng.normal(size=(4, 2))
    targets[12:, 0] = np.nan
    targets[:, 1] = np.nan
    objective = find_objective("mse")
    found = objective.predict_baselines(said, targets, new)
    alone = objective.predict_baselines(said[:12, :1], targets[:12, :1], new[:, :1])
    for name, own in found.items():
        np.testing.assert_allclose(own[:, :1], alone[name], err_msg=name)
        np.testing.assert_array_equal(own[:, 1], new[:, 1], err_msg=name)  # nothing is known of it
    columns = rng.normal(size=(3, 20, 2))
    np.testing.assert_allclose(
        objective.stack(columns, targets), objective.stack(columns[:, :12, :1], targets[:12, :1])
    )


@pytest.mark.long
def test_labels_that_are_not_known_are_left_out(small_folder: Path) -> None:
    """Of several labels each by itself, of one class a sample the sample."""
    known = (np.load("pair.npy") > 0).astype(np.float32)
    labels = known.copy()
    labels[::4, 0], labels[1] = np.nan, np.nan
    np.save("labels.npy", labels)
    multi = {**PAIR, "data.targets": "labels.npy", "cv.metric": "multilabel_log_loss"}
    assert {"10 of 78 target values are missing", "1 sample without any target is left out"} <= set(
        run("labels", **multi).notes
    )
    write_report("labels")
    objective = find_objective("multilabel_log_loss")
    chances = np.random.default_rng(0).uniform(0.1, 0.9, labels.shape)
    logits = torch.from_numpy(np.log(chances / (1 - chances)))
    there = np.arange(N) != 1
    parts = [
        -np.log(np.where(known == 1, chances, 1 - chances))[i, ~np.isnan(labels[i])].mean()
        for i in range(N)
        if there[i]
    ]
    np.testing.assert_allclose(objective.score(chances[there], labels[there]), parts, rtol=1e-6)
    losses = objective.losses(logits[there], torch.from_numpy(labels[there]).double())
    np.testing.assert_allclose(losses, parts, rtol=1e-6)
    classes = known[:, 0].astype(float)
    classes[::5] = np.nan
    np.save("classes.npy", classes)
    summary = run("classes", **{**PAIR, "data.targets": "classes.npy", "cv.metric": "log_loss"})
    assert (summary.n_samples, summary.classes) == (32, ("0", "1"))


def test_what_is_no_gap_is_refused(small_folder: Path) -> None:
    x, y = np.load("x.npy"), np.load("y.npy")
    np.save("endless.npy", np.where(np.arange(N)[:, None] == 3, np.inf, y))
    np.save("none.npy", np.full_like(y, np.nan))
    np.save("holes.npy", np.where(np.arange(N)[:, None] == 3, np.nan, x))
    raw = find_domain("raw")
    with pytest.raises(
        DataError, match=r"finite, or NaN where missing, got infinity in 1 of 40 samples of endless.npy"
    ):
        load_samples("x.npy", "endless.npy", raw)
    with pytest.raises(DataError, match=r"some sample must have a target, got NaN alone in none.npy"):
        load_samples("x.npy", "none.npy", raw)
    with pytest.raises(DataError, match=r"finite, got NaN or infinity in 1 of 40 samples of holes.npy"):
        load_samples("holes.npy", "y.npy", raw)


def test_spectra_with_gaps_are_kept_and_empty_rows_leave_their_sample_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    spectra = -rng.uniform(0.1, 0.9, (6, 3, 5)).astype(np.float32)
    spectra[1, 0, 2] = np.nan
    spectra[2, 1] = 0
    spectra[3] = np.nan
    np.save(tmp_path / "x.npy", rng.integers(0, 2, (6, 128, 128)).astype(np.uint8))
    np.save(tmp_path / "y.npy", spectra)
    samples = load_samples(str(tmp_path / "x.npy"), str(tmp_path / "y.npy"), find_domain("diffraction"))
    assert len(samples) == 4
    assert np.isnan(samples.targets).sum() == 1
    assert samples.notes[:3] == (
        "1 samples with an empty row of spectra are left out",
        "1 sample without any target is left out",
        "1 of 80 target values are missing",
    )
