"""The saved model is the evaluated one: the store, stored activations, heads of two layers, and the check of every run."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from PIL import Image

from hftransfer.config import checked
from hftransfer.core.errors import UserError
from hftransfer.core.image_files import open_image
from hftransfer.features.store import FeatureStore
from hftransfer.modalities import AugmentationConfig, kind_of
from hftransfer.models.heads import output_layers
from hftransfer.models.processors import image_settings
from hftransfer.models.weights import architecture_key
from hftransfer.pipeline import outputs, self_check
from hftransfer.strategies import STRATEGIES
from hftransfer.train import run
from tests.models.test_foreign_checkpoints import TOWER, gap_to_pipeline, saved
from tests.support import tiny


@pytest.fixture
def texts(tmp_path):
    return tiny.text_table(tmp_path / "t.csv", rows=40)


def configuration(model, data, folder, strategy="probe", training=None, **options):
    """`data` and `strategy` are a path and a name, or the whole section."""
    return checked({
        "data": data if isinstance(data, dict) else str(data), "model": model if isinstance(model, dict) else str(model), "strategy": strategy,
        "training": {"max_steps": 2, "evaluations": 1, "bf16": False} | (training or {}),
        "evaluation": {"explanations": False, "resamples": 100}, "output": str(folder), "use_cpu": True, **options,
    })  # fmt: skip


def predictions(folder):
    return pd.read_parquet(folder / "predictions.parquet").filter(like="logit:").to_numpy()


# A1: keys of the store


def test_the_store_knows_the_architecture_and_not_the_tensors_alone(tmp_path, texts):
    first = tiny.TEXT_FAMILIES["bert"](tmp_path / "a")
    second = shutil.copytree(first, tmp_path / "b")
    config = json.loads((second / "config.json").read_text()) | {"num_attention_heads": 8, "hidden_act": "relu"}
    (second / "config.json").write_text(json.dumps(config))
    for model in ("a", "b"):
        made = run(configuration(tmp_path / model, texts, tmp_path / f"run-{model}"))
        assert gap_to_pipeline(made.folder, "text-classification") < 1e-5
    assert np.abs(predictions(tmp_path / "run-a") - predictions(tmp_path / "run-b")).max() > 0.1


@pytest.mark.parametrize("change", [
    {"hidden_act": "relu"}, {"num_attention_heads": 4}, {"layer_norm_eps": 1e-3}, {"_attn_implementation": "eager"},
])  # fmt: skip
def test_every_ingredient_of_a_forward_pass_is_in_the_key(monkeypatch, change):
    config = transformers.BertConfig(**tiny._ENCODER, vocab_size=30)
    model = transformers.BertForSequenceClassification(config)
    before = architecture_key(model)
    model.config.id2label, model.config._name_or_path = {0: "x", 1: "y"}, "elsewhere"  # named otherwise, computed alike
    assert architecture_key(model) == before
    for name, value in change.items():
        setattr(model.config, name, value)
    assert architecture_key(model) != before


def test_what_is_handed_to_the_store_changes_with_each_ingredient(tmp_path, texts, monkeypatch):
    """The space of a run, as `collect` receives it: another network, precision or tokenizer is another space."""
    spaces = []
    collect = FeatureStore.collect
    monkeypatch.setattr(
        FeatureStore, "collect", lambda self, space, *rest: spaces.append(space) or collect(self, space, *rest)
    )
    model = tiny.TEXT_FAMILIES["bert"](tmp_path / "m")
    variants = [
        {},
        {"training": {"bf16": True}},
        {"head": {"pooling": "head"}},
        {"model": {"name": str(model), "max_length": 20}},
    ]
    for number, options in enumerate(variants):
        config = configuration(
            model, texts, tmp_path / f"run{number}", **{k: v for k, v in options.items() if k != "model"}
        )
        if "model" in options:
            config = config.model_copy(update={"model": config.model.model_copy(update={"max_length": 20})})
        run(config)
    assert len(set(spaces)) == len(spaces) == len(variants)


# A2: stored activations of tokenizers that pad on the left


@pytest.mark.parametrize("side", ["left", "right"])
def test_stored_activations_with_padding_on_either_side(tmp_path, side):
    tokenizer = tiny._gpt2_tokenizer(tmp_path)
    tokenizer.padding_side = side
    torch.manual_seed(0)
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=3, num_attention_heads=2,
                                      intermediate_size=64, max_position_embeddings=64, initializer_range=0.1)  # fmt: skip
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    rows = pd.DataFrame({"text": ["goal team match " * (1 + i % 5) for i in range(40)], "label": ["a", "b"] * 20})
    rows.to_csv(tmp_path / "t.csv", index=False)
    made = run(configuration(tmp_path / "m", tmp_path / "t.csv", tmp_path / "run", {"type": "frozen", "top": 1}))
    assert gap_to_pipeline(made.folder, "text-classification", rows=8) < 1e-4


# A3: networks with two output layers


def distilled(folder):
    torch.manual_seed(0)
    return saved(
        transformers.DeiTForImageClassificationWithTeacher(transformers.DeiTConfig(**TOWER, num_labels=7)),
        folder,
        "ViT",
    )


def levit(folder):
    torch.manual_seed(0)
    sizes = {
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [1, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "image_size": 64,
    }
    model = transformers.LevitForImageClassificationWithTeacher(transformers.LevitConfig(**sizes, num_labels=7))
    saved(model, folder, "ViT")
    transformers.ViTImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


def timm_distilled(folder):
    return tiny.timm_checkpoint(
        "deit_tiny_distilled_patch16_224",
        {"img_size": 32, "patch_size": 8, "depth": 2, "embed_dim": 32, "num_heads": 2},
    )(folder)


@pytest.mark.parametrize("make", [distilled, levit, timm_distilled])
def test_two_output_layers_are_found(tmp_path, make):
    from hftransfer.models.loading import load_checkpoint
    from hftransfer.models.references import ModelConfig
    from hftransfer.tasks import SingleLabel

    model = load_checkpoint(
        ModelConfig(name=str(make(tmp_path / "m"))), kind_of("image"), SingleLabel(("a", "b", "c"))
    ).model
    assert len(output_layers(model)) == 2


def test_a_hidden_layer_as_wide_as_the_labels_is_no_output_layer():
    config = transformers.RobertaConfig(**tiny._ENCODER | {"num_labels": 32}, vocab_size=30)
    model = transformers.RobertaForSequenceClassification(config)
    assert output_layers(model) == (model.classifier.out_proj,)


TWO_OUTPUTS = [
    (distilled, "probe", "single_label"), (distilled, "full", "regression"), (distilled, "lora", "single_label"),
    (levit, "probe", "regression"), (timm_distilled, "probe", "regression"), (timm_distilled, "full", "single_label"),
]  # fmt: skip
OTHER_TASK = {"single_label": "regression", "regression": "single_label"}
SLOW = [pytest.param(make, how, OTHER_TASK[task], marks=pytest.mark.slow) for make, how, task in TWO_OUTPUTS]


@pytest.mark.parametrize(("make", "strategy", "task"), TWO_OUTPUTS + SLOW)
def test_networks_with_two_output_layers_answer_as_evaluated(tmp_path, make, strategy, task):
    data = tiny.image_folder(tmp_path / "pics", per_class=6, size=64)
    if task == "regression":
        files = sorted(data.rglob("*.png"))
        values = [200 + 5 * i + len(file.parent.name) for i, file in enumerate(files)]
        pd.DataFrame({"path": [str(f.relative_to(tmp_path)) for f in files], "label": values}).to_csv(
            tmp_path / "t.csv", index=False
        )
        data = tmp_path / "t.csv"
    made = run(configuration(make(tmp_path / "m"), {"train": str(data), "task": task}, tmp_path / "run", strategy))
    assert made.metrics["test"]  # the self-check of the run compares the saved model with the recorded logits
    assert json.loads((made.folder / "run.json").read_text())["self_check"]["max_difference"] < 1e-3


# A15: decoding


@pytest.mark.parametrize(("processor", "resized"), [
    (transformers.ConvNextImageProcessor(size={"shortest_edge": 224}), 256),
    (transformers.ConvNextImageProcessor(size={"shortest_edge": 384}), 384),
    (transformers.ViTImageProcessor(size={"height": 224, "width": 224}), 224),
    (transformers.CLIPImageProcessor(), 224),
    (transformers.BitImageProcessor(size={"shortest_edge": 448}, crop_size={"height": 224, "width": 224}), 448),
])  # fmt: skip
def test_the_side_before_the_crop_is_found(processor, resized):
    assert image_settings(processor).resized == pytest.approx(resized, rel=0.01)


@pytest.mark.parametrize("side", [460, 900, 1400])
def test_images_are_decoded_no_smaller_than_the_processor_resizes_them(tmp_path, side):
    noise = np.random.default_rng(0).integers(0, 256, (side // 6, side // 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((side, side), Image.BICUBIC).save(tmp_path / "a.jpg", quality=90)
    processor = transformers.ConvNextImageProcessor(size={"shortest_edge": 224})
    read = kind_of("image").bind(processor).collate([str(tmp_path / "a.jpg")])["pixel_values"]
    plain = processor(images=Image.open(tmp_path / "a.jpg"), return_tensors="pt")["pixel_values"]
    undershot = processor(images=open_image(str(tmp_path / "a.jpg"), at_least=224), return_tensors="pt")["pixel_values"]
    assert (read - plain).abs().mean() < 0.8 * (undershot - plain).abs().mean()
    assert (read - plain).abs().mean() < 0.05 * plain.std()


# A16: nothing depends on what the store holds


def test_a_pass_leaves_the_random_numbers_as_they_are(tmp_path, texts):
    model = tiny.TEXT_FAMILIES["bert"](tmp_path / "m")
    weights = []
    for number in range(2):  # the store is empty, then full
        made = run(configuration(model, texts, tmp_path / f"run{number}", {"type": "lora", "head_init": "probe"}))
        weights.append((made.folder / "model" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]


# The check of every run


def record(folder):
    return json.loads((folder / "run.json").read_text())["self_check"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_run_is_checked(tmp_path, texts, caplog, strategy):
    caplog.set_level("INFO")
    made = run(configuration(tiny.TEXT_FAMILIES["distilbert"](tmp_path / "m"), texts, tmp_path / "run", strategy))
    assert record(made.folder)["examples"] >= 8 and record(made.folder)["max_difference"] < 0.02
    assert "Self-check: the saved model gives the recorded answers to" in caplog.text


@pytest.mark.parametrize("strategy", ["probe", "full"])
def test_runs_on_all_rows_are_checked_on_their_training_rows(tmp_path, texts, strategy):
    nothing = {"train": str(texts), "split": {"test": 0, "validation": 0}}
    made = run(configuration(tiny.TEXT_FAMILIES["bert"](tmp_path / "m"), nothing, tmp_path / "run", strategy))
    assert record(made.folder)["examples"] == 16 and record(made.folder)["max_difference"] < 0.02


@pytest.mark.parametrize(("stage", "broken"), [
    ("saving and loading", lambda model, processor: list(model.parameters())[-2].data.mul_(-1)),
    ("evaluation", None),
])  # fmt: skip
def test_a_run_whose_saved_model_answers_otherwise_is_not_complete(tmp_path, texts, monkeypatch, stage, broken):
    if broken:
        save = outputs.save_model

        def save_another(model, processor, folder):
            import copy

            other = copy.deepcopy(model)
            broken(other, processor)
            save(other, processor, folder)

        monkeypatch.setattr(outputs, "save_model", save_another)
    else:
        monkeypatch.setattr(
            "hftransfer.probe.fit.Probe.logits", property(lambda self: -self.head.logits(self.features))
        )
    with pytest.raises(UserError) as error:
        run(configuration(tiny.TEXT_FAMILIES["bert"](tmp_path / "m"), texts, tmp_path / "run"))
    assert f"The saved model is not the evaluated one (stage: {stage})" in str(error.value)
    assert "The run is not complete." in str(error.value)
    assert not (tmp_path / "run").exists()


def test_another_transform_beside_the_saved_model_is_found(tmp_path, monkeypatch):
    data = tiny.image_folder(tmp_path / "pics", per_class=6)
    save = outputs.save_model

    def save_with_another_mean(model, processor, folder):
        save(model, processor, folder)
        file = folder / "preprocessor_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"image_mean": [0.0, 0.9, 0.1]}))

    monkeypatch.setattr(outputs, "save_model", save_with_another_mean)
    with pytest.raises(UserError, match="stage: reading the inputs"):
        run(configuration(tiny.VISION_FAMILIES["vit"](tmp_path / "m"), data, tmp_path / "run"))


def test_images_given_as_bytes_are_checked_too(tmp_path):
    import datasets

    data = tiny.image_folder(tmp_path / "pics", per_class=6)
    rows = [
        {"image": {"bytes": file.read_bytes(), "path": None}, "label": file.parent.name}
        for file in sorted(data.rglob("*.png"))
    ]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    config = configuration(tiny.VISION_FAMILIES["vit"](tmp_path / "m"), "x", tmp_path / "run")
    config = config.model_copy(update={"data": config.data.model_copy(update={"train": None})})
    made = run(config, datasets.Dataset.from_list(rows, features=features))
    assert record(made.folder)["examples"] > 2


def test_a_text_is_read_alone_as_in_a_padded_batch(tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny.TEXT_FAMILIES["bert"](tmp_path / "m"))
    frame = pd.DataFrame({"input": ["goal", "goal team match player"]})
    batch = kind_of("text").bind(tokenizer, AugmentationConfig()).plain_batch(tokenizer, frame)
    assert batch["attention_mask"].sum(1).tolist() == [3, 6] and batch["input_ids"].shape == (2, 6)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 6, 16])
def test_batches_of_the_self_check_hold_every_example_once(count):
    batches = self_check._batches(count)
    assert sorted(np.concatenate(batches)) == list(range(count))
    assert set(batches[0]) == {0, count - 1}


@pytest.mark.parametrize(("tokens_a_second", "examples"), [(10, 2), (1500, 6), (10**6, 16)])
def test_long_inputs_are_asked_only_as_long_as_time_permits(monkeypatch, tokens_a_second, examples):
    """The smallest and the largest whatever it takes, others only where they fit."""
    clock, lengths = [0.0], [*range(20, 35), 400]
    frame = pd.DataFrame({"length": lengths})

    def answer(model, context, batch):
        clock[0] += len(batch) * batch["length"].max() / tokens_a_second
        return batch[["length"]].to_numpy(float)

    monkeypatch.setattr(self_check, "_logits", answer)
    monkeypatch.setattr(self_check.time, "perf_counter", lambda: clock[0])
    modality = SimpleNamespace(
        mixes_lengths=True, lengths=lambda items: items, plain_batch=lambda processor, frame: frame
    )
    context = SimpleNamespace(
        modality=modality,
        items=lengths,
        data=SimpleNamespace(frame=frame, inspections=[SimpleNamespace(size=(0, 0))] * 16),
    )
    asked, found = self_check.Saved(None, None).logits(context, np.arange(16), self_check.SECONDS)
    assert len(asked) == examples and asked[0] == 0 and asked[-1] == 15
    assert found[:, 0].tolist() == [lengths[position] for position in asked]


@pytest.mark.parametrize(("count", "examples"), [(0, 0), (1, 1), (2, 2), (16, 16), (17, 16), (400, 16)])
def test_the_self_check_asks_the_smallest_and_the_largest(count, examples):
    sizes = np.random.default_rng(0).permutation(count) + 1
    inspections = [SimpleNamespace(size=(0, 0))] * count
    modality = SimpleNamespace(mixes_lengths=True, lengths=lambda items: items)
    context = SimpleNamespace(modality=modality, items=sizes, data=SimpleNamespace(inspections=inspections))
    chosen = sizes[self_check._extremes(context, np.arange(count))]
    assert len(chosen) == examples and list(chosen) == sorted(chosen)
    assert not count or (chosen[0] == 1 and chosen[-1] == count)


@pytest.mark.parametrize("level", [0.0, 1000.0])
def test_texts_that_a_network_cannot_tell_apart_have_equal_predictions_up_to_rounding(tmp_path, level):
    """All words are unknown: predictions are one number, and its rounding is larger than any share of their spread."""
    model, random = tiny.TEXT_FAMILIES["bert"](tmp_path / "m"), np.random.default_rng(0)
    greek = [chr(ord("α") + number) for number in range(24)]
    rows = [f"{greek[i % 24]}{greek[i // 24]}{greek[i * 7 % 24]} {greek[(i + 5) % 24]}" for i in range(40)]
    data = tmp_path / "t.csv"
    pd.DataFrame({"text": rows, "score": level + random.normal(size=40)}).to_csv(data, index=False)
    made = run(configuration(model, {"train": str(data), "task": "regression"}, tmp_path / "run"))
    assert json.loads((made.folder / "run.json").read_text())["self_check"]["max_difference"] < 1e-4
