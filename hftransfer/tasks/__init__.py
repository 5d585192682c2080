"""What comes out. A new task is one new file here, one entry in `TASKS`, and one row in the behaviour matrix of the tests."""

from collections.abc import Sequence

from hftransfer.core.errors import UserError, did_you_mean
from hftransfer.tasks.base import Task
from hftransfer.tasks.masks import Masks
from hftransfer.tasks.multi_label import MultiLabel
from hftransfer.tasks.regression import Regression
from hftransfer.tasks.single_label import SingleLabel
from hftransfer.tasks.tokens import Tokens

__all__ = ["Masks", "MultiLabel", "Regression", "SingleLabel", "TASKS", "Task", "Tokens", "make_task", "task_kind"]

TASKS: dict[str, type[Task]] = {kind.type: kind for kind in (SingleLabel, MultiLabel, Regression, Tokens, Masks)}


def task_kind(name: str) -> type[Task]:
    """Return the class of the task called `name`. Raises `UserError` for another name."""
    if name not in TASKS:
        raise UserError(f"There is no task {name!r}; expected one of {', '.join(TASKS)}.{did_you_mean(name, TASKS)}")
    return TASKS[name]


def make_task(name: str, names: Sequence[str]) -> Task:
    """Return the task called `name` with its outputs."""
    return task_kind(name)(tuple(names))
