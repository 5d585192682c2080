"""Hostile inputs, one row each: what was tried, and what has to happen. docs/safety.md lists the same names."""

import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import UserDict
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hftransfer.config import RunConfig, checked, parse_overrides, read_yaml, with_overrides
from hftransfer.core.errors import UserError
from hftransfer.data import DataConfig, load_data, load_inputs
from hftransfer.data.labels import read_labels
from hftransfer.doctor import examine
from hftransfer.modalities import kind_of
from hftransfer.models.loading import ModelConfig, load_checkpoint
from hftransfer.prediction.predictor import load
from hftransfer.tasks import SingleLabel, task_kind
from tests.support import tiny

ROOT = Path(__file__).parents[2]
TASK = SingleLabel(("a", "b", "c"))
MARK = "hftransfer_was_here"


class RunsCode:
    """A pickle that leaves a mark when it is opened."""

    def __init__(self, place):
        self.place = place

    def __reduce__(self):
        return (exec, (f"open({str(self.place)!r}, 'w')",))


# --- checkpoints -----------------------------------------------------------------------------------------------------


def bert(folder):
    return tiny.TEXT_FAMILIES["bert"](folder / "bert")


def load_text(path):
    return load_checkpoint(ModelConfig(name=str(path)), kind_of("text"), TASK)


def changed_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def pickle_in_pth(folder):
    weights = folder / "weights.pth"
    weights.write_bytes(pickle.dumps({"state_dict": RunsCode(folder / MARK)}))
    config = ModelConfig(name="resnet10t", weights=str(weights))
    return lambda: load_checkpoint(config, kind_of("image"), TASK)


def pickle_in_bin(folder):
    model = bert(folder)
    (model / "model.safetensors").unlink()
    torch.save({"bert.x": RunsCode(folder / MARK)}, model / "pytorch_model.bin")
    return lambda: load_text(model)


def pickle_named_safetensors(folder):
    model = bert(folder)
    (model / "model.safetensors").write_bytes(pickle.dumps(RunsCode(folder / MARK)))
    return lambda: load_text(model)


