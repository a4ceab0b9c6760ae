"""What can be taken, as Linux and its containers say, and what is refused by it."""

import re
from pathlib import Path

import pytest

from ray_ft import Config, cross_validate
from ray_ft.backends import running
from ray_ft.backends.running import check_memory
from ray_ft.config import load_config
from ray_ft.cross_validation import prepare
from ray_ft.errors import ConfigError
from ray_ft.files import memory
from ray_ft.fitting.memory_need import BYTES_PER_MEMBER, BYTES_PER_WEIGHT, estimate_bytes


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 8 GB free, whose files can be changed."""
    for folder in ("proc/self", "cgroup/memory"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000000 kB\nMemAvailable: 8000000 kB\n")
    monkeypatch.setattr(memory, "PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "CGROUPS", tmp_path / "cgroup")
    return tmp_path


def test_what_is_free_counts_unless_a_container_allows_less(machine: Path) -> None:
    assert memory.find_available() == 8_192_000_000
    (machine / "proc/self/cgroup").write_text("0::/job/step\n")
    (machine / "cgroup/job/step").mkdir(parents=True)
    (machine / "cgroup/job/step/memory.max").write_text("max\n")
    (machine / "cgroup/job/step/memory.current").write_text("5\n")
    assert memory.find_available() == 8_192_000_000
    (machine / "cgroup/job/memory.max").write_text("3000000000\n")
    (machine / "cgroup/job/memory.current").write_text("2500000000\n")
    (machine / "cgroup/job/memory.stat").write_text("anon 1\ninactive_file 500000000\n")
    assert memory.find_available() == 1_000_000_000, "of which files that can be read again are no part"
    (machine / "cgroup/job/memory.current").write_text("4000000000\n")
    assert memory.find_available() == 0


def test_the_first_version_of_cgroups_and_a_path_of_the_host(machine: Path) -> None:
    (machine / "proc/self/cgroup").write_text("5:cpu:/x\n4:memory:/docker/0123\n")
    (machine / "cgroup/memory/memory.limit_in_bytes").write_text("2000000000")
    (machine / "cgroup/memory/memory.usage_in_bytes").write_text("500000000")
    assert memory.find_available() == 1_500_000_000


def test_a_machine_without_such_files_has_all_of_its_memory(machine: Path) -> None:
    (machine / "proc/meminfo").unlink()
    assert memory.find_available() > 2**29


def test_numbers_are_said(machine: Path) -> None:
    assert memory.describe_excess(10**9) == ""
    said = "it needs 9.0 GB of memory, of which 8.2 GB are available"
    assert memory.describe_excess(9 * 10**9) == said
    assert "more than 1,000,000,000 GB" in memory.describe_excess(10**30)


def test_an_estimate_has_members_views_and_predictions(toy_config: Config, tmp_path: Path) -> None:
    prepared = prepare(toy_config)
    n_trained = 8 * 8 + 8 + 8 * 3 + 3
    members = 6 * (n_trained * BYTES_PER_WEIGHT + BYTES_PER_MEMBER)
    assert (
        estimate_bytes(prepared.problem, prepared.strategies["top"], 4, 2)
        == members + 30 * (6 + 3) * 4 + 2 * 30 * 3 * 4
    )


def test_a_run_larger_than_memory_is_refused_before_it_trains(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config("toy.yaml", {"cv.strategies": ["top"], "cv.seeds": 500, "cv.repeats": 3})
    monkeypatch.setattr(memory, "find_available", lambda: 5 * 10**7)
    what = "got top, of 4,500 members with 99 trained parameters each, on 30 samples: it needs 99.5 MB of memory, "
    with pytest.raises(ConfigError, match=re.escape(f"{what}of which 50.0 MB are available")) as caught:
        cross_validate(config, "run", inline=True)
    assert "lower cv.seeds, cv.repeats" in str(caught.value)
    assert not Path("run").exists()


def test_candidates_that_train_at_a_time_count_together(toy_config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = prepare(toy_config)
    own = prepared.problem, prepared.strategies, toy_config.compute, {"top": 1000}
    monkeypatch.setattr(memory, "find_available", lambda: 1000)
    monkeypatch.setattr(running, "count_cpus", lambda: 4)
    check_memory(*own, 1)
    with pytest.raises(ConfigError, match="4 candidates at a time must fit into memory"):
        check_memory(*own, 6)


def test_what_trains_on_gpus_is_collected_in_the_hosts_memory(
    toy_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(toy_config)
    own = prepared.problem, prepared.strategies, toy_config.compute, {"top": 1000}
    monkeypatch.setattr(memory, "find_available", lambda: 1000)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_memory(*own, 1)
    rule = "2 candidates at a time must fit into memory.*raise compute.gpus_per_candidate"
    with pytest.raises(ConfigError, match=rule):
        check_memory(*own, 6)
