"""Does a picture fit its own caption better than other captions? Retrieval among distractors.

    hit_i = [ cos(p_i, t_positive(i)) > max_j cos(p_i, t_distractor(i, j)) ]        R@1 = mean of hit

A tie counts against the picture, so a scorer that gives everything one vector scores 0, and chance is
1 / (distractors + 1). Source: Radford et al. 2021, arXiv:2103.00020 (zero-shot classification by captions).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

DISTRACTORS = 64


def retrieval(
    picture_vectors: ArrayLike, text_vectors: ArrayLike, positives: ArrayLike, distractors: ArrayLike
) -> NDArray[np.bool_]:
    """Which pictures rank their own text strictly first; the mean is R@1.

    Args: picture_vectors (N, D); text_vectors (M, D), any length above 0; positives (N,), rows of text_vectors;
        distractors (N, K), other rows.
    Raises: ValueError where shapes do not fit, a vector is not finite, or a positive is among its distractors.
    """
    pictures, texts = _unit(picture_vectors), _unit(text_vectors)
    own, others = np.asarray(positives, np.int64), np.asarray(distractors, np.int64)
    if own.shape != (len(pictures),) or others.ndim != 2 or len(others) != len(own) or others.shape[1] == 0:
        raise ValueError(f"retrieval got {len(pictures)} pictures, positives {own.shape}, distractors {others.shape}")
    if (others == own[:, None]).any():
        raise ValueError("retrieval: a picture's own text is among its distractors")
    cosine = pictures @ texts.T
    # Rounded, because equal vectors may differ in the last bits of a product, and a tie must stay a tie.
    cosine = np.round(cosine, 9)
    best = np.take_along_axis(cosine, others, 1).max(1)
    return cosine[np.arange(len(own)), own] > best


def draw_distractors(positives: ArrayLike, texts: int, count: int = DISTRACTORS, seed: int = 0) -> NDArray[np.int64]:
    """For each positive, `count` different other texts (N, count), the same for a positive wherever it stands.

    Args: positives (N,), in [0, texts); texts, how many there are; count, below `texts`.
    Raises: ValueError where there are too few texts.
    """
    own = np.asarray(positives, np.int64)
    if not 0 < count < texts:
        raise ValueError(f"cannot draw {count} distractors from {texts} texts")
    rows = []
    for positive in own:
        # Seeded by the text itself: a generated picture and the real one of its caption face the same distractors.
        drawn = np.random.default_rng([seed, int(positive)]).choice(texts - 1, count, replace=False)
        rows.append(drawn + (drawn >= positive))
    return np.array(rows, np.int64).reshape(len(own), count)


def _unit(vectors: ArrayLike) -> NDArray[np.float64]:
    x = np.asarray(vectors, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise ValueError(f"retrieval needs finite vectors (N, D), got shape {x.shape}")
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
