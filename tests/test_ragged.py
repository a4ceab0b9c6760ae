"""Samples of unequal shapes, graphs and sequences: they are read back as they were, and trained by `collate`."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn

import ray_ft
from ray_ft.data.ragged import FREE, pack_samples, read_rows, take_inputs
from ray_ft.ensemble import Ensemble
from ray_ft.errors import DataError, EnsembleError, NetworkError, RayFTError

RNG = np.random.default_rng(0)
STRATEGIES = {
    "top": {"train": ["head.*"], "lr": 0.03, "epochs": 4},
    "whole": {"train": ["*"], "lr": 0.01, "epochs": 3},
}
FEW: dict[str, Any] = {"folds": 3, "seeds": 2, "inline": True, "progress": False, "strategies": STRATEGIES}
OPTIONS = {"search.method": "guide", "search.candidates": 1, "compute.packing": "looped"}

GRAPHS = '''
import numpy as np
import torch
from torch import nn


class Graphs(nn.Module):
    """Messages along the edges once, and the mean over the nodes of each graph."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(3, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, x, edges, graph):
        hidden = torch.tanh(self.body(x))
        hidden = hidden.index_add(0, edges[1], hidden[edges[0]])
        sums = hidden.new_zeros(int(graph.max()) + 1, 6).index_add(0, graph, hidden)
        return self.head(sums / graph.bincount().unsqueeze(1))


def collate(samples):
    sizes = torch.tensor([len(sample["x"]) for sample in samples])
    shifts = sizes.cumsum(0) - sizes
    return {
        "x": torch.cat([sample["x"] for sample in samples]),
        "edges": torch.cat([sample["edges"] + shift for sample, shift in zip(samples, shifts)], 1),
        "graph": torch.arange(len(samples)).repeat_interleave(sizes),
    }


def make(n=36, largest=6, seed=0):
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(n):
        size = rng.integers(1, largest + 1)
        edges = rng.integers(0, size, (2, rng.integers(0, 2 * size)))
        samples.append({"x": rng.normal(size=(size, 3)), "edges": edges})
    return samples, np.array([sample["x"][:, 0].mean() for sample in samples])
