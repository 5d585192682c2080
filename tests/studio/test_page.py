"""The studio in a browser: on a phone and on a desk, by keyboard, and closed while it trains."""

import shutil
import time

import httpx
import pytest

from hftransfer.core.errors import UserError
from hftransfer.studio.page import build_studio, launch
from tests.support import tiny


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny_run):
    """A folder with images, a checkpoint, and the run of another day."""
    root = tmp_path_factory.mktemp("studio")
    tiny.image_folder(root / "shapes", per_class=8)
    tiny.VISION_FAMILIES["timm-resnet"](root / "tiny-resnet")
    shutil.copytree(tiny_run("probe", "image"), root / "runs" / "earlier")
    return root


@pytest.fixture(scope="module")
def address(root):
    app, url = launch(root, wait=False)
    yield url
    app.close()


def opened(browser, address, width=1440, scheme="light"):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    strange = []
    own = (address, "data:", "blob:")
    page.on("request", lambda request: strange.append(request.url) if not request.url.startswith(own) else None)
    page.goto(address)
    page.locator("#data input").wait_for()
    page.wait_for_function("document.querySelector('#data input').value == 'shapes'")
    return page, strange


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="There is no folder"):
        build_studio(tmp_path / "nothing")


def test_answers_to_this_machine_alone_whatever_the_environment_says(root, monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")
    app, url = launch(root, wait=False)
    with httpx.Client(trust_env=False) as client:
        assert app.server_name == "127.0.0.1" and client.get(url).status_code == 200
        assert client.get(url, headers={"Host": "evil.example"}).status_code == 400
        assert client.post(f"{url}gradio_api/call/x", headers={"Origin": "http://evil.example"}).status_code == 400
    app.close()


def test_data_and_result_on_a_phone(browser, address):
    page, strange = opened(browser, address, 390, "dark")
    page.locator("#look").click()
    page.get_by_text("24 images", exact=True).wait_for(timeout=20_000)
    assert page.locator("table.classes tr").count() == 3
    page.get_by_role("tab", name="Result").click()
    page.locator(".headline-result").get_by_text("accuracy").wait_for()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not strange
    page.close()


@pytest.mark.slow
def test_a_training_goes_on_while_the_page_is_closed(browser, address, root):
    page, _ = opened(browser, address)
    page.get_by_role("tab", name="Train").click()
    page.get_by_label("Checkpoint").fill("tiny-resnet")
    page.get_by_label("Checkpoint").press("Enter")
    page.get_by_label("Name of the run").fill("mine")
    page.locator("#train").click()
    page.locator(".state.running").wait_for(timeout=20_000)
    page.close()
    page, _ = opened(browser, address)
    page.get_by_role("tab", name="Train").click()
    page.locator(".state.running, .state.done").first.wait_for()
    page.locator(".state.done").wait_for(timeout=120_000)
    assert (root / "runs" / "mine" / "run.json").is_file()
    page.get_by_role("tab", name="Result").click()
    page.wait_for_function("document.querySelector('#run input').value == 'mine'")
    page.get_by_role("tab", name="Try it").click()
    page.locator("#load").click()
    page.locator("input[type=file]").last.set_input_files(next((root / "shapes" / "red").iterdir()))
    page.get_by_text("confidence").first.wait_for(timeout=30_000)
    page.close()


@pytest.mark.slow
def test_stop_ends_a_training(browser, address, root):
    page, _ = opened(browser, address)
    page.get_by_role("tab", name="Train").click()
    page.get_by_label("Name of the run").fill("stopped")
    page.locator("#train").click()
    page.locator("#stop:not([disabled])").click()
    page.locator(".state.failed").wait_for(timeout=60_000)
    assert not (root / "runs" / "stopped").exists()
    page.close()


@pytest.mark.slow
def test_by_keyboard_alone(browser, address):
    page, _ = opened(browser, address)
    end = time.monotonic() + 20
    while not page.evaluate("document.activeElement.id == 'look'"):
        page.keyboard.press("Tab")
        assert time.monotonic() < end
    page.keyboard.press("Enter")
    page.get_by_text("24 images", exact=True).wait_for(timeout=20_000)
    page.close()


@pytest.mark.slow
def test_labels_and_the_map(browser, address, root):
    """A point of the map is relabelled, and an uncertain example gets its label: two lines of one patch."""
    tiny.image_folder(root / "new" / "pool", per_class=2, size=40)
    page, strange = opened(browser, address, 390)
    page.get_by_role("tab", name="Label", exact=True).click()
    page.get_by_label("Run", exact=True).last.click()
    page.get_by_role("option", name="earlier").click()
    page.get_by_role("tab", name="Map").click()
    page.locator("#draw").click()
    page.locator("svg.map circle").nth(3).click(force=True, timeout=30_000)
    page.wait_for_function("document.querySelector('#point input[type=number]').value == 4")
    page.get_by_label("Right label").click()
    page.get_by_role("option", name="blue").click()
    page.locator("#relabel-point").click()
    page.get_by_text("kept in earlier.patch.jsonl").wait_for()
    page.get_by_role("tab", name="Uncertain").click()
    page.locator("#pool textarea, #pool input").first.fill("new/pool")
    page.locator("#choose").click()
    page.locator("#labels label").first.click(timeout=60_000)
    page.locator("#keep-label").click()
    page.get_by_text("5 to label").wait_for(timeout=20_000)
    assert len((root / "runs" / "earlier.patch.jsonl").read_text().splitlines()) == 2
    assert page.evaluate("document.documentElement.scrollWidth") <= 390 and not strange
    page.close()
