"""Stages against plain loops, however their members are trained; interrupted, searched, and reduced to an ensemble."""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_ridge import PlainRidge, search_plainly
from test_search import HYPER, ROPE, Learner
from torch import Tensor, nn
from toy import table

from ray_ft.config import Config, StrategyConfig, load_config
from ray_ft.cross_validation import Prepared, cross_validate, prepare
from ray_ft.data.randomness import name_stream
from ray_ft.ensemble import Ensemble
from ray_ft.ensemble.export import EnsembleModule
from ray_ft.errors import ConfigError, StrategyError
from ray_ft.fitting.candidate import run_members
from ray_ft.fitting.fitter import FitSettings, JoinedFitter
from ray_ft.fitting.preparation import PreparedStrategy, prepare_strategy
from ray_ft.fitting.stages import StagedFitter
from ray_ft.fitting.starting import start_fitter
from ray_ft.results.records import load_predictions
from ray_ft.runs.folder import RunFolder
from ray_ft.search.best import OPTUNA, BestProposer
from ray_ft.search.plan import CandidateSpec, assign_search
from ray_ft.search.problem import MemberKey
from ray_ft.search.settling import Attempt, assess

CPU = torch.device("cpu")
NO_GRADIENT = "body.0.bias"  # before batch norm, so that it would have but rounding, which Adam blows up
GRADIENT = {"lr": 1e-2, "epochs": 3, "batch_size": 6, "weight_decay": 0.05, "patience": 9}
LAST, HEAD = {"train": ["head.3.*"], **GRADIENT}, {"train": ["head.*"], "head_dropout": 0.0, **GRADIENT}
ALL = {"train": ["*"], "freeze": [NO_GRADIENT], "head_dropout": 0.0, **GRADIENT}
BODY, FIRST = {**ALL, "freeze": [NO_GRADIENT, "head.*"]}, {"train": ["body.0.weight"], **GRADIENT}
RIDGE_LAST, RIDGE_HEAD = {"fit": "ridge", "train": ["head.3.*"]}, {"fit": "ridge", "train": ["head.*"]}
STRATEGIES = {
    "probe_then_all": [LAST, ALL],
    "gradually": [LAST, HEAD, ALL],
    "body_then_last": [BODY, {**LAST, "batch_size": 19}],  # of 20: the last batch is a single sample
    "head_then_first": [HEAD, FIRST],
    "ridge_then_all": [RIDGE_LAST, ALL],
    "ridge_targets": [{**RIDGE_LAST, "onto": "targets"}, HEAD, ALL],
    "ridge_beside": [RIDGE_HEAD, ALL],
}


def load(**strategies: Any) -> Config:
    values = {"strategies": {name: {"stages": stages} for name, stages in strategies.items()}, "cv.candidates": 1}
    return load_config("toy.yaml", values)


def start(name: str) -> tuple[Prepared, PreparedStrategy, CandidateSpec]:
    prepared = prepare(load(**{name: STRATEGIES[name]}))
    (spec,) = prepared.first_round
    return (
        prepared,
        prepare_strategy(prepared.problem, prepared.pretrained, prepared.strategies[name], "float32", CPU),
        spec,
    )


def deal_plainly(stream: list[int], key: MemberKey, samples: np.ndarray, size: int, normed: bool) -> Iterator[Any]:
    """Deal the batches of an epoch after the other, from the stream of random numbers that a stage has."""
    for epoch in range(GRADIENT["epochs"]):
        rng = np.random.default_rng([*stream, key.repeat, key.fold, key.seed, epoch])
        rng.integers(2**62)
        rows = rng.permutation(samples)
        ends = list(range(size, len(rows), size))
        if normed and ends and len(rows) - ends[-1] == 1:
            ends.pop()  # batch norm has no variance of one sample
        yield np.split(rows, ends)


