"""Every family loads with a fresh head for the task, and what is saved answers the same through plain `pipeline()`."""

import json
import logging
import os
import pickle
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import transformers

from hftransfer.config import RunConfig, checked
from hftransfer.core.errors import UserError
from hftransfer.modalities import MODALITIES, kind_of
from hftransfer.models import reach, references
from hftransfer.models.heads import final_linear, head_of, head_parameters
from hftransfer.models.loading import ModelConfig, load_checkpoint, save_model
from hftransfer.models.processors import image_settings
from hftransfer.models.references import resolved
from hftransfer.models.weights import read_weights, weights_hash
from hftransfer.runs.record import RunRecord
from hftransfer.tasks import SingleLabel, Task, make_task
from hftransfer.train import run
from tests.support import tiny
from tests.support.fork_server import run_python

TASK = SingleLabel(("red", "green", "blue"))
FAMILIES = {**tiny.VISION_FAMILIES, **tiny.TEXT_FAMILIES}
TEXTS = ["the goal of the match", "market profit and trade today", "a film"]
PROTEINS = ["LAVIDE", "KDERRSTNQ", "FWY"]

transformers.utils.logging.disable_progress_bar()


def modality(family: str) -> str:
    return "image" if family in tiny.VISION_FAMILIES else "text"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The tiny checkpoint of a family, made once."""
    root, made = tmp_path_factory.mktemp("checkpoints"), {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = FAMILIES[family](root / family)
        return made[family]

    return folder


def load(folder, kind: str, task: Task = TASK, random_weights: bool = False, **settings):
    return load_checkpoint(ModelConfig(name=str(folder), **settings), kind_of(kind), task, random_weights)


def stored_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


def values(tensors: dict[str, torch.Tensor]) -> set[bytes]:
    """The tensors without their names, which transformers may change on the way in."""
    return {tensor.numpy().tobytes() for tensor in tensors.values()}


def backbone_values(model) -> set[bytes]:
    head = head_parameters(model)
    return values({name: tensor for name, tensor in model.state_dict().items() if name not in head})


def logits_of(checkpoint, kind: str, family: str = "") -> np.ndarray:
    checkpoint.model.eval()
    with torch.no_grad():
        return checkpoint.model(**inputs_for(checkpoint.processor, kind, family)).logits.double().numpy()


def inputs_for(processor, kind: str, family: str = ""):
    if kind == "image":
        return processor(images=pictures(), return_tensors="pt")
    texts = PROTEINS if family == "esm" else TEXTS
    return processor(texts, padding=True, return_tensors="pt")


def pictures():
    return [tiny.image(label, seed=index) for index, label in enumerate(("red", "green", "blue"))]


# --- the head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_head_is_new_and_backbone_is_the_stored_one(family, folders, caplog):
    folder = folders(family)
    with caplog.at_level(logging.INFO, "hftransfer"):
        checkpoint = load(folder, modality(family))
    model, head = checkpoint.model, head_parameters(checkpoint.model)
    assert backbone_values(model) <= values(stored_tensors(folder))
    linear = final_linear(model)
    assert linear.out_features == 3 and torch.isfinite(linear.weight).all()
    assert 0.25 < linear.weight.std() / getattr(model.config, "initializer_range", 0.02) < 2.5
    assert checkpoint.new_parameters == frozenset(head)
    assert model.config.id2label == dict(enumerate(TASK.names)) and model.config.num_labels == 3
    assert model.config.problem_type == "single_label_classification"
    lines = [record.message for record in caplog.records if record.message.startswith("new head")]
    assert lines == [f"new head: {linear.in_features} -> 3 ({', '.join(head_of(model))})"]


@pytest.mark.parametrize("family", FAMILIES)
def test_old_head_goes_even_when_it_has_the_right_size(family, folders):
    names = tuple(f"class{index}" for index in range(tiny.OLD_LABELS))
    folder = folders(family)
    model = load(folder, modality(family), SingleLabel(names)).model
    own, stored = model.state_dict(), values(stored_tensors(folder))
    weights = [name for name in head_parameters(model) if name.endswith("weight") and "norm" not in name]
    assert weights and not {own[name].numpy().tobytes() for name in weights} & stored


@pytest.mark.parametrize("family", ["vit", "timm-resnet", "roberta"])
def test_seed_decides_the_new_head(family, folders):
    def head(seed):
        torch.manual_seed(seed)
        return final_linear(load(folders(family), modality(family)).model).weight

    assert torch.equal(head(0), head(0)) and not torch.equal(head(0), head(1))


def test_load_report_is_silent(folders, capfd):
    load(folders("bert"), "text")
    out, err = capfd.readouterr()
    assert "MISSING" not in out + err and "Loading weights" not in out + err


@pytest.mark.parametrize("family", ["vit", "timm-vit", "gpt2"])
def test_keep_head_puts_rows_in_the_order_of_the_data(family, folders, tmp_path):
    first = load(folders(family), modality(family))
    save_model(first.model, first.processor, tmp_path)
    other_order = SingleLabel(("blue", "red", "green"))
    kept = load(tmp_path, modality(family), other_order, keep_head=True)
    before, after = logits_of(first, modality(family)), logits_of(kept, modality(family))
    assert np.allclose(before[:, [2, 0, 1]], after, atol=1e-6)
    assert not kept.new_parameters and kept.model.config.id2label[0] == "blue"


def test_keep_head_refuses_other_labels(folders):
    with pytest.raises(UserError, match=r"labels are LABEL_0, .* \(7\), the data's are red, green, blue \(3\)"):
        load(folders("vit"), "image", keep_head=True)


def test_keep_head_refuses_a_checkpoint_without_one(tmp_path):
    task = SingleLabel(("LABEL_0", "LABEL_1"))
    with pytest.raises(UserError, match="has no head to keep"):
        load(backbone_only(tmp_path, "bert"), "text", task, keep_head=True)


@pytest.mark.parametrize("kind", ["multi_label", "regression"])
def test_task_is_written_into_the_config(kind, folders):
    config = load(folders("timm-resnet"), "image", make_task(kind, ("a", "b"))).config
    assert config.problem_type == ("regression" if kind == "regression" else "multi_label_classification")
    assert config.label2id == {"a": 0, "b": 1}


# --- what is saved answers alone -------------------------------------------------------------------------------------

FRESH_PROCESS = """
import json, sys
import transformers
transformers.logging.set_verbosity_error()
answers = {}
for family, job in json.load(open(sys.argv[1])).items():
    pipe = transformers.pipeline(job["task"], job["folder"])
    found = pipe(job["inputs"], top_k=None) if "text" in job["task"] else pipe(job["inputs"], top_k=9)
    answers[family] = [{row["label"]: row["score"] for row in rows} for rows in found]
