"""The demo: asked by its own client, by hostile uploads, by many at once, and in a browser."""

import html
import json
import re
import shutil
import tempfile
import tomllib
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gradio as gr
import numpy as np
import pandas as pd
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from hftransfer.apps import demo, uploads
from hftransfer.apps.demo import build_demo, launch
from hftransfer.apps.serving import serve
from hftransfer.apps.why import why_html
from hftransfer.core.errors import UserError
from hftransfer.modalities import kind_of
from hftransfer.prediction.predictor import load
from hftransfer.publish.hub import write_space
from hftransfer.runs.reader import RecordedRun

ROOT = Path(__file__).parents[2]
CASES = {"image": "probe", "second": "frozen", "text": "probe", "pair": "probe", "text-multi": "probe",
         "image-regression": "probe", "audio": "probe"}  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_run) -> dict[str, Path]:
    """Copies, since corrections are written beside them."""
    root = tmp_path_factory.mktemp("runs")
    folders = {name: tiny_run(strategy, "image" if name == "second" else name) for name, strategy in CASES.items()}
    return {name: Path(shutil.copytree(folder, root / folder.name)) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def addresses(runs):
    """Every run served; the image run together with the one to compare it with."""
    asked = {name: str(folder) for name, folder in runs.items() if name != "second"}
    served = {name: launch(path, wait=False) for name, path in asked.items() if name != "image"}
    served["image"] = launch([asked["image"], str(runs["second"])], wait=False)
    yield {name: url for name, (_, url) in served.items()}
    for app, _ in served.values():
        app.close()


@pytest.fixture(scope="module")
def clients(addresses) -> dict[str, Client]:
    return {name: Client(url, verbose=False) for name, url in addresses.items()}


def questions(folder: Path) -> pd.DataFrame:
    table = pd.read_parquet(folder / "splits.parquet")
    return table[table["split"] == "test"].head(3)


def refusal(client: Client, *arguments, api_name: str = "/predict") -> str:
    """What the page says to a question that it refuses; it has to answer the next one."""
    with pytest.raises(Exception) as raised:
        client.predict(*arguments, api_name=api_name)
    return str(raised.value)


def probabilities(answer: dict) -> dict[str, float]:
    return {entry["label"]: entry["confidence"] for entry in answer["confidences"]}


@pytest.mark.parametrize("kind", ["image", "audio", "text", "pair", "text-multi"])
def test_answers_are_those_of_the_run(runs, clients, kind):
    stored = pd.read_parquet(runs[kind] / "predictions.parquet").set_index("id")
    for row in questions(runs[kind]).to_dict("records"):
        asked = (
            [handle_file(row["input"])]
            if kind in ("image", "audio")
            else [row[c] for c in ("input", "input_pair") if c in row]
        )
        answer, remarks = clients[kind].predict(*asked, api_name="/predict")
        expected = {n.removeprefix("score:"): stored.loc[row["id"], n] for n in stored if n.startswith("score:")}
        assert probabilities(answer) == pytest.approx(expected, abs=1e-4)
        assert "confidence:" in remarks or "unlike" in remarks or kind == "text-multi"


def test_values_of_a_regression(runs, clients):
    row = questions(runs["image-regression"]).iloc[0]
    answer, _ = clients["image-regression"].predict(handle_file(row["input"]), api_name="/predict")
    stored = pd.read_parquet(runs["image-regression"] / "predictions.parquet").set_index("id")
    assert answer["headers"] == ["target", "value"]
    assert float(answer["data"][0][1]) == pytest.approx(stored.loc[row["id"], "score:label"], rel=1e-2, abs=1e-3)


def test_two_runs_side_by_side(runs, clients):
    picture = questions(runs["image"]).iloc[0]["input"]
    first, second, _ = clients["image"].predict(handle_file(picture), api_name="/compare")
    for answer, name in ((first, "image"), (second, "second")):
        table = load(runs[name], use_cpu=True).predict(picture)
        assert probabilities(answer)["red"] == pytest.approx(table.loc[0, "score:red"], abs=1e-4)
    assert probabilities(first) != probabilities(second)


def test_the_api_names_its_endpoints_and_arguments(clients):
    described = clients["pair"].view_api(return_format="dict")["named_endpoints"]
    assert set(described) == {"/predict", "/batch", "/wrong"}
    names = [argument["parameter_name"] for argument in described["/predict"]["parameters"]]
    assert names == ["text", "second_text"]
    assert "/compare" in clients["image"].view_api(return_format="dict")["named_endpoints"]


# --- batches ---------------------------------------------------------------------------------------------------------


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def test_batch_of_pictures_one_of_them_broken(runs, clients, tmp_path):
    pictures = {f"in/{number}.png": Path(p).read_bytes() for number, p in enumerate(questions(runs["image"])["input"])}
    sent = archive(tmp_path / "pictures.zip", pictures | {"in/broken.png": pictures["in/0.png"][:200], "in/a.txt": b""})
    csv, preview, said = clients["image"].predict(handle_file(sent), api_name="/batch")
    table = pd.read_csv(csv, keep_default_na=False).set_index("id")
    assert set(table.index) == {*pictures, "in/broken.png"}
    expected = load(runs["image"], use_cpu=True).predict(list(questions(runs["image"])["input"]))
    assert list(table.loc[list(pictures), "prediction"]) == list(expected["prediction"])
    assert table.loc["in/broken.png", "prediction"] == "" and table.loc["in/broken.png", "error"]
    assert said == "4 predictions. 1 without an answer: see the column `error`." and preview


def test_batch_of_texts_and_of_pairs(runs, clients, tmp_path):
    for kind, columns in (("text", ["text"]), ("pair", ["first", "second"])):
        rows = questions(runs[kind])
        asked = rows[[c for c in ("input", "input_pair") if c in rows]].set_axis(columns, axis=1)
        asked.assign(number=range(len(rows))).to_csv(tmp_path / "rows.csv", index=False)
        csv, _, said = clients[kind].predict(handle_file(tmp_path / "rows.csv"), api_name="/batch")
        stored = pd.read_parquet(runs[kind] / "predictions.parquet").set_index("id")
        assert list(pd.read_csv(csv)["prediction"]) == list(stored.loc[rows["id"], "prediction"])
        assert said == "3 predictions."


def test_batches_that_are_refused(runs, clients, tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_UNZIPPED", 2 * 2**20)  # half a gigabyte takes seconds to pack
    ask = lambda kind, file: refusal(clients[kind], handle_file(file), api_name="/batch")  # noqa: E731
    slip = archive(tmp_path / "slip.zip", {"../../escaped.png": b"x"})
    assert "points outside of the archive" in ask("image", slip)
    assert not list(tmp_path.parent.rglob("escaped.png"))
    bomb = archive(tmp_path / "bomb.zip", {"zeros.png": bytes(uploads.MAX_UNZIPPED + 1)})
    assert "larger than 2 MB when unpacked" in ask("image", bomb)
    (tmp_path / "no.zip").write_bytes(b"no zip")
    assert "Cannot unpack no.zip" in ask("image", tmp_path / "no.zip")
    assert "holds no image" in ask("image", archive(tmp_path / "none.zip", {"a.txt": b"a"}))
    (tmp_path / "server.csv").write_text(f"image\n{questions(runs['image']).iloc[0]['input']}\n")
    assert "Invalid file type" in ask("image", tmp_path / "server.csv")
    with pytest.raises(UserError, match="Expected a zip of images, found server.csv"):  # it names files of the server
        uploads.read_batch(str(tmp_path / "server.csv"), kind_of("image"), ("image",), tmp_path)
    (tmp_path / "wrong.csv").write_text('text\n"open\n')
    assert "wrong.csv cannot be read as a table" in ask("text", tmp_path / "wrong.csv")
    (tmp_path / "empty.csv").write_text("")
    assert "empty.csv" in ask("text", tmp_path / "empty.csv")
    (tmp_path / "header.csv").write_text("text,label\n")
    assert ask("text", tmp_path / "header.csv")
    (tmp_path / "long.csv").write_text("text\n" + "a" * 10**6 + "\n")
    assert "has more than 100,000 characters" in ask("text", tmp_path / "long.csv")
    (tmp_path / "one.csv").write_text("text\nalone\n")
    assert ask("pair", tmp_path / "one.csv")
    assert clients["text"].predict("still there", api_name="/predict")


# --- single uploads --------------------------------------------------------------------------------------------------


def test_pictures_that_are_refused(clients, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    said = refusal(clients["image"], handle_file(tmp_path / "text.png"))
    assert said == "Cannot read the image text.png: its content is no image that Pillow knows."
    (tmp_path / "empty.png").write_bytes(b"")
    assert "Cannot read the image empty.png" in refusal(clients["image"], handle_file(tmp_path / "empty.png"))
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    assert "10000 x 10000 = 100 million pixels; the limit is 64 million" in refusal(
        clients["image"], handle_file(tmp_path / "bomb.png")
    )
    Image.new("1", (20_000, 20_000)).save(tmp_path / "bigger.png")
    assert "more than 170 million pixels" in refusal(clients["image"], handle_file(tmp_path / "bigger.png"))
    assert "Choose an image first" in refusal(clients["image"], None)


def test_a_large_picture_is_refused_without_decoding_it(tmp_path, monkeypatch):
    Image.new("1", (10_000, 10_000)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image.Image, "load", lambda *_: pytest.fail("decoded"))
    with pytest.raises(UserError, match="100 million pixels"):
        uploads.check_image(tmp_path / "bomb.png")


def test_of_an_animation_the_first_frame_is_taken_and_said(runs, clients, tmp_path):
    still = Image.open(questions(runs["image"]).iloc[0]["input"]).convert("RGB").quantize()
    other = Image.new("RGB", still.size, "white").quantize()
    still.save(tmp_path / "still.gif")
    still.save(tmp_path / "moving.gif", save_all=True, append_images=[other, still])
    alone, nothing = clients["image"].predict(handle_file(tmp_path / "still.gif"), api_name="/predict")
    answer, remarks = clients["image"].predict(handle_file(tmp_path / "moving.gif"), api_name="/predict")
    assert probabilities(answer) == pytest.approx(probabilities(alone), abs=1e-5)
    assert "only the first was looked at" in remarks and "frames" not in nothing


def test_texts_that_are_refused(clients):
    assert refusal(clients["text"], " \n") == "There is no text: write one first."
    assert "1,000,000 characters; the limit is 100,000" in refusal(clients["text"], "a" * 10**6)
    assert refusal(clients["pair"], "one", "") == "There is no text: write one first."


def test_files_of_the_server_cannot_be_read(runs, addresses):
    import httpx

    secret = runs["text"] / "run.json"
    assert httpx.get(f"{addresses['text']}gradio_api/file={secret}").status_code == 403
    own = {"path": questions(runs["image"]).iloc[0]["input"], "meta": {"_type": "gradio.FileData"}}
    calls = f"{addresses['image']}gradio_api/call/predict"
    event = httpx.post(calls, json={"data": [own]}).json()["event_id"]
    said = httpx.get(f"{calls}/{event}", timeout=60).text
    assert "event: error" in said and "confidences" not in said


# --- corrections and the page ----------------------------------------------------------------------------------------


def test_corrections_are_kept_beside_the_run(runs, clients):
    picture = Path(questions(runs["image"]).iloc[0]["input"])
    before = sorted(path.name for path in runs["image"].iterdir())
    clients["image"].predict(handle_file(picture), "green", api_name="/wrong")
    clients["text"].predict("a <b>text</b>", "topic1", api_name="/wrong")
    assert sorted(path.name for path in runs["image"].iterdir()) == before
    patch = runs["image"].parent / "image-probe.corrections.jsonl"
    kept = json.loads(patch.read_text().splitlines()[-1])
    assert kept["label"] == "green" and (patch.parent / kept["input"]).read_bytes() == picture.read_bytes()
    text = json.loads((runs["text"].parent / "text-probe.corrections.jsonl").read_text())
    assert {"input": "a <b>text</b>", "label": "topic1"}.items() <= text.items()
    assert "Say what is right first" in refusal(clients["text"], "a text", None, api_name="/wrong")
    regression = clients["image-regression"]
    assert "Expected numbers" in refusal(regression, handle_file(picture), "much", api_name="/wrong")
    regression.predict(handle_file(picture), "0.5", api_name="/wrong")


@pytest.mark.parametrize("limit, value", [("MAX_CORRECTIONS", 1), ("MAX_BYTES", 100)])
def test_corrections_end_before_the_disk_is_full(runs, clients, monkeypatch, limit, value):
    picture = handle_file(questions(runs["image"]).iloc[0]["input"])
    clients["image"].predict(picture, "green", api_name="/wrong")
    monkeypatch.setattr(f"hftransfer.apps.corrections.{limit}", value)
    place = runs["image"].parent / "image-probe.corrections"
    before = len(list(place.iterdir()))
    assert "is full" in refusal(clients["image"], picture, "green", api_name="/wrong")
    assert len(list(place.iterdir())) == before


def test_names_are_escaped(runs, tmp_path):
    folder = shutil.copytree(runs["text"], tmp_path / "<img src=x onerror=alert(1)>")
    for block in build_demo(str(folder)).blocks.values():
        if isinstance(block, gr.HTML):
            assert "<img" not in str(block.value)


def reason(model, row: dict) -> str:
    """What the page shows when it is asked why."""
    return why_html(model, pd.DataFrame([{"id": ""} | {c: row[c] for c in ("input", "input_pair") if c in row}]))


@pytest.mark.parametrize("kind", ["image", "audio", "text", "pair", "text-multi", "image-regression"])
def test_why_shows_what_spoke_for_the_answer_and_rows_like_it(runs, kind):
    model = serve(runs[kind])
    row = questions(runs[kind]).iloc[0].to_dict()
    page = reason(model, row)
    if kind.startswith(("image", "audio")):
        assert "data:image/png;base64," in page and ("Moments that spoke" in page) == (kind == "audio")
    else:
        words = re.search(r'<div class="words">(.*?)</div>', page, flags=re.S)[1]
        assert html.unescape(re.sub("<[^>]+>", "", words)) == " ‖ ".join(
            row[c] for c in ("input", "input_pair") if c in row
        )
    assert page.count("<figcaption>labelled") == (0 if kind == "image-regression" else 3)


def test_the_nearest_example_of_a_training_row_is_that_row(runs):
    model = serve(runs["text"])
    table = pd.read_parquet(runs["text"] / "splits.parquet").query("split == 'train'")
    found = [model.nearest(table.iloc[[number]])[0]["id"] for number in range(5)]
    assert found == table["id"].tolist()[:5]


def test_examples_are_shown_as_text_and_only_where_they_may_be(runs, tmp_path):
    folder = shutil.copytree(runs["text"], tmp_path / "evil")
    table = pd.read_parquet(folder / "splits.parquet")
    table["input"] = "<img src=x onerror=alert(1)>" + table["input"]
    table["label"] = "<b>" + table["label"]
    table.to_parquet(folder / "splits.parquet")
    page = reason(serve(folder), {"input": "goal <img src=x>"})
    assert "<img" not in page and "<b>topic" not in page.replace("<b>&lt;b&gt;topic", "") and "&lt;img src=x" in page
    assert "labelled" not in reason(serve(folder, examples=False), {"input": "goal"})
    write_space(RecordedRun.open(runs["image"]), tmp_path / "space", "owner/demo")
    assert serve(tmp_path / "space" / "model").examples == {}
    gone = pd.read_parquet(shutil.copytree(runs["image"], tmp_path / "moved") / "splits.parquet")
    gone.assign(input="/nowhere/" + gone["id"]).to_parquet(tmp_path / "moved" / "splits.parquet")
    assert "labelled" not in reason(serve(tmp_path / "moved"), questions(runs["image"]).iloc[0].to_dict())


def test_report_stands_in_a_frame_that_runs_nothing(runs, tmp_path):
    folder = shutil.copytree(runs["text"], tmp_path / "reported")
    (folder / "report.html").write_text("<p title=\"a\">fine</p><script>alert('x')</script>")
    app = build_demo(str(folder))
    page = next(fn.fn for fn in app.fns.values() if fn.fn and fn.fn.__name__ == "page")()
    assert re.match(r'<iframe [^>]*sandbox srcdoc="[^"<>]*"></iframe>$', page)


def test_public_link_has_no_report(runs, tmp_path):
    """The report quotes training and test rows."""
    folder = shutil.copytree(runs["text"], tmp_path / "reported")
    (folder / "report.html").write_text("a training row")
    tabs = lambda app: [block.label for block in app.blocks.values() if isinstance(block, gr.Tab)]  # noqa: E731
    assert "Report" in tabs(build_demo(str(folder)))
    assert tabs(build_demo(str(folder), examples=False)) == ["Predict", "Batch"]


def test_large_tables_are_refused_before_they_are_parsed(tmp_path, monkeypatch):
    monkeypatch.setattr(uploads, "load_inputs", lambda *arguments: pytest.fail("parsed"))
    tables = {"rows.csv": "x\n" * 10**6, "rows.jsonl": "{}\n" * 10**6, "wide.csv": "text\n" + "x" * (11 * 2**20)}
    for name, content in tables.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError, match="more than 2,000 rows|larger than 10 MB"):
            uploads.read_batch(str(tmp_path / name), kind_of("text"), ["text"], tmp_path)


def test_lines_inside_of_cells_are_no_rows(tmp_path):
    cell = '"' + "line\n" * 50 + '"\n'
    (tmp_path / "poems.csv").write_text("text\n" + cell * 100)
    assert len(uploads.read_batch(str(tmp_path / "poems.csv"), kind_of("text"), ["text"], tmp_path)) == 100


def test_large_pictures_are_decoded_a_few_at_a_time(runs, tmp_path, monkeypatch):
    """Sixteen flat PNGs of 64 million pixels took 7 GB; their zip is a megabyte."""
    model = serve(runs["image"])
    for number in range(5):
        Image.new("RGB", (200, 100)).save(tmp_path / f"{number}.png")
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as archive:
        for number in range(5):
            archive.write(tmp_path / f"{number}.png", f"{number}.png")
    (tmp_path / "place").mkdir()
    frame = uploads.read_batch(str(tmp_path / "flat.zip"), kind_of("image"), model.columns, tmp_path / "place")
    monkeypatch.setattr(uploads, "MAX_PIXELS", 45_000)
    sizes = [len(table) for table in demo._chunks(model, frame, lambda *arguments, **options: None)]
    assert sizes == [2, 2, 1]
    monkeypatch.setattr(uploads, "MAX_BATCH_PIXELS", 99_999)
    with pytest.raises(UserError, match=r"flat.zip have more than .* pixels together. Send them in parts, or smaller"):
        uploads.read_batch(str(tmp_path / "flat.zip"), kind_of("image"), model.columns, tmp_path / "place")


def test_batch_results_do_not_pile_up(clients, tmp_path):
    (tmp_path / "a.csv").write_text("text\na goal in the last minute\n")
    for _ in range(3):
        clients["text"].predict(handle_file(tmp_path / "a.csv"), api_name="/batch")
    made = [folder for folder in Path(tempfile.gettempdir()).glob("hftransfer-demo-*")]
    assert made and all(len(list(folder.iterdir())) <= 1 for folder in made if folder.owner() == tmp_path.owner())


def test_folders_that_cannot_be_shown(runs, tmp_path):
    with pytest.raises(UserError, match="take different inputs"):
        build_demo([str(runs["text"]), str(runs["pair"])])
    with pytest.raises(UserError, match="one run, or compares two; found 3"):
        build_demo([str(runs["text"])] * 3)
    with pytest.raises(UserError, match="There is no run"):
        build_demo(str(tmp_path / "nothing"))


def test_limits_are_set(addresses, runs):
    app, _ = launch(str(runs["text"]), wait=False)
    assert app.max_file_size == 100 * 2**20 or app.max_file_size == 100 * 10**6
    assert app.allowed_paths == [] and app.max_threads <= 40
    assert app._queue.max_size and app._queue.default_concurrency_limit == 4
    app.close()


# --- the Space -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pair", "image"])
def test_space_folder_answers_like_the_run(runs, tmp_path, kind):
    write_space(RecordedRun.open(runs[kind]), tmp_path / "space", "owner/demo")
    names = {path.name for path in (tmp_path / "space").iterdir()}
    assert names == {"app.py", "requirements.txt", "README.md", "hftransfer", "model"}
    space, own = serve(tmp_path / "space" / "model"), serve(runs[kind])
    assert space.name == own.name
    rows = questions(runs[kind])
    assert len(space.columns) == len(own.columns) and np.allclose(space.ask(rows)[0], own.ask(rows)[0], atol=1e-6)
    assert "set" in space.ask(rows)[1]


def test_space_requires_what_the_package_requires():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = (ROOT / "spaces_app" / "requirements.txt").read_text().split("\n")
    assert set(project["dependencies"]) <= set(required)


# --- many at once, and a browser -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_fifty_at_once(addresses):
    clients = [Client(addresses["text"], verbose=False) for _ in range(50)]
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda c: c.predict("the same for all", api_name="/predict")[0], clients))
    assert all(probabilities(answer) == pytest.approx(probabilities(answers[0]), abs=1e-6) for answer in answers)


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
def test_in_a_browser(browser, addresses, runs, width, scheme, tmp_path):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    strange = []
    page.on(
        "request",
        lambda r: strange.append(r.url) if not r.url.startswith((addresses["image"], "data:", "blob:")) else 0,
    )
    page.goto(addresses["image"])
    page.locator("input[type=file]").first.set_input_files(questions(runs["image"]).iloc[0]["input"])
    page.get_by_text("confidence:").wait_for(timeout=30_000)
    page.get_by_text("Why?").click()
    page.get_by_text("Show what led to the answer").click()
    page.get_by_text("Most similar training examples").wait_for(timeout=30_000)
    assert page.locator(".why figure img").count() == 4
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    (tmp_path / "no.png").write_text("no picture")
    page.reload()
    page.locator("input[type=file]").first.set_input_files(tmp_path / "no.png")
    page.get_by_text("Cannot read the image no.png").wait_for(timeout=30_000)
    assert not strange  # fonts, counters: nothing comes from elsewhere
    page.close()


@pytest.mark.slow
def test_by_keyboard_alone(browser, addresses):
    page = browser.new_page()
    page.goto(addresses["text"])
    box = page.get_by_label("Text").first
    box.wait_for()
    while not box.evaluate("element => element === document.activeElement"):
        page.keyboard.press("Tab")
    page.keyboard.type("only keys")
    page.keyboard.press("Shift+Enter")
    page.get_by_text("topic1").first.wait_for(timeout=30_000)
    page.close()
