"""A model of Hugging Face comes in as it is; run where `transformers` is installed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import ray_ft
from ray_ft.cli import app
from ray_ft.ensemble import Ensemble

transformers = pytest.importorskip("transformers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]  # those of the library's own
N = 60
SIZES: dict[str, int] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 50}

OPTIONS = {
    "model.output": "logits",
    "search.method": "guide",
    "search.candidates": 1,
    "ensemble.strategies": ["head", "last"],
}


def build_bert() -> Any:
    own = SIZES | {"intermediate_size": 64, "max_position_embeddings": 16}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**own, num_labels=3))


def build_gpt2() -> Any:
    own = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 50, "pad_token_id": 0}
    return transformers.GPT2ForSequenceClassification(transformers.GPT2Config(**own, num_labels=3))


@pytest.mark.parametrize(
    ("build", "last"),
    [(build_bert, ["bert.encoder.layer.1.*", "classifier.*"]), (build_gpt2, ["transformer.h.1.*", "score.*"])],
)
def test_a_model_of_words_is_split_trained_saved_and_asked(build: Any, last: list[str], tmp_path: Path) -> None:
    torch.manual_seed(0)
    rng, model = np.random.default_rng(0), build()
    mask = (np.arange(8) < rng.integers(3, 9, (N, 1))).astype(int)
    x, y = {"input_ids": rng.integers(1, 50, (N, 8)) * mask, "attention_mask": mask}, rng.integers(0, 3, N)
    trained = {"head": last[1:], "last": last}
    found = ray_ft.cross_validate(
        model, (x, y), folds=3, seeds=1, objective="classification", out=tmp_path / "run", inline=True, progress=False,
        strategies={name: {"train": own, "lr": 0.01, "epochs": 2} for name, own in trained.items()}, options=OPTIONS,
    )  # fmt: skip
    assert found.ensemble.card.split == ""
    with torch.no_grad():
        logs = model.eval()(**{name: torch.from_numpy(part) for name, part in x.items()}).logits.log_softmax(1)
    expected = -logs[torch.arange(N), torch.from_numpy(y)].mean().item()
    assert found.summary.baselines["zero_shot"].score_mean == pytest.approx(expected, abs=1e-5)
    mean = found.ensemble.predict(x).mean
    np.testing.assert_array_equal(Ensemble.load(tmp_path / "run").predict(x).mean, mean)
    np.savez(tmp_path / "x.npz", **x)
    words = ["predict", str(tmp_path / "run"), "--inputs", str(tmp_path / "x.npz"), "--out", str(tmp_path / "o.npz")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    with np.load(tmp_path / "o.npz") as answers:
        np.testing.assert_allclose(answers["mean"], mean, atol=1e-6)
