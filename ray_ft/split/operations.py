"""The operations that a program may call: a list of torch's `aten` that networks use in evaluation, and sizes.

An ensemble's folder may come from a stranger, so what is not on the list is refused. On it is what computes from its
arguments alone and checks their shapes and indices. Left out on purpose are files, devices and storages (`from_file`,
`set_`, `resize_`, `as_strided`, every `out=`), memory that nobody has written (`empty`), bytes taken for another type
(`view.dtype`), random numbers, sparse and quantized values, and results whose size only values tell (`bincount`).
"""

import operator
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from ray_ft.errors import shorten, show_value

# Names of `aten` with their overloads, in the order of the alphabet.
GROUPS: dict[str, str] = {
    "elementwise, of one value": """
        abs.default absolute.default acos.default acosh.default angle.default arccos.default arccosh.default
        arcsin.default arcsinh.default arctan.default arctanh.default asin.default asinh.default atan.default
        atanh.default bitwise_not.default ceil.default clamp.Tensor clamp.default clamp_max.Tensor clamp_max.default
        clamp_min.Tensor clamp_min.default clip.Tensor clip.default cos.default cosh.default deg2rad.default
        digamma.default erf.default erfc.default erfinv.default exp.default exp2.default expm1.default fix.default
        floor.default frac.default i0.default lgamma.default log.default log10.default log1p.default log2.default
        logit.default nan_to_num.default neg.default negative.default polygamma.default positive.default
        rad2deg.default reciprocal.default round.decimals round.default rsqrt.default sgn.default sign.default
        sin.default sinc.default sinh.default special_bessel_j0.default special_bessel_j1.default
        special_bessel_y0.default special_bessel_y1.default special_entr.default special_erfcx.default
        special_expit.default special_gammaln.default special_i0e.default special_i1.default special_i1e.default
        special_log_ndtr.default special_logit.default special_ndtr.default special_ndtri.default
        special_psi.default sqrt.default square.default tan.default tanh.default trunc.default""",
    "activations": """
        celu.default elu.default gelu.default glu.default hardshrink.default hardsigmoid.default hardswish.default
        hardtanh.default leaky_relu.default log_sigmoid.default log_softmax.int mish.default prelu.default
        relu.default relu6.default rrelu.default selu.default sigmoid.default silu.default softmax.int
        softplus.default softshrink.default special_log_softmax.default special_softmax.default threshold.default""",
    "elementwise, of several values": """
        add.Scalar add.Tensor addcdiv.default addcmul.default arctan2.default atan2.default bitwise_and.Scalar
        bitwise_and.Tensor bitwise_or.Scalar bitwise_or.Tensor bitwise_xor.Scalar bitwise_xor.Tensor copysign.Scalar
        copysign.Tensor div.Scalar div.Scalar_mode div.Tensor div.Tensor_mode divide.Scalar divide.Tensor
        divide.Tensor_mode float_power.Scalar float_power.Tensor_Scalar float_power.Tensor_Tensor
        floor_divide.Scalar floor_divide.default fmax.default fmin.default fmod.Scalar fmod.Tensor heaviside.default
        hypot.default ldexp.Tensor lerp.Scalar lerp.Tensor logaddexp.default logaddexp2.default maximum.default
        minimum.default mul.Scalar mul.Tensor multiply.Scalar multiply.Tensor pow.Scalar pow.Tensor_Scalar
        pow.Tensor_Tensor remainder.Scalar remainder.Scalar_Tensor remainder.Tensor rsub.Scalar rsub.Tensor
        special_xlog1py.default sub.Scalar sub.Tensor subtract.Scalar subtract.Tensor true_divide.Scalar
        true_divide.Tensor where.Scalar where.ScalarOther where.ScalarSelf where.self xlogy.Scalar_Other
        xlogy.Scalar_Self xlogy.Tensor __and__.Scalar __and__.Tensor __lshift__.Scalar __lshift__.Tensor
        __or__.Scalar __or__.Tensor __rshift__.Scalar __rshift__.Tensor __xor__.Scalar __xor__.Tensor""",
    "comparisons": """
        eq.Scalar eq.Tensor ge.Scalar ge.Tensor greater.Scalar greater.Tensor greater_equal.Scalar
        greater_equal.Tensor gt.Scalar gt.Tensor isclose.default isfinite.default isin.Tensor_Scalar
        isin.Tensor_Tensor isinf.default isnan.default isreal.default le.Scalar le.Tensor less.Scalar less.Tensor
        less_equal.Scalar less_equal.Tensor logical_and.default logical_not.default logical_or.default
        logical_xor.default lt.Scalar lt.Tensor ne.Scalar ne.Tensor not_equal.Scalar not_equal.Tensor
        signbit.default""",
    "reductions": """
        all.default all.dim all.dims amax.default amin.default aminmax.default any.default any.dim any.dims
        argmax.default argmin.default count_nonzero.default count_nonzero.dim_IntList cummax.default cummin.default
        cumprod.default cumsum.default cumulative_trapezoid.dx cumulative_trapezoid.x diff.default dist.default
        gradient.scalarint linalg_norm.default linalg_norm.ord_str linalg_vector_norm.default logcumsumexp.default
        logsumexp.default max.default max.dim max.other mean.default mean.dim median.default median.dim min.default
        min.dim min.other mode.default nanmean.default nanmedian.default nanmedian.dim nanquantile.default
        nanquantile.scalar nansum.default norm.Scalar norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype
        norm.ScalarOpt_dtype prod.default prod.dim_int quantile.default quantile.scalar std.correction std.default
        std.dim std_mean.correction std_mean.default std_mean.dim sum.default sum.dim_IntList trace.default
        trapezoid.dx trapezoid.x trapz.dx trapz.x var.correction var.default var.dim var_mean.correction
        var_mean.default var_mean.dim""",
    "sorting": """
        argsort.default argsort.stable bucketize.Tensor kthvalue.default msort.default searchsorted.Tensor
        sort.default sort.stable topk.default""",
    "shapes": """
        adjoint.default alias.default atleast_1d.default atleast_2d.default atleast_3d.default
        broadcast_tensors.default broadcast_to.default clone.default contiguous.default detach.default diag.default
        diag_embed.default diagonal.default expand.default expand_as.default flatten.using_ints flip.default
        fliplr.default flipud.default lift_fresh_copy.default linalg_diagonal.default mH.default mT.default
        moveaxis.int moveaxis.intlist movedim.int movedim.intlist narrow.default numpy_T.default permute.default
        ravel.default repeat.default repeat_interleave.self_int reshape.default reshape_as.default roll.default
        rot90.default select.int slice.Tensor squeeze.default squeeze.dim squeeze.dims swapaxes.default
        swapdims.default sym_numel.default sym_size.int t.default tile.default transpose.int tril.default
        triu.default unflatten.int unfold.default unsqueeze.default view.default view_as.default""",
    "types": """
        to.dtype to.dtype_layout to.other type_as.default""",
    "joining and indexing": """
        argwhere.default block_diag.default cartesian_prod.default cat.default chunk.default column_stack.default
        concat.default diagonal_scatter.default dstack.default embedding.default gather.default hsplit.int
        hstack.default index.Tensor index_add.default index_copy.default index_fill.int_Scalar index_fill.int_Tensor
        index_put.default index_reduce.default index_select.default masked_fill.Scalar masked_fill.Tensor
        masked_scatter.default masked_select.default meshgrid.default meshgrid.indexing nonzero.default
        one_hot.default put.default scatter.reduce scatter.src scatter.value scatter.value_reduce
        scatter_add.default scatter_reduce.two select_scatter.default slice_scatter.default split.Tensor split.sizes
        split_with_sizes.default stack.default take.default take_along_dim.default tensor_split.indices
        tensor_split.sections unbind.int vsplit.int vstack.default""",
    "products and convolutions": """
        addbmm.default addmm.default addmv.default addr.default baddbmm.default bilinear.default bmm.default
        cdist.default conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv3d.padding
        conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input cosine_similarity.default
        cross.default dot.default einsum.default ger.default inner.default kron.default linalg_cross.default
        linalg_multi_dot.default linalg_vecdot.default linear.default matmul.default mm.default mv.default
        outer.default pairwise_distance.default pdist.default tensordot.default vdot.default""",
    "matrices": """
        det.default inverse.default linalg_cholesky.default linalg_det.default linalg_householder_product.default
        linalg_inv.default linalg_matrix_exp.default linalg_matrix_norm.default linalg_matrix_norm.str_ord
        linalg_qr.default linalg_slogdet.default linalg_solve.default linalg_solve_triangular.default logdet.default
        matrix_exp.default""",
    "normalisation and dropout": """
        _weight_norm.default alpha_dropout.default batch_norm.default dropout.default feature_alpha_dropout.default
        feature_dropout.default group_norm.default instance_norm.default layer_norm.default renorm.default
        rms_norm.default""",
    "attention and recurrence": """
        gru.input gru_cell.default lstm.input lstm_cell.default rnn_relu.input rnn_relu_cell.default rnn_tanh.input
        rnn_tanh_cell.default scaled_dot_product_attention.default""",
    "pooling and resampling": """
        _upsample_bicubic2d_aa.vec _upsample_bilinear2d_aa.vec _upsample_nearest_exact1d.vec
        _upsample_nearest_exact2d.vec _upsample_nearest_exact3d.vec adaptive_avg_pool1d.default
        adaptive_avg_pool2d.default adaptive_avg_pool3d.default adaptive_max_pool1d.default
        adaptive_max_pool2d.default adaptive_max_pool3d.default affine_grid_generator.default avg_pool1d.default
        avg_pool2d.default avg_pool3d.default channel_shuffle.default col2im.default grid_sampler.default
        im2col.default max_pool1d.default max_pool1d_with_indices.default max_pool2d.default
        max_pool2d_with_indices.default max_pool3d.default max_pool3d_with_indices.default max_unpool2d.default
        max_unpool3d.default pixel_shuffle.default pixel_unshuffle.default upsample_bicubic2d.vec
        upsample_bilinear2d.vec upsample_linear1d.vec upsample_nearest1d.vec upsample_nearest2d.vec
        upsample_nearest3d.vec upsample_trilinear3d.vec""",
    "padding": """
        constant_pad_nd.default pad.default""",
    "Fourier and complex": """
        _conj.default complex.default conj.default conj_physical.default fft_fft.default fft_fft2.default
        fft_fftfreq.default fft_fftn.default fft_fftshift.default fft_hfft.default fft_hfft2.default
        fft_hfftn.default fft_ifft.default fft_ifft2.default fft_ifftn.default fft_ifftshift.default
        fft_ihfft.default fft_ihfft2.default fft_ihfftn.default fft_irfft.default fft_irfft2.default
        fft_irfftn.default fft_rfft.default fft_rfft2.default fft_rfftfreq.default fft_rfftn.default imag.default
        istft.default polar.default real.default resolve_conj.default resolve_neg.default stft.center stft.default
        view_as_complex.default view_as_real.default""",
    "creation": """
        arange.default arange.start arange.start_step bartlett_window.default blackman_window.default eye.default
        eye.m full.default full_like.default hamming_window.default hann_window.default kaiser_window.default
        linspace.default logspace.default new_full.default new_ones.default new_zeros.default ones.default
        ones_like.default scalar_tensor.default tril_indices.default triu_indices.default zeros.default
        zeros_like.default""",
    "in place": """
        abs_.default add_.Scalar add_.Tensor addcdiv_.default addcmul_.default addmm_.default atan_.default
        baddbmm_.default bitwise_not_.default ceil_.default celu_.default clamp_.Tensor clamp_.default
        clamp_max_.default clamp_min_.default copy_.default cos_.default cumsum_.default detach_.default div_.Scalar
        div_.Tensor div_.Tensor_mode elu_.default erf_.default exp2_.default exp_.default expm1_.default
        fill_.Scalar fill_.Tensor floor_.default floor_divide_.Scalar floor_divide_.Tensor fmod_.Scalar fmod_.Tensor
        frac_.default gelu_.default hardsigmoid_.default hardswish_.default hardtanh_.default index_add_.default
        index_copy_.default index_fill_.int_Scalar index_put_.default index_reduce_.default leaky_relu_.default
        lerp_.Scalar lerp_.Tensor log1p_.default log_.default logical_not_.default masked_fill_.Scalar
        masked_fill_.Tensor masked_scatter_.default mish_.default mul_.Scalar mul_.Tensor nan_to_num_.default
        neg_.default pow_.Scalar pow_.Tensor reciprocal_.default relu6_.default relu_.default remainder_.Scalar
        remainder_.Tensor round_.default rrelu_.default rsqrt_.default scatter_.reduce scatter_.src scatter_.value
        scatter_.value_reduce scatter_add_.default scatter_reduce_.two selu_.default sigmoid_.default sign_.default
        silu_.default sin_.default sqrt_.default square_.default squeeze_.default squeeze_.dim sub_.Scalar
        sub_.Tensor tan_.default tanh_.default threshold_.default transpose_.default tril_.default triu_.default
        trunc_.default unsqueeze_.default zero_.default __iand__.Tensor __ior__.Tensor""",
}
ALLOWED = frozenset(f"aten.{name}" for names in GROUPS.values() for name in names.split())
PACKETS = frozenset(name.rpartition(".")[0] for name in ALLOWED)

