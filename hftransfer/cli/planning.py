"""The commands that plan: which strategy, which checkpoint, how many labels, and which inputs to label next."""

from pathlib import Path
from typing import Annotated

import typer

from hftransfer.cli.arguments import DataOrConfig, Details, Json, Overrides, read_config
from hftransfer.cli.tables import check_table_name, write_table
from hftransfer.core.terminal import show


def advise(
    data_or_config: DataOrConfig = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="Hub id, folder, timm architecture, or starter/…")] = None,
    budget: Annotated[str | None, typer.Option(help="time to spend: 90s, 10m (the default), 1h")] = None,
    prefer: Annotated[
        str | None, typer.Option(help="accuracy (default), or simplicity where examples cannot tell")
    ] = None,
    output: Annotated[str | None, typer.Option(help="keep what is chosen as this run folder")] = None,
    as_json: Json = False,
    verbose: Details = False,
) -> None:
    """Measure which strategy these data need, from the probe to full training, within a budget of time."""
    wishes = {"strategy.type": "auto", "strategy.budget": budget, "strategy.prefer": prefer}
    named = [f"{key}={value}" for key, value in wishes.items() if value is not None]
    config = read_config(data_or_config, [*named, *(overrides or [])], None, model, None, output)
    from hftransfer.planning.strategies.wording import FILE, as_dict, as_table

    if output:
        from hftransfer.core.files import read_json
        from hftransfer.train import run

        found = read_json(run(config).folder / FILE)
    else:
        from hftransfer.planning.strategies.command import advise as measure

        found = as_dict(measure(config))
    show(found, lambda: as_table(found), as_json)


def rank(
    data_or_config: DataOrConfig = None,
    models: Annotated[list[str] | None, typer.Option(help="a checkpoint to try; give the option once for each")] = None,
    overrides: Overrides = None,
    candidates: Annotated[str | None, typer.Option(help="auto: a short list for images or texts")] = None,
    rows: Annotated[int, typer.Option(min=10, help="training rows to rank on, stratified")] = 1000,
    metric: Annotated[str | None, typer.Option(help="metric to rank by; default: the task's own")] = None,
    max_ms: Annotated[
        float | None, typer.Option(min=0, help="leave out what needs more milliseconds a row here")
    ] = None,
    max_mb: Annotated[float | None, typer.Option(min=0, help="leave out what has more megabytes of weights")] = None,
    plot: Annotated[Path | None, typer.Option(help="draw score against latency into this .png or .svg")] = None,
    as_json: Json = False,
    verbose: Details = False,
) -> None:
    """Rank checkpoints for the data at hand: cross-validated probes on the same rows, and what each costs."""
    from hftransfer.planning.checkpoints.command import named_models
    from hftransfer.planning.checkpoints.command import rank as rank_checkpoints
    from hftransfer.planning.checkpoints.ranking import Limits

    names, overrides = named_models(models or [], overrides or [], candidates)
    config = read_config(data_or_config, overrides, None, names[0], "probe", None)
    rank_checkpoints(config, names, rows, metric, Limits(max_ms, max_mb), plot, as_json)


def curve(
    data_or_config: DataOrConfig = None,
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option(help="Hub id, folder, timm architecture, or starter/…")] = None,
    more: Annotated[
        int | None, typer.Option(min=1, help="so many more labels; default: a quarter to as many again")
    ] = None,
    classes: Annotated[int, typer.Option(min=0, help="classes to look at one by one, the worst first")] = 10,
    output: Annotated[Path | None, typer.Option(help="folder for curve.json and curve.svg")] = None,
    as_json: Json = False,
    verbose: Details = False,
) -> None:
    """Say how much more labels would bring: the learning curve of a probe, overall and for each class."""
    config = read_config(data_or_config, overrides or [], None, model, "probe", None)
    from hftransfer.planning.labels.command import curve as show_curve

    show_curve(config, more, classes, output, as_json)


def next_to_label(
    pool: Annotated[str, typer.Argument(help="a folder, glob or table of inputs without labels")],
    run: Annotated[str | None, typer.Option(help="a run folder: what it is unsure of is chosen")] = None,
    model: Annotated[str | None, typer.Option(help="a checkpoint, where there is no run yet")] = None,
    count: Annotated[int, typer.Option("-n", min=1, help="how many to choose")] = 50,
    output: Annotated[Path | None, typer.Option(help="write a CSV, JSON or Parquet file in place of a table")] = None,
    column: Annotated[list[str] | None, typer.Option(help="input column(s) of a table")] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the clusters")] = 0,
    as_json: Json = False,
    verbose: Details = False,
) -> None:
    """Choose which inputs to label next: where the model is unsure, and unlike each other."""
    check_table_name(output)
    from hftransfer.planning.labels.pool import as_table
    from hftransfer.planning.labels.pool import next_to_label as choose_next

    found = choose_next(pool, count, run, model, column, seed)
    if output is not None:
        return write_table(found, output, "rows to label")
    show(found.to_dict("records"), lambda: as_table(found), as_json)
