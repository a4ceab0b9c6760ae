"""Verdicts of successive halving do not depend on the order of arrival."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ray_ft.backends.successive_halving import SuccessiveHalving
from ray_ft.search.plan import CandidateSpec

PLAN = [CandidateSpec("s", i, ()) for i in range(4)]
N_EPOCHS = 9
PROTECTED: dict[int, int] = {}


def judge_in_order(curves: list[list[float]], order: list[int]) -> dict[str, int | None]:
    halving, heard = (
        SuccessiveHalving(lambda spec: ("s", 2, N_EPOCHS, PROTECTED.get(spec.index, 0)), 2.0),
        [0] * len(PLAN),
    )
    halving.add(PLAN)
    for i in [*order, *(i for i in range(4) for _ in range(N_EPOCHS))]:
        name = PLAN[i].name
        if heard[i] < N_EPOCHS and halving.stopped_at(name) is None:
            heard[i] += 1
            halving.record(name, heard[i], curves[i][heard[i] - 1], final=heard[i] == N_EPOCHS)
    return {spec.name: halving.stopped_at(spec.name) for spec in PLAN}


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.floats(0, 1), min_size=N_EPOCHS, max_size=N_EPOCHS), min_size=4, max_size=4),
    st.lists(st.integers(0, 3), max_size=40),
)
def test_any_order_of_arrival_gives_the_verdicts_of_candidate_order(curves: list, order: list) -> None:
    assert judge_in_order(curves, order) == judge_in_order(curves, [])


def test_the_worse_of_two_is_stopped_at_the_first_rung_even_if_it_arrives_first() -> None:
    curves = [[0.1] * N_EPOCHS, [0.9] * N_EPOCHS, [0.05] * N_EPOCHS, [0.8] * N_EPOCHS]
    stopped = judge_in_order(curves, [1] * N_EPOCHS)
    assert stopped == {"s-000": None, "s-001": 2, "s-002": None, "s-003": 2}


def test_what_is_protected_is_stopped_at_the_first_rung_after_it_is_no_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rungs are at epochs 2, 4 and 8."""
    monkeypatch.setitem(PROTECTED, 1, 3)
    curves = [[0.1] * N_EPOCHS, [0.9] * N_EPOCHS, [0.05] * N_EPOCHS, [0.8] * N_EPOCHS]
    stopped = judge_in_order(curves, [])
    assert stopped == {"s-000": None, "s-001": 4, "s-002": None, "s-003": 2}


@pytest.mark.parametrize(("by_lowest", "stopped"), [(True, None), (False, 2)])
def test_by_its_lowest_loss_one_goes_on_that_rises_at_the_rung(by_lowest: bool, stopped: int | None) -> None:
    halving = SuccessiveHalving(lambda spec: ("s", 2, N_EPOCHS, 0), 2.0, by_lowest)
    halving.add(PLAN[:2])
    for epoch in range(1, N_EPOCHS + 1):
        halving.record("s-000", epoch, 0.2, final=epoch == N_EPOCHS)
        halving.record("s-001", epoch, 0.1 if epoch == 1 else 0.9, final=epoch == N_EPOCHS)
    assert halving.stopped_at("s-001") == stopped


def test_one_that_fails_after_its_rung_is_stopped_there_whether_it_ran_ahead_or_not() -> None:
    def judge(ahead: bool) -> int | None:
        halving = SuccessiveHalving(lambda spec: ("s", 2, N_EPOCHS, 0), 2.0)
        first, second = (spec.name for spec in PLAN[:2])
        halving.add(PLAN[:2])

        def fail() -> None:
            for epoch in (1, 2):
                halving.record(second, epoch, 0.9, final=False)
            halving.finish(second)  # it fails in the epoch after

        if ahead:
            fail()
        for epoch in range(1, N_EPOCHS + 1):
            halving.record(first, epoch, 0.1, final=epoch == N_EPOCHS)
        if not ahead:
            fail()
        return halving.stopped_at(second)

    assert judge(ahead=True) == judge(ahead=False) == 2
