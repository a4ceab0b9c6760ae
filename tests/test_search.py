"""The search for a strategy's best, on learners whose best is known, and when it may be called settled."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ray_ft.config import GradientHyperparameters, StrategyConfig, scale_lr
from ray_ft.search.best import BestProposer
from ray_ft.search.plan import RECIPE, CandidateSpec
from ray_ft.search.settling import Attempt, Standing, assess, measure_second_half
from ray_ft.statistics.comparison import Comparison, compare_all, mark_unsettled

ROPE = 0.01
HYPER = GradientHyperparameters(1e-3, 10, 8, 0.0, 0.0, None, 0, 10, None, "zero")


@dataclass(frozen=True)
class Learner:
    """Falls from 1 to its floor with the summed learning rate, and bounces higher the higher the rate is.

    Its loss becomes no number from a thousand times `best_lr` on.
    """

    best_lr: float
    floor: float = 0.1

    def train(self, spec: CandidateSpec) -> Attempt:
        hyper = spec.stages[-1]
        if hyper.lr > 1000 * self.best_lr:
            return Attempt(spec, "failed", np.empty((0, 1, 3)), diverged=True)
        steps = [scale_lr(10 * e + i, 10 * hyper.epochs, 0) for e in range(hyper.epochs) for i in range(10)]
        summed = np.concatenate([[0.0], np.cumsum(steps)[9::10]]) * hyper.lr / self.best_lr
        bounce = np.concatenate([[0.0], np.array(steps[9::10]) * math.sqrt(hyper.lr / self.best_lr)])
        curve = self.floor + (1 - self.floor) * np.exp(-summed / 10) + bounce * self.floor
        return Attempt(spec, "completed", curve[:, None, None] * np.linspace(0.9, 1.1, 3))

    @property
    def lowest(self) -> float:
        """By an exhaustive sweep over the rates and lengths of schedule up to 64 epochs."""
        rates, lengths = np.geomspace(1e-3, 1e3, 61) * self.best_lr, (8, 16, 32, 64)
        specs = [CandidateSpec("s", 0, (replace(HYPER, lr=lr, epochs=n),)) for lr in rates for n in lengths]
        return min(self.train(spec).lowest or math.inf for spec in specs)


def search(learner: Learner, n_candidates: int, range_lr: float, work: float = 0.5, **keys: object) -> BestProposer:
    proposer = BestProposer(
        "s", StrategyConfig.model_validate({"train": ["*"]} | keys), n_candidates, seed=0, rope=ROPE
    )
    if proposer.range_tests:
        proposer.tell_range(range_lr, work)
    while asked := proposer.ask():
        for spec in asked:
            proposer.tell(learner.train(spec))
    return proposer


@pytest.mark.parametrize("best", [-6, -3, 0])
@pytest.mark.parametrize("miss", [-1.5, 0.5, 1.5])
def test_the_best_is_found_and_bracketed_wherever_the_range_test_points(best: int, miss: float) -> None:
    learner = Learner(10**best)
    proposer = search(learner, 16, 10 ** (best + miss), fit="gradient", batch_size=8, weight_decay=0.0)
    standing = assess(proposer.attempts, ROPE)
    assert not standing.edges
    assert standing.best.lowest <= 1.1 * learner.lowest
    assert len(proposer.attempts) == 16


def test_the_first_round_is_the_recipe_and_three_rates_about_that_of_the_range_test() -> None:
    recipe = {"lr": [1e-6, 1e-4], "epochs": [2, 6]}
    proposer = BestProposer("s", StrategyConfig.model_validate({"train": ["*"]} | recipe), 8, 0, ROPE)
    proposer.tell_range(1e-2, 0.25)
    first, *ladder = proposer.ask()
    assert (first.origin, first.lr, first.n_epochs) == (RECIPE, pytest.approx(1e-5), 4)
    assert [spec.lr for spec in ladder] == pytest.approx([3e-3, 9e-3, 1e-3])
    assert {spec.n_epochs for spec in ladder} == {16}, "twice those of a step that runs the whole network"


@pytest.mark.parametrize(("work", "n_epochs"), [(1.0, 8), (0.25, 16), (0.01, 32), (0.0, 32)])
def test_cheaper_steps_begin_with_longer_schedules(work: float, n_epochs: int) -> None:
    proposer = BestProposer("s", StrategyConfig.model_validate({"train": ["*"]}), 8, 0, ROPE)
    proposer.tell_range(1e-2, work)
    assert {spec.n_epochs for spec in proposer.ask()} == {n_epochs}


def test_a_fixed_range_is_never_left_and_a_fixed_value_is_kept() -> None:
    fixed = {"lr": {"low": 1e-5, "high": 1e-4, "fixed": True}, "epochs": 6}
    proposer = search(Learner(1e-2), 8, 1e-2, **fixed)
    assert all(1e-5 <= attempt.spec.lr <= 1e-4 for attempt in proposer.attempts)
    assert {attempt.spec.n_epochs for attempt in proposer.attempts} == {6}
    standing = assess(proposer.attempts, ROPE)
    assert standing.because[0] == "best at the highest learning rate tried, 0.0001, in 3 of 3 folds"


def test_where_all_is_fixed_there_is_one_candidate() -> None:
    keys = {"lr": 1e-3, "epochs": 6, "batch_size": 8, "weight_decay": 0.0}
    proposer = search(Learner(1e-3), 8, 1e-2, **keys)
    assert [attempt.spec.origin for attempt in proposer.attempts] == [RECIPE]
    because = assess(proposer.attempts, ROPE).because
    assert because[0] == "no learning rates apart from one another were tried, but 0.001 alone"


@pytest.mark.parametrize("keys", [{}, {"lr": [1e-4, 1e-3], "epochs": [4, 8]}])
@pytest.mark.parametrize("small", [1, 2, 3, 4, 5, 6, 7])
def test_a_larger_budget_goes_on_as_if_it_had_been_so_large_from_the_start(small: int, keys: dict) -> None:
    few, many = (search(Learner(1e-2), n, 1e-2, **keys) for n in (small, 8))
    few.n_candidates = 8
    few.tell_range(1e-2, 0.5)  # for a recipe alone there was no test
    while asked := few.ask():
        for spec in asked:
            few.tell(Learner(1e-2).train(spec))
    assert [attempt.spec for attempt in few.attempts] == [attempt.spec for attempt in many.attempts]


def test_a_closed_form_is_one_candidate_and_settled() -> None:
    proposer = BestProposer("s", StrategyConfig.model_validate({"train": ["*"], "fit": "ridge"}), 8, 0, ROPE)
    assert proposer.range_tests == ()
    (spec,) = proposer.ask()
    proposer.tell(Attempt(spec, "completed", np.array([1.0, 0.5])[:, None, None] * np.ones((1, 1, 3))))
    assert proposer.ask() == ()
    assert assess(proposer.attempts, ROPE).settled


def test_all_diverge_until_a_rate_is_low_enough() -> None:
    proposer = search(Learner(1e-7), 12, 1.0)
    assert [attempt.state for attempt in proposer.attempts[:3]] == ["failed"] * 3
    assert assess(proposer.attempts, ROPE).best is not None


def attempt(lr: float, means: list[float], n_epochs: int | None = None, **more: object) -> Attempt:
    hyper = replace(HYPER, lr=lr, epochs=n_epochs or len(means) - 1)
    state = more.pop("state", "completed")
    return Attempt(CandidateSpec("s", 0, (hyper,)), state, np.array(means)[:, None, None] * np.ones((1, 1, 3)), **more)


BEST = attempt(1e-3, [1.0, 0.3, 0.25, 0.2, 0.2, 0.21])


@pytest.mark.parametrize(
    ("others", "because"),
    [
        ([attempt(1e-4, [1, 0.9]), attempt(1e-2, [1, 0.9])], ()),
        ([attempt(1e-4, [1, 0.9]), attempt(1e-2, [], 5, state="failed", diverged=True)], ()),
        ([attempt(1e-4, [1, 0.9, 0.9, 0.9], 5, state="stopped"), attempt(1e-2, [1] * 4, 5, state="stopped")], ()),
        ([attempt(1e-4, [1, 0.9]), attempt(1e-2, [1, 0.9], 5, state="stopped")], ("no higher",)),
        ([attempt(1e-4, [1, 0.9]), attempt(1e-2, [1, 0.1, 0.9, 0.9], 5, state="stopped")], ("no higher",)),
        ([attempt(1e-4, [1, 0.9]), attempt(1e-2, [], 5, state="failed")], ("no higher",)),
        ([attempt(1e-4, [1, 0.9]), attempt(1.2e-3, [1, 0.9])], ("no higher",)),
        ([attempt(1e-4, [1, 0.9]), attempt(1.1e-2, [1, 0.9])], ("no higher",)),
        ([attempt(1e-2, [1, 0.9])], ("lowest",)),
        ([], ("no learning rates apart",)),
    ],
)
def test_a_learning_rate_is_bracketed_by_worse_ones_on_both_sides(others: list, because: tuple[str, ...]) -> None:
    found = assess([BEST, *others], ROPE).because
    assert len(found) == len(because)
    assert all(word in line for word, line in zip(because, found, strict=True))


def test_where_training_does_no_good_a_rate_that_does_no_harm_brackets_it() -> None:
    harm = [attempt(lr, [1.0, 1.2, 1.3]) for lr in (1e-3, 3e-3, 3e-4)]
    assert [(edge.side, edge.lr) for edge in assess(harm, ROPE).edges] == [("lowest", 3e-4)]
    assert assess([*harm, attempt(1e-4, [1.0, 1.005, 1.2])], ROPE).settled
    nothing = attempt(1e-10, [1.0, 1.0, 1.0])
    assert [(edge.side, edge.lr) for edge in assess([nothing], ROPE).edges] == [("highest", 1e-10)]
    impatient = attempt(1e-3, [1.0, 1.2, 1.3], n_epochs=32)
    assert assess([impatient], ROPE).edges[0].side == "lowest", "none ran half of its schedule"
    assert assess(harm, ROPE).because == (
        "the pretrained network is best in 3 of 3 folds, and no learning rate was tried so low that it does no harm",
    )


def test_twice_the_epochs_at_another_rate_are_no_proof() -> None:
    longer = attempt(3e-4, [1.0, 0.9, 0.8, 0.7, 0.6, 0.55, 0.52, 0.51, 0.51, 0.51, 0.51])
    assert assess([RISING, longer, *BRACKETS], ROPE).held_back is RISING


BRACKETS = [attempt(1e-4, [1, 0.9]), attempt(1e-2, [1, 0.9])]
RISING = attempt(1e-3, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5])


def test_a_best_epoch_just_before_the_end_is_at_the_end() -> None:
    """A cosine's last epochs change little, so that rounding or noise says which of them is the best."""
    curve = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.35, 0.3501]
    assert assess([attempt(1e-3, curve), *BRACKETS], ROPE).held_back
    early = [1.0, 0.5, 0.4, 0.35, 0.34, 0.35, 0.36, 0.37, 0.38]
    assert assess([attempt(1e-3, early), *BRACKETS], ROPE).settled


