"""Write the reference pages of the documentation site from the code: a hook of `mkdocs build`.

Pages under reference/ are made from the configuration's models, the command line, and docstrings.
"""

import inspect
from collections.abc import Iterator
from typing import Any, get_args

import typer
from mkdocs.structure.files import File, Files
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hftransfer.cli.commands import app
from hftransfer.config import RunConfig

PYTHON = """# Python

    from hftransfer import fit, RunConfig, run, load, predict, TransferClassifier, TransferRegressor

::: hftransfer.api.fit
::: hftransfer.run
::: hftransfer.train.Run
::: hftransfer.load
::: hftransfer.predict
::: hftransfer.prediction.predictor.Predictor
::: hftransfer.estimators.TransferClassifier
::: hftransfer.estimators.TransferRegressor
"""
RUN_FOLDER = """# Run folder

`model/` is a plain Hugging Face model folder. The files beside it are read and written by these classes.

::: hftransfer.runs.record
    options:
      show_root_heading: false
      show_root_toc_entry: false
"""


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages to those of the folder."""
    pages = {"commands": commands(), "configuration": configuration(), "python": PYTHON, "run-folder": RUN_FOLDER}
    for name, content in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=content))
    return files


# --- commands ---------------------------------------------------------------------------------------------------------


def commands() -> str:
    """Return one section for each command, with its arguments and options."""
    group = typer.main.get_command(app)
    shown = [_command(name, command) for name, command in sorted(group.commands.items()) if not command.hidden]
    return "\n\n".join(["# Commands", "Generated from `hftransfer COMMAND --help`.", *shown])


def _command(name: str, command: Any) -> str:
    rows = [_parameter(parameter) for parameter in command.params if parameter.name != "help"]
    table = ["| argument or option | meaning |", "|---|---|", *rows]
    return "\n\n".join([f"## hftransfer {name}", inspect.cleandoc(command.help or ""), "\n".join(table)])


def _parameter(parameter: Any) -> str:
    names = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
    title = ", ".join(f"`{name}`" for name in names)
    return f"| {title} | {_cell(getattr(parameter, 'help', None) or '')} |"


# --- configuration ----------------------------------------------------------------------------------------------------


def configuration() -> str:
    """Return one section for each group of settings and for each strategy."""
    parts = ["# Configuration", inspect.cleandoc(RunConfig.__doc__ or ""), _table(RunConfig)]
    for name, model in _groups():
        parts += [f"## {name}", inspect.cleandoc(model.__doc__ or ""), _table(model)]
    return "\n\n".join(parts)


def _groups() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in RunConfig.model_fields.items():
        found = _model(field.annotation)
        if name == "strategy":
            strategies = get_args(field.annotation)
            yield from ((f"strategy.type={kind.model_fields['type'].default}", kind) for kind in strategies)
        elif found:
            yield name, found
            inner = {f"{name}.{key}": _model(value.annotation) for key, value in found.model_fields.items()}
            yield from ((key, model) for key, model in inner.items() if model)


def _model(annotation: Any) -> type[BaseModel] | None:
    """Return the group of settings in an annotation, which may be optional."""
    found = [kind for kind in (annotation, *get_args(annotation)) if inspect.isclass(kind)]
    return next((kind for kind in found if issubclass(kind, BaseModel)), None)


def _table(model: type[BaseModel]) -> str:
    rows = [_setting(name, field) for name, field in model.model_fields.items()]
    return "\n".join(["| setting | values | default |", "|---|---|---|", *rows])


def _setting(name: str, field: FieldInfo) -> str:
    if name == "strategy" or (_model(field.annotation) and field.default is not None):
        return f"| `{name}` | see below | |"
    about = f". {_cell(field.description)}" if field.description else ""
    return f"| `{name}` | `{_cell(_type(field.annotation))}`{about} | {_default(field)} |"


def _type(annotation: Any) -> str:
    if inspect.isclass(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "").replace("NoneType", "None").replace(" | ", " or ")


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else f"`{_cell(repr(field.default))}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
