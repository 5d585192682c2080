"""The command line: what it answers, how fast, and what it says to every mistake."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from hftransfer.cli.commands import main
from hftransfer.cli.tables import show_metrics, show_predictions
from hftransfer.core.terminal import PlainFormatter
from hftransfer.core.wording import percent
from hftransfer.runs.record import MetricsRecord
from hftransfer.tasks import SingleLabel
from hftransfer.train import run
from tests.support import tiny
from tests.support.fork_server import run_python
from tests.support.runs import configuration


@pytest.fixture(scope="module")
def runs(tiny_run):
    return {kind: tiny_run("probe", kind) for kind in ("image", "text", "pair", "text-regression")}


def call(monkeypatch, capsys, *arguments):
    """(exit code, standard output, standard error) of a command, in this process."""
    monkeypatch.setattr(sys, "argv", ["hftransfer", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr()
    return ended.value.code or 0, output.out, output.err


def test_help_answers_within_half_a_second():
    seconds = []  # of processor time: what else the machine does is not the command's
    for _ in range(3):
        begin = os.times()
        done = subprocess.run([sys.executable, "-m", "hftransfer", "--help"], capture_output=True, text=True)
        end = os.times()
        seconds.append(end.children_user + end.children_system - begin.children_user - begin.children_system)
    assert "train" in done.stdout and done.returncode == 0
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", ["--help", "train --help", "report --help", "compare --help"])
def test_no_help_imports_torch(command):
    code = f"import sys; sys.argv = ['hftransfer', *'{command}'.split()]\nfrom hftransfer.cli.commands import main\n"
    code += (
        "try: main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_garbage_is_looked_for_seldom_and_not_at_the_end():
    code = "import atexit, gc, sys; sys.argv = ['hftransfer', 'schema']\nfrom hftransfer.cli.commands import main\n"
    code += "atexit.register(lambda: print('', gc.get_threshold()[0], gc.get_freeze_count() > 0))\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == " 100000 True", done.stderr


FIRST_BATCH = """
import sys
from hftransfer.runtime import devices
from hftransfer.cli.commands import main
class Reached(Exception): pass
def stop(*_): raise Reached
devices.thread_plan = stop
sys.argv = ["hftransfer", *sys.argv[1:]]
try: main()
except Reached: print(*(name for name in ("sklearn", "scipy.stats", "peft", "timm") if name in sys.modules))
"""


@pytest.mark.parametrize("kind", ["text", pytest.param("image", marks=pytest.mark.slow)])
def test_no_run_waits_for_packages_that_its_first_batch_does_not_need(kind, tmp_path):
    family = {"text": tiny.TEXT_FAMILIES["bert"], "image": tiny.VISION_FAMILIES["vit"]}[kind]
    data = tiny.text_table(tmp_path / "t.csv", rows=60) if kind == "text" else tiny.image_folder(tmp_path / "data")
    command = ["train", str(data), "--model", str(family(tmp_path / "model")), "--output", str(tmp_path / "run")]
    environment = os.environ | {"HFTRANSFER_CACHE": str(tmp_path / "cache")}
    done = run_python([sys.executable, "-c", FIRST_BATCH, *command], env=environment)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_train_evaluate_predict(monkeypatch, capsys, tmp_path):
    model = tiny.TEXT_FAMILIES["bert"](tmp_path / "bert")
    table = tiny.text_table(tmp_path / "texts.csv", rows=60)
    arguments = [
        "train",
        table,
        "--model",
        model,
        "--strategy",
        "probe",
        "--output",
        tmp_path / "run",
        "--json",
        "-v",
        "seed=1",
    ]
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert code == 0, err
    metrics = json.loads(out)
    assert metrics["test"]["accuracy"]["n"] == 12
    assert "Task single_label with 3 outputs" in err and "new head: 32 -> 3 (classifier)" in err
    assert "Strategy: probe" in err and "Device:" in err and "Process 1 of 1" in err
    code, out, _ = call(monkeypatch, capsys, "evaluate", tmp_path / "run", "--json")
    assert json.loads(out)["test"] == metrics["test"]
    code, out, _ = call(monkeypatch, capsys, "evaluate", tmp_path / "run")
    assert "95 % interval" in out and "accuracy" in out
    code, out, _ = call(monkeypatch, capsys, "predict", tmp_path / "run", "goal match team player league", "--json")
    assert json.loads(out)[0]["prediction"] == "topic0"


def test_evaluate_on_other_data_gives_the_accuracy_of_its_predictions(monkeypatch, capsys, runs, tmp_path):
    other = tiny.text_table(tmp_path / "other.csv", rows=30, seed=7)
    code, out, err = call(monkeypatch, capsys, "evaluate", runs["text"], "--data", other, "--json")
    assert code == 0, err
    accuracy = json.loads(out)[str(other)]["accuracy"]
    assert accuracy["n"] == 30
    _, shown, _ = call(monkeypatch, capsys, "evaluate", runs["text"], "--data", other)
    assert (
        f"{accuracy['value']:.4f}" in shown and "accuracy" in shown
    )  # once, the table was printed for its own parts alone
    call(monkeypatch, capsys, "predict", runs["text"], other, "--column", "text", "--output", tmp_path / "p.csv")
    predicted = pd.read_csv(tmp_path / "p.csv")["prediction"]
    assert accuracy["value"] == pytest.approx((predicted == pd.read_csv(other)["label"]).mean())


def test_evaluate_knows_the_columns_and_the_separator_of_the_run(monkeypatch, capsys, tmp_path):
    config = configuration("probe", "text-multi", tmp_path)
    table = pd.read_csv(config.data.train).rename(columns={"text": "said", "label": "topics"})
    other = table.head(20).assign(text="not this", label="nor this", said=table["said"] + " anew")
    for name, frame in (("train", table), ("other", other)):
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    named = {"train": str(tmp_path / "train.csv"), "input": "said", "label": "topics"}
    folder = run(config.model_copy(update={"data": config.data.model_copy(update=named)})).folder
    code, out, err = call(monkeypatch, capsys, "evaluate", folder, "--data", tmp_path / "other.csv", "--json")
    assert code == 0, err
    assert json.loads(out)[str(tmp_path / "other.csv")]["micro_f1"]["n"] == 20


MARKUP = ("closing [/b] nothing", "a [red]word[/red]", "a :smile: too")


def test_what_stands_in_tables_is_no_markup(capsys):
    rows = [{"id": text, "prediction": f"{text}!", "score:x": 0.5} for text in MARKUP]
    show_predictions(pd.DataFrame(rows), SingleLabel(("x",)))
    measured = {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}}
    show_metrics(MetricsRecord(test=measured, notes={"test": MARKUP[0]}), Path("[bold]run"), False)
    shown = capsys.readouterr().out
    assert all(f" {text} " in shown and f" {text}! " in shown for text in MARKUP) and "[bold]run" in shown


def test_escape_sequences_of_the_data_are_shown_and_not_obeyed(monkeypatch, capsys, tmp_path):
    show_predictions(
        pd.DataFrame([{"id": "a \x1b[31m", "prediction": "x\x9b31m", "score:x": 0.5}]), SingleLabel(("x",))
    )
    shown = capsys.readouterr().out
    assert "a ␛[31m" in shown and "x\ufffd31m" in shown and not set("\x1b\x9b") & set(shown)
    code, _, err = call(monkeypatch, capsys, "train", f"{tmp_path}/no\x1b[31m", "--model", "m")
    assert code == 2 and "no␛[31m" in err and "\x1b" not in err
    record = logging.LogRecord("hftransfer", logging.INFO, "", 0, "labels: %s\n\tend", ("\x1b[2J",), None)
    assert PlainFormatter("%(message)s").format(record) == "labels: ␛[2J\n\tend"


@pytest.mark.parametrize("ending", ["csv", "json", "jsonl", "parquet"])
def test_predictions_are_written_whole(monkeypatch, capsys, runs, tmp_path, ending):
    folder = tiny.image_folder(tmp_path / "new", per_class=2)
    output = tmp_path / f"out.{ending}"
    code, _, err = call(monkeypatch, capsys, "predict", runs["image"], folder, "--output", output)
    assert code == 0, err
    readers = {"csv": pd.read_csv, "json": pd.read_json, "parquet": pd.read_parquet}
    table = pd.read_json(output, lines=True) if ending == "jsonl" else readers[ending](output)
    assert len(table) == 6 and {"id", "prediction", "score:red"} <= set(table)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_an_unknown_input_is_answered_none_of_these(monkeypatch, capsys, runs, tmp_path):
    shutil.copytree(runs["text"], tmp_path / "run")
    _, out, _ = call(monkeypatch, capsys, "predict", tmp_path / "run", "goal match team", "--json")
    (usual,) = json.loads(out)
    limits = json.loads((tmp_path / "run" / "trust.json").read_text())
    for unknown, distance in ((False, 9.0), (True, 0.0)):
        limits["unknown"]["distance"] = distance
        (tmp_path / "run" / "trust.json").write_text(json.dumps(limits))
        _, out, _ = call(monkeypatch, capsys, "predict", tmp_path / "run", "goal match team", "--json")
        (row,) = json.loads(out)
        assert row["unknown"] is unknown and row["prediction"] == usual["prediction"]
        assert row["answer"] == ("none of these" if unknown else usual["prediction"])
        _, out, _ = call(monkeypatch, capsys, "predict", tmp_path / "run", "goal match team")
        assert (f"none of these (nearest: {usual['prediction']})" in " ".join(out.split())) == unknown
        call(monkeypatch, capsys, "predict", tmp_path / "run", "goal match team", "--output", tmp_path / "p.csv")
        assert pd.read_csv(tmp_path / "p.csv")["answer"].tolist() == [row["answer"]]


@pytest.mark.parametrize("command", [["predict"], ["next", "--run"]])
def test_a_table_that_cannot_be_written_is_refused_before_the_work(monkeypatch, capsys, runs, tmp_path, command):
    monkeypatch.setattr("hftransfer.prediction.predictor.load", lambda run: pytest.fail("the work began"))
    monkeypatch.setattr("hftransfer.planning.labels.pool.load", lambda run: pytest.fail("the work began"))
    words = [*command, runs["text"], "a text"]
    code, _, err = call(monkeypatch, capsys, *words, "--output", tmp_path / "out.txt")
    assert code == 2 and "out.txt: expected a name ending in .csv, .json, .jsonl, .parquet." in err


def test_folders_of_a_table_are_made(monkeypatch, capsys, runs, tmp_path):
    code, _, err = call(monkeypatch, capsys, "predict", runs["text"], "a text", "--output", tmp_path / "a" / "b.csv")
    assert code == 0, err
    assert len(pd.read_csv(tmp_path / "a" / "b.csv")) == 1 and len(list((tmp_path / "a").iterdir())) == 1


def test_predictions_are_explained_into_a_folder(monkeypatch, capsys, runs, tmp_path):
    folder = tiny.image_folder(tmp_path / "new", classes=("red",), per_class=2)
    code, _, err = call(monkeypatch, capsys, "predict", runs["image"], folder, "--explain", tmp_path / "maps", "--json")
    assert code == 0, err
    assert len(list((tmp_path / "maps").glob("*000.png.png"))) == 1 and len(list((tmp_path / "maps").iterdir())) == 2
    call(monkeypatch, capsys, "predict", runs["text"], "goal match team", "--explain", tmp_path / "words", "--json")
    (file,) = (tmp_path / "words").iterdir()
    assert [token["text"] for token in json.loads(file.read_text())["tokens"]] == ["goal", " ", "match", " ", "team"]
    code, _, err = call(monkeypatch, capsys, "predict", runs["text"], "goal", "--explain", tmp_path / "words")
    assert code == 2 and "Cannot write the explanations" in err


def test_a_glob_one_file_pairs_and_views(monkeypatch, capsys, runs, tmp_path):
    folder = tiny.image_folder(tmp_path / "new", per_class=2)
    _, out, _ = call(monkeypatch, capsys, "predict", runs["image"], f"{folder}/red/*.png", "--json")
    assert len(json.loads(out)) == 2
    _, plain, _ = call(monkeypatch, capsys, "predict", runs["image"], folder / "red" / "000.png", "--json")
    _, viewed, _ = call(
        monkeypatch, capsys, "predict", runs["image"], folder / "red" / "000.png", "--json", "--views", 4
    )
    assert json.loads(plain)[0]["score:red"] != json.loads(viewed)[0]["score:red"]
    pairs = tiny.text_table(tmp_path / "pairs.csv", pairs=True, rows=6)
    arguments = ["predict", runs["pair"], pairs, "--column", "first", "--column", "second", "--json"]
    assert len(json.loads(call(monkeypatch, capsys, *arguments)[1])) == 6
    code, _, err = call(monkeypatch, capsys, "predict", runs["text"], "a text", "--views", 2)
    assert code == 2 and "Augmented views exist for classes of images" in err


def test_schema_is_a_json_schema(monkeypatch, capsys):
    _, out, _ = call(monkeypatch, capsys, "schema")
    assert {"data", "model", "strategy", "training"} <= set(json.loads(out)["properties"])


def test_cache_is_shown_and_cleared(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "cache"))
    run(configuration("probe", "text", tmp_path))
    _, out, _ = call(monkeypatch, capsys, "cache", "--json")
    entries = json.loads(out)
    assert entries and all(entry["rows"] > 0 for entry in entries)
    code, _, err = call(monkeypatch, capsys, "cache", "--clear", "--space", entries[0]["space"][:-1] + "x")
    assert code == 2 and "There is no space" in err
    call(monkeypatch, capsys, "cache", "--clear", "--space", entries[0]["space"])
    _, out, _ = call(monkeypatch, capsys, "cache", "--json")
    assert entries[0]["space"] not in [entry["space"] for entry in json.loads(out)]


class Mistakes:
    """Each makes what the command needs and returns (arguments, words of the message)."""

    def missing_file(folder):
        return ["train", folder / "no.csv", "--model", "m"], "no.csv"

    def empty_folder(folder):
        (folder / "empty").mkdir()
        return ["train", folder / "empty", "--model", "m"], "empty"

    def one_class(folder):
        return [
            "train",
            tiny.image_folder(folder / "d", classes=["red"]),
            "--model",
            "m",
        ], "Expected at least two classes."

    def class_with_one_example(folder):
        tiny.image_folder(folder / "d")
        for image in sorted((folder / "d" / "red").iterdir())[1:]:
            image.unlink()
        return ["train", folder / "d", "--model", "m"], "red"

    def absent_label_column(folder):
        table = tiny.text_table(folder / "t.csv")
        return ["train", table, "--model", "m", "data.label=lable", "data.input=text"], "Did you mean 'label'?"

    def unknown_strategy(folder):
        table = tiny.text_table(folder / "t.csv")
        return ["train", table, "--model", "m", "--strategy", "lorra"], "Unknown strategy 'lorra'. Did you mean 'lora'?"

    def unknown_field(folder):
        table = tiny.text_table(folder / "t.csv")
        return [
            "train",
            table,
            "--model",
            "m",
            "traning.max_steps=3",
        ], "Unknown field traning. Did you mean 'training'?"

    def unknown_model(folder):
        return [
            "train",
            tiny.text_table(folder / "t.csv"),
            "--model",
            "starter/minilmm",
        ], "Did you mean 'starter/minilm'?"

    def output_exists(folder):
        (folder / "run").mkdir()
        model = tiny.TEXT_FAMILIES["bert"](folder / "bert")
        return [
            "train",
            tiny.text_table(folder / "t.csv"),
            "--model",
            model,
            "--output",
            folder / "run",
        ], "exists already"

    def interrupted_run(folder):
        checkpoint = folder / "run.incomplete" / "checkpoints" / "checkpoint-1"
        checkpoint.mkdir(parents=True)
        (checkpoint / "trainer_state.json").write_text("{}")
        model = tiny.TEXT_FAMILIES["bert"](folder / "bert")
        arguments = ["train", tiny.text_table(folder / "t.csv"), "--model", model, "--output", folder / "run"]
        return arguments, "holds an interrupted run: continue it with --resume, or remove it."

    def nothing_to_resume(folder):
        model = tiny.TEXT_FAMILIES["bert"](folder / "bert")
        table = tiny.text_table(folder / "t.csv")
        return ["train", table, "--model", model, "--output", folder / "run", "--resume"], "Nothing to resume"

    def corrupt_image(folder):
        tiny.image_folder(folder / "d")
        (folder / "d" / "red" / "000.png").write_bytes(b"\x89PNG broken")
        model = tiny.VISION_FAMILIES["vit"](folder / "vit")
        return ["train", folder / "d", "--model", model, "--output", folder / "r"], "000.png"

    def other_encoding(folder):
        (folder / "t.csv").write_bytes("text,label\ncaf\xe9,a\nth\xe9,b\n".encode("latin-1"))
        return ["train", folder / "t.csv", "--model", "m"], "UTF-8"

    def missing_label(folder):
        table = tiny.text_table(folder / "t.csv")
        table.write_text(table.read_text() + "one more,\n")
        return ["train", table, "--model", "m"], "the label is missing"

    def interrupted_run_folder(folder):
        (folder / "run.incomplete").mkdir()
        return ["evaluate", folder / "run"], "was interrupted: continue it with"

    def no_run(folder):
        return ["predict", folder / "run", "x"], "There is no run at"

    def a_folder_that_is_no_run(folder):
        return ["evaluate", folder], "is no run folder: expected run.json and model/ in it."


@pytest.mark.parametrize("mistake", [name for name in vars(Mistakes) if not name.startswith("_")])
def test_a_mistake_ends_in_one_message_and_exit_code_2(monkeypatch, capsys, tmp_path, mistake):
    arguments, words = getattr(Mistakes, mistake)(tmp_path)
    code, _, err = call(monkeypatch, capsys, *arguments)
    assert code == 2, err
    message = err[err.index("Error: ") :]
    assert words in message and "Traceback" not in err
    assert not (tmp_path / "run").is_dir() or mistake == "output_exists"


@pytest.mark.skipif(os.geteuid() == 0, reason="the administrator may write everywhere")
def test_no_permission(monkeypatch, capsys, tmp_path):
    model = tiny.TEXT_FAMILIES["bert"](tmp_path / "bert")
    table = tiny.text_table(tmp_path / "t.csv")
    (tmp_path / "locked").mkdir(mode=0o500)
    code, _, err = call(monkeypatch, capsys, "train", table, "--model", model, "--output", tmp_path / "locked" / "run")
    assert code == 2 and "No permission to write" in err


def test_no_permission_as_the_system_says_it(monkeypatch, capsys, tmp_path):
    model = tiny.TEXT_FAMILIES["bert"](tmp_path / "bert")
    table = tiny.text_table(tmp_path / "t.csv")

    def refused(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    code, _, err = call(monkeypatch, capsys, "train", table, "--model", model, "--output", tmp_path / "runs" / "x")
    assert code == 2 and "No permission to write" in err and "choose another --output" in err


def test_the_command_is_quiet_about_libraries(runs, tmp_path):
    done = run_python([sys.executable, "-m", "hftransfer", "predict", str(runs["text"]), "goal"])
    assert done.returncode == 0
    assert "Loading weights" not in done.stderr and "Writing model shards" not in done.stderr


def test_a_share_is_written_in_one_way():
    """In the log, the report, the card, the comparison and the advice alike."""
    assert [percent(share) for share in (0, 0.00378, 0.125, 1)] == ["0 %", "0.378 %", "12.5 %", "100 %"]


def test_the_version_and_no_command(monkeypatch, capsys):
    from hftransfer.core.version import __version__

    code, out, _ = call(monkeypatch, capsys, "--version")
    assert code == 0 and out == f"hftransfer {__version__}\n"
    code, out, err = call(monkeypatch, capsys)
    assert "train" in out + err and "evaluate" in out + err and "Traceback" not in out + err
