"""The example of peptides asks DeepLC's network what the package asks it; these need the package `deeplc`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("deeplc")

from deeplc import core

from examples.peptides.network import RetentionTime, choose_peptides, encode, load, read_peptides
from ray_ft.config import load_config
from ray_ft.cross_validation import prepare

CONFIG = Path(__file__).parents[1] / "examples" / "peptides" / "config.yaml"


def test_the_network_says_what_the_package_says() -> None:
    peptides = list(read_peptides()["peptide"][:40])
    with torch.no_grad():
        found = RetentionTime()(*map(torch.from_numpy, encode(peptides).values()))
    np.testing.assert_allclose(found, core.predict(peptides), rtol=0, atol=1e-3)


def test_fresh_peptides_are_the_others() -> None:
    drawn, fresh = (choose_peptides(100, 0, rest)["peptide"] for rest in (False, True))
    assert len(drawn) == 100
    assert not set(drawn) & set(fresh)
    assert set(drawn) | set(fresh) == set(read_peptides()["peptide"])


def test_the_config_is_ready_and_its_network_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(CONFIG.parents[2])
    prepared = prepare(load_config(CONFIG))
    with torch.no_grad():
        said = RetentionTime()(*map(torch.from_numpy, load()["inputs"].values())).numpy()
    np.testing.assert_allclose(prepared.zero_shot.ravel(), said, rtol=1e-4)
