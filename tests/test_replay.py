"""Replayed samples: a share of each step, whose targets may be the pretrained network's; nothing is scored on them."""

from collections import Counter
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_gradient import KEYS, assert_same, build_parts, run_epoch, start, train
from torch import Tensor, nn
from toy import table

import ray_ft
from ray_ft.config import GradientHyperparameters, count_replayed, load_config
from ray_ft.cross_validation import cross_validate, prepare
from ray_ft.errors import ConfigError, DataError, RunFolderError
from ray_ft.fitting.memory_need import estimate_bytes
from ray_ft.fitting.training import Recipe, create_pack, draw_batches, predict_watched, train_epoch
from ray_ft.fitting.views import ViewBank, add_noisy_copies
from ray_ft.objectives import find_objective
from ray_ft.search.problem import MemberKey
from ray_ft.split.network import split_network

MSE = find_objective("mse")
HYPER = GradientHyperparameters(0.05, 3, 4, 0.1, 0.0, None, 1, 10, replay=0.25)
N_OWN, N_OLD = 11, 6
LEARNING = ["2.weight", "3.weight", "3.bias", "4.weight", "4.bias"]  # a bias before batch norm has no gradient
FEW = {"search.candidates": 1, "search.method": "guide", "compute.packing": "looped"}


@pytest.fixture
def old(toy_folder: Path) -> Path:
    """Samples of before beside the toy's, with one of another shape, one with gaps and one too few."""
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(20, 6)).astype(np.float32), rng.normal(size=(20, 3)).astype(np.float32)
    gaps = y.copy()
    gaps[3, 1] = np.nan
    np.savez(toy_folder / "old.npz", x=x, y=y, wide=np.ones((20, 7)), flat=y[:, 0], few=y[:19], gaps=gaps)
    return toy_folder / "old.npz"


def build_bank(n_views: int = 1) -> tuple[nn.Module, Tensor, Tensor, Any, ViewBank]:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)).eval()
    x, y = torch.randn(n_views, N_OWN + N_OLD, 4), torch.randn(n_views, N_OWN + N_OLD, 2)
    split = split_network(network, LEARNING, x[0])
    return network, x, y, split, ViewBank(split.compute_features(x.flatten(0, 1)), y, n_replayed=N_OLD)


@pytest.mark.parametrize(("share", "n"), [(0.0, 0), (None, 0), (0.01, 1), (0.25, 3), (0.5, 8), (0.9, 72)])
def test_a_replayed_sample_weighs_about_as_one_of_the_batch(share: float | None, n: int) -> None:
    assert count_replayed(8, share) == n


def test_a_step_has_its_own_samples_as_without_replay_and_any_of_the_replayed_ones_in_any_view() -> None:
    _, x, _, split, clean = build_bank(n_views=2)
    bank = add_noisy_copies(clean, split, x, 0.1, 2, seed=1)
    hyper = replace(HYPER, replay=0.5)
    (member,) = create_pack([MemberKey(0, 0, 0)], (1,), split, hyper, [np.arange(2, N_OWN)]).members
    seen = Counter[int]()
    for epoch in range(40):
        plain = draw_batches(member, Recipe(split, clean, replace(hyper, replay=0.0), MSE), epoch)
        for own, batch in zip(plain, draw_batches(member, Recipe(split, bank, hyper, MSE), epoch), strict=True):
            assert (batch.rows >= 2 * (N_OWN + N_OLD)).all(), "where there is noise, every one is noisy"
            rows = batch.rows % (2 * (N_OWN + N_OLD))
            assert torch.equal(rows[:-4], own.rows)
            assert torch.equal(batch.targets, clean.targets.flatten(0, 1)[rows])
            assert len({row % (N_OWN + N_OLD) for row in rows[-4:].tolist()}) == 4, "different samples"
            seen.update(rows[-4:].tolist())
    assert seen.keys() == {view * (N_OWN + N_OLD) + N_OWN + i for view in range(2) for i in range(N_OLD)}
    assert max(seen.values()) < 2 * min(seen.values())


