"""What the terminal shows of results, and the tables that go into files instead."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hftransfer.core.errors import UserError
from hftransfer.core.files import replacing, strict_json
from hftransfer.core.terminal import display
from hftransfer.core.wording import ends

if TYPE_CHECKING:
    from hftransfer.runs.record import ContributionsRecord, MetricsRecord
    from hftransfer.tasks import Task


def show_metrics(metrics: "MetricsRecord", folder: Path, as_json: bool) -> None:
    """Print what a run measured: one table per part, or JSON."""
    if as_json:
        return print(strict_json({"run": str(folder)} | metrics.as_dict()))
    for part, found in metrics.parts.items():
        headline = " (headline)" if part == metrics.headline else ""
        _show_part(f"{folder.name}: {metrics.describe_part(part)}{headline}", found, metrics.notes.get(part))
    if metrics.contributions:
        _show_contributions(metrics.contributions)
    print(f"Run folder: {folder}")


def _show_contributions(found: "ContributionsRecord") -> None:
    """Print the metric of a head on each combination of inputs, and what each input adds to all others."""
    from rich.table import Table

    from hftransfer.core.wording import listed
    from hftransfer.evaluation.contributions import sentences

    table = Table("a head on", found.metric, "95 % interval", title=f"Inputs, by {found.examples} {found.how}")
    for each in found.combinations:
        table.add_row(listed(each.inputs), f"{each.value:.4f}", ends(each.model_dump()))
    display(table)
    print("\n".join(sentences(found)))


def show_evaluation(data: str, found: dict[str, Any], folder: Path, as_json: bool) -> None:
    """Print what `evaluate` found on other data: a table, or JSON with the name of the data as the part."""
    if as_json:
        parts = {data: found["metrics"], "per_class": {data: found["per_class"]}}
        return print(strict_json({"run": str(folder)} | parts))
    _show_part(f"{folder.name} on {data}", found["metrics"])
    print(f"Run folder: {folder}")


def _show_part(title: str, found: dict[str, dict[str, Any]], note: str | None = None) -> None:
    from rich.table import Table

    table = Table("metric", "value", "95 % interval", title=title, caption=note)
    for name, measured in found.items():
        table.add_row(name, f"{measured['value']:.4f}", ends(measured))
    display(table)


def show_predictions(table: Any, task: "Task") -> None:
    """Print one row for each input: the answer and its score; of several units in one input, all that was found."""
    from rich.table import Table

    if task.by_word:
        shown = Table("input", "entities")
        for row in table.to_dict("records"):
            error = row.get("error")
            shown.add_row(str(row["id"])[:60], f"error: {error}" if error else task.describe(row["prediction"]))
        return display(shown)
    if task.by_pixel:
        shown = Table("image", "area of each class")
        for row in table.to_dict("records"):
            areas = ", ".join(f"{name} {row[f'area:{name}']:.1%}" for name in row["prediction"] or ())
            shown.add_row(str(row["id"])[:60], f"error: {row['error']}" if row.get("error") else areas)
        return display(shown)
    scores = [column for column in table.columns if column.startswith("score:")]
    shown = Table("input", "prediction", "score")
    for row in table.to_dict("records"):
        if row.get("error"):
            shown.add_row(str(row["id"])[:60], f"error: {row['error']}", "")
            continue
        best = max(row[column] for column in scores)
        answer = f"{row['answer']} (nearest: {row['prediction']})" if row.get("unknown") else str(row["prediction"])
        shown.add_row(str(row["id"])[:60], answer, f"{best:.3f}")
    display(shown)


def as_store_table(folder: Path, entries: list[Any]) -> Any:
    from rich.table import Table

    total = sum(entry.bytes for entry in entries)
    table = Table("space", "what", "rows", "MiB", title=f"{folder}: {total / 2**20:.1f} MiB")
    for entry in entries:
        table.add_row(entry.space[:12], entry.about, str(entry.rows), f"{entry.bytes / 2**20:.1f}")
    return table


WRITERS = {".csv": "to_csv", ".json": "to_json", ".jsonl": "to_json", ".parquet": "to_parquet"}


def check_table_name(output: Path | None) -> None:
    """Raise `UserError` for a name that `write_table` would refuse: before the work, not after it."""
    if output is not None and output.suffix not in WRITERS:
        raise UserError(f"Cannot write {output}: expected a name ending in {', '.join(WRITERS)}.")


def write_table(table: Any, output: Path, what: str = "predictions") -> None:
    """Write the table whole, in the form that the name asks for; folders are made. Raises `UserError`."""
    check_table_name(output)
    options = {".json": {"orient": "records"}, ".jsonl": {"orient": "records", "lines": True}}.get(
        output.suffix, {"index": False}
    )
    try:
        with replacing(output) as temporary:
            getattr(table, WRITERS[output.suffix])(temporary, **options)
    except OSError as error:
        raise UserError(f"Cannot write {output}: {error.strerror}.") from None
    print(f"{len(table)} {what} in {output}")
