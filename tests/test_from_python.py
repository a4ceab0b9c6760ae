"""From Python: what a module and arrays give is what a config and files give."""

import gc
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset
from toy import table

import ray_ft
from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate
from ray_ft.data.objects import as_array
from ray_ft.ensemble import Ensemble
from ray_ft.errors import ConfigError, DataError, NetworkError, RayFTError, RunFolderError
from ray_ft.python.given import as_factory, find_metric, read_data

FEW = {"search.candidates": 1, "search.method": "guide", "compute.packing": "looped", "training.checkpoint_every": 2}
TOP = {"top": {"train": ["head.*"], "lr": 0.01, "epochs": 3, "head_dropout": 0.1}}


@pytest.fixture
def toy(toy_folder: Path) -> tuple[nn.Module, tuple[np.ndarray, np.ndarray]]:
    from toy_network import Toy

    torch.manual_seed(0)
    return Toy(), (np.load("x.npy"), np.load("y.npy"))


@pytest.mark.long
def test_a_module_and_arrays_give_what_a_config_and_files_give(toy: Any, toy_folder: Path) -> None:
    network, data = toy
    torch.save(network.state_dict(), "toy.pt")
    values = FEW | {"model.checkpoint": "toy.pt", "strategies": TOP, "cv.strategies": ["top"], "cv.seeds": 2}
    expected = cross_validate(load_config("toy.yaml", values | {"cv.candidates": 1}), "files", inline=True)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    found = ray_ft.cross_validate(
        network, data, strategies=TOP, folds=3, seeds=2, options=FEW, inline=True, out="arrays", progress=False
    )
    assert table(found.summary) == table(expected)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    np.testing.assert_array_equal(found.ensemble.predict(data[0]).mean, Ensemble.load("files").predict(data[0]).mean)
    assert found.table.loc["top", "score_mean"] == expected.strategies["top"].score_mean
    assert "winner" in repr(found)
    assert "<pre" in found._repr_html_()
    assert "<script" not in found._repr_html_()
    assert (toy_folder / "arrays/report.html").is_file()
    assert found.report("mine.html").read_text() == (toy_folder / "arrays/report.html").read_text()
    for taken in ("mine.html", "nowhere/mine.html", "."):
        with pytest.raises(RunFolderError, match=r"a copy of the report must be a new file, in a folder that is there"):
            found.report(taken)


def test_the_same_call_goes_on_and_other_data_are_refused(toy: Any) -> None:
    network, (x, y) = toy
    options: dict[str, Any] = {"strategies": TOP, "folds": 3, "seeds": 1, "options": FEW, "inline": True, "out": "run"}
    first = ray_ft.cross_validate(network, (x, y), progress=False, **options)
    again = ray_ft.cross_validate(network, (x, y), progress=False, **options)
    assert again.summary == first.summary
    with pytest.raises(RayFTError, match="the data have changed since"):
        ray_ft.cross_validate(network, (x, y + 1), **options)
    with torch.no_grad():
        network.head[0].weight += 1
    with pytest.raises(RayFTError, match="the pretrained weights have changed since"):
        ray_ft.cross_validate(network, (x, y), **options)


