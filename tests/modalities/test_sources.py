"""Pictures from every kind of place: what is read, what is refused, and that nothing hostile gets out."""

import gzip
import io
import json
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from unfog.errors import UserError
from unfog.modalities.image import sources
from unfog.modalities.image.data import SOURCES, PictureSet, kind_of


def flat(red, size=8):
    return np.full((size, size, 4), (red, 2, 3, 255), np.uint8)


def png(red, size=8):
    file = io.BytesIO()
    Image.fromarray(flat(red, size)).save(file, "PNG")
    return file.getvalue()


def make_tar(path, files, mode="w", links=()):
    """files: (name, bytes) in order; links: (name, target, kind)."""
    with tarfile.open(path, mode) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


def reds(data):
    return [int(data.load(i)[0, 0, 0]) for i in range(len(data))]


# metadata.csv and classes


def test_csv_with_a_mark_and_other_words(tmp_path):
    """A spreadsheet's csv: a byte-order mark, CRLF, a quoted comma, `caption` and `label` for text and style."""
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    table = '\ufefffile_name,caption,label,tags\r\n2.png,"a red, round hat",hats,"red; round"\r\n0.png,,coats,\r\n'
    (tmp_path / "metadata.csv").write_bytes(table.encode())
    data = PictureSet.open(tmp_path)
    assert [(r.file_name, r.text, r.style, r.tags) for r in data.records] == [
        ("2.png", "a red, round hat", "hats", ["red", "round"]), ("0.png", "coats", "coats", [])]  # fmt: skip
    assert data.styles == ["hats", "coats"] and reds(data) == [2, 0]
    (tmp_path / "metadata.csv").write_text("file_name;text\n1.png;semicolons, too\n")
    assert PictureSet.open(tmp_path).records[0].text == "semicolons, too"


@pytest.mark.parametrize(("table", "said"), [
    ("name,text\n1.png,x\n", "line 2 is not usable .*no file_name"),
    ("file_name,text\n0.png,a\n9.png,b\n", "names 9.png, which is not there"),
    ("file_name,text\n0.png,a,b,c\n", "line 2 has more fields"),
    ('file_name,text\n0.png,"open\n', "line . is not usable"),
    (f"file_name,text\n0.png,{'x' * 200_000}\n", "line . is not usable .*field larger"),
    ("file_name,text\n../0.png,a\n", r"names \.\./0.png, which is not there"),
])  # fmt: skip
def test_a_bad_csv_is_one_line(tmp_path, table, said):
    (tmp_path / "0.png").write_bytes(png(0))
    (tmp_path / "metadata.csv").write_text(table)
    with pytest.raises(UserError, match=f"metadata.csv {said}") as error:
        PictureSet.open(tmp_path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_a_table_in_each_sub_folder_names_its_own_files(tmp_path):
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "1.png").write_bytes(png(ord(place)))
        (tmp_path / place / "metadata.csv").write_text(f"file_name,text\n1.png,from {place}\n")
    data = PictureSet.open(tmp_path)
    assert [(r.file_name, r.text) for r in data.records] == [("a/1.png", "from a"), ("b/1.png", "from b")]


def test_two_captions_of_one_picture_are_two_records(tmp_path):
    (tmp_path / "0.png").write_bytes(png(7))
    (tmp_path / "metadata.csv").write_text("file_name,text\n0.png,a hat\n0.png,something round\n")
    data = PictureSet.open(tmp_path)
    assert [r.text for r in data.records] == ["a hat", "something round"] and reds(data) == [7, 7]


