"""Arguments that several commands share, and the configuration that they make."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hftransfer.core.errors import UserError
from hftransfer.core.terminal import show_log

if TYPE_CHECKING:
    from hftransfer.config import RunConfig


def _show_details(wanted: bool) -> bool:
    """Show the whole log of the command where that is `wanted`."""
    if wanted:
        show_log(details=True)
    return wanted


DataOrConfig = Annotated[
    str | None,
    typer.Argument(help="a YAML configuration, class folders, a table, or starter/…; data.train=… says the same"),
]
Overrides = Annotated[list[str] | None, typer.Argument(help="key=value, such as training.learning_rate=1e-3")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Details = Annotated[
    bool,
    typer.Option("-v", "--verbose", callback=_show_details, help="show everything that is logged"),
]
NumberOfShards = Annotated[
    int | None, typer.Option(min=1, help="divide the inputs into so many Parquet files in the folder --output")
]
Shard = Annotated[
    int | None,
    typer.Option(min=0, help="which one, from 0; default: the share of this torchrun rank or task of a Slurm array"),
]
RunFolder = Annotated[str, typer.Argument(help="a run folder, such as runs/pets-probe")]


def read_config(
    data_or_config: str | None,
    overrides: list[str],
    data: str | None,
    model: str | None,
    strategy: str | None,
    output: str | None,
    patch: str | None = None,
) -> "RunConfig":
    """Return the configuration that the arguments make; a flag wins over an override of the same key.

    Raises `UserError` where no training data are named.
    """
    from hftransfer.config import parse_overrides, read_yaml, with_overrides

    where, overrides = _where_and_overrides(data_or_config, overrides)
    values = read_yaml(Path(where)) if is_yaml(where) else {"data": {"train": where} if where else {}}
    flags = {"data.train": data, "model.name": model, "strategy.type": strategy, "output": output, "data.patch": patch}
    named = {key: value for key, value in flags.items() if value is not None}
    config = with_overrides(values, parse_overrides(overrides) | named)
    if config.data.train is None:
        raise UserError("Name the training data: hftransfer COMMAND DATA, or data.train=DATA.")
    return config


def _where_and_overrides(data_or_config: str | None, overrides: list[str]) -> tuple[str | None, list[str]]:
    """Return the data or configuration and the overrides; the first argument is an override where it is no path."""
    from hftransfer.config import OVERRIDE

    if data_or_config and OVERRIDE.fullmatch(data_or_config) and not Path(data_or_config).exists():
        return None, [data_or_config, *overrides]
    return data_or_config, overrides


def is_yaml(where: str | None) -> bool:
    """Return whether the first argument names a configuration."""
    return bool(where) and where.endswith((".yaml", ".yml"))


def check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise `UserError` for a value that is none of the choices of an option."""
    if value not in choices:
        raise UserError(f"{option} {value}: expected one of {', '.join(choices)}.")
