"""Agreement with a hint: exact answers for shapes whose overlap is known."""

import numpy as np
import pytest
import torch

from unfog.evaluation.follows import agreement, correlation, line_f1, overlap


def column(*places):
    x = torch.zeros(1, 1, 20, 20)
    x[..., list(places)] = 1
    return x


def test_f1_forgives_two_pixels_and_no_more():
    sketch = column(8)
    assert line_f1(column(8), sketch) == line_f1(column(10), sketch) == line_f1(column(6), sketch) == 1
    assert line_f1(column(11), sketch) == 0 and line_f1(column(), sketch) == 0 and line_f1(column(), column()) == 1
    assert line_f1(column(8, 15), sketch) == pytest.approx(2 * 0.5 / 1.5)  # every second line is too many
    assert line_f1(sketch, column(8, 15)) == pytest.approx(2 * 0.5 / 1.5)


def test_overlap_and_correlation():
    assert overlap(column(1, 2), column(2, 3)) == pytest.approx(1 / 3) and overlap(column(), column()) == 1
    x = torch.rand(2, 4, 8, 8)
    assert np.allclose(correlation(x, 3 * x + 1), 1) and np.allclose(correlation(x, -x), -1)
    assert (correlation(x, torch.ones_like(x)) == 0).all()


def test_a_picture_agrees_with_its_own_hint():
    from unfog.modalities.image.controls import CONTROLS

    pictures = np.zeros((1, 32, 32, 4), np.uint8)
    pictures[:, 8:24, 8:24] = (200, 50, 30, 255)
    for kind, control in CONTROLS.items():
        hint = control.draw(torch.from_numpy(pictures))
        assert agreement(kind, pictures, hint) == pytest.approx(1)
        assert agreement(kind, np.roll(pictures, 8, 2), hint) < 0.8
