"""What is trained, scored, saved and served is one function: seen before the first epoch, refused by name if not."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import ray_ft as package
from ray_ft import Ensemble
from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate, prepare, rebuild_ensemble
from ray_ft.ensemble.export import average_weights, export_ensemble
from ray_ft.errors import NetworkError, RunFolderError, StrategyError
from ray_ft.fitting.checkpoint import load_checkpoint, save_checkpoint
from ray_ft.fitting.fitter import FitSettings
from ray_ft.fitting.preparation import prepare_strategy
from ray_ft.fitting.starting import start_fitter
from ray_ft.results.records import load_predictions
from ray_ft.runs.folder import RunFolder
from ray_ft.split.whole import set_training_modes

HEADER = """
import random
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 3)
        {inner}

    def forward(self, h):
        {run}
        return self.linear(h)


class Toy(nn.Module):
    {shared}

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(6, 8), Inner()
        {init}

    def forward(self, x):
        {forward}
        return self.head(torch.tanh(self.body(x)))
"""


COMPLEX = {
    "inner": "self.w = nn.Parameter(torch.randn(5, 8, dtype=torch.cfloat) / 4)",
    "run": "h = (h @ self.w).real",
    "forward": "return self.head(torch.fft.rfft(self.body(x)))",
}
CPU = torch.device("cpu")


def write(folder: Path, **parts: str) -> None:
    """Put code into a small network: of its class, of its `__init__` and `forward`, and of those of its head."""
    given = {"inner": "pass", "run": "pass", "shared": "pass", "init": "pass", "forward": "pass"} | parts
    (folder / "toy_network.py").write_text(HEADER.format(**given))


def try_out(folder: Path, **values: object) -> None:
    prepare(load(folder, **values))


def load(folder: Path, **values: object):
    options = {"cv.strategies": ["own"], "cv.candidates": 1}
    options |= {"strategies.own": {"train": ["head.*"], "lr": 1e-2, "epochs": 2}, "cv.seeds": 1}
    return load_config(folder / "toy.yaml", options | values)


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"init": "self.B = torch.randn(6)", "forward": "x = x + self.B"}, r"\(B changed\)"),
        ({"inner": "self.B = [torch.randn(8)]", "run": "h = h + self.B[0]"}, r"\(head\.B\[0\] changed\)"),
        ({"inner": "self.B = {'a': torch.randn(8)}", "run": "h = h + self.B['a']"}, r"\(head\.B\['a'\] changed\)"),
        ({"inner": "self.B = np.random.randn(8).astype('f4')", "run": "h = h + torch.from_numpy(self.B)"}, "head.B"),
        ({"inner": "self.gain = random.random()", "run": "h = h * self.gain"}, r"\(head\.gain changed\)"),
        ({"inner": "self.register_buffer('B', torch.randn(8), persistent=False)", "run": "h = h + self.B"}, "head.B"),
        ({"init": "x = np.random.default_rng(); self.g = x.normal()", "forward": "x = x * self.g"}, r"\(g changed\)"),
    ],
    ids=["tensor", "list", "dict", "array", "float", "buffer", "unseeded"],
)
def test_what_is_drawn_when_it_is_built_is_named(toy_folder: Path, parts: dict, named: str) -> None:
    write(toy_folder, **parts)
    with pytest.raises(NetworkError, match=f"built twice it answers differently.*{named}.*persistent buffer"):
        try_out(toy_folder)


@pytest.mark.parametrize(
    "parts",
    [
        {"init": "self.register_buffer('B', torch.randn(6))", "forward": "x = x + self.B"},
        {"init": "self.B = torch.arange(6.0)", "forward": "x = x + self.B"},
        {"inner": "self.name = random.random()"},
        {"shared": "B = torch.randn(6)", "forward": "x = x + self.B"},
        {"inner": "self.kept = None", "run": "self.kept = h"},
        {"inner": "self.n = 0", "run": "self.n += 1"},
    ],
    ids=["buffer", "constant", "unread", "class", "cache", "counter"],
)
def test_what_does_not_change_the_function_is_taken(toy_folder: Path, parts: dict) -> None:
    write(toy_folder, **parts)
    try_out(toy_folder)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"run": "h = F.dropout(h, 0.5)"}, r"two passes in evaluation disagree \(head first\)"),
        ({"forward": "x = x + torch.randn_like(x)"}, "two passes in evaluation disagree"),
        (
            {"init": "self.register_buffer('n', torch.ones(()))", "forward": "self.n += 0.1; x = x * self.n"},
            r"evaluation disagree \(n changed\)",
        ),
        (
            {"init": "self.m = torch.zeros(6)", "forward": "self.m += self.training * x.mean(0); x = x - self.m"},
            r"after a pass in training it answers differently.*\(m changed\)",
        ),
        (
            {"init": "self.n = 0", "forward": "self.n += self.training; x = x * 2.0 ** -self.n"},
            r"after a pass in training it answers differently.*\(n changed\)",
        ),
        ({"forward": "x = x * (random.random() if self.training else 1)"}, "two passes in training disagree"),
        ({"run": "h = h * (np.random.rand() if self.training else 1)"}, "two passes in training disagree"),
        (
            {"init": "self.register_buffer('n', torch.ones(())); self.body.register_buffer('k', torch.ones(()))",
             "forward": "self.body.k += 1"},
            "what is frozen must not move, but training writes body.k",
        ),
        ({"init": "self.ws = [self.head.linear.weight]", "forward": "return x[:, :3] @ self.ws[0][:, :3]"}, "tensors"),
    ],
    ids=["dropout", "noise", "buffer", "tensor", "number", "python", "numpy", "frozen", "aliased"],
)  # fmt: skip
def test_what_changes_from_pass_to_pass_is_refused(toy_folder: Path, parts: dict, message: str) -> None:
    write(toy_folder, **parts)
    with pytest.raises(NetworkError, match=message):
        try_out(toy_folder)


def test_what_trains_must_reach_the_answer(toy_folder: Path) -> None:
    write(toy_folder, init="self.unused = nn.Linear(2, 2)")
    try_out(toy_folder, **{"strategies.own.train": ["head.*", "unused.*"]})
    with pytest.raises(StrategyError, match=r"strategy own: what it trains must reach the answer, got unused.weight"):
        try_out(toy_folder, **{"strategies.own.train": ["unused.*"]})


@pytest.mark.parametrize("when", ["True", "self.training"])
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("assert x.shape[1] == 7, 'input size does not match'", "AssertionError: input size does not match"),
        ("assert x.shape[1] == 7", "AssertionError"),
        ("raise RuntimeError('first line\\nsecond')", "RuntimeError: first line"),
        ("{}['missing']", "KeyError: 'missing'"),
        ("class Own(Exception): pass\n            raise Own('of its own')", "Own: of its own"),
    ],
    ids=["assert", "bare", "runtime", "key", "own"],
)
def test_whatever_forward_raises_is_one_line(toy_folder: Path, when: str, code: str, said: str) -> None:
    write(toy_folder, forward=f"if {when}:\n            {code}")
    with pytest.raises(NetworkError) as caught:
        try_out(toy_folder)
    text = str(caught.value)
    assert "\n" not in text
    assert f"it raised {said} (toy_network.py, line " in text


def test_what_is_raised_late_in_training_ends_the_command_by_2(toy_folder: Path, ray_ft_here: Callable) -> None:
    write(toy_folder, forward="assert not self.training or len(x) < 5, 'at most four'")
    words = ["--set", "strategies.own={train: ['head.*'], lr: 0.01, epochs: 2}", "--candidates", "1", "--inline"]
    done: subprocess.CompletedProcess = ray_ft_here("cv", "-c", "toy.yaml", "--strategies", "own", "-o", "run", *words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "in training it raised AssertionError: at most four (toy_network.py, line " in done.stderr


def test_what_is_raised_in_prediction_is_one_line(toy_folder: Path, ray_ft_here: Callable) -> None:
    write(toy_folder, forward="assert float(x.max()) < 10 and float(x.std()) > 0, 'too large'")
    cross_validate(load(toy_folder), toy_folder / "run", inline=True)
    assert ray_ft_here("predict", "run", "--inputs", "x.npy", "--out", "a.npz", "--trust").returncode == 0
    np.save("z.npy", 100 * np.load("x.npy"))
    done = ray_ft_here("predict", "run", "--inputs", "z.npy", "--out", "b.npz", "--trust")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "in evaluation it raised AssertionError: too large" in done.stderr
    assert not Path("b.npz").exists()


def test_the_ensemble_of_a_constant_that_no_state_dict_holds_has_the_score_of_its_members(toy_folder: Path) -> None:
    """A tensor of the class, drawn where the module is imported, is the same in every process, and goes with it."""
    write(toy_folder, shared="B = torch.randn(6)", forward="x = x + self.B")
    summary = cross_validate(load(toy_folder), toy_folder / "run", inline=True)
    ensemble, x, y = Ensemble.load("run"), np.load("x.npy"), np.load("y.npy")
    told = load_predictions(RunFolder(toy_folder / "run"), "own-000")[0, 0]
    folds = ensemble.average_folds(ensemble.predict_members(x, False)[0])
    found = folds[0, ensemble.calibration.fold_of[0], np.arange(30)]
    np.testing.assert_allclose(found, told, atol=1e-5)
    assert summary.ensemble.score == pytest.approx(((found - y) ** 2).mean(), rel=1e-4)
    drawn = "import torch; torch.manual_seed(1); import ray_ft; from ray_ft.models.factory import import_factory as f; "
    drawn += "print(f('toy_network:Toy').B.tolist())"
    words = [sys.executable, "-c", drawn]
    texts = {subprocess.run(words, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(texts) == 1


def test_an_answer_that_another_process_would_not_give_is_refused(toy_folder: Path) -> None:
    write(toy_folder, shared="B = 1.0", forward="x = x * self.B")
    config = load(toy_folder)
    prepared = prepare(config)
    from toy_network import Toy

    Toy.B = 2.0
    with pytest.raises(NetworkError, match="built again from its state dict it answers differently"):
        prepared.pretrained.build()
    Toy.B = 1.0
    cross_validate(config, toy_folder / "run", inline=True)
    Toy.B = 2.0
    with pytest.raises(RunFolderError, match="what the network computes with these weights, or its loss, has changed"):
        rebuild_ensemble(toy_folder / "run", trust=True)


def test_members_with_complex_weights_go_on_from_what_was_saved(toy_folder: Path) -> None:
    write(toy_folder, **COMPLEX)
    prepared = prepare(load(toy_folder))
    problem, spec = prepared.problem, prepared.first_round[0]
    own = prepare_strategy(problem, prepared.pretrained, prepared.strategies["own"], "float32", CPU)
    whole, first, second = (
        start_fitter(problem, own, spec, problem.keys, FitSettings(packing="looped"), CPU) for _ in range(3)
    )
    for epoch in range(2):
        whole.run_epoch(epoch)
    first.run_epoch(0)
    save_checkpoint(toy_folder / "c.pt", {"members": list(first.save().values())})
    saved = load_checkpoint(toy_folder / "c.pt")
    assert saved is not None
    second.load(dict(zip(problem.keys, saved["members"], strict=True)))
    second.run_epoch(1)
    for key, predicted in whole.predict().items():
        np.testing.assert_allclose(second.predict()[key], predicted, atol=1e-6)


def test_complex_numbers_go_through_a_run_to_its_exports(toy_folder: Path) -> None:
    """Weights that learn, and what they read of the frozen part."""
    write(toy_folder, **COMPLEX)
    values = {"cv.seeds": 2, "cv.strategies": ["own", "line"], "strategies.line": {"train": ["head.*"], "fit": "ridge"}}
    cross_validate(load(toy_folder, **values), toy_folder / "run", inline=True)
    rebuild_ensemble(toy_folder / "run", trust=True, strategies=["own"])
    ensemble, x = Ensemble.load("run"), np.load("x.npy")
    assert ensemble.card.split == ""
    assert ensemble.states["own"]["head.w"].is_complex()
    assert not torch.allclose(ensemble.states["own"]["head.w"][0].imag, ensemble.states["own"]["head.w"][3].imag)
    averaged = average_weights(ensemble)["head.w"]
    torch.testing.assert_close(averaged[0], ensemble.states["own"]["head.w"].mean(0), rtol=1e-5, atol=1e-6)
    path = export_ensemble(ensemble, toy_folder / "ensemble.pt2")
    found = torch.export.load(path).module()(torch.from_numpy(x))[0]
    np.testing.assert_allclose(found.numpy(), ensemble.predict(x).mean, atol=1e-5)


@pytest.mark.parametrize("kept", [False, True], ids=["drawn", "checkpoint"])
def test_lazy_modules_take_their_sizes_from_a_sample_or_the_checkpoint(toy_folder: Path, kept: bool) -> None:
    write(toy_folder, init="self.body, self.norm = nn.LazyLinear(8), nn.LazyBatchNorm1d()", forward="x = self.norm(x)")
    values = {}
    if kept:
        state = prepare(load(toy_folder)).pretrained.weights
        torch.save(dict(state), "w.pt")
        values["model.checkpoint"] = "w.pt"
    try_out(toy_folder, **{"strategies.own.train": ["*"]}, **values)
    cross_validate(load(toy_folder, **values), toy_folder / "run", inline=True)


def test_a_train_that_returns_nothing_is_taken(toy_folder: Path) -> None:
    write(toy_folder, shared="def train(self, mode=True): super().train(mode)")
    try_out(toy_folder)


FAULTY = """
class Faulty(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, g):
        raise ValueError('no way back')
