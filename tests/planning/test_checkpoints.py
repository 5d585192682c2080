"""Checkpoints on the same rows, ties called ties, and what cannot be had."""

import io
import json
import logging

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from hftransfer.config import checked
from hftransfer.core.errors import UserError
from hftransfer.evaluation.comparison import compare_parts
from hftransfer.evaluation.intervals import Measured
from hftransfer.models import reach
from hftransfer.planning.checkpoints.candidates import CANDIDATES, described
from hftransfer.planning.checkpoints.command import as_table
from hftransfer.planning.checkpoints.ranking import Ranked, Ranking, rank
from hftransfer.runs.reader import Part
from hftransfer.tasks import SingleLabel
from tests.behaviour.test_cli import call
from tests.support import tiny

TASK = SingleLabel(("a", "b", "c"))


# --- what can be had -------------------------------------------------------------------------------------------------


def test_what_cannot_be_had_is_skipped_with_a_line_each(caplog, monkeypatch):
    monkeypatch.setattr(reach.starter, "checkpoint", lambda name: (_ for _ in ()).throw(UserError("not installed")))
    with caplog.at_level(logging.INFO):
        assert list(reach.reachable(["starter/minilm", "nobody/nothing"])) == []
    assert [record.message for record in caplog.records] == [
        "Skipped starter/minilm: not installed",
        "Skipped nobody/nothing: not in the Hub's cache, and the Hub cannot be reached",
    ]


def test_the_hub_is_asked_once_and_briefly(monkeypatch):
    asked = []

    class Session:
        def head(self, url, timeout):
            asked.append(timeout)
            raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: Session())
    assert list(reach.reachable(["a/b", "c/d", "e/f"])) == []
    assert asked == [reach.SECONDS]


def test_a_hub_that_does_not_listen_does_not_answer_and_a_mistake_of_ours_is_not_hidden(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    assert not reach.hub_answers()
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: None)
    with pytest.raises(AttributeError):
        reach.hub_answers()


def test_a_checkpoint_in_the_cache_is_read_from_there(tmp_path, monkeypatch):
    for name, files in {"whole": ("config.json", "model.safetensors"), "half": ("config.json",)}.items():
        (tmp_path / name).mkdir()
        for file in files:
            (tmp_path / name / file).write_text("")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda repo, file: str(tmp_path / repo / file))
    assert list(reach.reachable(["whole", "half"])) == [reach.Reachable("whole", str(tmp_path / "whole"))]


def test_the_list_names_each_checkpoint_once_with_objective_and_licence():
    names = [candidate.name for candidate in CANDIDATES]
    assert len(names) == len(set(names)) and {c.modality for c in CANDIDATES} == {"audio", "image", "text"}
    assert all(candidate.objective for candidate in CANDIDATES)
    assert [candidate.name for candidate in CANDIDATES if not candidate.licence] == ["microsoft/wavlm-base-plus"]
    assert described("starter/minilm").licence == "Apache-2.0" and described("my/own") is None


# --- rankings --------------------------------------------------------------------------------------------------------


