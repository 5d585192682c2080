"""The label loop: what is shown first, what a key writes, and nothing shown that the data could turn into a page."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hftransfer.apps.review.page import ALL, Review, build_review, end_html, item_html, launch, progress_html
from hftransfer.core.errors import UserError
from hftransfer.data.patch import read_patch
from hftransfer.report import write_report
from tests.support.run_folders import MULTI, VALUES, make_run

EVIL = "<img src=x onerror=alert(1)>"


def rewrite(run, file, column, values):
    """Change a column of a run's table by id."""
    table = pd.read_parquet(run / file).set_index("id", drop=False)
    for row, value in values.items():
        table.at[row, column] = value
    table.reset_index(drop=True).to_parquet(run / file)


def distinct(run):
    """The same run with texts that have nothing in common."""
    table, rng = pd.read_parquet(run / "splits.parquet"), np.random.default_rng(0)
    letters = rng.choice(list("abcdefghijklmnopqrst"), size=(len(table), 60))
    table.assign(input=["".join(row) for row in letters]).to_parquet(run / "splits.parquet")
    return run


def of_kind(review, kind):
    return [review.items[place] for place in review.places(kind)]


@pytest.fixture
def run(tmp_path):
    """Eight labels are wrong; row 40 and 41 hold one text under two labels."""
    run = distinct(make_run(tmp_path / "pets", mislabelled=8, signal=2.5))
    rewrite(run, "splits.parquet", "input", {"row-0040": "one and the same text", "row-0041": "One and the same text!"})
    for file in ("splits.parquet", "oof.parquet"):
        rewrite(run, file, "label", {"row-0040": "sport", "row-0041": "tech"})
    return run


def test_planted_errors_come_first(run):
    shown = [item.rows[0].id for item in of_kind(Review(run), "label errors")]
    planted = {f"row-{number:04d}" for number in range(8)}
    assert len(planted & set(shown)) >= 6
    assert len(planted & set(shown[:12])) >= 5
    assert len(shown) == len(set(shown))


def test_contradicting_copies_stand_side_by_side(run):
    (item,) = [item for item in of_kind(Review(run), "copies") if item.rows[0].id == "row-0040"]
    assert [row.id for row in item.rows] == ["row-0040", "row-0041"]
    assert item.why == "Nearly the same input bears different labels: sport and tech"
    assert {label for label, _ in item.choices[:2]} == {"sport", "tech"}


def test_confused_pairs_are_the_most_frequent_ones(tmp_path):
    run = distinct(make_run(tmp_path / "a", signal=1.5))
    items = of_kind(Review(run), "confused")
    assert items and all("are confused in" in item.why for item in items)
    counts = [int(item.why.split("confused in ")[1].split()[0]) for item in items]
    assert counts == sorted(counts, reverse=True)


def test_each_answer_is_a_line_and_undo_takes_it_back(run):
    review = Review(run)
    (copies,) = [place for place in review.places("copies") if review.items[place].rows[0].id == "row-0040"]
    assert review.decide(copies, "relabel", "sport")
    lines = read_patch(run.parent / "pets.patch.jsonl")
    assert [(line.action, line.id, line.label) for line in lines] == [
        ("keep", "row-0040", None),
        ("relabel", "row-0041", "sport"),
    ]
    review.decide(copies, "undo")
    assert not review.decisions()
    review.decide(copies, "group")
    assert {line.group for line in read_patch(review.patch)[-2:]} == {"copies of row-0040"}
    first = review.places("label errors")[0]
    for action in ("keep", "drop"):
        review.decide(first, action)
        assert review.decisions()[review.items[first].rows[0].id][0].action == action
    assert all(line.when and (line.digest or line.action == "undo") for line in read_patch(review.patch))


def test_answers_that_do_not_apply_write_nothing(run):
    review = Review(run)
    first = review.places("label errors")[0]
    assert not review.decide(first, "group") and not review.decide(first, "relabel", None)
    assert not review.patch.exists()


def test_the_next_question_is_one_without_an_answer(run):
    review = Review(run)
    assert review.next(-1, ALL) == 0
    review.decide(1, "keep")
    assert review.next(0, ALL) == 2
    assert review.next(len(review.items) - 1, ALL) == 0
    assert review.step(0, ALL, -1) == len(review.items) - 1
    assert "1 of" in progress_html(review, ALL) and f"of {len(review.items)} decided" in progress_html(review, ALL)
    assert Review(run).next(0, ALL) == 2  # the patch remembers, not the page


def test_a_run_of_a_patch_continues_that_patch(run):
    review = Review(run)
    review.decide(0, "keep")
    again = make_run(run.parent / "pets-2", mislabelled=8, signal=2.0)
    assert Review(again).patch.name == "pets-2.patch.jsonl"
    (again / "config.yaml").write_text(f"data:\n  train: data\n  patch: {review.patch}\n")
    assert Review(again).patch == review.patch


def test_corrections_of_the_demo_become_new_rows(tmp_path):
    run = make_run(tmp_path / "pets", modality="image")
    place = tmp_path / "pets.corrections"
    place.mkdir()
    Image.new("RGB", (60, 60), "red").save(place / "1.png")
    Image.new("RGB", (60, 60), "red").save(tmp_path.parent / "outside.png")
    given = [
        {"input": path, "prediction": "tech", "label": "sport"} for path in ("pets.corrections/1.png", "../outside.png")
    ]
    (tmp_path / "pets.corrections.jsonl").write_text("\n".join(map(json.dumps, given)))
    review = Review(run)
    (number,) = review.places("corrections")
    assert review.decide(number, "relabel", "sport") and not review.decide(number, "keep")
    (line,) = read_patch(review.patch)
    assert (line.action, line.input, line.label) == ("add", "pets.corrections/1.png", "sport")
    assert "data:image/jpeg" in item_html(review, number)


