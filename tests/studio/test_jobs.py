"""Jobs of the studio: one at a time, known by their files alone, ended by Ctrl-C."""

import json
import os
import shutil
import signal
import sys
import time

import psutil
import pytest

from hftransfer.core.errors import UserError
from hftransfer.studio import jobs as module
from hftransfer.studio.jobs import Job, Jobs
from hftransfer.studio.progress import series, status_html


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """Jobs whose command is a small program: `python -c CODE` in place of `python -m hftransfer`."""
    popen = module.subprocess.Popen

    def started(command, **options):
        return popen([sys.executable, "-c", command[3]], **options)

    monkeypatch.setattr(module.subprocess, "Popen", started)
    # A shell that starts the tests in the background lets them, and what they start, ignore Ctrl-C.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    made = Jobs(tmp_path)
    yield made
    signal.signal(signal.SIGINT, ignored)
    for job in made.all():
        if job.running:
            os.kill(json.loads((job.folder / "job.json").read_text())["pid"], 9)


def until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


WAIT = "import time; print('ready', flush=True); time.sleep(60)"
STOPPABLE = """
import pathlib, time
try:
    print("ready", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    pathlib.Path("made").mkdir()
"""


def test_what_a_job_leaves_is_seen_by_another_studio(jobs, tmp_path):
    job = jobs.start(["import pathlib; pathlib.Path('made').mkdir(); print('\\x1b[31mred\\x1b[0m')"], tmp_path / "made")
    until(lambda: not job.running)
    found = Jobs(tmp_path).last
    assert (found.state, found.log(), found.folder) == ("done", ["red"], job.folder)
    assert found.seconds < 20 and "ended" not in status_html(found)


def test_one_job_at_a_time(jobs):
    job = jobs.start([WAIT])
    with pytest.raises(UserError, match="One job at a time: wait for `hftransfer 'import time"):
        jobs.start(["pass"])
    assert job.state == "running"
    until(lambda: job.log())
    job.stop()
    until(lambda: not job.running)
    assert jobs.start(["pass"]).folder.name == "00001"


def test_an_output_that_is_there_is_refused(jobs, tmp_path):
    (tmp_path / "made").mkdir()
    with pytest.raises(UserError, match="made exists already"):
        jobs.start(["pass"], tmp_path / "made")


def test_stop_is_ctrl_c_and_the_command_ends_as_it_does_in_a_terminal(jobs, tmp_path):
    job = jobs.start([STOPPABLE], tmp_path / "made")
    until(lambda: job.log() == ["ready"])
    job.stop()
    until(lambda: not job.running)
    assert job.state == "done"


def test_a_command_without_its_output_has_failed_and_its_error_is_shown(jobs, tmp_path):
    job = jobs.start(["print('Error: no <data>.')"], tmp_path / "made")
    until(lambda: not job.running)
    assert job.state == "failed" and "Error: no &lt;data&gt;." in status_html(job)
    job.stop()  # nothing to stop, nothing happens


def test_a_command_without_an_output_fails_by_a_traceback_too(jobs):
    job = jobs.start(["print('before\\n' * 30, flush=True); 1 / 0"])
    until(lambda: not job.running)
    assert job.state == "failed"
    assert len(job.log()) == module.LINES


def test_a_process_that_took_over_the_number_is_none_of_ours(tmp_path):
    folder = tmp_path / "runs" / ".studio" / "jobs" / "00000"
    folder.mkdir(parents=True)
    about = {"arguments": [], "output": None, "pid": os.getpid(), "created": psutil.Process().create_time() - 100}
    (folder / "job.json").write_text(json.dumps(about))
    (folder / "log.txt").write_text("")
    assert not Job(folder).running
    Job(folder).stop()  # this process goes on


def test_a_line_half_written_is_passed_over(tmp_path):
    (tmp_path / "progress.jsonl").write_text('{"phase": "train", "done": 1, "values": {}}\n{"phase": "tr')
    assert [line["done"] for line in Job(tmp_path).progress()] == [1]


def test_curves_begin_anew_with_a_further_training():
    line = lambda done, value: {"done": done, "values": {"loss": value}}  # noqa: E731
    assert series([line(1, 3.0), line(2, 2.0)]) == {"loss": [(1, 3.0), (2, 2.0)]}
    assert series([line(1, 3.0), line(2, 2.0), line(1, 1.0), line(2, None)]) == {"loss": [(1, 1.0)]}


@pytest.mark.slow
def test_a_training_is_stopped_with_its_best_weights_so_far(tmp_path):
    """The command itself: progress in the file, and a whole run after the stop."""
    from tests.support.runs import configuration

    config = configuration("full", "text", tmp_path / "data", max_steps=2000, evaluations=20)
    (tmp_path / "config.yaml").write_text(config.model_copy(update={"output": "runs/one"}).to_yaml())
    jobs = Jobs(tmp_path)
    job = jobs.start(["train", "config.yaml"], tmp_path / "runs" / "one")
    until(lambda: "loss" in series(job.progress()), 120)
    job.stop()
    until(lambda: not job.running, 120)
    assert job.state == "done" and "SIGINT" in (tmp_path / "runs" / "one" / "run.json").read_text()
    assert {"train"} <= {line["phase"] for line in job.progress()}
    shutil.rmtree(tmp_path / "runs")
