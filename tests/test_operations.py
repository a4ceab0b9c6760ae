"""Operations of a program: each allowed one computes what torch computes, after JSON; every other one is refused."""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ray_ft.split.network import split_network
from ray_ft.split.operations import GROUPS, find_operation
from ray_ft.split.program import read_program
from ray_ft.split.sharing import describe_obstacle

ALLOWED = [f"aten.{name}" for names in GROUPS.values() for name in names.split()]

random = torch.Generator().manual_seed(0)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=random)


X, Y, Z = draw(3, 4), draw(3, 4), draw(3, 4)
P, Q = X.sigmoid(), Y.sigmoid()  # between 0 and 1
N, M = (10 * X).long(), (3 * Y).long().abs()
A, B = X > 0, Y > 0
C = torch.complex(X, Y)
SQUARE = draw(2, 4, 4)
POSITIVE = SQUARE @ SQUARE.mT + torch.eye(4)
SEQUENCE, SIGNAL, IMAGE, VOLUME = draw(2, 5, 4), draw(2, 4, 8), draw(2, 4, 6, 6), draw(2, 4, 4, 4, 4)
V, W = draw(4), draw(4)
ROW, COLUMN = torch.tensor([2, 0]), torch.tensor([1, 3])  # indices along the axes of X
ROWS, COLUMNS = torch.tensor([[2, 0, 1, 0]]), torch.tensor([[0], [3], [1]])
PAIR, STATE = draw(2, 4), draw(1, 2, 3)


def make_recurrent(n_gates: int) -> list[Tensor]:
    return [draw(3 * n_gates, 4), draw(3 * n_gates, 3), draw(3 * n_gates), draw(3 * n_gates)]


def each(names: str, *args: Any, overload: str = "default", **keywords: Any) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """The same arguments for several operations; a name without an overload has the one that is given."""
    full = (name if "." in name else f"{name}.{overload}" for name in names.split())
    return {f"aten.{name}": (args, keywords) for name in full}


