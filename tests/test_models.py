"""The network against the reference implementation's answers, and files that are refused."""

import json
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

import ray_ft
from ray_ft.errors import WeightsError
from ray_ft.models import read_weights

DATA = Path(__file__).parent / "data"


def build_oracle_weights() -> dict[str, torch.Tensor]:
    shapes = json.loads((DATA / "diffraction_state_dict.json").read_text())["state_dict"]
    weights = {}
    for name, shape in shapes.items():
        draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if draw.ndim > 1:
            draw /= np.sqrt(np.prod(draw.shape[1:]))
        else:
            draw = 1 + 0.1 * draw if name.endswith("weight") else 0.1 * draw
        weights[name] = torch.tensor(draw, dtype=torch.float32)
    weights["wav_embed.lam_norm"] = torch.linspace(0, 1, 301)
    weights["wav_embed.freqs"] = 10000 ** (-torch.arange(128) / 128)
    return weights


def test_agrees_with_the_reference_implementation(tmp_path: Path) -> None:
    torch.save({"model": build_oracle_weights(), "epoch": 3}, tmp_path / "net.pt")
    network = ray_ft.load_network(tmp_path / "net.pt")
    with np.load(DATA / "diffraction_oracle.npz") as oracle:
        x = torch.from_numpy(np.unpackbits(oracle["x"], axis=-1) * 2.0 - 1).float()
        with torch.no_grad():
            np.testing.assert_allclose(network(x).numpy(), oracle["y"], atol=1e-5)


def test_the_default_size_is_the_users() -> None:
    counts = {name: p.numel() for name, p in ray_ft.DiffractionNet().named_parameters()}
    assert sum(counts.values()) == 6_416_504
    assert sum(n for name, n in counts.items() if name.startswith(("head", "spec_bias"))) == 68_024


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (print, ("boom",))

    torch.save({"model": Bomb()}, tmp_path / "bomb.pt")
    with pytest.raises(WeightsError, match="weights alone"):
        read_weights(tmp_path / "bomb.pt")


def test_differing_names_and_shapes_are_listed_both_ways(tmp_path: Path) -> None:
    weights = build_oracle_weights()
    weights["extra"] = weights.pop("head.0.bias")
    torch.save(weights, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"(?s)lacks: head.0.bias.*network lacks: extra"):
        ray_ft.load_network(tmp_path / "net.pt")