assert not any(name.startswith("hftransfer") for name in sys.modules)
json.dump(answers, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def fresh_answers(folders, tmp_path_factory):
    """Per family: probabilities here, and what plain pipelines say in a process that knows nothing of this package."""
    root, jobs, here = tmp_path_factory.mktemp("saved"), {}, {}
    images = [str(root / f"{index}.png") for index in range(3)]
    for file, picture in zip(images, pictures(), strict=True):
        picture.save(file)
    for family in FAMILIES:
        kind = modality(family)
        checkpoint = load(folders(family), kind)
        torch.nn.init.normal_(final_linear(checkpoint.model).weight, std=0.5)  # so that classes differ clearly
        save_model(checkpoint.model, checkpoint.processor, root / family)
        here[family] = TASK.probabilities(logits_of(checkpoint, kind, family))
        texts = PROTEINS if family == "esm" else TEXTS
        name = "image-classification" if kind == "image" else "text-classification"
        jobs[family] = {"task": name, "folder": str(root / family), "inputs": images if kind == "image" else texts}
    return here, run_fresh(FRESH_PROCESS, jobs, root)


def run_fresh(code: str, jobs: dict, root: Path) -> dict:
    (root / "jobs.json").write_text(json.dumps(jobs))
    arguments = [sys.executable, "-c", code, str(root / "jobs.json"), str(root / "answers.json")]
    run_python(arguments, check=True, cwd=root, ready=True)
    return json.loads((root / "answers.json").read_text())


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_pipeline_gives_the_same_answer(family, fresh_answers):
    here, fresh = fresh_answers
    there = np.array([[row[name] for name in TASK.names] for row in fresh[family]])
    assert np.abs(here[family] - there).max() < 1e-4
    assert here[family].std() > 1e-3  # an answer that does not depend on the input would pass any comparison


def test_saved_folder_holds_no_pickle(folders, tmp_path):
    for family in ("vit", "timm-vit", "bert"):
        checkpoint = load(folders(family), modality(family))
        save_model(checkpoint.model, checkpoint.processor, tmp_path / family)
        names = {file.suffix for file in (tmp_path / family).iterdir()}
        assert ".safetensors" in names and not names & {".bin", ".pth", ".pt", ".pkl"}


# --- stored types, backbones, foreign weights ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("family", ["vit", "timm-resnet", "bert"])
def test_half_precision_is_loaded_in_float32(family, dtype, folders, tmp_path):
    half = copy_with(folders(family), tmp_path, lambda tensors: {k: v.to(dtype) for k, v in tensors.items()})
    config = json.loads((half / "config.json").read_text()) | {"dtype": str(dtype).split(".")[1]}
    (half / "config.json").write_text(json.dumps(config))
    for random_weights in (False, True):
        model = load(half, modality(family), random_weights=random_weights).model
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}


