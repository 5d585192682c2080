"""One thread, no network, a feature store of its own: before torch is imported."""

import gc
import os
import shutil
import tempfile
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from hftransfer.runtime.devices import collect_seldom

os.environ["OMP_NUM_THREADS"] = "1"  # tiny networks gain nothing from more, and two processes would fight
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HFTRANSFER_CACHE"] = tempfile.mkdtemp(prefix="hftransfer-tests-")
os.environ.pop("HFTRANSFER_MALLOPT", None)
collect_seldom()


# Files that share what takes long to begin, and that one worker does together: the server that runs are forked from
# (tests/support/processes.py, ten seconds), and the exporter of torch with its library of operators.
TOGETHER = {
    "forked": ("training/test_trainer.py", "test_survival.py", "test_several_processes.py", "test_divided_networks.py"),
    "exported": ("publish/test_export.py", "test_round_trip.py", "tasks/test_tokens.py", "test_audio_commands.py"),
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With `--dist loadfile`, files that go together are handed out as one."""
    if config.getvalue("dist") != "loadfile":
        return None
    from xdist.scheduler.loadfile import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid):
            file = super()._split_scope(nodeid)
            return next((group for group, files in TOGETHER.items() if file.endswith(files)), file)

    return Together(config, log)


def pytest_unconfigure():
    shutil.rmtree(os.environ["HFTRANSFER_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def no_repeated_headline():
    """The headline of small sets is cross-validated, which every run here would pay seconds for: test_repeats asks for it."""
    from hftransfer.pipeline import repeats

    repeats.HEADLINE_BELOW = 0


@pytest.fixture(scope="session", autouse=True)
def few_penalties():
    """A head is solved once for each penalty and fold, which is half of the rest: every third penalty is tried."""
    from hftransfer.probe import solver

    all_of_them = solver.SEARCHED
    solver.SEARCHED = {name: penalties[::3] for name, penalties in all_of_them.items()}
    return all_of_them


@pytest.fixture
def all_penalties(few_penalties, monkeypatch):
    """Penalties as users have them."""
    from hftransfer.probe import solver

    monkeypatch.setattr(solver, "SEARCHED", few_penalties)


@pytest.fixture(scope="session", autouse=True)
def write_pages():
    """Report and card are a quarter of a tiny run, and left out: tests ask for `pages`, or call this with a folder."""
    from hftransfer.pipeline import outputs

    write = outputs.write_pages
    outputs.write_pages = lambda folder: None
    return write


@pytest.fixture
def pages(write_pages, monkeypatch):
    """Runs end with their pages, as for users."""
    from hftransfer.pipeline import outputs

    monkeypatch.setattr(outputs, "write_pages", write_pages)


@pytest.fixture(scope="session", autouse=True)
def empty_plots():
    """Plots are most of the time that the pages of a tiny run take: tests that look at them ask for `drawn_plots`."""
    from hftransfer.report import plots
    from tests.support.runs import empty_plot

    drawn = plots._svg
    plots._svg = empty_plot
    return drawn


@pytest.fixture
def drawn_plots(empty_plots, monkeypatch):
    """Pages as users have them."""
    from hftransfer.report import plots

    monkeypatch.setattr(plots, "_svg", empty_plots)


@pytest.fixture(scope="module", autouse=True)
def nothing_to_collect():
    """Every training collects garbage, which takes half a second over the million objects of the libraries: they stay."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory, write_pages):
    """Complete runs that are only read: `tiny_run("probe", "text")`, trained once for all workers."""
    from tests.support.runs import SharedRuns

    base = tmp_path_factory.getbasetemp()
    root = Path(base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "tiny-runs"
    return SharedRuns(root, write_pages)


@pytest.fixture
def unchecked(monkeypatch):
    """Runs end without the check of the saved model, a sixth of a tiny run: for tests of other things that train often."""
    from hftransfer.pipeline import outputs

    monkeypatch.setattr(outputs, "check_saved_model", lambda *_: {"examples": 0})


@pytest.fixture
def forked_programs(monkeypatch):
    """Forms of a saved model are asked in processes that begin at once: `test_fresh_process` has a real one."""
    from hftransfer.publish import round_trip
    from tests.support.fork_server import run_python

    monkeypatch.setattr(round_trip, "subprocess", SimpleNamespace(run=partial(run_python, ready=True)))


@pytest.fixture(scope="session")
def browser():
    """Chromium, where it and playwright are installed."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        pytest.skip("Chromium is not installed")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()
