"""Checkpoints as trainers write them: read without their code, found by the network's names, and noted."""

import argparse
import enum
import io
import json
import pathlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ray_ft import cross_validate
from ray_ft.config import load_config
from ray_ft.errors import WeightsError
from ray_ft.models import load_pretrained, read_weights

State = dict[str, Tensor]
PREFIXES = [
    "module.", "_orig_mod.", "model.", "net.", "module._orig_mod.", "_orig_mod.module.", "model._orig_mod.",
    "model.module.", "net.model.", "student.backbone.",
]  # fmt: skip
KEYS = ["state_dict", "model_state_dict", "model", "ema", "net", "module", "weights", "params"]


class Net(nn.Module):
    def __init__(self, n_out: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 8))
        self.head = nn.Linear(8, n_out)


class Wrapped(nn.Module):
    """A network that holds the one of the file, with a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.top = Net(), nn.Linear(3, 1)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.out.weight = self.embed.weight


class Odd:
    """A class of the trainer's own."""

    def __init__(self) -> None:
        self.lr = 0.1


class Color(enum.Enum):
    RED = 1


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_state(seed: int = 0, network: type[nn.Module] = Net) -> State:
    torch.manual_seed(seed)
    return {
        name: torch.randn_like(own) if own.is_floating_point() else own for name, own in network().state_dict().items()
    }


