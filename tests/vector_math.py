"""PyTorch's own functions on a CPU, made exact before they are compared with.

PyTorch hands them to oneMKL's vector mathematics, which picks each function's code at its first call. Where that call runs
on several threads, one of them can take the code of low accuracy for its part of that one call: a few in a thousand
processes see relative errors of 1e-4 (pytorch/pytorch issue 188792).
"""

import torch

FUNCTIONS = (
    torch.acos, torch.asin, torch.atan, torch.ceil, torch.cos, torch.erf, torch.erfc, torch.exp, torch.expm1, torch.floor,
    torch.lgamma, torch.log, torch.log10, torch.log1p, torch.log2, torch.round, torch.sigmoid, torch.sin, torch.sqrt,
    torch.tan, torch.tanh, torch.trunc,
)  # fmt: skip


def settle() -> None:
    """Calls each function once, on one thread."""
    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype)
        for function in FUNCTIONS:
            function(one)
