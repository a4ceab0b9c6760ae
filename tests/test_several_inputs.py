"""Networks of several inputs and outputs give what their twins of one tensor give."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from toy import table
from typer.testing import CliRunner

import ray_ft
from ray_ft.cli import app
from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.data.packing import pack
from ray_ft.ensemble import Ensemble
from ray_ft.errors import DataError, NetworkError, RayFTError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(36, 5)).astype(np.float32)
TOKENS = RNG.integers(0, 7, (36, 4))
MASK = RNG.random((36, 4)) < 0.7
Y = (X[:, :2] + 0.3 * (TOKENS * MASK).sum(1, keepdims=True) / 7).astype(np.float32)
STRATEGIES = {
    "top": {"train": ["head.*"], "lr": 0.03, "epochs": 4},
    "whole": {"train": ["*"], "lr": 0.01, "epochs": 3},
    "closed": {"fit": "ridge", "train": ["head.*"]},
}
FEW: dict[str, Any] = {"folds": 3, "seeds": 2, "inline": True, "progress": False, "strategies": STRATEGIES}
OPTIONS = {"search.method": "guide", "search.candidates": 1, "compute.packing": "looped"}


class Parts(nn.Module):
    """A network that is called as those of language models are, and answers with a dict."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(7, 3)
        self.body = nn.Linear(8, 6)
        self.head = nn.Linear(6, 2)

    def combine(self, x: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        words = (self.words(tokens) * mask.unsqueeze(-1)).sum(1)
        return self.head(torch.tanh(self.body(torch.cat([x, words], 1))))

    def forward(self, x: torch.Tensor, *, tokens: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        assert tokens.dtype == torch.int64
        assert mask.dtype == torch.bool
        return {"loss": tokens.sum(), "logits": self.combine(x, tokens, mask)}


class Twin(Parts):
    """The same network of one tensor."""

    def forward(self, packed: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return self.combine(packed[:, :5], packed[:, 5:9].long(), packed[:, 9:].bool())


PACKED = np.concatenate([X, TOKENS, MASK], 1).astype(np.float32)
NAMED = {"0": X, "tokens": TOKENS, "mask": MASK}


@pytest.mark.long
def test_a_network_of_several_inputs_equals_its_twin_of_one(tmp_path: Path) -> None:
    several = ray_ft.cross_validate(
        Parts(), (NAMED, Y), options={**OPTIONS, "model.output": "logits"}, out=tmp_path / "several", **FEW
    )
    one = ray_ft.cross_validate(Twin(), (PACKED, Y), options=OPTIONS, **FEW)
    assert table(several.summary) == table(one.summary)
    assert several.ensemble.card.data_keys[0] == "0,tokens,mask", "so that a file of new samples needs no ::key"
    new = {name: part[:5] for name, part in NAMED.items()}
    expected = one.ensemble.predict(PACKED[:5])
    for found in (several.ensemble, Ensemble.load(tmp_path / "several")):
        np.testing.assert_array_equal(found.predict(new).mean, expected.mean)
        np.testing.assert_array_equal(found.predict(PACKED[:5]).lower, expected.lower)
    with pytest.raises(DataError, match=r"tokens must be int, as in the run, got float in the inputs"):
        several.ensemble.predict(new | {"tokens": TOKENS[:5] + 0.5})
    with pytest.raises(DataError, match=r"must be those of the run, 0, tokens, mask, got 0, tokens in"):
        several.ensemble.predict({"0": X, "tokens": TOKENS})
    with pytest.raises(DataError, match=r"tokens must have the shape \(4,\) for a sample, got \(3,\)"):
        several.ensemble.predict({**NAMED, "tokens": TOKENS[:, :3]})


def test_files_of_several_inputs_go_all_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    np.savez("data.npz", x=X, tokens=TOKENS, mask=MASK, y=Y, other=Y)
    np.savez("named.npz", **{**NAMED, "y": Y})
    (tmp_path / "c.yaml").write_text(
        'model: {factory: "test_several_inputs:Parts", output: logits}\n'
        'data: {inputs: "named.npz::0,tokens,mask", targets: "named.npz::y"}\n'
        "cv: {folds: 3, seeds: 2, candidates: 1}\n"
        "search: {method: guide}\ncompute: {packing: looped}\n"
    )
    config = load_config("c.yaml", {"strategies": STRATEGIES, "cv.strategies": list(STRATEGIES)})
    summary = cross_validate(config, "run", inline=True)
    one = ray_ft.cross_validate(Twin(), (PACKED, Y), options=OPTIONS, **FEW).summary
    assert summary.strategies["whole"].score_mean == one.strategies["whole"].score_mean
    run = CliRunner().invoke
    done = run(app, ["predict", "run", "--inputs", "named.npz", "--out", "found.npz"])
    assert done.exit_code == 0, done.output
    with np.load("found.npz") as found:
        np.testing.assert_array_equal(found["mean"], Ensemble.load("run").predict(NAMED).mean)
    done = run(app, ["evaluate", "run", "--data", "named.npz", "--json"])
    assert done.exit_code == 0, done.output


class Rows(Dataset):
    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, i: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        return {name: part[i] for name, part in NAMED.items()}, Y[i]


def test_a_dataset_of_several_inputs() -> None:
    found = ray_ft.cross_validate(Parts(), Rows(), options={**OPTIONS, "model.output": "logits"}, **FEW)
    assert found.ensemble.card.inputs[1] == ("tokens", (4,), "int")


class Answer(NamedTuple):
    hidden: torch.Tensor
    logits: torch.Tensor


class Several(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.head = kind, nn.Linear(5, 2)

    def forward(self, x: torch.Tensor) -> Any:
        pair = Answer(x.sum(), self.head(x))
        return {"tuple": tuple(pair), "named": pair, "dict": pair._asdict()}[self.kind]


@pytest.mark.parametrize(("kind", "key"), [("tuple", 1), ("named", "logits"), ("named", 1), ("dict", "logits")])
def test_one_of_several_outputs_is_the_answer(kind: str, key: str | int) -> None:
    options = {**OPTIONS, "model.output": key}
    strategies = {"head": {"train": ["head.*"], "lr": 0.03, "epochs": 2}}
    found = ray_ft.cross_validate(Several(kind), (X, Y), options=options, **{**FEW, "strategies": strategies})
    assert found.ensemble.predict(X).mean.shape == (36, 2)


@pytest.mark.parametrize(
    ("kind", "key", "said"),
    [
        ("dict", None, "got hidden, logits; name one by model.output"),
        ("dict", "logit", "must name one of the outputs, hidden, logits, got 'logit'; did you mean logits"),
        ("tuple", 2, "must name one of the outputs, 0 to 1 of a tuple, got 2"),
        ("tuple", "logits", "must name one of the outputs, 0 to 1 of a tuple, got 'logits'"),
    ],
)
def test_an_output_that_is_not_there_is_named(kind: str, key: str | int | None, said: str) -> None:
    with pytest.raises(NetworkError, match=said):
        ray_ft.cross_validate(Several(kind), (X, Y), options={**OPTIONS, "model.output": key}, **FEW)


def test_what_cannot_be_packed_is_refused() -> None:
    with pytest.raises(DataError, match="equally many samples, and some, got 36 in a, 35 in b of x"):
        pack({"a": X, "b": TOKENS[:35]}, "x")
    with pytest.raises(DataError, match="within 16,777,216, got more in a of x"):
        pack({"a": np.array([2**24 + 1])}, "x")
    with pytest.raises(DataError, match="real numbers, got complex64 in a of x"):
        pack({"a": X.astype(np.complex64)}, "x")
    exact = np.array([[-(2**24)], [2**24]])
    assert (pack({"a": exact}, "x")[0] == exact).all()


def test_noise_is_for_inputs_of_numbers_alone() -> None:
    strategies = {"head": {"train": ["head.*"], "lr": 0.03, "epochs": 2, "noise_std": 0.1}}
    options = {**OPTIONS, "model.output": "logits"}
    with pytest.raises(RayFTError, match="noise_std"):
        ray_ft.cross_validate(Parts(), (NAMED, Y), options=options, **{**FEW, "strategies": strategies})


class Hidden(nn.Module):
    """Attention that hides padding by infinities, which stand among the features of what learns."""

    def __init__(self, floor: float = -torch.inf) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.floor = floor
        self.words = nn.Embedding(7, 4)
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        words = self.words(tokens)
        hidden = torch.zeros_like(tokens, dtype=torch.float32).masked_fill(~mask, self.floor)
        found: torch.Tensor = self.head(self.attention(words, words, words, key_padding_mask=hidden)[0].mean(1))
        return found


@pytest.mark.parametrize("floor", [-torch.inf, torch.finfo(torch.float32).min, -1e9])
def test_padding_leaves_novelty_a_number_and_unknown_tokens_are_named(floor: float) -> None:
    mask = MASK | (np.arange(4) == 0)
    strategies = {
        "attention": {"train": ["attention.*", "head.*"], "lr": 0.01, "epochs": 2},
        "closed": {"fit": "ridge", "train": ["attention.*", "head.*"]},
    }
    given = ({"tokens": TOKENS, "mask": mask}, Y)
    found = ray_ft.cross_validate(Hidden(floor), given, options=OPTIONS, **FEW | {"strategies": strategies})
    assert np.isfinite(found.table["score_mean"]).all()
    predicted = found.ensemble.predict(given[0])
    assert (np.abs(predicted.novelty) < 100).all()
    assert len(np.unique(predicted.p_value)) > 3
    with pytest.raises(DataError, match=r"the inputs must be such as the network takes, but it raised IndexError"):
        found.ensemble.predict({"tokens": TOKENS + 7, "mask": mask})
