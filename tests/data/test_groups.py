"""Planted duplicates are found, different inputs are not, and what belongs together never straddles a split."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies
from PIL import Image, ImageEnhance

from hftransfer.core.errors import UserError
from hftransfer.data import DataConfig, SplitConfig, load_data
from hftransfer.data.groups import burst_pairs, links, series_key
from hftransfer.doctor.facts import Facts
from hftransfer.modalities import duplicates, text
from hftransfer.modalities.duplicates import components, equal_pairs, plain, similar_images, similar_texts
from hftransfer.modalities.image import thumbnail
from hftransfer.modalities.inspection import Inspection


def scene(seed: int, size: int = 128) -> Image.Image:
    """A smooth random picture, as photos are: coarse noise drawn large."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image, path: Path, quality: int = 90, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=quality, **options)
    return path


def taken(time: str) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0110] = "Camera One"
    exif.get_ifd(0x8769)[0x9003] = time
    return exif


CHANGES = {
    "resized": lambda image: image.resize((73, 73)),
    "compressed": lambda image: Image.fromarray(np.asarray(image) // 16 * 16),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "less contrast": lambda image: ImageEnhance.Contrast(image).enhance(0.6),
    "mirrored": lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "noisy": lambda image: Image.blend(image, Image.effect_noise(image.size, 60).convert("RGB"), 0.15),
    "grey": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_copies_of_images_are_found(change):
    originals = [scene(seed) for seed in range(20)]
    copies = [CHANGES[change](image) for image in originals]
    pairs = {tuple(pair) for pair in similar_images([thumbnail(image) for image in originals + copies]).tolist()}
    assert pairs == {(index, index + 20) for index in range(20)}


def test_different_images_are_not_taken_for_copies():
    assert not len(similar_images([thumbnail(scene(seed)) for seed in range(300)]))


def test_small_things_on_a_plain_ground_and_blank_images_are_no_copies():
    images = []
    for seed in range(40):
        canvas = Image.new("RGB", (128, 128), "white")
        canvas.paste(scene(seed, 40), (44, 44))
        images.append(thumbnail(canvas))
    blanks = [np.full((32, 32), value, np.uint8) for value in (0, 10, 255)]
    assert not len(similar_images(images + blanks))
    assert not len(similar_images([None, images[0], None]))


def test_small_pictures_have_to_agree_in_every_pixel():
    """Fine noise, which comes from a camera in a large photo, is all there is to tell two small pictures apart."""
    image = scene(5)
    other = Image.blend(image, Image.effect_noise(image.size, 100).convert("RGB"), 0.2)
    pair = [thumbnail(image), thumbnail(other)]
    assert similar_images(pair, [256, 256]).tolist() == [[0, 1]]
    assert similar_images(pair, [28, 28]).tolist() == []
    assert similar_images([pair[0], pair[0].copy()], [28, 28]).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "copy",
    [
        "HOW do I get my new card, which I ordered last week",
        "How do I get my new card -- which I ordered last week?!",
        "How do I get my new cards, which I ordered last week?",
    ],
)
def test_changed_copies_of_texts_are_found(copy):
    texts = ["How do I get my new card, which I ordered last week?", "Where can I find a machine nearby?", copy]
    assert similar_texts(texts).tolist() == [[0, 2]]


def test_similar_texts_equal_an_exhaustive_search():
    rng = np.random.default_rng(0)
    words = [f"word{number}" for number in range(40)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(60)]
    texts += [" ".join(text.split()[:11] + ["other"]) for text in texts[:30]] + [text.upper() for text in texts[:10]]

    def overlap(first: str, second: str) -> float:
        sets = [{text[i : i + 5] for i in range(len(text) - 4)} for text in (plain(first), plain(second))]
        return len(sets[0] & sets[1]) / len(sets[0] | sets[1])

    expected = [[i, j] for i, j in combinations(range(100), 2) if overlap(texts[i], texts[j]) >= 0.8]
    found = similar_texts(texts)
    assert {tuple(pair) for pair in found.tolist()} <= {tuple(pair) for pair in expected}
    # Of three equal texts two links are enough: the groups have to be the same.
    assert (components(100, found) == components(100, np.array(expected))).all() and len(expected) >= 30


def test_short_and_wordless_texts():
    assert similar_texts(["a", "b", "A!", "😀", "😡", "😀"]).tolist() == [[0, 2], [3, 5]]
    assert similar_texts(["only one"]).tolist() == []


def test_equal_pairs_link_all_rows_of_a_hash_and_ignore_the_unknown():
    assert equal_pairs(["x", "", "y", "x", "", "x"]).tolist() == [[0, 3], [3, 5]]


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("cat/patient12_3.png", "patient12"),
        ("train/dog/patient12_4.png", "patient12"),
        ("cat/clip3_frame0012.jpg", "clip3_frame"),
        ("cat/IMG_20200101_120001.jpg", "IMG_20200101"),
        ("cat/night/007.png", "night/"),
        ("cat/photo (12).jpg", "photo"),
        ("cat/tom.jpg", "tom"),
    ],
)
def test_series_key(path, key):
    assert series_key(path, {"cat", "dog", "train"})[0] == key