def test_sub_folders_are_classes_where_nothing_else_says_more(tmp_path):
    for name in ("red_cars/1.png", "dogs/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(png(1))
    assert [(r.text, r.style) for r in PictureSet.open(tmp_path).records] == [("dogs", "dogs"), ("red cars", "red cars")]
    (tmp_path / "3.png").write_bytes(png(1))  # one outside: the folders are an order of the user's own
    assert PictureSet.open(tmp_path).styles == []
    (tmp_path / "3.png").unlink()
    (tmp_path / "dogs" / "2.txt").write_text("a wet dog")
    assert PictureSet.open(tmp_path).styles == []
    (tmp_path / "dogs" / "2.txt").unlink()
    (tmp_path / "dogs" / "2.png").unlink()
    assert PictureSet.open(tmp_path).styles == []  # one class is none


# tar


WEB = [("000.png", png(10)), ("000.txt", b"ten\n"), ("001.png", png(20)), ("002.v2.png", png(30)), ("002.cls", b"7"),
       ("001.json", b'{"caption": "twenty", "style": "flat", "tags": ["x"]}')]  # fmt: skip


@pytest.mark.parametrize(("name", "mode"), [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz")])
def test_a_webdataset(tmp_path, name, mode):
    data = PictureSet.open(make_tar(tmp_path / name, WEB, mode))
    assert kind_of(tmp_path / name) == "tar"
    assert [(r.file_name, r.text, r.style) for r in data.records] == [
        ("000.png", "ten", ""), ("001.png", "twenty", "flat"), ("002.v2.png", "7", "7")]  # fmt: skip
    assert reds(data) == [10, 20, 30]
    assert list(tmp_path.iterdir()) == [tmp_path / name]  # nothing was unpacked beside it


def test_shards_in_a_folder(tmp_path):
    """The same keys in two shards are two pictures; sub-folders inside are classes, the shards are not."""
    for i in range(2):
        make_tar(tmp_path / f"s-{i}.tar", [("cats/0.png", png(i)), ("dogs/0.png", png(10 + i))])
    data = PictureSet.open(tmp_path)
    assert reds(data) == [0, 10, 1, 11] and [r.style for r in data.records] == ["cats", "dogs"] * 2
    for i in range(2):
        make_tar(tmp_path / f"s-{i}.tar", [("0.png", png(i))])
    assert [(r.text, r.style) for r in PictureSet.open(tmp_path).records] == [("", "")] * 2


def test_a_tar_with_metadata_and_the_last_of_two_of_one_name(tmp_path):
    lines = b'{"file_name": "x/1.png", "text": "an apple"}\n'
    path = make_tar(tmp_path / "a.tar", [("metadata.jsonl", lines), ("x/1.png", png(1)), ("x/1.png", png(2))])
    data = PictureSet.open(path)
    assert [r.text for r in data.records] == ["an apple"] and reds(data) == [2]
    with pytest.warns(UserWarning), zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for red in (1, 2):
            archive.writestr("1.png", png(red))
    assert reds(PictureSet.open(tmp_path / "a.zip")) == [2]


@pytest.mark.parametrize("name", ["../out.png", "/etc/out.png", "a/../../out.png"])
def test_names_that_lead_out_are_refused(tmp_path, name):
    path = make_tar(tmp_path / "a.tar", [("0.png", png(0)), (name, png(1))])
    with pytest.raises(UserError, match="leads out of the archive; pack it again"):
        PictureSet.open(path)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(name, png(1))
    with pytest.raises(UserError, match="leads out of the archive; pack it again"):
        PictureSet.open(tmp_path / "a.zip")


def test_links_in_a_tar_are_not_followed(tmp_path, capsys):
    (tmp_path / "secret.png").write_bytes(png(99))
    links = [("a.png", str(tmp_path / "secret.png"), tarfile.SYMTYPE), ("b.png", "0.png", tarfile.LNKTYPE),
             ("c.png", "", tarfile.FIFOTYPE)]  # fmt: skip
    data = PictureSet.open(make_tar(tmp_path / "a.tar", [("0.png", png(5))], links=links))
    assert reds(data) == [5] and "3 links and other things that are no plain files are left out" in capsys.readouterr().err
    table = ("metadata.csv", b"file_name,text\na.png,x\n")
    with pytest.raises(UserError, match="names a.png, which is not there"):
        PictureSet.open(make_tar(tmp_path / "b.tar", [("0.png", png(5)), table], links=links))


def test_cut_and_damaged_tars_are_one_line(tmp_path):
    whole = make_tar(tmp_path / "a.tar", WEB).read_bytes()
    for end in (0, 100, 700, 1500, 2600):
        (tmp_path / "a.tar").write_bytes(whole[:end])
        with pytest.raises(UserError, match=r"a\.tar: (not a readable tar|cut short|no pictures)"):
            PictureSet.open(tmp_path / "a.tar")
    broken = bytearray(whole)
    broken[1536 + 148] ^= 1  # the second head's checksum
    broken[1024 + 148] ^= 1
    (tmp_path / "a.tar").write_bytes(broken)
    with pytest.raises(UserError, match=r"a\.tar: cut short or damaged"):
        PictureSet.open(tmp_path / "a.tar")
    packed = gzip.compress(whole)
    for data in (packed[:-20], packed[:30], b"\x1f\x8bnonsense"):
        (tmp_path / "b.tar.gz").write_bytes(data)
        with pytest.raises(UserError, match=r"b\.tar\.gz: cannot be unpacked"):
            PictureSet.open(tmp_path / "b.tar.gz")


def read_or_refused(path, times, bytes_each):
    """Bytes of the file changed at random, so many times: it is read, or refused in one line that names it."""
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(times):
        data = bytearray(whole)
        for at in rng.integers(len(data), size=bytes_each):
            data[at] = rng.integers(256)
        path.write_bytes(data)
        try:
            found = PictureSet.open(path)
            for i in range(len(found)):
                found.load(i)
        except UserError as error:
            assert path.name in str(error) and "\n" not in str(error)


def test_any_flipped_byte_of_a_tar_is_read_or_refused(tmp_path):
    read_or_refused(make_tar(tmp_path / "a.tar", WEB), 150, 4)


@pytest.mark.parametrize("text", [b"[1]", b"{", b"[" * 99_999, b'{"tags": 3}', b"\xff"])
def test_a_bad_sidecar_is_named(tmp_path, text):
    with pytest.raises(UserError, match=r"a\.tar: .*0\.(json|png)") as error:
        PictureSet.open(make_tar(tmp_path / "a.tar", [("0.png", png(0)), ("0.json", text)]))
    assert "\n" not in str(error.value)


def test_bombs(tmp_path, monkeypatch):
    """A .tar.gz of zeros, and files that say they are larger than any picture, take neither disk nor memory."""
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(bytes(80_000_000)))
    with pytest.raises(UserError, match="grows to over 50 times its size"):
        PictureSet.open(tmp_path / "a.tar.gz")
    monkeypatch.setattr(sources, "LARGEST_FILE", 1000)
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("1.png", bytes(1001))
    make_tar(tmp_path / "a.tar", [("1.png", bytes(1001))])
    for name in ("a.zip", "a.tar"):
        with pytest.raises(UserError, match=r"1\.png is not a readable picture \(1,001 bytes, more than 1,000\)"):
            PictureSet.open(tmp_path / name).load(0)


# arrays


def save(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


@pytest.mark.parametrize("layout", ["hw", "hwc1", "hwc3", "hwc4", "chw1", "chw3", "chw4"])
@pytest.mark.parametrize("kind", ["uint8", "unit", "signed"])
def test_arrays_of_all_layouts(tmp_path, layout, kind):
    rng = np.random.default_rng(0)
    channels = 1 if layout == "hw" else int(layout[-1])
    want = rng.integers(0, 256, (5, 6, 7, channels), dtype=np.uint8)
    given = want[..., 0] if layout == "hw" else want if layout.startswith("hwc") else want.transpose(0, 3, 1, 2)
    if kind != "uint8":
        given = given.astype(np.float32) / 255 if kind == "unit" else given.astype(np.float64) / 127.5 - 1
    np.save(tmp_path / "a.npy", given)
    data = PictureSet.open(tmp_path / "a.npy")
    found = np.stack([data.load(i) for i in range(5)])
    assert found.shape == (5, 6, 7, 4) and len(data) == 5
    assert np.array_equal(found[..., :3], np.broadcast_to(want[..., : min(channels, 3)], (5, 6, 7, 3)))
    assert np.array_equal(found[..., 3], want[..., 3] if channels == 4 else np.full((5, 6, 7), 255))


def test_texts_and_labels_of_arrays(tmp_path):
    pictures = np.arange(3, dtype=np.uint8)[:, None, None] * np.ones((1, 8, 8), np.uint8)
    data = PictureSet.open(
        save(tmp_path / "a.npz", images=pictures, captions=np.array(["a", "b", "größer"]), y=np.array([[1], [0], [1]]))
    )
    assert [(r.text, r.style) for r in data.records] == [("a", "1"), ("b", "0"), ("größer", "1")] and reds(data) == [0, 1, 2]
    named = save(tmp_path / "b.npz", x=pictures, labels=np.array(["cat", "dog", "cat"]))
    assert [(r.text, r.style) for r in PictureSet.open(named).records] == [("cat", "cat"), ("dog", "dog"), ("cat", "cat")]
    np.save(tmp_path / "c.npy", pictures)
    (tmp_path / "c.txt").write_text("one\ntwo\nthree\n")
    assert [r.text for r in PictureSet.open(tmp_path / "c.npy").records] == ["one", "two", "three"]
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in "ab":
        np.save(folder / f"{name}.npy", pictures)
    assert len(PictureSet.open(folder)) == 6 and kind_of(folder) == "arrays"


@pytest.mark.parametrize(("array", "said"), [
    (np.zeros((3, 8, 8), np.int32), "pictures of int32; give uint8, or float"),
    (np.linspace(0, 255, 192).reshape(3, 8, 8), "float pictures from 0 to 255; give values in"),
    (np.full((3, 8, 8), np.nan), "float pictures from nan to nan"),
    (np.full((3, 8, 8), "a"), "pictures of <U1"),
    (np.zeros((8, 8, 3), np.uint8), "looks like one picture"),
    (np.zeros((3, 8, 8, 2), np.uint8), "pictures of shape"),
    (np.zeros((3, 8), np.uint8), "pictures of shape"),
    (np.zeros((0, 8, 8), np.uint8), "pictures of shape"),
    (np.array([{}, None]), "not a readable array"),
])  # fmt: skip
def test_arrays_that_are_no_pictures(tmp_path, array, said):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match=said) as error:
        PictureSet.open(tmp_path / "a.npy")
    assert "\n" not in str(error.value)


def test_arrays_that_lie(tmp_path):
    pictures = np.zeros((2, 8, 8), np.uint8)
    with pytest.raises(UserError, match="3 texts for 2 pictures"):
        PictureSet.open(save(tmp_path / "a.npz", x=pictures, texts=np.array(["a", "b", "c"])))
    with pytest.raises(UserError, match="no array named pictures, images, image; it has z"):
        PictureSet.open(save(tmp_path / "a.npz", z=pictures))
    with pytest.raises(UserError, match="no object arrays"):
        PictureSet.open(save(tmp_path / "a.npz", x=pictures, texts=np.array([None, "b"])))
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": (10**6, 10**4, 10**4)})
    (tmp_path / "b.npy").write_bytes(head.getvalue() + bytes(64))
    with pytest.raises(UserError, match="not a readable array"):
        PictureSet.open(tmp_path / "b.npy")
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:
        archive.writestr("x.npy", head.getvalue() + bytes(64))
    with pytest.raises(UserError, match="x.npy is shorter than it says"):
        PictureSet.open(tmp_path / "b.npz")
    (tmp_path / "c.npz").write_bytes(b"no zip")
    with pytest.raises(UserError, match=r"c\.npz: not readable"):
        PictureSet.open(tmp_path / "c.npz")


# Parquet and Arrow


@pytest.fixture
def arrow():
    return pytest.importorskip("pyarrow")


def table_of(arrow, count, first=0, struct=True, classes=False):
    data = [png(first + i) for i in range(count)]
    pictures = [{"bytes": d, "path": "/etc/passwd"} for d in data] if struct else data
    captions = [[f"number {first + i}", "else"] for i in range(count)]
    columns = {"note": [b"x"] * count, "image": pictures, "caption": captions, "label": [i % 2 for i in range(count)]}
    table = arrow.table(columns)
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})}) if classes else table