TYPES = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64, torch.complex128,
)  # fmt: skip
MEMORY_FORMATS = (torch.preserve_format, torch.contiguous_format, torch.channels_last, torch.channels_last_3d)
# What arguments of these names may be; with other values an operation does more than compute from what it is given.
LIMITS: dict[str, tuple[Any, ...]] = {
    "device": (None,),  # or where its inputs are, which no constant of a program says
    "dtype": (None, *TYPES),
    "interpolation_mode": (0, 1, 2),  # of `grid_sampler`, which for others returns memory as it was
    "padding_mode": (0, 1, 2),
    "layout": (None, torch.strided),
    "memory_format": (None, *MEMORY_FORMATS),
    "pin_memory": (None, False),
}
# For operations that can draw random numbers.
SWITCHES: dict[str, tuple[Any, ...]] = {"train": (False,), "training": (False,), "dropout_p": (0.0,)}


def size_of(tensor: Tensor, axis: int) -> int | torch.SymInt:
    """The size along an axis, as a number that `vmap` leaves alone."""
    return tensor.shape[axis]


ARITHMETIC: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (operator.mul, operator.add, operator.sub, operator.floordiv)
}
ON_SIZES: dict[str, Callable[..., Any]] = {**ARITHMETIC, "getitem": operator.getitem, "size_of": size_of}
LARGEST = 2**62  # of sizes, and of what they are computed from


