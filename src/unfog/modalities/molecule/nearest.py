"""The nearest molecule to a table of numbers: of all whose valences add up, the one at the least distance in model space.

The distance to one-hot parts falls as the sum of the numbers at the chosen places grows, so the largest of each part is nearest
of all; where that leaves atoms with bonds that do not add up, one part of such an atom after another is changed, the cheapest
changes first (uniform-cost search), so that what is found first is nearest.
Source: Dijkstra 1959, doi:10.1007/BF01386390 (uniform-cost search).
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unfog.modalities.molecule.stability import VALENCES

MOST = 1000  # states looked at; samples of a trained model take 10 on average, in noise there may be none near
Choice = tuple[int, ...]  # of each part the place chosen: n types, n counts of hydrogens, then orders of pairs j < i


def nearest(
    kinds: Sequence[tuple[str, int]], types: NDArray[Any], counts: NDArray[Any], bonds: NDArray[Any]
) -> tuple[NDArray[np.int8], NDArray[np.int8], NDArray[np.int8]]:
    """The places of n atoms' types (n,), their hydrogens (n,), and the orders of their bonds (n, n).

    kinds: element and charge of each type; types (n, kinds) and counts (n, hydrogens; no columns: hydrogens are atoms) as they
    stand in model space, 1 for "this one"; bonds (n, n, 3) of orders 1 to 3, no bond: zeros. An atom of a kind that VALENCES does
    not know may have any bonds. Where MOST states hold no molecule whose valences add up, it is the largest of each part.
    """
    n = len(types)
    counts = counts if counts.shape[1] else np.zeros((n, 1))
    below = [(i, j) for i in range(n) for j in range(i)]
    # what |x - part|² loses, halved: 1/2 less for a bond than for none; a bond stands in the table both ways
    parts = [np.nan_to_num(part) for part in (*types, *counts, *(np.array([0.0, *(2 * bonds[i, j] - 1)]) for i, j in below))]
    pair = {(i, j): 2 * n + k for k, (i, j) in enumerate(below)}
    near = [[pair[max(i, j), min(i, j)] for j in range(n) if j != i] for i in range(n)]
    allowed = [VALENCES.get((kind[0], kind[1])) for kind in kinds]

    def wrong(choice: Choice) -> int | None:
        for i in range(n):
            valences = allowed[choice[i]]
            if valences is not None and choice[n + i] + sum(choice[k] for k in near[i]) not in valences:
                return i
        return None

    first = tuple(int(part.argmax()) for part in parts)
    edge: list[tuple[float, Choice, frozenset[int]]] = [(0.0, first, frozenset())]
    seen, found = {first}, first
    for _ in range(MOST):
        if not edge:
            break
        cost, choice, changed = heapq.heappop(edge)
        if (atom := wrong(choice)) is None:
            found = choice
            break
        for k in {atom, n + atom, *near[atom]} - changed:
            for place in range(len(parts[k])):
                other = (*choice[:k], place, *choice[k + 1 :])
                if other not in seen:
                    seen.add(other)
                    more = float(parts[k][choice[k]] - parts[k][place])
                    heapq.heappush(edge, (cost + more, other, changed | {k}))
    orders = np.zeros((n, n), np.int8)
    for (i, j), k in pair.items():
        orders[i, j] = orders[j, i] = found[k]
    return np.array(found[:n], np.int8), np.array(found[n : 2 * n], np.int8), orders
