"""The other commands, help, and what start-up loads."""

import errno
import json
import os
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from pydantic import BaseModel

import unfog.requests
from unfog.requests import EstimateRequest, EvaluateRequest, TrainRequest

# These tests start new processes, which must find the same unfog wherever they run.
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(unfog.requests.__file__).parents[1])}
HEAVY = ("torch", "numpy", "PIL", "pydantic", "rich.progress", "safetensors")


def python(*words):
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=60, env=ENVIRONMENT)


@pytest.mark.parametrize("words", [["--help"], ["generate", "--help"], ["train", "--help"]])
def test_help_loads_nothing_heavy(words):
    code = f"import sys; from unfog.cli import main; code = main({words!r}); "
    code += f"print(code, [m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    done = python("-c", code)
    assert done.stderr == "0 []\n"
    assert "Usage: unfog" in done.stdout and "unfog generate" in done.stdout or "unfog train" in done.stdout


def test_importing_the_command_line_loads_not_even_cyclopts():
    done = python("-c", f"import sys, unfog.cli; print([m for m in {(*HEAVY, 'cyclopts')!r} if m in sys.modules])")
    assert done.stdout == "[]\n"


def test_reading_and_showing_pictures_loads_no_torch():
    done = python("-c", "import sys, unfog.modalities.image.show, unfog.modalities.image.data; print('torch' in sys.modules)")
    assert done.stdout == "False\n"


@pytest.mark.parametrize("words", [["nope"], ["--frob"], ["train"], ["train", "a", "b"], ["evaluate"], ["models", "x"]])
def test_unknown_words_are_one_line(words, unfog_command):
    code, out, err = unfog_command(*words)
    assert (code, out, len(err)) == (2, [], 1)
    assert "--help`" in err[0]


def test_help_and_version(unfog_command):
    code, out, err = unfog_command("--help")
    assert (code, err) == (0, [])
    names = ("generate", "estimate", "train", "report", "average", "evaluate", "models")
    assert all(any(f" {name} " in line for line in out) for name in names)
    assert unfog_command("--version") == (0, ["1.2.3"], [])
    assert unfog_command()[0] == 0


def test_python_m_unfog_exit_code_and_single_line():
    done = python("-m", "unfog", "generate", "x", "--steps", "0")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1 and "steps" in done.stderr


def test_models(unfog_command, model, monkeypatch, tmp_path):
    for name in ("emoji-64", "text-encoder", "emoji-64-control"):
        (tmp_path / "shipped" / name).mkdir(parents=True)
    (tmp_path / "shipped" / "emoji-64" / "model.json").write_text("{}")
    branch = tmp_path / "shipped" / "emoji-64-control" / "adapter.json"
    branch.write_text(json.dumps({"controls": {"lineart": 1, "palette": 4}}))
    monkeypatch.setattr("unfog.cli.models.SHIPPED", tmp_path / "shipped")
    code, out, _ = unfog_command("models")
    assert code == 0 and out[0] == "emoji-64 (0123abcd): pictures, with transparency"
    assert "twemoji" in out[1] and out[2] == "  controls: lineart, palette" and "steps 4" in out[3]
    code, (line,), _ = unfog_command("models", "--json")
    assert json.loads(line) == {
        "name": "emoji-64",
        "kind": "image",
        "hash": "0123abcd",
        "styles": ["noto", "twemoji", "fluent-3d"],
        "defaults": {"steps": 4, "scale": 2.0, "sampler": "ddim"},
        "controls": ["lineart", "palette"],
    }
    branch.unlink()
    assert json.loads(unfog_command("models", "--json")[1][0])["controls"] == []


class Found(BaseModel):
    model: str = "my-model"
    share: float = 0.125

    def __str__(self):
        return f"{self.model}: 12.5 %"