def train_plainly(network: nn.Module, recipe: Recipe, member: Any, x: Tensor, y: Tensor) -> nn.Module:
    """Add the two means of a step's losses as anybody would; a row tells by its number where it is from."""
    network = deepcopy(network).requires_grad_(False)
    own = [network.get_parameter(name).requires_grad_() for name in LEARNING]
    hyper, share = recipe.hyper, recipe.hyper.replay or 0.0
    optimizer = torch.optim.AdamW(own, lr=hyper.lr, weight_decay=hyper.weight_decay)
    network.train()
    for epoch in range(hyper.epochs):
        for batch in draw_batches(member, recipe, epoch):
            optimizer.param_groups[0]["lr"] = batch.lr
            optimizer.zero_grad()
            losses, is_old = ((network(x[batch.rows]) - y[batch.rows]) ** 2).mean(1), batch.rows >= N_OWN
            ((1 - share) * losses[~is_old].mean() + share * losses[is_old].mean()).backward()
            nn.utils.clip_grad_norm_(own, recipe.grad_clip)
            optimizer.step()
    return network.eval()


@pytest.mark.parametrize("share", [0.1, 0.6])
@pytest.mark.parametrize("packed", [False, True])
def test_members_are_those_of_a_plain_loop(packed: bool, share: float) -> None:
    network, x, y, split, bank = build_bank()
    recipe = Recipe(split, bank, replace(HYPER, replay=share), MSE, grad_clip=0.5)
    keys = [MemberKey(0, 0, seed) for seed in range(2)]
    pack = create_pack(keys, (1,), split, recipe.hyper, [np.arange(9), np.arange(2, N_OWN)])
    for epoch in range(HYPER.epochs):
        for part in pack.divide(2 if packed else 1):
            train_epoch(part, recipe, epoch)
    predicted = predict_watched(pack, recipe, lambda key: np.arange(N_OWN))
    for member, answer in zip(pack.members, predicted, strict=True):
        plain = train_plainly(network, recipe, member, x[0], y[0])
        torch.testing.assert_close(answer, plain(x[0, :N_OWN]).detach(), rtol=1e-4, atol=1e-5)
        for name, tensor in plain.state_dict().items():
            if name in member.state:
                torch.testing.assert_close(member.state[name].detach(), tensor, rtol=1e-4, atol=1e-5)


def test_members_are_the_same_packed_looped_alone_and_after_an_interruption(old: Path) -> None:
    source = {"data__replay": {"inputs": "old.npz::x", "targets": "old.npz::y"}}
    parts = build_parts(old.parent, "all", **source)
    looped = train(parts, KEYS, "looped")
    assert_same(train(parts, KEYS, "packed"), looped, 1e-5)
    assert_same(train(parts, KEYS[5:6], "looped"), {KEYS[5]: looped[KEYS[5]]}, 0)
    whole, late = start(parts, KEYS, "looped"), start(parts, KEYS[1::2], "looped")
    whole.run_epoch(0)
    late.load(deepcopy(whole.save()))
    expected = run_epoch(whole, 1)
    for key, predicted in run_epoch(late, 1).items():
        np.testing.assert_array_equal(predicted, expected[key])
    plain = train(build_parts(old.parent, "all"), KEYS, "looped")
    assert not np.array_equal(plain[KEYS[0]][0], looped[KEYS[0]][0])


@pytest.mark.parametrize("metric", ["mse", "log_loss"])
def test_without_targets_they_are_what_the_pretrained_network_says(metric: str, old: Path) -> None:
    if metric == "log_loss":
        np.save("y.npy", np.load("y.npy").argmax(1))
    prepared = prepare(load_config("toy.yaml", {"data.replay.inputs": "old.npz::x", "cv.metric": metric}))
    with torch.no_grad():
        said = prepared.pretrained.build()(torch.from_numpy(np.load(old)["x"]))
    expected = said.softmax(1) if metric == "log_loss" else said
    assert prepared.problem.replayed is not None
    np.testing.assert_allclose(prepared.problem.replayed.targets, expected.numpy(), rtol=1e-5, atol=1e-6)


def test_from_python_it_is_what_a_config_says(old: Path) -> None:
    from toy_network import Toy

    torch.manual_seed(0)
    network, strategies = Toy(), {"last": {"train": ["head.3.*"], "lr": 0.01, "epochs": 3}}
    torch.save(network.state_dict(), "toy.pt")
    own = {"model.checkpoint": "toy.pt", "data.replay.inputs": "old.npz::x", "strategies": strategies}
    config = load_config("toy.yaml", own | {"cv.candidates": 1, "cv.seeds": 1, "data.replay.targets": "old.npz::y"})
    arrays = np.load(old)
    found = ray_ft.cross_validate(
        network, (np.load("x.npy"), np.load("y.npy")), replay=(arrays["x"], arrays["y"]), strategies=strategies,
        folds=3, seeds=1, options=FEW, inline=True, out="given", progress=False,
    )  # fmt: skip
    assert table(found.summary) == table(cross_validate(config, "named", inline=True))


