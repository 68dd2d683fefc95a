"""Windows over a larger item: what agrees with each alone, what wraps, what each window is told."""

import pytest
import torch

from unfog.diffusion import Gaussian, schedule_from_config
from unfog.diffusion.views import Windows, places
from unfog.errors import UserError


class Local:
    """x/2 + cond: what it says of a pixel depends on that pixel alone."""

    def __init__(self):
        self.process, self.shapes = Gaussian(schedule_from_config({"name": "cosine"})), []

    def __call__(self, x_t, t, cond=None):
        self.shapes.append(tuple(x_t.shape))
        return x_t / 2 + (0 if cond is None else cond["c"][:, None, None, None])


class Edged(Local):
    """Tells pixels apart by their place in the window."""

    def __call__(self, x_t, t, cond=None):
        return torch.arange(x_t.shape[-1], dtype=x_t.dtype).expand(x_t.shape)


@pytest.mark.parametrize("total", [64, 65, 80, 127, 128, 200])
@pytest.mark.parametrize("wrap", [False, True])
def test_windows_cover_everything(total, wrap):
    found = places(total, 64, wrap)
    covered = {(p + k) % total for p in found for k in range(64)}
    assert covered == set(range(total)) and len(set(found)) == len(found)
    assert wrap or (found[0] == 0 and found[-1] == total - 64)
    assert all(b - a <= 33 for a, b in zip(found, found[1:], strict=False))


def test_too_small_is_refused():
    with pytest.raises(UserError, match="less than a window"):
        places(32, 64)


@pytest.mark.parametrize("wrap", [False, True])
def test_where_all_windows_agree_the_mean_is_what_they_say(wrap):
    x, inner = torch.randn(2, 3, 20, 28, generator=torch.Generator().manual_seed(0)), Local()
    found = Windows(inner, (8, 8), wrap)(x, 0.5, {"c": torch.tensor([1.0, 2.0])})
    torch.testing.assert_close(found, x / 2 + torch.tensor([1.0, 2.0])[:, None, None, None])
    assert all(shape[0] % 2 == 0 and shape[0] <= 32 and shape[1:] == (3, 8, 8) for shape in inner.shapes)


def test_an_item_of_one_window_is_asked_for_as_it_is():
    x, inner = torch.randn(1, 3, 8, 8), Local()
    assert torch.equal(Windows(inner, (8, 8))(x, 0.5), x / 2) and inner.shapes == [(1, 3, 8, 8)]


def test_on_a_torus_no_place_is_an_edge():
    """A shift of the item by a window's stride shifts the estimate: there is no first column."""
    x = torch.zeros(1, 1, 16, 16)
    found = Windows(Edged(), (16, 16), wrap=True)(x, 0.5)
    torch.testing.assert_close(found, torch.roll(found, 8, -1))
    plain = Windows(Edged(), (16, 16))(x, 0.5)
    assert plain[0, 0, 0, 0] == 0 and plain[0, 0, 0, -1] == 15
    assert (found[0, 0, 0, 0] - found[0, 0, 0, -1]).abs() < 3


def test_times_of_each_item_go_with_its_windows():
    class Timed(Local):
        def __call__(self, x_t, t, cond=None):
            return x_t * 0 + t[:, None, None, None]

    found = Windows(Timed(), (4, 4))(torch.zeros(2, 1, 6, 6), torch.tensor([0.2, 0.7]))
    torch.testing.assert_close(found[:, 0, 0, 0], torch.tensor([0.2, 0.7]))
