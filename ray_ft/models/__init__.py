"""The network: DiffractionNet read off its checkpoint, or any module that a factory builds."""

from ray_ft.models.diffraction_net import DiffractionNet
from ray_ft.models.loading import build_network, load_network, read_weights
from ray_ft.models.pretrained import Pretrained, predict_all

__all__ = ["DiffractionNet", "Pretrained", "build_network", "load_network", "predict_all", "read_weights"]