ELEMENTWISE = (
    each("abs absolute acos angle arccos arcsin arctan asin atan ceil cos cosh deg2rad digamma erf erfc erfinv exp", P)
    | each("exp2 expm1 fix floor frac i0 lgamma log log10 log1p log2 logit nan_to_num neg negative positive", P)
    | each("rad2deg reciprocal round rsqrt sgn sign sin sinc sinh special_entr special_erfcx special_expit", P)
    | each("special_gammaln special_i0e special_i1 special_i1e special_log_ndtr special_logit special_ndtr", P)
    | each("special_ndtri special_psi sqrt square tan tanh trunc arctanh atanh special_bessel_j0", P)
    | each("special_bessel_j1 special_bessel_y0 special_bessel_y1", P)
    | each("acosh arccosh", 1 + P)
    | each("asinh arcsinh", X)
    | each("bitwise_not", N)
    | each("clamp.Tensor clip.Tensor", X, -P, Q)
    | each("clamp clip", X, -0.5, None)
    | each("clamp_max.Tensor clamp_min.Tensor", X, Y)
    | each("clamp_max clamp_min", X, 0.2)
    | each("round.decimals", X, decimals=2)
    | each("polygamma", 1, P)
)
ACTIVATIONS = (
    each("celu elu gelu glu hardshrink hardsigmoid hardswish hardtanh leaky_relu log_sigmoid mish relu relu6", X)
    | each("rrelu selu sigmoid silu softplus softshrink", X)
    | each("log_softmax.int softmax.int special_log_softmax special_softmax", X, -1, dtype=torch.float64)
    | each("prelu", X, V)
    | each("threshold", X, 0.1, -1.0)
)
BINARY = (
    each("add div divide fmod mul multiply", X, Y, overload="Tensor")
    | each("arctan2 atan2 floor_divide fmax fmin heaviside hypot logaddexp logaddexp2 maximum minimum", X, Y)
    | each("copysign ldexp remainder rsub sub subtract true_divide", X, Y, overload="Tensor")
    | each("add copysign div divide floor_divide fmod mul multiply remainder rsub", X, 1.5, overload="Scalar")
    | each("sub subtract true_divide", X, 1.5, overload="Scalar")
    | each("div.Tensor_mode divide.Tensor_mode", X, Y, rounding_mode="trunc")
    | each("div.Scalar_mode", X, 0.3, rounding_mode="floor")
    | each("addcdiv addcmul", X, Y, P, value=0.5)
    | each("bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__", N, M, overload="Tensor")
    | each("bitwise_and bitwise_or bitwise_xor __and__ __or__ __xor__", N, 3, overload="Scalar")
    | each("__lshift__ __rshift__", N, M, overload="Tensor")
    | each("__lshift__ __rshift__", N, 2, overload="Scalar")
    | each("float_power.Scalar pow.Scalar remainder.Scalar_Tensor", 2.5, X)
    | each("float_power.Tensor_Scalar pow.Tensor_Scalar", P, 2.5)
    | each("float_power.Tensor_Tensor pow.Tensor_Tensor special_xlog1py xlogy.Tensor", P, Q)
    | each("xlogy.Scalar_Other", P, 2.0)
    | each("xlogy.Scalar_Self", 2.0, P)
    | each("lerp.Scalar", X, Y, 0.3)
    | each("lerp.Tensor", X, Y, P)
    | each("where.self", A, X, Y)
    | each("where.Scalar", A, 1.0, 0.0)
    | each("where.ScalarOther", A, X, -math.inf)
    | each("where.ScalarSelf", A, 1.0, X)
)
COMPARISONS = (
    each("eq ge greater greater_equal gt le less less_equal lt ne not_equal", N, M, overload="Tensor")
    | each("eq ge greater greater_equal gt le less less_equal lt ne not_equal", N, 1, overload="Scalar")
    | each("isclose", X, Y, 1.0)
    | each("isfinite isinf isnan isreal signbit", X / A)
    | each("isin.Tensor_Scalar", N, 1)
    | each("isin.Tensor_Tensor", N, M)
    | each("logical_and logical_or logical_xor", A, B)
    | each("logical_not", A)
)
REDUCTIONS = (
    each("all any", A)
    | each("all any", A, 1, True, overload="dim")
    | each("all any", A, [0, 1], overload="dims")
    | each("amax amin logsumexp", X, [1])
    | each("aminmax", X, dim=1)
    | each("argmax argmin cumprod cumsum cummax cummin logcumsumexp mode", X, 1)
    | each("count_nonzero diff max mean median min nanmean nanmedian nansum prod std std_mean sum var var_mean", X)
    | each("count_nonzero.dim_IntList", N, [1])
    | each("cumulative_trapezoid.dx trapezoid.dx trapz.dx", X, dx=0.1)
    | each("cumulative_trapezoid.x trapezoid.x trapz.x", X, V)
    | each("dist", X, Y, 2)
    | each("gradient.scalarint", X, spacing=0.1, dim=1)
    | each("linalg_norm linalg_vector_norm", X, 2, [1])
    | each("linalg_norm.ord_str", X, "fro")
    | each("max min median nanmedian", X, 1, overload="dim")
    | each("max min", X, Y, overload="other")
    | each("mean.dim sum.dim_IntList", X, [1], True, dtype=torch.float64)
    | each("std std_mean var var_mean", X, [1], False, overload="dim")
    | each("std std_mean var var_mean", X, [1], correction=0, keepdim=True, overload="correction")
    | each("nanquantile quantile", X, torch.tensor([0.2, 0.5]), 1)
    | each("nanquantile quantile", X, 0.3, 1, interpolation="nearest", overload="scalar")
    | each("norm.Scalar", X)
    | each("norm.ScalarOpt_dim", X, 1, [1])
    | each("norm.ScalarOpt_dim_dtype", X, 1, [1], True, dtype=torch.float64)
    | each("norm.ScalarOpt_dtype", X, 1, dtype=torch.float64)
    | each("prod.dim_int", X, 1)
    | each("trace", X)
)
SORTING = (
    each("argsort sort", X, 1, True)
    | each("argsort sort", X, stable=True, dim=1, overload="stable")
    | each("msort", X)
    | each("bucketize.Tensor", X, V.sort().values, right=True)
    | each("searchsorted.Tensor", V.sort().values, X, side="left")
    | each("kthvalue topk", X, 2)
)
SHAPES = (
    each("alias atleast_1d atleast_2d atleast_3d clone contiguous detach diag fliplr flipud lift_fresh_copy mH mT", X)
    | each("adjoint numpy_T ravel squeeze sym_numel t tril triu", X)
    | each("broadcast_tensors", [X, V])
    | each("broadcast_to expand", X, [2, 3, 4])
    | each("diag_embed diagonal linalg_diagonal", SQUARE)
    | each("expand_as reshape_as view_as", X, Y)
    | each("flatten.using_ints", IMAGE, 1, -1)
    | each("flip", X, [1])
    | each("moveaxis movedim transpose", IMAGE, 1, 2, overload="int")
    | each("swapaxes swapdims", IMAGE, 1, 2)
    | each("moveaxis movedim", IMAGE, [1, 2], [3, 1], overload="intlist")
    | each("narrow", X, 1, 1, 2)
    | each("permute", IMAGE, [0, 2, 3, 1])
    | each("repeat tile", X, [2, 1])
    | each("repeat_interleave.self_int", X, 2, 1)
    | each("reshape view", X, [2, -1])
    | each("roll", X, [1], [0])
    | each("rot90", X, 1, [0, 1])
    | each("select.int", X, 1, -1)
    | each("sym_size.int", X, 1)
    | each("slice.Tensor", X, 1, 0, 4, 2)
    | each("squeeze.dim unsqueeze", X[None], 0)
    | each("squeeze.dims", X[None, :, None], [0, 2])
    | each("unflatten.int", X, 1, [2, 2])
    | each("unfold", X, 1, 3, 1)
)
TYPES = (
    each("to.dtype", X, torch.float64)
    | each("to.dtype_layout", X, dtype=torch.int64, layout=torch.strided, device=None)
    | each("to.other type_as", X, N)
)
INDEXING = (
    each("block_diag cartesian_prod", [V, W])
    | each("cat concat stack", [X, Y], 1)
    | each("chunk hsplit.int tensor_split.sections", X, 2, 1)
    | each("hsplit.int vsplit.int", X[:2], 2)
    | each("column_stack dstack hstack vstack", [X, Y])
    | each("diagonal_scatter", SQUARE, PAIR, 0, 1, 2)
    | each("embedding", X, ROWS)
    | each("gather", X, 1, COLUMNS)
    | each("take_along_dim", X, COLUMNS, 1)
    | each("index.Tensor", X, [None, COLUMN])
    | each("index_add index_copy", X, 0, ROW, PAIR)
    | each("index_fill.int_Scalar", X, 1, COLUMN, 0.5)
    | each("index_fill.int_Tensor", X, 1, COLUMN, torch.tensor(0.5))
    | each("index_put", X, [ROW], PAIR, True)
    | each("index_reduce", X, 0, ROW, PAIR, "amax", include_self=False)
    | each("index_select", X, 1, COLUMN)
    | each("masked_fill.Scalar", X, A, -math.inf)
    | each("masked_fill.Tensor", X, A, torch.tensor(0.5))
    | each("masked_scatter", X, A, Y)
    | each("masked_select", X, A)
    | each("meshgrid", [V, W])
    | each("meshgrid.indexing", [V, W], indexing="xy")
    | each("argwhere nonzero", A)
    | each("one_hot", M, 9)
    | each("put", X, ROWS, V)
    | each("take", X, ROWS)
    | each("scatter scatter_add.default", X, 1, COLUMNS, Y, overload="src")
    | each("scatter.value", X, 1, COLUMNS, 0.5)
    | each("scatter.reduce", X, 1, COLUMNS, Y, reduce="add")
    | each("scatter.value_reduce", X, 1, COLUMNS, 0.5, reduce="multiply")
    | each("scatter_reduce.two", X, 1, COLUMNS, Y, "mean", include_self=False)
    | each("select_scatter", X, V, 0, 1)
    | each("slice_scatter", X, PAIR, 0, 1, 3)
    | each("split.Tensor", X, 3, 1)
    | each("split.sizes split_with_sizes", X, [1, 3], 1)
    | each("tensor_split.indices", X, [1, 2], 1)
    | each("unbind.int", X, 1)
)
PRODUCTS = (
    each("addbmm baddbmm", SQUARE[0], SQUARE, POSITIVE, beta=0.5, alpha=2.0)
    | each("addmm", V, X, SQUARE[0], beta=0.5)
    | each("addmv", V[:3], X, W)
    | each("addr", X, V[:3], W)
    | each("bilinear", X, Y, draw(5, 4, 4), draw(5))
    | each("bmm linalg_vecdot", SQUARE, POSITIVE)
    | each("inner kron", X, Y)
    | each("matmul", SQUARE, POSITIVE)
    | each("cdist", X, Y, 2.0, None)
    | each("conv1d", SIGNAL, draw(6, 2, 3), draw(6), [2], [1], [1], 2)
    | each("conv1d.padding", SIGNAL, draw(6, 4, 3), None, [1], "same")
    | each("conv2d", IMAGE, draw(6, 4, 3, 3), draw(6), [2, 2], [1, 1])
    | each("conv2d.padding", IMAGE, draw(6, 4, 3, 3), None, [1, 1], "valid")
    | each("conv3d", VOLUME, draw(6, 4, 3, 3, 3), draw(6), [1, 1, 1], [1, 1, 1])
    | each("conv3d.padding", VOLUME, draw(6, 4, 3, 3, 3), None, [1, 1, 1], "same")
    | each("conv_transpose1d", SIGNAL, draw(4, 2, 3), draw(2), [2], [1], [1])
    | each("conv_transpose2d.input", IMAGE, draw(4, 2, 3, 3), draw(2), [2, 2], [1, 1], [1, 1])
    | each("conv_transpose3d.input", VOLUME, draw(4, 2, 3, 3, 3), draw(2), [2, 2, 2], [1, 1, 1])
    | each("cosine_similarity", X, Y, 1, 1e-6)
    | each("pairwise_distance", X, Y, 2.0)
    | each("cross", X[:, :3], Y[:, :3], 1)
    | each("linalg_cross", X[:, :3], Y[:, :3], dim=1)
    | each("dot ger outer vdot", V, W)
    | each("einsum", "ij,bjk->bik", [X, SQUARE])
    | each("linalg_multi_dot", [X, SQUARE[0], SQUARE[1]])
    | each("linear", X, draw(5, 4), draw(5))
    | each("mm", X, SQUARE[0])
    | each("mv", X, V)
    | each("pdist", X)
    | each("tensordot", X, SQUARE, [1], [1])
)
MATRICES = (
    each("det inverse linalg_cholesky linalg_det linalg_inv linalg_matrix_exp linalg_qr", POSITIVE)
    | each("linalg_slogdet logdet matrix_exp", POSITIVE)
    | each("linalg_householder_product", SQUARE, PAIR)
    | each("linalg_matrix_norm", POSITIVE, 1)
    | each("linalg_matrix_norm.str_ord", POSITIVE, "fro")
    | each("linalg_solve", POSITIVE, SQUARE)
    | each("linalg_solve_triangular", POSITIVE.triu(), SQUARE, upper=True)
)
NORMALISATION = (
    each("_weight_norm", X, P[:, :1], 0)
    | each("alpha_dropout dropout feature_alpha_dropout feature_dropout", IMAGE, 0.5, False)
    | each("batch_norm", IMAGE, V, W, V.clone(), W.exp(), False, 0.1, 1e-5, False)
    | each("instance_norm", IMAGE, V, W, None, None, True, 0.1, 1e-5, False)
    | each("group_norm", IMAGE, 2, V, W, 1e-5)
    | each("layer_norm", X, [4], V, W)
    | each("rms_norm", X, [4], V, 1e-5)
    | each("renorm", X, 2, 0, 1.0)
)
ATTENTION = (
    each("gru.input", SEQUENCE, STATE, make_recurrent(3), True, 1, 0.0, False, False, True)
    | each("gru_cell", X, draw(3, 3), *make_recurrent(3))
    | each("lstm.input", SEQUENCE, [STATE, STATE], make_recurrent(4), True, 1, 0.0, False, False, True)
    | each("lstm_cell", X, [draw(3, 3), draw(3, 3)], *make_recurrent(4))
    | each("rnn_relu.input rnn_tanh.input", SEQUENCE, STATE, make_recurrent(1), True, 1, 0.0, False, False, True)
    | each("rnn_relu_cell rnn_tanh_cell", X, draw(3, 3), *make_recurrent(1))
    | each("scaled_dot_product_attention", IMAGE, IMAGE, IMAGE, None, 0.0, True, scale=0.3)
)  # fmt: skip
GRID = F.affine_grid(draw(2, 2, 3), (2, 4, 5, 5), align_corners=False)
POOLING = (
    each("_upsample_bicubic2d_aa.vec _upsample_bilinear2d_aa.vec", IMAGE, [4, 4], False, None)
    | each("_upsample_nearest_exact1d upsample_nearest1d", SIGNAL, None, [1.5], overload="vec")
    | each("_upsample_nearest_exact2d upsample_nearest2d", IMAGE, [9, 4], None, overload="vec")
    | each("_upsample_nearest_exact3d upsample_nearest3d", VOLUME, None, [2.0, 2.0, 2.0], overload="vec")
    | each("upsample_linear1d.vec", SIGNAL, [11], True, None)
    | each("upsample_bicubic2d upsample_bilinear2d", IMAGE, None, False, [1.5, 2.0], overload="vec")
    | each("upsample_trilinear3d.vec", VOLUME, [5, 5, 5], True, None)
    | each("adaptive_avg_pool1d adaptive_max_pool1d", SIGNAL, [3])
    | each("adaptive_avg_pool2d adaptive_max_pool2d", IMAGE, [3, 1])
    | each("adaptive_avg_pool3d adaptive_max_pool3d", VOLUME, [1, 2, 3])
    | each("affine_grid_generator", draw(2, 2, 3), [2, 4, 5, 5], False)
    | each("grid_sampler", IMAGE, GRID, 0, 0, False)
    | each("avg_pool1d max_pool1d max_pool1d_with_indices", SIGNAL, [3], [2], [1])
    | each("avg_pool2d max_pool2d max_pool2d_with_indices", IMAGE, [3, 2], [2, 2], [1, 1])
    | each("avg_pool3d max_pool3d max_pool3d_with_indices", VOLUME, [2, 2, 2], [2, 2, 2])
    | each("max_unpool2d", *F.max_pool2d(IMAGE, 2, return_indices=True), [6, 6])
    | each("max_unpool3d", *F.max_pool3d(VOLUME, 2, return_indices=True), [4, 4, 4], [2, 2, 2], [0, 0, 0])
    | each("channel_shuffle pixel_shuffle", IMAGE, 2)
    | each("pixel_unshuffle", IMAGE, 3)
    | each("im2col", IMAGE, [2, 2], [1, 1], [0, 0], [2, 2])
    | each("col2im", draw(2, 16, 9), [6, 6], [2, 2], [1, 1], [0, 0], [2, 2])
)
PADDING = each("constant_pad_nd", IMAGE, [1, -1, 0, 2], 0.5) | each("pad", IMAGE, [1, 2, 1, 0], "circular")
COMPLEX = (
    each("_conj angle conj conj_physical imag real resolve_conj resolve_neg view_as_real", C)
    | each("complex polar", X, Y)
    | each("view_as_complex", SEQUENCE[..., :2].contiguous())
    | each("fft_fft fft_hfft fft_ifft fft_irfft", C, 6, -1, "ortho")
    | each("fft_ihfft fft_rfft", X, 6, -1, "forward")
    | each("fft_fft2 fft_fftn fft_hfft2 fft_hfftn fft_ifft2 fft_ifftn fft_irfft2 fft_irfftn", C, [3, 6], [-2, -1])
    | each("fft_ihfft2 fft_ihfftn fft_rfft2 fft_rfftn", X, [3, 6], [-2, -1], "ortho")
    | each("fft_fftfreq fft_rfftfreq", 8, 0.1, dtype=torch.float64)
    | each("fft_fftshift fft_ifftshift", X, [1])
    | each("stft", SIGNAL[:, 0], 4, 2, 4, torch.hann_window(4), False, True, True)
    | each("stft.center", SIGNAL[:, 0], 4, center=True, pad_mode="reflect", return_complex=True)
    | each("istft", torch.stft(SIGNAL[:, 0], 4, 1, window=torch.hann_window(4), return_complex=True), 4, 1,
           window=torch.hann_window(4))
)  # fmt: skip
CREATION = (
    each("arange", 5, dtype=torch.float32, device=None, pin_memory=False)
    | each("arange.start", 1, 5)
    | each("arange.start_step", 1, 9, 2)
    | each("bartlett_window blackman_window eye hamming_window hann_window kaiser_window", 6)
    | each("eye.m", 3, 4)
    | each("full new_full", [2, 3], 0.5)
    | each("full_like", X, 0.5, memory_format=torch.preserve_format)
    | each("new_full", X, [2, 3], 0.5)
    | each("new_ones new_zeros", X, [2, 3], dtype=torch.bool)
    | each("ones zeros", [2, 3], dtype=torch.complex64)
    | each("ones_like zeros_like", X)
    | each("linspace logspace", 0.0, 1.0, 5)
    | each("scalar_tensor", 0.5)
    | each("tril_indices triu_indices", 3, 4, 1)
)
IN_PLACE = (
    each("abs_ atan_ ceil_ cos_ erf_ exp_ exp2_ expm1_ floor_ frac_ log_ log1p_ nan_to_num_ neg_ reciprocal_", P)
    | each("round_ rsqrt_ sigmoid_ sign_ sin_ sqrt_ square_ tan_ tanh_ tril_ triu_ trunc_ zero_", P)
    | each("celu_ elu_ gelu_ hardsigmoid_ hardswish_ hardtanh_ leaky_relu_ mish_ relu_ relu6_ rrelu_ selu_ silu_", X)
    | each("__iand__ __ior__", A, B, overload="Tensor")
    | each("bitwise_not_", N)
    | each("logical_not_", A)
    | each("add_ div_ floor_divide_ fmod_ mul_ remainder_ sub_", X, Y, overload="Tensor")
    | each("add_ div_ floor_divide_ fmod_ mul_ remainder_ sub_", X, 1.5, overload="Scalar")
    | each("div_.Tensor_mode", X, Y, rounding_mode="floor")
    | each("pow_.Scalar", P, 2)
    | each("pow_.Tensor", P, Q)
    | each("addcdiv_ addcmul_", X, Y, P, value=0.5)
    | each("addmm_", X, Y, SQUARE[0])
    | each("baddbmm_", SQUARE, POSITIVE, POSITIVE)
    | each("clamp_", X, None, 0.2)
    | each("clamp_.Tensor", X, P)
    | each("clamp_max_ clamp_min_", X, 0.2)
    | each("threshold_", X, 0.1, -1.0)
    | each("copy_", X, V)
    | each("cumsum_", X, 1)
    | each("fill_.Scalar", X, 0.5)
    | each("fill_.Tensor", X, torch.tensor(0.5))
    | each("lerp_.Scalar", X, Y, 0.3)
    | each("lerp_.Tensor", X, Y, P)
    | each("index_add_ index_copy_", X, 0, ROW, PAIR)
    | each("index_fill_.int_Scalar", X, 1, COLUMN, 0.5)
    | each("index_put_", X, [None, COLUMN], PAIR[0, :2])
    | each("index_reduce_", X, 0, ROW, PAIR, "mean")
    | each("masked_fill_.Scalar", X, A, 0.5)
    | each("masked_fill_.Tensor", X, A, torch.tensor(0.5))
    | each("masked_scatter_", X, A, Y)
    | each("scatter_ scatter_add_.default", X, 1, COLUMNS, Y, overload="src")
    | each("scatter_.value", X, 1, COLUMNS, 0.5)
    | each("scatter_.reduce", X, 1, COLUMNS, Y, reduce="multiply")
    | each("scatter_.value_reduce", X, 1, COLUMNS, 0.5, reduce="add")
    | each("scatter_reduce_.two", X, 1, COLUMNS, Y, "amin")
    | each("squeeze_", X[:1].clone())
    | each("squeeze_.dim unsqueeze_", X[:1].clone(), 0)
    | each("detach_", X)
    | each("transpose_", X, 0, 1)
)
CASES = (
    ELEMENTWISE | ACTIVATIONS | BINARY | COMPARISONS | REDUCTIONS | SORTING | SHAPES | TYPES | INDEXING | PRODUCTS
    | MATRICES | NORMALISATION | ATTENTION | POOLING | PADDING | COMPLEX | CREATION | IN_PLACE
)  # fmt: skip


