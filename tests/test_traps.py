"""Ways in which a cross-validation goes wrong without a word: each is caught, or cannot happen."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate, prepare, rebuild_ensemble
from ray_ft.data.folds import deal_folds
from ray_ft.errors import RunFolderError
from ray_ft.objectives import find_objective
from ray_ft.objectives.regression import fit_gain_offset
from ray_ft.results.baselines import score_baselines
from ray_ft.results.records import load_history, load_predictions
from ray_ft.runs.folder import RunFolder


def load(folder: Path, **options: object):
    values = {"cv.strategies": ["top"], "cv.candidates": 1}
    return load_config(folder / "toy.yaml", values | {key.replace("__", "."): value for key, value in options.items()})


@pytest.mark.parametrize("options", [{"cv__protocol": "nested"}, {"training__epochs": 1}], ids=["nested", "one_epoch"])
def test_held_out_labels_reach_nothing_that_predicts_them(toy_folder: Path, options: dict) -> None:
    config = load(toy_folder, **options)
    splits = prepare(config).problem.splits
    cross_validate(config, toy_folder / "a", inline=True)
    y = np.load("y.npy")
    held_out = splits.held_out(0, 1)
    y[held_out] = np.random.default_rng(1).normal(size=y[held_out].shape)
    np.save("y.npy", y)
    cross_validate(config, toy_folder / "b", inline=True)
    first, second = (load_predictions(RunFolder(toy_folder / name), "top-000") for name in "ab")
    np.testing.assert_array_equal(first[:, :, held_out], second[:, :, held_out])
    assert not np.array_equal(first, second), "the other folds do learn from them"


def test_a_fold_that_is_missing_is_named(toy_folder: Path) -> None:
    run = RunFolder(toy_folder / "run")
    cross_validate(load(toy_folder), run.root, inline=True)
    prepared = prepare(load(toy_folder))
    history = load_history(run, prepared.first_round[0].name, prepared.problem.splits)
    assert history is not None
    history.losses[:, 0, 1, prepared.problem.splits.held_out(0, 2)] = np.nan
    np.savez(run.candidate("top-000").history, losses=history.losses)
    with pytest.raises(RunFolderError, match=r"without those of repeat 0, fold 2, seed 1; remove .*top-000"):
        rebuild_ensemble(run.root, trust=True)
    run.candidate("top-000").history.write_bytes(b"PK")
    with pytest.raises(RunFolderError, match="missing or damaged"):
        rebuild_ensemble(run.root, trust=True)


def test_an_image_of_a_sample_stays_on_its_side(tmp_path: Path) -> None:
    demo = Path(load_config().data.inputs.partition("::")[0])
    with np.load(demo) as archive:
        structures, spectra = archive["structure"][:20], archive["spectra"][:20]
    turned = np.packbits(np.unpackbits(structures[:3], axis=-1)[:, ::-1, ::-1], axis=-1)
    np.savez(tmp_path / "d.npz", x=np.concatenate([structures, turned]), y=np.concatenate([spectra, spectra[:3]]))
    config = load_config(None, {"data.inputs": f"{tmp_path}/d.npz::x", "data.targets": f"{tmp_path}/d.npz::y"})
    prepared = prepare(config)
    fold_of = prepared.problem.splits.fold_of[0]
    assert fold_of[:3] == fold_of[20:]
    assert any("3 samples are images of another" in note for note in prepared.problem.samples.notes)


def test_a_scaler_fitted_on_all_data_would_be_seen() -> None:
    """An outlier in the held-out fold: the shipped baseline does not know of it, one scaled by all data does."""
    rng = np.random.default_rng(3)
    zero_shot = rng.normal(size=(30, 4))
    targets = 2 * zero_shot + rng.normal(0, 0.1, (30, 4))
    splits = deal_folds(np.arange(30), 5, 1, 0)
    train, held_out = splits.training(0, 2), splits.held_out(0, 2)
    changed = zero_shot.copy()
    changed[held_out] *= 100

    def predict_plain(x: np.ndarray, scaled_on: np.ndarray) -> np.ndarray:
        scaler = StandardScaler().fit(x[scaled_on])
        fit = Ridge(alpha=1.0).fit(scaler.transform(x[train]), targets[train])
        return fit.predict(scaler.transform(zero_shot[train]))

    gains = [fit_gain_offset(x[train], targets[train])[0] for x in (zero_shot, changed)]
    np.testing.assert_array_equal(*gains)
    everything = np.arange(30)
    assert np.array_equal(predict_plain(zero_shot, train), predict_plain(changed, train))
    assert not np.allclose(predict_plain(zero_shot, everything), predict_plain(changed, everything))
    scores = [score_baselines(find_objective("mse"), x, targets, splits)["gain_offset"] for x in (zero_shot, changed)]
    gain, offset = fit_gain_offset(changed[train], targets[train])
    expected = ((gain * changed[held_out] + offset - targets[held_out]) ** 2).mean()
    assert scores[1][0, 2] == pytest.approx(expected)
