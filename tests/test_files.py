"""What ships beside the code: configs load, the cluster file is valid by Ray's own check, versions agree."""

import re
from pathlib import Path

import pytest
import yaml

import ray_ft
from ray_ft.config import load_config

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_configs_are_there() -> None:
    assert len(CONFIGS) > 0


@pytest.mark.parametrize("path", [None, *CONFIGS], ids=str)
def test_every_config_loads(path: Path | None) -> None:
    assert set(load_config(path).selected) == {"head", "decoder_head", "full", "spec_bias"}


@pytest.mark.filterwarnings("ignore")
def test_cluster_file_is_valid() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load((ROOT / "cluster.yaml").read_text())))


def test_changelog_opens_with_this_version() -> None:
    versions = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == ray_ft.__version__
