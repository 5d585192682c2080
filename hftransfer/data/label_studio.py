"""The full JSON export of Label Studio: tasks with `data` and `annotations`, as rows with a text and its spans."""

from typing import Any

SPANS = "entities"


def unfolded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return tasks with marked words as rows with the columns of their `data` and `entities`; other rows as they are."""
    tasks = all(isinstance(row.get("data"), dict) and isinstance(row.get("annotations"), list) for row in rows)
    if not tasks or not any(_spans(annotation) for row in rows for annotation in row["annotations"]):
        return rows
    return [_row(task) for task in rows]


def _row(task: dict[str, Any]) -> dict[str, Any]:
    annotation = _standing(task["annotations"])
    own = {"id": task["id"]} if "id" in task else {}
    return own | task["data"] | {SPANS: None if annotation is None else _spans(annotation)}


def _standing(annotations: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the annotation that was called the truth, else the last one that nobody cancelled; None where there is none."""
    whole = [each for each in annotations if not each.get("was_cancelled")]
    truth = [each for each in whole if each.get("ground_truth")]
    return (truth or whole or [None])[-1]


def _spans(annotation: Any) -> list[dict[str, Any]]:
    """Return the marked words of an annotation; relations and choices beside them are passed over."""
    results = annotation.get("result") if isinstance(annotation, dict) else None
    values = [result.get("value") for result in results or () if isinstance(result, dict)]
    return [
        dict(start=value["start"], end=value["end"], label=label, text=value.get("text"))
        for value in values
        if isinstance(value, dict) and isinstance(value.get("start"), int) and isinstance(value.get("end"), int)
        for label in value.get("labels") or ()
    ]
