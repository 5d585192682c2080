"""A run goes to the Hub: model, processor, card, metrics and certificate in one commit, or nothing at all."""

import glob
import json
import logging
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub import errors as hub_errors
from huggingface_hub.utils import validate_repo_id

from hftransfer.config import HubConfig
from hftransfer.core.errors import UserError
from hftransfer.core.files import write_json
from hftransfer.models.reach import TransportError
from hftransfer.publish.card import blanks, hub_source, public_config, render_card, round_trip_of, shown_source
from hftransfer.publish.round_trip import certified, check
from hftransfer.runs.reader import RecordedRun
from hftransfer.runtime import launch

log = logging.getLogger(__name__)

RepoType = Literal["model", "space"]
ATTEMPTS = 3
MANIFEST = ".hftransfer-files.json"  # names the files of the last push: `update` removes no others
MADE_BY_THE_HUB = {".gitattributes", "README.md"}  # what a new repository may hold before the first push


@dataclass(frozen=True)
class Pushed:
    """Where the run went and its demo, the files there, and what the card still leaves for a person to fill in."""

    url: str
    files: tuple[str, ...]
    blanks: tuple[str, ...]
    space: str | None = None


def push(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    update: bool = False,
    adapter: bool = False,
    dry_run: str | Path | None = None,
    space: str | None = None,
) -> Pushed | None:
    """Put a finished run on the Hub as `owner/name`; None on every process but the first of a launch.

    The round trip is checked first, and everything is one commit: a push that breaks off leaves no half model, and the
    same call completes it without sending again what arrived. `update` adds a commit to a repository that already holds
    a model; `adapter` pushes a LoRA run's adapter alone; `dry_run` writes the folder there and asks the Hub nothing;
    `space` names the Space that shows the model. Raises `UserError`.
    """
    if not _is_first_process():
        return None
    run = RecordedRun.open(folder)
    run.require("push")
    if space and run.runs_own_code:
        raise UserError(
            f"The model of {run.folder} needs Python code of its own, which the app of a Space does not run: push it "
            "without --space."
        )
    if adapter:
        _base_of_adapter(run)  # before the minutes of a round trip
    if dry_run is None:
        check_ready(repo_id, space, update)
    else:
        _check_names(repo_id, space)
    check(certified(run.folder))
    with tempfile.TemporaryDirectory() as place:
        staged = Path(place) / "repository"
        write_repository(run, staged, repo_id, adapter)
        files = tuple(sorted(str(file.relative_to(staged)) for file in staged.rglob("*") if file.is_file()))
        left = tuple(blanks((staged / "README.md").read_text(encoding="utf-8")))
        url = _place(staged, dry_run, repo_id, "model", private, update, f"{run.name}: {run.record.strategy}")
    log.info("%s %d files to %s", "wrote" if dry_run else "pushed", len(files), url)
    if left:
        log.info("the card leaves to you, to be filled in %s: %s", run.folder / "README.md", "; ".join(left))
    shown = space and _push_space(run, space, repo_id, private, update, dry_run, url)
    return Pushed(url, files, left, shown)


def _push_space(
    run: RecordedRun,
    space: str,
    repo_id: str,
    private: bool,
    update: bool,
    dry_run: str | Path | None,
    model_url: str,
) -> str:
    """Return the demo as the Space `space`; its address, or `space/` in the folder of a dry run.

    The Space holds the model and this package as it is here, so that it needs nothing else of ours.
    """
    target = None if dry_run is None else Path(dry_run) / "space"
    with tempfile.TemporaryDirectory() as place:
        staged = Path(place) / "space"
        write_space(run, staged, repo_id)
        try:
            return _place(staged, target, space, "space", private, update, f"Demo of {run.name}")
        except UserError as error:
            raise UserError(f"{error}\nThe model itself arrived at {model_url}: add --update.") from None


def push_as_configured(folder: Path, goal: HubConfig) -> None:
    """Push what `push_to_hub` asks for. The run stays complete whatever happens; raises `UserError`."""
    try:
        push(folder, goal.repo_id, goal.private, goal.update, space=goal.space)
    except BaseException:
        flags = {f"--space {goal.space}": goal.space, "--private": goal.private, "--update": goal.update}
        command = " ".join(
            ["hftransfer push", shlex.quote(str(folder)), goal.repo_id, *(flag for flag, on in flags.items() if on)]
        )
        log.error("The run is whole in %s, but the push did not end. What completes it: %s", folder, command)
        raise


def check_ready(repo_id: str, space: str | None = None, update: bool = False) -> None:
    """Check what can be known before the run: names, token, and whether the repositories are free.

    Raises `UserError`. Only the first process of a launch asks.
    """
    if not _is_first_process():
        return
    _check_names(repo_id, space)
    api = HfApi(library_name="hftransfer")
    owners = _check_token(api)
    for name, repo_type in ((repo_id, "model"), (space, "space")):
        if name:
            _check_owner(name, owners)
            _refuse_taken(api, name, repo_type, update)


def _is_first_process() -> bool:
    return launch.process_rank() == 0