def under(prefix: str, state: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


def load(
    source: str = "w.pt", factory: str = "Net", skip: tuple[str, ...] = (), **params: Any
) -> tuple[State, list[str]]:
    network, notes = load_pretrained(f"{__name__}:{factory}", params, source, skip)
    return network.state_dict(), notes


def check_same(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    assert all(found[name].equal(wanted[name]) for name in wanted)


def test_suffixes_are_read_in_either_case() -> None:
    pathlib.Path("kept").mkdir()
    save_file(make_state(), "kept/W.SAFETENSORS")
    for source in ("kept/W.SAFETENSORS", "kept"):
        check_same(load(source)[0], make_state())


@pytest.mark.parametrize("prefix", PREFIXES)
def test_prefixes_are_stripped_and_named(prefix: str) -> None:
    torch.save(under(prefix, make_state()), "w.pt")
    found, notes = load()
    check_same(found, make_state())
    assert notes[0].startswith("weights of w.pt: ")
    for part in prefix.split("."):
        assert part in notes[0]


@pytest.mark.parametrize("key", KEYS)
def test_a_state_dict_lies_under_any_key_beside_other_values(key: str) -> None:
    network = Net()
    network.load_state_dict(make_state())
    optimizer = torch.optim.AdamW(network.parameters())
    network.head(network.body(torch.ones(4, 6))).sum().backward()
    optimizer.step()
    network.load_state_dict(make_state())
    content = {
        "epoch": 3,
        "loss": 0.5,
        "best": None,
        "optimizer_state_dict": optimizer.state_dict(),
        "rng": torch.ones(5),
    }
    torch.save(content | {key: under("module._orig_mod.", network.state_dict())}, "w.pt")
    found, notes = load()
    check_same(found, make_state())
    assert notes == [
        f'weights of w.pt: "{key}.module._orig_mod." was stripped from the names; not used: '
        "epoch, loss, best, optimizer_state_dict and 1 more"
    ]


def test_a_bare_state_dict_needs_no_note() -> None:
    torch.save(make_state(), "w.pt")
    save_file(make_state(), "w.safetensors")
    for name in ("w.pt", "w.safetensors"):
        found, notes = load(name)
        check_same(found, make_state())
        assert notes == []


def test_a_part_that_was_compiled_or_wrapped_is_found() -> None:
    names = {name: name.replace("body.", "body._orig_mod.").replace("head.", "head.module.") for name in make_state()}
    torch.save({"model": {names[name]: tensor for name, tensor in make_state().items()}}, "w.pt")
    check_same(load()[0], make_state())


def test_lightning_with_its_hyperparameters_is_read_without_their_code() -> None:
    options = argparse.Namespace(lr=0.1, odd=Odd(), path=pathlib.PurePosixPath("/data"), n=np.float64(3.5))
    content = {
        "pytorch-lightning_version": "2.4.0", "hyper_parameters": {"options": options}, "callbacks": {}, "loops": {},
        "state_dict": under("model.", make_state()) | {"criterion.weight": torch.ones(3)},
    }  # fmt: skip
    torch.save(content, "w.ckpt")
    found, notes = load("w.ckpt")
    check_same(found, make_state())
    assert "objects that were not read: argparse.Namespace" in notes[0]
    assert '"state_dict.model." was stripped' in notes[1]


def test_an_average_of_models_is_read() -> None:
    network = Net()
    network.load_state_dict(make_state())
    torch.save(torch.optim.swa_utils.AveragedModel(network).state_dict(), "w.pt")
    found, notes = load()
    check_same(found, make_state())
    assert notes == ['weights of w.pt: "module." was stripped from the names; not used: n_averaged']


def test_several_that_fit_are_asked_about_by_name() -> None:
    torch.save({"model": make_state(), "ema": under("module.", make_state(1))}, "w.pt")
    with pytest.raises(WeightsError, match=r"got 2; choose by model\.checkpoint: w\.pt::model or w\.pt::ema\.module$"):
        load()
    check_same(load("w.pt::model")[0], make_state())
    for key in ("ema", "ema.module"):
        check_same(load(f"w.pt::{key}")[0], make_state(1))
    with pytest.raises(WeightsError, match=r"w\.pt must have weights under emma, got model, ema"):
        load("w.pt::emma")


def test_a_smoothed_copy_in_the_same_state_dict_is_asked_about() -> None:
    torch.save({"state_dict": under("model.", make_state()) | under("ema_model.", make_state(1))}, "w.pt")
    with pytest.raises(WeightsError, match=r"w\.pt::state_dict\.model or w\.pt::state_dict\.ema_model$"):
        load()
    check_same(load("w.pt::state_dict.ema_model")[0], make_state(1))


def test_equal_copies_are_one() -> None:
    torch.save({"state_dict": make_state(), "last": {k: v.clone() for k, v in make_state().items()}}, "w.pt")
    check_same(load()[0], make_state())


def test_a_network_that_wraps_another_takes_its_weights() -> None:
    torch.save({"state_dict": make_state()}, "w.pt")
    found, notes = load(factory="Wrapped", skip=("top.*",))
    check_same({name: own for name, own in found.items() if name.startswith("inner.")}, under("inner.", make_state()))
    assert '"inner." was put before them' in notes[0]
    assert notes[1] == "model.skip: top.weight, top.bias start as the network draws them"


def test_sizes_that_differ_in_the_head_alone_are_offered_as_a_new_head() -> None:
    torch.save({"state_dict": make_state()}, "w.pt")
    with pytest.raises(WeightsError) as error:
        load(n_out=5)
    assert str(error.value).splitlines() == [
        "names and shapes of checkpoint and network must agree, but of w.pt (under state_dict)",
        "  shapes differ (checkpoint for network): head.bias (3,) for (5,), head.weight (3, 8) for (5, 8)",
        "the sizes of the rest agree: to take all but these, as for a new head, set model.skip: "
        '["head.*"]; the network draws its own',
    ]
    torch.manual_seed(7)
    own = Net(5).state_dict()
    torch.manual_seed(7)
    found, notes = load(n_out=5, skip=("head.*",))
    wanted = make_state()
    check_same(found, {name: own[name] if name.startswith("head") else wanted[name] for name in wanted})
    assert notes[-1] == "model.skip: head.weight, head.bias start as the network draws them"


def test_missing_and_unexpected_names_are_told_with_the_remedy() -> None:
    state = make_state()
    state["pretext.weight"] = state.pop("body.0.bias")
    torch.save(under("module.", state), "w.pt")
    with pytest.raises(WeightsError) as error:
        load()
    text = str(error.value)
    assert "  the checkpoint lacks: body.0.bias\n  the network lacks: pretext.weight\n" in text
    assert 'model.skip: ["body.0.bias", "pretext.*"]' in text
    _, notes = load(skip=("body.0.bias", "pretext.*"))
    assert notes[1] == "model.skip: pretext.weight of w.pt are not used"
    with pytest.raises(WeightsError, match=r"model\.skip: hed\.\* must match a name"):
        load(skip=("body.0.bias", "pretext.*", "hed.*"))


def test_the_checkpoint_of_another_network_is_refused() -> None:
    torch.save({"state_dict": {"conv1.weight": torch.ones(3)}, "epoch": 1}, "w.pt")
    with pytest.raises(WeightsError, match=r"it holds state_dict: is it the checkpoint of the network that"):
        load()


def test_counters_that_old_files_lack_and_ties_that_files_drop_are_no_gap() -> None:
    torch.save({name: own for name, own in make_state().items() if "num_batches" not in name}, "w.pt")
    check_same(load()[0], make_state())
    for kept in ("embed.weight", "out.weight"):
        save_file({kept: torch.full((5, 4), 2.0)}, "tied.safetensors")
        found, _ = load("tied.safetensors", "Tied")
        assert (found["embed.weight"] == 2).all()
        assert (found["out.weight"] == 2).all()


def write_shards(folder: Path, state: State, lost: str = "") -> None:
    folder.mkdir()
    names, half = list(state), len(state) // 2
    parts = {"model-00001-of-00002.safetensors": names[:half], "model-00002-of-00002.safetensors": names[half:]}
    for file, own in parts.items():
        save_file({name: state[name] for name in own if name != lost}, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": {name: file for file, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def test_shards_are_joined_by_their_index() -> None:
    write_shards(Path("hub"), under("net.", make_state()))
    (Path("hub") / "config.json").write_text("{}")
    for source in ("hub", "hub/model.safetensors.index.json"):
        check_same(load(source)[0], make_state())
    (Path("hub") / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"without model-00002-of-00002\.safetensors"):
        load("hub")
    write_shards(Path("holed"), make_state(), "head.bias")
    with pytest.raises(WeightsError, match=r"must hold what their index says, got .* without head\.bias"):
        load("holed")


@pytest.mark.parametrize("named", ["../w.safetensors", "/etc/passwd", ".."])
def test_an_index_names_no_file_elsewhere(named: str) -> None:
    save_file(make_state(), "w.safetensors")
    Path("hub").mkdir()
    Path("hub/model.safetensors.index.json").write_text(json.dumps({"weight_map": {"head.bias": named}}))
    with pytest.raises(WeightsError, match="must lie beside their index"):
        load("hub")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "mine.ckpt"])
def test_a_folder_of_a_hub_is_read(name: str) -> None:
    Path("hub").mkdir()
    Path("hub/config.json").write_text('{"architecture": "net"}')
    path = Path("hub") / name
    save_file(make_state(), path) if path.suffix == ".safetensors" else torch.save(make_state(), path)
    found, notes = load("hub")
    check_same(found, make_state())
    assert notes == [f"the weights in hub are those of {name}"]


def test_a_folder_that_says_too_little_is_refused() -> None:
    Path("hub").mkdir()
    with pytest.raises(WeightsError, match="a folder must hold a file of weights"):
        load("hub")
    Path("hub/__0_0.distcp").touch()
    with pytest.raises(WeightsError, match=r"dcp_to_torch hub weights\.pt makes one"):
        load("hub")
    for name in ("a.pt", "b.pt"):
        torch.save(make_state(), Path("hub") / name)
    with pytest.raises(WeightsError, match=r"one file of weights, got hub with a\.pt, b\.pt; name one"):
        load("hub")
    check_same(load("hub/a.pt")[0], make_state())


def test_what_only_a_call_would_build_is_refused_by_name() -> None:
    torch.save({"state_dict": make_state(), "color": Color.RED}, "w.pt")
    with pytest.raises(WeightsError, match=r"more than tensors \(.*Color\); torch\.save\(network\.state_dict"):
        load()
    network = Net()
    torch.save(network, "w.pt")
    with pytest.raises(
        WeightsError, match=r"must (hold a state dict|be weights alone).*torch\.save\(network\.state_dict"
    ):
        load()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_torchscript_is_refused_with_the_remedy() -> None:
    torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)).save("w.pt")
    with pytest.raises(WeightsError, match=r"it is TorchScript; torch\.save\(network\.state_dict"):
        load()


