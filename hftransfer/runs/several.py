"""What a run on several inputs cannot do yet: one list, and one sentence."""

from collections.abc import Sequence

from hftransfer.core.errors import UserError
from hftransfer.runs.folder import MODELS

# Commands and settings that read one model, or one input.
LACKS = frozenset(
    {"advise", "strategy auto", "rank", "curve", "next", "review", "embed", "push", "export", "--explain", "--shards",
     "--views", "--column", "data.patch", "doctor --fix", "doctor --measure", "evaluation.seeds"}
)  # fmt: skip


def require_one_input(command: str, names: Sequence[str], run: object = None) -> None:
    """Raise `UserError` where a command or setting takes one input, and there are several."""
    if len(names) > 1 and command in LACKS:
        instead = f" Take the model of one input: {run}/{MODELS}/NAME." if run else " Name one with data.input."
        raise UserError(f"{command} does not take several inputs ({', '.join(names)}) yet.{instead}")
