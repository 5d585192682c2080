"""Token classification: tags and entities, metrics and intervals, and every command on one small run."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hftransfer.cli.commands import app
from hftransfer.config import checked
from hftransfer.core.errors import UserError
from hftransfer.evaluation.entities import errors_of
from hftransfer.evaluation.intervals import measure, per_class, wilson
from hftransfer.evaluation.metrics import compute_metrics
from hftransfer.planning.checkpoints.ranking import rank
from hftransfer.planning.labels.command import measured
from hftransfer.prediction.predictor import load
from hftransfer.report import write_report
from hftransfer.runs.reader import RecordedRun
from hftransfer.tasks import TASKS, Tokens
from hftransfer.tasks.tokens import ragged
from hftransfer.train import run
from tests.support import tiny
from tests.support.runs import configuration

TASK = Tokens(("LOC", "PER"))


def tags(words: str) -> np.ndarray:
    return np.array([TASK.tags.index(word) for word in words.split()], dtype=np.int64)


def scores_for(*sequences: np.ndarray, seed: int = 0) -> np.ndarray:
    """Scores whose largest are those of the given tags."""
    rng = np.random.default_rng(seed)
    drawn = [rng.dirichlet(np.ones(5), len(sequence)) * 0.4 + 0.6 * np.eye(5)[sequence] for sequence in sequences]
    return ragged(drawn)


def random_tags(rng: random.Random, valid: bool) -> np.ndarray:
    sequence: list[int] = []
    for _ in range(rng.randint(1, 9)):
        tag = rng.choice([0, 0, 1, 2, 3, 4])
        goes_on = sequence and sequence[-1] in (tag, tag - 1)
        sequence.append(tag - 1 if valid and tag in (2, 4) and not goes_on else tag)
    return np.array(sequence, dtype=np.int64)


# --- tags and entities ------------------------------------------------------------------------------------------------


def test_outputs_are_tags_of_iob2():
    assert TASK.tags == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER") and TASK.head_size == 5
    assert Tokens.of_outputs(TASK.tags) == TASK
    with pytest.raises(UserError, match="expected O, and B-TYPE and I-TYPE of each type"):
        Tokens.of_outputs(("O", "S-PER"))


@pytest.mark.parametrize(
    ("given", "decided"),
    [("O I-PER I-PER", "O B-PER I-PER"), ("B-LOC I-PER", "B-LOC B-PER"), ("I-LOC I-LOC B-LOC", "B-LOC I-LOC B-LOC")],
)
def test_an_entity_begins_with_b_as_the_pipeline_has_it(given, decided):
    assert TASK.decode(TASK.decide(scores_for(tags(given)))[0]) == decided.split()


def test_words_have_the_entities_that_they_overlap():
    words = np.array([[0, 3], [4, 8], [9, 10], [11, 16]])
    label = [{"start": 0, "end": 8, "label": "PER"}, {"start": 11, "end": 15, "label": "LOC"}]
    assert TASK.decode(TASK.tagged(label, words)) == ["B-PER", "I-PER", "O", "B-LOC"]
    assert TASK.unaligned(label, words) == 1  # 15 lies inside of a word


# --- metrics ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_metrics_equal_those_of_seqeval_in_strict_mode(seed):
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    rng = random.Random(seed)
    targets = ragged([random_tags(rng, valid=True) for _ in range(40)])
    scores = ragged([
        s for t in targets for s in scores_for(np.where(np.random.default_rng(len(t) + seed).random(len(t)) < 0.7, t, 3), seed=seed)
    ])  # fmt: skip
    names = lambda sequences: [TASK.decode(sequence) for sequence in sequences]  # noqa: E731
    found = classification_report(
        names(targets), names(TASK.decide(scores)), mode="strict", scheme=IOB2, output_dict=True, zero_division=0
    )
    ours = compute_metrics(TASK, targets, scores)
    assert ours["entity_f1"] == pytest.approx(found["micro avg"]["f1-score"])
    assert ours["entity_precision"] == pytest.approx(found["micro avg"]["precision"])
    assert ours["entity_recall"] == pytest.approx(found["micro avg"]["recall"])
    assert ours["macro_f1"] == pytest.approx(found["macro avg"]["f1-score"])
    for entry in per_class(TASK, targets, scores, None):
        assert entry["n"] == found[entry["name"]]["support"]
        assert entry["f1"].value == pytest.approx(found[entry["name"]]["f1-score"])


def test_metrics_by_hand():
    true = tags("B-PER I-PER O B-LOC O B-PER")
    said = tags("B-PER I-PER O B-PER O O")  # one right, one of another type, one missing
    found = compute_metrics(TASK, ragged([true]), scores_for(said))
    assert (found["entity_precision"], found["entity_recall"]) == (1 / 2, 1 / 3) and found[
        "entity_f1"
    ] == pytest.approx(0.4)
    assert compute_metrics(TASK, ragged([tags("B-PER I-PER O")]), scores_for(tags("B-PER O O")))["overlap_f1"] == 1.0
    nothing = compute_metrics(TASK, ragged([tags("O O")]), scores_for(tags("O O")))
    assert np.isnan(nothing["entity_f1"]) and nothing["log_loss"] > 0


def test_kinds_of_errors():
    true, found = TASK.spans(tags("B-PER I-PER O B-LOC O B-PER O")), TASK.spans(tags("B-PER O O B-PER O O B-LOC"))
    counts = {name: len(pairs) for name, pairs in errors_of(true, found).items()}
    assert counts == {"missing": 1, "spurious": 1, "wrong type": 1, "wrong boundary": 1}


def test_intervals_resample_texts():
    """Entities of one text are right or wrong together: forty copies of a word in each text are no more evidence than one."""
    rng = np.random.default_rng(0)
    right = rng.random(60) < 0.7
    one = [(tags("B-PER O"), tags("B-PER O" if good else "O B-PER")) for good in right]
    many = [(np.tile(t, 40), np.tile(p, 40)) for t, p in one]
    widths = []
    for rows in (one, many):
        targets = ragged([t for t, _ in rows])
        found = measure(TASK, targets, scores_for(*[p for _, p in rows]), None)["entity_recall"]
        assert found.value == pytest.approx(right.mean()) and found.n == 60
        widths.append(found.high - found.low)
    assert widths[1] == pytest.approx(widths[0], rel=0.1)


def test_intervals_cover():
    """Of texts with several entities each, whose errors are correlated, 95 % intervals of recall hold the truth about as often."""
    rng, covered, as_if_independent = np.random.default_rng(0), 0, 0
    for _ in range(100):
        times, right = rng.integers(1, 6, 80), rng.random(80) < 0.6
        targets = ragged([np.tile(tags("B-PER O"), count) for count in times])
        said = [np.tile(tags("B-PER O" if good else "O O"), count) for good, count in zip(right, times, strict=True)]
        found = measure(TASK, targets, scores_for(*said), None, resamples=100)["entity_recall"]
        covered += found.low <= 0.6 <= found.high
        low, high = wilson((right * times).sum(), times.sum())
        as_if_independent += low <= 0.6 <= high
    assert as_if_independent < 0.85 * 100 and covered >= 0.9 * 100


# --- commands ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tiny_run, tmp_path_factory, write_pages):
    copy = tmp_path_factory.mktemp("tokens") / "run"
    shutil.copytree(tiny_run("full", "tokens"), copy)
    write_pages(copy)
    return copy


def invoke(*arguments: str):
    return CliRunner().invoke(app, [str(each) for each in arguments])


TEXT = "the goal match was in a market today"


def test_predict_writes_spans_or_a_row_for_each_entity(folder, tmp_path):
    (found,) = load(folder, use_cpu=True).predict(TEXT)["prediction"]
    assert found and all(TEXT[e["start"] : e["end"]] == e["text"] and e["label"] in ("sport", "money") for e in found)
    assert invoke("predict", folder, TEXT, "--output", tmp_path / "a.jsonl").exit_code == 0
    (row,) = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert [e["text"] for e in row["prediction"]] == [e["text"] for e in found]
    said = invoke("predict", folder, TEXT, "was the", "--output", tmp_path / "a.csv")
    table = pd.read_csv(tmp_path / "a.csv")
    assert list(table) == ["id", "start", "end", "label", "text", "score"] and f"{len(table)} entities" in said.output
    assert table["text"].tolist()[: len(found)] == [e["text"] for e in found]
    assert found[0]["text"] in invoke("predict", folder, TEXT).output


def test_predictions_are_those_of_the_plain_pipeline(folder):
    import transformers

    ask = transformers.pipeline(
        "token-classification", str(folder / "model"), aggregation_strategy="first", device="cpu"
    )
    table = pd.read_parquet(folder / "predictions.parquet").merge(
        pd.read_parquet(folder / "splits.parquet")[["id", "input"]]
    )
    for text, recorded in zip(table["input"], table["prediction"], strict=True):
        expected = [
            (e["start"], e["end"], e["entity_group"], pytest.approx(float(e["score"]), abs=1e-4)) for e in ask(text)
        ]
        assert [(e["start"], e["end"], e["label"], e["score"]) for e in recorded] == expected


def test_a_model_folder_alone_is_known_by_its_class(folder):
    predictor = load(folder / "model", use_cpu=True)
    assert predictor.task == Tokens(("money", "sport"))
    assert (
        predictor.predict(TEXT)["prediction"].tolist()
        == load(folder, use_cpu=True).predict(TEXT)["prediction"].tolist()
    )


def test_evaluate_on_the_test_part_gives_the_recorded_metrics(folder, tmp_path):
    recorded = RecordedRun.open(folder)
    rows = recorded.splits[recorded.splits["split"] == "test"]
    lines = [
        json.dumps({"text": text, "spans": list(label)})
        for text, label in zip(rows["input"], rows["label"], strict=True)
    ]
    (tmp_path / "test.jsonl").write_text("\n".join(lines))
    said = invoke("evaluate", folder, "--data", tmp_path / "test.jsonl", "--json")
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout[said.stdout.index("{") :])[str(tmp_path / "test.jsonl")]
    for name, value in recorded.metrics.test.items():
        assert found[name]["value"] == pytest.approx(value["value"], abs=1e-5)


def test_report_and_card_speak_of_entities(folder):
    page = write_report(folder).read_text()
    assert "Kinds of errors" in page and "wrong boundary" in page and "<mark" in page
    assert "label-errors" not in page and "Calibration" not in page
    card = (folder / "README.md").read_text()
    assert "Finds entities of 2 types in a text: money, sport." in card and "pipeline_tag: token-classification" in card
    assert "aggregation_strategy='first'" in card and "stride=16" in card


def test_the_demo_highlights_entities(folder):
    pytest.importorskip("gradio")
    from hftransfer.apps.demo import _asked, build_demo
    from hftransfer.apps.serving import answered, serve

    served = serve(folder)
    frame, _ = served.frame(TEXT)
    shown, _ = _asked(served, frame)
    assert shown["text"] == TEXT and {e["entity"] for e in shown["entities"]} <= {"sport", "money"}
    assert "highlightedtext" in str(build_demo(str(folder), examples=False).get_config_file())
    assert json.loads(answered(served, frame)["prediction"].iloc[0])[0]["text"] in TEXT


@pytest.mark.parametrize(
    "forms", [("pipeline",), pytest.param(("adapter on its base", "demo"), marks=pytest.mark.slow)]
)
def test_the_round_trip_finds_the_recorded_entities(tiny_run, tmp_path, monkeypatch, forms, forked_programs):
    pytest.importorskip("gradio")
    from hftransfer.publish import round_trip
    from hftransfer.publish.round_trip import certify, check

    all_forms = round_trip.forms_of
    monkeypatch.setattr(round_trip, "forms_of", lambda run: [form for form in all_forms(run) if form.name in forms])
    copy = shutil.copytree(tiny_run("lora", "tokens"), tmp_path / "run")
    found = certify(copy, rows=4)
    assert tuple(stage["name"] for stage in found["stages"]) == forms
    assert all(stage["label_agreement"] == 1 for stage in found["stages"])
    check(found)


def test_runs_are_compared_by_entities(folder, tiny_run):
    said = invoke("compare", folder, tiny_run("probe", "tokens"), "--json")
    assert said.exit_code == 0, said.output
    assert json.loads(said.stdout[said.stdout.index("{") :])["metric"] == "entity_f1"


@pytest.mark.parametrize("form", ["onnx", "safetensors-merged"])
def test_exported_models_give_the_logits_of_words(folder, tmp_path, form):
    from hftransfer.publish.export import as_table, export

    pytest.importorskip("onnxscript")
    exported = export(folder, form, tmp_path / form)
    comparison = json.loads((exported / "export.json").read_text())
    recorded = RecordedRun.open(folder)
    assert comparison["rows"] == (recorded.splits["split"] == "test").sum()
    assert comparison["metric"] == "entity_f1" and comparison["agreement"]["value"] == 1
    quality = comparison["sides"][form]["quality"]
    assert quality["value"] == pytest.approx(recorded.metrics.test["entity_f1"]["value"])
    assert 0 < comparison["max_difference"] < 1e-4 if form == "onnx" else comparison["max_difference"] == 0
    as_table(exported)
    if form == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(exported / "model.onnx"), providers=["CPUExecutionProvider"])
        about = session.get_modelmeta().custom_metadata_map
        assert json.loads(about["labels"]) == list(recorded.task.tags) and about["task"] == "token-classification"


def test_doctor_takes_entities(folder):
    data = RecordedRun.open(folder).config["data"]["train"]
    said = invoke("doctor", data)
    assert said.exit_code in (0, 1) and "Traceback" not in said.output and not isinstance(said.exception, TypeError)


COMMANDS = {
    "next": ["next", "DATA", "--run", "RUN"],
    "embed": ["embed", "DATA", "--run", "RUN", "--output", "OUT"],
    "--explain": ["predict", "RUN", "a text", "--explain", "OUT"],
    "doctor --fix": ["doctor", "DATA", "--fix"],
    "doctor --measure": ["doctor", "DATA", "--model", "MODEL", "--measure"],
}


@pytest.mark.parametrize("strategy", ["probe", pytest.param("frozen", marks=pytest.mark.slow)])
def test_folds_hold_out_each_text_once(tmp_path, strategy):
    """The cross-validated metrics stand on all texts, also on those of the training part."""
    config = configuration(strategy, "tokens", tmp_path)
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"folds": 3})})
    recorded = RecordedRun.open(run(config).folder)
    metrics = json.loads((recorded.folder / "metrics.json").read_text())
    assert metrics["cross_validation"]["entity_recall"]["n"] == len(recorded.splits)
    assert metrics["cross_validation"]["entity_f1"]["value"] > 0.3  # answers beside the wrong texts would have none
    assert metrics["cross_validation_folds"] == {"folds": 3, "repeats": 1, "examples": len(recorded.splits)}


def test_rank_compares_checkpoints_by_entities(folder):
    """Each text is judged by a probe that did not see its words."""
    config = RecordedRun.open(folder).config
    ranking = rank(checked({"data": config["data"], "seed": 0}), [config["model"]["name"]])
    (found,) = ranking.checkpoints
    assert ranking.metric == "entity_f1" and found.metrics["entity_recall"].n == ranking.rows
    assert 0.3 < found.metrics["entity_f1"].value <= 1 and found.metrics["entity_f1"].low < 1


def test_the_curve_of_entities_rises_with_texts(folder, caplog):
    config = RecordedRun.open(folder).config
    model = {"name": config["model"]["name"]}
    found = measured(checked({"data": config["data"], "model": model, "seed": 0}), None, 2)
    assert found.metric == "entity_f1" and found.points[-1].measured > found.points[0].measured
    assert {gain.name for gain in found.classes} == set(RecordedRun.open(folder).task.names[:2])
    assert all("its own f1" in gain.words for gain in found.classes)


def test_every_command_that_lacks_the_task_is_tried():
    assert COMMANDS.keys() == TASKS["tokens"].lacks


@pytest.mark.parametrize("command", [name for name, arguments in COMMANDS.items() if arguments])
def test_what_does_not_take_the_task_says_so(folder, tmp_path, command):
    config = RecordedRun.open(folder).config
    (tmp_path / "patch.jsonl").write_text("")
    words = {"DATA": config["data"]["train"], "MODEL": config["model"]["name"], "RUN": folder, "OUT": tmp_path / "out",
             "data.patch=PATCH": f"data.patch={tmp_path / 'patch.jsonl'}"}  # fmt: skip
    said = invoke(*(words.get(word, word) for word in COMMANDS[command]))
    assert isinstance(said.exception, UserError), (said.output, said.exception)
    assert str(said.exception) == f"{command} does not take the task tokens (types of entities) yet."
    assert not (tmp_path / "out").exists()


def test_other_kinds_of_input_are_refused(tmp_path):
    folder = tiny.image_folder(tmp_path / "images", per_class=4)
    with pytest.raises(UserError, match="data.task=tokens needs a tag for each word"):
        run(checked({"data": {"train": str(folder), "task": "tokens"}, "model": "m", "output": str(tmp_path / "o")}))


def test_long_texts_train_and_lose_no_label(tmp_path, monkeypatch):
    """Texts of three windows: every word is predicted, and the labels of the end are learned."""
    rows = []
    rng = random.Random(0)
    for _ in range(24):
        words = rng.choices(tiny.FILLER, k=110) + [rng.choice(tiny.ENTITIES["sport"])]
        rows.append({"tokens": words, "tags": ["O"] * 110 + ["B-sport"]})
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    config = configuration("frozen", "tokens", tmp_path)
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": str(tmp_path / "long.jsonl")})})
    folder = run(config).folder
    recorded = RecordedRun.open(folder)
    part = recorded.part("test")
    assert all(len(tags) == 111 and tags[-1] == 1 for tags in part.targets)
    assert recorded.metrics.test["entity_recall"]["value"] == 1.0


def test_class_weights_find_more(tmp_path):
    plain, balanced = (
        run(configuration("probe", "tokens", tmp_path / name, imbalance=name)).metrics["test"]
        for name in ("none", "balanced")
    )
    assert balanced["entity_recall"]["value"] > plain["entity_recall"]["value"]


def test_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    from hftransfer.training import trainer

    whole = run(configuration("full", "tokens", tmp_path)).folder
    config = configuration("full", "tokens", tmp_path).model_copy(update={"output": str(tmp_path / "again")})

    def stop_after_training(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_all_evaluations", stop_after_training)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    resumed = run(config, resume=True).folder
    assert (resumed / "model/model.safetensors").read_bytes() == (Path(whole) / "model/model.safetensors").read_bytes()
