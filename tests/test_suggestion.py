"""A suggested batch: valid, without repetitions, spread over what the pool holds, and worth more than a random one."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_ft.ensemble import Ensemble
from ray_ft.ensemble.suggestion import choose_batch, suggest_samples
from ray_ft.errors import DataError

N_CLUSTERS = 10


def draw_pool(seed: int, n: int = 300, n_features: int = 50) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features in clusters of very unequal size, and disagreement unrelated to them."""
    rng = np.random.default_rng(seed)
    share = 0.6 ** np.arange(N_CLUSTERS)
    cluster = np.concatenate([np.arange(N_CLUSTERS), rng.choice(N_CLUSTERS, n - N_CLUSTERS, p=share / share.sum())])
    centres = 10 * rng.normal(size=(N_CLUSTERS, n_features))
    return centres[cluster] + rng.normal(size=(n, n_features)), rng.uniform(0.5, 1, n), cluster


@given(st.integers(0, 1000), st.integers(1, 12), st.booleans())
def test_a_batch_is_of_different_rows_in_order_of_choice(seed: int, n: int, equal: bool) -> None:
    rng = np.random.default_rng(seed)
    features = np.ones((12, 3)) if equal else rng.normal(size=(12, 3))
    disagreement = rng.exponential(size=12)
    found = choose_batch(features, disagreement, n)
    assert len(set(found.tolist())) == n
    assert set(found.tolist()) <= set(range(12))
    assert found[0] == disagreement.argmax()
    np.testing.assert_array_equal(choose_batch(features, disagreement, n), found)
    np.testing.assert_array_equal(choose_batch(features, disagreement, 12)[:n], found)


def test_of_two_that_are_the_same_one_is_chosen() -> None:
    features, disagreement, _ = draw_pool(0, n=100)
    doubled = choose_batch(np.concatenate([features, features]), np.concatenate([disagreement, disagreement]), 60)
    assert len(set((doubled % 100).tolist())) == 60


def test_a_batch_is_spread_over_clusters_where_a_random_one_is_not() -> None:
    chosen, random, highest = [], [], []
    for seed in range(20):
        features, disagreement, cluster = draw_pool(seed)
        chosen.append(len(set(cluster[choose_batch(features, disagreement, N_CLUSTERS)])))
        random.append(len(set(cluster[np.random.default_rng(seed).choice(len(cluster), N_CLUSTERS, replace=False)])))
        highest.append(len(set(cluster[disagreement.argsort()[-N_CLUSTERS:]])))
    assert min(chosen) == N_CLUSTERS
    assert max(np.mean(random), np.mean(highest)) < 6


def test_samples_on_which_the_members_disagree_come_first() -> None:
    features, disagreement, cluster = draw_pool(0)
    disagreement[cluster < 5] *= 10
    assert (cluster[choose_batch(features, disagreement, 5)] < 5).all()


@given(st.integers(0, 1000), st.floats(0.01, 100), st.floats(0.01, 100))
def test_units_do_not_matter(seed: int, scale: float, unit: float) -> None:
    features, disagreement, _ = draw_pool(seed, n=30, n_features=5)
    np.testing.assert_array_equal(
        choose_batch(scale * features, unit * disagreement, 8), choose_batch(features, disagreement, 8)
    )


@pytest.mark.parametrize("n", [0, 13])
def test_a_batch_that_the_pool_does_not_hold_is_refused(n: int) -> None:
    with pytest.raises(DataError, match=rf"one sample or more and at most the pool's 12, got {n}; ask for fewer"):
        choose_batch(np.ones((12, 3)), np.ones(12), n)


def test_a_pool_is_chosen_from_by_an_ensemble(run: Path, ray_ft_here: Callable[..., Any]) -> None:
    pool = np.random.default_rng(1).normal(size=(70, 6)).astype(np.float32)
    ensemble = Ensemble.load(run)
    found = suggest_samples(ensemble, pool, 5)
    assert len(set(found.indices.tolist())) == 5
    spread = ensemble.predict(pool).std
    np.testing.assert_allclose(found.disagreement, np.sqrt((spread**2).mean(1)), rtol=1e-4)
    assert found.indices[0] == found.disagreement.argmax()
    np.save("pool.npy", pool)
    result = ray_ft_here("suggest", "run", "--inputs", "pool.npy", "--n", "5")
    assert result.returncode == 0, result.stderr
    assert " ".join(map(str, found.indices)) in result.stdout
    rows = Path("suggestion.csv").read_text().splitlines()
    assert [int(row.split(",")[1]) for row in rows[1:]] == found.indices.tolist()
    assert Path("suggestion.png").stat().st_size > 1000
    assert "give its folder" in ray_ft_here("suggest", "pool.npy").stderr
    many = ray_ft_here("suggest", "run", "--inputs", "pool.npy", "--n", "71", "--out", "many")
    assert "at most the pool's 70, got 71" in many.stderr


def test_what_is_measured_already_is_skipped(demo_run: Path, tmp_path: Path, ray_ft_here: Callable[..., Any]) -> None:
    """Files of a user's: training samples and their images in the pool, among structures that are new."""
    with np.load(demo_run.parent / "few.npz") as archive:
        measured = np.unpackbits(archive["structure"], axis=-1)
    new = np.random.default_rng(0).integers(0, 2, (5, *measured.shape[1:]), dtype=np.uint8)
    turned = measured[5:9, ::-1, ::-1]
    almost = measured[:1].copy()
    almost[0, 3, 3] ^= 1  # another structure, if by a pixel
    np.save(tmp_path / "pool.npy", np.concatenate([measured[:10], new, turned, almost]))
    command = ("suggest", str(demo_run), "--inputs", f"{tmp_path}/pool.npy", "--out", f"{tmp_path}/next", "--n")
    result = ray_ft_here(*command, "6")
    assert result.returncode == 0, result.stderr
    assert "note: 14 of" in result.stdout
    rows = (tmp_path / "next.csv").read_text().splitlines()[1:]
    assert {int(row.split(",")[1]) for row in rows} == {10, 11, 12, 13, 14, 19}
    many = ray_ft_here(*command, "7", "--force")
    assert "not measured yet, 6 of" in many.stderr


def test_a_pool_is_known_again_within_rounding(run: Path) -> None:
    ensemble, x = Ensemble.load(run), np.load("x.npy")
    pool = np.concatenate([x, np.float32(np.round(x, 6)), x + np.float32(0.01)])
    found = suggest_samples(ensemble, pool, 3)
    assert found.known is not None
    np.testing.assert_array_equal(found.known, np.arange(90) < 60)
    assert (found.indices >= 60).all()
    old = replace(ensemble, calibration=replace(ensemble.calibration, prints=None))
    assert suggest_samples(old, pool, 3).known is None
