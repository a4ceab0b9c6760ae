"""Dropout by masks: the right shares, and the very operations that torch would have carried out."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ray_ft.split.dropout import DropoutSite, attend, draw_masks
from ray_ft.split.network import split_network


class Dropping(nn.Module):
    """Every kind of dropout that becomes a mask, and one without effect."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(4, 8), nn.Linear(8, 2)
        self.plain, self.channels, self.none = nn.Dropout(0.25), nn.Dropout2d(0.5), nn.Dropout(0.0)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.plain(self.body(x))
        x = self.none(self.channels(x[:, :, None, None])[:, :, 0, 0])
        rows = torch.stack([x, -x], 1)
        return self.head(self.attention(rows, rows, rows, need_weights=False)[0].sum(1))


def split_dropping() -> tuple:
    torch.manual_seed(0)
    network, x = Dropping(), torch.randn(5, 4)
    split = split_network(network, [name for name, _ in network.named_parameters()], x)
    assert split.reason == ""
    assert not split.draws
    return network, split, split.take(split.compute_features(x), torch.arange(5)), x


def test_each_dropout_becomes_a_mask_of_its_shape() -> None:
    _, split, _, _ = split_dropping()
    masks = split.draw_masks(5, torch.Generator().manual_seed(0))
    assert [(site.module, site.share) for site in split.sites] == [
        ("plain", 0.25),
        ("channels", 0.5),
        ("attention", 0.5),
    ]
    assert [tuple(mask.shape) for mask in masks] == [(5, 8), (5, 8, 1, 1), (5, 2, 2, 2)]


def test_masks_of_ones_leave_the_network_in_evaluation() -> None:
    network, split, features, x = split_dropping()
    ones = tuple(torch.ones_like(mask) for mask in split.draw_masks(5, torch.Generator()))
    torch.testing.assert_close(split.apply_tail(split.state, features, True, ones), network.eval()(x).detach())


def test_a_mask_multiplies_where_the_network_drops() -> None:
    network, split, features, x = split_dropping()
    masks = list(split.draw_masks(5, torch.Generator().manual_seed(1)))
    network.eval()
    network.plain.register_forward_hook(lambda _, args, output: output * masks[0])
    network.channels.register_forward_hook(lambda _, args, output: output * masks[1])
    masks[2] = torch.ones_like(masks[2])
    torch.testing.assert_close(split.apply_tail(split.state, features, True, tuple(masks)), network(x).detach())


def test_a_share_set_later_is_drawn() -> None:
    _, split, _, _ = split_dropping()
    mask = split.set_dropout({"plain": 0.0}).draw_masks(100, torch.Generator())[0]
    assert mask.eq(1).all()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_masks_drop_their_share_and_keep_the_mean(share: float) -> None:
    (mask,) = draw_masks([DropoutSite("", share, ((1000, True), (100, False)))], 1, torch.Generator().manual_seed(0))
    deviation = (share * (1 - share) / mask.numel()) ** 0.5
    assert (mask == 0).float().mean().item() == pytest.approx(share, abs=5 * deviation + 2e-5)
    assert mask.max().item() == pytest.approx(1 / (1 - share), rel=1e-4)


@pytest.mark.parametrize("form", ["plain", "causal", "additive", "boolean", "hidden"])
def test_attention_without_dropout_is_that_of_torch(form: str) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 4, 8) for _ in range(3))
    seen = torch.rand(4, 4).gt(0.5) | torch.eye(4).bool()
    hidden = seen & torch.tensor([True, False, True, True])[:, None]
    masks = {"additive": torch.randn(4, 4), "boolean": seen, "hidden": hidden}
    attn_mask = masks.get(form)
    query.requires_grad_()
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask, is_causal=form == "causal", scale=0.3)
    for mask in (torch.ones(4, 4), None):
        found = attend(mask, query, key, value, attn_mask, form == "causal", 0.3, False)
        torch.testing.assert_close(found, expected)
        slopes = [torch.autograd.grad(own.square().sum(), query, retain_graph=True)[0] for own in (found, expected)]
        torch.testing.assert_close(*slopes)
