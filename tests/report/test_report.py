"""The page about a run: whole, self-contained, escaped; and what the diagnosis says of recorded runs of each kind."""

import base64
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hftransfer.core.errors import UserError
from hftransfer.report import write_report
from hftransfer.report.diagnosis import Evidence, diagnose, gather
from hftransfer.report.gallery import confident_errors, shown_outputs, thumbnail
from hftransfer.report.sections import number
from hftransfer.report.suspects import _find_label_issues, label_errors
from hftransfer.runs.reader import RecordedRun
from hftransfer.tasks import MultiLabel, SingleLabel
from tests.support.run_folders import MULTI, VALUES, learning_curve, make_run
from tests.support.runs import empty_plot

pytestmark = pytest.mark.usefixtures("drawn_plots")

RECORDED = json.loads((Path(__file__).parents[1] / "support" / "recorded_runs.json").read_text())


@pytest.fixture
def without_plots(monkeypatch):
    """Pages whose figures are not looked at."""
    monkeypatch.setattr("hftransfer.report.plots._svg", empty_plot)


class Page(HTMLParser):
    """What a browser would see: the visible words, the tags with their attributes, and that they nest."""

    VOID = {"meta", "img", "br", "link", "path", "use", "image"}

    def __init__(self, path: Path):
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.words, self.tags, self.attributes, self.open = [], [], [], []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self):
        return re.sub(r"\s+", " ", " ".join(self.words))


def page_of(run: Path) -> Page:
    page = Page(write_report(run))
    assert not page.open
    return page


RUNS = {
    "text": {},
    "image": {"modality": "image", "rows": 60},
    "labels": {"task": MULTI},
    "values": {"task": VALUES},
    "solved head": {"history": [], "strategy": "probe", "trainable": (0, 0, 0, 300)},
    "two classes": {"task": SingleLabel(("no", "yes"))},
    "no out-of-fold": {"out_of_fold": False},
    "no test rows": {"without_test": True},
    "perfect": {"signal": 50.0, "rows": 60},
}


@pytest.mark.parametrize("settings", RUNS.values(), ids=RUNS.keys())
def test_a_page_is_whole_and_asks_nothing_of_the_network(tmp_path, settings):
    page = page_of(make_run(tmp_path / "run", **settings))
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "action", "data", "srcset"):
            assert value.startswith(("data:image/", "#")), (tag, name, value[:80])
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags)
    assert not re.search(r"url\((?!#)|@import", page.source)
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes
    assert "prefers-color-scheme: dark" in page.source and "@media print" in page.source


def test_the_page_says_what_the_files_say(tmp_path):
    run = make_run(tmp_path / "run", signal=2.0)
    page, found = page_of(run), json.loads((run / "metrics.json").read_text())
    for split in ("test", "validation"):
        for entry in found[split].values():
            assert number(entry["value"]) in page.text and number(entry["low"]) in page.text
    assert (
        "tiny, adapted by the strategy “full” to 4 classes of texts: 400 training, 100 validation and 200" in page.text
    )
    assert "this part chose the best checkpoint" in page.text
    assert f"hftransfer train {run}/config.yaml --output {run}-again" in page.text
    assert "layer.1" in page.text and page.text.count("as they were") == 1  # only the embeddings stood still


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "$x_1^2$", "a & b"])
def test_names_are_shown_as_they_are_and_never_as_markup(tmp_path, name):
    page = page_of(make_run(tmp_path / "run", SingleLabel((name, "plain", "other")), signal=1.0, rows=80))
    assert name in page.text and "script" not in page.tags
    assert not any(attribute.startswith("on") for _, attribute, _ in page.attributes)


def test_texts_and_folder_names_are_escaped_too(tmp_path, without_plots):
    run = make_run(tmp_path / "run <b>", signal=1.0, rows=80)
    table = pd.read_parquet(run / "splits.parquet").assign(input="<img src=x> & more")
    table.to_parquet(run / "splits.parquet", index=False)
    page = page_of(run)
    assert "img" not in page.tags
    assert "<img src=x> & more" in page.text and "run <b>" in page.text


def test_label_errors_of_one_single_label_are_found(tmp_path):
    """cleanlab reads several labels alone: with one it ended in a traceback, without report and card."""
    run = RecordedRun.open(make_run(tmp_path / "run", MultiLabel(("spam",)), rows=120))
    part = run.part("test")
    part.targets[:5] = 1 - part.targets[:5]
    assert set(_find_label_issues(False, part)[:5].tolist()) & set(range(5))
    assert write_report(run.folder).is_file()