'''


class Rows(nn.Module):
    """A network of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.head(torch.tanh(self.body(x)))
        return answer


@given(st.data())
def test_samples_are_read_back_as_they_were(data: st.DataObject) -> None:
    elements = {"f": st.floats(-1e6, 1e6, width=32), "i": st.integers(-(2**24), 2**24), "b": st.booleans()}
    kinds = data.draw(st.lists(st.sampled_from("fib"), min_size=1, max_size=3))
    axes = data.draw(st.lists(st.integers(0, 3), min_size=len(kinds), max_size=len(kinds)).filter(any))
    samples = []
    for _ in range(data.draw(st.integers(1, 4))):
        shapes = [tuple(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))) for n in axes]
        parts = [
            data.draw(hnp.arrays({"f": np.float32, "i": np.int64, "b": bool}[kind], shape, elements=elements[kind]))
            for kind, shape in zip(kinds, shapes, strict=True)
        ]
        samples.append({f"part {i}": part for i, part in enumerate(parts)})
    rows, layout = pack_samples(samples, "samples")
    assert all(part.shape == (FREE,) * n for part, n in zip(layout, axes, strict=True))
    for padding in (0, 5):  # beside longer samples a row has more zeros
        found = read_rows(torch.from_numpy(np.pad(rows, ((0, 0), (0, padding)))), layout)
        for sample, own in zip(samples, found, strict=True):
            assert sample.keys() == own.keys()
            for name, part in sample.items():
                assert own[name].is_floating_point() == (part.dtype == np.float32)
                np.testing.assert_array_equal(own[name].numpy(), part)


@pytest.mark.parametrize("form", ["arrays", "tuples", "rows"])
def test_a_batch_that_is_a_stack_trains_as_rows_do(form: str) -> None:
    x = RNG.normal(size=(36, 4)).astype(np.float32)
    y = x[:, 0] - 0.5 * x[:, 1] ** 2
    given: dict[str, tuple[Any, Callable[..., Any]]] = {
        "arrays": (list(x), torch.stack),
        "tuples": ([(own,) for own in x], lambda samples: (torch.stack([own for (own,) in samples]),)),
        "rows": (x, torch.stack),
    }
    samples, collate = given[form]
    found = ray_ft.cross_validate(Rows(), (samples, y), collate=collate, options=OPTIONS, **FEW)
    plain = ray_ft.cross_validate(Rows(), (x, y), options=OPTIONS, **FEW)
    assert found.table.index.tolist() == plain.table.index.tolist()
    np.testing.assert_allclose(found.table["score_mean"], plain.table["score_mean"], rtol=1e-5)
    np.testing.assert_allclose(
        found.ensemble.predict(samples[:5]).mean, plain.ensemble.predict(x[:5]).mean, rtol=1e-4, atol=1e-6
    )


def test_graphs_are_trained_and_larger_ones_predicted() -> None:
    made: dict[str, Any] = {}
    exec(GRAPHS, made)  # a notebook's: in no file
    found = ray_ft.cross_validate(made["Graphs"](), made["make"](), collate=made["collate"], options=OPTIONS, **FEW)
    assert found.table.loc["whole", "score_mean"] < found.table.loc["zero_shot", "score_mean"]
    assert "the batches that data.collate makes have no fixed shape" in " ".join(found.summary.all_notes)
    larger, _ = made["make"](9, 40, 1)
    together = found.ensemble.predict(larger)
    for i, sample in enumerate(larger):
        alone = found.ensemble.predict([sample])
        np.testing.assert_allclose(alone.mean[0], together.mean[i], rtol=1e-4, atol=1e-6)
    assert together.flag.mean() > 0.5, "graphs of other sizes than the training's are unlike it"
    assert not found.ensemble.predict(made["make"]()[0]).flag.mean() > 0.5
    for trust in (False, True):  # which would help nobody
        with pytest.raises(EnsembleError, match=r"was given in Python, is loaded there: Ensemble.load"):
            Ensemble.load(found.folder, trust=trust)


def test_a_config_names_what_makes_batches(
    toy_folder: Path, ray_ft_here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    (toy_folder / "graphs.py").write_text(GRAPHS)
    config = {
        "model": {"factory": "graphs:Graphs"},
        "data": {"factory": "graphs:make", "collate": "graphs:collate"},
        "cv": {"folds": 3, "seeds": 1, "strategies": ["top"]},
        "search": {"method": "guide", "candidates": 1},
        "strategies": {"top": STRATEGIES["top"]},
    }
    (toy_folder / "c.yaml").write_text(yaml.safe_dump(config))
    told = ray_ft_here("cv", "-c", "c.yaml", "--inline", "--out", "graphs-run").stdout
    assert "ray-ft predict" not in told, "there is no file of such samples to predict from"
    sys.modules.pop("graphs", None)
    loaded = Ensemble.load("graphs-run", trust=True)
    made: dict[str, Any] = {}
    exec(GRAPHS, made)
    assert np.isfinite(loaded.predict(made["make"](4, 8, 1)[0]).mean).all()
    with pytest.raises(RayFTError, match=r"needs its own code.* got graphs:Graphs and graphs:collate"):
        Ensemble.load("graphs-run")
    with pytest.raises(RayFTError, match=r"needs its own code.* got graphs:collate in"):
        Ensemble.load("graphs-run", factory=made["Graphs"])
    for words in ("predict --inputs x.npy --out o.npz", "evaluate --inputs x.npy --targets y.npy"):
        done = ray_ft_here(*words.split(), "graphs-run", "--trust")
        assert done.returncode == EnsembleError.exit_code
        assert "have shapes of their own; ask it from Python" in done.stderr


@pytest.mark.parametrize("alike", [False, True])
def test_a_batch_that_is_no_row_of_its_samples_is_refused(alike: bool) -> None:
    """Also where the first samples hide it, as they are sorted already, or of one length."""
    lengths = np.r_[[5] * 4, RNG.integers(1, 6, 32)] if alike else np.sort(RNG.integers(1, 9, 36))[::-1]
    samples = [RNG.normal(size=(n, 4)).astype(np.float32) for n in lengths]
    y = np.array([own.mean() for own in samples])

    def pad(own: list[Tensor]) -> Tensor:
        return nn.utils.rnn.pad_sequence(own, batch_first=True).mean(1)  # over what is padded, too

    def run(collate: Callable[[list[Tensor]], Tensor]) -> None:
        ray_ft.cross_validate(Rows(), (samples, y), collate=collate, options=OPTIONS, **FEW)

    with pytest.raises(NetworkError, match="must depend on each sample alone, but beside others"):
        run(pad)
    with pytest.raises(NetworkError, match="must depend on each sample alone, but beside others"):
        run(lambda own: torch.stack([each.mean(0) for each in sorted(own, key=len, reverse=True)]))
    with pytest.raises(NetworkError, match=r"must answer each sample, \d+ in a batch, got \d+ answers"):
        run(lambda own: torch.stack([each.mean(0) for each in own if len(own) == 1 or len(each) > 1]))


def test_what_cannot_be_collated_is_refused() -> None:
    made: dict[str, Any] = {}
    exec(GRAPHS, made)
    samples, y = made["make"]()

    def run(x: Any, collate: Any = made["collate"], **options: Any) -> Any:
        return ray_ft.cross_validate(made["Graphs"](), (x, y), collate=collate, options=OPTIONS | options, **FEW)

    with pytest.raises(DataError, match=r"needs a function that makes batches of them, got none .* by collate"):
        run(samples, None)
    with pytest.raises(NetworkError, match=r"must make a batch of samples, but it raised KeyError: 'nodes'"):
        run(samples, lambda own: own[0]["nodes"])
    with pytest.raises(DataError, match=r"same arrays of as many axes, got x of 2 axes in sample 35"):
        run([*samples[:-1], {"x": samples[0]["x"]}])
    with pytest.raises(DataError, match=r"must be real numbers, got <U1 in x of sample 0"):
        run([{"x": "a", "edges": [[0], [0]]}] * len(y))
    with pytest.raises(DataError, match="must be a list that is not empty, got an empty one"):
        run([])
    with pytest.raises(RayFTError, match=r"noise_std must be 0 where samples have shapes of their own"):
        run(samples, **{"strategies.top.noise_std": 0.1})
    with pytest.raises(RayFTError, match="collate must be a function of a list of samples, got 3"):
        run(samples, 3)
    with pytest.raises(DataError, match="samples of numbers alone have one shape, got such in inputs"):
        run([{"a": 1.0}] * len(y))
    with pytest.raises(DataError, match="samples must have one shape, got others in inputs; or name"):
        run([np.ones(3), *[np.ones(4)] * (len(y) - 1)], None)
    ensemble = run(samples).ensemble
    with pytest.raises(DataError, match="must be a list that is not empty, got ndarray"):
        ensemble.predict(np.ones((3, 4)))
    with pytest.raises(DataError, match="edges must be int, as in the run, got float in the inputs"):
        ensemble.predict([samples[0] | {"edges": np.array([[0.9], [0.2]])}])
    with pytest.raises(DataError, match="must be real numbers, got <U1 in edges of sample 0"):
        ensemble.predict([samples[0] | {"edges": np.array([["a"], ["b"]])}])
    with pytest.raises(DataError, match="finite"):
        ensemble.predict([samples[0] | {"x": np.full((2, 3), 1e39)}])
    assert take_inputs([[1.0, 2.0], [3.0, 4.0]], "inputs")[0].shape == (2, 2), "a list of rows stays what it was"