def descend_plainly(network: nn.Module, stage: dict, epochs: Iterator[Any], trained: set[str], y: Tensor) -> None:
    """Train as anybody would; what is frozen, batch norm too, stays in eval mode."""
    own = [parameter for name, parameter in network.named_parameters() if name in trained]
    optimizer = torch.optim.AdamW(own, lr=stage["lr"], weight_decay=stage["weight_decay"])
    x, step = torch.from_numpy(np.load("x.npy")), 0
    network.eval()
    network.body[1].train("body.1.weight" in trained)
    for batches in epochs:
        for rows in batches:
            rate = 0.5 * (1 + math.cos(math.pi * step / (len(batches) * stage["epochs"])))
            optimizer.param_groups[0]["lr"] = stage["lr"] * rate
            optimizer.zero_grad()
            ((network(x[rows]) - y[rows]) ** 2).mean().backward()
            nn.utils.clip_grad_norm_(own, 1.0)
            optimizer.step()
            step += 1
    network.eval()


def solve_plainly(network: nn.Module, stage: dict, samples: np.ndarray) -> tuple[PlainRidge, np.ndarray]:
    """Fit scikit-learn's ridge regression to what a linear layer reads; also return what it adds to the answers."""
    x, y = torch.from_numpy(np.load("x.npy")), np.load("y.npy")
    with torch.no_grad():
        read = network.head[:3](network.body(x)) if stage["train"] == ["head.3.*"] else network.body(x)
        features, said = read.double().numpy(), network(x).double().numpy()
    said *= stage.get("onto") != "targets"
    plain, _ = search_plainly(features[samples], said[samples], (y - said)[samples], samples)
    return plain, plain.predict(features, said)


def train_plainly(network: nn.Module, name: str, key: MemberKey, samples: np.ndarray, all_trained: list) -> Any:
    """Go through the stages; return what the network says of all samples, and its tensors by name."""
    network, y = deepcopy(network).eval(), torch.from_numpy(np.load("y.npy"))
    beside = torch.zeros_like(y)
    for number, (stage, trained) in enumerate(zip(STRATEGIES[name], all_trained, strict=True), start=1):
        if stage.get("fit") == "ridge":
            plain, found = solve_plainly(network, stage, samples)
            if stage["train"] == ["head.3.*"]:
                gain = torch.from_numpy((stage.get("onto") != "targets") + plain.slopes)
                with torch.no_grad():
                    added = torch.from_numpy(np.stack([fit.coef_[:-1] for fit in plain.fits]))
                    network.head[3].weight.copy_(gain[:, None] * network.head[3].weight + added)
                    offsets = torch.tensor([float(fit.intercept_) for fit in plain.fits])
                    network.head[3].bias.copy_(gain * network.head[3].bias + offsets)
            else:
                beside = torch.from_numpy(found).float()
            continue
        stream = name_stream(0, f"{name}-000" if number == 1 else f"{name}-000/{number}")
        normed = "body.1.weight" in trained
        epochs = deal_plainly(stream, key, samples, stage["batch_size"], normed)
        descend_plainly(network, stage, epochs, set(trained), y - beside)
    with torch.no_grad():
        tensors = dict((*network.named_parameters(), *network.named_buffers()))
        return network(torch.from_numpy(np.load("x.npy"))) + beside, tensors


