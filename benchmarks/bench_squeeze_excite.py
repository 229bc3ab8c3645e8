"""squeeze_excite against PyTorch's formula, torch.compile and torchvision's module.

The floor reads x once and writes y once; backward reads dy and x and writes dx besides. The parameters and the means
are too small to count.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import sod_ops
from benchmarks.contest import FORWARD, HOST, Case
from sod_ops._extension import squeeze_excite_fits
from sod_ops._peers import import_peer
from sod_ops.reference.squeeze_excite import ACTIVATIONS, GATES
from sod_ops.reference.squeeze_excite import squeeze_excite as reference

_MODULES = {
    "relu": torch.nn.ReLU,
    "silu": torch.nn.SiLU,
    "sigmoid": torch.nn.Sigmoid,
    "hardsigmoid": torch.nn.Hardsigmoid,
}


@dataclass(frozen=True)
class SqueezeExcite(Case):
    """``shape`` is [N, C, H, W]; the channels are squeezed to ``reduced``."""

    shape: tuple[int, int, int, int]
    reduced: int
    activation: str = "relu"
    gate: str = "sigmoid"
    dtype: torch.dtype = torch.float32
    channels_last: bool = False
    headline: bool = False

    peer_name = "torchvision"

    @property
    def name(self) -> str:
        shape = "x".join(map(str, self.shape))
        functions = [] if (self.activation, self.gate) == ("relu", "sigmoid") else [self.activation, self.gate]
        memory_format = ["channels_last"] if self.channels_last else []
        return " ".join(
            [shape, f"R={self.reduced}", *functions, str(self.dtype).removeprefix("torch."), *memory_format]
        )

    def inputs(self, device: str) -> tuple[Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        channels = self.shape[1]

        def normal(*shape: int, mean: float = 0.0, deviation: float = 1.0) -> Tensor:
            tensor = torch.empty(shape, dtype=self.dtype, device=device)
            return tensor.normal_(mean, deviation, generator=generator).requires_grad_()

        # A mean that is not zero, as behind an activation: the gates then differ and the means' gradient counts.
        x = normal(*self.shape, mean=0.5)
        if self.channels_last:
            x = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
        return (
            x,
            normal(self.reduced, channels, 1, 1, deviation=channels**-0.5),
            normal(self.reduced),
            normal(channels, self.reduced, 1, 1, deviation=self.reduced**-0.5),
            normal(channels),
        )

    def reference(self, *inputs: Tensor) -> Tensor:
        return reference(*inputs, activation=self.activation, gate=self.gate)

    def eager(self) -> Callable[..., Tensor]:
        activation, gate = ACTIVATIONS[self.activation], GATES[self.gate]

        def eager_squeeze_excite(
            x: Tensor, reduce_weight: Tensor, reduce_bias: Tensor, expand_weight: Tensor, expand_bias: Tensor
        ) -> Tensor:
            means = x.mean((2, 3), keepdim=True)
            hidden = activation(F.conv2d(means, reduce_weight, reduce_bias))
            return x * gate(F.conv2d(hidden, expand_weight, expand_bias))

        return eager_squeeze_excite

    def ours(self) -> Callable[..., Tensor]:
        return partial(sod_ops.squeeze_excite, activation=self.activation, gate=self.gate)

    def other_backends(self, device: str) -> tuple[str, ...]:
        # Where a sample fits on chip, a CUDA C++ kernel takes Triton's place.
        reduced, itemsize = self.reduced, self.dtype.itemsize
        channels, pixels = self.shape[1], self.shape[2] * self.shape[3]
        fits = device == "cuda" and squeeze_excite_fits(
            torch.cuda.current_device(), channels, pixels, True, reduced, itemsize
        )
        return ("triton",) if fits else ()

    def peer(self, *inputs: Tensor) -> Callable[[], Tensor]:
        x, *parameters = inputs
        module = import_peer("torchvision.ops").SqueezeExcitation(
            self.shape[1], self.reduced, _MODULES[self.activation], _MODULES[self.gate]
        )
        # The very tensors of the others, as attributes: a Parameter would be a leaf of its own.
        for convolution, weight, bias in ((module.fc1, *parameters[:2]), (module.fc2, *parameters[2:])):
            del convolution.weight, convolution.bias
            convolution.weight, convolution.bias = weight, bias
        return lambda: module(x)

    def floor_bytes(self, mode: str) -> int:
        maps = 2 if mode == FORWARD else 5
        return maps * torch.Size(self.shape).numel() * self.dtype.itemsize


def _variants(cases: list[SqueezeExcite]) -> list[SqueezeExcite]:
    """Each case in both memory formats, in float32 and bfloat16."""
    return [
        replace(case, dtype=dtype, channels_last=channels_last)
        for case in cases
        for dtype in (torch.float32, torch.bfloat16)
        for channels_last in (False, True)
    ]


CASES = {
    "cpu": [
        *(
            replace(case, headline=case.dtype == torch.float32 and not case.channels_last)
            for case in _variants(
                [
                    # seresnet50's first and third stage, a map at the resolution of a saliency network, and batch 1
                    SqueezeExcite((8, 256, 56, 56), 16),
                    SqueezeExcite((8, 1024, 14, 14), 64),
                    SqueezeExcite((8, 64, 160, 160), 4),
                    SqueezeExcite((1, 256, 56, 56), 16),
                ]
            )
        ),
        SqueezeExcite((16, 256, 112, 112), 16, headline=True),
        # efficientnet_b0 (its squeezed width comes from the block's input), mobilenetv3_large_100
        SqueezeExcite((8, 96, 56, 56), 4, activation="silu"),
        SqueezeExcite((8, 1152, 7, 7), 48, activation="silu"),
        SqueezeExcite((8, 672, 14, 14), 168, gate="hardsigmoid"),
        SqueezeExcite((1, 1024, 7, 7), 64),
        SqueezeExcite((2, 16, 8, 8), 4),
    ],
    "cuda": [
        *(
            replace(case, headline=True)
            for case in _variants(
                [
                    SqueezeExcite((64, 256, 56, 56), 16),
                    SqueezeExcite((64, 1024, 14, 14), 64),
                    SqueezeExcite((32, 96, 112, 112), 4, activation="silu"),
                ]
            )
        ),
        # 2^28 elements
        *(replace(case, headline=True) for case in _variants([SqueezeExcite((64, 256, 128, 128), 16)])),
        SqueezeExcite((8, 1152, 7, 7), 48, activation="silu"),
        SqueezeExcite((1, 256, 56, 56), 16),
    ],
}


def test_squeeze_excite(case: SqueezeExcite, mode: str, contest: Callable[[Case, str], None]) -> None:
    contest(case, mode)


def test_host_time(contest: Callable[[Case, str], None]) -> None:
    contest(SqueezeExcite((1, 8, 1, 1), 2), HOST)