def copy_with(folder: Path, target: Path, change) -> Path:
    target.mkdir(exist_ok=True)
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    safetensors.torch.save_file(change(stored_tensors(folder)), target / "model.safetensors", {"format": "pt"})
    return target


def backbone_only(folder: Path, family: str, name: str = "AutoModel") -> Path:
    FAMILIES[family](folder)
    config = transformers.AutoConfig.from_pretrained(folder)
    config.id2label = {0: "LABEL_0", 1: "LABEL_1"}
    getattr(transformers, name).from_config(config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["vit", "dinov2", "bert", "deberta-v2", "gpt2"])
def test_backbone_alone_gets_a_head(family, tmp_path):
    folder = backbone_only(tmp_path, family)
    checkpoint = load(folder, modality(family))
    assert backbone_values(checkpoint.model) <= values(stored_tensors(folder))
    assert checkpoint.new_parameters == frozenset(head_parameters(checkpoint.model))


def test_pooler_that_the_checkpoint_lacks_is_named(tmp_path, caplog):
    folder = backbone_only(tmp_path, "bert", "AutoModelForMaskedLM")
    with caplog.at_level(logging.INFO, "hftransfer"):
        checkpoint = load(folder, "text")
    assert "new as well, as the checkpoint lacks it: bert.pooler.dense.bias, bert.pooler.dense.weight" in caplog.text
    assert "bert.pooler.dense.weight" in checkpoint.new_parameters
    assert torch.isfinite(checkpoint.model.bert.pooler.dense.weight).all()


def test_pretrained_layer_beside_the_backbone_stays(tmp_path):
    checkpoint = load(backbone_only(tmp_path, "modernbert", "AutoModelForMaskedLM"), "text")
    assert torch.equal(checkpoint.model.head.dense.weight, stored_tensors(tmp_path)["head.dense.weight"])
    assert checkpoint.new_parameters == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(("layers", "words"), [(4, "are missing or of another shape"), (2, "are left over")])
def test_weights_of_another_architecture_are_refused(layers, words, folders, tmp_path):
    folder = copy_with(folders("vit"), tmp_path, dict)
    config = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"do not fit its architecture .*.*16.*{words} \(vit\."):
        load(folder, "image")


def test_tensors_of_another_width_are_refused(folders, tmp_path):
    folder = copy_with(folders("timm-resnet"), tmp_path, lambda t: t | {"conv1.0.weight": torch.zeros(5, 3, 3, 3)})
    with pytest.raises(UserError, match=r"1 tensors are missing or of another shape \(timm_model.conv1.0.weight\)"):
        load(folder, "image")


def test_values_that_are_not_finite_are_refused(folders, tmp_path):
    def spoil(tensors):
        name = "vit.layernorm.weight"
        return tensors | {name: torch.full_like(tensors[name], float("nan"))}

    with pytest.raises(UserError, match=r"values that are not finite \(vit.layernorm.weight\)"):
        load(copy_with(folders("vit"), tmp_path, spoil), "image")


