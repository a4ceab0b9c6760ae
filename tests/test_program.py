"""Programs: what a graph computes, after a trip through JSON; and what a foreign one may not do."""

import contextlib
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.export import Dim, export

from ray_ft.split.program import build_program, read_program


class Mixed(nn.Module):
    """Sizes, constants, types and lists."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).view(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.cat([x @ self.weight, x.new_ones(x.shape[0], 1)], 1)
        z = y.reshape(x.shape[0] * 2, -1).clamp(max=float("inf"))
        return torch.ones_like(z, dtype=torch.float64).sum(1) * z.sum(1)


def test_a_program_is_its_graph_after_json() -> None:
    network = Mixed()
    program = export(network, (torch.randn(4, 2),), dynamic_shapes=({0: Dim("n")},))
    for node in program.graph.find_nodes(op="placeholder")[:1]:
        node.op, node.target = "get_attr", "the weight"  # as the package's own graphs have their constants
    written = build_program(program.graph)
    assert written.constants == ["the weight"]
    again = read_program(json.loads(json.dumps(written.as_dict())))
    for n in (1, 5):
        x = torch.randn(n, 2)
        (found,) = again.run((x,), {"the weight": network.weight})
        torch.testing.assert_close(found, network(x))


def make_program(*steps: list, output: object = None) -> dict:
    return {"n_inputs": 1, "steps": list(steps), "output": output}


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (make_program(["os.system", ["id"], {}]), "an operation of torch's aten, got os.system"),
        (make_program(["aten.from_file.default", ["/etc/passwd"], {}]), "got aten.from_file.default"),
        (make_program(["aten.save.default", [], {}]), "got aten.save.default"),
        (make_program(["aten._sparse_coo_tensor_unsafe.default", [], {}]), "got aten._sparse_coo_tensor_unsafe"),
        (make_program(["aten.zero_.default", [{"value": 0}], {}], output={"value": 9}), "names an earlier value"),
        (make_program(["aten.set_.source_Tensor", [], {}]), "got aten.set_.source_Tensor"),
        (make_program(["aten.__class__.mro", [], {}]), "aten.__class__.mro"),
        (make_program(["aten.add.Nonsense", [], {}]), "no operation aten.add.Nonsense"),
        (make_program(["aten.relu.default", [{"value": 1}], {}]), "names an earlier value"),
        (make_program(["aten.relu.default", [{"torch": "load"}], {}]), "names an earlier value"),
        (make_program(["aten.relu.default", [{"value": 0, "tensor": "a"}], {}]), "too many values"),
        (make_program(output={"value": 3}), "names an earlier value"),
        ({"steps": []}, "n_inputs, steps and output"),
        ([], "n_inputs, steps and output"),
        ({"n_inputs": 1, "steps": [3], "output": None}, "n_inputs, steps and output"),
    ],
)
def test_foreign_programs_are_refused(content: object, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        read_program(content)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["value", "tensor", "x"]), inner),
    max_leaves=8,
)


@given(json_values | st.fixed_dictionaries({"n_inputs": json_values, "steps": json_values, "output": json_values}))
def test_reading_anything_raises_no_other_error(content: object) -> None:
    with contextlib.suppress(ValueError):
        read_program(content)