def test_no_code_of_a_file_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (exec, ("open('exploded', 'w')",))

    torch.save({"state_dict": make_state(), "options": Bomb()}, "w.pt")
    torch.save({"state_dict": make_state(), "options": Odd()}, "odd.pt")
    with pytest.raises(WeightsError, match="more than tensors"):
        load()
    monkeypatch.setattr(Odd, "__setstate__", lambda *_: Path("exploded").touch(), raising=False)
    check_same(load("odd.pt")[0], make_state())
    assert not Path("exploded").exists()


def test_mappings_that_hold_themselves_end() -> None:
    content: dict[str, Any] = {"state_dict": make_state()}
    content["again"] = content
    torch.save(content, "w.pt")
    check_same(load()[0], make_state())
    wide: dict[str, Any] = {"x": torch.ones(1)}
    for _ in range(5):
        wide = {str(i): wide for i in range(1000)}
    torch.save(wide, io.BytesIO())
    torch.save(wide, "wide.pt")
    assert len(read_weights("wide.pt").tensors) == 1


def test_a_run_notes_what_was_done(toy_folder: Path, ray_ft_here: Any) -> None:
    module = __import__("toy_network")
    torch.manual_seed(0)
    torch.save({"state_dict": under("model.", module.Toy().state_dict()), "epoch": 1}, "w.ckpt")
    said = ray_ft_here("check", "-c", "toy.yaml", "--set", "model.checkpoint=w.ckpt", "--set", "cv.strategies=[top]")
    note = 'weights of w.ckpt: "state_dict.model." was stripped from the names; not used: epoch'
    assert f"note        {note}" in said.stdout
    values = {"model.checkpoint": "w.ckpt", "cv.strategies": ["top"], "cv.candidates": 1, "cv.seeds": 1}
    assert note in cross_validate(load_config("toy.yaml", values), "run", inline=True).notes