def test_report_is_complete_where_cleanlab_refuses_the_labels(tmp_path, monkeypatch, caplog):
    def refuse(*arguments, **options):
        raise ValueError("Labels must be in multi-label format")

    monkeypatch.setattr("cleanlab.filter.find_label_issues", refuse)
    assert write_report(make_run(tmp_path / "run", rows=60)).is_file()
    assert "cleanlab cannot search them (Labels must be in multi-label format)" in caplog.text


def test_without_test_rows_the_page_speaks_of_validation(tmp_path):
    page = page_of(make_run(tmp_path / "run", without_test=True))
    assert "validation accuracy, 95 % interval" in page.text and "Validation rows. Shade" in page.text


def test_a_run_that_measured_nothing_is_refused_in_words(tmp_path):
    run = make_run(tmp_path / "run", rows=40)
    (run / "metrics.json").write_text('{"per_class": {}, "notes": {}}')
    with pytest.raises(UserError, match="neither test nor validation rows: there is nothing to judge it by"):
        write_report(run)


def test_a_hundred_classes_fit(tmp_path):
    task = SingleLabel(tuple(f"class number {i}" for i in range(100)))
    page = page_of(make_run(tmp_path / "run", task, rows=400, signal=4.0))
    labels = [word for word in page.words if word.startswith("class number ")]
    assert set(task.names) <= set(labels)
    assert "details" in page.tags and len(page.source) < 1_000_000


def test_confused_classes_stand_together():
    from hftransfer.report.sections import _confused_together

    counts = 20 * np.eye(6, dtype=int)
    for a, b in ((0, 3), (1, 4), (2, 5)):
        counts[a, b] = counts[b, a] = 10
    order = _confused_together(counts).tolist()
    assert all(abs(order.index(a) - order.index(b)) == 1 for a, b in ((0, 3), (1, 4), (2, 5)))


def test_figures_take_their_colours_from_the_page(tmp_path):
    page = page_of(make_run(tmp_path / "run"))
    used = set(re.findall(r"var\(--([a-z-]+)\)", page.source))
    defined = set(re.findall(r"--([a-z-]+):", page.source))
    assert used <= defined and {"ink", "first", "second", "grid"} <= used
    assert not re.search(r"#0[1-5]0[1-5]0[1-5]", page.source)  # no stand-in colour is left


def test_pictures_are_thumbnails_and_missing_ones_are_said(tmp_path, without_plots):
    run = make_run(tmp_path / "run", modality="image", rows=60, signal=1.0)
    page = page_of(run)
    thumbnails = [value for tag, name, value in page.attributes if (tag, name) == ("img", "src")]
    assert len(thumbnails) >= 12 and all(value.startswith("data:image/jpeg;base64,") for value in thumbnails)
    assert max(map(len, thumbnails)) < 40_000
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    assert "image not at hand" in page_of(run).text


def test_repeated_measurements_are_shown(tmp_path, without_plots):
    folder = make_run(tmp_path / "run")
    assert "cross-validated" not in page_of(folder).text
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["cross_validation"] = {"accuracy": {"value": 0.8123, "low": 0.7, "high": 0.9, "n": 60}}
    metrics["cross_validation_folds"] = {"folds": 2, "repeats": 10, "examples": 60}
    metrics["headline"] = "cross_validation"
    (folder / "metrics.json").write_text(json.dumps(metrics))
    text = page_of(folder).text
    assert "cross-validated (2 folds, 10 times)" in text and "0.812" in text
    assert "cross-validated (2 folds, 10 times) accuracy" in page_of(folder).text.replace("Accuracy", "accuracy")


