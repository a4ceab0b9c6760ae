"""DiffractionNet: a structure of one periodic cell in, the spectra of four detector quadrants out.

The module names and shapes are the layout of the checkpoints that it reads, so a state dict loads with `strict=True`.
"""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

N_QUADRANTS = 4
HEAD_DIM = 32  # features of one attention head: fixed, because a checkpoint's shapes do not show it
GRID_PX = 16  # side of the grid on which the Fourier mixing acts: an eighth of the 128 pixels of the input
POOL_PX = 4  # side of the last stage's grid, whose cells become the decoder's tokens


class DiffractionNet(nn.Module):
    """CNN encoder with Fourier mixing, FiLM-conditioned queries over wavelengths, decoder, spectral head.

    Args:
        n_blocks: Residual blocks in each of the four stages.
        widths: Channels of the stem and of the four stages.
        d_model: Width of the tokens and of the decoder, a multiple of 32.
        n_decoder_blocks: Decoder blocks.
        n_wavelengths: Points of the output spectra.
        wav_kernel: Odd size of the convolutions over wavelengths.
        n_heads: Attention heads; `d_model // 32` unless given.
        dropout_cnn: Channel dropout of the stem and of the residual blocks.
        dropout_decoder: Dropout of FiLM and of the decoder.
        dropout_head: Dropout inside the head.
    """

    def __init__(
        self,
        n_blocks: Sequence[int] = (2, 2, 1, 1),
        widths: Sequence[int] = (64, 96, 128, 192, 256),
        d_model: int = 256,
        n_decoder_blocks: int = 4,
        n_wavelengths: int = 301,
        wav_kernel: int = 15,
        n_heads: int | None = None,
        dropout_cnn: float = 0.02,
        dropout_decoder: float = 0.03,
        dropout_head: float = 0.05,
    ) -> None:
        super().__init__()
        stem, *stages = widths
        self.spec_bias = nn.Parameter(torch.zeros(1, N_QUADRANTS, n_wavelengths))
        self.stem_conv = nn.Conv2d(1, stem, 5, stride=2, bias=False)
        self.stem_gn = group_norm(stem)
        self.stem_dropout = nn.Dropout2d(dropout_cnn)
        self.stage1 = build_stage(stem, stages[0], n_blocks[0], dropout_cnn)
        self.stage2 = build_stage(stages[0], stages[1], n_blocks[1], dropout_cnn)
        self.fourier_mix = FourierMix(stages[1])
        self.stage3 = build_stage(stages[1], stages[2], n_blocks[2], dropout_cnn)
        self.stage4 = build_stage(stages[2], stages[3], n_blocks[3], dropout_cnn)
        self.spatial_pool = SpatialPool(stages[3], d_model)
        self.wav_embed = WavelengthEmbedding(n_wavelengths, d_model)
        self.film_proj = nn.Sequential(
            nn.Flatten(), nn.Linear(stages[3], d_model), nn.SiLU(), nn.Dropout(dropout_decoder)
        )
        self.film_gate = nn.Linear(d_model, d_model)
        heads = n_heads or max(1, d_model // HEAD_DIM)
        self.dec = nn.ModuleList(
            DecoderBlock(d_model, heads, wav_kernel, dropout_decoder) for _ in range(n_decoder_blocks)
        )
        self.head = nn.Sequential(
            nn.Linear(d_model, d_model), nn.SiLU(), nn.Dropout(dropout_head), nn.Linear(d_model, N_QUADRANTS)
        )

    def forward(self, x: Float[Tensor, "batch 1 128 128"]) -> Float[Tensor, "batch 2 2 wavelength"]:
        """Predict the share of the incident power, 0 to 1, in each quadrant at each wavelength."""
        x = self.stem_dropout(F.silu(self.stem_gn(self.stem_conv(pad_periodic(x, 2)))))
        x = self.fourier_mix(self.stage2(self.stage1(x)))
        x = self.stage4(self.stage3(x))
        tokens = self.spatial_pool(x)  # (17, B, d)
        gate = self.film_gate(self.film_proj(F.adaptive_avg_pool2d(x, 1)))  # (B, d)
        query = self.wav_embed().unsqueeze(1) + gate.unsqueeze(0)  # (L, B, d)
        for block in self.dec:
            query = block(query, tokens)
        logits = self.head(query).permute(1, 2, 0) + self.spec_bias  # (B, 4, L)
        return torch.sigmoid(logits).reshape(logits.shape[0], 2, 2, logits.shape[2])


class ResidualBlock(nn.Module):
    """Two circular 3x3 convolutions with GroupNorm beside an identity or 1x1 skip."""

    def __init__(self, n_in: int, n_out: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride=stride, bias=False)
        self.gn1 = group_norm(n_out)
        self.dropout1 = nn.Dropout2d(dropout)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, bias=False)
        self.gn2 = group_norm(n_out)
        self.dropout2 = nn.Dropout2d(dropout)
        same_shape = n_in == n_out and stride == 1
        self.skip = nn.Identity() if same_shape else nn.Conv2d(n_in, n_out, 1, stride=stride, bias=False)

    def forward(self, x: Float[Tensor, "batch n_in height width"]) -> Float[Tensor, "batch n_out h w"]:
        y = self.dropout1(F.silu(self.gn1(self.conv1(pad_periodic(x, 1)))))
        y = self.dropout2(self.gn2(self.conv2(pad_periodic(y, 1))))
        return F.silu(y + self.skip(x))