"""


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("train", ["*", "head.*"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_activations_have_the_gradients_of_a_plain_loop(
    toy_folder: Path, reentrant: bool, train: str
) -> None:
    """The pass back computes them again, by the member's tensors."""
    code = f"return self.head(checkpoint(lambda x: torch.tanh(self.body(x)), x, use_reentrant={reentrant}))"
    write(toy_folder, init="self.norm = nn.BatchNorm1d(6)", forward=f"x = self.norm(x)\n        {code}")
    path = toy_folder / "toy_network.py"
    path.write_text(f"from torch.utils.checkpoint import checkpoint\n{path.read_text()}")
    config = load(toy_folder, **{"strategies.own.train": [train], "compute.packing": "looped"})
    prepared = prepare(config)
    strategy, inputs = prepared.strategies["own"], torch.from_numpy(np.load("x.npy")[:4])
    split = prepare_strategy(prepared.problem, prepared.pretrained, strategy, "float32", CPU).split
    plain, state = prepared.pretrained.build(), {name: own.clone() for name, own in split.state.items()}
    set_training_modes(plain, split.trained_names)
    plain(inputs).sum().backward()
    leaves = [state[name].requires_grad_() for name in split.trained_names]
    features = split.take(split.compute_features(inputs))
    split.hold(state, lambda: split.apply_tail(state, features, training=True).sum().backward())
    for name, leaf in zip(split.trained_names, leaves, strict=True):
        torch.testing.assert_close(leaf.grad, plain.get_parameter(name).grad, rtol=1e-4, atol=1e-6)
    cross_validate(config, toy_folder / "run", inline=True)  # or no candidate would be completed


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_what_a_checkpoint_keeps_gradients_from_is_named(toy_folder: Path) -> None:
    write(toy_folder, forward="return torch.utils.checkpoint.checkpoint(self.head, self.body(x), use_reentrant=True)")
    path = toy_folder / "toy_network.py"
    path.write_text(f"import torch.utils.checkpoint\n{path.read_text()}")
    with pytest.raises(
        StrategyError, match=r"got none for head.linear.weight, head.linear.bias; say use_reentrant=Fal"
    ):
        try_out(toy_folder)


