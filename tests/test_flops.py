"""Operations are counted where torch's own counter sees one fused call."""

import torch
from torch import nn

from ray_ft.models.flops import count_flops


def test_a_recurrent_layer_counts_two_operations_a_weight_step_and_sample() -> None:
    network = nn.LSTM(4, 16, num_layers=2, batch_first=True).eval()
    n_weights = sum(parameter.numel() for parameter in network.parameters() if parameter.dim() > 1)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            assert count_flops(lambda: network(torch.ones(3, 6, 4))) == 2 * 3 * 6 * n_weights


def test_a_transformer_counts_as_much_on_its_fast_path() -> None:
    network = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2).eval()
    inputs = torch.ones(3, 6, 16)
    with torch.no_grad():
        fast = count_flops(lambda: network(inputs))
    products = sum(layer.weight.numel() for layer in network.modules() if isinstance(layer, nn.Linear))
    in_proj = sum(layer.self_attn.in_proj_weight.numel() for layer in network.layers)
    attention = 2 * 2 * 2 * 3 * 6 * 6 * 16  # two products in two layers
    assert fast == 2 * 3 * 6 * (products + in_proj) + attention
    assert torch.backends.mha.get_fastpath_enabled()