def test_a_thumbnail_of_a_turned_photo_stands_upright(tmp_path):
    photo, turned = Image.new("RGB", (300, 200)), Image.Exif()
    turned[0x0112] = 6  # as phones write it: a quarter to the right
    photo.paste("red", (0, 0, 150, 200))
    photo.save(tmp_path / "a.jpg", exif=turned)
    shown = Image.open(io.BytesIO(base64.b64decode(thumbnail(str(tmp_path / "a.jpg")).split(",")[1])))
    assert shown.width < shown.height
    assert (
        shown.getpixel((shown.width // 2, 10))[0] > 200 > 50 > shown.getpixel((shown.width // 2, shown.height - 10))[0]
    )


def test_explanations_are_shown_where_there_are_some(tmp_path, without_plots):
    run = RecordedRun.open(make_run(tmp_path / "run", signal=1.0, rows=80))
    row = next(iter(shown_outputs(run)))
    run.explanation(row, ".json").parent.mkdir()
    tokens = [{"text": "goal ", "weight": 0.8}, {"text": "of", "weight": 0.0}, {"text": " vote", "weight": -0.5}]
    run.explanation(row, ".json").write_text(json.dumps({"tokens": tokens}))
    page = page_of(run.folder)
    assert "rgba(var(--for), 0.48)" in page.source and "rgba(var(--against), 0.30)" in page.source
    assert "integrated gradients" in page.text and "Grad-CAM" not in page.text

    image = RecordedRun.open(make_run(tmp_path / "image", modality="image", signal=1.0, rows=80))
    before = page_of(image.folder).tags.count("img")
    assert "Grad-CAM" not in page_of(image.folder).text
    path = image.explanation(confident_errors(image).part.ids[confident_errors(image).rows[0]], ".png")
    path.parent.mkdir()
    Image.new("RGB", (40, 40)).save(path)
    assert page_of(image.folder).tags.count("img") > before and "Grad-CAM" in page_of(image.folder).text


def test_an_id_that_is_a_path_has_one_explanation_file(tmp_path):
    run = RecordedRun(tmp_path)
    assert run.explanation("red/001.png", ".png") == tmp_path / "explanations" / "red%2F001.png.png"
    long = ["猫" * 100 + end for end in "ab"]  # quoted, nine bytes a character: longer than a file's name can be
    paths = {run.explanation(row, ".png") for row in long}
    assert len(paths) == 2 and all(len(path.name) < 255 for path in paths)


def test_errors_are_sorted_by_confidence_and_all_wrong(tmp_path):
    run = RecordedRun.open(make_run(tmp_path / "run", signal=1.0))
    picked = confident_errors(run)
    sure = picked.part.scores[list(picked.rows)].max(1)
    assert (np.diff(sure) <= 0).all() and len(picked.rows) == 12
    assert all(
        picked.part.frame["label"][row] != answer for row, answer in zip(picked.rows, picked.answers, strict=True)
    )
    values = RecordedRun.open(make_run(tmp_path / "values", VALUES))
    part = confident_errors(values).part
    error = np.abs(part.scores - part.targets).max(1)
    assert error[confident_errors(values).rows[0]] == error.max()


def test_planted_label_errors_are_found(tmp_path):
    pytest.importorskip("cleanlab")
    run = RecordedRun.open(make_run(tmp_path / "run", signal=4.0, mislabelled=10))
    picked = label_errors(run)
    planted = {f"row-{i:04d}" for i in range(10)}
    assert len(planted & {picked.part.ids[row] for row in picked.rows}) >= 8
    labels = RecordedRun.open(make_run(tmp_path / "labels", MULTI, signal=3.0))
    assert label_errors(labels) is not None and label_errors(RecordedRun.open(make_run(tmp_path / "v", VALUES))) is None


def test_without_cleanlab_the_page_says_what_to_install(tmp_path, monkeypatch, without_plots):
    monkeypatch.setattr("hftransfer.report.suspects._has_cleanlab", lambda: False)
    assert "pip install 'hftransfer[label-errors]'" in page_of(make_run(tmp_path / "run", rows=60)).text


def test_the_page_is_made_without_torch(tmp_path):
    run = make_run(tmp_path / "run", rows=60)
    code = "import sys; from hftransfer.report import write_report; write_report(sys.argv[1]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, str(run)], check=True)


def test_a_folder_that_is_no_run_is_refused_in_words(tmp_path):
    with pytest.raises(UserError, match="There is no run at"):
        write_report(tmp_path / "none")
    assert not list(tmp_path.iterdir())


# --- diagnosis -------------------------------------------------------------------------------------------------------

EXPECTED = {
    "sound": [],
    "rate too high": ["rate too high", "too few test rows"],
    "rate too high, steps clipped": ["rate too high", "too few test rows"],
    "never learned": ["never learned", "too few test rows"],
    "labels without meaning": ["never learned", "too few test rows"],
    "nothing carries over": ["nothing carries over", "too few test rows"],
    "rate too low": ["rate too low"],
    "one-class collapse": ["one-class collapse", "class starving", "too few test rows"],
    "overfit": ["overfit", "too few test rows"],
    "overfit, few rows": ["overfit", "too few test rows"],
    "underfit": ["underfit", "too few test rows"],
    "transform gap": ["transform gap"],
    "class starving": ["class starving", "too few test rows"],
}


@pytest.mark.parametrize("kind", RECORDED)
def test_recorded_runs_are_named_for_what_they_are(kind):
    assert [finding.kind for finding in diagnose(Evidence(**RECORDED[kind]))] == EXPECTED[kind]


def test_each_finding_is_a_sentence_and_a_command_that_changes_something():
    for evidence in RECORDED.values():
        for finding in diagnose(Evidence(**evidence)):
            assert finding.sentence.endswith(".") and len(finding.sentence) < 330
            assert re.fullmatch(
                r"hftransfer train runs/recorded/config.yaml --output runs/recorded-2( [a-z_.]+=\S+)+", finding.command
            )


def interval(value, reach, n=100):
    return {"value": value, "low": value - reach, "high": value + reach, "n": n}


def test_test_rows_from_elsewhere_are_told_from_chance():
    seen = {"accuracy": interval(0.64, 0.03)}
    (found,) = diagnose(Evidence(run="runs/cells", validation=seen, test={"accuracy": interval(0.2, 0.04)}))
    assert found.kind == "test rows differ" and found.command == "hftransfer doctor runs/cells/config.yaml"
    assert found.sentence.startswith("The accuracy is 0.640 on validation rows and 0.200 on test rows")
    assert diagnose(Evidence(run="r", validation=seen, test={"accuracy": interval(0.56, 0.04)})) == []
    assert diagnose(Evidence(run="r", validation=seen, test={"accuracy": interval(0.7, 0.04)})) == []


def test_what_validation_rows_show_was_learned():
    chance = {"accuracy": interval(0.2, 0.04), "mcc": interval(0.0, 0.1)}
    seen = {"accuracy": interval(0.9, 0.03), "mcc": interval(0.8, 0.05)}
    assert [found.kind for found in diagnose(Evidence(run="r", test=chance, validation=seen))] == ["test rows differ"]
    assert [found.kind for found in diagnose(Evidence(run="r", test=chance, validation=chance))] == ["never learned"]


def test_folds_are_not_advised_where_the_test_part_was_given():
    few = {"accuracy": interval(0.8, 0.1)}
    (found,) = diagnose(Evidence(run="runs/a", test=few, test_given=True))
    assert (found.kind, found.command) == ("too few test rows", "hftransfer compare runs/a RUN")
    assert diagnose(Evidence(run="runs/a", test=few))[0].command.endswith("evaluation.folds=5")


def test_a_hump_that_mended_is_no_rate_too_high():
    ended = {"rate too high": 1.2, "": 0.2}
    for kind, last in ended.items():
        losses = [1.4, 2.5, 2.6, 2.4, 1.9, *np.linspace(1.5, last, 10), *[last] * 5]
        history = [{"step": step, "loss": loss} for step, loss in enumerate(losses)]
        found = diagnose(Evidence(run="r", guess=1.4, history=history))
        assert [finding.kind for finding in found][:1] == [kind][: len(kind)]


def test_intervals_that_are_not_known_accuse_nobody():
    """A score of few examples whose interval is not known is neither chance nor a difference."""
    unknown = {"value": 0.88, "low": float("nan"), "high": float("nan"), "n": 12}
    assert diagnose(Evidence(run="r", test={"mcc": unknown})) == []
    apart = {"accuracy": unknown | {"value": 0.2}}
    assert diagnose(Evidence(run="r", test=apart, validation={"accuracy": interval(0.9, 0.02)})) == []


def test_labels_that_are_never_answered_are_counted():
    def label(name, precision):
        return {
            "name": name,
            "n": 20,
            "recall": interval(0.1, 0.1),
            "precision": precision and interval(precision, 0.1),
        }

    labels = [label("joy", 0.8), label("grief", None), label("pride", None), label("relief", 0.5)]
    evidence = {"run": "runs/a", "headline": "micro_f1", "per_class": labels, "train_rows": {"grief": 2, "joy": 90}}
    (found,) = diagnose(Evidence(**evidence))
    assert found.sentence.startswith("2 of 4 labels are never answered ('grief', 'pride'): none of their scores")
    assert found.command.endswith("training.imbalance=balanced")
    (found,) = diagnose(Evidence(**evidence, balanced=True))
    assert found.command == "hftransfer predict runs/a INPUT --output scores.csv" and "Weigh" not in found.sentence
    assert diagnose(Evidence(**evidence | {"headline": "accuracy", "train_rows": {}})) == []
    assert diagnose(Evidence(**evidence | {"per_class": [label("joy", 0.8)] * 3, "train_rows": {}})) == []


def test_what_is_weighed_up_already_is_not_advised_again():
    for kind, command in (("one-class collapse", "strategy.type=probe"), ("class starving", "hftransfer next POOL")):
        evidence = RECORDED[kind]
        plain, balanced = (
            next(found for found in diagnose(Evidence(**evidence, balanced=balanced)) if found.kind == kind)
            for balanced in (False, True)
        )
        assert "training.imbalance=balanced" in plain.command
        assert "imbalance" not in balanced.command and command in balanced.command and "weigh" not in balanced.sentence


def test_the_rate_is_changed_the_right_way():
    for kind, direction in (("rate too high", -1), ("rate too low", 1), ("never learned", 1)):
        evidence = Evidence(**RECORDED[kind])
        asked = float(re.search(r"learning_rate=(\S+)", diagnose(evidence)[0].command)[1])
        assert (asked - evidence.learning_rate) * direction > 0


def test_a_loss_that_is_no_number_is_a_rate_too_high():
    history = [entry | ({"loss": float("nan")} if "loss" in entry else {}) for entry in learning_curve()]
    assert diagnose(Evidence(run="runs/x", history=history))[0].sentence.startswith("The training loss became infinite")


def test_mixed_inputs_explain_a_high_training_loss():
    gap = Evidence(**RECORDED["transform gap"])
    assert diagnose(replace(gap, softened=True)) == []


def test_a_start_that_was_better_than_all_that_followed_is_no_overfitting():
    """Which would advise to stop at step 0."""
    overfit = Evidence(**RECORDED["overfit"])
    lowest = overfit.curve("eval_loss")[1].min()
    for before, expected in ((0.9 * lowest, "nothing gained"), (1.1 * lowest, "overfit")):
        history = [{"eval_loss": before, "step": 0}, *overfit.history]
        found = diagnose(replace(overfit, history=history))[0]
        assert found.kind == expected
    gained = diagnose(replace(overfit, history=[{"eval_loss": 0.01, "step": 0}, *overfit.history]))[0]
    assert gained.sentence.startswith(
        f"On validation rows nothing that was trained is better than the start (0.01 before, {lowest:.3g} at best after), "
        "so the start was kept: a lower rate than "
    )
    asked = float(re.search(r"learning_rate=(\S+)", gained.command)[1])
    assert asked < overfit.learning_rate


def test_truncation_is_said_from_five_percent_on():
    assert diagnose(Evidence(run="r", truncated=0.31))[0].sentence.startswith("31% of the texts lost their end")
    assert diagnose(Evidence(run="r", truncated=0.03)) == diagnose(Evidence(run="r", truncated=None)) == []


def test_enough_test_rows_are_enough():
    def kinds(half_width):
        found = {"value": 0.8, "low": 0.8 - half_width, "high": 0.8 + half_width, "n": 100}
        return [finding.kind for finding in diagnose(Evidence(run="r", test={"accuracy": found}))]

    assert kinds(0.06) == ["too few test rows"] and kinds(0.03) == []
    told_by_folds = Evidence(run="r", test={"accuracy": interval(0.9, 0.06)}, cross_validated=True)
    assert diagnose(told_by_folds) == []


def test_the_evidence_is_read_from_the_run_folder(tmp_path):
    evidence = gather(RecordedRun.open(make_run(tmp_path / "run", truncated=0.2)))
    assert sum(evidence.actual.values()) == pytest.approx(1) and sum(evidence.train_rows.values()) == 400
    assert evidence.truncated == 0.2 and evidence.learning_rate == 1e-4 and evidence.guess == pytest.approx(np.log(4))
    assert [finding.kind for finding in diagnose(evidence)] == ["truncation"]


def test_a_run_path_with_a_blank_stays_one_word():
    (finding,) = diagnose(Evidence(run="my runs/x", truncated=0.5))
    assert finding.command.startswith("hftransfer train 'my runs/x/config.yaml' --output 'my runs/x-2' ")
