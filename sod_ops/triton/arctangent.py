"""The arctangent of a quotient on tiles of float32 or float64, as csrc/math/arctangent.h has it: tl offers none."""
# mypy: allow-untyped-defs, allow-incomplete-defs

import triton
import triton.language as tl

from sod_ops.triton.division import divide


@triton.jit
def arctangent(y, x):
    """atan(y / x), also where x is 0; NaN where both are 0 or both infinite.

    With t = min / max of the absolute values in [0, 1], atan(t) = t + t^3 P(t^2), or pi/2 less that. Off by no more than
    two units in the last place.
    """
    rise = tl.abs(y)
    run = tl.abs(x)
    t = divide(tl.minimum(rise, run), tl.maximum(rise, run))
    z = t * t
    acute = t + t * z * _polynomial(z)
    # pi/2 in two parts: rounded once, it alone would be off by 4e-8 in float32.
    if y.dtype == tl.float64:
        obtuse = (1.57079632679489661923 - acute) + 6.123233995736766e-17
    else:
        obtuse = (1.57079637050628662109 - acute) - 4.371139000186241e-08
    angle = tl.where(rise > run, obtuse, acute)
    return tl.where((y < 0.0) ^ (x < 0.0), -angle, angle)


@triton.jit
def _polynomial(z):
    """(atan(t) / t - 1) / t^2 for t = sqrt(z) in [0, 1]: minimax, off by 2.6e-9 in float32, 4.6e-18 in float64."""
    if z.dtype == tl.float64:
        p = z * 0.000013225119973714734336 - 0.00015216122608927192243
        p = p * z + 0.00083132309497714893322
        p = p * z - 0.0028849206920550981423
        p = p * z + 0.0071965047746373907905
        p = p * z - 0.013900558059105383341
        p = p * z + 0.021984846192131976382
        p = p * z - 0.029903848144904608104
        p = p * z + 0.036641901183334704696
        p = p * z - 0.042191782992877263971
        p = p * z + 0.047223218884414678183
        p = p * z - 0.052535184298041046696
        p = p * z + 0.058805277801486566717
        p = p * z - 0.066664040504563016417
        p = p * z + 0.076922798382321242921
        p = p * z - 0.090909070028816650679
        p = p * z + 0.11111111007018754269
        p = p * z - 0.14285714282574818469
        p = p * z + 0.19999999999951455161
        p = p * z - 0.33333333333333068046
    else:
        p = z * -0.0017936453887699460 + 0.010914720940622658
        p = p * z - 0.031178081211452763
        p = p * z + 0.057957855361009438
        p = p * z - 0.084034674625037075
        p = p * z + 0.10952192402138586
        p = p * z - 0.14264243110009606
        p = p * z + 0.19998548431902395
        p = p * z - 0.33333299094066598
    return p
