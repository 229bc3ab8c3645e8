"""The kernels of squeeze_excite: sod_ops/reference/squeeze_excite.py has the formulas, squeeze_excite.py the launches.

x is [N, C, P], P = H W pixels, in either memory format (_planes.py). Row n of ``statistics`` is m (C), z1 (R), z2 (C);
row n of ``gradients`` holds the gradients of the loss with respect to the same numbers. So ROW = 2C + R, with R = 0
without a reduction. Both are float32 (float64 for float64), in which all sums and products are taken.
"""
# mypy: allow-untyped-defs, allow-incomplete-defs
# ruff: noqa: N803 (compile-time constants in capitals, as everywhere in Triton)

import triton
import triton.language as tl

from sod_ops.triton._planes import aligned, program_work, tile_mask, tile_offsets
from sod_ops.triton.activation import IDENTITY, activation, activation_gradient, gate, gate_gradient

# Compiling for particular sizes would mean compiling at every new shape.
_SIZES = (
    *("samples", "channels", "reduced", "pixels", "parts", "part_blocks"),
    *("x_sample_step", "x_step", "y_sample_step", "y_step"),
    *("grad_output_sample_step", "grad_output_step", "grad_x_sample_step", "grad_x_step"),
    *("inputs", "outputs", "row", "input_column", "output_column"),
)

# Loads that a loop over parts starts together, so that their latencies overlap.
_TOGETHER = tl.constexpr(8)