class FourierMix(nn.Module):
    """A learned complex weight on each channel's spatial frequencies: a global, periodic convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        weight = torch.randn(channels, GRID_PX, GRID_PX // 2 + 1, 2) * 0.02
        self.spectral_weight = nn.Parameter(weight)
        self.norm = group_norm(channels)

    def forward(self, x: Float[Tensor, "batch channel 16 16"]) -> Float[Tensor, "batch channel 16 16"]:
        spectrum = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.spectral_weight)
        mixed = torch.fft.irfft2(spectrum, s=(GRID_PX, GRID_PX), norm="ortho")
        return F.silu(self.norm(mixed + x))


class SpatialPool(nn.Module):
    """The last stage's 4x4 cells, row by row, and their mean as 17 tokens with learned positions."""

    def __init__(self, channels: int, d_model: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, d_model, 1, bias=False)
        self.global_proj = nn.Sequential(nn.Flatten(), nn.Linear(channels, d_model), nn.SiLU())
        self.pos_embed = nn.Parameter(torch.randn(POOL_PX**2 + 1, 1, d_model) * 0.02)

    def forward(self, x: Float[Tensor, "batch channel 4 4"]) -> Float[Tensor, "17 batch d_model"]:
        cells = self.proj(x).flatten(2).permute(2, 0, 1)
        whole = self.global_proj(F.adaptive_avg_pool2d(x, 1)).unsqueeze(0)
        return torch.cat([cells, whole]) + self.pos_embed


class WavelengthEmbedding(nn.Module):
    """Sinusoidal features of the normalised wavelength, then a learned projection."""

    lam_norm: Tensor
    freqs: Tensor

    def __init__(self, n_wavelengths: int, d_model: int) -> None:
        super().__init__()
        half = d_model // 2
        self.register_buffer("lam_norm", torch.linspace(0, 1, n_wavelengths))
        self.register_buffer("freqs", 10000 ** (-torch.arange(half) / half))
        self.proj = nn.Sequential(nn.Linear(d_model, d_model), nn.SiLU())

    def forward(self) -> Float[Tensor, "wavelength d_model"]:
        phase = 2 * math.pi * self.lam_norm.unsqueeze(1) * self.freqs
        embedding: Tensor = self.proj(torch.cat([phase.sin(), phase.cos()], dim=1))
        return embedding


class DecoderBlock(nn.Module):
    """Three pre-norm residual steps: attention to the tokens, mixing over wavelengths, feed-forward."""

    def __init__(self, d_model: int, n_heads: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.norm_cross = nn.LayerNorm(d_model)
        self.cross_attn = nn.MultiheadAttention(d_model, n_heads, dropout=dropout)
        self.norm_wav = nn.LayerNorm(d_model)
        self.wav_dw_conv = nn.Conv1d(d_model, d_model, kernel, padding=kernel // 2, groups=d_model, bias=False)
        self.wav_pw_conv = nn.Conv1d(d_model, d_model, 1, bias=False)
        self.wav_dropout = nn.Dropout(dropout)
        self.norm_ff = nn.LayerNorm(d_model)
        inner = 4 * d_model
        self.ff = nn.Sequential(
            nn.Linear(d_model, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, d_model), nn.Dropout(dropout)
        )

    def forward(
        self, query: Float[Tensor, "wavelength batch d_model"], tokens: Float[Tensor, "token batch d_model"]
    ) -> Float[Tensor, "wavelength batch d_model"]:
        attended, _ = self.cross_attn(self.norm_cross(query), tokens, tokens, need_weights=False)
        query = query + attended
        query = query + self.wav_dropout(self.mix_wavelengths(self.norm_wav(query)))
        refined: Tensor = query + self.ff(self.norm_ff(query))
        return refined

    def mix_wavelengths(self, query: Float[Tensor, "wavelength batch d_model"]) -> Tensor:
        """Apply the two convolutions with the channels last in memory, where they are twice as fast."""
        length, batch, channels = query.shape
        image = query.transpose(0, 1).contiguous().view(batch, 1, length, channels).permute(0, 3, 1, 2)
        weight, width = self.wav_dw_conv.weight.unsqueeze(2), self.wav_dw_conv.kernel_size[0]
        filtered = F.silu(F.conv2d(image, weight, padding=(0, width // 2), groups=channels))
        return F.linear(filtered.squeeze(2).permute(2, 0, 1), self.wav_pw_conv.weight.squeeze(-1))


def read_params(shapes: Mapping[str, Sequence[int]]) -> dict[str, object]:
    """Read arguments of `DiffractionNet` off the shapes in its state dict; what is missing there is a `KeyError`."""
    stages = range(1, 5)
    return {
        "n_blocks": tuple(count_children(shapes, f"stage{i}.") for i in stages),
        "widths": (shapes["stem_conv.weight"][0], *(shapes[f"stage{i}.0.conv1.weight"][0] for i in stages)),
        "d_model": shapes["film_gate.weight"][0],
        "n_decoder_blocks": count_children(shapes, "dec."),
        "n_wavelengths": shapes["spec_bias"][2],
        "wav_kernel": shapes["dec.0.wav_dw_conv.weight"][2],
    }


def count_children(shapes: Mapping[str, Sequence[int]], prefix: str) -> int:
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})


def build_stage(n_in: int, n_out: int, n_blocks: int, dropout: float) -> nn.Sequential:
    first = ResidualBlock(n_in, n_out, 2, dropout)
    return nn.Sequential(first, *(ResidualBlock(n_out, n_out, 1, dropout) for _ in range(n_blocks - 1)))


def group_norm(channels: int) -> nn.GroupNorm:
    """Sixteen groups, or the most below that divide the channels."""
    return nn.GroupNorm(math.gcd(16, channels), channels)


def pad_periodic(x: Tensor, width: int) -> Tensor:
    return F.pad(x, (width,) * 4, mode="circular")
