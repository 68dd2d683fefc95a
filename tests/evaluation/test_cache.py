"""Features kept between runs: made once, never trusted when damaged, never mixed up, never needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unfog.errors import UserError
from unfog.evaluation import cache
from unfog.evaluation.cache import cache_folder, features_of
from unfog.evaluation.readers import Reader, given
from unfog.files import sha256


class Counted:
    """A reader that says how often and on how many items at most it was called."""

    def __init__(self, hash: str | None = "1", scale: float = 1.0) -> None:
        self.calls, self.most, self.scale = 0, 0, scale
        self.reader: Reader = given(self.read, "counted", dim=6, hash=hash)

    def read(self, x: np.ndarray) -> np.ndarray:
        self.calls, self.most = self.calls + 1, max(self.most, len(x))
        return x.reshape(len(x), -1) * self.scale


class Set:
    def __init__(self, items: np.ndarray) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def load(self, index: int, size: int | None = None) -> np.ndarray:
        return self.items[index]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "_told", set())


def data(n: int = 10) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(n, 2, 3))


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_features_are_made_once(tmp_path: Path) -> None:
    x, one = data(), Counted()
    found = features_of(one.reader, x, batch=4, folder=tmp_path)
    assert (one.calls, one.most) == (3, 4)
    np.testing.assert_array_equal(found, x.reshape(10, 6).astype(np.float32))
    again = Counted()
    for kept in (features_of(again.reader, x, folder=tmp_path), features_of(again.reader, Set(x), folder=tmp_path, batch=3)):
        np.testing.assert_array_equal(kept, found)
    assert again.calls == 0
    assert len(files(tmp_path)) == 1


def test_other_data_or_another_reader_is_another_file(tmp_path: Path) -> None:
    x = data()
    features_of(Counted().reader, x, folder=tmp_path)
    moved = x.copy()
    moved[7, 1, 2] += 1e-9
    for one, part in (
        (Counted("2", 2.0), x),
        (Counted(), moved),
        (Counted(), x[::-1].copy()),
        (Counted(), x.reshape(10, 3, 2)),
        (Counted(), x.astype(np.float32)),
    ):
        found = features_of(one.reader, part, folder=tmp_path)
        assert one.calls == 1
        np.testing.assert_allclose(found, part.reshape(10, 6) * one.scale, rtol=1e-6)
    rows = features_of(Counted().reader, x, rows=[3, 1], folder=tmp_path)
    np.testing.assert_allclose(rows, x[[3, 1]].reshape(2, 6), rtol=1e-6)
    assert len(files(tmp_path)) == 7


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "head", "text"])
def test_a_damaged_file_is_found_said_and_mended(tmp_path: Path, harm: str, capsys: pytest.CaptureFixture[str]) -> None:
    x = data()
    wanted = features_of(Counted().reader, x, folder=tmp_path)
    (place,) = files(tmp_path)
    raw = bytearray(place.read_bytes())
    whole = bytes(raw)
    raw[-5] ^= 1
    place.write_bytes({"flip": bytes(raw), "cut": whole[:-9], "empty": b"", "head": b"x" + whole[1:], "text": b"none"}[harm])
    one = Counted()
    np.testing.assert_array_equal(features_of(one.reader, x, folder=tmp_path), wanted)
    assert one.calls == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "damaged" in said and str(place) in said
    assert place.read_bytes() == whole


def test_a_whole_file_of_something_else_is_not_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = data()
    wanted = features_of(Counted().reader, x, folder=tmp_path)
    (place,) = files(tmp_path)
    cache._write(place, np.zeros((10, 5), np.float32))
    np.testing.assert_array_equal(features_of(Counted().reader, x, folder=tmp_path), wanted)
    body = b"not an array"
    place.write_bytes(cache.MAGIC + sha256(body).encode() + b"\n" + body)
    np.testing.assert_array_equal(features_of(Counted().reader, x, folder=tmp_path), wanted)
    assert "not the features of this data" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_no_cache(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    taken = tmp_path / "taken"
    taken.write_text("a file")
    x, one = data(), Counted()
    for _ in range(2):
        np.testing.assert_allclose(features_of(one.reader, x, folder=taken), x.reshape(10, 6), rtol=1e-6)
    assert one.calls == 2
    said = capsys.readouterr().err
    assert "features are not kept" in said and "UNFOG_CACHE" in said
    assert said.count("not kept") == 1


def test_a_function_without_a_hash_is_never_kept(tmp_path: Path) -> None:
    one = Counted(hash=None)
    for _ in range(2):
        features_of(one.reader, data(), folder=tmp_path)
    assert one.calls == 2 and files(tmp_path) == []


def test_batches_that_come_by_are_read_once(tmp_path: Path) -> None:
    x = data()
    found = features_of(Counted().reader, (x[i : i + 3] for i in range(0, 10, 3)), folder=tmp_path)
    np.testing.assert_allclose(found, x.reshape(10, 6), rtol=1e-6)
    assert files(tmp_path) == []


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("UNFOG_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "unfog"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the standard says to pass over
    assert cache_folder() == tmp_path / ".cache" / "unfog"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "unfog"
    monkeypatch.setenv("UNFOG_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    features_of(Counted().reader, data())
    assert len(files(tmp_path / "own")) == 1


@pytest.mark.parametrize("empty", [np.zeros((0, 2, 3)), Set(np.zeros((0, 2, 3))), iter([])])
def test_an_empty_set_is_one_line(empty: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="reader counted: the set is empty"):
        features_of(Counted().reader, empty, folder=tmp_path)  # type: ignore[arg-type]