def test_replay_keeps_what_was_learned_before(tmp_path: Path) -> None:
    """The new samples contradict those of before, and stand elsewhere: a network may know both."""
    rng = np.random.default_rng(0)
    before, x = rng.normal(size=(600, 2)).astype(np.float32), rng.normal(size=(40, 2)).astype(np.float32)
    x[:, 1] += 3

    def tell(x: np.ndarray) -> np.ndarray:
        return np.sin(2 * x[:, :1]).astype(np.float32)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(300):
        optimizer.zero_grad()
        ((network(torch.from_numpy(before)) - torch.from_numpy(tell(before))) ** 2).mean().backward()
        optimizer.step()
    fresh = rng.normal(size=(500, 2)).astype(np.float32)

    def measure(replay: Any) -> tuple[float, float, float]:
        found = ray_ft.cross_validate(
            network, (x, 1 - tell(x)), strategies={"all": {"train": "*", "lr": 3e-3, "epochs": 30, "patience": 99}},
            objective="regression", folds=4, seeds=1, replay=replay, options=FEW, inline=True, progress=False,
        )  # fmt: skip
        error = float(((found.ensemble.predict(fresh).mean - tell(fresh)) ** 2).mean())
        return error, found.summary.strategies["all"].score_mean, found.summary.baselines["zero_shot"].score_mean

    forgotten, _, zero_shot = measure(None)
    for kept, own, _ in (measure((before, tell(before))), measure((before, None))):
        assert kept < 0.4 * forgotten
        assert own < 0.1 * zero_shot


def test_nothing_but_training_knows_of_replayed_samples(old: Path) -> None:
    own = {"strategies.closed": {"fit": "ridge", "train": ["head.3.*"]}, "cv.strategies": ["top", "closed"]}
    replay = {"data.replay.inputs": "old.npz::x", "data.replay.targets": "old.npz::y"}
    own |= {"cv.candidates": 1, "cv.seeds": 1}
    plain, prepared = (prepare(load_config("toy.yaml", values)) for values in (own, own | replay))
    assert prepared.notes == (
        "20 samples of old.npz::x are replayed with the targets of old.npz::y; nothing is scored on them",
        "closed: fitted in closed form to the samples alone, so nothing is replayed there",
    )
    needed = [estimate_bytes(each.problem, each.strategies["top"], 4, 1) for each in (plain, prepared)]
    assert needed[1] - needed[0] == 20 * (6 + 3) * 4
    without, summary = (
        cross_validate(load_config("toy.yaml", own | more), out, inline=True)
        for more, out in (({}, "plain"), (replay, "run"))
    )
    assert (summary.n_samples, summary.data_hash, summary.splits_hash) == (30, without.data_hash, without.splits_hash)
    assert summary.strategies["closed"].scores == without.strategies["closed"].scores
    assert summary.strategies["top"].scores != without.strategies["top"].scores
    with np.load("old.npz") as arrays:
        np.savez("old.npz", **{**arrays, "y": arrays["y"] + 1})
    with pytest.raises(RunFolderError, match="the data have changed since"):
        cross_validate(load_config("toy.yaml", own | replay), "run", inline=True)


def test_the_share_is_a_quarter_unless_it_is_said(old: Path) -> None:
    def list_shares(**values: Any) -> set[Any]:
        own = {key.replace("__", "."): value for key, value in values.items()}
        first = prepare(load_config("toy.yaml", own)).first_round
        return {spec.stages[-1].replay for spec in first}

    replay = {"data__replay__inputs": "old.npz::x", "cv__strategies": ["top"]}
    assert list_shares() == {None}
    assert list_shares(**replay) == {0.25}
    assert list_shares(**replay, training__replay=0.4) == {0.4}
    assert list_shares(**replay, strategies__top__replay=0) == {0.0}
    drawn = list_shares(**replay, strategies__top__replay=[0.1, 0.5], cv__candidates=4)
    assert len(drawn) == 4
    assert all(0.1 <= share <= 0.5 for share in drawn)


