"""The colour router's simulator agrees with its reference and keeps the cell's symmetries."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from examples.color_router.make_dataset import CHUNK, WAVELENGTHS_NM, main, make_dataset
from examples.color_router.patterns import draw_blobs
from examples.color_router.simulator import compute_si3n4_index, simulate

ORACLE = Path(__file__).parent / "data" / "bpm_oracle.npz"
FEW_NM = (400.0, 455.0, 550.0, 700.0)


def apply_operation(cell: NDArray, transpose: bool, flips: tuple[bool, bool], halves: tuple[bool, bool]) -> NDArray:
    """Applies one of the 32 operations to axes 1 and 2; on 2 x 2 quadrants it permutes them."""
    if transpose:
        cell = cell.swapaxes(1, 2)
    for axis, (flip, half) in enumerate(zip(flips, halves, strict=True), start=1):
        if flip:
            cell = np.flip(cell, axis)
        if half:
            cell = np.roll(cell, cell.shape[axis] // 2, axis)
    return cell


BOOLS = (False, True)
OPERATIONS = list(product(BOOLS, product(BOOLS, BOOLS), product(BOOLS, BOOLS)))


@pytest.fixture(scope="module")
def blobs() -> NDArray[np.uint8]:
    return draw_blobs(300, seed=3)


def test_simulator_agrees_with_the_oracle() -> None:
    with np.load(ORACLE) as oracle:
        structures = np.unpackbits(oracle["structure"], axis=-1)
        spectra = simulate(structures, oracle["wavelength_nm"])
        expected = oracle["spectra"]
    assert spectra.dtype == np.float32
    np.testing.assert_allclose(spectra, expected, rtol=0, atol=2e-6)


def test_the_operations_are_32_and_hold_the_rotations(blobs: NDArray[np.uint8]) -> None:
    images = {apply_operation(blobs[:1], *operation).tobytes() for operation in OPERATIONS}
    assert len(images) == 32
    assert {np.rot90(blobs[:1], k, axes=(1, 2)).tobytes() for k in range(4)} <= images


@pytest.mark.parametrize("operation", OPERATIONS)
def test_simulator_commutes_with_symmetry(
    blobs: NDArray[np.uint8], operation: tuple[bool, tuple[bool, bool], tuple[bool, bool]]
) -> None:
    moved = simulate(apply_operation(blobs[:2], *operation), FEW_NM)
    expected = apply_operation(simulate(blobs[:2], FEW_NM), *operation)
    np.testing.assert_allclose(moved, expected, rtol=0, atol=2e-6)


def test_quadrants_differ_so_that_symmetry_is_not_trivial(blobs: NDArray[np.uint8]) -> None:
    assert np.ptp(simulate(blobs[:2], FEW_NM), axis=(1, 2)).min() > 1e-3


def test_shares_stay_within_the_incident_power(blobs: NDArray[np.uint8]) -> None:
    total = simulate(blobs[:40], FEW_NM).sum(axis=(1, 2))
    assert total.min() > 0.1
    assert total.max() < 1


def test_air_transmits_everything_and_a_film_its_fresnel_share() -> None:
    uniform = np.stack([np.zeros((128, 128)), np.ones((128, 128))])
    spectra = simulate(uniform, [550.0])[..., 0]
    reflected = ((compute_si3n4_index(0.55) - 1) / (compute_si3n4_index(0.55) + 1)) ** 2
    film = (1 - reflected) / (1 + reflected)
    np.testing.assert_allclose(spectra[0], np.full((2, 2), 0.25), atol=1e-6)
    np.testing.assert_allclose(spectra[1], np.full((2, 2), film / 4), atol=1e-6)


def test_index_is_that_of_silicon_nitride() -> None:
    assert compute_si3n4_index(0.6328) == pytest.approx(2.0398, abs=1e-3)


def test_a_result_does_not_depend_on_its_batch(blobs: NDArray[np.uint8]) -> None:
    together = simulate(blobs[:40], [500.0])
    np.testing.assert_allclose(simulate(blobs[39:40], [500.0]), together[39:], rtol=0, atol=1e-6)


def test_a_wrong_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(n, 128, 128\) must hold, got \(1, 64, 64\)"):
        simulate(np.zeros((1, 64, 64)), [500.0])


def test_patterns_are_binary_and_their_fill_is_in_range(blobs: NDArray[np.uint8]) -> None:
    assert blobs.shape == (300, 128, 128)
    assert blobs.dtype == np.uint8
    assert set(np.unique(blobs)) == {0, 1}
    fill = blobs.mean(axis=(1, 2))
    assert fill.min() > 0.28  # opening and closing move the fill a little
    assert fill.max() < 0.72
    assert fill.std() > 0.09  # of a uniform draw: 0.115


def test_patterns_have_no_gap_narrower_than_the_disc(blobs: NDArray[np.uint8]) -> None:
    x, y = np.mgrid[-2:3, -2:3]
    offsets = np.argwhere(x**2 + y**2 <= 2.5**2) - 2
    assert len(offsets) == 21
    air = blobs[:20] == 0
    core = np.all([np.roll(air, tuple(step), axis=(1, 2)) for step in offsets], axis=0)
    covered = np.any([np.roll(core, tuple(step), axis=(1, 2)) for step in offsets], axis=0)
    np.testing.assert_array_equal(covered, air)


def test_the_same_seed_draws_the_same_patterns() -> None:
    np.testing.assert_array_equal(draw_blobs(3, seed=7), draw_blobs(3, seed=7))
    assert (draw_blobs(3, seed=7) != draw_blobs(3, seed=8)).any()


def test_the_dataset_does_not_depend_on_the_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # main sets it: restored afterwards
    out = tmp_path / "new" / "set.npz"
    main(["--n", "6", "--seed", "5", "--workers", "1", "--out", str(out)])
    structure, spectra = make_dataset(6, seed=5, workers=2)
    with np.load(out) as saved:
        np.testing.assert_array_equal(saved["structure"], structure)
        np.testing.assert_array_equal(saved["spectra"], spectra)
        np.testing.assert_array_equal(saved["wavelength_nm"], WAVELENGTHS_NM)
    assert [file.name for file in out.parent.iterdir()] == ["set.npz"]
    assert CHUNK > 6
