"""Feature functions: what they see, what they refuse, and that their hash changes with them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unfog.errors import UserError
from unfog.evaluation import readers
from unfog.evaluation.readers import given, reader, register
from unfog.files import sha256


def pictures(n: int = 3, side: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 4), dtype=np.uint8)


def test_lite0_is_the_pooled_head_of_the_shipped_network() -> None:
    import torch

    from unfog.evaluation.scorer import Scorer, prepare

    read = reader("lite0")
    assert (read.name, read.label, read.dim) == ("lite0", "FD-lite0", 1280)
    x = pictures()
    with torch.inference_mode():
        wanted = Scorer.load().lite0(prepare(x))[:, 472:].numpy()
    found = read(x)
    assert found.shape == (3, 1280) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)
    assert "96x96" in read.resize and "white" in read.resize and "8-bit" in read.resize
    assert reader("lite0")(x[:0]).shape == (0, 1280)


@pytest.mark.parametrize("name", ["lite0", "pixels"])
def test_what_transparency_hides_is_not_seen(name: str) -> None:
    x = pictures()
    x[..., 3] = np.where(np.arange(64) < 30, 0, 255)
    y = x.copy()
    y[:, :, :30, :3] = 99
    np.testing.assert_array_equal(reader(name)(x), reader(name)(y))
    opaque = x.copy()
    opaque[..., 3] = 255
    np.testing.assert_array_equal(reader(name)(opaque), reader(name)(opaque[..., :3]))


def test_pixels_are_area_means_of_premultiplied_colours() -> None:
    x = pictures()
    wide = x.astype(np.float64) / 255
    wide[..., :3] *= wide[..., 3:]
    wanted = wide.reshape(3, 8, 8, 8, 8, 4).mean((2, 4)).transpose(0, 3, 1, 2).reshape(3, -1)
    found = reader("pixels")(x)
    assert found.shape == (3, reader("pixels").dim)
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_values_are_the_numbers_themselves() -> None:
    x = np.arange(24.0).reshape(2, 3, 4)
    np.testing.assert_array_equal(reader("values")(x), x.reshape(2, 12))


@pytest.mark.parametrize("bad", [np.zeros((2, 64, 64, 4)), np.zeros((64, 64, 4), np.uint8), np.zeros((2, 64, 64, 1), np.uint8)])
def test_what_is_no_picture_is_refused(bad: np.ndarray) -> None:
    for name in ("lite0", "pixels"):
        with pytest.raises(UserError, match=rf"reader {name}: needs pictures \(B, H, W, 4\) of bytes, got"):
            reader(name)(bad)


def test_any_function_is_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "READERS", dict(readers.READERS))
    means = given(lambda x: x.reshape(len(x), -1).mean(1, keepdims=True), "means", dim=1, hash="1")
    register(means)
    assert reader("means") is means
    assert means.label == "FD-means"
    np.testing.assert_allclose(means(np.array([[1.0, 3], [5, 7]])), [[2], [6]])
    assert means.hash != given(lambda x: x, "means", hash="2").hash
    assert given(lambda x: x, "means").hash is None
    with pytest.raises(UserError, match="'means' is empty or taken"):
        register(means)
    for wrong in (given(lambda x: x.sum(), "wrong"), given(lambda x: x[:1], "wrong"), given(lambda x: x, "wrong", dim=3)):
        with pytest.raises(UserError, match=r"reader wrong: must give \(2, [D3]\) features, gave shape"):
            wrong(np.zeros((2, 2)))


def test_an_unknown_reader_is_one_line() -> None:
    with pytest.raises(UserError, match="reader: 'lite1' is unknown; did you mean lite0"):
        reader("lite1")


def test_hashes_tell_readers_apart() -> None:
    assert len({reader(name).hash for name in ("lite0", "pixels", "values")}) == 3


NETWORK = """
import torch

class FeatureExtractorInceptionV3:
    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        assert feature_extractor_weights_path is not None, "would download"
        assert features_list == ["2048"]

    def __call__(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        return (x.float().mean((2, 3)).repeat(1, 683)[:, :2048],)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for torch-fidelity, which needs torchvision; and a file of weights that it does not read."""
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
        monkeypatch.delitem(sys.modules, name)
    folder = tmp_path / "packages" / "torch_fidelity"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "feature_extractor_inceptionv3.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(folder.parent))
    monkeypatch.delenv("UNFOG_INCEPTION", raising=False)
    weights = tmp_path / "weights.pth"
    weights.write_bytes(b"weights")
    yield weights
    for name in [name for name in sys.modules if name.split(".")[0] == "torch_fidelity"]:
        del sys.modules[name]


def test_inception_takes_only_the_published_weights(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no weights; set UNFOG_INCEPTION"):
        reader("inception")
    monkeypatch.setenv("UNFOG_INCEPTION", str(package.parent / "none.pth"))
    with pytest.raises(UserError, match="none.pth: No such file"):
        reader("inception")
    monkeypatch.setenv("UNFOG_INCEPTION", str(package))
    with pytest.raises(UserError, match="not the Inception weights that FID means"):
        reader("inception")
    monkeypatch.setattr(readers, "INCEPTION_SHA256", sha256(b"weights"))
    read = reader("inception")
    assert (read.label, read.dim) == ("FID", 2048)
    x = np.zeros((2, 9, 9, 4), np.uint8)
    x[1] = [10, 20, 30, 255]
    np.testing.assert_allclose(read(x)[:, :3], [[255, 255, 255], [10, 20, 30]])
    assert readers.inception(package).hash == read.hash


def test_inception_without_its_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find = importlib.util.find_spec

    def missing(name: str, *rest: Any) -> Any:
        return None if name == "torch_fidelity" else find(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", missing)
    with pytest.raises(UserError, match=r"pip install 'unfog\[fidelity\]'") as caught:
        reader("inception")
    assert "\n" not in str(caught.value)
