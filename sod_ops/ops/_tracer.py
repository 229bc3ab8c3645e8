"""What TRACER's modules compute between their layers: nn has modules of it, and accelerate serves copies of the authors'."""

import functools
from typing import TypeAlias

import torch
from torch import Tensor

# A place in a spectrum whose zero frequency is at (H // 2, W // 2).
Place: TypeAlias = tuple[float, float]


def attend_to_channels(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k^T) v for channels that are one number each: ``[N, C]`` from three of these."""
    alpha = torch.softmax(query[:, :, None] * key[:, None, :], -1)
    return (alpha @ value[:, :, None]).flatten(1)


def attend_to_rows(x: Tensor, gates: Tensor, quantile: float, weights: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """softmax(q k^T) v + v over the rows of q, k and v, 1x1 convolutions to one channel of ``x`` times ``gates``; those of a
    sample that are at most their quantile count as 0.

    The weighted map is never written: the three convolutions of it are one product with ``x``.

    Args:
        x: ``[N, C, H, W]``.
        gates: ``[N, C]``.
        quantile: from 0 to 1.
        weights: of the convolutions, ``[1, C]``.

    Returns:
        ``[N, 1, H, W]``.
    """
    # In a dtype that quantiles are taken of; the comparison passes no gradient.
    comparable = gates.detach().to(torch.promote_types(gates.dtype, torch.float32))
    gates = gates.masked_fill(comparable <= torch.quantile(comparable, quantile, dim=1, keepdim=True), 0.0)
    matrix = torch.cat(weights) * gates[:, None, :]
    samples, _, height, width = x.shape
    pixels = x.flatten(2)  # a view in either memory format
    q, k, v = (matrix.to(pixels.dtype) @ pixels).view(samples, 3, height, width).unbind(1)
    alpha = torch.softmax(q @ k.transpose(1, 2), -1)
    return (alpha @ v + v).unsqueeze(1)


def high_frequencies(x: Tensor, radius: float, centre: Place) -> Tensor:
    """The magnitude of what the frequencies of ``x`` within ``radius`` of ``centre`` leave, of its shape and dtype; computed
    in float32 at least."""
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    height, width = x.shape[2:]
    # Around the zero frequency, the mask is symmetric: the filtered map is real, and half of its spectrum is enough.
    half = centre == (height // 2, width // 2)
    # Tracing keeps no tensors from one call to the next.
    make = radial_mask if torch.compiler.is_compiling() else _kept_radial_mask
    mask = make(height, width, float(radius), centre, half, values.device, values.dtype)
    if half:
        filtered = torch.fft.irfft2(torch.fft.rfft2(values) * mask, s=(height, width))
    else:
        filtered = torch.fft.ifft2(torch.fft.fft2(values) * mask)
    return filtered.abs().to(x.dtype)


def radial_mask(
    height: int, width: int, radius: float, centre: Place, half: bool, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """0 within ``radius`` of ``centre`` and 1 outside, for a spectrum with the zero frequency first, or for half of one."""
    with torch.inference_mode(False):
        frequencies = torch.fft.rfftfreq if half else torch.fft.fftfreq
        rows = torch.fft.fftfreq(height, 1 / height, device=device, dtype=dtype) + (height // 2 - centre[0])
        columns = frequencies(width, 1 / width, device=device, dtype=dtype) + (width // 2 - centre[1])
        return (rows[:, None].square() + columns[None, :].square() >= radius**2).to(dtype)


_kept_radial_mask = functools.lru_cache(maxsize=32)(radial_mask)
