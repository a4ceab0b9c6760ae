"""DeepLC's network for one chromatography, and peptides that were measured on another: what the config names.

Weights and measurements are those that the package `deeplc` (Apache 2.0) installs; none of them is here.
"""

from pathlib import Path

import deeplc
import numpy as np
import pandas as pd
import torch
from deeplc._model_ops import load_model
from deeplc.core import DEFAULT_MODEL, DEFAULT_TASK_NAME
from deeplc.data import DeepLCDataset
from torch import Tensor, nn

MEASURED = Path(deeplc.__file__).parent / "package_data" / "examples" / "example_psms.tsv.gz"
Samples = dict[str, dict[str, np.ndarray] | np.ndarray]


class RetentionTime(nn.Module):
    """What DeepLC's network says of one of the 6,543 chromatographies that it was trained on.

    The package's head has a vector, a scale and a shift for each of them. Of the one that is kept they are a linear
    layer.

    Args:
        setup: The name of that chromatography; the default is the package's own.
    """

    def __init__(self, setup: str = DEFAULT_TASK_NAME) -> None:
        super().__init__()
        pretrained = load_pretrained()
        kept, factors = pretrained.task_names.index(setup), pretrained.head
        self.encoder = pretrained.encoder
        self.proj = factors.proj
        self.head = nn.Linear(factors.rank, 1)
        with torch.no_grad():
            self.head.weight.copy_(factors.embedding[kept] * factors.scale[kept])
            self.head.bias.copy_(factors.shift[kept])

    def forward(self, atoms: Tensor, whole: Tensor, residues: Tensor) -> Tensor:
        """Predict minutes, shape (n,).

        Args:
            atoms: Atoms of each residue (C, H, N, O, S, P), shape (n, 60, 6).
            whole: What describes the whole peptide, shape (n, 67).
            residues: Which of 20 amino acids each residue is, shape (n, 60, 20).
        """
        minutes: Tensor = self.head(self.proj(self.encoder(atoms, whole, residues)))
        return minutes.squeeze(-1)


def load_pretrained() -> nn.Module:
    """Load the package's default network, of all chromatographies."""
    network: nn.Module = load_model(DEFAULT_MODEL, device="cpu")
    return network


def read_peptides() -> pd.DataFrame:
    """Read peptides and the minutes after which each was measured, on average.

    Identifications of decoys, and those of which more than 1 % are false (`qvalue`), are left out. So are modified
    peptides, as the file names modifications by a mass that the package cannot read, and those that were found at times
    more than a minute apart, one of which must be of something else.
    """
    found = pd.read_csv(MEASURED, sep="\t")
    found = found[~found["is_decoy"] & (found["qvalue"] <= 0.01) & ~found["peptidoform"].str.contains("[", regex=False)]
    peptides = found["peptidoform"].str.partition("/")[0]  # without the charge
    times = found.groupby(peptides)["retention_time"]
    minutes = times.mean()[times.max() - times.min() <= 1]
    return minutes.rename("minutes").rename_axis("peptide").reset_index()


def choose_peptides(n: int, seed: int, fresh: bool) -> pd.DataFrame:
    """Draw peptides by a seed, or take the rest."""
    peptides = read_peptides()
    order = np.random.default_rng(seed).permutation(len(peptides))
    return peptides.iloc[order[n:] if fresh else order[:n]]


def load(n: int = 100, seed: int = 0, fresh: bool = False) -> Samples:
    """Load samples for `ray-ft`: those that are drawn, or the rest."""
    chosen = choose_peptides(n, seed, fresh)
    return {"inputs": encode(list(chosen["peptide"])), "targets": chosen["minutes"].to_numpy(np.float32)}


def encode(peptides: list[str]) -> dict[str, np.ndarray]:
    """Encode peptides as the network reads them."""
    encoded = DeepLCDataset(
        peptides, add_terminal_composition=True, legacy_positional_deltas=False, include_rolling_sum=False
    )
    atoms, _, whole, residues = encoded.encode_batch(range(len(peptides)))
    return {"atoms": atoms.numpy(), "whole": whole.numpy(), "residues": residues.numpy()}
