"""The plan grows round by round: the same however it is carried out, and a run that goes on repeats nothing."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from toy import table

from ray_ft import cross_validation
from ray_ft.config import Config, load_config
from ray_ft.results.summary import Summary
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.proposer import RandomProposer
from ray_ft.search.settling import Attempt


class Halver(RandomProposer):
    """Two rounds: the draws, then half the learning rate of the best that it was told of."""

    def ask(self) -> tuple[CandidateSpec, ...]:
        if not self.attempts:
            return super().ask()[:2]
        if len(self.attempts) > 2:
            return ()
        best = min(self.attempts, key=lambda attempt: attempt.lowest or float("inf")).spec
        return (replace(best, index=len(self.attempts), stages=(replace(best.stages[0], lr=best.stages[0].lr / 2),)),)


@pytest.fixture
def proposers(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Halver]]:
    """The proposers that runs make; theirs are those above."""
    return use_halver(monkeypatch)


def use_halver(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Halver]]:
    made: list[dict[str, Halver]] = []

    def make(prepared: cross_validation.Prepared) -> dict[str, Halver]:
        selected, seed = prepared.config.selected, prepared.config.cv.seed
        made.append({name: Halver(name, strategy, 2, seed) for name, strategy in selected.items()})
        return made[-1]

    monkeypatch.setattr(cross_validation.Prepared, "proposers", property(make))
    return made


def read_plan(run: Path) -> list[dict]:
    return json.loads((run / "plan.json").read_text())["candidates"]


def test_a_round_is_told_in_its_order_and_recorded_before_it_is_trained(
    toy_config: Config, tmp_path: Path, proposers: list[dict[str, Halver]]
) -> None:
    summary = cross_validation.cross_validate(toy_config, tmp_path / "run", inline=True)
    told = {name: [attempt.spec.name for attempt in own.attempts] for name, own in proposers[0].items()}
    assert told == {name: [f"{name}-{i:03d}" for i in range(3)] for name in ("top", "last")}
    names = [f"{own['strategy']}-{own['index']:03d}" for own in read_plan(tmp_path / "run")]
    assert names == [*told["top"], *told["last"]]
    assert sum(summary.strategies["top"].candidates.values()) == 3
    for own in proposers[0].values():
        for attempt in own.attempts:
            assert attempt.state == summary.strategies[own.name].verdicts[attempt.spec.name].state
            check_curve(attempt)


def check_curve(attempt: Attempt) -> None:
    """A curve begins with the pretrained network, which is the same for all."""
    assert attempt.guide.shape[1:] == (1, 3)
    assert len(attempt.guide) <= attempt.spec.n_epochs + 1


def test_a_run_that_goes_on_takes_the_recorded_rounds(
    toy_config: Config, tmp_path: Path, proposers: list[dict[str, Halver]]
) -> None:
    whole = cross_validation.cross_validate(toy_config, tmp_path / "whole", inline=True)
    interrupted = pytest.MonkeyPatch()
    interrupt_in(interrupted, "top-002")
    with pytest.raises(KeyboardInterrupt):
        cross_validation.cross_validate(toy_config, tmp_path / "cut", inline=True)
    interrupted.undo()
    indices = [own["index"] for own in read_plan(tmp_path / "cut") if own["strategy"] == "top"]
    assert indices == [0, 1, 2], "the second round is recorded before it is trained"
    late = cross_validation.cross_validate(toy_config, tmp_path / "cut", inline=True)
    assert read_plan(tmp_path / "cut") == read_plan(tmp_path / "whole")
    assert_same(late, whole)


def interrupt_in(monkeypatch: pytest.MonkeyPatch, candidate: str) -> None:
    """As Ctrl-C in the first epoch of a candidate."""
    from ray_ft.backends.progress import Display

    shown = Display.show_epoch

    def show(self: Display, name: str, epoch: int, mean: float) -> None:
        shown(self, name, epoch, mean)
        if name == candidate:
            raise KeyboardInterrupt

    monkeypatch.setattr(Display, "show_epoch", show)


def assert_same(found: Summary, expected: Summary, names: Sequence[str] = ("top", "last")) -> None:
    for name in names:
        assert found.strategies[name].scores == expected.strategies[name].scores
        assert found.strategies[name].candidates == expected.strategies[name].candidates
    assert found.ensemble.score == expected.ensemble.score


ON_A_CLUSTER = """
import ray
from ray.cluster_utils import Cluster
from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate

node = {"num_cpus": 1, "node_ip_address": "127.0.0.1", "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args=node)
try:
    cluster.add_node(**node)
    values = {"compute.address": cluster.address, "compute.workers_per_candidate": 2}
    cross_validate(load_config("toy.yaml", {"cv.strategies": ["top"], "cv.candidates": 1} | values), "run")
    ray.init(cluster.address, log_to_driver=False)
    actors = ray._private.state.actors().values()  # those that have ended too
    print(*{actor["Address"]["NodeID"] for actor in actors if actor["ActorClassName"] == "Worker"})
finally:
    ray.shutdown()
    cluster.shutdown()
"""


@pytest.mark.ray
@pytest.mark.slow
def test_both_nodes_of_a_cluster_train_a_candidate_to_what_it_is_inline(toy_folder: Path) -> None:
    """The ensemble is reduced by a task there."""
    config = load_config("toy.yaml", {"cv.strategies": ["top"], "cv.candidates": 1})
    expected = cross_validation.cross_validate(config, "inline", inline=True)
    env = os.environ | {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(toy_folder)}  # else a head takes a user's token
    command = [sys.executable, "-W", "ignore", "-c", ON_A_CLUSTER]
    result = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert result.returncode == 0, result.stderr[-3000:]
    assert len(result.stdout.splitlines()[-1].split()) == 2, "the candidate had workers on both nodes"
    found = Summary.load("run")
    assert table(found) | {"ensemble": None} == table(expected) | {"ensemble": None}
    assert found.ensemble.score == pytest.approx(expected.ensemble.score, rel=1e-6)
    cards = [json.loads((toy_folder / name / "ensemble/card.json").read_text()) for name in ("inline", "run")]
    assert cards[0]["files"]["members.safetensors"] == cards[1]["files"]["members.safetensors"]