def remote_code(folder):
    model = bert(folder)
    (model / "evil.py").write_text(f"open({str(folder / MARK)!r}, 'w')\nclass Config: pass\n")
    changed_json(model / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    return lambda: load_text(model)


def remote_code_of_the_tokenizer(folder):
    model = bert(folder)
    (model / "evil.py").write_text(f"open({str(folder / MARK)!r}, 'w')\nclass Words: pass\n")
    changes = {"tokenizer_class": "Words", "auto_map": {"AutoTokenizer": ["evil.Words", None]}}
    changed_json(model / "tokenizer_config.json", **changes)
    return lambda: load_text(model)


def header_of_wrong_length(folder):
    model = bert(folder)
    (model / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}")
    return lambda: load_text(model)


def header_of_a_huge_tensor(folder):
    model = bert(folder)
    header = json.dumps({"x": {"dtype": "F32", "shape": [10**9, 10**3], "data_offsets": [0, 4 * 10**12]}}).encode()
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return lambda: load_text(model)


def shards_outside(folder):
    model = bert(folder)
    os.replace(model / "model.safetensors", folder / "outside.safetensors")
    names = {"bert.embeddings.word_embeddings.weight": "../outside.safetensors"}
    (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return lambda: load_text(model)


def config_with(**changes):
    def make(folder):
        model = bert(folder)
        changed_json(model / "config.json", **changes)
        return lambda: load_text(model)

    return make


def nested_config(folder):
    model = bert(folder)
    (model / "config.json").write_text('{"a":' * 50_000 + "1" + "}" * 50_000)
    return lambda: load_text(model)


def broken_tokenizer(folder):
    model = bert(folder)
    (model / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "Evil"}}')
    return lambda: load_text(model)


def broken_tokenizer_regex(folder):
    model = bert(folder)
    changed_json(
        model / "tokenizer.json",
        pre_tokenizer={"type": "Split", "pattern": {"Regex": "(((("}, "behavior": "Isolated", "invert": False},
    )
    return lambda: load_text(model)


def image_size_of_a_processor(folder):
    model = tiny.VISION_FAMILIES["vit"](folder / "vit")
    changed_json(model / "preprocessor_config.json", size={"height": 10**6, "width": 10**6})
    return lambda: load_checkpoint(ModelConfig(name=str(model)), kind_of("image"), TASK)


# --- images and tables -----------------------------------------------------------------------------------------------


def folder_with(name, content):
    """An image folder with one file more, of this content, in a class."""

    def make(folder):
        data = tiny.image_folder(folder / "data")
        (data / "red" / name).write_bytes(content(folder) if callable(content) else content)
        return lambda: load_data(DataConfig(train=str(data)))

    return make


def png(width, height, rows=b""):
    """A PNG with a header of this size over next to no data."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def png_bytes(folder):
    tiny.image("red").save(folder / "x.png")
    return (folder / "x.png").read_bytes()


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) print\n%%EOF\n"
PDF = b"%PDF-1.4\n1 0 obj<</Type/Catalog>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"
SVG = b'<?xml version="1.0"?><!DOCTYPE s [<!ENTITY x SYSTEM "file:///etc/passwd">]><svg xmlns="http://www.w3.org/2000/svg">&x;</svg>'


def link_to(target, name):
    def make(folder):
        data = tiny.image_folder(folder / "data")
        tiny.image_folder(folder / "elsewhere")
        os.symlink(folder / target, data / "red" / name)
        return lambda: load_data(DataConfig(train=str(data)))

    return make


def path_in_table(path):
    def make(folder):
        data = tiny.image_folder(folder / "data")
        tiny.image_folder(folder / "elsewhere")
        os.symlink(folder / "elsewhere", data / "link")
        rows = [{"path": f"{label}/{n:03d}.png", "label": label} for label in ("red", "green") for n in range(12)]
        rows.append({"path": path.format(folder=folder), "label": "red"})
        pd.DataFrame(rows).to_csv(data / "t.csv", index=False)
        return lambda: load_data(DataConfig(train=str(data / "t.csv")))

    return make


def pipe(folder):
    data = tiny.image_folder(folder / "data")
    os.mkfifo(data / "red" / "pipe.png")
    return lambda: load_data(DataConfig(train=str(data)))


def file_name_of_broken_bytes(folder):
    data = tiny.image_folder(folder / "data")
    shutil.copy(data / "red" / "000.png", os.fsencode(data / "red") + b"/\xff.png")
    return lambda: load_data(DataConfig(train=str(data)))


def class_of_broken_bytes(folder):
    data = tiny.image_folder(folder / "data")
    os.rename(data / "red", os.fsencode(data) + b"/\xff")
    return lambda: load_data(DataConfig(train=str(data)))


def table(content, suffix=".csv", rows=20):
    def make(folder):
        path = folder / f"t{suffix}"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return lambda: load_data(DataConfig(train=str(path)))

    return make


def csv_of(labels, texts=None):
    """A table with ten texts for each label."""
    rows = [
        {"text": (texts or "number {} of {}").format(n, k), "label": label}
        for k, label in enumerate(labels)
        for n in range(10)
    ]
    return pd.DataFrame(rows).to_csv(index=False)


def jsonl_of(labels):
    rows = [{"text": f"some words {n} {k}", "label": label} for k, label in enumerate(labels) for n in range(10)]
    return "\n".join(map(json.dumps, rows))


def parquet_with_metadata(folder):
    import pyarrow as pa
    import pyarrow.parquet as pq

    made = pa.table({"text": ["some words here"] * 4, "label": ["a", "b"] * 2}).replace_schema_metadata(
        {b"huggingface": b"{{{"}
    )
    pq.write_table(made, folder / "t.parquet")
    return lambda: load_data(DataConfig(train=str(folder / "t.parquet")))


def pickle_as_parquet(folder):
    (folder / "t.parquet").write_bytes(pickle.dumps(RunsCode(folder / MARK)))
    return lambda: load_data(DataConfig(train=str(folder / "t.parquet")))


# --- configurations --------------------------------------------------------------------------------------------------


def yaml_file(content):
    def make(folder):
        (folder / "c.yaml").write_text(content.replace("MARK", str(folder / MARK)))
        return lambda: RunConfig.from_yaml(folder / "c.yaml")

    return make


LAUGHS = 'a: &a ["lol","lol","lol","lol","lol","lol","lol","lol","lol"]\n' + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


# --- the demo --------------------------------------------------------------------------------------------------------


def archive(members, kind="image"):
    def make(folder):
        from hftransfer.apps import uploads

        path = folder / "upload.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members:
                file.writestr(name, content)
        return lambda: uploads.read_batch(str(path), kind_of(kind), [], folder / "unpacked")

    return make


def link_member(target):
    info = zipfile.ZipInfo("link.png")
    info.external_attr = 0o120777 << 16
    return info, target


def uploaded_table(folder):
    from hftransfer.apps import uploads

    (folder / "t.csv").write_text("text\n/etc/passwd\n../secret.txt\n")
    return lambda: list(
        uploads.read_batch(str(folder / "t.csv"), kind_of("text"), ["text"], folder / "unpacked")["input"]
    )


# --- the table -------------------------------------------------------------------------------------------------------

REFUSED = {
    # checkpoints
    "a pickle that runs code, as .pth": (pickle_in_pth, "is a pickle that holds more than tensors"),
    "a pickle that runs code, as pytorch_model.bin": (pickle_in_bin, "cannot be read|holds more than tensors"),
    "a pickle called model.safetensors": (pickle_named_safetensors, "cannot be read"),
    "Python code in a model's repository": (remote_code, "needs Python code from its own repository"),
"a safetensors header of 2^64 bytes": (header_of_wrong_length, "cannot be read"),
    "a safetensors header of a tensor of 4 TB": (header_of_a_huge_tensor, "cannot be read"),
    "an index of shards that points out of the folder": (shards_outside, "names ../outside.safetensors, outside of its folder"),
    "a config of a billion channels": (config_with(hidden_size=10**9, intermediate_size=10**9), "hidden_size is 1,000,000,000"),
    "a config of ten million layers": (config_with(num_hidden_layers=10**7), "num_hidden_layers is 10,000,000"),
    "a config of 10^15 tokens": (config_with(vocab_size=10**15), "vocab_size is"),
    "a config of no type": (config_with(model_type=["bert"]), "cannot be read"),
    "a config nested 50,000 deep": (nested_config, "cannot be read"),
    "a tokenizer of unknown parts": (broken_tokenizer, "cannot be read"),
    "a tokenizer with a broken regex": (broken_tokenizer_regex, "cannot be read"),
    "an image processor of 10^12 pixels": (image_size_of_a_processor, "pixels"),
    # images
    "a PNG of 60,000 x 60,000 pixels": (folder_with("bomb.png", png(60_000, 60_000)), "pixels"),
    "a PNG of 10,000 x 10,000 pixels over no data": (folder_with("bomb.png", png(10_000, 10_000)), "bomb.png"),
    "an SVG that reads a file": (folder_with("x.png", SVG), "its content is no image that Pillow knows"),
    "a PDF called .jpg": (folder_with("x.jpg", PDF), "its content is no image that Pillow knows"),
    "PostScript called .png": (folder_with("x.png", POSTSCRIPT), "its content is no image that Pillow knows"),
    "a page of HTML called .png": (folder_with("x.png", b"<html><script>alert(1)</script>"), "is no image that Pillow knows"),
    "an empty image": (folder_with("x.png", b""), "is no image that Pillow knows"),
    "a file name that is no Unicode": (file_name_of_broken_bytes, "is no valid Unicode"),
    "a class folder that is no Unicode": (class_of_broken_bytes, "is no valid Unicode"),
    "a named pipe called .png": (pipe, "it is no file"),
    "a link to a file outside": (link_to("elsewhere/red/000.png", "link.png"), "leads out of the data folder"),
    "a link to a folder outside": (link_to("elsewhere", "link"), "leads out of the data folder"),
    "a link to a device": (lambda folder: link_to("/dev/zero", "zero.png")(folder), "leads out of the data folder"),
    "../ in a table's path": (path_in_table("../elsewhere/red/000.png"), "lies outside of the data folder"),
    "an absolute path in a table": (path_in_table("{folder}/elsewhere/red/000.png"), "lies outside of the data folder"),
    "a table's path through a link": (path_in_table("link/red/000.png"), "lies outside of the data folder"),
    "a table's path with NUL": (path_in_table("red/\0.png"), "holds a NUL byte"),
    "a table's path that is a URL": (path_in_table("https://example.org/a.png"), "there is no such file"),
    # tables
    "JSON nested 100,000 deep": (table("[" * 100_000, ".json"), "is not valid JSON"),
    "JSON with a number of 10,000 digits": (table('{"text": "a b c", "label": ' + "9" * 10_000 + "}", ".jsonl"), "is not valid JSON"),
    "a Parquet file with broken metadata": (parquet_with_metadata, "cannot be read as Parquet"),
    "a pickle called .parquet": (pickle_as_parquet, "cannot be read as Parquet"),
    "a table of zeros": (table(bytes(100_000)), "holds a NUL byte"),
    "a label with NUL": (table("text,label\nsome words,a\0b\n"), r"holds a NUL byte \(line 2\)"),
    # configurations
    "a YAML tag that runs code": (yaml_file("a: !!python/object/apply:os.system ['touch MARK']\n"), "is no valid YAML"),
    "a YAML alias bomb": (yaml_file(LAUGHS), "is no valid YAML: .*aliases"),
    "YAML nested 20,000 deep": (yaml_file("a: " + "[" * 20_000), "is no valid YAML"),
    "a YAML date that is none": (yaml_file("a: 2024-99-99\n"), "is no valid YAML"),
    "a YAML mapping of mappings": (yaml_file("? {a: b}\n: c\n"), "is no valid YAML"),
    # the demo
    "a zip with ../": (archive([("../evil.png", b"x")]), "points outside of the archive"),
    "a zip with an absolute path": (archive([("/evil.png", b"x")]), "points outside of the archive"),
    "a zip with a link": (archive([link_member("/etc/passwd")]), "link|outside|no image"),
    "a zip bomb": (archive([("zeros.png", bytes(501 * 2**20))]), "larger than 500 MB when unpacked"),
    "a zip of 10,000 texts": (archive([(f"{n}.txt", "x") for n in range(10_000)], "text"), "the limit is 2,000"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name, tmp_path):
    make, words = REFUSED[name]
    action = make(tmp_path)
    with pytest.raises(UserError, match=re.compile(words, re.DOTALL)) as error:
        action()
    assert not (tmp_path / MARK).exists()
    assert len(str(error.value)) < 4000


def names(data):
    return set(data.task.names)


ODD_LABELS = {
    "script": "<script>alert(1)</script>", "attribute": '"><img src=x onerror=alert(1)>', "template": "{{ 7*7 }}",
    "markdown": "[a](javascript:alert(1)) | `b`", "right to left": "abc\u202etxt.exe", "zero width": "ca\u200bt",
    "lines": "two\nlines", "composed": "caf\u00e9", "decomposed": "cafe\u0301", "regex": ".*(", "format": "%s{0}", "emoji": "\U0001f469\u200d\U0001f680",
    "yaml": "!!python/none: &a [", "path": "../../etc", "long": "x" * 1000, "slash": "a/b\\c",
}  # fmt: skip

TAKEN = {
    "Python code in a tokenizer's repository": (remote_code_of_the_tokenizer, lambda found: found.processor is not None),
    "a PNG called .jpg": (folder_with("999.jpg", png_bytes), lambda data: names(data) == {"red", "green", "blue"}),
    "a link inside of the folder": (link_to("data/green/000.png", "link.png"), lambda data: len(data.frame) == 37),
    "a label that looks like HTML": (table(csv_of([ODD_LABELS["script"], "b"])), lambda data: ODD_LABELS["script"] in names(data)),
    "labels of every odd kind": (table(csv_of(ODD_LABELS.values())), lambda data: len(names(data)) == len(ODD_LABELS)),
    "labels 1, 1.0 and '1'": (table(jsonl_of([1, 1.0, "1", "2"]), ".jsonl"), lambda data: names(data) == {"1", "2"}),
    "labels true and 'True'": (table(jsonl_of([True, "True", False]), ".jsonl"), lambda data: names(data) == {"True", "False"}),
    "texts that look like formulas": (table(csv_of("ab", "=cmd|'/c calc'!A1 {} {}")), lambda data: len(data.frame) == 20),
    "a table of paths to the demo": (uploaded_table, lambda texts: texts == ["/etc/passwd", "../secret.txt"]),
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_taken_for_what_it_is(name, tmp_path):
    make, holds = TAKEN[name]
    assert holds(make(tmp_path)())
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize(
    ("first", "second"), [("caf\u00e9", "cafe\u0301"), ("cat", "ca\u200bt"), ("cat", "cat\u202c"), ("cat", "CAT ")]
)
def test_labels_that_look_alike_are_pointed_out(tmp_path, first, second):
    (tmp_path / "t.csv").write_text(csv_of([first, second, "dog"]))
    assert "label-near-equal" in {finding.id for finding in examine(DataConfig(train=str(tmp_path / "t.csv")))}


def test_odd_labels_and_texts_leave_a_whole_run_whose_pages_are_harmless(tmp_path, pages):
    from hftransfer.train import run

    rows = [
        {"text": f"{label} words {n} <script>alert({n})</script>", "label": label}
        for label in ODD_LABELS.values() for n in range(20)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(tmp_path / "t.csv", index=False)
    values = {"data": {"train": str(tmp_path / "t.csv"), "task": "single_label"}, "model": str(bert(tmp_path))}
    folder = run(checked(values | {"output": str(tmp_path / "<b>run")})).folder
    page, card = ((folder / name).read_text() for name in ("report.html", "README.md"))
    assert "<script>alert" not in page and "<img src=x" not in page and "<b>run" not in page and "alert" in page
    prose = re.sub(r"```.*?```", "", card.split("---", 2)[2], flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<(script|img)", prose) and "alert" in prose
    predictor = load(folder, use_cpu=True)
    assert set(predictor.task.names) == set(ODD_LABELS.values())
    assert predictor.predict(["words"])["prediction"].iloc[0] in ODD_LABELS.values()


MEMORY_OF_A_LONG_LINE = """
import resource, sys
from hftransfer.models.loading import ModelConfig, load_checkpoint
from hftransfer.data import DataConfig, load_data
from hftransfer.modalities import kind_of
from hftransfer.tasks import SingleLabel
checkpoint = load_checkpoint(ModelConfig(name=sys.argv[2]), kind_of("text"), SingleLabel(("a", "b")))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = load_data(DataConfig(train=sys.argv[1]))
items = kind_of("text").bind(checkpoint.processor).encode(data.frame)
assert max(len(item["input_ids"]) for item in items) == 64
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_a_line_of_megabytes_takes_a_few_times_its_size(tmp_path):
    """A gigabyte scaled down: the table, its text and its tokens together stay below twelve times the file."""
    long = "goal match " * (4 * 2**20 // 11)
    (tmp_path / "t.csv").write_text(csv_of("ab") + f"{long},a\n")
    command = [sys.executable, "-c", MEMORY_OF_A_LONG_LINE, str(tmp_path / "t.csv"), str(bert(tmp_path))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 12 * len(long)


def test_a_regex_that_backtracks_is_given_little_to_work_on(tmp_path):
    """A tokenizer's regex runs over each text: only what can be read is handed to it."""
    from hftransfer.modalities import kind_of
    from hftransfer.modalities.text import readable

    seen = []

    class Words:
        model_max_length, model_input_names = 64, ["input_ids"]
        all_special_tokens, split_special_tokens = [], True

        def __call__(self, texts, **settings):
            seen.extend(texts)
            found = UserDict(input_ids=[[1]] * len(texts))
            found.encodings = [SimpleNamespace(overflowing=[]) for _ in texts]
            return found

    tokenizer = Words()
    kind_of("text").bind(tokenizer).encode(pd.DataFrame({"input": ["a" * 10**6, "short"]}))
    assert max(map(len, seen)) == readable(64) < 10**5 and "short" in seen


def test_outside_on_purpose(tmp_path):
    data = path_in_table("../elsewhere/red/000.png")(tmp_path) and load_data(
        DataConfig(train=str(tmp_path / "data" / "t.csv"), allow_outside=True)
    )
    assert len(data.frame) == 25


# --- driven at random ------------------------------------------------------------------------------------------------

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=12),
    st.sampled_from(["lora", "auto", "probe", "1e-3", "a.csv"]),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=6,
)
FIELDS = ["data", "model", "strategy", "training", "evaluation", "head", "augmentation", "seed", "output", "data.train", "data.split.test",
          "training.learning_rate", "training.extra", "training.warmup_steps", "strategy.type", "strategy.r", "model.name", "head.pooling"]  # fmt: skip
keys = st.one_of(st.sampled_from(FIELDS), st.from_regex(r"[a-z_]{1,8}(\.[a-z_]{1,8}){0,2}", fullmatch=True))
quick = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@quick
@given(st.dictionaries(keys, values, max_size=5), st.booleans())
def test_any_configuration_is_valid_or_the_users_mistake(overrides, sound):
    start = {"data": {"train": "t.csv"}, "model": {"name": "m"}} if sound else {}
    try:
        config = with_overrides(start, overrides)
    except UserError:
        return
    again = checked(config.model_dump(mode="json"))
    assert again.model_dump_json() == config.model_dump_json()


@quick
@given(st.lists(st.text(max_size=30), max_size=4))
def test_any_words_on_the_line_are_overrides_or_the_users_mistake(pairs):
    try:
        parse_overrides(pairs + [f"a={pair}" for pair in pairs])
    except UserError:
        pass


@quick
@given(st.one_of(st.text(max_size=200).map(str.encode), st.binary(max_size=200)))
def test_any_yaml_is_a_mapping_or_the_users_mistake(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(content)
    try:
        assert isinstance(read_yaml(path), dict)
    except UserError:
        pass


rows = st.lists(st.tuples(st.text(max_size=20), st.text(max_size=6)), max_size=30)


@quick
@given(st.one_of(st.binary(max_size=300), st.text(alphabet='a,"\n\r;\t\0\ufeff\x1a', max_size=300).map(str.encode),
                 rows.map(lambda found: pd.DataFrame(found, columns=["text", "label"]).to_csv(index=False).encode("utf-8", "surrogatepass"))),
       st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".parquet"]))  # fmt: skip