REPORT = Found()


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for training and evaluation that record their requests."""
    seen = []
    training, evaluation = types.ModuleType("unfog.training"), types.ModuleType("unfog.evaluation")
    training.run_recipe = seen.append
    evaluation.evaluate = lambda request: seen.append(request) or REPORT
    monkeypatch.setitem(sys.modules, "unfog.training", training)
    monkeypatch.setitem(sys.modules, "unfog.evaluation", evaluation)
    return seen


def test_train(unfog_command, calls):
    Path("data").mkdir()
    words = ("--out", "model", "--steps", 5, "--minutes", 0.5, "--start", "emoji-64", "--resume", "--force")
    assert unfog_command("train", "data", *words) == (0, ["model"], [])
    expected = {"source": Path("data"), "out": Path("model"), "steps": 5, "minutes": 0.5, "start": "emoji-64"}
    assert calls == [TrainRequest(**expected, resume=True, force=True)]
    assert unfog_command("train", "data", "--preset", "tiny", "--budget", "1.5h")[0] == 0
    assert calls.pop() == TrainRequest(source=Path("data"), preset="tiny", budget=5400)
    Path("file").write_text("")
    for bad in (["none"], ["data", "--steps", 0], ["data", "--minutes", "nan"], ["data", "--out", "file"],
                ["data", "--budget", "soon"], ["data", "--budget", "0s"]):  # fmt: skip
        code, out, err = unfog_command("train", *bad)
        assert (code, out, len(err)) == (2, [], 1)
    assert len(calls) == 1 and not Path("none").exists()
    assert unfog_command("train", "data", "--track", "tensorboard,wandb", "--track", "trackio")[0] == 0
    assert calls[1].track == ["tensorboard", "wandb", "trackio"] and calls[0].track == []


def test_report(unfog_command, monkeypatch):
    Path("run").mkdir()
    Path("run/events.jsonl").write_text('{"step": 10, "loss": 0.5, "grad": 1.0, "lr": 0.1}\n')
    seen = []
    monkeypatch.setattr("webbrowser.open", seen.append)
    assert unfog_command("report", "run") == (0, ["run/report.html"], [])
    assert unfog_command("report", "run", "--out", "page.html", "--open") == (0, ["page.html"], [])
    assert seen == [Path("page.html").resolve().as_uri()]
    assert Path("page.html").read_bytes() == Path("run/report.html").read_bytes()
    for bad in (["none"], ["."], ["run", "--out", "run"], []):
        code, out, err = unfog_command("report", *bad)
        assert (code, out, len(err)) == (2, [], 1)


def test_report_loads_no_torch(tmp_path):
    (tmp_path / "events.jsonl").write_text('{"step": 10, "loss": 0.5, "grad": 1.0, "lr": 0.1}\n')
    code = f"import sys; from unfog.cli import main; code = main(['report', {str(tmp_path)!r}]); "
    done = python("-c", code + "print(code, 'torch' in sys.modules, file=sys.stderr)")
    assert done.stderr == "0 False\n"


def test_estimate(unfog_command, calls, monkeypatch):
    Path("data").mkdir()
    found = types.SimpleNamespace(as_dict=lambda: {"steps": 7})
    module = types.ModuleType("unfog.training.estimate")
    module.estimate = lambda request: calls.append(request) or found
    monkeypatch.setitem(sys.modules, "unfog.training.estimate", module)
    words = ("--preset", "base", "--budget", "2h", "--start", "emoji-64", "--steps", 7)
    assert unfog_command("estimate", "data", *words, "--json") == (0, ['{"steps": 7}'], [])
    assert calls == [EstimateRequest(source=Path("data"), preset="base", budget=7200, start="emoji-64", steps=7)]
    assert unfog_command("estimate", "data") == (0, [str(found)], [])
    for bad in (["none"], ["data", "--budget", "5x"], ["data", "--steps", 0]):
        code, out, err = unfog_command("estimate", *bad)
        assert (code, out, len(err)) == (2, [], 1)
    assert len(calls) == 2


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_what_the_disk_denies_is_one_line(unfog_command, calls, number):
    def deny(request):
        raise OSError(number, os.strerror(number), "run/events.jsonl")

    Path("data").mkdir()
    sys.modules["unfog.training"].run_recipe = deny
    code, out, err = unfog_command("train", "data")
    assert (code, out, len(err)) == (2, [], 1) and "run/events.jsonl" in err[0] and "--resume" in err[0]


def test_other_errors_of_the_system_are_not_hidden(unfog_command, calls):
    def fail(request):
        raise OSError(errno.EBADF, "ours")

    Path("data").mkdir()
    sys.modules["unfog.training"].run_recipe = fail
    with pytest.raises(OSError, match="ours"):
        unfog_command("train", "data")


def test_evaluate(unfog_command, calls):
    code, out, err = unfog_command("evaluate", "my-model", "--against", "data", "-n", 64, "--seed", 3)
    assert (code, out, err) == (0, ["my-model: 12.5 %"], [])
    assert Found.model_validate_json(unfog_command("evaluate", "my-model", "--json")[1][0]) == REPORT
    assert calls.pop() == EvaluateRequest(models=["my-model"])
    assert calls.pop() == EvaluateRequest(models=["my-model"], against="data", n=64, seed=3)
    options = ["--sampler", "ddim", "--steps", 9, "--scale", 1.5, "--batch", 2, "--reader", "pixels", "--likelihood", 0]
    assert unfog_command("evaluate", "a", "b", *options, "--out", "r.html", "--force")[0] == 0
    assert calls.pop() == EvaluateRequest(models=["a", "b"], sampler="ddim", steps=9, scale=1.5, batch=2, reader="pixels",
                                          likelihood=0, out=Path("r.html"), force=True)  # fmt: skip
    for bad in (["m", "-n", 1], ["m", "--seed", -1], [""], ["m", "--steps", 0], ["m"] * 9):
        code, out, err = unfog_command("evaluate", *bad)
        assert (code, out, len(err)) == (2, [], 1)


# A runner in the background of a shell starts with Ctrl-C ignored, and its children inherit that.
PROGRAM = """
import signal, sys, time, types, unfog
from unfog.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
def stream(request):
    print("ready", flush=True)
    while True:
        {body}
    yield
