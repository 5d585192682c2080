"""One broken data set for every finding, with its message; a sound one without any; the cleaned copy; the command."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hftransfer.core.errors import UserError
from hftransfer.data import DataConfig, SplitConfig, load_data
from hftransfer.doctor import KINDS, Finding, doctor, examine, examine_loaded, exit_code, explain, fix
from hftransfer.doctor.shortcuts import guess_accuracy
from hftransfer.doctor.texts import is_misread, reread
from tests.support import several


def scene(seed: int, width: int = 160, height: int = 160) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def photos(root: Path, classes=("cat", "dog"), count: int = 25, **size) -> Path:
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            scene(1000 * index + number, **size).save(root / name / f"{number:03d}{'qwerty'[number % 6]}.jpg")
    return root


def sentences(count: int, start: int = 0) -> list[str]:
    words = [f"{a}{b}" for a in "ba de fi go lu mo na pe ro su".split() for b in "rin tol ves kam pud".split()]
    rng = np.random.default_rng(start)
    return [" ".join(rng.choice(words, 12)) for _ in range(count)]


def frame(count: int = 60, start: int = 0, **columns) -> pd.DataFrame:
    return pd.DataFrame({"text": sentences(count, start), "label": ["good", "bad"] * (count // 2)} | columns)


def save(path: Path, *frames: pd.DataFrame) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.concat(frames).to_csv(path, index=False)
    return str(path)


def found(run=None, **config) -> dict[str, Finding]:
    return {finding.id: finding for finding in examine(DataConfig(**config), run)}


# One function per finding: breaks a sound data set in one way and returns the findings.


def data_unreadable(path):
    return found(train=str(path / "none.csv"))


def image_broken(path):
    file = photos(path) / "cat" / "000q.jpg"
    file.write_bytes(file.read_bytes()[:800])
    (path / "dog" / "empty.png").write_bytes(b"")
    return found(train=str(path))


def file_passed_over(path):
    photos(path)
    for number in range(3):
        (path / "cat" / f"IMG_{number}.raw3").write_bytes(b"?")
    (path / "cat" / "notes.txt").write_text("not an image, and not meant to be one")
    return found(train=str(path))


def folder_empty(path):
    photos(path)
    (path / "bird").mkdir()
    return found(train=str(path))


def image_suffix(path):
    scene(77).save(photos(path) / "cat" / "photo.png", "JPEG")
    return found(train=str(path))


def image_animated(path):
    scene(78).save(photos(path) / "dog" / "move.gif", save_all=True, append_images=[scene(79)])
    return found(train=str(path))


def image_rotated(path):
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(80).save(photos(path) / "dog" / "lying.jpg", exif=exif)
    return found(train=str(path))


def image_mode(path):
    scene(81).convert("L").save(photos(path) / "dog" / "grey.png")
    scene(82).convert("RGBA").save(path / "cat" / "clear.png")
    return found(train=str(path))


def image_small(path):
    scene(83, 90, 60).save(photos(path) / "dog" / "tiny.jpg")
    return found(train=str(path))


def image_large(path):
    scene(84, 1000, 900).save(photos(path) / "dog" / "huge.jpg")
    return found(train=str(path))


def image_shape(path):
    scene(85, 640, 160).save(photos(path) / "dog" / "long.jpg")
    return found(train=str(path))


def image_blank(path):
    Image.new("RGB", (160, 160), (3, 3, 3)).save(photos(path) / "dog" / "lid.jpg")
    return found(train=str(path))


def recordings(root: Path, classes=("low", "high"), count: int = 25, rate: int = 16000) -> Path:
    for index, name in enumerate(classes):
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            write_sound(
                root / name / f"{number:03d}{'qwerty'[number % 6]}.wav", melody(1000 * index + number, rate), rate
            )
    return root


def melody(seed: int, rate: int = 16000) -> np.ndarray:
    """Half a second of eight random tones in a row, each of two pitches and a loudness of its own."""
    rng = np.random.default_rng(seed)
    time = np.arange(rate // 16) / rate
    tones = [
        np.sin(2 * np.pi * np.outer(rng.uniform(200, 3500, 2), time)).sum(0) * rng.uniform(0.05, 0.4) for _ in range(8)
    ]
    return np.concatenate(tones)


def write_sound(path: Path, samples: np.ndarray, rate: int = 16000) -> None:
    import soundfile

    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate)


def recording_broken(path):
    file = recordings(path) / "low" / "000q.wav"
    file.write_bytes(file.read_bytes()[:3000])
    (path / "high" / "empty.wav").write_bytes(b"")
    return found(train=str(path))


def recording_rates(path):
    write_sound(recordings(path) / "low" / "telephone.wav", melody(77, 8000), 8000)
    return found(train=str(path))


def recording_channels(path):
    write_sound(recordings(path) / "low" / "stereo.wav", np.stack([melody(78), melody(79)], 1))
    return found(train=str(path))


def recording_silent(path):
    write_sound(recordings(path) / "high" / "off.wav", np.random.default_rng(0).normal(0, 0.0005, 8000))
    return found(train=str(path))


def recording_clipped(path):
    write_sound(recordings(path) / "high" / "loud.wav", (8 * melody(80)).clip(-1, 1))
    return found(train=str(path))


def recording_long(path):
    write_sound(recordings(path) / "high" / "long.wav", np.tile(melody(81), 62))
    return found(train=str(path))


def source_divided(path):
    speakers = [f"s{number % 5}" for number in range(50)]
    files = sorted(str(file) for file in recordings(path / "sounds").rglob("*.wav"))
    table = pd.DataFrame({"path": files, "label": [file.split("/")[-2] for file in files], "speaker": speakers})
    return found(
        train=save(path / "t.csv", table.assign(split=["train"] * 20 + ["test"] * 5 + ["train"] * 20 + ["test"] * 5))
    )


def text_empty(path):
    return found(train=save(path / "t.csv", frame(), pd.DataFrame({"text": [" "], "label": "bad"})))


def text_encoding(path):
    broken = pd.DataFrame({"text": ["das schÃ¶ne GemÃ¼se von gestern", "the caf\ufffd is closed"], "label": "bad"})
    return found(train=save(path / "t.csv", frame(), broken))


def text_html(path):
    broken = pd.DataFrame(
        {"text": ["a <br /> line and a <b>word</b>", "salt &amp; pepper &#39;n more"], "label": "bad"}
    )
    return found(train=save(path / "t.csv", frame(), broken))


def text_long(path):
    long = pd.DataFrame({"text": [f"{number} " + "word " * 500 for number in range(10)], "label": "bad"})
    return found(train=save(path / "t.csv", frame(90), long))


def text_language(path):
    greek = "αβγδεζηθικλμνξοπρστυφχψω"
    rng = np.random.default_rng(0)
    texts = [" ".join("".join(rng.choice(list(greek), 7)) for _ in range(9)) for _ in range(60)]
    return found(run=text_run(path), train=save(path / "t.csv", frame(text=texts)), task="single_label")


def label_missing(path):
    return found(train=save(path / "t.csv", frame(), pd.DataFrame({"text": ["an unlabelled sentence"], "label": ""})))


def label_one_class(path):
    return found(train=save(path / "t.csv", frame(label=["good"] * 60)))


def label_single(path):
    return found(train=save(path / "t.csv", frame(), pd.DataFrame({"text": ["one of a kind here"], "label": "odd"})))


def label_unknown(path):
    test = save(path / "test.csv", frame(10, 1), pd.DataFrame({"text": ["quite a new kind"], "label": "odd"}))
    return found(train=save(path / "t.csv", frame()), test=test)


def label_rare(path):
    return found(train=save(path / "t.csv", frame(), frame(4, 1, label=["odd"] * 4)))


def label_imbalance(path):
    return found(train=save(path / "t.csv", frame(200, label=["good"] * 184 + ["bad"] * 16)))


def label_near_equal(path):
    return found(train=save(path / "t.csv", frame(), frame(20, 1, label=["Good", "good."] * 10)))


def label_conflict(path):
    same = frame().head(2).assign(label=["bad", "bad"])
    return found(train=save(path / "t.csv", frame(), same))


def label_numbers(path):
    return found(train=save(path / "t.csv", frame(label=[1, 2, 3] * 20)))


def label_in_input(path):
    photos(path, ("cat",), width=160, height=160)
    photos(path, ("dog",), width=200, height=200)
    return found(train=str(path))


def label_in_metadata(path):
    return found(train=save(path / "t.csv", frame(station=["north", "south"] * 30)))


def input_missing(path):
    table = frame(price=[None, *range(59)], label=(["good"] * 2 + ["bad"] * 2) * 15)
    return found(train=save(path / "t.csv", table), input={"text": "text", "price": "number"})


def input_conflict(folder):
    table = pd.read_csv(several.table(folder, rows=20, missing=False))
    table.loc[[1, 2], "photo"] = table["photo"].iloc[0]
    table.to_csv(folder / "listings.csv", index=False)
    return found(train=str(folder / "listings.csv"), input=several.KINDS, label="label")


def input_tells_label(path):
    table = frame(price=[10, 99] * 30)
    return found(train=save(path / "t.csv", table), input={"text": "text", "price": "number"})


def duplicate(path):
    return found(train=save(path / "t.csv", frame(), frame().head(3)))


def duplicate_near(path):
    photos(path)
    scene(3, 200, 200).save(path / "cat" / "again.jpg", quality=60)
    return found(train=str(path))


def leak(path):
    test = save(path / "test.csv", frame(20, 1), frame().head(4))
    return found(train=save(path / "t.csv", frame()), test=test)


def leak_near(path):
    changed = frame().head(4)
    changed["text"] = changed["text"].str.upper() + "!"
    return found(train=save(path / "t.csv", frame()), test=save(path / "test.csv", frame(20, 1), changed))


def leak_pair(path):
    def pairs(start):
        return pd.DataFrame({"text_a": sentences(60), "text_b": sentences(60, start), "label": ["good", "bad"] * 30})

    return found(train=save(path / "t.csv", pairs(5)), test=save(path / "test.csv", pairs(6).head(10)))


def leak_ahead(path):
    for index, name in enumerate(("cat", "dog")):
        (path / name).mkdir(parents=True)
        for film in range(40):
            for shot in range(3):
                scene(9000 + 1000 * index + 10 * film + shot).save(path / name / f"film{film}{'xy'[index]}_{shot}.jpg")
    return found(train=str(path))


def group_divided(path):
    authors = [f"p{number % 6}" for number in range(60)]
    divided = frame(author=authors, split=["train"] * 40 + ["validation"] * 10 + ["test"] * 10)
    path = save(path / "t.csv", divided)
    return found(train=path, split=SplitConfig(group="author"), label="label", input="text")


def model_unreadable(path):
    run = text_run(path, model=str(path / "nothing"))
    return found(run=run, train=save(path / "t.csv", frame()))


def model(path):
    return found(run=text_run(path), train=save(path / "t.csv", frame()))


def memory(path):
    run = text_run(path, training={"per_device_train_batch_size": 10_000_000})
    return found(run=run, train=save(path / "t.csv", frame()))


def disk(path):
    usage = type("Usage", (), {"free": 1000})()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: usage)
        return found(run=text_run(path), train=save(path / "t.csv", frame()))


def shared_memory(path):
    import torch

    status, real = type("Status", (), {"f_blocks": 64, "f_frsize": 2**20})(), os.statvfs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.statvfs", lambda path: status if path == "/dev/shm" else real(path))
        patch.setattr("hftransfer.doctor.training.choose_device", lambda **_: torch.device("cuda", 0))
        patch.setattr("hftransfer.doctor.training.device_name", lambda _: "a GPU")
        patch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)
        patch.setattr("torch.cuda.mem_get_info", lambda _: (2**40, 2**40))
        return found(run=text_run(path), train=save(path / "t.csv", frame()))


def token(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.get_token", lambda: None)
        return found(run=text_run(path), train=save(path / "t.csv", frame()))


def output(path):
    path.mkdir(exist_ok=True)
    (path / "file").write_text("")
    run = text_run(path, output=str(path / "file" / "run"))
    return found(run=run, train=save(path / "t.csv", frame()))


def leak_measured(path):
    texts = [text for text in sentences(30) for _ in range(4)]
    copies = [f"{text}{' .' * (number % 4)}" for number, text in enumerate(texts)]
    data = save(
        path / "t.csv", pd.DataFrame({"text": copies, "label": [i // 4 % 2 * "good" or "bad" for i in range(120)]})
    )
    run = text_run(path, data=data)
    return {finding.id: finding for finding in examine(run.data, run, measure=True)}


def duplicate_neighbour(path):
    """Two texts in scripts that the tokenizer does not know: to the model they are the same row of unknown tokens."""
    texts = [
        *sentences(60),
        "\u03b1\u03b2\u03b3 \u03b4\u03b5\u03b6 \u03b7\u03b8\u03b9",
        "\u0436\u0437\u0438 \u0439\u043a\u043b \u043c\u043d\u043e",
    ]
    data = save(path / "t.csv", pd.DataFrame({"text": texts, "label": ["good", "bad"] * 31}))
    run = text_run(path, data=data)
    return {finding.id: finding for finding in examine(run.data, run, measure=True)}


def text_run(path: Path, **settings):
    from hftransfer.config import checked
    from tests.support import tiny

    values = {"data": "x", "model": str(tiny.TEXT_FAMILIES["bert"](path / "bert")), "output": str(path / "run")}
    return checked(values | {"use_cpu": True} | settings)


BROKEN = {
    "data-unreadable": (data_unreadable, "There is no file or folder"),
    "file-passed-over": (file_passed_over, "3 files are passed over, as they are no images that can be read (.raw3 3)."),
    "folder-empty": (folder_empty, "Folders without an image: 1."),
    "image-broken": (image_broken, "Cannot be decoded: 2 of 51 images."),
    "image-suffix": (image_suffix, "Another format than the suffix says: 1 of 51 images."),
    "image-animated": (image_animated, "Several frames in one file: 1 of 51 images."),
    "image-rotated": (image_rotated, "Stored turned, set upright by an EXIF note: 1 of 51 images."),
    "image-mode": (image_mode, "Not plain RGB (RGBA 1, L 1): 2 of 52 images."),
    "image-small": (
        image_small,
        "Smaller than half of the model's 224 px (short side, median of all: 160 px): 1 of 51 images.",
    ),
    "image-large": (
        image_large,
        "Larger than four times the model's 224 px (short side, median of all: 160 px): 1 of 51 images.",
    ),
    "image-shape": (image_shape, "More than 2.5 times as long as wide: 1 of 51 images."),
    "image-blank": (image_blank, "Nearly blank: 1 of 51 images."),
    "recording-broken": (recording_broken, "Cannot be decoded: 2 of 51 recordings."),
    "recording-rates": (recording_rates, "Several sample rates: 16000 Hz 50, 8000 Hz 1."),
    "recording-channels": (recording_channels, "Several numbers of channels: 1 50, 2 1."),
    "recording-silent": (recording_silent, "Silent (never above -50 dB of full scale): 1 of 51 recordings."),
    "recording-clipped": (
        recording_clipped,
        "Clipped (more than 0.1% of the samples at full scale): 1 of 51 recordings.",
    ),
    "recording-long": (
        recording_long,
        "Longer than the 30 s that most models read (--model REF tells), the longest 31.0 s: 1 of 51 recordings.",
    ),
    "text-empty": (text_empty, "No usable text: 1 of 61 rows."),
    "text-encoding": (text_encoding, "Misread: 2 of 62 texts."),
    "text-html": (text_html, "HTML: 2 of 62 texts."),
    "text-long": (
        text_long,
        "10% of the texts are longer than 512 tokens (an estimate; --model REF counts); "
        "cut would be 10% at 128, 10% at 256, 10% at 512.",
    ),
    "text-language": (text_language, "The tokenizer knows the texts badly: 100.0% unknown tokens, 1.0 tokens per word."),
    "label-missing": (label_missing, "No label: 1 of 61 rows."),
    "label-one-class": (label_one_class, "All 60 examples are 'good'."),
    "label-single": (label_single, "One example only of 'odd'."),
    "label-unknown": (label_unknown, "Labels that the training part lacks: 'odd' (rows: 1)."),
    "label-rare": (label_rare, "Fewer than 10 examples: 1 of 3 classes."),
    "label-imbalance": (label_imbalance, "'good' has 184 examples, 'bad' has 16."),
    "label-near-equal": (label_near_equal, "Written in several ways: 1 of the classes."),
    "label-conflict": (label_conflict, "Pairs of equal or nearly equal inputs with different labels: 1."),
    "label-numbers": (label_numbers, "The numbers 1, 2, 3 are read as 3 classes."),
    "label-in-input": (
        label_in_input,
        "The height of the images alone tells the class in 100% of the cases (chance: 50%).",
    ),
    "label-in-metadata": (
        label_in_metadata,
        "The column 'station' alone tells the class in 100% of the cases (chance: 50%).",
    ),
    "input-missing": (input_missing, "Missing inputs, of 60 rows: price 1."),
    "input-conflict": (input_conflict, "Equal photo with labels that differ: 1, in 3 rows."),
    "input-tells-label": (input_tells_label, "The column 'price' alone tells the class in 100% of the cases."),
    "duplicate": (duplicate, "Rows with an equal input elsewhere: 6 (groups: 3)."),
    "duplicate-near": (duplicate_near, "Rows with a near copy: 2 of 51 (groups: 1)."),
    "duplicate-neighbour": (duplicate_neighbour, "Pairs that the model sees as nearly the same, not found by their content: "),
    "leak": (leak, "In the training part too: 4 of 24 test rows."),
    "leak-near": (leak_near, "With a near copy in the training part: 4 of 24 test rows."),
    "leak-pair": (leak_pair, "Sharing a text with the training part: 10 of 10 test pairs."),
    "leak-ahead": (leak_ahead, "test rows beside a relative in training (240 of a series of files)."),
    "leak-measured": (leak_measured, " accuracy instead of "),
    "source-divided": (
        source_divided,
        "Sources of the column 'speaker' on both sides: 5 of 5. With them 10 of 10 test rows stand beside training rows of "
        "the same source. Try data.split.group=speaker.",
    ),
    "group-divided": (group_divided, "Groups that stand in several splits: 6 of 6."),
    "model-unreadable": (model_unreadable, "nothing"),
    "model": (model, "3 blocks, head 32 -> 2 (classifier), LoRA would adapt"),
    "memory": (memory, "One step with 10000000 examples needs about"),
    "disk": (disk, "0.0 GiB are free at"),
    "shared-memory": (shared_memory, "/dev/shm holds 64 MiB."),
    "precision": (model, "bf16 is tried at the start of a run and taken where it pays."),
    "token": (token, "There is no token for the Hub on this machine."),
    "output": (output, "run cannot be written: Not a directory."),
}  # fmt: skip


def test_every_kind_has_its_broken_fixture():
    others = ("mask-", "entity-")  # tests/doctor/test_masks.py, test_entities.py
    assert set(BROKEN) == {id_ for id_ in KINDS if not id_.startswith(others)}


@pytest.mark.parametrize("id_", BROKEN)
def test_broken_data_gives_the_finding(id_, tmp_path):
    make, message = BROKEN[id_]
    findings = make(tmp_path / "data")
    assert id_ in findings, list(findings)
    assert message in findings[id_].message
    assert findings[id_].fix in findings[id_].as_text() and findings[id_].severity.upper() in findings[id_].as_text()


@pytest.mark.parametrize("kind", ["images", "recordings", "texts", "pairs"])
def test_sound_data_gives_no_finding(kind, tmp_path):
    if kind == "images":
        findings = found(train=str(photos(tmp_path, count=60)))
    elif kind == "recordings":
        findings = found(train=str(recordings(tmp_path, count=60)))
    elif kind == "texts":
        parts = {"train": save(tmp_path / "a.csv", frame(200)), "test": save(tmp_path / "b.csv", frame(40, 7))}
        findings = found(**parts)
    else:
        pairs = frame(100).rename(columns={"text": "text_a"}).assign(text_b=sentences(100, 3))
        findings = found(train=save(tmp_path / "c.csv", pairs))
    assert not findings


def test_findings_name_the_rows(tmp_path):
    broken, empty = image_broken(tmp_path / "a")["image-broken"].rows
    assert broken.startswith(f"{tmp_path}/a/cat/000q.jpg: image file is truncated")
    assert empty == f"{tmp_path}/a/dog/empty.png: its content is no image that Pillow knows"
    (pair,) = label_conflict(tmp_path / "b")["label-conflict"].rows
    text = frame()["text"][0][:60]
    assert pair == f"{tmp_path}/b/t.csv, row 1 {text!r} [good]  =  {tmp_path}/b/t.csv, row 61 {text!r} [bad]"


def test_findings_come_as_they_are_found(tmp_path, monkeypatch):
    path = save(tmp_path / "t.csv", frame(), pd.DataFrame({"text": ["no label here at all"], "label": ""}))
    monkeypatch.setattr(
        "hftransfer.doctor.examination.check_texts", lambda *_: pytest.fail("examined before it was asked")
    )
    assert next(examine(DataConfig(train=path))).id == "label-missing"


def test_a_column_without_a_value_beside_missing_labels_is_no_traceback(tmp_path):
    """Found by the property test of data sets: `astype(str)` leaves missing values missing."""
    rows = [{"text": "NA", "label": None, "split": "nan"}, {"text": "NA", "label": "NA", "split": "nan"}]
    (tmp_path / "records.json").write_text(json.dumps(rows))
    assert {"label-missing", "label-one-class"} <= found(train=str(tmp_path / "records.json")).keys()


def test_lengths_are_counted_with_the_models_tokenizer(tmp_path):
    findings = found(run=text_run(tmp_path), train=save(tmp_path / "t.csv", frame(text=["goal " * 90] * 60)))
    assert (
        "100% of the texts are longer than 64 tokens (counted with the model's tokenizer)"
        in findings["text-long"].message
    )


def test_the_models_image_size_is_the_measure(tmp_path):
    from hftransfer.config import checked
    from tests.support import tiny

    run = checked({"data": "x", "model": str(tiny.VISION_FAMILIES["vit"](tmp_path / "vit")), "use_cpu": True})
    findings = found(run=run, train=str(photos(tmp_path / "data")))
    assert (
        "Larger than four times the model's 32 px (short side, median of all: 160 px): 50 of 50 images."
        in findings["image-large"].message
    )


def test_the_models_window_is_the_measure(tmp_path):
    from hftransfer.config import checked
    from tests.support import tiny

    recordings(tmp_path / "data")
    write_sound(tmp_path / "data" / "low" / "long.wav", np.tile(melody(81), 3))
    ast, wave = (
        checked({"data": "x", "model": {"name": str(tiny.AUDIO_FAMILIES[family](tmp_path / family))}, "use_cpu": True})
        for family in ("ast", "wav2vec2")
    )
    ast = ast.model_copy(update={"model": ast.model.model_copy(update={"max_seconds": 1})})
    data = str(tmp_path / "data")
    assert "Longer than the 1 s that the model reads" in found(run=ast, train=data)["recording-long"].message
    assert "recording-long" not in found(run=wave, train=data)


def test_a_source_that_is_a_group_or_the_label_is_no_finding(tmp_path):
    source_divided(tmp_path)
    table = pd.read_csv(tmp_path / "t.csv").drop(columns="split")
    data = {"train": save(tmp_path / "u.csv", table)}
    assert "10 of 10 test rows would stand beside" in found(**data)["source-divided"].message
    assert "source-divided" not in found(**data, split=SplitConfig(group="speaker"))
    assert "source-divided" not in found(**data, label="speaker")
    one_each = save(tmp_path / "v.csv", table.assign(speaker=range(50)))
    assert "source-divided" not in found(train=one_each)


def test_near_copies_of_recordings_are_found(tmp_path):
    """Another loudness, rate and format of one recording; other recordings of the same kind are none."""
    write_sound(recordings(tmp_path) / "low" / "copy.flac", 0.5 * melody(3, 22050), 22050)
    finding = found(train=str(tmp_path))["duplicate-near"]
    assert "Rows with a near copy: 2 of 51 (groups: 1)." in finding.message and "copy.flac" in finding.rows[0]


def test_saved_bytes_grow_with_the_batch():
    import torch

    from hftransfer.doctor.training import saved_bytes

    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 8))
    sizes = [saved_bytes(model, {"input": torch.ones(rows, 64)}) for rows in (10, 20)]
    # The input and the output of the ReLU are kept: 2 x 64 float32 a row.
    assert sizes == [10 * 2 * 64 * 4, 20 * 2 * 64 * 4]


def test_metadata_is_judged_against_chance():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, 400)
    noise = guess_accuracy(rng.normal(size=400).tolist(), target)
    told = guess_accuracy([f"station {value}, {number}" for number, value in enumerate(target)], target)
    assert noise[1] == 0.25 and noise[0] < 0.35 and told[0] > 0.95


def test_what_a_random_split_would_have_reported():
    """Groups of equal features with labels by chance: the honest score is chance, the random split finds copies."""
    from hftransfer.doctor.split_bias import compare
    from hftransfer.tasks import SingleLabel

    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(60), 4)
    rows = pd.DataFrame(
        {
            "id": [f"id{number}" for number in range(240)],
            "group": pd.Series([f"g{number}" for number in group], dtype=object),
            "label": pd.Series(np.array(["a", "b"])[rng.integers(0, 2, 60)[group]], dtype=object),
        }
    )
    features = rng.normal(size=(60, 80))[group] + rng.normal(0, 0.01, (240, 80))
    result = compare(features, rows, SingleLabel(("a", "b")), 0.2)
    assert result.grouped < 0.65 and result.random > 0.9
    assert (
        f"have shown {100 * result.random:.1f} % accuracy instead of {100 * result.grouped:.1f} %" in result.describe()
    )
    independent = compare(features, rows.assign(group=None), SingleLabel(("a", "b")), 0.2)
    assert independent.grouped == independent.random and independent.spread == 0


def test_groups_that_leave_no_test_part_compare_nothing(tmp_path, caplog):
    frame_ = pd.DataFrame({"text": sentences(40), "label": ["good", "bad"] * 20})
    data = save(tmp_path / "t.csv", frame_.assign(site=frame_["label"].map({"good": "north", "bad": "south"})))
    run = text_run(tmp_path, data={"train": str(data), "label": "label", "split": {"group": "site"}})
    assert "leak-measured" not in {finding.id for finding in examine(run.data, run, measure=True)}
    assert "Every class stands in one group: no test part can be cut by groups" in caplog.text


def test_pairs_that_lie_much_closer_than_neighbours_do():
    from hftransfer.doctor.split_bias import nearest_pairs

    features = np.random.default_rng(0).normal(size=(50, 8))
    features[7] = features[30] + 0.01
    features[4] = features[30] - 0.03
    assert nearest_pairs(features) == [(7, 30), (4, 30), (4, 7)]
    assert nearest_pairs(features[31:]) == []


def test_folders_in_a_table_of_paths_can_tell_the_label(tmp_path):
    from tests.support import tiny

    tiny.image_folder(tmp_path / "images", ("red", "green"), per_class=30)
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.png"))
    table = save(tmp_path / "t.csv", frame(path=paths, label=[path.split("/")[1] for path in paths]))
    message = found(train=table)["label-in-metadata"].message
    assert message == "The folder of the file alone tells the class in 100% of the cases (chance: 50%)."


def test_names_of_classes_in_their_texts_are_named(tmp_path):
    texts = [f"{text} {'sports' if number % 2 else ''}" for number, text in enumerate(sentences(60))]
    labels = ["politics", "sports"] * 30
    finding = found(train=save(tmp_path / "t.csv", frame(text=texts, label=labels)))["label-in-input"]
    assert finding.rows == ("sports: in 100% of its texts, 100% of all that hold it",)


def test_misread_text_and_its_repair():
    assert reread("cafÃ© â€“ dÃ©jÃ\xa0 vu".replace("Ã\xa0", "Ã\u00a0")) == "café – déjà vu"
    for sound in ("café", "naïve Ærø", "plain", "日本語", "Ã", "price: 5 €"):
        assert reread(sound) == sound and not is_misread(sound)


# What is given at the start of a run


def test_loaded_data_is_examined_without_reading_it_again(tmp_path):
    data = load_data(DataConfig(train=save(tmp_path / "t.csv", frame(), frame(4, 1, label=["odd"] * 4))))
    (tmp_path / "t.csv").unlink()
    assert "label-rare" in {finding.id for finding in examine_loaded(data)}


# The command


def test_exit_codes():
    error, warning, note = Finding("leak", ""), Finding("leak-near", ""), Finding("image-mode", "")
    assert [exit_code(found) for found in ([], [note], [warning, note], [error])] == [0, 0, 0, 1]
    assert [exit_code(found, strict=True) for found in ([note], [warning], [error])] == [0, 1, 1]


def test_command_prints_findings_and_a_summary(tmp_path):
    stream = io.StringIO()
    path = save(tmp_path / "t.csv", frame(), frame().head(3))
    assert doctor(DataConfig(train=path), stream=stream) == 0
    assert "WARNING duplicate: Rows with an equal input elsewhere: 6 (groups: 3)." in stream.getvalue()
    assert "0 errors, 1 warning, 0 notes. `hftransfer explain ID` says more" in stream.getvalue()
    assert doctor(DataConfig(train=path), strict=True, stream=io.StringIO()) == 1


def test_command_as_json(tmp_path):
    stream = io.StringIO()
    code = doctor(DataConfig(train=str(tmp_path / "none.csv")), as_json=True, stream=stream)
    report = json.loads(stream.getvalue())
    assert code == report["exit_code"] == 1
    (finding,) = report["findings"]
    assert finding["id"] == "data-unreadable" and finding["severity"] == "error" and finding["fix"]


def test_explain():
    assert explain("leak").startswith("leak (error)\n\nTest or validation inputs")
    with pytest.raises(UserError, match="There is no finding 'leek'. Did you mean 'leak'?"):
        explain("leek")


def test_the_doctor_of_data_needs_no_torch(tmp_path):
    path = save(tmp_path / "t.csv", frame())
    code = (
        "import sys; from hftransfer.doctor import doctor; from hftransfer.data import DataConfig\n"
        f"doctor(DataConfig(train={path!r}))\n"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "[]"


# The cleaned copy


def test_fixed_folder(tmp_path):
    photos(tmp_path / "set")
    photos(tmp_path / "set", ("Cat ",), 3)
    scene(500).save(tmp_path / "set" / "dog" / "wrong.png", "JPEG")
    (tmp_path / "set" / "dog" / "broken.jpg").write_bytes(b"no image")
    before = sorted(path for path in (tmp_path / "set").rglob("*"))
    (copy,) = fix(DataConfig(train=str(tmp_path / "set")))
    assert copy == tmp_path / "set-cleaned" and sorted(path for path in (tmp_path / "set").rglob("*")) == before
    assert sorted(path.name for path in copy.iterdir()) == ["cat", "dog"]
    assert not (copy / "dog" / "broken.jpg").exists() and (copy / "dog" / "wrong.jpg").exists()
    # The three of "Cat " are the same pictures as three of "cat": once they are one class, one of each stays.
    assert len(list((copy / "cat").iterdir())) == 25
    left = found(train=str(copy))
    assert not {"image-broken", "image-suffix", "label-near-equal", "duplicate"} & set(left)
    with pytest.raises(UserError, match="The cleaned copy .*set-cleaned exists already: move it away first."):
        fix(DataConfig(train=str(tmp_path / "set")))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".json", ".tsv"])
def test_fixed_table(tmp_path, suffix):
    rows = pd.concat(
        [
            frame().assign(note="x"),
            frame().head(2).assign(note="copy"),
            frame().head(1).assign(note="contradicts", label="bad"),
            pd.DataFrame({"text": ["a <b>bold</b> &amp; schÃ¶n", " "], "label": ["Good", "bad"], "note": "y"}),
            pd.DataFrame({"text": ["no label"], "label": [""], "note": "z"}),
        ],
        ignore_index=True,
    )
    path = tmp_path / f"t{suffix}"
    writers = {
        ".csv": lambda: rows.to_csv(path, index=False),
        ".tsv": lambda: rows.to_csv(path, index=False, sep="\t"),
        ".jsonl": lambda: rows.to_json(path, orient="records", lines=True),
        ".json": lambda: rows.to_json(path, orient="records"),
        ".parquet": lambda: rows.to_parquet(path),
    }
    writers[suffix]()
    before = path.read_bytes()
    config = {"input": "text", "label": "label"}
    (copy,) = fix(DataConfig(train=str(path), **config))
    assert copy.name == f"t.cleaned{suffix}" and path.read_bytes() == before
    cleaned = load_data(DataConfig(train=str(copy), **config)).frame
    assert len(cleaned) == 62 and cleaned["input"].iloc[-1] == "a bold & schön"
    assert set(cleaned["label"]) == {"good", "bad"}
    assert (cleaned["input"] == frame()["text"][0]).sum() == 2, "the contradiction is left for a person"


def test_fix_takes_leaks_out_of_training_only(tmp_path):
    train = frame()
    test = pd.concat([frame(20, 1), train.head(4)])
    near = train.iloc[4:6].assign(text=train["text"].iloc[4:6].str.upper() + "!")
    paths = save(tmp_path / "t.csv", train), save(tmp_path / "test.csv", test, near)
    copies = fix(DataConfig(train=paths[0], test=paths[1]))
    config = DataConfig(train=str(copies[0]), test=str(copies[1]))
    assert len(pd.read_csv(copies[0])) == 54 and len(pd.read_csv(copies[1])) == 26
    assert not {"leak", "leak-near"} & {finding.id for finding in examine(config)}


def test_fix_of_a_folder_of_split_tables(tmp_path):
    save(tmp_path / "train.csv", frame(), frame().head(2))
    save(tmp_path / "test.csv", frame(20, 1))
    assert [path.name for path in fix(DataConfig(train=str(tmp_path)))] == ["train.cleaned.csv", "test.cleaned.csv"]


def test_fix_refuses_what_is_no_file(tmp_path):
    import datasets

    datasets.Dataset.from_pandas(frame()).save_to_disk(str(tmp_path / "saved"))
    with pytest.raises(UserError, match="--fix writes copies of folders and tables; .*saved is neither."):
        fix(DataConfig(train=str(tmp_path / "saved")))


def test_the_documentation_names_every_finding():
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    assert [id_ for id_, kind in KINDS.items() if f"| `{id_}` | {kind.severity} | {kind.meaning} |" not in text] == []
