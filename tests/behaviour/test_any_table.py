"""Any table in any format: what was written is what is read, and what cannot be used is the user's mistake."""

import json
import shutil
from dataclasses import dataclass
from functools import cache
from itertools import count
from pathlib import Path

import datasets
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from hftransfer.cli.commands import app
from hftransfer.core.errors import UserError
from hftransfer.data import DataConfig, load_data, load_inputs
from hftransfer.data.tables import read_table_source
from hftransfer.doctor import examine
from hftransfer.prediction import predictor
from tests.support import tiny

_CHECKS = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
few = settings(max_examples=25, deadline=None, database=None, derandomize=True, suppress_health_check=_CHECKS)
many = settings(max_examples=2000, deadline=None, database=None, derandomize=True, suppress_health_check=_CHECKS)

# Letters with everything that delimits, quotes or ends lines in some format, and words that some readers take for gaps.
characters = st.text(alphabet="ab 1é,;|\t\"'\\\n\r\u2028\x85=", max_size=12)
words = st.sampled_from(
    ["NA", "nan", "None", "null", "true", "007", "1.0", "1e5", "-1", "a good film", "it was, in truth, bad", "", " "]
)
cells = st.one_of(words, characters)
names = st.sampled_from(["nan", "NA", "None", "null", "yes", "no", "1", "1.0", "a|b", "-1", "b c"])
plain_tables = st.lists(st.tuples(st.one_of(words, characters), names), min_size=1, max_size=12)
numbers = iter(count())


def _write_json(orient):
    return lambda frame, path: frame.to_json(path, orient=orient)


def _write_indexed_lists(frame, path):
    path.write_text(json.dumps({"data": frame.to_dict("records"), "version": "1"}))


# Each name is a suffix after an optional layout; each value writes a frame as the usual tools do.
WRITERS = {
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
    "quoted.csv": lambda frame, path: frame.to_csv(path, index=False, quoting=1),
    "semicolons.csv": lambda frame, path: frame.to_csv(path, index=False, sep=";"),
    "windows.csv": lambda frame, path: frame.to_csv(path, index=False, lineterminator="\r\n", encoding="utf-8-sig"),
    ".tsv": lambda frame, path: frame.to_csv(path, index=False, sep="\t"),
    "records.json": _write_json("records"),
    "split.json": _write_json("split"),
    "columns.json": _write_json("columns"),
    "index.json": _write_json("index"),
    "data.json": _write_indexed_lists,
    ".jsonl": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    "lines.json": lambda frame, path: frame.to_json(path, orient="records", lines=True),
    ".parquet": lambda frame, path: frame.to_parquet(path, index=False),
}


def _fresh(tmp_path_factory, name):
    return tmp_path_factory.getbasetemp() / f"any{next(numbers)}{name if name.startswith('.') else '-' + name}"


def _read_back(rows, writer, tmp_path_factory):
    path = _fresh(tmp_path_factory, writer)
    WRITERS[writer](pd.DataFrame(rows, columns=["text", "label"]), path)
    frame = read_table_source(path).parts["all"]
    path.unlink()
    assert list(frame.columns) == ["text", "label"]
    return list(zip(frame["text"], frame["label"], strict=True))


@pytest.mark.parametrize("writer", WRITERS)
@few
@given(rows=plain_tables)
def test_what_was_written_is_read(tmp_path_factory, writer, rows):
    found = _read_back(rows, writer, tmp_path_factory)
    # spaces after a comma and line ends of Windows are no part of a value; a line end of any kind stays one
    assert [tuple(map(_normal, row)) for row in found] == [tuple(map(_normal, row)) for row in rows]


def _normal(value):
    return value.replace("\r\n", "\n").replace("\r", "\n").strip(" ")


# --- no traceback ----------------------------------------------------------------------------------------------------

values = st.one_of(
    cells, st.none(), st.integers(-3, 300), st.floats(), st.booleans(), st.lists(st.one_of(names, st.none()), max_size=3),
    st.dictionaries(names, names, max_size=2),
)  # fmt: skip
columns = st.lists(
    st.one_of(st.sampled_from(["text", "label", "Text", "split", "id", "image", "labels", "text_b"]), characters),
    min_size=1, max_size=4, unique=True,
)  # fmt: skip


