"""The shape of the project: imports run one way, and what the README says can be typed."""

import ast
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hftransfer.cli import app

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hftransfer"
# Bottom to top; a file imports only from files above its own line here.
LEVELS = [
    {"__init__"},
    {"errors", "settings", "memory", "interruption"},
    {"tasks", "heads", "images", "compute", "quick_ops", "run_folder"},
    {"starter", "terminal", "ladder", "processors", "shards", "theme", "trials", "faults", "training_state", "limits"},
    {"features", "boundary", "references", "web"},
    {"modalities", "strategies", "convex", "weights"},
    {"data", "checkpoints", "readout", "receipt"},
    {"evaluation"},
    {"config", "inference", "predictions", "kept_inputs"},
    {"repeats"},
    {"frozen_pass", "report", "certificate", "quantise", "callbacks", "arguments"},
    {"loop", "probe", "card"},
    {"work", "hub"},
    {"trust", "doctor", "ranking", "self_check"},
    {"predictor"},
    {"outputs", "uploads", "export", "explain", "labelling"},
    {"serving"},
    {"corrections", "why"},
    {"advice"},
    {"train", "demo", "review"},
    {"cli", "forms"},
    {"__main__"},
]


def level_of(unit):
    return next((number for number, units in enumerate(LEVELS) if unit in units), None)


def units_and_imports():
    for path in sorted(PACKAGE.rglob("*.py")):
        unit = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hftransfer."):
                yield unit, node.module.split(".")[1], path
            elif isinstance(node, ast.ImportFrom) and node.module == "hftransfer":
                yield from ((unit, alias.name, path) for alias in node.names)


def test_every_file_has_a_level():
    found = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in PACKAGE.rglob("*.py")}
    assert found == set().union(*LEVELS)


def test_imports_run_one_way():
    wrong = [
        f"{path.relative_to(ROOT)} imports {imported}"
        for unit, imported, path in units_and_imports()
        if unit not in (imported, "__init__") and not imported.startswith("__")  # public names, from anywhere
        and level_of(imported) >= level_of(unit)
    ]  # fmt: skip
    assert not wrong


def commands():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.S)
    return [
        line.split(" #")[0].strip() for block in blocks for line in block.splitlines() if line.startswith("hftransfer ")
    ]


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_is_a_command(command):
    name, *arguments = shlex.split(command)[1:]
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0
    plain = re.sub(r"\x1b\[[0-9;]*m", "", result.output)
    assert all(argument in plain for argument in arguments if argument.startswith("--"))


def test_the_readme_has_commands():
    assert len(commands()) >= 12


def test_public_names():
    import hftransfer

    assert {name: getattr(hftransfer, name).__name__ for name in hftransfer.__all__} == {
        "RunConfig": "RunConfig", "load": "load", "predict": "predict", "run": "run",
    }  # fmt: skip
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        getattr(hftransfer, "nothing")  # noqa: B009


def test_nothing_unsafe_is_loaded():
    """No pickle, and torch.load only with weights_only."""
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        unsafe = re.findall(r"^(?:import|from) (?:pickle|joblib|dill)\b(?: import )?(.*)$", text, flags=re.M)
        assert set(unsafe) <= {"UnpicklingError", "cpu_count"}, path
        assert all("weights_only=True" in line for line in text.splitlines() if "torch.load(" in line), path