def test_a_correction_with_other_line_ends_is_one_question(tmp_path):
    run = make_run(tmp_path / "texts")
    given = {"input": "first\u2028second\x85third", "prediction": "tech", "label": "sport"}
    (tmp_path / "texts.corrections.jsonl").write_text(json.dumps(given, ensure_ascii=False) + "\n\n", encoding="utf-8")
    review = Review(run)
    (number,) = review.places("corrections")
    assert review.items[number].rows[0].input == given["input"]


def test_whatever_the_data_say_is_shown_as_text(tmp_path):
    run = make_run(tmp_path / EVIL.replace("/", ""), mislabelled=8)
    about = (run / "run.json").read_text().replace("sport", "<img src=y>")
    (run / "run.json").write_text(about)
    for file in ("splits.parquet", "oof.parquet", "predictions.parquet"):
        table = pd.read_parquet(run / file)
        table["label"] = table["label"].replace("sport", "<img src=y>")
        if "input" in table:
            table["input"] = EVIL + table["input"]
        table = table.rename(columns={name: name.replace("sport", "<img src=y>") for name in table})
        table["id"] = "<img>" + table["id"]
        table.to_parquet(run / file)
    review = Review(run)
    review.decide(0, "relabel", "<img src=y>")
    for number in range(len(review.items)):
        assert "<img" not in item_html(review, number)
    assert "<img" not in end_html(review) + progress_html(review, ALL)


def test_kinds_of_tasks(tmp_path):
    several = Review(make_run(tmp_path / "m", task=MULTI, mislabelled=0, signal=1.5))
    assert all(isinstance(item.choices[0][0], list) for item in of_kind(several, "label errors") if item.choices)
    build_review(several.run.folder)
    values = distinct(make_run(tmp_path / "v", task=VALUES))
    with pytest.raises(UserError, match="needs a second look"):
        build_review(values)
    rewrite(values, "splits.parquet", "input", {"row-0040": "same", "row-0041": "same"})
    (item,) = Review(values).items
    assert item.why.startswith("The same input bears different labels") and len(item.choices) == 2


def test_what_cannot_be_judged_is_said(tmp_path, caplog):
    run = make_run(tmp_path / "a", modality="image", out_of_fold=False)
    for path in (tmp_path / "images").glob("1*.jpg"):
        path.unlink()
    with caplog.at_level(logging.INFO):
        review = Review(run)
    assert "rows are not shown: their input is not at hand any more" in caplog.text
    assert "only its test rows are shown" in caplog.text
    assert {row.split for item in of_kind(review, "label errors") for row in item.rows} <= {"test"}


def test_the_report_says_how_to_review(run):
    assert f"<code>hftransfer review {run}</code>" in write_report(run).read_text()


# --- a browser -------------------------------------------------------------------------------------------------------


@pytest.fixture
def address(run):
    app, url = launch(run, wait=False)
    yield url
    app.close()


def opened(browser, address, width=1440, scheme="light"):
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    strange = []
    page.on("request", lambda r: strange.append(r.url) if not r.url.startswith((address, "data:", "blob:")) else 0)
    page.goto(address)
    page.locator(".question").wait_for()
    return page, strange


def shown(page):
    return int(page.locator(".question").get_attribute("data-place"))


def press(page, key):
    """Press a key and wait for another question."""
    before = shown(page)
    page.keyboard.press(key)
    page.locator(f'.question:not([data-place="{before}"])').wait_for(timeout=10_000)
    return shown(page)


@pytest.mark.slow
def test_by_keyboard_alone(browser, address, run):
    page, strange = opened(browser, address)
    suggestion = page.locator("#choice-1").inner_text()
    assert press(page, "Enter") == 1 and press(page, "k") == 2 and press(page, "d") == 3 and press(page, "2") == 4
    lines = read_patch(run.parent / "pets.patch.jsonl")
    assert [line.action for line in lines] == ["relabel", "keep", "drop", "relabel"]
    assert lines[0].label in suggestion
    page.get_by_text("4 of").wait_for()
    assert press(page, "u") == 3
    page.get_by_text("3 of").wait_for()
    assert press(page, "ArrowRight") == 4 and press(page, "ArrowLeft") == 3
    page.keyboard.press("g")  # nothing to group
    page.keyboard.press("x")
    assert [line.action for line in read_patch(run.parent / "pets.patch.jsonl")][4:] == ["undo"]
    assert not strange
    page.close()


@pytest.mark.slow
def test_two_answers_in_a_hurry_are_about_what_was_seen(browser, address, run):
    page, _ = opened(browser, address)
    page.evaluate("for (const id of ['keep', 'drop']) document.getElementById(id).click()")
    page.locator('.question:not([data-place="0"])').wait_for()
    page.wait_for_timeout(1500)
    assert len({line.id for line in read_patch(run.parent / "pets.patch.jsonl")}) == 1
    page.close()


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(390, "light"), (390, "dark"), (1440, "dark")])
def test_fits_the_screen(browser, address, width, scheme):
    page, _ = opened(browser, address, width, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#choice-1").is_visible() and page.locator("#keep").is_visible()
    page.locator("#drop").click()
    page.get_by_text("1 of").first.wait_for()
    page.close()


def test_random_rows_are_not_all_flagged(tmp_path):
    """The suspects are a selection: far fewer than the rows, and enriched in wrong labels."""
    run = distinct(make_run(tmp_path / "a", mislabelled=20, signal=2.0))
    shown = [item.rows[0].id for item in of_kind(Review(run), "label errors")]
    wrong = {f"row-{number:04d}" for number in range(20)}
    assert len(shown) < 150 and np.mean([row in wrong for row in shown[:20]]) > 3 * 20 / 600
