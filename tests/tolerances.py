"""How far a fused result may be from the exact one."""

import torch
from torch import Tensor

# A float64 result has no wider type to be held to. Two orders of the same float64 sum differ by some rounding errors: with
# sums of up to 1e5 terms, under 1e-13 of the largest entry.
FLOAT64 = 1e-13

# Units in the last place of a tensor's largest entry that a result may be off whatever plain PyTorch's error is.
# The contract's one unit is right for what is rounded to two bytes at the end. A float32 result carries the rounding of two
# chained matrix products in its gate: on a few hundred elements the larger of two such largest errors is chance (over 60
# draws of the activation test the root mean square of the fused error was 0.8 to 1.4 times plain PyTorch's). A float32
# gradient of a parameter is a sum over samples and pixels whose terms cancel: its error is set by the terms and not by their
# sum, in plain PyTorch as here, and in a tensor of few entries chance decides which of the two errors is the smaller. Terms
# up to 16 times the largest entry are allowed for.
UNITS = {
    ("forward", torch.float32): 2,
    ("forward", torch.bfloat16): 1,
    ("forward", torch.float16): 1,
    ("gradient", torch.float32): 16,
    ("gradient", torch.bfloat16): 1,
    ("gradient", torch.float16): 1,
}


def assert_accurate(
    actual: Tensor | None, plain: Tensor | None, exact: Tensor | None, what: str = "forward", terms: float = 0.0
) -> None:
    """The contract: against float64, no more than twice the error of plain PyTorch, or some units in the last place.

    Both errors are the largest over the tensor; the unit is that of its largest entry.

    Args:
        actual: the fused result.
        plain: what plain PyTorch gives in the same dtype.
        exact: what plain PyTorch gives in float64.
        what: ``"forward"`` for a result; otherwise the name of the argument that a gradient belongs to.
        terms: how large the terms are that cancel in a result, where that is far above what is left. Each of them is rounded
            in the type of the computation, and where there are few, chance decides how much of that is left: two units of
            them are allowed for.
    """
    if actual is None or plain is None or exact is None:
        assert actual is None, what
        assert plain is None, what
        assert exact is None, what
        return
    assert actual.shape == exact.shape, f"{what}: {actual.shape} against {exact.shape}"
    assert actual.dtype == plain.dtype, f"{what}: {actual.dtype} against {plain.dtype}"
    assert exact.dtype == torch.float64
    actual64, plain64 = actual.detach().double().cpu(), plain.detach().double().cpu()
    exact = exact.detach().cpu()
    # NaN and infinity are where plain PyTorch has them.
    special = ~plain64.isfinite()
    torch.testing.assert_close(actual64[special], plain64[special], rtol=0, atol=0, equal_nan=True, msg=what)
    regular = ~special & exact.isfinite()
    if not regular.any():
        return
    actual64, plain64, exact = actual64[regular], plain64[regular], exact[regular]
    if actual.dtype == torch.float64:
        unit = FLOAT64
    else:
        kind = "forward" if what == "forward" else "gradient"
        unit = UNITS[kind, actual.dtype] * torch.finfo(actual.dtype).eps
    computed_in = torch.promote_types(actual.dtype, torch.float32)
    cancelled = 2 * torch.finfo(computed_in).eps * terms
    allowed = max(2 * (plain64 - exact).abs().max().item(), unit * exact.abs().max().item(), cancelled)
    error = (actual64 - exact).abs().max().item()
    assert error <= allowed, f"{what}: error {error:.3g}, allowed {allowed:.3g}"
