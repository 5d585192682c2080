"""One definition, three ways in; every wrong field is named with the right one."""

from pathlib import Path
from typing import get_args

import pytest
import yaml

from hftransfer.config import NOT_FURTHER, RunConfig, checked, parse_overrides, read_yaml, with_overrides
from hftransfer.core.errors import UserError
from hftransfer.core.settings import Settings
from hftransfer.strategies import CHOICES

MINIMAL = {"data": {"train": "x"}, "model": "m"}
CONFIGS = sorted((Path(__file__).parent.parent / "configs").rglob("*.yaml"))


def test_yaml_round_trip(tmp_path):
    config = with_overrides(
        dict(MINIMAL), {"strategy.type": "lora", "strategy.r": 4, "training.extra": {"adam_beta2": 0.9}}
    )
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert RunConfig.from_yaml(tmp_path / "config.yaml") == config
    assert config.strategy.r == 4


def test_numbers_like_5e_4_are_numbers(tmp_path):
    assert parse_overrides(["training.learning_rate=5e-4", "training.extra={adam_epsilon: 1e-6}"]) == {
        "training.learning_rate": 5e-4,
        "training.extra": {"adam_epsilon": 1e-6},
    }
    (tmp_path / "c.yaml").write_text("a: 5e-4\nb: 1e3\n")
    assert read_yaml(tmp_path / "c.yaml") == {"a": 5e-4, "b": 1e3}


def test_a_bar_is_a_separator():
    assert parse_overrides(["data.separator=|"]) == {"data.separator": "|"}


def test_another_strategy_on_the_line_drops_the_fields_of_the_files():
    values = MINIMAL | {"strategy": {"type": "lora", "r": 4}}
    assert with_overrides(values, {"strategy.type": "frozen", "strategy.top": 2}).strategy.top == 2


def test_short_forms():
    config = checked({"data": "folder", "model": "name", "strategy": "full"})
    assert (config.data.train, config.model.name, config.strategy.type) == ("folder", "name", "full")
    assert with_overrides({"data": "d", "model": "m", "strategy": "lora"}, {"strategy.r": 2}).strategy.r == 2


@pytest.mark.parametrize(("overrides", "message"), [
    ({"strategy.type": "lorra"}, "Unknown strategy 'lorra'. Did you mean 'lora'?"),
    ({"strategy": {"type": "lora", "rank": 3}}, "Unknown field strategy.rank. Choose from: type, head_init, r, alpha, dropout, top."),
    ({"trainning.learning_rate": 1}, "Unknown field trainning. Did you mean 'training'?"),
    ({"training.learningrate": 1}, "Unknown field training.learningrate. Did you mean 'learning_rate'?"),
    ({"training.learning_rate": "fast"}, "training.learning_rate: input should be a valid number, unable to parse string as a number, found 'fast'."),
    ({"data.on_error": "ignore"}, "data.on_error: input should be 'stop' or 'skip', found 'ignore'."),
    ({"training.label_smoothing_factor": 1.5}, "training.label_smoothing_factor: input should be less than 1, found 1.5."),
    ({"training.learning_rate": -1e-3}, "training.learning_rate: input should be greater than 0, found -0.001."),
    ({"training.max_steps": 0}, "training.max_steps: input should be greater than or equal to 1, found 0."),
    ({"strategy": {"type": "full", "layer_decay": 8}}, "strategy.layer_decay: input should be less than or equal to 1, found 8."),
    ({"training.extra": {"max_steps": 3}}, "training.extra: max_steps is set by the run itself: use training.max_steps."),
    ({"training.extra": {"remove_unused_columns": True}}, "training.extra: remove_unused_columns is set by the run itself: leave it out."),
    ({"training.extra": {"hub_token": "hf_secret"}}, "training.extra: hub_token is set by the run itself: use hf auth login."),
    ({"data.label": False}, "data.label: input should be a valid string, found False. In YAML, put a text in quotes."),
    ({"output": 1}, "output: input should be a valid string, found 1. In YAML, put a text in quotes."),
    ({"seed": -1}, "seed: input should be greater than or equal to 0, found -1."),
])  # fmt: skip
def test_wrong_fields_are_named_with_the_right_ones(overrides, message):
    with pytest.raises(UserError) as error:
        with_overrides({"data": {"train": "x"}, "model": "m"}, overrides)
    assert str(error.value) == message


# Numbers that may be anything: which block of how many, and how many of them, is for the network to say.
OPEN = {"head.layer", "strategy.top"}
IMPOSSIBLE = (-1, 0, 2**40)


def numbers(model, path=""):
    """Dotted names of all fields that take a number."""
    for name, field in model.model_fields.items():
        inner = [kind for kind in (field.annotation, *get_args(field.annotation)) if isinstance(kind, type)]
        if section := next((kind for kind in inner if issubclass(kind, Settings)), None):
            yield from numbers(section, f"{path}{name}.")
        elif "int" in str(field.annotation) or "float" in str(field.annotation):
            yield f"{path}{name}"


@pytest.mark.parametrize("strategy", CHOICES)
def test_every_number_has_a_range(strategy):
    chosen = type(checked(MINIMAL | {"strategy": strategy}).strategy)
    names = [*numbers(RunConfig), *numbers(chosen, "strategy.")]
    assert len(names) > 25
    for name in {*names} - OPEN:
        refused = []
        for value in IMPOSSIBLE:
            start = {"data": {"train": "x"}, "model": {"name": "m"}, "strategy": {"type": strategy}}
            try:
                with_overrides(start, {name: [value] if "schedule" in name else value})
            except UserError as error:
                refused.append(str(error))
        assert refused and all(name in error for error in refused), name


def test_arguments_that_are_set_by_the_run_are_those_of_transformers():
    from transformers import TrainingArguments

    assert NOT_FURTHER.keys() <= TrainingArguments.__dataclass_fields__.keys()


def test_missing_data():
    with pytest.raises(
        UserError, match="^data is missing: set it in the configuration or as data=… on the command line."
    ):
        checked({"model": "x"})


@pytest.mark.parametrize(("text", "message"), [
    ("- a\n", "Expected a mapping such as 'model: …' in .*, found list."),
    ("a: [", "is no valid YAML"),
    ("a: !!python/object/apply:os.system [ls]", "is no valid YAML"),
])  # fmt: skip
def test_broken_files(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_yaml(tmp_path / "c.yaml")


def test_missing_file_and_other_encoding(tmp_path):
    with pytest.raises(UserError, match="Cannot read the configuration .*: No such file or directory."):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "c.yaml").write_bytes(b"a: \xff")
    with pytest.raises(UserError, match="is not UTF-8 text."):
        read_yaml(tmp_path / "c.yaml")


@pytest.mark.parametrize("pair", ["learning_rate", "=3", "Training.x=1", "a b=1"])
def test_overrides_of_another_form(pair):
    with pytest.raises(UserError, match="Expected key=value such as training.learning_rate=1e-3, found"):
        parse_overrides([pair])


def test_every_config_of_the_project_loads():
    assert (
        len(CONFIGS) == 27
    )  # one per strategy and modality; auto of images and texts; three each of entities and masks; one of several inputs
    for path in CONFIGS:
        config = RunConfig.from_yaml(path)
        assert path.stem == f"{config.strategy.type}", path
        assert path.parent.name in ("audio", "fusion", "image", "masks", "text", "tokens")
        assert yaml.safe_load(path.read_text())["data"]


def test_the_schema_knows_every_strategy():
    text = str(RunConfig.model_json_schema())
    assert all(name in text for name in ("FrozenStrategy", "LoraStrategy", "GradualStrategy", "label_smoothing_factor"))