@st.composite
def any_frames(draw):
    names_ = draw(columns)
    kinds = [draw(st.sampled_from([cells, names, values, st.integers(0, 3), st.floats()])) for _ in names_]
    size = draw(st.integers(0, 12))
    return {name: [draw(kind) for _ in range(size)] for name, kind in zip(names_, kinds, strict=True)}


configs = st.fixed_dictionaries(
    {},
    optional={
        "task": st.sampled_from(["single_label", "multi_label", "regression"]),
        "on_error": st.just("skip"),
        "label": st.sampled_from(["label", "labels", "id"]),
        "input": st.sampled_from(["text", "image"]),
        "separator": st.sampled_from(["|", ",", " "]),
    },
)


def _write_any(content, kind, path):
    """Write columns of any values; False where the format cannot hold them."""
    try:
        if kind == "saved":
            datasets.Dataset.from_dict(content).save_to_disk(path)
        else:
            WRITERS[kind](pd.DataFrame(content), path)
    except Exception:  # the writer's own limits, such as mixed types in Parquet
        return False
    return True


def _use(path, given_, settings_):
    config = DataConfig(train=str(path), **settings_)
    uses = [
        lambda: load_data(config),
        lambda: list(examine(config)),
        lambda: load_inputs([str(path)], "text"),
        lambda: load_inputs([str(path)], "image"),
    ]
    if given_ is not None:
        uses = [*uses[:2], lambda: load_data(config.model_copy(update={"train": None}), given_)]
    for use in uses:
        try:
            use()
        except UserError as error:
            assert str(error).strip()


def _any_table(tmp_path_factory, content, kind, settings_):
    path = _fresh(tmp_path_factory, kind)
    if _write_any(content, kind, path):
        _use(path, datasets.Dataset.from_dict(content) if kind == "saved" else None, settings_)


@few
@given(any_frames(), st.sampled_from([*WRITERS, "saved"]), configs)
def test_any_frame_is_used_or_the_users_mistake(tmp_path_factory, content, kind, settings_):
    _any_table(tmp_path_factory, content, kind, settings_)


@pytest.mark.slow
@many
@given(any_frames(), st.sampled_from([*WRITERS, "saved"]), configs)
def test_two_thousand_frames_are_used_or_the_users_mistake(tmp_path_factory, content, kind, settings_):
    _any_table(tmp_path_factory, content, kind, settings_)


# --- through the commands ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """Tiny checkpoints, and a run of each, that random data are given to."""

    folder: Path

    def model(self, kind: str) -> Path:
        return self.folder / f"{kind}-model"

    def run(self, kind: str) -> Path:
        return self.folder / f"{kind}-run"

    def train(self, kind: str, data: Path, output: Path) -> list[Path | str]:
        options = ["evaluation.explanations=false", "evaluation.resamples=100", "evaluation.folds=0", "use_cpu=true"]
        return ["train", data, "--model", self.model(kind), "--output", output, *options]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    known = Known(tmp_path_factory.mktemp("known"))
    makers = {"text": tiny.TEXT_FAMILIES["bert"], "image": tiny.VISION_FAMILIES["timm-resnet"]}
    data = {
        "text": tiny.text_table(known.folder / "t.csv", rows=40),
        "image": tiny.image_folder(known.folder / "pics", per_class=6),
    }
    for kind, make in makers.items():
        make(known.model(kind))
        assert _command(known.train(kind, data[kind], known.run(kind))) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predictor, "load", cache(predictor.load))  # 2,000 tables are asked of the same two runs
        yield known


def _command(arguments: list[Path | str]) -> int:
    """Run a command; its exit code, 2 for a mistake of the user. Any other exception fails the test."""
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if isinstance(result.exception, UserError):
        assert str(result.exception).strip()
        return 2
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise AssertionError(arguments) from result.exception
    return result.exit_code


usable_frames = st.integers(10, 16).flatmap(
    lambda size: st.fixed_dictionaries({
        "text": st.lists(st.one_of(words, characters, st.just("a good film")), min_size=size, max_size=size),
        "label": st.lists(st.one_of(names, st.sampled_from(["a", "b"])), min_size=size, max_size=size),
    })
)  # fmt: skip


def _write_data(content, kind, path):
    """Write columns of any values as a table, a folder of tables, or a folder of pictures; False where that cannot be."""
    if kind == "splits":
        path.mkdir()
        return all(_write_any(content, ".csv", path / f"{part}.csv") for part in ("train", "test"))
    if kind == "pictures":
        return _write_pictures(content, path)
    return _write_any(content, kind, path)