def test_without_a_folder_nothing_is_left(toy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network, data = toy
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    before = sorted(path.name for path in tmp_path.iterdir())
    found = ray_ft.cross_validate(  # a lambda cannot be pickled
        lambda: deepcopy(network), data, strategies=TOP, folds=3, seeds=1, options=FEW, inline=True, progress=False
    )
    assert found.ensemble.predict(data[0][:2]).mean.shape == (2, 3)
    assert any((tmp_path / "temporary").iterdir())
    copies, expected = (pickle.loads(pickle.dumps(found)), copy(found)), found.ensemble.predict(data[0]).mean
    del found
    gc.collect()
    assert not any((tmp_path / "temporary").iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    for kept in copies:  # which take along what the folder held of the ensemble
        np.testing.assert_array_equal(kept.ensemble.predict(data[0]).mean, expected)
        assert "winner" in repr(kept)
        with pytest.raises(RunFolderError, match=r"a temporary one goes with its result, got .*; name one that stays"):
            kept.report()


def test_progress_is_shown_unless_it_is_not_wanted(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    network, data = toy
    for progress in (True, False):
        ray_ft.cross_validate(
            network, data, strategies=TOP, folds=3, seeds=1, options=FEW, inline=True, progress=progress
        )
        assert ("top-000 completed" in capsys.readouterr().out) is progress


def test_without_strategies_the_network_says_some(toy: Any) -> None:
    class Backwards(nn.Module):  # whose last layer is registered first
        def __init__(self) -> None:
            super().__init__()
            self.answer = nn.Linear(8, 3)
            self.body = nn.Sequential(nn.Linear(6, 8), nn.Tanh())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.answer(self.body(x))

    found = ray_ft.cross_validate(
        Backwards, toy[1], folds=3, seeds=1, options={"search.candidates": 1}, inline=True, progress=False
    )
    trained = {name: row.n_trained_params for name, row in found.summary.strategies.items()}
    assert trained == {"norms_and_biases": 11, "last_layer": 27, "everything": 83, "ridge": 0}


class Pairs(Dataset):
    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[np.ndarray, float]:
        return self.x[i], float(self.y[i])


KINDS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "tensors": lambda x, y: (torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)),
    "frames": lambda x, y: (pd.DataFrame(x), pd.Series(y)),
    "lists": lambda x, y: [x.tolist(), y.tolist()],
    "a TensorDataset": lambda x, y: TensorDataset(torch.from_numpy(x), torch.from_numpy(y)),
    "a Dataset": Pairs,
}


@pytest.mark.parametrize("kind", KINDS)
def test_samples_as_libraries_hold_them(kind: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 3)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    arrays = read_data(KINDS[kind](x, y), groups=pd.Categorical(list("aabbc")), stratify=[1, 2, 3, 4, 5])
    np.testing.assert_array_equal(arrays.inputs, x)
    np.testing.assert_array_equal(arrays.targets, y)
    assert arrays.groups is not None
    assert arrays.groups.tolist() == list("aabbc")


@pytest.mark.parametrize("names", [list("bca"), [1, 2, 0]])
def test_frames_of_one_index_in_another_order_are_refused(names: list) -> None:
    """Rows are taken by their places; labels that are others say nothing of them."""
    x = pd.DataFrame(np.eye(3), index=sorted(names))
    y = pd.Series([1.5, 2.5, 3.5], index=names)
    for data, options, said in (
        ((x, y), {}, r"the rows of y have the labels of x in another order; .*\(.loc\[x.index\]\).*reset_index"),
        (({"a": x, "b": x.loc[names]}, [1.5, 2.5, 3.5]), {}, r"the rows of x\['b'\] have the labels of x\['a'\]"),
        (((x.loc[names], x), [1.5, 2.5, 3.5]), {}, r"the rows of x\[1\] have the labels of x\[0\]"),
        ((x, y.to_numpy()), {"groups": y}, "the rows of groups have the labels of x"),
    ):
        with pytest.raises(DataError, match=said):
            read_data(data, **options)
    for data in ((x, y.loc[x.index]), (x, y.set_axis([7, 8, 9])), (x, y.tolist()), (x, pa.array(y))):
        assert read_data(data).targets.shape == (3,)


@pytest.mark.parametrize(
    ("targets", "objective", "metric"),
    [
        ([0.5, 1.0], None, "mse"),
        (["a", "b"], None, "log_loss"),
        ([True, False], None, "log_loss"),
        ([[True, False]], None, "multilabel_log_loss"),
        ([0, 1], "classification", "log_loss"),
        ([0, 1], "regression", "mse"),
        ([0, 1], "mae", "mae"),
    ],
)
def test_the_objective_is_that_of_the_targets(targets: list, objective: str | None, metric: str) -> None:
    assert find_metric(objective, np.asarray(targets)) == metric


class BesideOthers(nn.Linear):
    """A layer that subtracts the mean over the batch."""

    def __init__(self) -> None:
        super().__init__(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x - x.mean(0))


NET = nn.Linear(6, 3)
X, Y = np.arange(180.0).reshape(30, 6), np.arange(90.0).reshape(30, 3) + 0.5


@pytest.mark.parametrize(
    ("model", "data", "options", "error", "said"),
    [
        (3, (X, Y), {}, NetworkError, "must be a torch.nn.Module, or a callable that builds one, got int"),
        (lambda: 3, (X, Y), {}, ConfigError, "must build a torch.nn.Module, got int from <lambda>"),
        (nn.Linear, (X, Y), {}, NetworkError, "takes no arguments, got missing a required argument: 'in_features'"),
        (NET, X, {}, DataError, r"the data must be \(x, y\), or a torch Dataset of such pairs, got ndarray"),
        (NET, (X, None), {}, DataError, "targets must be numbers or texts, got objects: NoneType"),
        (NET, (X, [[1], [1, 2]]), {}, DataError, "targets must be arrays of one shape"),
        (NET, (X, Y[:3]), {}, DataError, "equally many samples, got 30 in inputs given in Python and 3 in targets"),
        (NET, (X, Y.astype(int)), {}, ConfigError, "whole numbers may be classes or quantities"),
        (NET, (X, np.where(Y > 9, np.nan, np.floor(Y))), {}, ConfigError, "whole numbers may be classes or quantities"),
        (NET, (X, ["a", None] * 15), {}, DataError, "targets of text must be complete, got none for sample 1"),
        (NET, (X, Y), {"options": ["a"]}, ConfigError, "options must be a mapping from keys to values, got list"),
        (
            NET,
            (X, Y),
            {"options": {"data.groups": "g.npy"}},
            ConfigError,
            "data.groups is given in Python, so it can be",
        ),
        (
            NET,
            (X, Y),
            {"options": {"model.factory": "a:b"}},
            ConfigError,
            "model.factory is given in Python, so it can",
        ),
        (NET, (X, Y), {"loss": lambda outputs, targets: 1 / 0}, ConfigError, "but it raised ZeroDivisionError"),
        (
            deepcopy(NET).half(),
            (X, Y),
            {},
            NetworkError,
            r"its parameters torch.float16: bring it there by network.float",
        ),
        (BesideOthers(), (X, Y), {}, NetworkError, "must depend on each sample alone"),
        (NET, (X, Y), {"objective": "regresion"}, ConfigError, "did you mean regression"),
        (NET, (X, Y), {"strategies": 3}, ConfigError, "must be a mapping from names to patterns"),
        (NET, (X, Y), {"strategies": {"a": 3}}, ConfigError, "strategies.a"),
        (NET, (X, Y), {"strategies": {"a": "haed.*"}}, RayFTError, "each pattern must match a parameter"),
        (
            NET,
            (X, Y),
            {"strategies": ["hed"]},
            ConfigError,
            "shipped ones, head, .* got 'hed'; did you mean head",
        ),
        (NET, (X, Y), {"folds": 1}, ConfigError, "  folds: it should be greater than or equal to 2, got 1"),
        (NET, (X, Y), {"seeds": 0}, ConfigError, "  seeds: it should be greater than or equal to 1, got 0"),
        (NET, (X, Y), {"options": {"cv.seeds": 0}}, ConfigError, "  cv.seeds: it should be greater than"),
        (
            NET,
            (X, Y),
            {"loss": "cross_entropy"},
            ConfigError,
            "^loss: cross_entropy is of classes, got objective: mse;",
        ),
        (NET, (X, Y), {"loss": "mee"}, ConfigError, "  loss: a loss is one of"),
        (NET, (X, Y), {"strategies": {}}, ConfigError, "strategies must be some, got none"),
        (NET, (X, Y), {"strategies": "atuo"}, ConfigError, "or auto, got 'atuo'"),
        (NET, (X, Y), {"groups": [1] * 30}, DataError, "in 1 groups for 5 folds; lower folds or add"),
        (NET, (X, Y), {"groups": [1.0, np.nan] * 15}, DataError, "fill them in or leave groups out"),
        (NET, (X, Y), {"stratify": list("abcdefghijklmnopqrstuvwxyzABCD")}, DataError, "^some class of stratify must"),
        (NET, (X, Y[:, :2]), {}, DataError, "; check y and model, or set model.new_head: true$"),
        (NET, (X, ["a", "b"] * 15), {"objective": "mse"}, DataError, "^targets of objective: mse must be numbers"),
        (NET, (X, Y), {"options": {"cv.flods": 3}}, ConfigError, "cv.flods: unknown key; did you mean folds"),
        (NET, (X[:, :5], Y), {}, NetworkError, "the network must take the inputs"),
    ],
)
def test_what_is_wrong_is_said(model: Any, data: Any, options: dict, error: type, said: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=said):
        ray_ft.cross_validate(model, data, inline=True, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_folder_that_cannot_be_the_run_s_is_named_by_its_argument(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(RunFolderError, match=r"needs an empty folder, got .* with notes.txt; choose another out$"):
        ray_ft.cross_validate(NET, (X, Y), inline=True, out=tmp_path)


@pytest.mark.parametrize(
    "values",
    [
        np.ma.masked_array([1.0, 5.0, 3.0], mask=[False, True, False]),
        np.ma.masked_array([1, 5, 3], mask=[False, True, False]),
        [1.0, None, 3.0],
        pd.Series([1, None, 3], dtype="Int64"),
        pd.Series([True, None, True], dtype="boolean"),
    ],
)
def test_a_number_that_is_missing_is_nan(values: Any) -> None:
    found = as_array(values, "targets")
    assert np.isnan(found).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "values",
    [
        [torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([0.0, 3.0])],
        torch.tensor([[1.0, 2.0], [0.0, 3.0]]).to_sparse(),
        torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor([1.0, 2.0], dtype=torch.bfloat16), torch.tensor([0.0, 3.0], dtype=torch.bfloat16)],
    ],
)
def test_tensors_of_all_kinds_are_arrays(values: Any) -> None:
    np.testing.assert_array_equal(as_array(values, "inputs"), [[1, 2], [0, 3]])


def test_what_runs_a_network_and_what_passes_leave_in_it_are_taken_off() -> None:
    network = nn.Linear(6, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed = nn.utils.weight_norm(deepcopy(network))
    kept = deepcopy(network)
    kept.last = kept(torch.ones(1, 6))
    expected = network(torch.ones(1, 6))
    for model in (nn.DataParallel(network), torch.compile(network, backend="eager"), normed, kept):
        built = as_factory(model)()
        assert type(built) is nn.Linear
        torch.testing.assert_close(built(torch.ones(1, 6)), expected)


def test_a_folder_knows_the_code_and_the_loss_that_its_run_began_with(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.load("x.npy"), np.load("y.npy")
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)]
    network, other = nn.Sequential(*layers), nn.Sequential(layers[0], nn.ReLU(), layers[2])

    def call(network: nn.Module, **options: Any) -> Any:
        top = {"top": {"train": ["2.*"], "lr": 0.01, "epochs": 1}}
        return ray_ft.cross_validate(
            network, data, strategies=top, folds=2, seeds=1, options=FEW, inline=True, progress=False, **options
        )

    found = call(network, out="run")
    assert call(network, out="run").summary == found.summary
    for changed in (lambda: call(other, out="run"), lambda: call(network, out="run", loss=mean_error)):
        with pytest.raises(RayFTError, match="what the network computes with these weights, or its loss, has changed"):
            changed()
    with pytest.raises(DataError, match="stand in no file, got inputs given in Python; repeat the call"):
        cross_validate(load_config("run/config.yaml"), "other", inline=True)
    monkeypatch.setenv("HOME", str(toy_folder))
    assert call(network, out="~/own").folder == toy_folder / "own"


def test_commands_on_a_run_of_arrays_say_what_to_do(toy: Any, ray_ft_here: Callable) -> None:
    network, (x, y) = toy
    top = {"top": {"train": ["head.*"], "lr": 0.01, "epochs": 1}}
    ray_ft.cross_validate(
        network, (x, y), strategies=top, folds=2, seeds=1, options=FEW, inline=True, progress=False, out="run"
    )
    done = ray_ft_here("check", "-c", "run/config.yaml")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "a network that was given in Python is named by no config" in done.stderr
    assert "repeat the call of cross_validate with the same out" in done.stderr
    np.savez("t.npz", x=x, y=y)
    done = ray_ft_here("evaluate", "run", "--data", "t.npz")
    assert done.returncode == 2
    assert "give --inputs t.npz::KEY --targets t.npz::KEY, where KEY is one of x, y" in done.stderr
    done = ray_ft_here("evaluate", "run", "--data", "x.npy")
    assert "give --inputs x.npy::KEY --targets x.npy::KEY\n" in done.stderr
    assert ray_ft_here("evaluate", "run", "--inputs", "t.npz::x", "--targets", "t.npz::y").returncode == 0


def test_a_folder_knows_the_names_of_the_classes(toy: Any) -> None:
    network, (x, _) = toy
    top = {"top": {"train": ["head.*"], "lr": 0.01, "epochs": 1}}
    options: dict[str, Any] = {"strategies": top, "folds": 2, "seeds": 1, "options": FEW, "inline": True, "out": "run"}
    old, new = np.array(["ant", "bee", "cow"] * 10), np.array(["dog", "elk", "fox"] * 10)
    first = ray_ft.cross_validate(network, (x, old), progress=False, **options)
    assert ray_ft.cross_validate(network, (x, old), progress=False, **options).summary == first.summary
    with pytest.raises(RunFolderError, match="the names of the classes have changed since: ant, bee, cow there, dog"):
        ray_ft.cross_validate(network, (x, new), **options)


def mean_error(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return (outputs - targets).abs().mean(1)


def test_an_ensemble_takes_what_the_run_took(toy: Any) -> None:
    network, (x, y) = toy
    frame = pd.DataFrame(x, columns=list("abcdef"))
    top = {"top": {"train": ["head.*"], "lr": 0.01, "epochs": 1}}
    found = ray_ft.cross_validate(
        network, (frame, y), strategies=top, folds=2, seeds=1, options=FEW, inline=True, progress=False
    )
    predict, expected = found.ensemble.predict, found.ensemble.predict(x).mean
    given = torch.from_numpy(x).requires_grad_(), x.tolist(), frame, frame[list("fedcba")].assign(more=1)
    for inputs in given:
        np.testing.assert_array_equal(predict(inputs).mean, expected)
    with pytest.raises(DataError, match="a frame must have the columns of the training, got none of e, f"):
        predict(frame[list("abcd")])
    with pytest.raises(DataError, match="the inputs must be one array, as the run's were, got 0, 1"):
        predict((x, x))


def test_a_column_of_mixed_objects_is_refused() -> None:
    with pytest.raises(DataError, match="groups must be numbers or texts, got objects: int, str"):
        as_array(np.array([1, "a"], object), "groups")


SCRIPT = """
import numpy as np, ray_ft, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
    def forward(self, x):
        return self.head(torch.tanh(self.body(x)))

if __name__ == "__main__":
    torch.manual_seed(0)
    strategies = {"head": {"train": ["head.*"], "lr": 0.01, "epochs": 3}}
    found = [
        ray_ft.cross_validate(
            Net(), (np.load("x.npy"), np.load("y.npy")), strategies=strategies, folds=3, seeds=2, inline=inline,
            options={"search.candidates": 1, "search.method": "guide"}, out=f"run-{inline}",
        )
        for inline in (True, False)
    ]
    assert found[0].summary.strategies["head"].scores == found[1].summary.strategies["head"].scores
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_network_of_a_script_trains_on_ray_to_what_it_is_here(toy_folder: Path) -> None:
    (toy_folder / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


class Answering(nn.Module):
    """A network that answers in another precision, or fails in training where a batch is large."""

    def __init__(self, dtype: torch.dtype = torch.float32, fails: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = nn.Linear(6, 8), nn.Linear(8, 3)
        self.dtype, self.fails = dtype, fails

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.fails and self.training and len(x) > 4:
            raise ValueError("too many")
        answer: torch.Tensor = self.head(torch.tanh(self.body(x))).to(self.dtype)
        return answer


def test_answers_of_low_precision_are_taken(toy: Any) -> None:
    few: dict[str, Any] = {"folds": 3, "seeds": 1, "inline": True, "progress": False}
    few["strategies"] = {"all": {"train": ["*"], "lr": 0.03, "epochs": 6}}
    low, full = (
        ray_ft.cross_validate(Answering(dtype), toy[1], options={"search.candidates": 1}, **few).table
        for dtype in (torch.bfloat16, torch.float32)
    )
    assert low.loc["all", "score_mean"] == pytest.approx(full.loc["all", "score_mean"], rel=0.02)


def test_a_failure_names_no_folder_that_is_gone(toy: Any) -> None:
    with pytest.raises(RayFTError, match="too many") as error:
        ray_ft.cross_validate(
            Answering(fails=True), toy[1], strategies={"all": "*"}, folds=3, seeds=1, inline=True, progress=False
        )
    assert "ray-ft-" not in str(error.value)
    assert str(error.value).endswith("name a folder by out, where candidates/*/error.txt tells more")


def test_what_a_static_reader_is_told_is_what_is_called() -> None:
    """In a process of its own, as the type checks of these tests take the overloads for one."""
    code = """
import inspect, typing, ray_ft
from ray_ft.cross_validation import cross_validate

def list_defaults(function):
    return [(name, own.default) for name, own in inspect.signature(function).parameters.items()]

of_config, of_module = map(list_defaults, typing.get_overloads(ray_ft.cross_validate))
assert of_module == list_defaults(ray_ft.cross_validate), of_module
assert of_config[2:] == list_defaults(cross_validate)[2:5], of_config  # the first two have other names
"""
    subprocess.run([sys.executable, "-c", code], check=True)
