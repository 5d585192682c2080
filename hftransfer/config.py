"""One definition of a run, three ways in: YAML, key=value on the command line, Python."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hftransfer.core.errors import UserError, did_you_mean
from hftransfer.core.settings import Count, Seed, Settings
from hftransfer.data import DataConfig, LabelledData
from hftransfer.evaluation import EvaluationConfig
from hftransfer.modalities import AugmentationConfig, ModalityKind
from hftransfer.models.references import CheckpointConfig, ModelConfig, resolved
from hftransfer.strategies import CHOICES, AnyStrategy, ProbeStrategy
from hftransfer.strategies.head import HeadConfig

MOST_SHOWN = 200  # characters of a wrong value
# Arguments of the Trainer that a run itself depends on, or that would do nothing in it; and what stands for them.
NOT_FURTHER = {
    "output_dir": "output", "seed": "seed", "data_seed": "seed", "use_cpu": "use_cpu", "resume_from_checkpoint": "--resume",
    "push_to_hub": "push_to_hub", "hub_model_id": "push_to_hub", "hub_token": "hf auth login", "hub_private_repo": "push_to_hub",
    "greater_is_better": "training.metric_for_best_model", "do_train": None, "do_eval": None, "do_predict": None,
    "remove_unused_columns": None, "label_names": None, "train_sampling_strategy": None, "load_best_model_at_end": None,
    "auto_find_batch_size": None, "save_total_limit": None, "disable_tqdm": None, "eval_on_start": None,
    "deepspeed": None, "fsdp": None, "fsdp_config": None,
}  # fmt: skip


class TrainingConfig(Settings):
    """How to train, in the words of `transformers.TrainingArguments`; `extra` passes any other argument on.

    What is None is chosen by the strategy and said in the log. `warmup_steps` below 1 is a share of all steps. `weights`: those
    of the best step on the validation part, or their mean over the second half of the steps (three quarters of the way to
    it, where the head begins as the probe's). `auto` is the mean below 200 training examples, unless
    `early_stopping_patience` or `metric_for_best_model` is named.
    """

    learning_rate: float | None = Field(None, gt=0)
    num_train_epochs: float | None = Field(None, gt=0)
    max_steps: Count | None = None
    per_device_train_batch_size: Count = 32
    per_device_eval_batch_size: Count = 64
    gradient_accumulation_steps: Count = 1
    gradient_checkpointing: bool = False
    weight_decay: float | None = Field(None, ge=0)
    warmup_steps: float = Field(0.1, ge=0)
    lr_scheduler_type: str = "cosine"
    max_grad_norm: float = Field(1.0, ge=0)
    label_smoothing_factor: float = Field(0.0, ge=0, lt=1)
    imbalance: Literal["none", "balanced"] = "none"
    early_stopping_patience: Count | None = None
    weights: Literal["auto", "best", "mean"] = "auto"
    evaluations: Count = Field(5, description="how often a run stops to look at the validation part and save")
    bf16: bool | None = Field(None, description="None: measured on the device at hand")
    metric_for_best_model: str | None = Field(
        None, description="what chooses the step that is kept; None: the calibrated log-loss, or rmse"
    )
    report_to: str = "none"
    extra: dict[str, Any] = {}

    def resolved(self, kind: ModalityKind) -> "TrainingConfig":
        """Return this configuration with the batch size of the kind of input, unless one was named."""
        if kind.batch_size is None or "per_device_train_batch_size" in self.model_fields_set:
            return self
        return self.model_copy(update={"per_device_train_batch_size": kind.batch_size})

    @field_validator("extra")
    @classmethod
    def _are_further(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in extra:
            if name in cls.model_fields or name in NOT_FURTHER:
                instead = f"training.{name}" if name in cls.model_fields else NOT_FURTHER[name]
                use = f"use {instead}" if instead else "leave it out"
                raise PydanticCustomError("further", f"{name} is set by the run itself: {use}")
        return extra


class HubConfig(Settings):
    """Where a finished run goes on the Hub: `repo_id` as OWNER/NAME (None: nowhere), and its demo as the Space `space`.

    `update` adds a commit to repositories that hold something already. `push_to_hub: owner/name` is short for the first.
    """

    repo_id: str | None = None
    private: bool = False
    space: str | None = None
    update: bool = False

    @model_validator(mode="before")
    @classmethod
    def _is_no_switch(cls, value: Any) -> Any:
        if isinstance(value, bool):  # as in TrainingArguments, where the name stands elsewhere
            raise ValueError("expected the repository as OWNER/NAME")
        return value


class RunConfig(Settings):
    """Everything that decides a run. `output` None: `runs/<data>-<strategy>`."""

    data: DataConfig
    model: ModelConfig = ModelConfig()
    strategy: AnyStrategy = ProbeStrategy()
    head: HeadConfig = HeadConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    output: str | None = None
    push_to_hub: HubConfig = HubConfig()
    seed: Seed = 0
    use_cpu: bool = False
    store: bool = Field(True, description="keep what the frozen part computes, for this run and later ones")

    @property
    def output_folder(self) -> Path:
        name = Path((self.data.train or "data").removeprefix("hub:")).absolute().resolve().name
        name = name.split(":")[0].split(".")[0] or "data"
        return Path(self.output or f"runs/{name}-{self.strategy.type}")

    def of_input(self, name: str, output: Path) -> "RunConfig":
        """Return the configuration of the run of one of several inputs. It is measured once, as a part of theirs."""
        evaluation = self.evaluation.model_copy(update={"folds": 0, "seeds": 1, "metrics": []})
        parts = {"data": self.data.model_copy(update={"input": name}), "evaluation": evaluation, "output": str(output)}
        model = ModelConfig(**self.model.inputs[name].model_dump())
        return self.model_copy(update=parts | {"model": model, "push_to_hub": HubConfig()})

    def _model(self, data: LabelledData) -> ModelConfig:
        """Return the checkpoint made definite, or those of several inputs. Raises `UserError`."""
        if not data.several:
            return data.fitted(resolved(self.model, data.kind))
        views = {name: data.of_input(name) for name in data.looks}
        if unknown := self.model.inputs.keys() - views.keys():
            raise UserError(
                f"model.{min(unknown)}: no input of that name has a network.{did_you_mean(min(unknown), views)}"
            )
        common = CheckpointConfig(**self.model.model_dump(exclude={"inputs"}))
        if len(views) > 1 and common != CheckpointConfig():
            first = next(iter(views))
            raise UserError(
                f"There are several inputs ({', '.join(views)}): name a checkpoint for each, model.{first}=…."
            )
        inputs = {
            name: view.fitted(resolved(self.model.inputs.get(name, common), view.kind)) for name, view in views.items()
        }
        return ModelConfig(inputs=inputs)

    def resolved(self, data: LabelledData) -> "RunConfig":
        """Return this configuration with checkpoint and strategy made definite for the inputs."""
        strategy = self.strategy.resolved(data.kind, self.model.keep_head)
        model = self._model(data)
        evaluation = self.evaluation.for_task(data.task)
        training = self.training.resolved(data.kind)
        resolved_parts = {"strategy": strategy, "model": model, "evaluation": evaluation, "training": training}
        # What other masks, or other rows, are read by later.
        if found := {name: value for name, value in (("classes", data.classes), ("input", data.kinds)) if value}:
            resolved_parts["data"] = self.data.model_copy(update=found)
        return self.model_copy(update=resolved_parts)

    def to_yaml(self) -> str:
        """Return the resolved configuration; `RunConfig.from_yaml` reads it back equal."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Mapping[str, Any] | None = None) -> "RunConfig":
        """Read a file and put `overrides` ("strategy.type" -> value) over it. Raises `UserError`."""
        values = read_yaml(Path(path))
        for key, value in (overrides or {}).items():
            _put(values, key.split("."), value)
        return checked(values)


# A section that is given as one word: `strategy: lora` stands for `strategy: {type: lora}`.
SHORT_FOR = {"strategy": "type", "model": "name", "data": "train", "push_to_hub": "repo_id"}


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 5e-4 as the number that it is (YAML 1.1 takes it for a string), without aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a few lines of them can stand for billions of values
            raise yaml.YAMLError("aliases (*name) are not read here")
        return super().compose_node(parent, index)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def _parse(text: str) -> Any:
    """YAML as plain values. Raises `yaml.YAMLError`, also for what PyYAML itself stumbles over (2024-99-99, deep nesting)."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError) as error:
        raise yaml.YAMLError(str(error) or type(error).__name__) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Return a YAML file with a mapping in it. Raises `UserError` with the line where it is broken."""
    try:
        values = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Cannot read the configuration {path}: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UserError(f"The configuration {path} is not UTF-8 text.") from None
    except yaml.YAMLError as error:
        raise UserError(f"The configuration {path} is no valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"Expected a mapping such as 'model: …' in {path}, found {type(values).__name__}.")
    return values


OVERRIDE = re.compile(r"[a-z0-9_]+(\.[A-Za-z0-9_]+)*=.*", re.DOTALL)


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Parse `["strategy.r=16"]` into `{"strategy.r": 16}`. Raises `UserError`.

    An option that is text keeps what was typed; the values of all others are YAML.
    """
    overrides = {}
    for pair in pairs:
        if not OVERRIDE.fullmatch(pair):
            raise UserError(f"Expected key=value such as training.learning_rate=1e-3, found {pair!r}.")
        key, _, value = pair.partition("=")
        try:
            overrides[key] = _typed_text(value) if _is_text(key) and value[:1] != "{" else _parse(value)
        except yaml.YAMLError:
            raise UserError(f"The value of {key} is no valid YAML: {value!r}.") from None
    return overrides


def _typed_text(value: str) -> Any:
    """Return the text as typed: `no`, `1` and `#` are names too. `null`, `[a,b]` and a text in quotes are read as YAML."""
    if value in ("null", "~"):
        return None
    quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "\"'"
    return yaml.load(value, Loader=yaml.BaseLoader) if quoted or value.startswith("[") else value


def _is_text(key: str) -> bool:
    """Return whether the option `key` ("data.label") holds text, or a list of texts, in every section it exists in."""
    if key in SHORT_FOR:
        return key != "push_to_hub"  # where a switch is refused
    *parents, last = key.split(".")
    kinds = [model.model_fields[last].annotation for model in _models_at(parents) if last in model.model_fields]
    return bool(kinds) and all(map(_holds_text, kinds))


def _holds_text(annotation: Any) -> bool:
    """Return whether an annotation is made of str, list[str], dict[str, str], Literal names and None alone."""
    if get_origin(annotation) in (Union, UnionType, list, dict):
        return all(map(_holds_text, get_args(annotation)))
    if get_origin(annotation) is Literal:
        return all(isinstance(choice, str) for choice in get_args(annotation))
    return annotation in (str, NoneType)


def with_overrides(values: dict[str, Any], overrides: Mapping[str, Any]) -> RunConfig:
    """Return a checked configuration from plain values and dotted overrides. Raises `UserError`."""
    for key, value in overrides.items():
        _put(values, key.split("."), value)
    return checked(values)


def checked(values: Mapping[str, Any]) -> RunConfig:
    """Validate plain values. Raises `UserError` naming every wrong field, with the nearest right one."""
    values = dict(values)
    for section, field in SHORT_FOR.items():
        if isinstance(values.get(section), str):
            values[section] = {field: values[section]}
    if isinstance(values.get("model"), Mapping):
        values["model"] = _by_input(values["model"], values.get("data"))
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        problems = {_where(problem): problem for problem in reversed(error.errors())}  # a union fails once per member
        raise UserError("\n".join(_explain(problem) for problem in reversed(problems.values()))) from None


def _by_input(model: Mapping[str, Any], data: Any) -> dict[str, Any]:
    """Return the section with what it says of single inputs (`model.photo`) under `inputs`."""
    wanted = data.get("input") if isinstance(data, Mapping) else None
    names = wanted if isinstance(wanted, Mapping | list | tuple) else ()
    named = {name: model[name] for name in model if name in names and name not in ModelConfig.model_fields}
    if not named:
        return dict(model)
    given = {name: {"name": value} if isinstance(value, str) else value for name, value in named.items()}
    others = {name: value for name, value in model.items() if name not in named}
    return others | {"inputs": dict(others.get("inputs") or {}) | given}


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    *parents, last = path
    for position, name in enumerate(parents):
        inner = values.setdefault(name, {})
        if isinstance(inner, str):  # `strategy: lora` in the file, `strategy.r=16` on the line
            short_for = "name" if parents[:position] == ["model"] else SHORT_FOR.get(name, name)
            inner = values[name] = {short_for: inner}
        if not isinstance(inner, dict):
            raise UserError(f"{'.'.join(path[: position + 1])} is a value, so {'.'.join(path)} cannot be set.")
        values = inner
    if last == "type" and values.get("type") not in (None, value):
        values.clear()  # another strategy: the fields of the one in the file do not apply
    values[last] = value


def _where(problem: Mapping[str, Any]) -> str:
    """Return the dotted name of a wrong field, without the members of a union that pydantic puts into it."""
    location = [str(part) for part in problem["loc"]]
    members = {"str", "list[str]"}
    return ".".join(p for i, p in enumerate(location) if not (i == 1 and p in CHOICES) and p not in members)


def _explain(problem: Mapping[str, Any]) -> str:
    location, name = [str(part) for part in problem["loc"]], _where(problem)
    if problem["type"] == "extra_forbidden":
        return f"Unknown field {name}.{did_you_mean(location[-1], _fields_at(location[:-1]))}"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        found = str(problem["ctx"].get("tag", "nothing")) if "ctx" in problem else "nothing"
        return f"Unknown strategy {found!r}.{did_you_mean(found, CHOICES)}"
    if problem["type"] == "missing":
        return f"{name} is missing: set it in the configuration or as {name}=… on the command line."
    if problem["type"] == "further":  # what was given may be a token: not shown
        return f"{name}: {problem['msg']}."
    if problem["type"] == "modality":
        return f"{name}: {problem['msg'][0].lower()}{problem['msg'][1:]}"
    found = repr(problem["input"])
    found = found if len(found) <= MOST_SHOWN else f"{found[:MOST_SHOWN]}…"
    # YAML 1.1 reads no, 1 and 2024-01-01 as a truth value, a number and a date
    quotes = " In YAML, put a text in quotes." if problem["type"] == "string_type" else ""
    message = problem["msg"].removeprefix("Value error, ")
    return f"{name}: {message[0].lower()}{message[1:]}, found {found}.{quotes}"


def _fields_at(location: list[str]) -> list[str]:
    chosen = [part for part in location if part in CHOICES]
    models = _models_at([part for part in location if part not in CHOICES])
    if chosen:
        models = [model for model in models if model.model_fields["type"].default == chosen[0]]
    return list(models[0].model_fields) if models else []


def _models_at(path: list[str]) -> list[type[BaseModel]]:
    """Return the models that the section at `path` can be: several for `strategy`, none for what is no section."""
    models: list[Any] = [RunConfig]
    for name in path:
        kinds = [model.model_fields[name].annotation for model in models if name in model.model_fields]
        models = [member for kind in kinds for member in (get_args(kind) or (kind,))]
        models = [member for member in models if isinstance(member, type) and issubclass(member, BaseModel)]
    return models
