"""One thread, no network, a feature store of its own: before torch is imported."""

import os
import shutil
import tempfile

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # tiny networks gain nothing from more, and two processes would fight
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HFTRANSFER_CACHE"] = tempfile.mkdtemp(prefix="hftransfer-tests-")
os.environ.pop("HFTRANSFER_MALLOPT", None)


def pytest_unconfigure():
    shutil.rmtree(os.environ["HFTRANSFER_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def no_repeated_headline():
    """The headline of small sets is cross-validated, which every run here would pay seconds for: test_repeats asks for it."""
    from hftransfer.pipeline import repeats

    repeats.HEADLINE_BELOW = 0


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