def test_any_table_is_read_or_the_users_mistake(tmp_path_factory, content, suffix):
    path = tmp_path_factory.getbasetemp() / f"any{suffix}"
    path.write_bytes(content)
    for read in (lambda: load_data(DataConfig(train=str(path))), lambda: load_inputs([str(path)], "text")):
        try:
            read()
        except UserError:
            pass


labels = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(max_size=8),
    st.lists(st.one_of(st.text(max_size=4), st.integers(), st.none()), max_size=3),
)


@quick
@given(
    st.lists(labels, min_size=1, max_size=20),
    st.sampled_from([None, "single_label", "multi_label", "regression"]),
    st.sampled_from([None, "|", ".", ".*"]),
)
def test_any_labels_are_read_or_the_users_mistake(found, task, separator):
    try:
        read, rows = read_labels(
            pd.DataFrame({"label": pd.Series(found, dtype=object)}), task and task_kind(task), separator, None
        )
    except UserError:
        return
    given_ = [label for label in rows if label is not None]
    if read.type != "regression":
        chosen = [name for label in given_ for name in ([label] if isinstance(label, str) else label)]
        assert set(chosen) == set(read.names)


def test_the_documentation_lists_every_input():
    text = (ROOT / "docs" / "safety.md").read_text(encoding="utf-8")
    for name in [*REFUSED, *TAKEN]:
        assert f"| {name} |" in text, name
    assert f"{len(REFUSED) + len(TAKEN)} inputs" in text
