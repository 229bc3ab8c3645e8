"""TRACER's modules, which stand in projects as copies: known by their children, attributes and methods.

A copy may compute something else than what is published, which no name shows: so these are served on example inputs alone,
where they are proven. What can be read is: thresholds and radii are attributes, and where a copy measures its radius from,
its own mask says. Children are called, but for three convolutions to one channel in UnionAttentionModule.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sod_ops.accelerate.functions import path_of
from sod_ops.accelerate.pyramid import serves_map
from sod_ops.accelerate.squeeze_excite import are_untouched
from sod_ops.accelerate.swap import NotServedError, Swap
from sod_ops.ops._tracer import Place, attend_to_channels, attend_to_rows, high_frequencies, radial_mask
from sod_ops.ops.object_attention import object_attention

_BRANCHES = ("DWConv1", "DWConv2", "DWConv3", "DWConv4")
_CHANNELS = ("norm", "channel_q", "channel_k", "channel_v", "fc")
_ROWS = ("spatial_q", "spatial_k", "spatial_v")

# Where copies measure radii from, in a spectrum with its zero frequency at (H // 2, W // 2).
_CENTRES: Mapping[str, Callable[[int, int], Place]] = {
    "published": lambda height, width: (height / 2, height / 2),
    "middle": lambda height, width: (height / 2, width / 2),
    "zero": lambda height, width: (height // 2, width // 2),
}
_SIZES = ((8, 8), (7, 7), (6, 9), (9, 6))


def recognise(module: torch.nn.Module) -> Swap | None:
    """The swap for a module that is built as one of TRACER's is; None for any other.

    Raises:
        NotServedError: it has the name of one, and is built otherwise.
    """
    if isinstance(module, torch.jit.ScriptModule) or type(module).__module__.startswith("sod_ops."):
        return None
    missing = {name: kind.missing(module) for name, kind in _KINDS.items()}
    for name, kind in _KINDS.items():
        if not missing[name]:
            if "forward" in module.__dict__:
                raise NotServedError("its forward has been replaced")
            return kind.swap(module)
    name = type(module).__name__
    # The one in Frequency_Edge_Module lacks the rows: it is not called, but for its method.
    if name in missing and set(missing[name]) != set(_ROWS):
        raise NotServedError(f"it has the name of TRACER's {name}, but not its {', '.join(missing[name])}")
    return None


def _object_attention(module: torch.nn.Module) -> Swap:
    return Swap(object_attention_forward, None, _probe_thresholds)


def object_attention_forward(module: Any, spec: None, *args: Any, **kwargs: Any) -> Any:
    """The encoder's map weighted in one pass, then the module's own layers."""
    if len(args) == 2 and not kwargs and _takes_threshold(module, *args):
        decoder, encoder = args
        x = object_attention(decoder, encoder, module.denoise)
        return _receive(module, x, module.conv1) + decoder
    return type(module).forward(module, *args, **kwargs)


def _takes_threshold(module: Any, decoder: Any, encoder: Any) -> bool:
    return (
        serves_map(encoder)
        and serves_map(decoder)
        and decoder.shape == (encoder.shape[0], 1, *encoder.shape[2:])
        and encoder.shape[1] == getattr(module, "channel", encoder.shape[1])
        and decoder.device == encoder.device
        and (decoder.dtype == encoder.dtype or torch.is_autocast_enabled(encoder.device.type))
        and type(module.denoise) in (int, float)
        and 0 <= module.denoise <= 1
    )


def _probe_thresholds(decoder: Tensor, encoder: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits on both sides of any threshold that a sigmoid is compared with."""
    logits = torch.linspace(-8, 8, 1024).view(1, 1, 32, 32)
    features = torch.randn(2, encoder.shape[1], 32, 32, generator=torch.Generator().manual_seed(0))
    yield torch.cat([logits, logits.flip(-1)]).to(decoder), features.to(encoder)


def _receive(module: Any, x: Tensor, head: Any) -> Tensor:
    x = module.DWSConv(x)
    return torch.relu(head(torch.cat([getattr(module, branch)(x) for branch in _BRANCHES], 1) + x))


def _union_attention(module: torch.nn.Module) -> Swap:
    _check_rows(module)
    return Swap(union_attention_forward, None, _probe_another_size)


def union_attention_forward(module: Any, spec: None, *args: Any, **kwargs: Any) -> Any:
    """The weighted map goes into the product with the three convolutions, and is never written."""
    if len(args) == 1 and not kwargs and _takes_rows(module, args[0]):
        traced, gates = _trace_channels(module, args[0])
        weights = (getattr(module, name).weight.flatten(1) for name in _ROWS)
        return attend_to_rows(module.bn(traced), gates.flatten(1), module.confidence_ratio, (*weights,))
    return type(module).forward(module, *args, **kwargs)