def test_burst_is_one_camera_within_three_seconds():
    times = ["2024:05:01 10:00:00", "2024:05:01 10:00:02", "2024:05:01 10:00:09", "never"]
    inspections = [Inspection(str(i), taken=("A", time)) for i, time in enumerate(times)] + [
        Inspection("x", taken=("B", times[0])),
        Inspection("y"),
    ]
    assert burst_pairs(inspections).tolist() == [[0, 1]]


@pytest.fixture
def planted(tmp_path):
    """Two classes of 30 scenes; every third has a changed copy, ten photos are a burst, and there is a film of 12 frames."""
    rng = np.random.default_rng(0)
    for index, name in enumerate(("cat", "dog")):
        for number in range(30):
            image = scene(1000 * index + number)
            jpeg(image, tmp_path / name / f"{number:02d}{'abcdef'[number % 6]}.jpg")
            if number % 3 == 0:
                copy = CHANGES[list(CHANGES)[number // 3 % len(CHANGES)]](image)
                jpeg(copy, tmp_path / name / f"copy_of_{number:02d}{'abcdef'[number % 6]}.jpg", 60)
    for number in range(10):
        jpeg(
            scene(5000 + number),
            tmp_path / "cat" / f"burst{'qwertyuiop'[number]}.jpg",
            exif=taken(f"2024:05:01 10:00:{2 * number:02d}"),
        )
    start, end = (np.asarray(scene(seed), float) for seed in (7000, 7001))
    for number in range(12):
        frame = start + (end - start) * number / 40 + rng.normal(0, 2, start.shape)
        jpeg(Image.fromarray(frame.clip(0, 255).astype(np.uint8)), tmp_path / "dog" / f"film_{number}.jpg")
    return tmp_path


def planted_group(id_: str) -> str | None:
    name = Path(id_).stem
    if name.startswith(("burst", "film")):
        return name[:4]
    number = name.removeprefix("copy_of_")
    return id_.split("/")[0] + number if int(number[:2]) % 3 == 0 else None


@pytest.mark.parametrize("seed", range(3))
def test_planted_copies_bursts_and_films_never_straddle(planted, seed):
    frame = load_data(DataConfig(train=str(planted), split=SplitConfig(group="auto", seed=seed))).frame
    groups = frame["id"].map(planted_group)
    assert frame.groupby(groups)["split"].nunique().max() == 1
    assert frame.loc[groups.isna(), "group"].isna().all(), "rows that stand alone must not be grouped"
    shares = frame["split"].value_counts(normalize=True)
    assert abs(shares["test"] - 0.2) < 0.05 and abs(shares["validation"] - 0.15) < 0.05


def test_a_random_split_would_have_let_them_straddle(planted):
    frame = load_data(DataConfig(train=str(planted), split=SplitConfig(copies="apart"))).frame
    assert (frame.groupby(frame["id"].map(planted_group))["split"].nunique() > 1).sum() >= 5


def test_groups_do_not_depend_on_the_order_of_rows(planted):
    paths = sorted(str(path.relative_to(planted)) for path in planted.rglob("*.jpg"))
    found = []
    for order in (paths, paths[::-1]):
        pd.DataFrame({"path": order, "label": [p[:3] for p in order]}).to_csv(planted / "t.csv", index=False)
        frame = load_data(DataConfig(train=str(planted / "t.csv"), split=SplitConfig(group="auto"))).frame
        found.append(frame.set_index("id")[["group", "split"]].sort_index())
    assert found[0].equals(found[1])


def test_stem_groups_by_name_alone_and_refuses_a_counter(tmp_path):
    for index, name in enumerate(("cat", "dog")):
        for patient in range(10):
            for shot in range(3):
                jpeg(scene(1000 * index + 10 * patient + shot), tmp_path / name / f"p{patient}_{shot}.jpg")
    frame = load_data(DataConfig(train=str(tmp_path), split=SplitConfig(group="stem"))).frame
    patients = frame["id"].str.extract(r"(p\d)_")[0]
    assert (frame.groupby(patients)["split"].nunique() == 1).all() and frame["group"].nunique() == 10
    for number in range(80):
        jpeg(scene(9000 + number), tmp_path / "cat" / f"IMG_{number}.jpg")
    with pytest.raises(UserError, match="80 of 140 files share one series with 'cat/IMG_0.jpg'"):
        load_data(DataConfig(train=str(tmp_path), split=SplitConfig(group="stem")))


def test_groups_of_texts(tmp_path):
    texts = [f"sentence number {n} about {'abcdefghij'[n % 10] * 9} and {n * 7919}" for n in range(100)]
    frame = pd.DataFrame({"text": texts + [text.upper() + "!" for text in texts[:40]], "label": ["a", "b"] * 70})
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = load_data(DataConfig(train=str(tmp_path / "t.csv"), split=SplitConfig(group="auto"))).frame
    assert (data["split"][:40].to_numpy() == data["split"][100:].to_numpy()).all()
    with pytest.raises(UserError, match="data.split.group=stem looks at names of image files; there are none."):
        load_data(DataConfig(train=str(tmp_path / "t.csv"), split=SplitConfig(group="stem")))


def reference_pairs(thumbnails: list[np.ndarray], sides: list[int]) -> list[list[int]]:
    """Every two thumbnails compared, one pair at a time."""

    def signs(picture):
        return np.diff(picture.reshape(16, 2, 16, 2).astype(float).mean((1, 3)), axis=1) > 0

    def changes(picture):
        found = np.concatenate([np.diff(picture.astype(float), axis=axis).ravel() for axis in (0, 1)])
        length = np.linalg.norm(found)
        return found / length if length >= 0.7 * np.sqrt(len(found)) else 0 * found

    def alike(first, second, small):
        coarse = [picture.reshape(16, 2, 16, 2).astype(float).mean((1, 3)) for picture in (first, second)]
        close = (signs(first) != signs(second)).sum() <= 32 and changes(coarse[0]) @ changes(coarse[1]) >= 0.9
        return close and (not small or changes(first) @ changes(second) >= 0.95)

    return [
        [i, j]
        for (i, first), (j, second) in combinations(enumerate(thumbnails), 2)
        if any(alike(first, other, sides[i] < 64 and sides[j] < 64) for other in (second, second[:, ::-1]))
    ]


@pytest.fixture(scope="module")
def crowd() -> tuple[list[np.ndarray], list[int]]:
    """Thumbnails of 40 scenes with noisy and mirrored copies, beside small pictures of digits."""
    from sklearn.datasets import load_digits

    noise = np.random.default_rng(0)
    scenes = [thumbnail(scene(seed)).astype(int) for seed in range(40)]
    copies = [picture + noise.integers(-15, 16, picture.shape) for picture in scenes[:20]]
    mirrored = [picture[:, ::-1] for picture in scenes[10:30]]
    digits = [np.kron(digit, np.ones((4, 4))) * 16 for digit in load_digits().images[:100]]
    thumbnails = [np.clip(picture, 0, 255).astype(np.uint8) for picture in scenes + copies + mirrored + digits]
    return thumbnails, [128] * 80 + [8] * 70 + [80] * 30


@pytest.fixture(scope="module")
def every_pair(crowd):
    """The pairs that the slow reference finds."""
    return reference_pairs(*crowd)


def test_the_search_in_blocks_finds_what_comparing_every_pair_finds(crowd, every_pair, monkeypatch):
    for name, size in {"BLOCK": 7, "TILE": 19, "MOST_CANDIDATES": 3}.items():
        monkeypatch.setattr(duplicates, name, size)
    assert len(every_pair) > 40 and similar_images(*crowd).tolist() == every_pair


def test_neighbours_in_sorted_orders_link_what_comparing_every_pair_links(crowd, every_pair, monkeypatch):
    monkeypatch.setattr(duplicates, "MOST_COMPARED", 0)
    found = similar_images(*crowd).tolist()
    assert {tuple(pair) for pair in found} <= {tuple(pair) for pair in every_pair}
    assert np.array_equal(components(180, np.array(found)), components(180, np.array(every_pair)))


@settings(max_examples=15, deadline=None, derandomize=True)
@given(strategies.integers(0, 2**32), strategies.sampled_from([0, 8, 20]), strategies.booleans())
def test_both_searches_find_the_same_copies(seed, noise, mirrored):
    """Scenes with copies at the threshold and beside it, blanks, and a film: every frame like the one before it."""
    rng = np.random.default_rng(seed)
    scenes = np.stack([thumbnail(scene(int(rng.integers(2**32)))) for _ in range(60)]).astype(int)
    copies = scenes + rng.normal(0, noise, scenes.shape).astype(int)
    copies[::2] = copies[::2, :, ::-1]
    film = scenes[0] + np.cumsum(rng.integers(-3, 4, (40, 32, 32)), axis=0)
    greys = np.clip(np.concatenate([scenes, copies, film, np.full((3, 32, 32), 200)]), 0, 255).astype(np.uint8)
    small = rng.random(len(greys)) < 0.3
    exact, sorted_ = (
        search(greys, small, mirrored) for search in (duplicates._all_pairs, duplicates._neighbouring_pairs)
    )
    assert set(map(tuple, sorted_.tolist())) <= set(map(tuple, exact.tolist()))
    assert np.array_equal(components(len(greys), sorted_), components(len(greys), exact))


def test_of_very_many_pairs_links_remain(crowd, monkeypatch):
    thumbnails, sides = crowd[0][80:] * 6, [100] * 600
    everything = similar_images(thumbnails, sides)
    monkeypatch.setattr(duplicates, "MOST_PAIRS", 100)
    links = similar_images(thumbnails, sides)
    assert len(links) < 2 * 600 < len(everything)
    assert components(600, links).tolist() == components(600, everything).tolist()


def test_near_copies_are_searched_once_in_a_run(tmp_path, monkeypatch):
    searched = []
    monkeypatch.setattr(text, "similar_texts", lambda texts: searched.append(len(texts)) or similar_texts(texts))
    rows = [f"a sentence about the number {n % 30} and no other" for n in range(40)]
    pd.DataFrame({"text": rows, "label": ["x", "y"] * 20}).to_csv(tmp_path / "t.csv", index=False)
    for options in ({}, {"train_examples": 10}, {"split": {"group": "auto"}}, {"split": {"copies": "apart"}}):
        searched.clear()
        data = load_data(DataConfig(train=str(tmp_path / "t.csv"), **options))
        found = Facts(
            data.frame, data.modality, data.task, data.inspections, DataConfig(), known_links=data.links
        ).links
        again = links(data.frame, data.inspections, data.modality)
        assert {kind: pairs.tolist() for kind, pairs in found.items()} == {
            kind: pairs.tolist() for kind, pairs in again.items()
        }
        left = len(data.frame)
        assert searched == ([40, 40] if left == 40 else [40, left, left]), options
