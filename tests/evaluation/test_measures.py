"""Retrieval and intervals against answers known beforehand."""

from __future__ import annotations

import numpy as np
import pytest

from unfog.evaluation import bootstrap_interval, draw_distractors, retrieval, share_interval, style_error


def test_retrieval_of_known_vectors() -> None:
    texts = np.eye(4)
    # own text first; own text second; own text first by a hair
    pictures = np.array([[1, 0, 0, 0], [0, 1, 2, 0], [0, 0, 1, 0.999]])
    distractors = [[1, 2, 3], [0, 2, 3], [0, 1, 3]]
    assert retrieval(pictures, texts, [0, 1, 2], distractors).tolist() == [True, False, True]
    # only the cosine counts, not the lengths
    assert retrieval(7 * pictures, texts * [[1], [9], [2], [5]], [0, 1, 2], distractors).tolist() == [True, False, True]


def test_a_tie_counts_against() -> None:
    generator = np.random.default_rng(0)
    picture, text = generator.normal(size=(50, 16)), generator.normal(size=16)
    texts = np.stack([text, text * 3, -text])  # the first two point the same way
    assert not retrieval(picture, texts, [0] * 50, [[1, 2]] * 50).any()
    assert not retrieval(np.zeros((2, 3)), np.eye(3), [0, 1], [[1, 2], [0, 2]]).any()


@pytest.mark.parametrize("count", [1, 63])
def test_chance_level(count: int) -> None:
    generator = np.random.default_rng(1)
    n, texts = 4_000, 200
    own = generator.integers(texts, size=n)
    hits = retrieval(generator.normal(size=(n, 8)), generator.normal(size=(texts, 8)), own, draw_distractors(own, texts, count))
    chance = 1 / (count + 1)
    # Fixed texts are not equally easy to hit, so the spread is wider than binomial
    assert abs(hits.mean() - chance) < 8 * np.sqrt(chance * (1 - chance) / n)


def test_retrieval_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="own text"):
        retrieval(np.eye(2), np.eye(2), [0, 1], [[1], [1]])
    with pytest.raises(ValueError, match="finite"):
        retrieval(np.full((1, 2), np.nan), np.eye(2), [0], [[1]])
    with pytest.raises(ValueError, match="positives"):
        retrieval(np.eye(2), np.eye(2), [0], [[1]])


def test_distractors_are_others_all_different_and_fixed() -> None:
    own = [5, 0, 9, 5]
    drawn = draw_distractors(own, 10, 9, seed=3)
    for positive, row in zip(own, drawn.tolist(), strict=True):
        assert sorted([positive, *row]) == list(range(10))
    assert drawn[0].tolist() == drawn[3].tolist()
    alone = draw_distractors([9], 10, 4, seed=3)
    assert alone[0].tolist() == draw_distractors(own, 10, 4, seed=3)[2].tolist()
    assert alone[0].tolist() != draw_distractors([9], 10, 4, seed=4)[0].tolist()
    with pytest.raises(ValueError, match="10 distractors"):
        draw_distractors(own, 10, 10)


def test_interval_covers_the_mean_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.random(80) < 0.3, resamples=300)
        covered += low <= 0.3 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_clusters_widen_the_interval_as_they_should() -> None:
    generator = np.random.default_rng(0)
    one = generator.random(100) < 0.5
    repeated, clusters = np.repeat(one, 10), np.repeat(np.arange(100), 10).tolist()
    apart, whole, truth = (
        np.diff(bootstrap_interval(*arguments)).item() for arguments in ((repeated,), (repeated, clusters), (one,))
    )
    # ten copies of a value tell nothing new: the interval is that of the hundred values, √10 wider than pretended
    assert whole == pytest.approx(truth, rel=0.1)
    assert whole / apart == pytest.approx(np.sqrt(10), rel=0.15)


def test_share_of_pairs_and_of_separate_groups() -> None:
    generator = np.random.default_rng(0)
    whole = generator.random(400) < 0.8
    names = [str(i) for i in range(400)]
    assert share_interval(whole, whole, names, names) == (1.0, 1.0)
    low, high = share_interval(generator.random(400) < 0.4, whole, [f"other {i}" for i in range(400)], names)
    assert low < 0.5 < high
    assert high - low < 0.2
    assert share_interval([True], [False], ["a"], ["b"]) == (np.inf, np.inf)


def test_style_error_counts_differences() -> None:
    assert style_error(["a", "b", "a"], ["a", "a", "b"]).tolist() == [False, True, True]