def _check_rows(module: Any) -> None:
    for name in _ROWS:
        convolution = module._modules[name]
        if not _is_row(convolution):
            raise NotServedError(
                f"its {name} is {convolution} with hooks or a forward of its own"
                if type(convolution) is torch.nn.Conv2d and not are_untouched((convolution,))
                else f"its {name} is {convolution}, not a plain 1x1 Conv2d to one channel without bias"
            )


def _is_row(convolution: Any) -> bool:
    return (
        type(convolution) is torch.nn.Conv2d
        and convolution.weight.shape[0] == 1
        and convolution.weight.shape[2:] == (1, 1)
        and convolution.groups == 1
        and convolution.stride == (1, 1)
        and convolution.padding == (0, 0)
        and convolution.bias is None
        and are_untouched((convolution,))
    )


def _takes_rows(module: Any, x: Any) -> bool:
    return (
        serves_map(x)
        and not torch.is_autocast_enabled(x.device.type)
        and all(_is_row(module._modules[name]) and module._modules[name].weight.dtype == x.dtype for name in _ROWS)
        and type(module.confidence_ratio) in (int, float)
        and 0 <= module.confidence_ratio <= 1
    )


def _trace_channels(module: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    """``x`` with its channels weighted added to it, in one product, and the weights [N, C, 1, 1]."""
    pool = module._modules.get("GAP")
    pooled = module.norm(x.mean((2, 3), keepdim=True) if pool is None else pool(x))
    q, k, v = (layer(pooled).flatten(1) for layer in (module.channel_q, module.channel_k, module.channel_v))
    sigmoid = module._modules.get("sigmoid") or torch.sigmoid
    gates = sigmoid(module.fc(attend_to_channels(q, k, v)[:, :, None, None]))
    return x * (gates.to(x.dtype) + 1), gates


def _frequency_edge(module: Any) -> Swap:
    if any(module.UAM._modules.get(name) is None for name in _CHANNELS):
        raise NotServedError(f"its UAM is {path_of(type(module.UAM))}, which has not {', '.join(_CHANNELS)}")
    return Swap(frequency_edge_forward, _centre(module), _probe_another_size)


def _centre(module: Any) -> str:
    """From where the module's own mask measures its radius."""
    cases = tuple(itertools.product(_SIZES, (module.radius, 2.5)))
    try:
        masks = [module.mask_radial(torch.zeros(1, 1, *size), radius) for size, radius in cases]
    except Exception as error:  # whatever a method of that name does
        raise NotServedError(f"its mask_radial raises {type(error).__name__}: {error}") from error
    for name, centre in _CENTRES.items():
        if all(
            _is_radial(mask, size, radius, centre(*size)) for mask, (size, radius) in zip(masks, cases, strict=True)
        ):
            return name
    raise NotServedError("its mask_radial is another mask than a circle around the middle of the spectrum")


def _is_radial(mask: Any, size: tuple[int, int], radius: float, centre: Place) -> bool:
    if not isinstance(mask, Tensor) or mask.shape != size:
        return False
    outside = radial_mask(size[0], size[1], radius, centre, False, mask.device, torch.float64)
    return torch.equal(torch.fft.ifftshift(1 - mask.double()), outside)


def frequency_edge_forward(module: Any, centre: str, *args: Any, **kwargs: Any) -> Any:
    """The mask is made once for each size, and the spectrum not shifted; then the module's own layers."""
    if len(args) == 1 and not kwargs and serves_map(args[0]) and args[0].dtype in (torch.float32, torch.float64):
        (x,) = args
        high = high_frequencies(x, module.radius, _CENTRES[centre](x.shape[2], x.shape[3]))
        traced, _ = _trace_channels(module.UAM, high)
        edge = _receive(module, traced, module.conv)
        return x + edge, edge
    return type(module).forward(module, *args, **kwargs)


def _probe_another_size(x: Tensor) -> Iterator[tuple[Tensor]]:
    yield (torch.randn(2, x.shape[1], 7, 9, generator=torch.Generator().manual_seed(0)).to(x),)


class _Kind(NamedTuple):
    """What a copy has: children, attributes that are numbers, and methods; and what makes its swap."""

    swap: Callable[[torch.nn.Module], Swap]
    children: tuple[str, ...]
    numbers: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()

    def missing(self, module: torch.nn.Module) -> list[str]:
        children = [name for name in self.children if module._modules.get(name) is None]
        numbers = [name for name in self.numbers if type(getattr(module, name, None)) not in (int, float)]
        return [*children, *numbers, *(name for name in self.methods if not callable(getattr(module, name, None)))]


_KINDS = {
    "ObjectAttention": _Kind(_object_attention, ("DWSConv", *_BRANCHES, "conv1"), ("denoise",)),
    "UnionAttentionModule": _Kind(_union_attention, (*_CHANNELS, "bn", *_ROWS), ("confidence_ratio",)),
    "Frequency_Edge_Module": _Kind(
        _frequency_edge, ("DWSConv", *_BRANCHES, "conv", "UAM"), ("radius",), ("mask_radial",)
    ),
}
