"""Names by content: SHA-256 of texts, files, arrays and tensors."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

if TYPE_CHECKING:
    from torch import Tensor


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Name a file by its content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_arrays(*arrays: Shaped[np.ndarray, "..."]) -> str:
    """Name arrays by shape, type and content."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def hash_tensors(tensors: "Mapping[str, Tensor]") -> str:
    """Name tensors by name, shape, type and content, whatever their order and device."""
    import torch  # here, as help is to be instant

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        plain = tensor.detach().resolve_conj().resolve_neg().cpu().contiguous().flatten()
        digest.update(plain.view(torch.uint8).numpy().data)  # as bytes: NumPy lacks types such as bfloat16
    return digest.hexdigest()