@triton.jit(do_not_specialize=_SIZES)
def pool_kernel(
    x,  # [N, C, P]
    grad_output,  # [N, C, P]; None in the forward
    statistics,  # [N, ROW]; None in the forward
    result,  # [N, parts, C] where SPLIT; otherwise [N, ROW]: statistics in the forward, gradients in the backward
    channels: tl.int32,
    reduced: tl.int32,
    pixels: tl.int64,
    parts: tl.int32,
    part_blocks: tl.int32,
    x_sample_step: tl.int64,
    x_step: tl.int64,
    grad_output_sample_step: tl.int64,
    grad_output_step: tl.int64,
    GATE: tl.constexpr,
    SPLIT: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """Forward: m = sum_P x / P. Backward: dz2 = gate'(z2) sum_P grad_output x.

    One program sums one part of the pixels of BLOCK_C channels of one sample; where SPLIT, the parts' results remain to
    be added up. Accumulates in the dtype of ``result``.
    """
    sample, part, channel, first, last = program_work(channels, pixels, parts, part_blocks, False, BLOCK_C, BLOCK_P)
    inside = channel < channels
    x += sample * aligned(x_sample_step, ALIGNMENT)
    if grad_output is not None:
        grad_output += sample * aligned(grad_output_sample_step, ALIGNMENT)
    total = tl.zeros([BLOCK_C, BLOCK_P], dtype=result.dtype.element_ty)
    for start in range(first, last, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
        offsets = tile_offsets(channel, pixel, x_step, INTERLEAVED, ALIGNMENT)
        value = tl.load(x + offsets, mask=mask, other=0.0).to(total.dtype)
        if grad_output is not None:
            offsets = tile_offsets(channel, pixel, grad_output_step, INTERLEAVED, ALIGNMENT)
            value *= tl.load(grad_output + offsets, mask=mask, other=0.0).to(total.dtype)
        total += value
    value = tl.sum(total, 1)

    row = 2 * channels + reduced
    column = 0
    if grad_output is None:
        value = value / pixels.to(value.dtype)
    else:
        column = channels + reduced
        z2 = tl.load(statistics + sample * row + column + channel, mask=inside, other=0.0)
        value = gate_gradient(value, z2, GATE)
    if SPLIT:
        result += (sample * parts + part) * channels
    else:
        result += sample * row + column
    tl.store(result + channel, value, mask=inside)


@triton.jit(do_not_specialize=_SIZES)
def product_kernel(
    sums,  # [N, parts, I]: pooling's results by parts; None where they are in ``rows`` already
    rows,  # [N, ROW]: statistics in the forward, gradients in the backward
    preactivations,  # [N, ROW]: statistics in the backward; None in the forward
    weight,  # [O, I]; [I, O] where TRANSPOSED
    bias,  # [O] or None
    samples: tl.int32,
    parts: tl.int32,
    inputs: tl.int32,
    outputs: tl.int32,
    row: tl.int32,
    input_column: tl.int32,
    output_column: tl.int32,
    INPUT_ACTIVATION: tl.constexpr,
    OUTPUT_ACTIVATION: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """out = weight activation(in) + bias, where in and out are columns of ``rows``.

    With ``preactivations``, out is the gradient with respect to an activation's value and is carried over to its
    argument. One program computes BLOCK_O outputs of BLOCK_N samples; those with the first outputs also write down the
    sums over all parts. Accumulates in the dtype of ``rows``.
    """
    tiles = tl.maximum(tl.cdiv(outputs, BLOCK_O), 1)
    tile = tl.program_id(0) % tiles
    sample = tl.program_id(0) // tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    output = tile * BLOCK_O + tl.arange(0, BLOCK_O)
    offsets = sample.to(tl.int64)[:, None] * row
    inside = (sample < samples)[:, None]
    if sums is not None:
        sums += sample.to(tl.int64)[:, None] * parts * inputs
    value = _product(
        sums, rows + offsets + input_column, inside, weight, output, inputs, outputs, parts, tile == 0,
        INPUT_ACTIVATION, TRANSPOSED, BLOCK_N, BLOCK_O, BLOCK_I,
    )  # fmt: skip
    if bias is not None:
        value += tl.load(bias + output, mask=output < outputs, other=0.0).to(value.dtype)[None, :]
    offsets = offsets + output_column + output[None, :]
    inside = inside & (output < outputs)[None, :]
    if preactivations is not None:
        z = tl.load(preactivations + offsets, mask=inside, other=0.0)
        value = activation_gradient(value, z, OUTPUT_ACTIVATION)
    tl.store(rows + offsets, value, mask=inside)


@triton.jit
def _product(
    sums,  # pointers [BLOCK_N, 1] to [parts, I], or None
    rows,  # pointers [BLOCK_N, 1] to [I]
    inside,  # [BLOCK_N, 1]: which samples exist
    weight,
    output,  # [BLOCK_O]
    inputs,
    outputs,
    parts,
    writes_sums,
    ACTIVATION: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """sum_I weight[output, i] activation(rows[n, i]), [BLOCK_N, BLOCK_O].

    Where ``sums`` are given, rows[n] is first their sum over the parts, which is written there if ``writes_sums``.
    """
    total = tl.zeros([BLOCK_N, BLOCK_O, BLOCK_I], dtype=rows.dtype.element_ty)
    for start in range(0, inputs, BLOCK_I):
        i = start + tl.arange(0, BLOCK_I)
        mask = inside & (i < inputs)[None, :]
        if sums is None:
            value = activation(tl.load(rows + i[None, :], mask=mask, other=0.0), ACTIVATION)
        else:
            value = tl.zeros([BLOCK_N, BLOCK_I], dtype=total.dtype)
            for first in range(0, parts, _TOGETHER):
                for k in tl.static_range(_TOGETHER):
                    part = tl.cast(first + k, tl.int64)
                    value += tl.load(sums + part * inputs + i[None, :], mask=mask & (part < parts), other=0.0)
            tl.store(rows + i[None, :], value, mask=mask & writes_sums)
        if TRANSPOSED:
            offsets = i.to(tl.int64)[None, :] * outputs + output[:, None]
        else:
            offsets = output.to(tl.int64)[:, None] * inputs + i[None, :]
        mask = (output < outputs)[:, None] & (i < inputs)[None, :]
        factor = tl.load(weight + offsets, mask=mask, other=0.0).to(total.dtype)
        total += value[:, None, :] * factor[None, :, :]
    return tl.sum(total, 2)


@triton.jit
def _product_of_one_sample(
    row,  # pointer to [I]
    weight,
    output,
    inputs,
    outputs,
    ACTIVATION: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """sum_I weight[output, i] activation(row[i]), [BLOCK_O]."""
    one = tl.zeros([1, 1], dtype=tl.int32)
    product = _product(
        None, row + one, one == 0, weight, output, inputs, outputs, 1, False, ACTIVATION, TRANSPOSED,
        1, BLOCK_O, BLOCK_I,
    )  # fmt: skip
    return tl.sum(product, 0)


@triton.jit(do_not_specialize=_SIZES)
def scale_kernel(
    x,  # [N, C, P]
    expand_weight,  # [C, R]; None where statistics holds z2 already
    expand_bias,  # [C] or None
    statistics,  # [N, ROW]
    y,  # [N, C, P]
    channels: tl.int32,
    reduced: tl.int32,
    pixels: tl.int64,
    parts: tl.int32,
    part_blocks: tl.int32,
    x_sample_step: tl.int64,
    x_step: tl.int64,
    y_sample_step: tl.int64,
    y_step: tl.int64,
    ACTIVATION: tl.constexpr,
    GATE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """z2 = expand_weight activation(z1) + expand_bias, y = x gate(z2).

    One program scales one part of the pixels of BLOCK_C channels of one sample, after it has computed z2 for them;
    that of the first part writes it down.
    """
    sample, part, channel, first, last = program_work(channels, pixels, parts, part_blocks, True, BLOCK_C, BLOCK_P)
    inside = channel < channels
    row = statistics + sample * (2 * channels + reduced)
    if expand_weight is None:
        z2 = tl.load(row + channels + reduced + channel, mask=inside, other=0.0)
    else:
        z2 = _product_of_one_sample(
            row + channels, expand_weight, channel, reduced, channels, ACTIVATION, False, BLOCK_C, BLOCK_R
        )
        if expand_bias is not None:
            z2 += tl.load(expand_bias + channel, mask=inside, other=0.0).to(z2.dtype)
        tl.store(row + channels + reduced + channel, z2, mask=inside & (part == 0))
    factor = gate(z2, GATE)[:, None]
    x += sample * aligned(x_sample_step, ALIGNMENT)
    y += sample * aligned(y_sample_step, ALIGNMENT)
    for start in range(first, last, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
        offsets = tile_offsets(channel, pixel, x_step, INTERLEAVED, ALIGNMENT)
        value = tl.load(x + offsets, mask=mask, other=0.0).to(factor.dtype) * factor
        tl.store(y + tile_offsets(channel, pixel, y_step, INTERLEAVED, ALIGNMENT), value, mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def scale_backward_kernel(
    grad_output,  # [N, C, P]
    reduce_weight,  # [R, C]; None where gradients holds dm already
    statistics,  # [N, ROW]
    gradients,  # [N, ROW]
    grad_x,  # [N, C, P]
    channels: tl.int32,
    reduced: tl.int32,
    pixels: tl.int64,
    parts: tl.int32,
    part_blocks: tl.int32,
    grad_output_sample_step: tl.int64,
    grad_output_step: tl.int64,
    grad_x_sample_step: tl.int64,
    grad_x_step: tl.int64,
    GATE: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """dm = reduce_weight^T dz1, grad_x = grad_output gate(z2) + dm / P.

    One program writes one part of the pixels of BLOCK_C channels of one sample, after it has computed dm for them.
    """
    sample, _, channel, first, last = program_work(channels, pixels, parts, part_blocks, True, BLOCK_C, BLOCK_P)
    inside = channel < channels
    statistics += sample * (2 * channels + reduced)
    gradients += sample * (2 * channels + reduced)
    if reduce_weight is None:
        shift = tl.load(gradients + channel, mask=inside, other=0.0)
    else:
        shift = _product_of_one_sample(
            gradients + channels, reduce_weight, channel, reduced, channels, IDENTITY, True, BLOCK_C, BLOCK_R
        )
    shift = (shift / pixels.to(shift.dtype))[:, None]
    z2 = tl.load(statistics + channels + reduced + channel, mask=inside, other=0.0)
    factor = gate(z2, GATE)[:, None]
    grad_output += sample * aligned(grad_output_sample_step, ALIGNMENT)
    grad_x += sample * aligned(grad_x_sample_step, ALIGNMENT)
    for start in range(first, last, BLOCK_P):
        pixel = start + tl.arange(0, BLOCK_P)
        mask = tile_mask(channel, channels, pixel, pixels, INTERLEAVED, ALIGNMENT)
        offsets = tile_offsets(channel, pixel, grad_output_step, INTERLEAVED, ALIGNMENT)
        value = tl.load(grad_output + offsets, mask=mask, other=0.0).to(factor.dtype) * factor + shift
        tl.store(grad_x + tile_offsets(channel, pixel, grad_x_step, INTERLEAVED, ALIGNMENT), value, mask=mask)


@triton.jit(do_not_specialize=_SIZES)
def weight_gradient_kernel(
    statistics,  # [N, ROW]
    gradients,  # [N, ROW]
    grad_reduce_weight,  # [R, C]; None without a reduction
    grad_reduce_bias,  # [R]; None without a reduction
    grad_expand_weight,  # [C, R]; [C, C] without a reduction
    grad_expand_bias,  # [C]
    samples: tl.int32,
    channels: tl.int32,
    reduced: tl.int32,
    ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    """Sums over N of the outer products dz2 h^T and dz1 m^T, and of dz2 and dz1; h = activation(z1), or m.

    One program computes one tile of one weight's gradient, and of the bias's where it has the weight's first columns.
    """
    row = 2 * channels + reduced
    program = tl.program_id(0)
    if grad_reduce_weight is None:
        _weight_gradient(
            statistics, gradients + channels, grad_expand_weight, grad_expand_bias, program, samples, row,
            channels, channels, IDENTITY, BLOCK_N, BLOCK_C, BLOCK_H,
        )  # fmt: skip
    else:
        tiles = tl.cdiv(channels, BLOCK_C) * tl.maximum(tl.cdiv(reduced, BLOCK_H), 1)
        if program < tiles:
            _weight_gradient(
                statistics + channels, gradients + channels + reduced, grad_expand_weight, grad_expand_bias, program,
                samples, row, reduced, channels, ACTIVATION, BLOCK_N, BLOCK_C, BLOCK_H,
            )  # fmt: skip
        else:
            _weight_gradient(
                statistics, gradients + channels, grad_reduce_weight, grad_reduce_bias, program - tiles,
                samples, row, channels, reduced, IDENTITY, BLOCK_N, BLOCK_H, BLOCK_C,
            )  # fmt: skip


@triton.jit
def _weight_gradient(
    sources,  # [N, I], rows ``row`` apart
    gradients,  # [N, O], rows ``row`` apart
    grad_weight,  # [O, I]
    grad_bias,  # [O]
    program,
    samples,
    row,
    inputs,
    outputs,
    ACTIVATION: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_O: tl.constexpr,
    BLOCK_I: tl.constexpr,
):
    """grad_weight = sum_N gradients activation(sources)^T, grad_bias = sum_N gradients: tile number ``program``."""
    tiles = tl.maximum(tl.cdiv(inputs, BLOCK_I), 1)
    output = program // tiles * BLOCK_O + tl.arange(0, BLOCK_O)
    i = program % tiles * BLOCK_I + tl.arange(0, BLOCK_I)
    weight_total = tl.zeros([BLOCK_O, BLOCK_I], dtype=gradients.dtype.element_ty)
    bias_total = tl.zeros([BLOCK_O], dtype=gradients.dtype.element_ty)
    for first in range(0, samples, BLOCK_N):
        sample = first + tl.arange(0, BLOCK_N)
        start = sample.to(tl.int64)[:, None] * row
        inside = (sample < samples)[:, None]
        gradient = tl.load(gradients + start + output[None, :], mask=inside & (output < outputs)[None, :], other=0.0)
        source = tl.load(sources + start + i[None, :], mask=inside & (i < inputs)[None, :], other=0.0)
        value = activation(source, ACTIVATION)
        # "ieee": tensor cores would round the factors to tf32.
        weight_total = tl.dot(tl.trans(gradient), value, weight_total, input_precision="ieee", out_dtype=value.dtype)
        bias_total += tl.sum(gradient, 0)
    offsets = output.to(tl.int64)[:, None] * inputs + i[None, :]
    tl.store(grad_weight + offsets, weight_total, mask=(output < outputs)[:, None] & (i < inputs)[None, :])
    tl.store(grad_bias + output, bias_total, mask=(output < outputs) & (program % tiles == 0))