@pytest.mark.long
@pytest.mark.parametrize("name", STRATEGIES)
def test_members_are_those_of_a_plain_loop_over_the_stages(toy_folder: Path, name: str) -> None:
    """One after the other, and packed."""
    prepared, own, spec = start(name)
    splits, keys = prepared.problem.splits, prepared.problem.keys
    trained = [stage.trained for stage in prepared.strategies[name].stages]
    tolerance = 3e-4 if "ridge" in name else 2e-5  # a closed form is solved in other ways
    network = prepared.pretrained.build()
    plain = {key: train_plainly(network, name, key, splits.training(*key.place), trained) for key in keys[::5]}
    for packing in ("looped", "packed"):
        fitter = start_fitter(prepared.problem, own, spec, keys, FitSettings(packing=packing), CPU)
        assert isinstance(fitter, StagedFitter)
        for epoch in range(spec.n_epochs):
            fitter.run_epoch(epoch)
        assert not fitter.has_drifted()
        assert fitter.describe().training.startswith(packing)
        fitter.take_snapshots(np.ones((1, 3), bool))
        states, predicted = fitter.collect_snapshots(), fitter.predict()
        for key, (said, tensors) in plain.items():
            np.testing.assert_allclose(predicted[key], said[splits.held_out(*key.place)].numpy(), atol=tolerance)
            for each in states[key].keys() & tensors.keys():
                torch.testing.assert_close(states[key][each], tensors[each].detach(), rtol=tolerance, atol=tolerance)
            assert {each for of_stage in trained for each in of_stage} <= states[key].keys()


def run(prepared: Prepared, own: PreparedStrategy, spec: CandidateSpec, out: str, n_fitters: int, stop: int) -> Path:
    """Run a candidate until an epoch, with its members in several fitters; return its folder."""
    problem, settings = prepared.problem, FitSettings(packing="looped")
    fitters = [start_fitter(problem, own, spec, problem.keys[i::n_fitters], settings, CPU) for i in range(n_fitters)]

    def report(epoch: int, mean: float, final: bool) -> None:
        if epoch == stop:
            raise KeyboardInterrupt

    joined = JoinedFitter(lambda question: [question(fitter) for fitter in fitters])
    folder = RunFolder(Path(out))
    with suppress(KeyboardInterrupt):
        run_members(problem, folder, assign_search(spec, problem, 2), joined, report, checkpoint_every=1)
    return folder.candidate(spec.name).root


