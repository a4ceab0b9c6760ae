"""What is done to an ensemble without training, and which ensemble is built, against plain loops."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ray_ft.config import load_config
from ray_ft.cross_validation import prepare
from ray_ft.data.folds import deal_folds
from ray_ft.ensemble import Ensemble
from ray_ft.ensemble.choosing import Judge, list_options, pick_option
from ray_ft.ensemble.improving import gather_weights, interpolate, predict_columns, pull_back
from ray_ft.ensemble.weights import blend
from ray_ft.objectives import find_objective
from ray_ft.results.records import gather_columns, load_judged, load_splits, score_strategies
from ray_ft.runs.folder import RunFolder
from ray_ft.search.problem import Problem


def open_toy(run: Path) -> tuple[Ensemble, Judge]:
    config = load_config(run.parent / "toy.yaml", {"cv.strategies": ["top", "last"], "cv.repeats": 2})
    return Ensemble.load(run), Judge(prepare(config).problem, 0.01)


def read_pretrained(run: Path) -> Mapping[str, torch.Tensor]:
    """The weights as they were before anything was trained."""
    return prepare(load_config(run.parent / "toy.yaml", {"cv.strategies": ["top"]})).pretrained.build().state_dict()


def scale(ensemble: Ensemble, weights: Mapping[str, torch.Tensor], share: float) -> Ensemble:
    """Move each weight to so many times the way from its pretrained value to what was trained."""
    states = {
        strategy: {name: weights[name] * (1 - share) + own * share for name, own in members.items()}
        for strategy, members in ensemble.states.items()
    }
    return replace(ensemble, states=states)


def test_what_the_members_say_of_unseen_samples_is_what_they_said_in_training(run: Path) -> None:
    ensemble, judge = open_toy(run)
    splits, folder = load_splits(RunFolder(run)), RunFolder(run)
    scores = score_strategies(folder, *load_judged(folder), splits, judge.problem.n_seeds)
    (name,) = ensemble.card.strategies
    told = gather_columns(folder, name, scores[name], splits)
    np.testing.assert_allclose(predict_columns(ensemble, judge.problem), told, atol=1e-5)


def test_weights_are_moved_between_the_pretrained_and_the_trained_ones(run: Path) -> None:
    ensemble, judge = open_toy(run)
    shares = np.random.default_rng(0).choice([0.25, 0.5, 1.0], judge.problem.by_fold)
    moved, weights = interpolate(ensemble, read_pretrained(run), shares), read_pretrained(run)
    for strategy, own in ensemble.states.items():
        for name, tensor in own.items():
            start = weights[name]
            for i, member in enumerate(ensemble.card.members):
                wanted = torch.lerp(start, tensor[i], float(shares[member.repeat, member.fold]))
                torch.testing.assert_close(moved.states[strategy][name][i], wanted)


def believe(judge: Judge, ensemble: Ensemble) -> Judge:
    """Take what the blind members say for the truth, but for a little noise."""
    said = blend(predict_columns(ensemble, judge.problem), gather_weights(ensemble), judge.splits).mean(0)
    targets = said + 0.01 * np.random.default_rng(0).normal(size=said.shape)
    return replace(judge, problem=replace(judge.problem, samples=replace(judge.problem.samples, targets=targets)))


def test_members_that_went_four_times_too_far_are_pulled_back(run: Path) -> None:
    ensemble, judge = open_toy(run)
    weights = read_pretrained(run)
    ensemble = scale(ensemble, weights, 10.0)  # the toy has learnt next to nothing
    judge, far = believe(judge, ensemble), scale(ensemble, weights, 4.0)
    pulled = pull_back(judge, far, weights, predict_columns(far, judge.problem), None)
    assert pulled.tried["pulled_pair"].verdict == "better"
    back, own = (predict_columns(each, judge.problem) for each in (pulled.ensemble, ensemble))
    np.testing.assert_allclose(back, own, atol=1e-4)
    np.testing.assert_allclose(pulled.columns, back, atol=1e-5)
    blind = blend(own, gather_weights(ensemble), judge.splits)
    assert pulled.ensemble.card.pulled_shares == (0.25,) * judge.problem.by_fold[0] * judge.problem.by_fold[1]
    assert pulled.tried["pulled_score"] == pytest.approx(judge.score(blind), rel=1e-2)


def test_members_that_are_right_stay_as_they_are(run: Path) -> None:
    ensemble, judge = open_toy(run)
    judge, plain = believe(judge, ensemble), predict_columns(ensemble, judge.problem)
    weights = read_pretrained(run)
    kept = pull_back(judge, ensemble, weights, plain, None)
    assert kept.ensemble is ensemble
    assert kept.tried["pulled_pair"].verdict != "better"
    assert pull_back(judge, ensemble, weights, plain, False).tried == {}
    assert pull_back(judge, ensemble, {}, plain, None).tried == {}, "what a closed form solves was nothing before"


def test_the_share_of_a_fold_does_not_know_its_targets(run: Path) -> None:
    ensemble, judge = open_toy(run)
    plain, problem = predict_columns(ensemble, judge.problem), judge.problem
    targets = problem.samples.targets.copy()
    targets[judge.splits.held_out(0, 1)] += 100
    changed = replace(judge, problem=replace(problem, samples=replace(problem.samples, targets=targets)))
    first, second = (pull_back(each, ensemble, read_pretrained(run), plain, True).ensemble for each in (judge, changed))
    own = [i for i, member in enumerate(ensemble.card.members) if (member.repeat, member.fold) == (0, 1)]
    for strategy, members in first.states.items():
        for name, tensor in members.items():
            torch.testing.assert_close(tensor[own], second.states[strategy][name][own], rtol=0, atol=0)


def build_judge(targets: np.ndarray, problem: Problem) -> Judge:
    samples = replace(
        problem.samples, targets=targets, inputs=np.zeros((len(targets), 1), np.float32), groups=np.arange(len(targets))
    )
    splits = deal_folds(np.arange(len(targets)), 5, 2, 0)
    return Judge(replace(problem, samples=samples, splits=splits, objective=find_objective("mse")), 0.01)


@pytest.mark.parametrize("helps", [True, False])
def test_a_mix_of_all_strategies_is_taken_where_it_is_better_beyond_noise(run: Path, helps: bool) -> None:
    """Errors of two strategies that have nothing to do with one another cancel; those that are the same do not."""
    rng, (_, judge) = np.random.default_rng(0), open_toy(run)
    targets = rng.normal(size=(100, 3))
    judge = build_judge(targets, judge.problem)
    errors = rng.normal(size=(2, 1, 2, 100, 3))
    columns = {"one": targets + errors[0], "other": targets + (errors[1] if helps else 1.02 * errors[0])}
    options = dict(list_options(judge, columns, ("one",), mixed=True))
    picked = pick_option("auto", judge.compare({name: own.blind for name, own in options.items()}))
    if not helps:
        assert picked == "uniform"
        return
    assert picked in ("greedy of all strategies", "stacked of all strategies")
    assert options[picked].used == ("one", "other")
    half = judge.score((columns["one"] + columns["other"])[0] / 2)
    assert judge.score(options[picked].blind) == pytest.approx(half, rel=0.02)
    assert set(dict(list_options(judge, columns, ("one",), mixed=False))) == {"uniform", "greedy", "stacked", "single"}
