"""Push and load against a Hub on loopback, through the real client in processes of their own."""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
import yaml
from huggingface_hub import HfApi

from hftransfer.config import RunConfig, checked
from hftransfer.core.errors import UserError
from hftransfer.core.files import write_json
from hftransfer.modalities import kind_of
from hftransfer.models.loading import ModelConfig, load_checkpoint, save_model
from hftransfer.publish.hub import check_ready, push, upload, write_repository
from hftransfer.publish.round_trip import forms_digest
from hftransfer.runs.reader import RecordedRun
from hftransfer.train import run
from tests.support import tiny
from tests.support.fork_server import run_python
from tests.support.local_hub import OWNER, TOKEN, LocalHub
from tests.support.run_folders import SINGLE, make_run
from tests.support.runs import configuration

ROOT = Path(__file__).parents[2]
PASSED = {"name": "pipeline", "max_difference": 1e-6, "label_agreement": 1.0, "seconds_per_input": 0.01, "bytes": 1}
PASSED |= {"disagreements": [], "least_agreement": 1.0}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run on tiny BERT whose certificate is there already."""
    root = tmp_path_factory.mktemp("run")
    folder = make_run(root / "topics")
    checkpoint = load_checkpoint(
        ModelConfig(name=str(tiny.TEXT_FAMILIES["bert"](root / "bert"))), kind_of("text"), SINGLE
    )
    (folder / "model" / "model.safetensors").unlink()
    save_model(checkpoint.model, checkpoint.processor, folder / "model")
    round_trip(folder, PASSED)
    return folder


def round_trip(folder: Path, stage: dict) -> None:
    stored = {"rows": 16, "forms": forms_digest(folder), "stages": [stage]}
    write_json(folder / "certificate.json", stored)


def in_process(code: str, hub: LocalHub, home: Path, token: str | None = None) -> dict:
    """What `code` leaves in `answer`, and what it printed, from a process that knows this Hub alone.

    Waiting between attempts is cut short.
    """
    program = (
        f"import json, time\ntime.sleep = lambda s: None\nanswer = None\n{code}\nprint('ANSWER' + json.dumps(answer))"
    )
    environment = {key: value for key, value in os.environ.items() if key != "HF_TOKEN"}
    environment |= hub.environment(home, token) | {"PYTHONPATH": str(ROOT)}
    done = run_python([sys.executable, "-c", program], env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    printed, _, answer = done.stdout.rpartition("ANSWER")
    return {"answer": json.loads(answer), "output": printed + done.stderr}


PUSH = """
import logging
logging.basicConfig(level=logging.INFO)
from hftransfer.core.errors import UserError
from hftransfer.publish.hub import push
try:
    pushed = push({folder!r}, {repo!r}, **{options})
    answer = {{"url": pushed.url, "files": pushed.files, "blanks": pushed.blanks}}
except UserError as error:
    answer = {{"error": str(error)}}
"""


def push_to(hub, folder, home, repo=f"{OWNER}/topics", token=TOKEN, **options) -> dict:
    code = PUSH.format(folder=str(folder), repo=repo, options=options)
    found = in_process(code, hub, home, token)
    assert TOKEN not in found["output"]
    return found["answer"]


# --- loading ---------------------------------------------------------------------------------------------------------

LOAD = """
from hftransfer.modalities import kind_of
from hftransfer.models.loading import ModelConfig, load_checkpoint
from hftransfer.core.errors import UserError
from hftransfer.tasks import SingleLabel
task = SingleLabel(("a", "b", "c"))
answer = {}
for name, kind, revision in [
    ("timm/tiny_resnet.a1_in1k", "image", None), ("bert-base-tiny", "text", None), ("google/vit-tiny", "image", None),
    ("google/vit-tny", "image", None), ("meta/gated", "image", None), ("google/vit-tiny", "image", "v9"),
]:
    try:
        found = load_checkpoint(ModelConfig(name=name, revision=revision), kind_of(kind), task)
        answer[name] = [found.source, type(found.model).__name__, found.weights_hash]
    except UserError as error:
        answer[name + str(revision or "")] = str(error)