@pytest.mark.parametrize("struct", [True, False])
def test_parquet(tmp_path, arrow, struct):
    import pyarrow.parquet as pq

    pq.write_table(table_of(arrow, 7, struct=struct, classes=struct), tmp_path / "a.parquet", row_group_size=3)
    data = PictureSet.open(tmp_path / "a.parquet")
    assert [r.text for r in data.records] == [f"number {i}" for i in range(7)]
    assert data.styles == (["cat", "dog"] if struct else ["0", "1"])
    assert [int(data.load(i)[0, 0, 0]) for i in (6, 0, 3, 3, 5, 1, 6)] == [6, 0, 3, 3, 5, 1, 6]  # in any order
    pq.write_table(table_of(arrow, 2, first=50), tmp_path / "test-0.parquet")
    assert kind_of(tmp_path) == "parquet" and PictureSet.open(tmp_path).split("heldout_pair") == [7, 8]
    (tmp_path / "a.parquet").rename(tmp_path / "train-0.parquet")
    both = PictureSet.open(tmp_path)
    assert both.split("heldout_pair") == [0, 1] and both.split("train") == list(range(2, 9)) and reds(both)[:3] == [50, 51, 0]


def save_to_disk(arrow, folder, tables):
    """What `datasets` 5.2 writes, as far as it is read."""
    folder.mkdir(parents=True)
    names = [f"data-{i:05d}-of-{len(tables):05d}.arrow" for i in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with arrow.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": n} for n in names]}))


def test_a_folder_of_save_to_disk(tmp_path, arrow):
    save_to_disk(arrow, tmp_path / "one", [table_of(arrow, 3, classes=True), table_of(arrow, 2, first=3, classes=True)])
    data = PictureSet.open(tmp_path / "one")
    assert reds(data) == [0, 1, 2, 3, 4] and data.styles == ["cat", "dog"] and data.records[3].text == "number 3"
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    save_to_disk(arrow, tmp_path / "many" / "train", [table_of(arrow, 3)])
    save_to_disk(arrow, tmp_path / "many" / "test", [table_of(arrow, 1, first=9)])
    data = PictureSet.open(tmp_path / "many")
    assert data.split("heldout_pair") == [0] and reds(data) == [9, 0, 1, 2]
    (tmp_path / "one" / "state.json").write_text('{"_data_files": [{"filename": "../many/train/data-00000-of-00001.arrow"}]}')
    with pytest.raises(UserError, match="state.json: names '../many.*which is not there"):
        PictureSet.open(tmp_path / "one")


def test_the_library_itself_writes_what_is_read(tmp_path, arrow):
    library = pytest.importorskip("datasets")
    features = library.Features({"image": library.Image(), "text": library.Value("string"),
                                 "label": library.ClassLabel(names=["cat", "dog"])})  # fmt: skip
    rows = {"image": [Image.fromarray(flat(i)) for i in range(4)], "text": list("abcd"), "label": [0, 1, 0, 1]}
    made = library.Dataset.from_dict(rows, features=features)
    made.select([3, 1]).save_to_disk(tmp_path / "disk")
    data = PictureSet.open(tmp_path / "disk")
    assert [(r.text, r.style) for r in data.records] == [("d", "dog"), ("b", "dog")] and reds(data) == [3, 1]
    made.to_parquet(tmp_path / "a.parquet")
    assert [r.style for r in PictureSet.open(tmp_path / "a.parquet").records] == ["cat", "dog"] * 2


def test_tables_that_are_none(tmp_path, arrow):
    import pyarrow.parquet as pq

    (tmp_path / "a.parquet").write_bytes(b"PAR1 nonsense PAR1")
    with pytest.raises(UserError, match=r"a\.parquet: not a readable Parquet file"):
        PictureSet.open(tmp_path / "a.parquet")
    pq.write_table(arrow.table({"text": ["a"], "n": [1]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match="no column holds pictures .* it has text, n"):
        PictureSet.open(tmp_path / "a.parquet")
    kind = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    rows = arrow.array([{"bytes": None, "path": "/etc/hostname"}], kind)
    pq.write_table(arrow.table({"image": rows, "text": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet\[0\] is not a readable picture \(the row holds no bytes"):
        PictureSet.open(tmp_path / "a.parquet").load(0)


def test_flipped_bytes_of_a_parquet_are_read_or_refused(tmp_path, arrow):
    import pyarrow.parquet as pq

    pq.write_table(table_of(arrow, 4), tmp_path / "a.parquet")
    read_or_refused(tmp_path / "a.parquet", 60, 2)


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match=r"a\.parquet: reading it needs pyarrow; pip install 'unfog\[parquet\]'"):
        PictureSet.open(tmp_path / "a.parquet")


def test_every_kind_has_a_place_here():
    assert set(SOURCES) == {"folder", "zip", "tar", "parquet", "datasets", "arrays"}