@pytest.mark.parametrize(
    ("name", "stops"), [("gradually", (1, 3, 4, 8)), ("ridge_beside", (1, 2)), ("ridge_targets", (1, 5))]
)
def test_an_interruption_in_any_stage_changes_no_bit(toy_folder: Path, name: str, stops: tuple[int, ...]) -> None:
    parts = start(name)
    whole = run(*parts, "whole", 1, 99)
    for n_fitters, stop in enumerate(stops, start=1):
        cut = run(*parts, "cut", n_fitters, stop)
        assert not (cut / "result.json").exists()
        assert (cut / "checkpoint.pt").exists(), sorted(path.name for path in cut.iterdir())
    run(*parts, "cut", 1, 99)
    for file in ("history.npz", "oof.npz"):
        with np.load(whole / file) as one, np.load(cut / file) as other:
            assert all(np.array_equal(one[key], other[key]) for key in one)
    one, other = load_file(whole / "members.safetensors"), load_file(cut / "members.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_patience_ends_no_candidate_before_its_last_stage(toy_folder: Path) -> None:
    """A first stage whose first epoch is its best goes to its end, and then the last stage may be impatient."""
    first = {**LAST, "lr": 3.0, "patience": 1, "epochs": 4}
    cross_validate(load(harmed=[first, {**HEAD, "lr": 3.0, "epochs": 40, "patience": 2}]), "run", inline=True)
    means = np.load("run/candidates/harmed-000/history.npz")["losses"].mean((1, 2, 3))
    assert means[1] > means[0]
    assert 4 + 2 <= len(means) - 1 < 44
    best = max(4, 1 + int(means[1:].argmin()))
    assert len(means) - 1 == best + 2


MEMBERS = {
    "layer": STRATEGIES["ridge_then_all"],
    "beside": STRATEGIES["ridge_beside"],
    "rbf": [{**RIDGE_HEAD, "kernel": "rbf"}, HEAD],
    "later": STRATEGIES["body_then_last"],
}


@pytest.mark.long
def test_an_ensemble_says_what_its_members_said(toy_folder: Path) -> None:
    """Whatever the stage at which they stopped, and beside members of another strategy; and so does its export."""
    values = {f"strategies.{name}.stages": stages for name, stages in MEMBERS.items()}
    names = [*MEMBERS, "last"]
    more = {"cv.strategies": names, "cv.candidates": 1, "ensemble.strategies": names, "ensemble.method": "uniform"}
    summary = cross_validate(load_config("toy.yaml", values | more), "run", inline=True, report=True)
    assert not any("differs" in note for note in summary.ensemble.notes)
    ensemble, x = Ensemble.load("run"), np.load("x.npy")
    fold_of = ensemble.calibration.fold_of[0]
    members = ensemble.predict_members(x, symmetric=False)[0]
    for name, own in zip(names, members, strict=True):
        blind = load_predictions(RunFolder(Path("run")), f"{name}-000")[0]
        for seed in range(2):
            np.testing.assert_allclose(own[0, fold_of, seed, np.arange(30)], blind[seed], atol=5e-5)
    exported = torch.export.export(EnsembleModule(ensemble), (torch.from_numpy(x),)).module()(torch.from_numpy(x))
    np.testing.assert_allclose(exported[0], ensemble.predict(x).mean, atol=1e-5)
    stopped = {epoch for name in MEMBERS for epoch in summary.strategies[name].stop_epochs[0]}
    assert min(stopped) <= 1 < max(stopped), "some stopped in the first stage and some in the second"


@pytest.mark.ray
@pytest.mark.slow  # minutes: each of its assignments starts processes
def test_a_run_on_ray_with_two_workers_a_candidate_is_that_of_one_process(toy_folder: Path) -> None:
    stages = [{"train": ["head.3.*"], "epochs": 2}, {"train": ["head.*"], "epochs": 3}]
    values = {
        "strategies": {"probe": {"stages": stages}, "beside": {"stages": [RIDGE_HEAD, HEAD]}},
        "search.method": "best",
        "cv.candidates": 4,
    }
    inline = cross_validate(load_config("toy.yaml", values), "inline", inline=True)
    workers = {"compute.workers_per_candidate": 2}
    assert table(cross_validate(load_config("toy.yaml", values | workers), "ray")) == table(inline)
    tests = sorted(path.name for path in Path("ray/candidates").glob("*range*"))
    assert tests == ["probe-range", "probe-range-2"], "that of the other strategy is fixed"
    assert any("of the last of its 2 stages" in note for note in inline.notes)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ([LAST, {**LAST, "train": ["hed.*"]}], "strategy s, stage 2: each pattern must match a parameter, got hed.*"),
        ([{**LAST, "freeze": ["*"]}, ALL], "strategy s, stage 1: some parameter must learn"),
        ([LAST, {"trian": ["*"]}], "strategies.s.stage 2.train: missing"),
        ([LAST, {**ALL, "epochs": 0}], "strategies.s.stage 2.epochs: it should be greater than or equal to 1, got 0"),
        ([LAST, {**LAST, "train": []}], r"strategies.s.stage 2.train: it should have one entry or more, got \[\]"),
        ([LAST, {"train": ["*"]}], "strategies.s.stage 2.lr: missing; search.method: guide draws from it"),
        ([ALL, RIDGE_LAST], "strategies.s: fit: ridge must be the first stage, .* got it as stage 2 of 2; move it"),
        ([{**RIDGE_HEAD, "onto": "targets"}, ALL], "strategy s: fit: ridge with onto: targets .* say onto: residual"),
    ],
)
def test_a_stage_that_cannot_be_is_refused_by_its_number(toy_folder: Path, stages: list, message: str) -> None:
    with pytest.raises((ConfigError, StrategyError), match=message):
        prepare(load(s=stages))