def _write_pictures(content, path):
    """Write a picture per row into a folder named by its first value; every fifth is broken."""
    path.mkdir()
    for number, value in enumerate(next(iter(content.values()))):
        folder = path / (str(value).replace("/", "|").strip(".")[:40] or "none")
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (12, 12), (20 * number, 0, 90)).save(folder / f"{number}.png")
        if number % 5 == 4:
            (folder / f"{number}.png").write_bytes(b"broken")
    return True


def _ask_commands(tmp_path_factory, known, content, kind, number):
    """Give data to the commands: to the runs of both kinds, and to `train`, once in ten times and once in twenty."""
    path = _fresh(tmp_path_factory, kind)
    if not _write_data(content, kind, path):
        return
    modality, output = "image" if kind == "pictures" else "text", path.with_name(f"{path.name}-run")
    asked = [["doctor", path], ["evaluate", known.run(modality), "--data", path, "--json"]]
    for run in (known.run("text"), known.run("image")) if number < 2 else (known.run(modality),):
        asked += [["predict", run, path, "--json"], ["next", path, "--run", run, "-n", "2"]]
    for arguments in [*asked, known.train(modality, path, output)] if number == 0 else asked:
        assert _command(arguments) in (0, 1, 2), arguments
    for made in (path, output):
        shutil.rmtree(made, ignore_errors=True) if made.is_dir() else made.unlink(missing_ok=True)


some_data = st.one_of(any_frames(), usable_frames)
some_kinds = st.sampled_from([*WRITERS, "saved", "splits", "pictures"])


@settings(few, max_examples=15)
@given(content=some_data, kind=some_kinds, number=st.integers(0, 19))
def test_any_data_end_in_success_or_the_users_mistake(tmp_path_factory, known, content, kind, number):
    _ask_commands(tmp_path_factory, known, content, kind, number)


@pytest.mark.slow
@settings(many)
@given(content=some_data, kind=some_kinds, number=st.integers(0, 19))
def test_two_thousand_data_sets_end_in_success_or_the_users_mistake(tmp_path_factory, known, content, kind, number):
    _ask_commands(tmp_path_factory, known, content, kind, number)


def test_a_saved_dataset_without_rows_is_named(tmp_path):
    datasets.Dataset.from_dict({"text": [], "label": []}).save_to_disk(tmp_path / "empty")
    with pytest.raises(UserError, match="empty holds no rows"):
        load_data(DataConfig(train=str(tmp_path / "empty")))


# --- pictures that are no texts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "kind"),
    [
        (" ".join(["70", "80", "255", "0"] * 16), "pixel values"),
        ("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJ", "base64"),
        ("data:image/jpeg;base64,/9j/4AAQSkZJRgABAQ", "base64"),
    ],
)
@pytest.mark.parametrize("named", [{}, {"input": "pixels"}])
def test_pictures_written_as_text_are_named(tmp_path, written, kind, named):
    path = tmp_path / "faces.csv"
    pd.DataFrame({"emotion": ["sad", "glad"] * 10, "pixels": [written] * 20}).to_csv(path, index=False)
    with pytest.raises(UserError, match=f"column 'pixels' holds pictures written as {kind}, not words"):
        load_data(DataConfig(train=str(path), **named))


@pytest.mark.parametrize("modality", ["text", "image"])
@pytest.mark.parametrize("columns", [None, ["pixels"]])
def test_pictures_written_as_text_are_not_predicted_as_words(tmp_path, modality, columns):
    path = tmp_path / "faces.csv"
    pd.DataFrame({"pixels": [" ".join(["70", "80"] * 40)] * 4}).to_csv(path, index=False)
    if modality == "image" and columns:
        return
    with pytest.raises(UserError, match="column 'pixels' holds pictures written as pixel values, not words"):
        load_inputs([str(path)], modality, columns)


def test_a_protein_and_a_phone_number_are_no_pictures(tmp_path):
    path = tmp_path / "t.csv"
    texts = [f"{'MKVLAAGIVG' * 5}{n}" if n % 2 else f"call 030 {n} 12 99 now please" for n in range(40)]
    pd.DataFrame({"text": texts, "label": ["x", "y"] * 20}).to_csv(path, index=False)
    assert len(load_data(DataConfig(train=str(path))).frame) == 40