def ranking_of(scores, milliseconds, rows=400, seed=0):
    """A ranking from made-up answers: one checkpoint per share of right answers."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(3, size=rows)
    frame = pd.DataFrame({"id": [f"row {i}" for i in range(rows)], "group": None})
    parts, found = [], []
    for (name, share), speed in zip(scores.items(), milliseconds, strict=True):
        answers = np.where(rng.random(rows) < share, targets, (targets + 1) % 3)
        parts.append(Part(frame, targets, np.eye(3)[answers] * 0.8 + 0.1))
        right = float((answers == targets).mean())
        found.append(
            Ranked(
                name,
                None,
                None,
                "head@1",
                {"accuracy": Measured(right, right - 0.05, right + 0.05, rows)},
                speed,
                10,
                40,
                1.0,
            )
        )
    pairs = compare_parts(TASK, parts, list(scores), "accuracy")
    found.sort(key=lambda checkpoint: -checkpoint.metrics["accuracy"].value)
    return Ranking("accuracy", rows, found, pairs)


def test_a_tie_is_said_to_be_one_and_the_best_estimate_and_the_fastest_are_named():
    ranking = ranking_of({"slow": 0.87, "quick": 0.84, "poor": 0.5}, [30.0, 3.0, 1.0])
    assert ranking.level_with_best == ["slow", "quick"]
    assert ranking.verdict == (
        "A tie: 400 rows do not separate slow and quick by accuracy. slow has the best estimate; quick is the fastest (3 ms a row)."
    )
    both = ranking_of({"slow": 0.87, "quick": 0.84, "poor": 0.5}, [3.0, 30.0, 1.0])
    assert both.verdict.endswith(" slow has the best estimate and is the fastest (3 ms a row).")
    assert ranking.pairs_of_best["poor"].difference > 0


def test_a_clear_winner_is_named_and_the_front_leaves_out_what_is_slower_and_worse():
    ranking = ranking_of({"good": 0.9, "worse and slower": 0.6, "quick": 0.5}, [10.0, 20.0, 1.0])
    assert ranking.verdict == "good is best: accuracy separates it from every other checkpoint on 400 rows."
    assert ranking.pareto == ["quick", "good"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    return [tiny.TEXT_FAMILIES[family](folder / family) for family in ("bert", "distilbert")]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    return tiny.text_table(tmp_path_factory.mktemp("texts") / "texts.csv", rows=90)


def test_rank_on_the_command_line(monkeypatch, capsys, tmp_path, checkpoints, table):
    plot = tmp_path / "front.svg"
    arguments = ["rank", table, "--models", *checkpoints, "--rows", 40, "--plot", plot, "--json", "head.folds=3"]
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert code == 0, err
    found = json.loads(out)
    assert {c["name"] for c in found["checkpoints"]} == {str(c) for c in checkpoints}
    assert found["rows"] == 40 and "Ranking on 40 of 72 training and validation rows" in err
    scores = [c["metrics"]["accuracy"]["value"] for c in found["checkpoints"]]
    assert scores == sorted(scores, reverse=True)
    assert all(c["milliseconds"] > 0 and c["bytes"] == 4 * c["parameters"] for c in found["checkpoints"])
    assert "<svg" in plot.read_text() and "mathdefault" not in plot.read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["front.svg"]


def test_test_rows_are_never_ranked_on(checkpoints, table):
    config = checked({"data": str(table), "model": "auto"})
    ranking = rank(config, [str(checkpoints[0])], rows=1000)
    assert ranking.rows == 72  # 90 less a test part of a fifth
    assert ranking.verdict.endswith("is the only checkpoint that was tried.")
    metric = rank(config, [str(checkpoints[0])], rows=1000, metric="log_loss")
    assert metric.metric == "log_loss"
    console = Console(width=140, record=True, file=io.StringIO())
    console.print(as_table(ranking))
    shown = console.export_text()
    assert "95 % intervals" in shown


def test_what_exceeds_a_limit_is_left_out_and_said(monkeypatch, capsys, checkpoints, table):
    config = checked({"data": str(table), "model": "auto"})
    sizes = {c.name: c.bytes / 1e6 for c in rank(config, list(map(str, checkpoints)), rows=40).checkpoints}
    (small, least), (large, _) = sorted(sizes.items(), key=lambda item: item[1])
    arguments = ["rank", table, "--models", *checkpoints, "--rows", 40, "--json", "--max-mb", least]
    code, out, err = call(monkeypatch, capsys, *arguments)
    found = json.loads(out)
    assert (code, [c["name"] for c in found["checkpoints"]]) == (0, [small]), err
    assert found["left_out"][large].endswith(f"above --max-mb {least:g}")
    code, _, err = call(monkeypatch, capsys, "rank", table, "--models", small, "--rows", 40, "--max-ms", 0)
    assert code == 2 and "No checkpoint keeps the limits: " in err and "ms a row, above --max-ms 0" in err


@pytest.mark.parametrize("width", [80, 140])
def test_a_narrow_terminal_shows_the_names_whole(width):
    ranking = ranking_of({"starter/efficientnet-lite0": 0.9, "a": 0.5}, [3.0, 1.0])
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(as_table(ranking))
    lines = [line.split("│")[1].strip() for line in console.export_text().splitlines() if line.count("│") > 4]
    assert "".join(lines).startswith("starter/efficientnet-lite0")


def test_of_the_automatic_list_what_does_not_load_costs_a_line(monkeypatch, caplog, tmp_path, checkpoints, table):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{}")
    places = [reach.Reachable("broken", str(tmp_path / "broken")), reach.Reachable("good", str(checkpoints[0]))]
    monkeypatch.setattr("hftransfer.planning.checkpoints.ranking.reachable", lambda names: places)
    with caplog.at_level(logging.INFO):
        ranking = rank(checked({"data": str(table), "model": "auto"}), ["auto"], rows=40)
    assert [checkpoint.name for checkpoint in ranking.checkpoints] == ["good"]
    assert any(record.message.startswith("Skipped broken: ") for record in caplog.records)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ([], "Name the checkpoints with --models A B C, or let --candidates auto choose them: one of the two."),
        (["--candidates", "all"], "--candidates takes auto, found 'all'. Name checkpoints with --models."),
        (["--models", "starter/minilmm"], "Did you mean 'starter/minilm'?"),
        (["--models", "starter/minilm", "--plot", "front.pdf"], "expected a name ending in .png or .svg."),
        (["--models", "CHECKPOINT", "--metric", "acuracy"], "Did you mean 'accuracy'?"),
        (["--models", "CHECKPOINT", "--rows", "10", "data.label=label"], ""),
    ],
)
def test_mistakes(monkeypatch, capsys, checkpoints, table, arguments, words):
    arguments = [str(checkpoints[0]) if word == "CHECKPOINT" else word for word in arguments]
    code, _, err = call(monkeypatch, capsys, "rank", table, *arguments)
    assert (code == 2 and words in err) if words else code == 0, err


def test_an_unknown_metric_is_said_before_a_checkpoint_is_tried(monkeypatch, checkpoints, table):
    monkeypatch.setattr("hftransfer.planning.checkpoints.ranking._ranked", None)
    with pytest.raises(UserError, match="The metric 'acuracy' is not measured here. Did you mean 'accuracy'"):
        rank(checked({"data": str(table), "model": "auto"}), [str(checkpoints[0])], metric="acuracy")
