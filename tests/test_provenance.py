"""Hashes name content, whatever its order or device."""

import numpy as np
import torch

from ray_ft.files.hashes import hash_arrays, hash_tensors
from ray_ft.runs.provenance import describe_environment


def test_tensors_are_named_by_name_and_content() -> None:
    a, b = torch.arange(4.0), torch.zeros(2)
    assert hash_tensors({"a": a, "b": b}) == hash_tensors({"b": b, "a": a.clone()})
    assert hash_tensors({"a": a}) != hash_tensors({"b": a})
    changed = a.clone()
    changed[3] = torch.nextafter(changed[3], torch.tensor(9.0))
    assert hash_tensors({"a": a}) != hash_tensors({"a": changed})


def test_arrays_are_named_by_shape_and_type_too() -> None:
    a = np.zeros(4, np.float32)
    assert len({hash_arrays(a), hash_arrays(a.reshape(2, 2)), hash_arrays(a.view(np.int32)), hash_arrays(a, a)}) == 4


def test_the_environment_names_versions() -> None:
    described = describe_environment()
    assert described["versions"]["torch"] == torch.__version__.split("+")[0] or torch.__version__
    assert described["command"]