answer["architecture"] = load_checkpoint(ModelConfig(name="test_resnet"), kind_of("image"), task).source
from huggingface_hub import constants
constants.HF_HUB_OFFLINE = True
answer["offline"] = load_checkpoint(ModelConfig(name="bert-base-tiny"), kind_of("text"), task).source
"""


def test_hub_ids_load_and_wrong_ones_are_named(tmp_path):
    with LocalHub() as hub:
        timm = tiny.VISION_FAMILIES["timm-resnet"](tmp_path / "timm")
        vit = tiny.VISION_FAMILIES["vit"](tmp_path / "vit")
        repo = hub.add("timm/tiny_resnet.a1_in1k", timm)
        bert = hub.add("bert-base-tiny", tiny.TEXT_FAMILIES["bert"](tmp_path / "bert"))
        hub.add("google/vit-tiny", vit)
        tag = hub.add("timm/test_resnet.r160_in1k", tiny.timm_checkpoint("test_resnet", {}, 160)(tmp_path / "tag"))
        hub.add("meta/gated", vit, gated=True)
        found = in_process(LOAD, hub, tmp_path / "home")["answer"]
    task = SINGLE.__class__("single_label", ("a", "b", "c"))
    local = load_checkpoint(ModelConfig(name=str(timm)), kind_of("image"), task)
    source = f"timm/tiny_resnet.a1_in1k@{repo.sha}"
    assert found["timm/tiny_resnet.a1_in1k"] == [source, "TimmWrapperForImageClassification", local.weights_hash]
    assert found["bert-base-tiny"][1] == "BertForSequenceClassification"
    assert found["google/vit-tiny"][1] == "ViTForImageClassification"
    assert found["google/vit-tny"].startswith("There is no model 'google/vit-tny' on the Hub, or it is private")
    assert found["meta/gated"].startswith("meta/gated is gated: accept its terms on https://huggingface.co/meta/gated")
    assert found["architecture"] == f"timm/test_resnet.r160_in1k@{tag.sha}"  # a bare name means timm's own weights
    assert found["offline"] == f"bert-base-tiny@{bert.sha}"  # from the cache
    assert found["google/vit-tinyv9"] == "google/vit-tiny on the Hub has no revision 'v9'."


# --- pushing ---------------------------------------------------------------------------------------------------------

ASK = f"""
import transformers
pipe = transformers.pipeline("text-classification", "{OWNER}/topics")
model = transformers.AutoModelForSequenceClassification.from_pretrained("{OWNER}/topics")
answer = [pipe("the goal of the match", top_k=None), model.config.id2label]
"""


def test_pushed_model_answers_as_the_local_one(run_folder, tmp_path):
    with LocalHub() as hub:
        pushed = push_to(hub, run_folder, tmp_path / "home", private=True)
        fresh = in_process(ASK, hub, tmp_path / "other", TOKEN)["answer"]
        repo = hub.repos["model", f"{OWNER}/topics"]
    assert pushed["url"] == f"{hub.url}/{OWNER}/topics" and repo.private and len(repo.commits) == 2
    assert set(pushed["files"]) == set(repo.files) - {".gitattributes", ".hftransfer-files.json"}
    assert {"README.md", "model.safetensors", "metrics.json", "task.json", "certificate.json"} <= set(repo.files)
    assert "Intended use" in pushed["blanks"] and "Source and licence of the data" in pushed["blanks"]
    local = transformers.pipeline("text-classification", str(run_folder / "model"))("the goal of the match", top_k=None)
    assert {row["label"]: row["score"] for row in fresh[0]} == pytest.approx(
        {row["label"]: row["score"] for row in local}, abs=1e-6
    )
    assert list(fresh[1].values()) == list(SINGLE.names)


def test_data_and_paths_stay_at_home(run_folder, tmp_path):
    write_repository(RecordedRun.open(run_folder), tmp_path / "repo", "me/topics")
    names = {file.name for file in (tmp_path / "repo").rglob("*")}
    assert not names & {"splits.parquet", "predictions.parquet", "oof.parquet", "history.json"}
    assert not any(str(run_folder.parent).encode() in file.read_bytes() for file in (tmp_path / "repo").iterdir())
    facts = json.loads((tmp_path / "repo" / "task.json").read_text())
    assert facts["names"] == list(SINGLE.names) and facts["temperature"] == 1.0


@pytest.fixture
def send(tmp_path, monkeypatch):
    """A hub and what uploads a small folder to it from this process, without waiting between attempts."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights" * 100)
    (folder / "config.json").write_text("{}")
    with LocalHub() as hub:
        yield hub, lambda repo=f"{OWNER}/topics", **options: upload(folder, repo, api=HfApi(hub.url), **options)