@pytest.mark.parametrize("family", ["vit", "resnet", "timm-resnet", "timm-vit", "bert"])
def test_random_weights_take_the_architecture_alone(family, folders):
    torch.manual_seed(1)
    first = load(folders(family), modality(family), random_weights=True)
    torch.manual_seed(1)
    again = load(folders(family), modality(family), random_weights=True)
    stored = load(folders(family), modality(family))
    assert first.weights_hash == again.weights_hash != stored.weights_hash
    assert first.new_parameters == set(first.model.state_dict())
    name = max(dict(stored.model.named_parameters()).items(), key=lambda item: item[1].numel())[0]
    assert not torch.equal(first.model.state_dict()[name], stored.model.state_dict()[name])


def test_random_weights_let_the_signal_through(folders):
    """transformers' EfficientNet draws the scales of its batch norms around 0."""
    model = load(folders("efficientnet"), "image", random_weights=True).model
    scales = [module.weight for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(scales) > 5 and all((scale == 1).all() for scale in scales)


def test_random_timm_starts_as_timm_does(folders):
    """The wrapper's own start, a normal of 0.02 everywhere, makes a plain conv net answer with next to nothing."""
    model = load(folders("timm-vgg"), "image", random_weights=True).model.timm_model
    fresh = timm.create_model("vgg11", mlp_ratio=0.005)
    for name in ("features.0", "features.8"):
        ours, theirs = model.get_submodule(name).weight.detach().std(), fresh.get_submodule(name).weight.detach().std()
        assert float(ours / theirs) == pytest.approx(1, abs=0.1)


# --- weights files ---------------------------------------------------------------------------------------------------


def timm_weights(folder: Path, name: str = "test_resnet") -> tuple[dict[str, torch.Tensor], Path]:
    torch.manual_seed(1)
    return timm.create_model(name, num_classes=5).state_dict(), folder / "weights.pth"


def load_timm(weights: Path, name: str = "test_resnet", **settings):
    return load_checkpoint(ModelConfig(name=name, weights=str(weights), **settings), kind_of("image"), TASK)


def matches(checkpoint, tensors: dict[str, torch.Tensor]) -> bool:
    own = checkpoint.model.timm_model.state_dict()
    return all(torch.equal(own[name], tensor) for name, tensor in tensors.items() if not name.startswith("fc."))


@pytest.mark.parametrize("wrapped", ["", "state_dict", "model", "module."])
def test_weights_file_is_matched_by_name(wrapped, tmp_path):
    tensors, file = timm_weights(tmp_path)
    stored = {f"{wrapped}{name}": tensor for name, tensor in tensors.items()} if wrapped == "module." else tensors
    torch.save({wrapped: stored, "epoch": 3} if wrapped in ("state_dict", "model") else stored, file)
    checkpoint = load_timm(file)
    assert matches(checkpoint, tensors) and checkpoint.source == "test_resnet"
    assert image_settings(checkpoint.processor).size == tuple(timm.get_pretrained_cfg("test_resnet").input_size[1:])


def test_weights_file_in_safetensors(tmp_path):
    tensors, _ = timm_weights(tmp_path)
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    assert matches(load_timm(tmp_path / "w.safetensors"), tensors)


def test_other_names_are_matched_by_order_and_said(tmp_path, caplog):
    tensors, file = timm_weights(tmp_path)
    renamed = {
        f"layer{number}": tensor
        for number, (name, tensor) in enumerate(tensors.items())
        if not name.endswith("num_batches_tracked")
    }
    torch.save(renamed, file)
    with caplog.at_level(logging.INFO, "hftransfer"):
        checkpoint = load_timm(file)
    assert matches(checkpoint, {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")})
    assert "weights.pth: tensor names differ from timm's, matched by order (same shapes)" in caplog.text


def test_file_of_another_architecture_is_refused(tmp_path):
    tensors, file = timm_weights(tmp_path, "test_vit")
    torch.save(tensors, file)
    with pytest.raises(UserError, match=r"does not hold the weights of test_resnet: \d+ of \d+ tensors are missing"):
        load_timm(file)


def test_pickle_that_runs_code_is_refused(tmp_path):
    file = tmp_path / "evil.pth"
    marker = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {marker}",)

    file.write_bytes(pickle.dumps({"conv.weight": Evil()}))
    with pytest.raises(UserError, match="is a pickle that holds more than tensors"):
        load_timm(file)
    torch.save({"conv.weight": Evil()}, file)
    with pytest.raises(UserError, match="is a pickle that holds more than tensors"):
        load_timm(file)
    assert not marker.exists()


def test_missing_weights_file_names_its_neighbour(tmp_path):
    (tmp_path / "weights.pth").touch()
    with pytest.raises(UserError, match=r"There is no weights file .*wieghts.pth. Did you mean 'weights.pth'\?"):
        load_timm(tmp_path / "wieghts.pth")


def test_weights_need_a_timm_architecture(tmp_path):
    with pytest.raises(UserError, match=r"'resnt50' is none. Did you mean 'resnet50'\?"):
        load_timm(tmp_path / "w.pth", "resnt50")


def test_architecture_alone_is_enough_for_random_weights():
    checkpoint = load_checkpoint(ModelConfig(name="test_resnet"), kind_of("image"), TASK, random_weights=True)
    assert final_linear(checkpoint.model).out_features == 3


def test_read_weights_leaves_out_what_is_no_tensor(tmp_path):
    torch.save({"a": torch.ones(1), "epoch": 3}, tmp_path / "w.pt")
    assert list(read_weights(tmp_path / "w.pt")) == ["a"]


# --- wrong references ------------------------------------------------------------------------------------------------


def message(name: str, kind: str = "image", **settings) -> str:
    with pytest.raises(UserError) as caught:
        load_checkpoint(ModelConfig(name=name, **settings), kind_of(kind), TASK)
    return str(caught.value)


def test_unknown_starter_name():
    assert (
        message("starter/mini-lm") == "There is no starter checkpoint 'starter/mini-lm'. Did you mean 'starter/minilm'?"
    )


def test_unknown_folder_names_its_neighbour(tmp_path):
    (tmp_path / "vit-small").mkdir()
    found = message(str(tmp_path / "vit-smal"))
    assert found == f"There is no folder {tmp_path}/vit-smal. Did you mean 'vit-small'?"


def test_folder_that_is_no_checkpoint(tmp_path):
    (tmp_path / "notes.txt").touch()
    assert "a config.json is expected in it, found notes.txt" in message(str(tmp_path))


def test_adapter_alone_is_named_as_such(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "holds an adapter alone" in message(str(tmp_path))


def test_run_folder_stands_for_its_model(folders, tmp_path):
    copy_with(folders("vit"), tmp_path / "model", dict)
    assert load(tmp_path, "image").model.config.model_type == "vit"


def test_unreachable_hub_says_what_else_can_be_given(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    found = message("google/vit-base-patch16-224")
    assert re.search(r"no folder here, is not in the Hub's cache \(.*\), and the Hub cannot be reached", found)
    assert "a timm architecture with model.weights=FILE, or starter/minilm / starter/efficientnet-lite0" in found


def test_hub_name_near_a_timm_architecture(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "Did you mean 'efficientnet_b0'?" in message("efficientnetb0")


@pytest.mark.parametrize(
    ("family", "kind", "words"),
    [
        ("bert", "image", "bert checkpoint, which cannot classify images"),
        ("vit", "text", "vit checkpoint, which cannot classify texts"),
    ],
)
def test_checkpoint_of_the_other_modality(family, kind, words, folders):
    assert words in message(str(folders(family)), kind)


def test_missing_processor_is_an_error(folders, tmp_path):
    folder = copy_with(folders("vit"), tmp_path / "vit", dict)
    (folder / "preprocessor_config.json").unlink()
    assert "preprocessor_config.json" in message(str(folder))


@pytest.mark.parametrize("family", ["bert", "gpt2", "roberta", "modernbert"])
def test_missing_tokenizer_is_an_error(family, folders, tmp_path):
    folder = copy_with(folders(family), tmp_path / family, dict)
    (folder / "tokenizer.json").unlink()
    assert "tokenizer" in message(str(folder), "text")


def test_missing_weights_are_an_error(folders, tmp_path):
    folder = copy_with(folders("vit"), tmp_path / "vit", dict)
    (folder / "model.safetensors").unlink()
    assert "cannot be read" in message(str(folder))


def test_truncated_weights_are_an_error(folders, tmp_path):
    folder = copy_with(folders("vit"), tmp_path / "vit", dict)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:500])
    assert "cannot be read" in message(str(folder))


REMOTE = """
from transformers import ViTConfig, ViTForImageClassification
class OwnConfig(ViTConfig):
    model_type = "own-vit"
class OwnModel(ViTForImageClassification):
    config_class = OwnConfig
"""


def test_code_of_the_repository_runs_only_when_allowed(folders, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = copy_with(folders("vit"), tmp_path / "own", dict)
    config = json.loads((folder / "config.json").read_text())
    own = {"AutoConfig": "code.OwnConfig", "AutoModelForImageClassification": "code.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own-vit", "auto_map": own}))
    (folder / "code.py").write_text(REMOTE)
    assert "allow it with model.trust_remote_code=true" in message(str(folder))
    assert type(load(folder, "image", trust_remote_code=True).model).__name__ == "OwnModel"


# --- identity --------------------------------------------------------------------------------------------------------


def test_hash_is_of_the_checkpoint_and_not_of_the_new_head(folders):
    first, second = load(folders("vit"), "image"), load(folders("vit"), "image", SingleLabel(("x", "y")))
    assert first.weights_hash == second.weights_hash
    assert first.weights_hash != load(folders("dinov2"), "image").weights_hash


def test_hash_sees_one_changed_value_and_a_changed_name():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))
    before = weights_hash(model)
    model[1].running_mean[0] += 1e-6
    assert weights_hash(model) != before
    model[1].running_mean[0] = 0.0
    assert weights_hash(model) == before
    assert weights_hash(torch.nn.ModuleDict({"a": model[0], "b": model[1]})) != before


def test_gpt2_gets_a_padding_token_and_ignores_it(folders, tmp_path):
    checkpoint = load(folders("gpt2"), "text")
    assert checkpoint.model.config.pad_token_id == checkpoint.processor.pad_token_id is not None
    together = logits_of(checkpoint, "text")
    with torch.no_grad():
        alone = checkpoint.model(**checkpoint.processor([TEXTS[2]], return_tensors="pt")).logits.numpy()
    assert np.allclose(together[2], alone[0], atol=1e-5)
    save_model(checkpoint.model, checkpoint.processor, tmp_path)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path).pad_token == "<|endoftext|>"


