"""The network against the reference implementation's answers, and files that are refused."""

import json
import zlib
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import ray_ft
from ray_ft.config import load_config
from ray_ft.errors import WeightsError
from ray_ft.files.hashes import hash_tensors
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


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.complex64, torch.bool, torch.int64]
)
def test_tensors_of_every_type_have_a_name_by_content(dtype: torch.dtype) -> None:
    one, other = torch.zeros(2, 3).to(dtype), torch.ones(2, 3).to(dtype)
    names = [hash_tensors({"a": tensor}) for tensor in (one, one.clone(), other, one.flatten(), one[0, 0], one[:0])]
    assert names[0] == names[1]
    assert len(set(names)) == 5


def test_a_name_is_that_of_the_values_and_not_of_how_they_lie() -> None:
    tensor = torch.randn(3, 2, dtype=torch.complex64)
    assert hash_tensors({"a": tensor.mT.conj()}) == hash_tensors({"a": tensor.mT.conj().resolve_conj().contiguous()})


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_checkpoint_of_half_precision_is_fine_tuned(toy_folder: Path, suffix: str) -> None:
    weights = import_module("toy_network").Toy().state_dict()
    halved = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    torch.save(halved, "half.pt")
    save_file(halved, "half.safetensors")
    values = {"model.checkpoint": f"half{suffix}", "cv.strategies": ["last"], "cv.candidates": 1, "training.epochs": 1}
    summary = ray_ft.cross_validate(load_config("toy.yaml", values), "run", inline=True)
    assert summary.strategies["last"].training == ["looped, float32"]