@pytest.fixture
def hub(send, monkeypatch):
    """A Hub that `push` in this process talks to: seconds less than in one of its own."""
    monkeypatch.setattr("hftransfer.publish.hub.HfApi", lambda **options: HfApi(send[0].url))
    return send[0]


def uploads(hub: LocalHub) -> int:
    return sum(method == "PUT" for method, _ in hub.requests)


def test_broken_connection_leaves_nothing_half_and_the_next_push_completes_it(send):
    hub, upload_folder = send
    hub.uploads_before_cut = 0
    with pytest.raises(
        UserError, match=rf"The push to {OWNER}/topics broke off \(\w+\), and nothing was committed. Run the"
    ):
        upload_folder()
    repo = hub.repos["model", f"{OWNER}/topics"]
    assert set(repo.files) == {".gitattributes"} and len(repo.commits) == 1
    hub.uploads_before_cut = None
    assert upload_folder() == f"{hub.url}/{OWNER}/topics"
    assert repo.files["model.safetensors"] == b"weights" * 100


def test_busy_hub_is_asked_again_and_what_arrived_is_not_sent_again(send):
    hub, upload_folder = send
    hub.failures = [503] * 3
    with pytest.raises(UserError, match=r"broke off \(status 503\)"):
        upload_folder()
    assert uploads(hub) == 1 and not hub.failures
    hub.failures = [503]
    upload_folder()
    assert uploads(hub) == 1 and "config.json" in hub.repos["model", f"{OWNER}/topics"].files


@pytest.mark.parametrize(
    ("token", "repo", "words"),
    [
        (
            "hf_wrong",
            "owner/topics",
            "The Hub refuses the token: log in again with `hf auth login`, or renew HF_TOKEN.",
        ),
        ("", "owner/topics", "Not logged in to the Hub: run `hf auth login`, or set HF_TOKEN."),
        (TOKEN, "google/topics", "Your token may not write to 'google' on the Hub: take a name of your own."),
    ],
)
def test_refused_token_and_foreign_name(token, repo, words, send, monkeypatch):
    hub, upload_folder = send
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError) as caught:
        upload_folder(repo)
    assert str(caught.value) == words and not hub.repos


def test_hub_that_is_not_there(send):
    hub, upload_folder = send
    hub.__exit__()
    with pytest.raises(UserError, match=r"The push to the Hub broke off \(ConnectError\)"):
        upload_folder()


def test_name_that_is_taken_needs_update(send, tmp_path):
    hub, upload_folder = send
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "weights.bin").write_bytes(b"old")
    repo = hub.add(f"{OWNER}/topics", tmp_path / "old")
    with pytest.raises(UserError, match=f"{OWNER}/topics already holds a model: take another name, or add a commit"):
        upload_folder()
    assert set(repo.files) == {"weights.bin"}
    upload_folder(update=True)
    assert "weights.bin" in repo.files and "config.json" in repo.files and len(repo.commits) == 2


def test_update_removes_files_of_an_earlier_push_and_no_others(send, tmp_path):
    hub, upload_folder = send
    for name in ("old[1].bin", "old1.bin"):
        (tmp_path / "folder" / name).write_bytes(b"old")
    upload_folder()
    repo = hub.repos["model", f"{OWNER}/topics"]
    repo.commit(repo.files | {"LICENSE": b"mine", "media/plot.png": b"png"})
    (tmp_path / "folder" / "old[1].bin").unlink()
    upload_folder(update=True)
    expected = {"LICENSE", "media/plot.png", "old1.bin", "config.json", "model.safetensors", ".hftransfer-files.json"}
    assert set(repo.files) - {".gitattributes"} == expected
    assert repo.files["LICENSE"] == b"mine"