def test_check_and_plan_show_the_stages(toy_folder: Path, ray_ft_here: Any) -> None:
    words = ["-c", "toy.yaml", "--set", f"strategies.probe.stages={json.dumps([RIDGE_LAST, ALL])}"]
    said = ray_ft_here("check", *words).stdout
    assert "probe: 163 trained parameters; stage 1: train head.3.*, fit ridge; stage 2: train * without" in said, said
    said = ray_ft_here("plan", *words).stdout
    assert "probe-000, stage 1" in said
    assert "probe-000, stage 2" in said


def search(n_candidates: int, **first: Any) -> BestProposer:
    """Search two stages of a learner whose first has a best learning rate of 1e-2, too, and half of the progress."""
    stages = [{"train": ["head.*"], "batch_size": 8, "weight_decay": 0.0, **first}]
    stages.append({"train": ["*"], "batch_size": 8, "weight_decay": 0.0})
    proposer = BestProposer("s", StrategyConfig.model_validate({"stages": stages}), n_candidates, seed=0, rope=ROPE)
    for spec in proposer.range_tests:
        proposer.tell_range(3e-2, 0.25, len(spec.stages) - 1)
    while asked := proposer.ask():
        for spec in asked:
            proposer.tell(train(spec))
    return proposer


def train(spec: CandidateSpec) -> Attempt:
    first, second = (Learner(1e-2).train(replace(spec, stages=(own,))).guide for own in spec.stages)
    return Attempt(spec, "completed", np.concatenate([first, second[1:] * first[-1]]))


def test_the_learning_rate_of_an_earlier_stage_is_bracketed_after_that_of_the_last() -> None:
    proposer = search(12)
    first = [attempt.spec.stages for attempt in proposer.attempts[:3]]
    assert len({stages[0] for stages in first}) == 1, "the first round varies the last stage"
    assert len({stages[1].lr for stages in first}) == 3
    standing = assess(proposer.attempts, ROPE, [0])
    assert not standing.edges
    rates = sorted({attempt.spec.stages[0].lr for attempt in proposer.attempts})
    best = standing.best.spec.stages[0].lr
    assert rates[0] * 1.5 <= best <= rates[-1] / 1.5
    drawn = [attempt.spec.stages for attempt in proposer.attempts if attempt.spec.origin == OPTUNA]
    assert all(len({stages[i].lr for stages in drawn}) == len(drawn) > 1 for i in (0, 1)), "Optuna varies both"


def test_an_earlier_learning_rate_that_was_never_varied_is_named_unless_the_config_fixes_it() -> None:
    proposer = search(3)
    reason = "its best candidate has 0.009 in stage 1, where no higher rate near it was tried"
    assert reason in assess(proposer.attempts, ROPE, [0]).because
    fixed = search(8, lr=1e-2, epochs=4)
    assert {attempt.spec.stages[0].lr for attempt in fixed.attempts} == {1e-2}
    assert [len(spec.stages) for spec in fixed.range_tests] == [2]
    assert not any("stage 1" in reason for reason in assess(fixed.attempts, ROPE).because)


def test_what_is_said_of_epochs_is_said_of_the_last_stage() -> None:
    """A candidate that still improves at the end of its last stage; and one whose last stage does harm."""
    stages = (replace(HYPER, epochs=4), replace(HYPER, epochs=4))
    rising = np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])[:, None, None] * np.ones((1, 1, 3))
    because = assess([Attempt(CandidateSpec("s", 0, stages), "completed", rising)], ROPE).because
    assert because[-1].startswith("still improving after 4 epochs of the last stage in 3 of 3 folds")
    harmed = np.array([1.0, 0.9, 0.8, 0.7, 0.6, 0.7, 0.8, 0.9, 0.9])[:, None, None] * np.ones((1, 1, 3))
    harms = [
        Attempt(CandidateSpec("s", i, (stages[0], replace(HYPER, epochs=4, lr=lr))), "completed", harmed)
        for i, lr in enumerate((1e-3, 3e-3))
    ]
    assert assess(harms, ROPE).because == (
        "what precedes the last stage is best in 3 of 3 folds, and no learning rate was tried so low that it does no "
        "harm",
    )
