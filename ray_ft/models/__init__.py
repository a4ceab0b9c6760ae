"""The network: DiffractionNet read off its checkpoint, or any module that a factory builds."""

from ray_ft.models.checkpoints import read_weights
from ray_ft.models.diffraction_net import DiffractionNet
from ray_ft.models.loading import build_network, load_network, load_pretrained
from ray_ft.models.pretrained import Pretrained, answer_in_shape, find_answer_shape, predict_all

__all__ = [
    "DiffractionNet",
    "Pretrained",
    "answer_in_shape",
    "build_network",
    "find_answer_shape",
    "load_network",
    "load_pretrained",
    "predict_all",
    "read_weights",
]
