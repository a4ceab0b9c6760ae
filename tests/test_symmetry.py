"""The group of the square cell, and the one function that moves a tensor."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from ray_ft.domains.diffraction import DOMAIN
from ray_ft.domains.diffraction.symmetry import OPERATIONS, Operation, generate_group, move

GROUP = generate_group(list(OPERATIONS))


def move_by_numpy(operation: Operation, grid: np.ndarray) -> np.ndarray:
    grid = grid.T if operation.transpose else grid
    grid = grid[:: -1 if operation.flip[0] else 1, :: -1 if operation.flip[1] else 1]
    return np.roll(grid, [half * rolled for half, rolled in zip((4, 4), operation.roll, strict=True)], (0, 1))


def test_there_are_32_operations_and_rot180_gives_two() -> None:
    assert len(GROUP) == 32
    assert len(generate_group(["rot180"])) == 2
    assert len(generate_group(["flip_x", "flip_y"])) == 4


@given(st.sampled_from(GROUP))
def test_a_tensor_moves_as_an_array_does(operation: Operation) -> None:
    grid = np.arange(64).reshape(8, 8)
    np.testing.assert_array_equal(move(operation, torch.tensor(grid), (-2, -1)), move_by_numpy(operation, grid))


@given(st.sampled_from(GROUP), st.sampled_from(GROUP))
def test_composition_is_one_after_the_other(a: Operation, b: Operation) -> None:
    grid = torch.arange(64).reshape(8, 8)
    assert move(a @ b, grid, (-2, -1)).equal(move(a, move(b, grid, (-2, -1)), (-2, -1)))


def test_views_restore_what_they_move_and_begin_with_the_identity() -> None:
    spectra = torch.rand(3, 2, 2, 5)
    views = DOMAIN.list_views(DOMAIN.operations)
    assert views[0].move_targets(spectra).equal(spectra)
    for view in views:
        assert view.restore_targets(view.move_targets(spectra)).equal(spectra)