def test_a_best_that_still_improves_at_its_end_is_not_settled_until_twice_the_epochs_are_no_better() -> None:
    standing = assess([RISING, *BRACKETS], ROPE)
    assert standing.held_back
    assert standing.because == (
        "still improving after 5 epochs in 3 of 3 folds: in the second half of the summed learning rate their "
        "loss fell from 1.73 times its lowest to that, 73 % of all progress",
    )
    better = attempt(1e-3, [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
    assert not assess([RISING, better, *BRACKETS], ROPE).settled
    no_better = attempt(1e-3, [1.0, 0.9, 0.8, 0.7, 0.6, 0.55, 0.52, 0.51, 0.5, 0.5, 0.5])
    assert assess([RISING, no_better, *BRACKETS], ROPE).settled


def test_progress_is_measured_over_the_summed_learning_rate() -> None:
    """A loss that falls in proportion to it has made half of its progress in each half, whatever its epochs say."""
    n = 20
    summed = np.concatenate([[0.0], np.cumsum([scale_lr(s, n * 50, 0) for s in range(n * 50)])[49::50]])
    own = attempt(1e-3, (1 - 0.5 * summed / summed[-1]).tolist())
    assert measure_second_half(own) == pytest.approx((0.5, 0.5), abs=0.01)
    late = (own.mean[n // 2] - own.mean[-1]) / (own.mean[0] - own.mean[-1])
    assert late < 0.2, "by epochs it looks flat"


def test_a_strategy_that_never_learns_is_no_candidate_for_more_epochs() -> None:
    worse = attempt(1e-3, [1.0, 1.1, 1.2])
    standing = assess([worse, *BRACKETS], ROPE)
    assert standing.second_half_share is not None
    assert measure_second_half(worse) == (0.0, 0.0)


def test_nothing_completed_is_not_settled() -> None:
    assert assess([], ROPE) == Standing(None, ("no candidate completed",))


@given(
    st.lists(st.floats(0.1, 10), min_size=10, max_size=10),
    st.floats(0.1, 10),
    st.sets(st.sampled_from("ab")),
    st.booleans(),
)
def test_no_verdict_over_a_loser_that_is_not_settled(
    scores: list[float], factor: float, unsettled: set[str], same: bool
) -> None:
    a = np.array(scores).reshape(2, 5)
    b = a * factor if same else a[:, ::-1] * factor
    (pair,) = mark_unsettled(compare_all({"a": a, "b": b}, ROPE, 0.25), unsettled)
    check_law(pair, unsettled)
    check_law(pair.seen_from("b"), unsettled)
    (settled,) = compare_all({"a": a, "b": b}, ROPE, 0.25)
    if not unsettled:
        assert pair.verdict == settled.verdict != "not settled"


def check_law(pair: Comparison, unsettled: set[str]) -> None:
    if pair.verdict == "better":
        assert pair.second not in unsettled
    if pair.verdict == "worse":
        assert pair.first not in unsettled
    if pair.verdict == "practically equal":
        assert not unsettled