def test_repository_has_no_folder_names_and_no_ids_of_examples(run_folder, tmp_path):
    folder = shutil.copytree(run_folder, tmp_path / "topics")
    about = json.loads((folder / "run.json").read_text())
    source = about["checkpoint"] | {"source": "C:\\Users\\me\\secret-client\\bert"}
    write_json(folder / "run.json", about | {"checkpoint": source})
    config = {"data": {"train": "clients/acme/patients.csv", "input": "good/bad", "split": {"file": "..\\acme\\s.parquet"}},
              "model": {"name": "models/secret-client/bert"}, "output": "runs/acme/a"}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    stage = PASSED | {"disagreements": ["acme/patient-7.png"]}
    write_json(folder / "certificate.json", {"rows": 16, "forms": "x", "stages": [stage]})
    write_repository(RecordedRun.open(folder), tmp_path / "repository", f"{OWNER}/topics")
    pages = [file for file in (tmp_path / "repository").iterdir() if file.suffix in (".json", ".md", ".yaml")]
    published = "".join(file.read_text(encoding="utf-8") for file in pages)
    assert not [word for word in ("acme", "clients", "secret-client", "Users", "patient-7") if word in published]
    kept = json.loads((tmp_path / "repository" / "training_config.json").read_text())
    assert kept["data"] == {"train": "patients.csv", "input": "good/bad", "split": {"file": "s.parquet"}}
    assert kept["model"]["name"] == "bert"


SPACE = f"{OWNER}/topics-demo"


def test_space_is_pushed_and_updated(run_folder, hub, tmp_path):
    first = push(run_folder, f"{OWNER}/topics", private=True, space=SPACE)
    space, model = hub.repos["space", SPACE], hub.repos["model", f"{OWNER}/topics"]
    assert first.space == f"{hub.url}/spaces/{SPACE}" and space.private and space.sdk == "gradio"
    assert {"app.py", "requirements.txt", "README.md", "hftransfer/apps/demo.py", "model/config.json"} <= set(
        space.files
    )
    assert space.files["model/model.safetensors"] == model.files["model.safetensors"]
    assert not any(name.endswith((".parquet", ".html", ".pyc")) for name in space.files)
    with pytest.raises(
        UserError, match=f"{OWNER}/topics already holds a model: take another name, or add a commit to it"
    ):
        push(run_folder, f"{OWNER}/topics", space=SPACE)
    assert push(run_folder, f"{OWNER}/topics", update=True, space=SPACE).space == first.space
    assert len(space.commits) == len(model.commits) == 2  # nothing had changed
    subprocess.run(["cp", "-r", str(run_folder), str(tmp_path / "news")], check=True)
    push(tmp_path / "news", f"{OWNER}/topics", update=True, space=SPACE)
    assert len(space.commits) == len(model.commits) == 3
    front = yaml.safe_load(space.files["README.md"].decode().split("---\n")[1])
    assert front["title"] == "news" and front["models"] == [f"{OWNER}/topics"]
    assert (
        f'"{OWNER}/topics")' in space.files["model/README.md"].decode()
    )  # the card speaks of the model, not of the Space


def test_taken_space_is_refused_before_the_model_is_sent(run_folder, hub, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "app.py").write_text("old")
    hub.add(SPACE, tmp_path / "old", "space")
    with pytest.raises(UserError, match=f"{SPACE} already holds a space: take another name"):
        push(run_folder, f"{OWNER}/topics", space=SPACE)
    assert uploads(hub) == 0


def test_space_that_breaks_off_says_what_completes_it(run_folder, hub):
    hub.failures = [200, 503, 503, 503]  # the model's commit, and three tries of the Space's
    with pytest.raises(UserError) as caught:
        push(run_folder, f"{OWNER}/topics", space=SPACE)
    assert str(caught.value).endswith(f"The model itself arrived at {hub.url}/{OWNER}/topics: add --update.")
    assert push(run_folder, f"{OWNER}/topics", update=True, space=SPACE).space


