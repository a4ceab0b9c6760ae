"""The plan grows round by round: the same however it is carried out, and a run that goes on repeats nothing."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from ray_ft import cross_validation
from ray_ft.config import Config
from ray_ft.results.summary import Summary
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.proposer import Outcome, RandomProposer


class Halver:
    """Two rounds: the draws, then for each strategy half the learning rate of the best that it was told of."""

    def __init__(self, config: Config) -> None:
        self.first = RandomProposer(config.selected, 2, config.cv.seed)
        self.told: list[tuple[CandidateSpec, Outcome]] = []
        self.n_rounds = 0

    def ask(self) -> tuple[CandidateSpec, ...]:
        self.n_rounds += 1
        if self.n_rounds == 1:
            return self.first.ask()
        return tuple(map(self.halve, ("top", "last"))) if self.n_rounds == 2 else ()

    def halve(self, strategy: str) -> CandidateSpec:
        lowest = {spec: outcome.lowest for spec, outcome in self.told if spec.strategy == strategy}
        best = min(lowest, key=lambda spec: float("inf") if lowest[spec] is None else lowest[spec])
        return replace(best, index=2, stages=(replace(best.stages[0], lr=best.stages[0].lr / 2),))

    def tell(self, spec: CandidateSpec, outcome: Outcome) -> None:
        self.told.append((spec, outcome))


@pytest.fixture
def proposers(monkeypatch: pytest.MonkeyPatch) -> list[Halver]:
    """The proposers that runs make; theirs is the one above."""
    made: list[Halver] = []

    def make(prepared: cross_validation.Prepared) -> Halver:
        made.append(Halver(prepared.config))
        return made[-1]

    monkeypatch.setattr(cross_validation.Prepared, "proposer", property(make))
    return made


def read_plan(run: Path) -> list[dict]:
    return json.loads((run / "plan.json").read_text())["candidates"]


def test_a_round_is_told_in_its_order_and_recorded_before_it_is_trained(
    toy_config: Config, tmp_path: Path, proposers: list[Halver]
) -> None:
    summary = cross_validation.cross_validate(toy_config, tmp_path / "run", inline=True)
    names = [spec.name for spec, _ in proposers[0].told]
    assert names == ["top-000", "top-001", "last-000", "last-001", "top-002", "last-002"]
    assert [f"{own['strategy']}-{own['index']:03d}" for own in read_plan(tmp_path / "run")] == names
    assert sum(summary.strategies["top"].candidates.values()) == 3
    for spec, outcome in proposers[0].told:
        assert outcome.state == summary.strategies[spec.strategy].verdicts[spec.name].state


def test_a_run_that_goes_on_takes_the_recorded_rounds(
    toy_config: Config, tmp_path: Path, proposers: list[Halver]
) -> None:
    whole = cross_validation.cross_validate(toy_config, tmp_path / "whole", inline=True)
    interrupted = pytest.MonkeyPatch()
    interrupt_in(interrupted, "top-002")
    with pytest.raises(KeyboardInterrupt):
        cross_validation.cross_validate(toy_config, tmp_path / "cut", inline=True)
    interrupted.undo()
    assert len(read_plan(tmp_path / "cut")) == 6, "the second round is recorded before it is trained"
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


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_ray_goes_through_the_rounds_of_the_inline_run(
    toy_config: Config, tmp_path: Path, proposers: list[Halver]
) -> None:
    inline = cross_validation.cross_validate(toy_config, tmp_path / "inline", inline=True)
    on_ray = cross_validation.cross_validate(toy_config, tmp_path / "ray")
    assert_same(on_ray, inline)
    assert read_plan(tmp_path / "ray") == read_plan(tmp_path / "inline")