def encode(argument: Any, inputs: list[Tensor]) -> Any:
    """Write an argument down as a program has it; tensors become inputs."""
    if isinstance(argument, Tensor):
        inputs.append(argument.clone())
        return {"value": len(inputs) - 1}
    if isinstance(argument, list | tuple):
        return [encode(part, inputs) for part in argument]
    if isinstance(argument, torch.dtype | torch.layout | torch.memory_format):
        return {"torch": str(argument).removeprefix("torch.")}
    return argument


def run_step(name: str, *args: Any, **keywords: Any) -> tuple[Any, list[Tensor]]:
    """Run one step as a program after JSON; return its result, and its tensors, which it may have changed."""
    inputs: list[Tensor] = []
    step = [name, encode(args, inputs), {key: encode(value, inputs) for key, value in keywords.items()}]
    content = {"n_inputs": len(inputs), "steps": [step], "output": [{"value": len(inputs)}]}
    (result,) = read_program(json.loads(json.dumps(content))).run(inputs, {})
    return result, inputs


def test_there_is_a_case_for_every_operation() -> None:
    assert sorted(CASES) == sorted(ALLOWED)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of what torch deprecates, or has as beta
@pytest.mark.parametrize("name", CASES)
def test_an_operation_computes_what_torch_computes(name: str) -> None:
    _, packet, overload = name.split(".")
    args, keywords = tree_map_only(Tensor, torch.clone, CASES[name])
    expected = getattr(getattr(torch.ops.aten, packet), overload)(*args, **keywords)
    changed = [leaf for leaf in tree_leaves((args, keywords)) if isinstance(leaf, Tensor)]
    found = run_step(name, *CASES[name][0], **CASES[name][1])
    torch.testing.assert_close(found, (expected, changed), rtol=0, atol=0, equal_nan=True)


