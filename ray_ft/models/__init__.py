"""The network: DiffractionNet read off its checkpoint, or any module that a factory builds."""

from ray_ft.models.diffraction_net import DiffractionNet
from ray_ft.models.loading import build_network, load_network, read_weights, seed_all
from ray_ft.models.pretrained import SAME, Pretrained, agree, copy_state, finish_lazy, predict_all

__all__ = [
    "SAME",
    "DiffractionNet",
    "Pretrained",
    "agree",
    "build_network",
    "copy_state",
    "finish_lazy",
    "load_network",
    "predict_all",
    "read_weights",
    "seed_all",
]