@cache
def find_operation(name: str) -> Callable[..., Any]:
    """Look an operation up.

    Args:
        name: Of `aten`, with its overload, such as `aten.linear.default`; or of a function on sizes.

    Raises:
        ValueError: There is none of that name, or it is not allowed.
    """
    if name in ARITHMETIC:
        return limit_numbers(ARITHMETIC[name])
    if name in ON_SIZES:
        return ON_SIZES[name]
    packet, _, overload = name.rpartition(".")
    refused = f"a step must be an operation of torch's aten, got {shorten(name)}, which is not among the allowed ones"
    if packet not in PACKETS:
        raise ValueError(refused)
    function = getattr(getattr(torch.ops.aten, packet.removeprefix("aten."), None), overload, None)
    if not isinstance(function, OpOverload):
        raise ValueError(f"this release of torch has no operation {shorten(name)}")
    if name not in ALLOWED:
        raise ValueError(refused)
    return limit_arguments(function)


def limit_arguments(function: OpOverload) -> Callable[..., Any]:
    """Keep an operation to computing: on the device of what it is given, without random numbers, inside its tensors."""
    names = [argument.name for argument in function._schema.arguments]
    limits = LIMITS | SWITCHES if torch.Tag.nondeterministic_seeded in function.tags else LIMITS
    own, fits = {name: limits[name] for name in names if name in limits}, FITS.get(str(function))

    def compute(*args: Any, **keywords: Any) -> Any:
        given = dict(zip(names, args, strict=False)) | keywords
        for name in own.keys() & given.keys():
            if given[name] not in own[name] and not isinstance(given[name], torch.device):
                raise ValueError(f"a program may not call {function} with {name}={show_value(given[name])}")
        if fits and not fits(**given):
            raise ValueError(f"the tensors that {function} is given must fit together")
        return function(*args, **keywords)

    return compute if own or fits else function