def test_front_matter_is_what_spaces_read():
    """The keys and colours of https://huggingface.co/docs/hub/spaces-config-reference."""
    front = yaml.safe_load((ROOT / "spaces_app" / "README.md").read_text().split("---\n")[1])
    keys = {
        "title",
        "emoji",
        "colorFrom",
        "colorTo",
        "sdk",
        "sdk_version",
        "python_version",
        "app_file",
        "pinned",
        "license",
    }
    assert set(front) == keys | {"short_description"} and len(front["short_description"]) <= 60
    assert {front["colorFrom"], front["colorTo"]} <= {
        "red",
        "yellow",
        "green",
        "blue",
        "indigo",
        "purple",
        "pink",
        "gray",
    }
    assert (
        front["sdk"] == "gradio" and int(front["sdk_version"].split(".")[0]) == 6 and front["python_version"] == "3.11"
    )
    assert (ROOT / "spaces_app" / front["app_file"]).is_file() and front["license"] == "apache-2.0"


# --- at the end of a training ----------------------------------------------------------------------------------------


def training(folder: Path, **push_to_hub):
    values = configuration("probe", "text", folder).model_dump(mode="json")
    values |= {"push_to_hub": {"repo_id": f"{OWNER}/texts"} | push_to_hub, "output": str(folder / "run")}
    return checked(values | {"evaluation": {"resamples": 100, "explanations": False}})


def test_broken_push_at_the_end_loses_nothing_and_names_its_completion(hub, tmp_path, pages, caplog, monkeypatch):
    monkeypatch.setattr(
        "hftransfer.publish.hub.certified", lambda folder: {"rows": 16, "stages": []}
    )  # processes of its own
    caplog.set_level(logging.INFO, "hftransfer")
    hub.failures = [503, 503, 503]
    with pytest.raises(UserError, match=r"broke off \(status 503\), and nothing was committed"):
        run(training(tmp_path, private=True))
    folder, repo = tmp_path / "run", hub.repos["model", f"{OWNER}/texts"]
    command = f"hftransfer push {folder} {OWNER}/texts --private"
    assert f"The run is whole in {folder}, but the push did not end. What completes it: {command}\n" in caplog.text
    assert set(repo.files) == {".gitattributes"} and (folder / "report.html").is_file()
    pushed = push(folder, f"{OWNER}/texts", private=True)
    assert repo.private and set(pushed.files) <= set(repo.files) and TOKEN not in caplog.text
    assert b"push_to_hub" not in repo.files["README.md"] + repo.files["training_config.json"]
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match=f"{OWNER}/texts already holds a model: take another name"):
        run(training(tmp_path / "other"))
    assert not list((tmp_path / "other").glob("run*"))


