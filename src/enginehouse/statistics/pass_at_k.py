"""What k answers per item give, estimated without bias from n ≥ k: pass@k, mean@k, best@k.

Arrays have shape (items, repeats); `valid` says which entries are answers. The results have shape
(items,): n is an item's number of valid entries, and the result is NaN where n < k.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from enginehouse.statistics.intervals import Floats

Booleans = NDArray[np.bool_]


def pass_at_k(correct: Booleans, valid: Booleans, *, k: int) -> Floats:
    """Probability that at least one of k answers, drawn from the n without replacement, is right.

    1 - C(n - c, k) / C(n, k) with c right answers, as the product 1 - Π (1 - k / i) over i from
    n - c + 1 to n, which cannot overflow: M. Chen et al., "Evaluating large language models
    trained on code" (2021), arXiv:2107.03374.
    """
    n = valid.sum(axis=1)
    c = (correct & valid).sum(axis=1)
    i = np.arange(1, valid.shape[1] + 1)
    taken = (i > (n - c)[:, None]) & (i <= n[:, None])
    missed = np.where(taken, np.maximum(0.0, 1 - k / i), 1.0).prod(axis=1)
    return _where_enough(1 - missed, n, k)


def mean_at_k(values: Floats, valid: Booleans, *, k: int) -> Floats:
    """Mean of each item's first k valid values, of all where n = k."""
    n = valid.sum(axis=1)
    first = valid & (valid.cumsum(axis=1) <= k)
    return _where_enough(np.where(first, values, 0.0).sum(axis=1) / k, n, k)


def best_at_k(values: Floats, valid: Booleans, *, k: int) -> Floats:
    """Expected greatest of k values drawn from the n without replacement.

    Σ x₍ᵢ₎ C(i - 1, k - 1) / C(n, k) over the order statistics x₍₁₎ ≤ … ≤ x₍ₙ₎: R. Tang et al.,
    "Showing your work doesn't always work", ACL 2020 (a U-statistic, hence unbiased for k ≤ n). Of
    0-or-1 values it is pass@k.
    """
    n = valid.sum(axis=1)
    result = np.zeros(len(n))
    for size in np.unique(n[n >= k]):
        rows = n == size
        ordered = np.sort(values[rows][valid[rows]].reshape(-1, size), axis=1)
        most = ordered[:, -1]  # subtracted from, so that equal values give exactly themselves
        result[rows] = most - (most[:, None] - ordered) @ _shares_of_maximum(int(size), k)
    return _where_enough(result, n, k)


def _shares_of_maximum(n: int, k: int) -> Floats:
    """How probable it is that the i-th least of n values is the greatest of k drawn ones."""
    shares = np.zeros(n)
    shares[-1] = k / n
    for i in range(n, k, -1):
        shares[i - 2] = shares[i - 1] * (i - k) / (i - 1)
    return shares


def _where_enough(values: Floats, n: NDArray[np.int_], k: int) -> Floats:
    found: Floats = np.where(n >= k, values, np.nan)
    return found