def takes_device(name: str) -> bool:
    _, packet, overload = name.split(".")
    schema = getattr(getattr(torch.ops.aten, packet), overload)._schema
    return any(argument.name == "device" for argument in schema.arguments)


@pytest.mark.parametrize("name", list(filter(takes_device, CASES)))
def test_what_makes_a_tensor_makes_it_on_the_callers_device(name: str) -> None:
    """Without a GPU: fake tensors know their device."""
    inputs: list[Tensor] = []
    args, keywords = CASES[name]
    step = [name, encode(args, inputs), {key: encode(value, inputs) for key, value in keywords.items()}]
    content = {"n_inputs": len(inputs) + 1, "steps": [step], "output": [{"value": len(inputs) + 1}]}
    program = read_program(json.loads(json.dumps(content)))
    with FakeTensorMode():
        (result,) = program.run(
            [torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda") for tensor in (*inputs, X)], {}
        )
    assert result.device.type == "cuda"


def list_operations() -> list[str]:
    """Every operation of `aten` in this release of torch."""
    names = (name.partition("::") for name in torch._C._dispatch_get_all_op_names())
    return [f"{space}.{name if '.' in name else f'{name}.default'}" for space, _, name in names if space == "aten"]


def test_every_other_operation_is_refused() -> None:
    others = set(list_operations()) - set(ALLOWED)
    assert len(others) > 2000
    for name in others:
        with pytest.raises(ValueError, match=r"must be an operation of torch's aten, got .*not among the allowed ones"):
            find_operation(name)


@pytest.mark.parametrize(
    "name",
    [
        "aten.from_file.default", "aten.set_.source_Storage", "aten.resize_.default", "aten.resize_as_.default",
        "aten.as_strided.default", "aten.as_strided_.default", "aten.add.out", "aten.pow.Tensor_Scalar_out",
        "aten.empty.memory_format", "aten.empty_like.default", "aten.new_empty.default", "aten.view.dtype",
        "aten.bernoulli.default", "aten.rand.default", "aten.normal_.default", "aten.multinomial.default",
        "aten.to.device", "aten.cuda.default", "aten.pin_memory.default", "aten.record_stream.default",
        "aten.to_sparse.default", "aten._sparse_coo_tensor_unsafe.default", "aten.quantize_per_tensor.default",
        "aten.dequantize.self", "aten._unsafe_index.Tensor", "aten._unsafe_view.default", "aten.item.default",
        "aten.bincount.default", "aten.repeat_interleave.Tensor", "aten.fractional_max_pool2d.default",
        "aten.embedding_renorm_.default", "aten._print.default", "aten._assert_async.msg", "aten.data.default",
        "prims.add.default", "quantized.linear.default", "os.system", "eval", "aten", "",
    ],
)  # fmt: skip
def test_what_does_more_than_compute_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="must be an operation of torch's aten"):
        find_operation(name)


