"""Make iotsim/normals.npy: the normal quantile in octaves, to 40 digits, then rounded once.

Run `python tests/make_normals.py`; the result has a hash test, so a change of a single bit shows.
"""

from pathlib import Path

import mpmath
import numpy as np

OCTAVES, CUTS = 53, 128


def quantile(tail: mpmath.mpf) -> mpmath.mpf:
    """Return z with P(Z > z) = tail, by Newton steps on the complementary error function."""
    if tail == mpmath.mpf(1) / 2:
        return mpmath.mpf(0)
    z = mpmath.sqrt(2) * mpmath.erfinv(1 - 2 * tail) if tail > 1e-8 else start(tail)
    for _ in range(60):
        error = mpmath.ncdf(-z) - tail
        step = error / mpmath.npdf(z)
        z += step
        if abs(step) < mpmath.mpf(10) ** -35:
            break
    return z


def start(tail: mpmath.mpf) -> mpmath.mpf:
    t = mpmath.sqrt(-2 * mpmath.log(tail))
    return t - mpmath.log(t * mpmath.sqrt(2 * mpmath.pi)) / t


def coefficients() -> np.ndarray:
    mpmath.mp.dps = 40
    rows = []
    for octave in range(-1, OCTAVES - 1):
        edges = [
            quantile(mpmath.mpf(2) ** (octave - 53) * (1 + mpmath.mpf(i) / (2 * CUTS)))
            for i in range(2 * CUTS + 1)
        ]
        for i in range(CUTS):
            left, middle, right = edges[2 * i : 2 * i + 3]
            c2 = 2 * (left - 2 * middle + right)
            c1 = (right - left) - 3 * c2
            c0 = left - c1 - c2
            rows.append((float(c0), float(c1), float(c2)))
    return np.ascontiguousarray(np.array(rows, dtype="<f8").T)


if __name__ == "__main__":
    path = Path(__file__).parents[1] / "iotsim" / "normals.npy"
    np.save(path, coefficients(), allow_pickle=False)
    print(path, path.stat().st_size)
