"""NeuralFoil in PyTorch says what the package says, and what is shipped beside it is what its config reads."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.problems import CASES as PROBLEMS
from benchmarks.problems import load_problem
from examples.airfoil.convert import read_weights
from examples.airfoil.make_dataset import CASES, make_dataset, name_shape
from examples.airfoil.network import INPUTS, OUTPUTS, SIZES, NeuralFoil
from examples.airfoil.xfoil import read_answer
from ray_ft.config import load_config
from ray_ft.cross_validation import prepare

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "airfoil"
ORACLE = Path(__file__).parent / "data" / "airfoil_oracle.npz"
SHIPPED = ("small", "xlarge")
ANSWER = """
   6   rms: 0.2932E-03   max: 0.5059E-02   C at   49  1
       a =  3.000      CL =  0.6807
      Cm = -0.0563     CD =  0.00713   =>   CDf =  0.00441    CDp =  0.00273
 MRCHUE: Convergence failed at   50  side 1    Res =  0.1E-02

 Side 1  free  transition at x/c =  0.4127   49

   7   rms: {rms}   max: -.9276E-05   C at   49  1
       a =  3.000      CL = -0.6801
      Cm = -0.0562     CD =  {cd}   =>   CDf =  0.00441    CDp =  0.00273
      9.000    3.9175   0.007132   0.000000   0.000000   0.000000    0.4127     #
 Cannot open display...aborting
"""


def load_shipped(size: str) -> NeuralFoil:
    network = NeuralFoil(size)
    network.load_state_dict(load_file(EXAMPLE / "weights" / f"{size}.safetensors"))
    return network


def read_case(name: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(EXAMPLE / "data" / f"{name}.npz") as stored:
        return stored["inputs"], stored["targets"]


@pytest.mark.parametrize("size", SHIPPED)
def test_the_network_agrees_with_what_the_package_said(size: str) -> None:
    """`airfoil_oracle.npz` has six points of each case, and what neuralfoil 0.3.3 says of them."""
    with np.load(ORACLE) as oracle:
        found = load_shipped(size)(torch.from_numpy(oracle["inputs"])).numpy(force=True)
        np.testing.assert_allclose(found, oracle[size], rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_the_network_agrees_with_the_package(size: str) -> None:
    neuralfoil = pytest.importorskip("neuralfoil")
    network = NeuralFoil(size)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in read_weights(size).items()})
    rows = read_case("unusual")[0]
    for row, found in zip(rows[:20], network(torch.from_numpy(rows[:20])).numpy(force=True), strict=True):
        said = neuralfoil.get_aero_from_kulfan_parameters(name_shape(row), *row[18:].astype(float), model_size=size)
        expected = np.concatenate([said["CL"], np.log(said["CD"]), said["CM"]])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_mirrored_airfoil_is_lifted_the_other_way() -> None:
    rows = torch.from_numpy(read_case("plain")[0])
    upper, lower, leading_edge, te_thickness, alpha, reynolds, n_crit, above, below = rows.split(
        [8, 8, 1, 1, 1, 1, 1, 1, 1], 1
    )
    turned = torch.cat([-lower, -upper, -leading_edge, te_thickness, -alpha, reynolds, n_crit, below, above], 1)
    network, back = load_shipped("small"), torch.tensor([-1.0, 1.0, -1.0])
    torch.testing.assert_close(network(turned), network(rows) * back, rtol=0, atol=1e-5)
    onesided = NeuralFoil("small", symmetric=False)
    onesided.load_state_dict(network.state_dict())
    torch.testing.assert_close((onesided(rows) + onesided(turned) * back) / 2, network(rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "highest"), [("plain", 0.02), ("mach", 0.2), ("flap", 2.0), ("unusual", 0.3)], ids=CASES
)
def test_targets_are_in_the_units_of_the_network(case: str, highest: float) -> None:
    """The mean of squares, in units of each output's spread; a wrong unit or order is an error far above 2."""
    for name, n in ((case, 100), (f"{case}_fresh", 250 if case == "unusual" else 1000)):
        inputs, targets = read_case(name)
        assert inputs.shape == (n, len(INPUTS))
        assert targets.shape == (n, len(OUTPUTS))
        assert inputs.dtype == targets.dtype == np.float32
        assert np.isfinite(inputs).all()
        assert np.isfinite(targets).all()
        found = load_shipped("xlarge")(torch.from_numpy(inputs)).numpy(force=True)
        errors = ((found - targets) / targets.std(0)) ** 2
        assert errors.mean() < highest


def test_the_config_is_ready_from_the_root_of_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    prepared = prepare(load_config("examples/airfoil/config.yaml"))
    assert set(prepared.strategies) >= {"last_layer", "everything", "norms_and_biases", "ridge"}
    inputs, targets = read_case("mach")
    np.testing.assert_array_equal(prepared.problem.samples.inputs, inputs)
    np.testing.assert_array_equal(prepared.problem.samples.targets, targets)
    expected = load_shipped("small")(torch.from_numpy(inputs)).numpy(force=True)
    np.testing.assert_allclose(prepared.zero_shot, expected, atol=1e-5)


@pytest.mark.parametrize("size", SHIPPED)
@pytest.mark.parametrize("case", PROBLEMS)
def test_the_benchmarks_take_every_case_and_size_that_is_shipped(case: str, size: str) -> None:
    problem = load_problem(f"{case}_{size}")
    inputs, targets = read_case(case.partition("_")[0])
    np.testing.assert_array_equal(problem.train[0][0], inputs)
    np.testing.assert_array_equal(problem.train[1], targets)
    prepared = prepare(problem.config)
    np.testing.assert_array_equal(prepared.problem.samples.inputs, inputs)
    with torch.no_grad():
        said = problem.build()(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(prepared.zero_shot, said, rtol=1e-4, atol=1e-4)


def test_an_answer_of_xfoil_is_its_last_iteration_if_that_has_converged() -> None:
    assert read_answer(ANSWER.format(rms="0.1113E-05", cd="0.00713")) == (-0.6801, 0.00713, -0.0562)
    assert read_answer(ANSWER.format(rms="0.1113E-01", cd="0.00713")) is None
    assert read_answer(ANSWER.format(rms="NaN", cd="0.00713")) is None
    assert read_answer(ANSWER.format(rms="0.1113E-05", cd="-0.00713")) is None
    assert read_answer(100 * ANSWER.format(rms="0.1113E+02", cd="********")) is None
    assert read_answer(" Cannot open display...aborting") is None


@pytest.mark.skipif(shutil.which("xfoil") is None, reason="needs XFoil")
def test_the_shipped_samples_are_made_again_by_any_number_of_workers() -> None:
    pytest.importorskip("neuralfoil")
    for workers in (1, 2):
        inputs, targets, _ = make_dataset("flap", 5, seed=0, workers=workers)
        for found, shipped in zip((inputs, targets), read_case("flap"), strict=True):
            np.testing.assert_allclose(found, shipped[:5], rtol=1e-5, atol=1e-5)