@pytest.mark.parametrize("name", ["aten.add.Nonsense", "aten.add.__init__", "aten.add.op", "aten.linear.__call__"])
def test_what_torch_does_not_have_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=f"this release of torch has no operation {name}"):
        find_operation(name)


@pytest.mark.parametrize(
    ("name", "args", "keywords", "text"),
    [
        ("zeros", [[2]], {"device": "meta"}, "may not call aten.zeros.default with device='meta'"),
        ("zeros", [[2]], {"layout": torch.sparse_coo}, "with layout=torch.sparse_coo"),
        ("zeros", [[2]], {"dtype": torch.quint8}, "with dtype=torch.quint8"),
        ("zeros", [[2]], {"dtype": 13}, "with dtype=13"),
        ("zeros", [[2]], {"pin_memory": True}, "with pin_memory=True"),
        ("clone", [X], {"memory_format": 9}, "with memory_format=9"),
        ("dropout", [X, 0.5, True], {}, "may not call aten.dropout.default with train=True"),
        ("feature_dropout", [IMAGE], {"p": 0.5, "train": True}, "with train=True"),
        ("rrelu", [X], {"training": True}, "with training=True"),
        ("grid_sampler", [IMAGE, GRID, 3, 0, False], {}, "with interpolation_mode=3"),
        ("scaled_dot_product_attention", [IMAGE, IMAGE, IMAGE, None, 0.5], {}, "with dropout_p=0.5"),
    ],
)
def test_arguments_that_do_more_than_compute_are_refused(name: str, args: Any, keywords: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        run_step(f"aten.{name}.default", *args, **keywords)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("index", [-(2**63), -(2**31), -100, 100, 2**31, 2**62])
def test_indices_out_of_range_are_refused(index: int) -> None:
    row, rows = torch.tensor([index, 0]), torch.tensor([[index, 0, 1, 0]])
    cases = (
        each("embedding take", X, rows),
        each("gather", X, 0, rows),
        each("index_select", X, 0, row),
        each("index.Tensor", X, [row]),
        each("index_put", X, [row], PAIR),
        each("index_put_", X, [row], PAIR, True),
        each("index_add index_add_ index_copy index_copy_", X, 0, row, PAIR),
        each("index_fill.int_Scalar index_fill_.int_Scalar", X, 0, row, 0.5),
        each("index_fill.int_Tensor", X, 0, row, torch.tensor(0.5)),
        each("index_reduce", X, 0, row, PAIR, "amax"),
        each("index_reduce_", X, 0, row, PAIR, "mean"),
        each("put", X, rows, V),
        each("scatter.src scatter_.src scatter_add scatter_add_", X, 0, rows, Y),
        each("scatter.value scatter_.value", X, 0, rows, 0.5),
        each("scatter.reduce scatter_.reduce", X, 0, rows, Y, reduce="add"),
        each("scatter.value_reduce scatter_.value_reduce", X, 0, rows, 0.5, reduce="add"),
        each("scatter_reduce.two", X, 0, rows, Y, "mean"),
        each("scatter_reduce_.two", X, 0, rows, Y, "amin"),
        each("one_hot", rows, 3),
        each("searchsorted.Tensor", V, X, sorter=torch.tensor([0, 1, 2, index])),
        each("max_unpool2d", draw(1, 1, 1, 1), torch.tensor([[[[index]]]]), [6, 6]),
    )
    for name, (args, keywords) in (pair for case in cases for pair in case.items()):
        with pytest.raises((RuntimeError, IndexError), match=r"(?i)index|indices|offset|class|sorter"):
            run_step(name, *args, **keywords)


def change_lstm(index: int, tensor: Any) -> list[Any]:
    args = list(CASES["aten.lstm.input"][0])
    args[index] = tensor
    return args


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("lstm.input", change_lstm(0, draw(2, 5, 6))),
        ("lstm.input", change_lstm(0, draw(3, 5, 4))),
        ("lstm.input", change_lstm(1, [STATE[:, :1], STATE[:, :1]])),
        ("lstm.input", change_lstm(2, make_recurrent(3))),
        ("lstm.input", change_lstm(2, make_recurrent(4)[:3])),
        ("lstm.input", change_lstm(4, 2)),
        ("lstm.input", change_lstm(7, True)),
        ("lstm.input", change_lstm(8, False)),
        ("_weight_norm.default", [X, P[:1, :1], 0]),
        ("_weight_norm.default", [X[:0], P[:0, :1], 0]),
        ("scaled_dot_product_attention.default", [IMAGE, IMAGE[:, :, :5], IMAGE]),
        ("scaled_dot_product_attention.default", [IMAGE, IMAGE, torch.cat([IMAGE, IMAGE], 2)]),
    ],
)
def test_shapes_that_torch_trusts_are_checked(name: str, args: list[Any]) -> None:
    with pytest.raises(ValueError, match=f"the tensors that aten.{name} is given must fit together"):
        run_step(f"aten.{name}", *args)


