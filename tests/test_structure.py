"""The shape of the project: imports run one way, and what the README says can be typed."""

import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hftransfer.cli.commands import app

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hftransfer"
# Bottom to top: a package imports only from the packages before it.
ORDER = (
    "core", "tasks", "runtime", "models", "runs", "evaluation", "modalities", "strategies", "features", "data", "probe",
    "config", "report", "training", "prediction", "apps", "publish", "pipeline", "fusion", "planning", "doctor", "train", "api", "estimators", "studio", "cli",
)  # fmt: skip
ENTRY = ("__init__", "__main__")  # public names and the command: from anywhere, imported by nothing


def unit_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(tree):
    """Yield what a file imports of the package, as dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield "hftransfer.__relative__"
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def units_and_imports():
    for path in sorted(PACKAGE.rglob("*.py")):
        for name in imported_modules(ast.parse(path.read_text(encoding="utf-8"))):
            first, _, rest = name.partition(".")
            if first == "hftransfer":
                yield unit_of(path), rest.split(".")[0] or "__init__", path


def test_every_package_has_a_place_in_the_order():
    assert {unit_of(path) for path in PACKAGE.rglob("*.py")} == {*ORDER, *ENTRY}


def test_few_modules_lie_beside_the_packages():
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_imports_run_one_way():
    wrong = [
        f"{path.relative_to(ROOT)} imports hftransfer.{imported}"
        for unit, imported, path in units_and_imports()
        if unit not in (*ENTRY, imported) and (imported not in ORDER or ORDER.index(imported) > ORDER.index(unit))
    ]  # fmt: skip
    assert not wrong


TASK_NAMES = {"single_label", "multi_label", "regression"}
ASKED_BY_NAME = {
    "publish/targets.py": 2,  # runs without this package, as an outside user: it has the name of transformers alone
}


def names_of_tasks(path):
    """Count the strings of a file that are names of tasks, but for docstrings and messages."""
    if path.suffix == ".j2":
        return len(re.findall(r"[\"'](?:single_label|multi_label|regression)[\"']", path.read_text(encoding="utf-8")))
    tree = ast.parse(path.read_text(encoding="utf-8"))
    strings = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return sum(text.removesuffix("_classification") in TASK_NAMES for text in strings)


def test_no_file_asks_for_a_task_by_name():
    """At most ten places outside of tasks/, each with its reason; the number only decreases."""
    files = [path for kind in ("*.py", "*.j2") for path in PACKAGE.rglob(kind) if unit_of(path) != "tasks"]
    found = {str(path.relative_to(PACKAGE)): count for path in files if (count := names_of_tasks(path))}
    assert found == ASKED_BY_NAME and sum(found.values()) <= 10


# Checks of a modality outside of modalities/: comparisons and dictionary keys with its name, and the names of its tensors.
# The number only decreases. `planning/checkpoints/candidates.py` is a table of data, and holds names as such.
MODALITY_CHECKS = {
    "doctor/texts.py": 2,  # the doctor's checks of texts count the tokens of a tokenizer's own output
    "features/sources.py": 1,  # where decoders (GPT-2) place their logits is told by ids, as in transformers itself
    "models/partial.py": 1,  # the one place that names transformers' mask over tokens, for texts and for sound
    "models/processors.py": 2,  # image processors are asked what they make of a black, a white and a grey image
    "prediction/explain.py": 3,  # the pieces of an explained text in a file, the ids they come from, a tokenizer's output
    "publish/targets.py": 1,  # the form in which transformers' pipeline takes a pair
}
TENSORS = {"pixel_values", "input_ids", "attention_mask"}


def modality_checks(tree):
    """Yield the line of every check of a modality in a file."""
    names = {
        "audio",
        "image",
        "text",
    }  # of the registry, literally: importing it would make the test say what the code says
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [each for side in (node.left, *node.comparators) for each in getattr(side, "elts", [side])]
            if any(isinstance(side, ast.Constant) and side.value in names for side in sides):
                yield node.lineno
            if any(isinstance(side, ast.Attribute) and side.attr == "augmentation" for side in sides):
                yield node.lineno  # "has no augmentation" would stand for "is text"
        elif isinstance(node, ast.Dict) and any(
            isinstance(key, ast.Constant) and key.value in names for key in node.keys
        ):
            yield node.lineno
        elif isinstance(node, ast.Constant) and node.value in TENSORS:
            yield node.lineno


def test_callers_ask_for_capabilities_not_for_modalities():
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if unit_of(path) != "modalities":
            lines = set(modality_checks(ast.parse(path.read_text(encoding="utf-8"))))
            found |= {path.relative_to(PACKAGE).as_posix(): len(lines)} if lines else {}
    assert found == MODALITY_CHECKS, "a new check: ask the modality for what it can do (modalities/base.py)"
    assert sum(found.values()) <= 10
    for path in PACKAGE.rglob("*.j2"):
        assert not re.search(r"modality\s*[!=]=", path.read_text(encoding="utf-8")), path


def test_the_ratchet_finds_checks():
    """Each form that a check has had in this project is counted."""
    forms = (
        'modality == "image"', '"text" != kind', 'name in ("image",)', '{"image": 1}[name]', 'batch["pixel_values"]',
        '"attention_mask" in batch', "modality.augmentation is None",
    )  # fmt: skip
    assert all(list(modality_checks(ast.parse(form))) for form in forms)
    assert not list(modality_checks(ast.parse('kind.content == "picture" and kind.files')))


def test_modalities_are_known_without_torch():
    """Data and report read the registry, and must start quickly."""
    code = "import sys, hftransfer.modalities; print({'torch', 'transformers'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


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
        "RunConfig": "RunConfig", "fit": "fit", "load": "load", "predict": "predict", "run": "run",
        "TransferClassifier": "TransferClassifier", "TransferRegressor": "TransferRegressor",
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