def fit_lstm(
    input: Tensor, hx: list[Tensor], params: list[Tensor], has_biases: bool, num_layers: int, bidirectional: bool,
    batch_first: bool, **_: Any,
) -> bool:  # fmt: skip
    """Whether states and weights have the sizes that the layers need."""
    n_directions, n_samples = 2 if bidirectional else 1, input.shape[0 if batch_first else 1]
    (n_out, size), n_cells = (state.shape[-1] for state in hx), num_layers * n_directions
    shapes: list[tuple[Any, ...]] = [(n_cells, n_samples, n_out), (n_cells, n_samples, size)]
    for index in range(min(n_cells, len(params))):
        n_in = input.shape[2] if index < n_directions else n_directions * n_out
        shapes += [(4 * size, n_in), (4 * size, n_out)]
        shapes += [(4 * size,), (4 * size,)] if has_biases else []
        shapes += [(n_out, size)] if n_out != size else []
    return [tuple(tensor.shape) for tensor in (*hx, *params)] == shapes


def fit_weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> bool:
    """Whether there is a length for each slice of the directions."""
    return v.numel() > 0 and list(g.shape) == [size if axis == dim else 1 for axis, size in enumerate(v.shape)]


def fit_attention(key: Tensor, value: Tensor, **_: Any) -> bool:
    """Whether there is a value for each key."""
    return key.shape[:-1] == value.shape[:-1]


# Of operations that trust the shapes of what they are given, and would read past it.
FITS: dict[str, Callable[..., bool]] = {
    "aten.lstm.input": fit_lstm,
    "aten._weight_norm.default": fit_weight_norm,
    "aten.scaled_dot_product_attention.default": fit_attention,
}


def limit_numbers(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep arithmetic to sizes: lists and texts would multiply, and numbers grow, without end."""

    def compute(*numbers: Any) -> Any:
        for number in numbers:
            if not isinstance(number, int | float | torch.SymInt) or (
                isinstance(number, int) and abs(number) > LARGEST
            ):
                raise ValueError(f"{function.__name__} is of sizes, got {show_value(number)}")
        return function(*numbers)

    return compute