# --- what goes there -------------------------------------------------------------------------------------------------


def write_repository(run: RecordedRun, target: Path, repo_id: str, adapter: bool = False) -> None:
    """Write the files of the repository, without data, predictions and paths of this machine."""
    if adapter:
        _copy_adapter(run, target)
    else:
        shutil.copytree(run.folder / "model", target)
    write_json(target / "task.json", _task_facts(run))
    (target / "README.md").write_text(render_card(run, repo_id, adapter), encoding="utf-8")
    for name in ("metrics.json", "receipt.json"):
        if (run.folder / name).is_file():
            shutil.copy(run.folder / name, target / name)
    if found := round_trip_of(run.folder):
        write_json(target / "certificate.json", _without_ids(found))
    write_json(target / "training_config.json", public_config(run.folder))


def _without_ids(round_trip: dict[str, Any]) -> dict[str, Any]:
    """Return the certificate with numbers in place of the examples' ids, which are file names of this machine."""
    stages = [
        stage | {"disagreements": [f"example {number + 1}" for number in range(len(stage["disagreements"]))]}
        for stage in round_trip["stages"]
    ]
    return round_trip | {"stages": stages}


def write_space(run: RecordedRun, target: Path, repo_id: str) -> None:
    """Write the app, the package and the model, pushed as `repo_id`, with what the demo says about it.

    No training data: no report, no features.
    """
    package = Path(__file__).parents[1]
    if not (package.parent / "spaces_app" / "app.py").is_file():
        raise UserError(
            "The Space's own files stand in spaces_app/ beside the package: install from the source folder."
        )
    shutil.copytree(package.parent / "spaces_app", target, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(package, target / "hftransfer", ignore=shutil.ignore_patterns("__pycache__"))
    write_repository(run, target / "model", repo_id)
    if (run.folder / "trust.json").is_file():
        shutil.copy(run.folder / "trust.json", target / "model" / "trust.json")
    page = target / "README.md"
    _, front, text = page.read_text(encoding="utf-8").split("---\n", 2)
    front = yaml.safe_load(front) | {"title": run.name, "models": [repo_id]}
    shown = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    page.write_text(f"---\n{shown}---\n{text}", encoding="utf-8")


def _task_facts(run: RecordedRun) -> dict[str, Any]:
    """Name, label map, calibration and base model for who loads the weights by hand."""
    import pyarrow.parquet

    base = hub_source(run.record.checkpoint.source)
    return run.record.task.model_dump(mode="json") | {
        "name": run.name,
        "outputs": list(run.task.output_names),
        "inputs": 2 if "input_pair" in pyarrow.parquet.read_schema(run.folder / "splits.parquet").names else 1,
        "temperature": run.record.temperature,
        "base_model": base[0] if base else shown_source(run.record.checkpoint.source),
        "base_revision": base[1] if base else None,
    }


def _base_of_adapter(run: RecordedRun) -> tuple[str, str]:
    """Return repository and revision that the adapter belongs to. Raises `UserError` for a run that has none to publish."""
    if not (run.folder / "adapter").is_dir():
        trained = run.record.strategy
        other = (
            "head reads another layer or pooling than the checkpoint's"
            if trained == "lora"
            else f"strategy is {trained}"
        )
        raise UserError(f"{run.folder} has no adapter: its {other}. Push the whole model.")
    base = hub_source(run.record.checkpoint.source)
    if not base:
        raise UserError(
            f"The adapter of {run.folder} belongs to {shown_source(run.record.checkpoint.source)}, which is not on "
            "the Hub, so nobody could load it from there. Push the whole model."
        )
    return base


def _copy_adapter(run: RecordedRun, target: Path) -> None:
    base = _base_of_adapter(run)
    shutil.copytree(run.folder / "adapter", target)
    file = target / "adapter_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    write_json(file, settings | {"base_model_name_or_path": base[0], "revision": base[1]})
    for part in (run.folder / "model").iterdir():
        if part.is_file() and part.suffix != ".safetensors" and part.name != "config.json":
            shutil.copy(part, target / part.name)


# --- the Hub ---------------------------------------------------------------------------------------------------------


def _place(
    staged: Path,
    dry_run: str | Path | None,
    repo_id: str,
    repo_type: RepoType,
    private: bool,
    update: bool,
    message: str,
) -> str:
    """Upload the folder, or move it where a dry run wants it; the address."""
    if dry_run is None:
        return upload(staged, repo_id, repo_type, private, update, message)
    target = Path(dry_run)
    if target.exists():
        raise UserError(f"{target} exists already: choose another folder for the dry run, or remove it.")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(staged, target)
    return str(dry_run)


def upload(
    folder: Path,
    repo_id: str,
    repo_type: RepoType = "model",
    private: bool = False,
    update: bool = False,
    message: str = "Upload",
    api: HfApi | None = None,
) -> str:
    """One commit with all files of `folder`, in a repository made for it where there is none; its address.

    Files of an earlier push that this one does not have are removed; files that somebody else added stay.
    Raises `UserError` for a token that is missing or refused, a namespace or name that is not free, a connection that
    breaks.
    """
    _check_names(repo_id)
    api = api or HfApi(library_name="hftransfer")
    _check_owner(repo_id, _check_token(api))
    _refuse_taken(api, repo_id, repo_type, update)
    url = _create(api, repo_id, repo_type, private)
    gone = [glob.escape(name) for name in _earlier_files(api, repo_id, repo_type)]
    write_json(folder / MANIFEST, sorted(f.relative_to(folder).as_posix() for f in folder.rglob("*") if f.is_file()))
    _commit(
        lambda: api.upload_folder(
            repo_id=repo_id, folder_path=folder, repo_type=repo_type, commit_message=message, delete_patterns=gone
        ),
        repo_id,
    )
    return url


def _earlier_files(api: HfApi, repo_id: str, repo_type: RepoType) -> list[str]:
    """Return the files that an earlier push wrote, by its manifest; none where there is no manifest."""
    try:
        if not api.file_exists(repo_id, MANIFEST, repo_type=repo_type):
            return []
        with tempfile.TemporaryDirectory() as place:
            file = api.hf_hub_download(repo_id, MANIFEST, repo_type=repo_type, local_dir=place)
            return [name for name in json.loads(Path(file).read_text(encoding="utf-8")) if isinstance(name, str)]
    except (hub_errors.HfHubHTTPError, TransportError) as error:
        raise UserError(_broken(repo_id, error)) from None
    except ValueError:
        raise UserError(f"{MANIFEST} in {repo_id} is no list of file names: remove it on the Hub, then push.") from None


def _check_names(*names: str | None) -> None:
    for repo_id in filter(None, names):
        try:
            validate_repo_id(repo_id)
        except hub_errors.HFValidationError as error:
            raise UserError(f"{repo_id!r} cannot be the name of a repository: {error}") from None
        if "/" not in repo_id:
            raise UserError(f"Expected OWNER/NAME, such as your-name/{repo_id}, found {repo_id!r}.")


def _check_token(api: HfApi) -> set[str]:
    """Return the names that the token's owner may write under."""
    if constants.HF_HUB_OFFLINE:
        raise UserError("HF_HUB_OFFLINE=1 keeps the Hub out of reach: unset it to push.")
    if not get_token():
        raise UserError("Not logged in to the Hub: run `hf auth login`, or set HF_TOKEN.")
    try:
        account = api.whoami()
    except (hub_errors.HfHubHTTPError, TransportError) as error:
        if _status(error) in (401, 403):
            raise UserError(
                "The Hub refuses the token: log in again with `hf auth login`, or renew HF_TOKEN."
            ) from None
        raise UserError(_broken("the Hub", error)) from None
    return {account["name"], *(organisation["name"] for organisation in account.get("orgs", []))}


def _check_owner(repo_id: str, owners: set[str]) -> None:
    owner = repo_id.split("/")[0]
    if owner.lower() not in {name.lower() for name in owners}:
        raise UserError(_not_yours(repo_id))


def _not_yours(repo_id: str) -> str:
    return f"Your token may not write to {repo_id.split('/')[0]!r} on the Hub: take a name of your own."


def _refuse_taken(api: HfApi, repo_id: str, repo_type: RepoType, update: bool) -> None:
    try:
        held = set(api.list_repo_files(repo_id, repo_type=repo_type))
    except hub_errors.RepositoryNotFoundError:
        return
    except (hub_errors.HfHubHTTPError, TransportError) as error:
        raise UserError(_broken(repo_id, error)) from None
    if held - MADE_BY_THE_HUB and not update:
        raise UserError(
            f"{repo_id} already holds a {repo_type}: take another name, or add a commit to it with --update."
        )


def _create(api: HfApi, repo_id: str, repo_type: RepoType, private: bool) -> str:
    """Return the address of the repository, made where there is none."""
    sdk = "gradio" if repo_type == "space" else None
    try:
        return str(api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True, space_sdk=sdk))
    except (hub_errors.HfHubHTTPError, TransportError) as error:
        if _status(error) in (401, 403):
            raise UserError(_not_yours(repo_id)) from None
        raise UserError(_broken(repo_id, error)) from None


def _commit(call: Callable[[], object], repo_id: str) -> None:
    """Upload and commit, once more when the Hub is busy; the client itself repeats uploads that break."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            call()
            return
        except (hub_errors.HfHubHTTPError, TransportError, RuntimeError) as error:
            busy = _status(error) in (429, 500, 502, 503, 504)
            if not busy or attempt == ATTEMPTS:
                raise UserError(_broken(repo_id, error)) from None
            log.info("%s is busy, trying again", repo_id)
            time.sleep(2**attempt)


def _status(error: Exception) -> int | None:
    response = getattr(error, "response", None)
    return None if response is None else response.status_code


def _broken(where: str, error: Exception) -> str:
    reason = f"status {_status(error)}" if _status(error) else type(error.__cause__ or error).__name__
    return (
        f"The push to {where} broke off ({reason}), and nothing was committed. Run the same command again to complete it: "
        "what arrived is not sent twice."
    )