@pytest.mark.parametrize("kind", list(MODALITIES.values()), ids=lambda kind: kind.name)
def test_the_default_is_the_starter_where_it_is_installed_else_the_same_weights_on_the_hub(kind, monkeypatch, caplog):
    caplog.set_level("INFO")
    starter, on_the_hub = kind.default_checkpoints
    monkeypatch.setattr(reach, "_installed", lambda name: (name, ""))
    monkeypatch.setattr(reach, "hub_answers", lambda: pytest.fail("the first one is at hand: the Hub is not asked"))
    assert resolved(ModelConfig(), kind).name == starter
    assert f"Checkpoint: {starter} (the default for {kind.plural}; --model names another)" in caplog.text
    monkeypatch.setattr(reach, "_installed", lambda name: (None, "not installed"))
    monkeypatch.setattr(reach, "hub_answers", lambda: True)
    assert resolved(ModelConfig(), kind).name == on_the_hub
    monkeypatch.setattr(reach, "hub_answers", lambda: False)
    with pytest.raises(UserError, match=f"No default checkpoint for {kind.plural} can be loaded: pip install"):
        resolved(ModelConfig(), kind)
    assert resolved(ModelConfig(name="mine"), kind).name == "mine"


def test_a_run_without_a_checkpoint_takes_the_default_and_records_it(tmp_path, monkeypatch):
    place = str(tiny.TEXT_FAMILIES["bert"](tmp_path / "m"))
    monkeypatch.setattr(type(kind_of("text")), "default_checkpoints", (place,))
    monkeypatch.setattr(references, "reachable", lambda names: (reach.Reachable("the default", name) for name in names))
    table = tiny.text_table(tmp_path / "t.csv", rows=60)
    made = run(checked({"data": str(table), "output": str(tmp_path / "run"), "store": False}))
    assert RunConfig.from_yaml(made.folder / "config.yaml").model.name == place
    assert RunRecord.read(made.folder).checkpoint.source == place
