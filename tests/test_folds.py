"""Folds: disjoint, complete, groups on one side, strata in equal shares, the same for the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_ft.data.folds import deal_folds, deal_inner, join_groups, limit_training
from ray_ft.errors import DataError


@given(st.integers(0, 1000), st.integers(2, 6), st.integers(1, 3))
def test_folds_are_disjoint_complete_and_keep_groups_together(seed: int, n_folds: int, n_repeats: int) -> None:
    groups = np.random.default_rng(seed).integers(0, 20, 40)
    splits = deal_folds(np.unique(groups, return_inverse=True)[1], n_folds, n_repeats, seed)
    for r in range(n_repeats):
        held_out = [splits.held_out(r, k) for k in range(n_folds)]
        assert sorted(np.concatenate(held_out)) == list(range(40))
        for k in range(n_folds):
            assert not set(groups[held_out[k]]) & set(groups[splits.training(r, k)])


def test_strata_are_shared_out_equally() -> None:
    strata = np.repeat(["a", "b"], [20, 10])
    splits = deal_folds(np.arange(30), 5, 1, 0, strata)
    for fold in range(5):
        assert sorted(strata[splits.held_out(0, fold)]) == ["a"] * 4 + ["b"] * 2


def test_classes_that_no_fold_can_share_are_refused_and_rare_ones_are_dealt() -> None:
    with pytest.raises(DataError, match="a sample for each of 5 folds, got 4 in the largest one; bin the column"):
        deal_folds(np.arange(20), 5, 1, 0, np.arange(20) // 4)
    rare = np.repeat([0, 1], [28, 2])
    splits = deal_folds(np.arange(30), 5, 1, 0, rare)
    assert sorted(rare[splits.held_out(0, k)].sum() for k in range(5)) == [0, 0, 0, 1, 1]


def test_inner_parts_too_small_for_their_classes_are_dealt_without() -> None:
    strata, dealt = np.arange(30) // 5, deal_folds(np.arange(30), 5, 1, 0, np.arange(30) // 5)
    splits = deal_inner(dealt, np.arange(30), strata)
    assert {len(splits.inner(0, k)) for k in range(5)} == {5}
    deal_inner(limit_training(dealt, np.arange(30), 6), np.arange(30), strata)


def test_the_seed_names_the_deal() -> None:
    assert deal_folds(np.arange(30), 5, 2, 1).hash == deal_folds(np.arange(30), 5, 2, 1).hash
    assert deal_folds(np.arange(30), 5, 2, 1).hash != deal_folds(np.arange(30), 5, 2, 2).hash


def test_samples_equal_in_any_column_are_one_group() -> None:
    groups = join_groups([np.array([0, 1, 2, 3]), np.array(["x", "y", "x", "z"]), np.array([5, 6, 7, 6])])
    np.testing.assert_array_equal(groups, [0, 1, 0, 1])


def test_fewer_groups_than_folds_are_refused() -> None:
    with pytest.raises(DataError, match="got 6 samples in 2 groups for 3 folds"):
        deal_folds(np.array([0, 0, 0, 1, 1, 1]), 3, 1, 0)


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(1, 2))
def test_inner_parts_are_of_the_training_part_and_keep_groups_whole(seed: int, n_folds: int, n_repeats: int) -> None:
    groups = np.repeat(np.arange(15), 2)
    dealt = deal_folds(groups, n_folds, n_repeats, seed)
    splits = deal_inner(dealt, groups)
    assert splits.hash == dealt.hash, "the folds are the same"
    for r, k in np.ndindex(n_repeats, n_folds):
        parts = [splits.held_out(r, k), splits.inner(r, k), splits.training(r, k)]
        assert sorted(np.concatenate(parts)) == list(range(30))
        assert all(len(part) for part in parts)
        assert sum(len(np.unique(groups[part])) for part in parts) == 15
        np.testing.assert_array_equal(splits.training_part(r, k), dealt.training(r, k))


@given(st.integers(0, 1000), st.integers(2, 5), st.integers(1, 10), st.integers(0, 3))
def test_smaller_training_parts_are_subsets_of_larger_ones(seed: int, n_folds: int, size: int, more: int) -> None:
    groups = np.arange(30) // 2
    dealt = deal_folds(groups, n_folds, 1, seed)
    small, large = (limit_training(dealt, groups, n) for n in (size + 1, size + 1 + more))
    for k in range(n_folds):
        assert set(small.training(0, k)) <= set(large.training(0, k)) <= set(dealt.training(0, k))
        assert len(small.training(0, k)) == (size + 1) // 2 * 2, "pairs stay whole"
        np.testing.assert_array_equal(small.held_out(0, k), dealt.held_out(0, k))


def test_training_parts_cannot_grow_nor_vanish() -> None:
    dealt = deal_folds(np.arange(30) // 2, 5, 1, 0)
    with pytest.raises(DataError, match="at most the smallest training part, 24 samples, got 25; lower it"):
        limit_training(dealt, np.arange(30) // 2, 25)
    with pytest.raises(DataError, match="at least one group of samples, got 1"):
        limit_training(dealt, np.arange(30) // 2, 1)
    with pytest.raises(DataError, match="got 4 groups in one"):
        deal_inner(deal_folds(np.arange(5), 5, 1, 0), np.arange(5))
