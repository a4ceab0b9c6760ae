"""NeuralFoil's network in PyTorch: from an airfoil and its flow to lift, drag and moment.

The weights are those of the package `neuralfoil` (MIT, see weights/LICENSE.txt), of which the last layer's rows for
CL, CD and CM are kept; `convert.py` takes them out of the installed package.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

SIZES = {"small": (64, 3), "xlarge": (128, 5), "xxxlarge": (512, 6)}  # width and number of the hidden layers
FLOW = ("alpha", "Re", "n_crit", "xtr_upper", "xtr_lower")
INPUTS = (
    *(f"upper_{i}" for i in range(8)),
    *(f"lower_{i}" for i in range(8)),
    "leading_edge",
    "te_thickness",
    *FLOW,
)
"""Kulfan's 18 parameters of the shape, as `aerosandbox.KulfanAirfoil` has them; alpha in degrees."""
OUTPUTS = ("CL", "ln_CD", "CM")


class NeuralFoil(nn.Module):
    """A perceptron that is asked about the airfoil and about its mirror image, as it was trained.

    Args:
        size: One of `SIZES`.
        symmetric: Whether it is asked about both. The mean of the two is lifted the other way when the airfoil is
            turned upside down, whatever the weights; where that does not hold, as with a flap, it cannot be learnt.
    """

    def __init__(self, size: str = "small", symmetric: bool = True) -> None:
        super().__init__()
        self.symmetric = symmetric
        width, depth = SIZES[size]
        widths = [25, *[width] * depth]
        layers: list[nn.Module] = []
        for n_in, n_out in pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Linear(width, len(OUTPUTS)))

    def forward(self, x: Tensor) -> Tensor:
        """Predict CL, ln CD and CM, shape (n, 3), of `INPUTS` in physical units, shape (n, 23)."""
        encoded = encode(x)
        if not self.symmetric:
            return decode(self.net(encoded))
        straight, mirrored = self.net(torch.stack([encoded, mirror(encoded)], 1)).unbind(1)
        upside_down = torch.stack([-mirrored[:, 0], mirrored[:, 1], -mirrored[:, 2]], 1)
        return decode((straight + upside_down) / 2)


def encode(x: Tensor) -> Tensor:
    """Scale `INPUTS`, shape (n, 23), to what the first layer reads, shape (n, 25)."""
    shape, (alpha, reynolds, n_crit, *xtr) = x[:, :17], x[:, 18:].unbind(1)
    alpha = torch.deg2rad(alpha)
    flow = [
        50 * x[:, 17],
        torch.sin(2 * alpha),
        torch.cos(alpha),
        torch.sin(alpha) ** 2,
        (torch.log(reynolds) - 12.5) / 3.5,
        (n_crit - 9) / 4.5,
        *xtr,
    ]
    return torch.cat([shape, torch.stack(flow, 1)], 1)


def mirror(encoded: Tensor) -> Tensor:
    """Turn an encoded airfoil and its flow, shape (n, 25), upside down."""
    upper, lower, leading_edge, te_thickness = encoded[:, :8], encoded[:, 8:16], encoded[:, 16:17], encoded[:, 17:18]
    sine, between, xtr_upper, xtr_lower = encoded[:, 18:19], encoded[:, 19:23], encoded[:, 23:24], encoded[:, 24:25]
    return torch.cat([-lower, -upper, -leading_edge, te_thickness, -sine, between, xtr_lower, xtr_upper], 1)


def decode(outputs: Tensor) -> Tensor:
    """Scale what the last layer says, shape (n, 3), to CL, ln CD and CM."""
    cl, drag, cm = outputs.unbind(1)
    return torch.stack([cl / 2, 2 * (drag - 2), cm / 20], 1)