kind = types.SimpleNamespace(name="image")
unfog.load = lambda name: types.SimpleNamespace(styles=[], stream=stream, name="m", hash="h", defaults={{}}, kind=kind)
sys.exit(main(["generate", "x"]))
"""


def start(body, folder):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    code = PROGRAM.format(body=body)
    return subprocess.Popen([sys.executable, "-c", code], cwd=folder, env=ENVIRONMENT, text=True, **pipes)


def test_ctrl_c_has_no_traceback(tmp_path):
    with start("time.sleep(30)", tmp_path) as run:
        assert run.stdout.readline() == "ready\n"
        run.send_signal(signal.SIGINT)
        try:
            out, err = run.communicate(timeout=60)
        finally:
            run.kill()  # else a failure here would wait for the child for ever
    assert (run.returncode, out, err) == (130, "", "unfog: stopped\n")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_that_leaves_is_no_traceback(tmp_path):
    with start('print("x" * 99, flush=True)', tmp_path) as run:
        assert run.stdout.readline() == "ready\n"
        run.stdout.close()
        assert run.wait(timeout=60) == 1
        assert run.stderr.read() == ""


def test_paths_that_are_not_utf8_are_printed_as_they_are(tmp_path):
    code = "import sys, types; from unfog.cli import main; training = types.ModuleType('unfog.training'); "
    code += "training.run_recipe = lambda request: None; "
    code += "sys.modules['unfog.training'] = training; sys.exit(main())"
    words = [sys.executable, "-c", code, "train", ".", "--out", b"\xe9"]
    done = subprocess.run(words, capture_output=True, cwd=tmp_path, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"\xe9\n", b"")


def test_fit_asks_for_what_was_given(monkeypatch, capsys):
    from unfog.cli import main
    from unfog.training import plans

    asked = []

    def learn(request, each):
        asked.append(request)
        each(1, 0.5)
        return {"name": "fit-6", "nfe": 6, "model": "m", "seeds": 16, "error_held_out": 0.1,
                "error_learnt_on": 0.09,
                "start_held_out": 0.3, "start": "deis on logsnr", "default_held_out": 0.4,
                "default": "dpmpp_2m on logsnr"}  # fmt: skip

    monkeypatch.setattr(plans, "learn_plan", learn)
    assert main(["fit", "my-model", "--nfe", "6", "--minutes", "0.5"]) == 0
    out, err = capsys.readouterr()
    assert "learned  0.10000" in out and "--sampler fit-6" in out and '"error": 0.5' in err
    assert (asked[0].model, asked[0].nfe, asked[0].minutes, asked[0].seeds) == ("my-model", 6, 0.5, 16)
    assert main(["fit", "my-model", "--nfe", "2"]) == 2
    assert "nfe" in capsys.readouterr().err
