"""Reading and checking samples, and moving them with their targets."""

import numpy as np
import pytest

from ray_ft.data.folds import deal_folds
from ray_ft.data.samples import load_samples, prepare_inputs
from ray_ft.domains.diffraction import DOMAIN as DIFFRACTION
from ray_ft.domains.raw import DOMAIN as RAW
from ray_ft.errors import DataError


@pytest.fixture
def structures() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2, (6, 1, 128, 128), dtype=np.uint8)


def save(folder, **arrays) -> list[str]:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return [str(folder / f"{name}.npy") for name in arrays]


def test_rgb_becomes_quadrants_and_empty_rows_are_left_out(tmp_path, structures) -> None:
    rgb = -np.random.default_rng(1).random((6, 3, 5)).astype(np.float32) / 2
    rgb[2, 1] = rgb[4:, 2] = 0  # in the middle, and at the end
    dataset = load_samples(*save(tmp_path, x=structures, y=rgb), DIFFRACTION)
    assert len(dataset) == 3
    np.testing.assert_array_equal(dataset.targets[0], [[-rgb[0, 0], -rgb[0, 1]], [-rgb[0, 1], -rgb[0, 2]]])
    assert dataset.notes == ("3 samples with an empty row of spectra are left out",)


def test_packed_and_plain_structures_are_the_same(tmp_path, structures) -> None:
    y = np.full((6, 2, 2, 5), 0.1)
    x, packed, spectra = save(tmp_path, x=structures, packed=np.packbits(structures[:, 0], axis=-1), y=y)
    plain, unpacked = (load_samples(name, spectra, DIFFRACTION).inputs for name in (x, packed))
    np.testing.assert_array_equal(plain, unpacked)
    assert set(np.unique(plain)) == {-1.0, 1.0}


def test_targets_that_do_not_vary_are_noted(tmp_path, structures) -> None:
    same, other = (
        load_samples(*save(tmp_path, x=structures, y=np.full((6, 2, 2, 5), 0.1) + step), DIFFRACTION).notes
        for step in (0.0, np.arange(6)[:, None, None, None] / 10)
    )
    assert same[-1] == "all samples have the same targets, so there is nothing to learn from them; check data.targets"
    assert same[:-1] == other


def test_images_of_one_another_share_a_fold(tmp_path, structures) -> None:
    structures[3] = np.rot90(structures[0], axes=(-2, -1))
    structures[5] = np.roll(structures[1], 64, axis=-1)
    dataset = load_samples(*save(tmp_path, x=structures, y=np.full((6, 2, 2, 5), 0.1)), DIFFRACTION)
    assert dataset.groups[3] == dataset.groups[0]
    assert dataset.groups[5] == dataset.groups[1]
    assert len(set(dataset.groups)) == 4
    (fold_of,) = deal_folds(dataset.groups, 4, 1, 0).fold_of
    assert (fold_of[3], fold_of[5]) == (fold_of[0], fold_of[1])


def test_a_groups_column_joins_and_a_strata_column_spreads(tmp_path) -> None:
    rng = np.random.default_rng(0)
    x, y, plate, kind = save(
        tmp_path, x=rng.random((24, 3)), y=rng.random((24, 2)), plate=np.arange(24) // 2, kind=np.arange(24) // 12
    )
    dataset = load_samples(x, y, RAW, plate, kind)
    assert len(set(dataset.groups)) == 12
    splits = deal_folds(dataset.groups, 3, 1, 0, dataset.strata)
    for fold in range(3):
        held_out = splits.held_out(0, fold)
        assert abs((held_out < 12).sum() - (held_out >= 12).sum()) <= 2
        assert not set(held_out // 2) & set(splits.training(0, fold) // 2)


@pytest.mark.parametrize("column", [np.arange(24), np.arange(24.0), np.arange(24) // 2])
@pytest.mark.parametrize("n_folds", [3, 8, 24])
def test_numbers_in_a_strata_column_are_cut_so_that_folds_can_share_them(column, n_folds, tmp_path) -> None:
    x, y, strata = save(tmp_path, x=np.random.default_rng(0).random((24, 3)), y=np.zeros((24, 2)), strata=column)
    dataset = load_samples(x, y, RAW, None, strata, n_folds)
    splits = deal_folds(dataset.groups, n_folds, 1, 0, dataset.strata)
    for fold in range(n_folds):
        held_out = splits.held_out(0, fold)
        assert abs((held_out < 12).sum() - (held_out >= 12).sum()) <= 2


def test_a_strata_column_without_a_number_is_refused(tmp_path) -> None:
    column = np.r_[1.0, np.nan, np.ones(22)]
    x, y, strata = save(tmp_path, x=np.random.default_rng(0).random((24, 3)), y=np.zeros((24, 2)), strata=column)
    with pytest.raises(DataError, match=r"got NaN or infinity in .*strata\.npy \(samples 1\); fill them in"):
        load_samples(x, y, RAW, None, strata)


def test_views_move_targets_along(tmp_path, structures) -> None:
    spectra = np.random.default_rng(0).random((6, 2, 2, 5)).astype(np.float32)
    dataset = load_samples(*save(tmp_path, x=structures, y=spectra), DIFFRACTION)
    inputs, targets = dataset.move_inputs(["rot180"]), dataset.move_targets(["rot180"])
    np.testing.assert_array_equal(inputs[0], dataset.inputs)
    np.testing.assert_array_equal(inputs[1], dataset.inputs[:, :, ::-1, ::-1])
    np.testing.assert_array_equal(targets[1], spectra[:, ::-1, ::-1])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda x, y: (x * 2, y), "structures must be 0 and 1, got values from 0 to 2"),
        (lambda x, y: (x[:, :, :64], y), r"structures must have shape"),
        (lambda x, y: (x, y + 3), "shares of the incident power"),
        (lambda x, y: (x, y[:, 0]), "spectra must have shape"),
        (lambda x, y: (x, y[:0]), "none empty"),
        (lambda x, y: (x, y.astype(complex)), "real numbers"),
    ],
)
def test_bad_samples_are_refused(change, text, tmp_path, structures) -> None:
    x, y = change(structures, np.full((6, 2, 2, 5), 0.1))
    with pytest.raises(DataError, match=text):
        load_samples(*save(tmp_path, x=x, y=y), DIFFRACTION)


def test_numbers_that_float32_does_not_hold_are_refused(tmp_path) -> None:
    with pytest.raises(DataError, match=r"within 3.4e\+38, as float32, got 1e\+300 in x; use another unit"):
        prepare_inputs(np.array([[1.0], [1e300]]), RAW, "x")
    x, y = save(tmp_path, x=np.ones((24, 3)), y=np.full((24, 2), -1e39))
    with pytest.raises(DataError, match=r"got 1e\+39 in .*y\.npy"):
        load_samples(x, y, RAW)
