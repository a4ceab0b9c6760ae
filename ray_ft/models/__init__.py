"""The network: DiffractionNet read off its checkpoint, or any module that a factory builds."""

from ray_ft.models.calling import Collate, call_as_one
from ray_ft.models.checkpoints import read_weights
from ray_ft.models.depth import find_tied, measure_depths, order_layers, propose_strategies
from ray_ft.models.diffraction_net import DiffractionNet
from ray_ft.models.factory import Factory, seed_all
from ray_ft.models.last_layer import find_last_layer, renew_head
from ray_ft.models.loading import build_network, load_network, load_pretrained
from ray_ft.models.new_head import NewHead, give_head
from ray_ft.models.pretrained import (
    SAME,
    Pretrained,
    agree,
    answer_in_shape,
    copy_state,
    find_answer_shape,
    finish_lazy,
    predict_all,
)

__all__ = [
    "SAME",
    "Collate",
    "DiffractionNet",
    "Factory",
    "NewHead",
    "Pretrained",
    "agree",
    "answer_in_shape",
    "build_network",
    "call_as_one",
    "copy_state",
    "find_answer_shape",
    "find_last_layer",
    "find_tied",
    "finish_lazy",
    "give_head",
    "load_network",
    "load_pretrained",
    "measure_depths",
    "order_layers",
    "predict_all",
    "propose_strategies",
    "read_weights",
    "renew_head",
    "seed_all",
]
