"""The reference of the config: it has every key, says what each is for, and the page is of the code as it is."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from pydantic import BaseModel

from ray_ft.config.reference import find_entries, find_section, list_chapters, write_page
from ray_ft.config.sections import Config
from ray_ft.errors import ConfigError

PAGE = Path(__file__).parents[1] / "docs" / "config.md"


def list_keys(section: type[BaseModel], place: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        inner = find_section(field)
        keys += [f"{place}{name}"] if inner is None or place else []
        keys += list_keys(inner, f"{place}{name}.") if inner else []
    return keys


def test_every_key_is_told_with_its_purpose() -> None:
    told = [entry for chapter in list_chapters() for entry in chapter.entries]
    assert {entry.key for entry in told} >= set(list_keys(Config)) - {"strategies"}
    assert not [entry.key for entry in told if not entry.help or not entry.form]
    assert not [entry.key for entry in told if not entry.help.endswith(".")]


def test_the_page_is_that_of_the_code() -> None:
    assert PAGE.read_text() == write_page(), "make it anew: python -m ray_ft.config.reference > docs/config.md"


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("cv.folds", ["cv.folds (whole number, 5 by default): Number of parts that are held out in turn."]),
        ("folds", ["cv.folds (whole number, 5 by default): Number of parts that are held out in turn."]),
        ("strategies.mine.views", ["strategies.NAME.views (range, 2 by default): Views of a sample in an epoch"]),
        ("views", ["training.views (whole number): Views", "strategies.NAME.views (range, 2 by default): Views"]),
        ("strategies.mine.adapter.rank", ["strategies.NAME.adapter.rank (whole number): Rank of what lora adds"]),
    ],
)
def test_a_key_is_found(key: str, expected: list[str], ray_ft_here: Callable[..., CompletedProcess[str]]) -> None:
    lines = ray_ft_here("config", key).stdout.splitlines()
    assert len(lines) == len(expected)
    assert all(line.startswith(begin) for line, begin in zip(lines, expected, strict=True))


def test_a_section_is_all_its_keys_and_nothing_is_all() -> None:
    assert {entry.key for entry in find_entries("loggers")} == {
        "loggers.tensorboard",
        "loggers.mlflow",
        "loggers.wandb",
    }
    assert len(find_entries("")) > 90


def test_a_key_of_a_stage_is_that_of_a_strategy() -> None:
    assert find_entries("strategies.mine.stages.0.lr") == find_entries("strategies.mine.lr")


def test_a_word_that_is_no_key_finds_the_keys_that_tell_of_it() -> None:
    assert [entry.key for entry in find_entries("standardised_mse")] == ["cv.metric"]
    assert [entry.key for entry in find_entries("crossfit")] == ["cv.protocol"]


def test_a_key_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"got cv.fold; did you mean cv.folds"):
        find_entries("cv.fold")


def test_the_command_says_its_release(ray_ft_here: Callable[..., CompletedProcess[str]]) -> None:
    assert ray_ft_here("--version").stdout == f"ray-ft {version('ray-ft')}\n"