@pytest.mark.parametrize(
    ("settings", "token", "words"),
    [
        ({"repo_id": "texts"}, TOKEN, "Expected OWNER/NAME, such as your-name/texts, found 'texts'."),
        ({"space": "demo"}, TOKEN, "Expected OWNER/NAME, such as your-name/demo, found 'demo'."),
        ({}, "", "Not logged in to the Hub: run `hf auth login`, or set HF_TOKEN."),
        ({}, "hf_wrong", "The Hub refuses the token: log in again with `hf auth login`, or renew HF_TOKEN."),
        (
            {"repo_id": "google/texts"},
            TOKEN,
            "Your token may not write to 'google' on the Hub: take a name of your own.",
        ),
    ],
)
def test_what_would_stop_the_push_stops_before_the_training(settings, token, words, hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setattr("hftransfer.train._once", lambda *given: pytest.fail("the training began"))
    with pytest.raises(UserError) as caught:
        run(training(tmp_path, **settings))
    assert str(caught.value) == words


def test_no_push_while_the_hub_is_switched_off(send, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="HF_HUB_OFFLINE=1 keeps the Hub out of reach: unset it to push."):
        send[1]()


def test_only_the_first_process_asks_the_hub(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    check_ready("no name at all")


@pytest.mark.parametrize(
    ("name", "words"),
    [("topics", "Expected OWNER/NAME, such as your-name/topics"), ("a/b/c", "cannot be the name of a repository")],
)
def test_name_is_checked_before_anything_is_sent(name, words, run_folder):
    with pytest.raises(UserError, match=words):
        push(run_folder, name)


def test_dry_run_writes_the_folder_and_asks_nobody(run_folder, tmp_path):
    pushed = push(run_folder, "me/topics", dry_run=tmp_path / "repo")
    assert {str(file.relative_to(tmp_path / "repo")) for file in (tmp_path / "repo").iterdir()} == set(pushed.files)
    assert transformers.pipeline("text-classification", str(tmp_path / "repo"))("a goal")[0]["label"] in SINGLE.names
    with pytest.raises(UserError, match="exists already: choose another folder for the dry run"):
        push(run_folder, "me/topics", dry_run=tmp_path / "repo")


def test_only_the_first_process_pushes(run_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    assert push(run_folder, "me/topics", dry_run=tmp_path / "repo") is None and not (tmp_path / "repo").exists()


def test_disagreement_stops_the_push(run_folder, tmp_path):
    copy = tmp_path / "run"
    subprocess.run(["cp", "-r", str(run_folder), str(copy)], check=True)
    failed = PASSED | {"disagreements": ["row-0500"], "max_difference": 0.4}
    round_trip(copy, failed)
    with pytest.raises(UserError, match=r"otherwise through pipeline .*: 1 of 16 labels differ \(rows row-0500;"):
        push(copy, "me/topics", dry_run=tmp_path / "repo")
    assert not (tmp_path / "repo").exists()


# --- adapters --------------------------------------------------------------------------------------------------------


def test_run_without_adapter(run_folder, tmp_path):
    with pytest.raises(UserError, match="has no adapter: its strategy is full. Push the whole model"):
        push(run_folder, "me/topics", adapter=True, dry_run=tmp_path / "repo")


@pytest.fixture
def lora_run(run_folder, tmp_path):
    """The same run with an adapter beside it."""
    from peft import LoraConfig, get_peft_model

    copy = tmp_path / "lora"
    subprocess.run(["cp", "-r", str(run_folder), str(copy)], check=True)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(copy / "model")
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"]))
    adapted.save_pretrained(copy / "adapter")
    round_trip(copy, PASSED)
    return copy


def test_adapter_of_a_base_that_is_not_on_the_hub(lora_run, tmp_path):
    with pytest.raises(UserError, match="belongs to tiny, which is not on the Hub"):
        push(lora_run, "me/topics", adapter=True, dry_run=tmp_path / "repo")


def test_adapter_on_the_base_from_the_hub_answers_as_the_merged_model(tmp_path, tiny_run, hub):
    """A trained adapter, pushed alone and loaded as its card says, against the run's merged model."""
    folder = Path(shutil.copytree(tiny_run("lora", "text"), tmp_path / "run"))
    base = hub.add("google/bert-tiny", Path(RunConfig.from_yaml(folder / "config.yaml").model.name))
    about = json.loads((folder / "run.json").read_text())
    about["checkpoint"]["source"] = f"google/bert-tiny@{base.sha}"
    write_json(folder / "run.json", about)
    round_trip(folder, PASSED)
    push(folder, f"{OWNER}/topics", adapter=True)
    files = hub.repos["model", f"{OWNER}/topics"].files
    code = files["README.md"].decode().split("```python\n")[1].split("```")[0]
    ask = code + (
        "\nfrom transformers import AutoTokenizer\n"
        f"read = AutoTokenizer.from_pretrained('{OWNER}/topics')('the goal of the match', return_tensors='pt')\n"
        "answer = [model.eval()(**read).logits.tolist()[0], list(base.config.id2label.values())]"
    )
    found = in_process(ask, hub, tmp_path / "other", TOKEN)["answer"]
    merged = transformers.AutoModelForSequenceClassification.from_pretrained(folder / "model")
    read = transformers.AutoTokenizer.from_pretrained(folder / "model")("the goal of the match", return_tensors="pt")
    assert found[0] == pytest.approx(merged(**read).logits.tolist()[0], abs=1e-5)
    assert found[1] == list(merged.config.id2label.values())
    settings = json.loads(files["adapter_config.json"])
    assert (settings["base_model_name_or_path"], settings["revision"]) == ("google/bert-tiny", base.sha)
    assert "model.safetensors" not in files and "tokenizer.json" in files
    assert b"base_model: google/bert-tiny" in files["README.md"] and b"library_name: peft" in files["README.md"]
