"""Progress without a terminal: plain lines, and a time left that goes with what is left to do."""

import io

from rich.console import Console

from ray_ft.backends.progress import Display
from ray_ft.config import StrategyConfig
from ray_ft.search.plan import Assignment, assign_range_test
from ray_ft.search.problem import MemberKey, list_members
from ray_ft.search.proposer import RandomProposer

STRATEGY = StrategyConfig.model_validate({"train": ["*"], "lr": 1e-3, "epochs": 10})
PLAN = [
    Assignment(spec, spec.name, list_members(1, 5, 3))
    for name in ("head", "full")
    for spec in RandomProposer(name, STRATEGY, 1, 0).ask()
]


def test_lines_name_candidate_epoch_and_best() -> None:
    text = io.StringIO()
    with Display(Console(file=text, width=200), "mse", {"head": 1, "full": 100}) as display:
        display.add(PLAN)
        display.show_epoch("head-000", 3, 0.5)
        display.show_epoch("head-000", 4, 0.75)
        display.show_end("head-000", "completed")
    assert text.getvalue() == "[1 of 2 candidates so far, 0 s] head-000 completed after 4 epochs, best mse so far 0.5\n"


def test_what_is_no_candidate_is_not_counted_as_one_nor_as_the_best() -> None:
    text = io.StringIO()
    (spec, *_) = (own.spec for own in PLAN)
    later = Assignment(spec, "head-000-r0-f1-e4", (MemberKey(0, 1, 1),), until=4)
    with Display(Console(file=text, width=200), "mse", {"head": 1, "full": 100}) as display:
        display.add([assign_range_test(spec), PLAN[0], later])
        display.show_end("head-range", "completed")
        display.show_epoch("head-000", 1, 0.5)
        display.show_epoch(later.name, 4, 0.1)
        display.show_end(later.name, "completed")
    first, last = text.getvalue().splitlines()
    assert first == "[0 of 1 candidates so far, 0 s] head: range test completed"
    *_, said = last.partition("] ")
    assert said == "head-000: further seeds of fold 1 completed after 4 epochs, best mse so far 0.5"


def test_the_time_left_weighs_epochs_by_their_cost() -> None:
    display = Display(Console(quiet=True), "mse", {"head": 1, "full": 4})
    display.add(PLAN)
    display.show_epoch("full-000", 5, 0.5)
    assert display.estimate_left(60.0) == 60 * (4 * 5 + 10) / 20
    display.show_end("full-000", "stopped")
    assert display.estimate_left(60.0) == 60 * 10 / 20


def test_the_live_table_has_the_lowest_mean_and_its_learning_rate() -> None:
    text = io.StringIO()
    display = Display(Console(quiet=True), "mse", {"head": 1, "full": 100})
    display.add(PLAN)
    display.show_epoch("head-000", 1, 0.5)
    display.show_epoch("head-000", 2, 0.75)
    Console(file=text, width=200).print(display.render())
    (row,) = (line.split() for line in text.getvalue().splitlines() if line.startswith("head "))
    assert row == ["head", "0/1", "2/10", "0.5", "1.0e-03", "head-000"]
    display.show_end("head-000", "completed")
    for settled, said in ((False, ["not yet"]), (True, ["yes"]), (None, [])):
        display.show_standing("head", settled)
        text = io.StringIO()
        Console(file=text, width=200).print(display.render())
        (row,) = (line.split("  ") for line in text.getvalue().splitlines() if line.startswith("head "))
        assert [cell.strip() for cell in row if cell.strip()][5:] == [*said, "done so far"]