@pytest.mark.parametrize(
    ("replay", "said"),
    [
        ({"inputs": "old.npz::wide"}, r"form of data.inputs, \(6,\) for a sample, got \(7,\) in old.npz::wide"),
        ({"inputs": "old.npz::x,y"}, r"form of data.inputs, \(6,\) for a sample, got \(9,\)"),
        ({"inputs": "old.npz::x", "targets": "old.npz::few"}, "equally many samples, got 20 .* and 19"),
        ({"inputs": "old.npz::x", "targets": "old.npz::flat"}, r"data.targets, \(3,\) .* got \(\)"),
        ({"inputs": "old.npz::x", "targets": "old.npz::gaps"}, "got NaN in 1 of 20 .* leave these out"),
        ({"inputs": "none.npz"}, "a data file must exist, got none.npz"),
        ({"targets": "old.npz::y"}, "data.replay.inputs: missing"),
        ({"inputs": "old.npz::x", "target": "y"}, "data.replay.target: unknown key; did you mean targets"),
    ],
)
def test_samples_of_another_form_are_refused(replay: dict[str, str], said: str, old: Path) -> None:
    with pytest.raises((ConfigError, DataError), match=said):
        prepare(load_config("toy.yaml", {"data.replay": replay}))


def test_labelled_samples_of_the_run_are_not_replayed_as_they_are_held_out(old: Path) -> None:
    own = {"inputs": "x.npy", "targets": "y.npy"}
    with pytest.raises(DataError, match=r"must be none of the run's own, .* got 30 of 30 in x\.npy"):
        prepare(load_config("toy.yaml", {"data.replay": own}))
    replayed = prepare(load_config("toy.yaml", {"data.replay": {"inputs": "x.npy"}})).problem.replayed
    assert replayed is not None, "the network's own answers tell nothing of the targets"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"training.replay": 1.0}, "training.replay: it should be less than 1"),
        ({"training.replay": 0.2}, "training.replay: it needs data.replay, got none; name samples there, or leave it"),
        ({"strategies.top.replay": [0, 0.2]}, "strategies.top.replay: it needs data.replay, got none"),
        (
            {"strategies.closed": {"fit": "ridge", "train": "*", "replay": 0.2}},
            "closed.replay: it is no key of fit: ridge",
        ),
        ({"data.replay": {"inputs": "x.npy"}, "data.collate": "own:collate"}, "unequal shapes are not replayed"),
    ],
)
def test_a_share_that_cannot_be_is_refused(values: dict[str, Any], said: str, toy_folder: Path) -> None:
    with pytest.raises(ConfigError, match=said):
        load_config("toy.yaml", values)


def test_a_command_says_what_is_replayed_and_refuses_another_shape(old: Path, ray_ft_here: Callable[..., Any]) -> None:
    checked = ray_ft_here("check", "-c", "toy.yaml", "--set", "data.replay.inputs=old.npz::x")
    assert checked.returncode == 0, checked.stderr
    assert "20 samples of old.npz::x are replayed with what the pretrained network says" in " ".join(
        checked.stdout.split()
    )
    refused = ray_ft_here("cv", "-c", "toy.yaml", "--set", "data.replay.inputs=old.npz::wide", "--out", "run")
    assert refused.returncode == 2
    assert "replayed inputs must have the form of data.inputs" in " ".join(refused.stderr.split())
    assert not Path("run").exists()


def test_answers_of_a_head_that_is_new_are_none(old: Path) -> None:
    own = {"model.new_head": True, "data.replay.inputs": "old.npz::x"}
    with pytest.raises(DataError, match="replayed with a new head needs targets, got none"):
        prepare(load_config("toy.yaml", own))


@pytest.mark.parametrize("replay", [np.ones((3, 6)), "old.npz", (1, 2, 3)])
def test_from_python_it_is_a_pair(replay: Any) -> None:
    with pytest.raises(DataError, match=r"what is replayed must be \(x, y\), or \(x, None\)"):
        ray_ft.cross_validate(nn.Linear(2, 1), (np.ones((4, 2)), np.ones(4)), replay=replay, objective="mse")


@pytest.mark.long
@pytest.mark.ray
def test_workers_of_ray_replay_what_this_process_does(old: Path) -> None:
    own = {"data.replay.inputs": "old.npz::x", "cv.strategies": ["last"], "cv.candidates": 1}
    config = load_config("toy.yaml", own | {"compute.workers_per_candidate": 2, "compute.cpus_per_candidate": 2})
    found = cross_validate(config, "on_ray")
    assert table(found) == table(cross_validate(load_config("toy.yaml", own), "here", inline=True))
