"""Rows of tables: cells come back, prompts tell cells, what stays stays."""

import numpy as np
import pytest
import torch

from unfog.errors import UserError
from unfog.modalities import modality

KIND = modality("table")


@pytest.fixture
def items(tmp_path):
    rng = np.random.default_rng(0)
    rows = [f"{'ab'[i % 2]} {i % 3},{x:.2f},{'' if i % 5 == 0 else 25 * int(99 + 9 * x)},{'NA' if i % 7 == 0 else i % 4}"
            for i, x in enumerate(rng.lognormal(0, 1, 60))]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["kind,size,mass,grade", *rows, "too,few", ",,,"]) + "\n")
    return KIND.open(tmp_path / "t.csv", KIND.options())


def told(space, prompt, count=1):
    return space.ask([prompt] * count, range(count))


def test_rows_come_back_with_their_missing_cells(items):
    space = KIND.fit(items, KIND.options())
    assert space.shape == (6 + 1 + 2 + 5,)  # one-hots; a score; a score and "missing"; four grades and none
    x0, own = space.encode(items.raw)
    assert own == {} and space.decode(x0, told(space, None, 60)) == items.raw
    assert any(row["mass"] == "" for row in items.raw) and any(row["grade"] == "" for row in items.raw)
    assert items.skipped == {"empty, or not as wide as the head": 2}


def test_numbers_become_normal_scores(items):
    space = KIND.fit(items, KIND.options())
    score = space.encode(items.raw)[0][:, 6].double()
    assert abs(score.mean()) < 0.05 and abs(score.std() - 1) < 0.1  # of numbers that are log-normal
    order = np.argsort([float(row["size"]) for row in items.raw], kind="stable")
    assert (score[torch.from_numpy(order)].diff() >= 0).all()


def test_what_is_told_is_there(items):
    space = KIND.fit(items, KIND.options())
    cond = told(space, "kind=b 1 size=1.25, mass=", 3)
    rows = space.decode(torch.randn(3, *space.shape, generator=torch.Generator().manual_seed(0)), cond)
    assert [(row["kind"], row["size"], row["mass"]) for row in rows] == [("b 1", "1.25", "")] * 3
    assert torch.equal(told(space, "any")["given"], torch.zeros(1, space.network()["given"]))


@pytest.mark.parametrize("prompt, says", [("kind=a 11", "did you mean a 1?"), ("size=big", "a number"), ("kinds=a 1", "kind="),
                                          ("size=1e999", "a number"), ("blue", "any")])  # fmt: skip
def test_what_is_unknown_is_one_line(items, prompt, says):
    with pytest.raises(UserError) as error:
        told(KIND.fit(items, KIND.options()), prompt)
    assert says in str(error.value) and "\n" not in str(error.value)


def test_columns_that_stay(items):
    space = KIND.fit(items, KIND.options())
    raw, made = items.raw[0], items.raw[1]
    assert raw["mass"] == raw["grade"] == ""
    assert KIND.keep(space, raw, "size, mass").nonzero()[0].tolist() == [6, 7, 8]
    assert KIND.paste(space, made, raw, "size,mass") == {**made, "size": raw["size"], "mass": ""}
    assert KIND.paste(space, made, raw, "known") == {**made, "kind": raw["kind"], "size": raw["size"]}
    with pytest.raises(UserError, match="did you mean size"):
        KIND.keep(space, raw, "sizes")


def test_training_tells_any_number_of_cells(items):
    space = KIND.fit(items, KIND.options())
    raw = [items.raw[1]] * 500
    _, own = space.encode(raw, [np.random.default_rng(i) for i in range(500)])
    counts = own["given"][:, -4:].sum(1).long().bincount(minlength=5)
    assert (counts > 60).all()  # of 0 to 4 cells 100 each are expected


def test_files_hold_any_text():
    raw = {"a,b": 'say "hi"', "c": "", "d": "1e-3"}
    back, recipe = KIND.from_bytes(KIND.to_bytes(raw, {"seed": 1}), "x.csv")
    assert (back, recipe) == (raw, {"seed": 1})


def test_real_rows_are_as_far_as_real_rows(items):
    halves = type(items)(items.path, items.raw, items.prompts, ["train", "test"] * 30, items.names)
    rows = KIND.measure([items.raw[i] for i in halves.split("heldout")], ["any"] * 30, halves, 0)
    for row in rows:
        assert np.allclose(np.mean(row.made), np.mean(row.real), atol=1e-6), row.name


@pytest.mark.parametrize("text", ["a,b\n,\n", "a,split\n,train\n", "a,a\n1,2\n", "a,b\n1\n", ""])
def test_a_table_of_nothing_is_one_line(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(UserError, match="no row"):
        KIND.open(tmp_path / "t.csv", KIND.options())
