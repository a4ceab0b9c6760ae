"""What the package `deeplc` does itself with the 100 peptides: calibration, and fine-tuning.

It warns that fine-tuning below 500 peptides was worse than calibration on all chromatographies that it was tried on.
"""

import numpy as np
from deeplc import core
from psm_utils import PSM, PSMList

from examples.peptides.network import choose_peptides


def calibrate(seed: int) -> np.ndarray:
    """Predict minutes of the peptides that were not drawn, by ridge regression on 80 of the chromatographies."""
    return np.asarray(core.predict_and_calibrate(list_peptides(seed, True), list_peptides(seed, False)))


def finetune(seed: int) -> np.ndarray:
    """Predict the same by the package's fine-tuning."""
    return np.asarray(core.finetune_and_predict(list_peptides(seed, True), list_peptides(seed, False)))


def list_peptides(seed: int, fresh: bool) -> PSMList:
    rows = choose_peptides(100, seed, fresh).itertuples()
    found = [PSM(peptidoform=own.peptide, spectrum_id=str(own.Index), retention_time=own.minutes) for own in rows]
    return PSMList(psm_list=found)
