"""Random draws: candidates come from the ranges, each for itself."""

from hypothesis import given
from hypothesis import strategies as st

from ray_ft.config import StrategyConfig
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.problem import list_members
from ray_ft.search.proposer import RandomProposer

STRATEGY = StrategyConfig.model_validate(
    {"train": ["*"], "lr": [1e-4, 1e-2], "epochs": [10, 20], "batch_size": [8, 16], "warmup_ratio": 0.9}
)


def build_plan(strategies: dict, n_candidates: int, seed: int) -> tuple[CandidateSpec, ...]:
    proposers = [RandomProposer(name, strategy, n_candidates, seed) for name, strategy in strategies.items()]
    return tuple(spec for proposer in proposers for spec in proposer.ask())


def test_candidate_0_is_the_middle_of_the_ranges() -> None:
    (hyper,) = build_plan({"a": STRATEGY}, 1, 0)[0].stages
    assert (round(hyper.lr, 9), hyper.epochs, hyper.batch_size) == (1e-3, 15, 12)
    assert hyper.warmup_epochs == 7, "at most half of the epochs"


@given(st.integers(0, 2**32 - 1), st.integers(1, 8))
def test_draws_lie_in_their_ranges_and_do_not_depend_on_the_others(seed: int, n_candidates: int) -> None:
    plan = build_plan({"a": STRATEGY, "b": STRATEGY}, n_candidates, seed)
    alone = build_plan({"b": STRATEGY}, n_candidates + 1, seed)
    assert plan[n_candidates:] == alone[:n_candidates]
    for spec in plan:
        (hyper,) = spec.stages
        assert hyper.lr * 1.0000001 >= 1e-4
        assert hyper.lr <= 1.0000001e-2
        assert 10 <= hyper.epochs <= 20


def test_members_are_all_folds_and_seeds_of_all_repeats() -> None:
    keys = list_members(2, 5, 3)
    assert len(set(keys)) == len(keys) == 30
    assert list(keys) == sorted(keys)


def test_a_closed_form_without_ranges_is_one_candidate() -> None:
    ridge = StrategyConfig.model_validate({"fit": "ridge", "train": ["*"]})
    assert [spec.name for spec in build_plan({"ridge": ridge, "a": STRATEGY}, 2, 0)] == ["ridge-000", "a-000", "a-001"]
