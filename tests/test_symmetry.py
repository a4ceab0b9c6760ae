"""The group of the square cell."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ray_ft.domains.symmetry import OPERATIONS, apply_operation, generate_group

GROUP = generate_group(list(OPERATIONS))


def test_there_are_32_operations_and_rot180_gives_two() -> None:
    assert len(GROUP) == 32
    assert len(generate_group(["rot180"])) == 2
    assert len(generate_group(["flip_x", "flip_y"])) == 4


@given(st.sampled_from(GROUP), st.sampled_from(GROUP))
def test_composition_is_one_after_the_other(a, b) -> None:
    grid = np.arange(64).reshape(8, 8)
    one_by_one = apply_operation(a, apply_operation(b, grid, (-2, -1)), (-2, -1))
    np.testing.assert_array_equal(apply_operation(a @ b, grid, (-2, -1)), one_by_one)
