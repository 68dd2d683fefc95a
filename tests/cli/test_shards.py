"""`unfog generate --shard i/N`: shares that are together the whole job, name by name and byte by byte."""

import numpy as np
import pytest

from unfog.errors import UserError
from unfog.model import load
from unfog.requests import GenerateRequest, Result, check

# the second and fourth prompt have the first's name: whose picture is _2 and whose _3 must not depend on who is first
WORDS = ["a cat", "A cat!", "a dog", "a  cat?", "--style", "noto", "-n", "3", "--seed", "7"]


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*")}


@pytest.mark.parametrize(("count", "batch"), [(1, 1), (2, 1), (3, 1), (5, 2), (40, 1)])
def test_shards_are_the_whole_job(unfog_command, tmp_path, count, batch):
    words = ["generate", *WORDS, "--batch", batch]
    code, printed, _ = unfog_command(*words, "--out", tmp_path / "whole")
    assert code == 0 and len(printed) == 12
    whole, parts = files(tmp_path / "whole"), {}
    assert "a-cat-noto-7_3.png" in whole
    for i in range(count, 0, -1):  # in any order, each in a folder of its own
        out = tmp_path / f"part{i}"
        code, printed, _ = unfog_command(*words, "--shard", f"{i}/{count}", "--out", out)
        own = files(out) if out.exists() else {}
        assert code == 0 and len(printed) == len(own) and not own.keys() & parts.keys()
        assert abs(len(own) - 12 / count) <= batch
        parts |= own
    assert parts == whole
    for i in range(count, 0, -1):  # and all into one
        unfog_command(*words, "--shard", f"{i}/{count}", "--out", tmp_path / "one")
    assert files(tmp_path / "one") == whole


@pytest.mark.parametrize("shard", ["0/2", "3/2", "1", "1/0", "a/b", "1/2/3", "-1/2", "1.0/2", "1/9999999", "²/3", ""])
def test_a_malformed_shard_is_one_line(unfog_command, shard):
    code, printed, errors = unfog_command("generate", "x", "--seed", 1, f"--shard={shard}")
    assert code == 2 and printed == [] and len(errors) == 1
    assert "shard" in errors[0] and "i/N" in errors[0]


def test_a_shard_needs_a_seed_and_different_prompts(unfog_command):
    code, _, (error,) = unfog_command("generate", "x", "--shard", "1/2")
    assert code == 2 and "without a seed" in error
    code, _, (error,) = unfog_command("generate", "x", "x", "--seed", 1, "--shard", "1/2")
    assert code == 2 and "same prompt" in error


def test_a_sheet_of_a_shard(unfog_command, tmp_path):
    assert unfog_command("generate", *WORDS, "--shard", "1/2", "--grid", tmp_path / "sheet.png")[0] == 0
    assert (tmp_path / "sheet.png").exists()
    assert unfog_command("generate", "x", "--seed", 1, "--shard", "2/2", "--grid", tmp_path / "none.png")[0] == 0
    assert not (tmp_path / "none.png").exists()


def test_a_real_model_in_shards_of_batches_is_the_whole_job():
    """Pictures of a batch may depend on each other in their last bits; a share is made of whole batches."""
    model = load("emoji-64")
    fields = {"prompts": ["a cat", "a dog"], "n": 3, "seed": 5, "steps": 2, "batch": 4}

    def made(**more):
        request = check(GenerateRequest, fields | more)
        return {e.index: np.asarray(e.image) for e in model.stream(request) if isinstance(e, Result)}

    whole, first, second = made(), made(shard="1/2"), made(shard="2/2")
    assert sorted(first) == [0, 1, 2, 3] and sorted(second) == [4, 5]
    assert all(np.array_equal(whole[i], picture) for i, picture in (first | second).items())
    with pytest.raises(UserError, match="shard"):
        check(GenerateRequest, fields | {"shard": "2"})
