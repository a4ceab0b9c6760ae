"""The ensemble on disk: the same predictions, and refusal of what was changed or is foreign."""

import json
from pathlib import Path

import numpy as np
import pytest

from ray_ft.config import Config
from ray_ft.cross_validation import cross_validate, rebuild_ensemble
from ray_ft.ensemble import Ensemble
from ray_ft.errors import EnsembleError


@pytest.fixture
def run(toy_config: Config, tmp_path: Path) -> Path:
    cross_validate(toy_config, tmp_path / "run", inline=True)
    return tmp_path / "run"


def test_mean_and_std_are_those_of_the_members(run: Path) -> None:
    ensemble = Ensemble.load(run)
    x = np.load("x.npy")
    members = np.stack([Ensemble(ensemble.card, ensemble.split, [s]).predict(x).mean for s in ensemble.states])
    found = ensemble.predict(x, batch_size=7)
    np.testing.assert_allclose(found.mean, members.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.std, members.std(0), rtol=1e-3, atol=1e-6)


def test_a_rebuilt_ensemble_is_the_same(run: Path) -> None:
    card = (run / "ensemble" / "card.json").read_text()
    rebuild_ensemble(run)
    assert (run / "ensemble" / "card.json").read_text() == card


def test_changed_tensors_are_refused(run: Path) -> None:
    path = run / "ensemble" / "members.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(EnsembleError, match="it was changed"):
        Ensemble.load(run)


@pytest.mark.parametrize(
    ("change", "text"), [({"format": "pickle"}, 'says "format"'), ({"version": 99}, "got version 99")]
)
def test_foreign_and_newer_cards_are_refused(run: Path, change: dict, text: str) -> None:
    path = run / "ensemble" / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EnsembleError, match=text):
        Ensemble.load(run)


def test_a_folder_without_a_card_is_no_ensemble(tmp_path: Path) -> None:
    with pytest.raises(EnsembleError, match="an ensemble is a folder with"):
        Ensemble.load(tmp_path)
