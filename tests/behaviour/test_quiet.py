"""What a command says by default, and what `-v` adds."""

import logging
import sys

import pandas as pd
import pytest

from hftransfer.cli.commands import main
from hftransfer.core.terminal import show_log
from hftransfer.pipeline import summary
from hftransfer.runs.record import MetricsRecord
from tests.support import tiny
from tests.support.runs import configuration


def call(monkeypatch, capsys, *arguments):
    """(standard output, standard error) of a command that succeeds, in this process."""
    monkeypatch.setattr(sys, "argv", ["hftransfer", *map(str, arguments)])
    capsys.readouterr()  # of fixtures
    with pytest.raises(SystemExit) as ended:
        main()
    output = capsys.readouterr()
    assert not ended.value.code, output.err
    return output.out, output.err


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Texts with a copy: something to warn of."""
    path = tiny.text_table(tmp_path_factory.mktemp("quiet") / "texts.csv", rows=60)
    rows = pd.read_csv(path)
    pd.concat([rows, rows.head(1)]).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.TEXT_FAMILIES["bert"](tmp_path_factory.mktemp("model") / "bert")


def test_a_run_says_ten_lines_at_most_and_everything_with_v(monkeypatch, capsys, tmp_path, table, model):
    command = ["train", table, "--model", model, "evaluation.folds=0", "evaluation.explanations=false"]
    out, err = call(monkeypatch, capsys, *command, "--output", tmp_path / "a")
    assert err.splitlines() == [
        f"Data: 61 texts from {table} (input 'text', label 'label').",
        "Task: single label, 3 classes (topic0, topic1, topic2). Split: 40 train, 9 validation, 12 test.",
        f"WARNING duplicate: Rows with an equal input elsewhere: 2 (groups: 1). (hftransfer doctor {table} shows more)",
        f"Strategy: probe on {model}, 99 of 43075 parameters train (0.23 %), the lowest in head.",
    ]
    folder = tmp_path / "a"
    assert out.splitlines() == summary.result_lines(folder, MetricsRecord.read(folder))
    assert len((out + err).splitlines()) <= 10
    assert out.startswith("Result: test accuracy ") and f"hftransfer predict {folder} INPUTS" in out

    more_out, more_err = call(monkeypatch, capsys, *command, "--output", tmp_path / "b", "-v")
    for words in ("Process 1 of 1", "Device:", "Task single_label with 3 outputs", "→ ", "Linear probe", "Self-check"):
        assert words in more_err and words not in err
    own = [line.split(" (hftransfer doctor")[0] for line in err.splitlines()]
    assert set(own) <= set(more_err.splitlines())
    assert "balanced_accuracy" in more_out and "balanced_accuracy" not in out


@pytest.mark.parametrize("arguments", [("predict", "RUN", "goal match team"), ("evaluate", "RUN"), ("doctor", "TABLE")])
def test_other_commands_say_their_result_alone(monkeypatch, capsys, tiny_run, table, arguments):
    places = {"RUN": tiny_run("probe", "text"), "TABLE": table}
    arguments = [places.get(word, word) for word in arguments]
    out, err = call(monkeypatch, capsys, *arguments)
    assert out and err == ""


def test_predict_says_more_with_v(monkeypatch, capsys, tiny_run):
    assert "Device:" in call(monkeypatch, capsys, "predict", tiny_run("probe", "text"), "goal", "-v")[1]


class Finding:
    def __init__(self, severity, id_):
        self.severity, self.id = severity, id_

    def as_text(self, most):
        return f"{self.severity.upper()} {self.id}: words\n    row"


def shown(capsys, details, log_all):
    """Lines that reach the terminal."""
    logger = logging.getLogger("hftransfer")
    before, level = logger.handlers, logger.level
    capsys.readouterr()  # of fixtures
    try:
        show_log(details)
        logger.setLevel(logging.INFO)
        log_all()
    finally:
        logger.handlers = before
        logger.setLevel(level)
    return capsys.readouterr().err.splitlines()


def test_many_findings_are_counted_and_errors_come_first(capsys, tmp_path):
    config = configuration("probe", "text", tmp_path)
    found = [*(Finding("warning", f"w{n}") for n in range(5)), Finding("note", "n"), Finding("error", "e")]
    command = f"hftransfer doctor {config.data.train}"
    brief = shown(capsys, False, lambda: summary.log_findings(config, found))
    assert brief == [
        f"ERROR e: words ({command} shows more)",
        f"WARNING w0: words ({command} shows more)",
        f"WARNING w1: words ({command} shows more)",
        f"Findings that are not shown: 3 ({command} shows them).",
    ]
    detailed = shown(capsys, True, lambda: summary.log_findings(config, found))
    assert sum(line.startswith(("ERROR", "WARNING")) for line in detailed) == 6 and "    row" in detailed


def test_a_repeated_warning_is_shown_once_and_a_long_one_by_its_first_line(capsys):
    log = logging.getLogger("hftransfer.data")

    def log_all():
        for _ in range(3):
            log.warning("%d examples are left out:\n  a\n  b", 2)
            log.info("a detail")

    assert shown(capsys, False, log_all) == ["2 examples are left out: (-v shows more)"]
    assert shown(capsys, True, log_all) == ["2 examples are left out:", "  a", "  b", "a detail"] * 3


def test_folds_say_nothing_of_their_own(capsys):
    def log_all():
        with summary.silent():
            summary.log.info("of a fold")
        summary.log.info("of the run")

    assert shown(capsys, False, log_all) == ["of the run"]