def test_what_is_raised_on_the_way_back_is_said_before_anything_is_trained(toy_folder: Path) -> None:
    write(toy_folder, run="h = Faulty.apply(self.linear(h)); return h")
    path = toy_folder / "toy_network.py"
    path.write_text(path.read_text().replace("class Inner", FAULTY + "\n\nclass Inner"))
    with pytest.raises(NetworkError, match=r"on the way back it raised ValueError: no way back \(toy_network.py, line"):
        try_out(toy_folder)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            "torch.jit.script(Toy())",
            r"must be Python code, got TorchScript: the network itself \(RecursiveScriptModule\)",
        ),
        ("nn.Sequential(torch.jit.script(Toy()))", "got TorchScript: 0"),
        ("Old()", r"must have train\(self, mode=True\).*got one that takes no mode in the network itself \(Old\)"),
        ("hook(Toy())", "hooks on gradients of parameters are not called, .* got one on head.linear.weight; write"),
        ("exported()", "must take train.mode. and eval.., as torch.nn.Module does, but it raised NotImplementedError"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_what_cannot_be_called_with_a_member_s_tensors_is_refused(
    toy_folder: Path, ray_ft_here: Callable, made: str, message: str
) -> None:
    """In one line, also where it is given from Python."""
    write_made(toy_folder, made)
    done = ray_ft_here("check", "-c", "toy.yaml", "--set", "model.factory=toy_network:build")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert re.search(message, done.stderr)
    if made == "exported()":  # a copy of which forgets that it refused
        return
    from toy_network import build

    with pytest.raises(NetworkError, match=message):
        package.cross_validate(build(), (np.load("x.npy"), np.load("y.npy")), inline=True, progress=False)


WRAPPED = """

class Old(Toy):
    def train(self):
        return super().train()


def hook(network):
    network.head.linear.weight.register_hook(lambda gradient: 0 * gradient)
    return network


def exported():
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(Toy(), (torch.zeros(2, 6),), dynamic_shapes=shapes).module()


def build() -> nn.Module:
    return MADE
"""


def write_made(folder: Path, made: str) -> None:
    write(folder)
    path = folder / "toy_network.py"
    path.write_text(path.read_text() + WRAPPED.replace("MADE", made))


@pytest.mark.parametrize("made", ["nn.DataParallel(Toy())", "torch.compile(Toy(), backend='eager')"])
def test_what_runs_a_network_is_taken_off(toy_folder: Path, made: str) -> None:
    write_made(toy_folder, made)
    prepared = prepare(load(toy_folder, **{"model.factory": "toy_network:build"}))
    assert set(prepared.pretrained.weights) == {
        "body.weight", "body.bias", "head.linear.weight", "head.linear.bias"
    }  # fmt: skip


def test_hooks_of_modules_are_called_on_the_way_back(toy_folder: Path) -> None:
    """A graph has none, so the whole network runs."""
    write(toy_folder, init="self.head.register_full_backward_hook(lambda own, given, got: tuple(g / 2 for g in given))")
    prepared = prepare(load(toy_folder, **{"strategies.own.train": ["*"]}))
    strategy = prepared.strategies["own"]
    split = prepare_strategy(prepared.problem, prepared.pretrained, strategy, "float32", CPU).split
    assert "its gradients and buffers would be off" in split.reason