@pytest.mark.filterwarnings("ignore:LSTM with projections:UserWarning")  # of its speed
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_recurrent_layers_of_all_kinds_fit(bidirectional: bool, bias: bool, proj_size: int) -> None:
    layers = nn.LSTM(4, 3, 2, bias=bias, bidirectional=bidirectional, proj_size=proj_size).eval()
    n_cells = 4 if bidirectional else 2
    states = [draw(n_cells, 5, proj_size or 3), draw(n_cells, 5, 3)]
    flat = [parameter.detach() for parameter in layers.parameters()]
    expected, _ = layers(SEQUENCE, tuple(states))
    (found, *_), _ = run_step("aten.lstm.input", SEQUENCE, states, flat, bias, 2, 0.0, False, bidirectional, False)
    torch.testing.assert_close(found, expected.detach())


class Refused(nn.Module):
    """A network with one operation that is not allowed."""

    def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.operation = nn.Linear(4, 2), operation

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operation(x))


@pytest.mark.parametrize(
    ("operation", "named"),
    [
        (lambda x: x + torch.linalg.svdvals(x[:, :, None]), "got aten.linalg_svdvals.default"),
        (lambda x: x + torch.empty_like(x).zero_(), "got aten.empty_like.default"),
        (lambda x: F.dropout(x, 0.5, training=True), "its outputs would be off"),
    ],
)
def test_the_reason_to_run_whole_names_the_operation(operation: Callable[[Tensor], Tensor], named: str) -> None:
    inputs = draw(4, 4)
    split = split_network(Refused(operation), ["head.weight", "head.bias"], inputs)
    assert named in describe_obstacle({"head": split}, inputs)
