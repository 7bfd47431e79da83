"""log(1 + x) and exp(x) that compilers turn into vector instructions; calls of the C library are not.

Argument reduction and the coefficients of the logarithm are those of fdlibm (Sun Microsystems, 1993); there are no
branches and no tables. Errors are at most 1 to 2 units in the last place (tests/engine/test_elementary.py).
"""

from __future__ import annotations

import numpy as np
from numba import types
from numba.extending import intrinsic

from scglmm._jit import exact_kernel

LN2_HIGH, LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10  # their sum is log 2 to 100 bits
PER_LN2 = 1.44269504088896338700

_ONE = np.int64(0x3FF0000000000000)  # bits of 1.0
_ROOT = np.int64(0x3FE6A09E667F3BCD)  # bits of sqrt(1/2)
_FRACTION = np.int64(0x000FFFFFFFFFFFFF)  # bits of the fraction of a number
_WHOLE = np.int64(0x4330000000000000)  # bits of 2^52: a whole number k below that in its fraction makes it 2^52 + k
_SHIFT = 6755399441055744.0  # 1.5 * 2^52: adding it rounds to a whole number, which is then in the fraction


@intrinsic
def _bits(_context, x):
    """Take the bits of a number for a whole number."""

    def code(context, builder, _signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.int64))

    return types.int64(types.float64), code


@intrinsic
def _number(_context, bits):
    """Make a number of its bits."""

    def code(context, builder, _signature, args):
        return builder.bitcast(args[0], context.get_value_type(types.float64))

    return types.float64(types.int64), code


@intrinsic
def plus(_context, total, term):
    """Add a term of a sum whose order does not matter, so that it can be taken in vectors.

    For kernels that call the functions of this module: "fast" arithmetic for all of a kernel (`sum_kernel`) would get
    into these, and take apart what makes them exact.
    """

    def code(_context, builder, _signature, args):
        return builder.fadd(*args, flags=("reassoc", "nsz"))

    return types.float64(types.float64, types.float64), code


@exact_kernel
def log1p(x):
    """log(1 + x) for 0 <= x < 1e300, exact to rounding also where x is small."""
    u = 1.0 + x
    lost = x - (u - 1.0) if x < 1.0 else 1.0 - (u - x)  # by rounding in u
    # u = 2^k (1 + f), sqrt(1/2) <= 1 + f < sqrt(2)
    bits = _bits(u) + (_ONE - _ROOT)
    k = _number((bits >> np.int64(52)) | _WHOLE) - (4503599627370496.0 + 1023.0)
    f = _number((bits & _FRACTION) + _ROOT) - 1.0
    inverse = 1.0 / ((2.0 + f) * u)
    s = f * (u * inverse)  # f / (2 + f)
    z = s * s
    series = z * (0.1531383769920937332 + z * 0.1479819860511658591)
    series = z * (0.2222219843214978396 + z * (0.1818357216161805012 + series))
    series = z * (0.6666666666666735130 + z * (0.3999999999940941908 + z * (0.2857142874366239149 + series)))
    half = 0.5 * f * f
    low = k * LN2_LOW + lost * ((2.0 + f) * inverse)
    return k * LN2_HIGH - ((half - (s * (half + series) + low)) - f)


@exact_kernel
def exp(x):
    """exp(x) for x <= 700; below -708 that of -708."""
    x = -708.0 if x < -708.0 else x
    rounded = x * PER_LN2 + _SHIFT
    k = rounded - _SHIFT
    r = (x - k * LN2_HIGH) - k * LN2_LOW
    # Taylor's series: |r| <= log(2) / 2
    series = 1 / 479001600 + r * (1 / 6227020800)
    series = 1 / 3628800 + r * (1 / 39916800 + r * series)
    series = 1 / 40320 + r * (1 / 362880 + r * series)
    series = 1 / 720 + r * (1 / 5040 + r * series)
    series = 1 / 24 + r * (1 / 120 + r * series)
    series = 0.5 + r * (1 / 6 + r * series)
    power = _number((_bits(rounded) + np.int64(1023)) << np.int64(52))
    return power + power * (r + r * r * series)
