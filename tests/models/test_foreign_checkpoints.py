"""Checkpoints as other projects leave them: towers, masked autoencoders, tokenizers without limits, prefixed weights."""

import logging
import random
import shutil

import numpy as np
import pandas as pd
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from hftransfer.config import checked
from hftransfer.core.errors import UserError
from hftransfer.features.extract import FrozenPass, NotStored
from hftransfer.features.passes import ComputeConfig
from hftransfer.features.store import FeatureStore
from hftransfer.modalities import kind_of
from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import load_checkpoint, save_model
from hftransfer.models.partial import SplitPoint
from hftransfer.models.references import ModelConfig
from hftransfer.models.weights import read_weights
from hftransfer.tasks import SingleLabel
from hftransfer.train import run
from tests.support import tiny

TASK = SingleLabel(("a", "b", "c"))
TOWER = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "image_size": 32, "patch_size": 8,
}  # fmt: skip
WORDS = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 99}


def clip(folder):
    torch.manual_seed(0)
    config = transformers.CLIPConfig(text_config=WORDS, vision_config=TOWER, projection_dim=16)
    return saved(transformers.CLIPModel(config), folder, "CLIP")


def clip_tower(folder):
    torch.manual_seed(0)
    return saved(transformers.CLIPVisionModel(transformers.CLIPVisionConfig(**TOWER)), folder, "CLIP")


def older_clip_tower(folder):
    """The names that transformers 4 wrote, which most towers on the Hub have."""
    clip_tower(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({f"vision_model.{n.removeprefix('vision_model.')}": t for n, t in tensors.items()},
              folder / "model.safetensors", metadata={"format": "pt"})  # fmt: skip
    return folder


def siglip_tower(folder):
    torch.manual_seed(0)
    return saved(transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**TOWER)), folder, "Siglip")


def masked_autoencoder(folder):
    torch.manual_seed(0)
    decoder = {f"decoder_{name}": 2 for name in ("num_hidden_layers", "num_attention_heads")}
    sizes = {"decoder_hidden_size": 16, "decoder_intermediate_size": 16}
    return saved(
        transformers.ViTMAEForPreTraining(transformers.ViTMAEConfig(**TOWER, **decoder, **sizes)), folder, "ViT"
    )


def beit(folder):
    torch.manual_seed(0)
    config = transformers.BeitConfig(**TOWER, use_relative_position_bias=True, num_labels=7)
    return saved(transformers.BeitForImageClassification(config), folder, "ViT")


def saved(model, folder, processor):
    model.save_pretrained(folder)
    size = {"height": 32, "width": 32}
    kinds = {"CLIP": {"size": {"shortest_edge": 32}, "crop_size": size}}
    kind = getattr(transformers, f"{processor}ImageProcessor")
    kind(**kinds.get(processor, {"size": size})).save_pretrained(folder)
    return folder


def xlnet(folder):
    special = ("<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>")
    tokenizer = transformers.XLNetTokenizer(vocab=tiny._unigram(special, "<unk>"))
    config = transformers.XLNetConfig(d_model=32, n_layer=2, n_head=2, d_inner=64, vocab_size=len(tokenizer),
                                      pad_token_id=tokenizer.pad_token_id, num_labels=7)  # fmt: skip
    return with_tokenizer(transformers.XLNetForSequenceClassification, config, tokenizer, folder)


def t5(folder):
    tokenizer = transformers.T5Tokenizer(vocab=tiny._unigram(("<pad>", "</s>", "<unk>"), "<unk>"), extra_ids=0)
    config = transformers.T5Config(vocab_size=len(tokenizer), d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=2,
                                   decoder_start_token_id=0, num_labels=7)  # fmt: skip
    return with_tokenizer(transformers.T5ForSequenceClassification, config, tokenizer, folder)


def canine(folder):
    config = transformers.CanineConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
                                       max_position_embeddings=256, num_hash_functions=4, num_hash_buckets=512,
                                       local_transformer_stride=16, num_labels=7)  # fmt: skip
    return with_tokenizer(
        transformers.CanineForSequenceClassification, config, transformers.CanineTokenizer(model_max_length=256), folder
    )


def bart(folder):
    tokenizer = tiny._roberta_tokenizer(folder)
    ends = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = transformers.BartConfig(vocab_size=len(tokenizer), d_model=32, encoder_layers=2, decoder_layers=2,
                                     max_position_embeddings=64, num_labels=7, **sizes, **ends,
                                     decoder_start_token_id=tokenizer.eos_token_id)  # fmt: skip
    return with_tokenizer(transformers.BartForSequenceClassification, config, tokenizer, folder)


def with_tokenizer(kind, config, tokenizer, folder):
    torch.manual_seed(0)
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder, modality="image", **options):
    return load_checkpoint(ModelConfig(name=str(folder), **options), kind_of(modality), TASK)


def trained(model, data, folder, strategy="probe", **options):
    settings = {"max_steps": 2, "evaluations": 1, "bf16": False}
    return run(checked({
        "data": {"train": str(data)}, "model": {"name": str(model)} | options, "strategy": {"type": strategy} if isinstance(strategy, str) else strategy,
        "training": settings, "evaluation": {"explanations": False}, "output": str(folder), "use_cpu": True,
    })).folder  # fmt: skip


def gap_to_pipeline(folder, task, rows=4):
    """The largest difference of a score between what the run recorded and what plain transformers answers."""
    recorded = pd.read_parquet(folder / "predictions.parquet").query("split == 'test'").head(rows)
    inputs = pd.read_parquet(folder / "splits.parquet").set_index("id")["input"]
    names = [name.removeprefix("score:") for name in recorded if name.startswith("score:")]
    pipe = transformers.pipeline(task, str(folder / "model"), device="cpu", top_k=len(names))
    found = [{a["label"]: a["score"] for a in pipe([inputs[row]])[0]} for row in recorded["id"]]
    answers = np.array([[scores[name] for name in names] for scores in found])
    return np.abs(answers - recorded[[f"score:{name}" for name in names]].to_numpy()).max()


@pytest.mark.parametrize("make", [clip, clip_tower, older_clip_tower, siglip_tower, masked_autoencoder])
def test_encoders_of_images_are_classifiers_with_their_own_tensors(tmp_path, make):
    loaded = load(make(tmp_path / "m"))
    stored = load_file(tmp_path / "m" / "model.safetensors")
    own = {name: tensor for name, tensor in loaded.model.state_dict().items() if name not in loaded.new_parameters}
    assert len(own) > 40
    for name, tensor in own.items():  # transformers 5 renames some on loading
        assert any(torch.equal(tensor, there) for there in stored.values()), name


@pytest.mark.parametrize("make", [clip_tower, masked_autoencoder])
def test_what_such_a_run_saves_is_loaded_by_the_pipeline(tmp_path, make):
    data = tiny.image_folder(tmp_path / "pics", per_class=6)
    folder = trained(make(tmp_path / "m"), data, tmp_path / "run")
    assert gap_to_pipeline(folder, "image-classification") < 1e-5


def test_a_network_that_keeps_tensors_of_a_pass_can_train_after_it(tmp_path):
    data = tiny.image_folder(tmp_path / "pics", per_class=6)
    folder = trained(beit(tmp_path / "m"), data, tmp_path / "run", "full")
    assert gap_to_pipeline(folder, "image-classification") < 1e-5


@pytest.mark.parametrize("make", [xlnet, t5])
def test_a_checkpoint_without_a_length_limit_gets_one(tmp_path, caplog, make):
    caplog.set_level(logging.INFO)
    data = tiny.text_table(tmp_path / "t.csv", rows=40)
    folder = trained(make(tmp_path / "m"), data, tmp_path / "run")
    assert (
        "The checkpoint states no length limit: texts are cut at 512 tokens; model.max_length sets another."
        in caplog.text
    )
    assert gap_to_pipeline(folder, "text-classification") < 1e-4  # rounding: 1.3e-5 was seen with XLNet
    assert load(tmp_path / "m", "text", max_length=16).processor.model_max_length == 16


def unmasked(folder):
    tiny.TEXT_FAMILIES["bert"](folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, model_input_names=["input_ids", "token_type_ids"])
    tokenizer.save_pretrained(folder)
    assert "attention_mask" not in transformers.AutoTokenizer.from_pretrained(folder)("a b").keys()
    return folder


def test_a_tokenizer_without_a_mask_gives_one_to_a_model_that_reads_it(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = texts_of_many_lengths(tmp_path / "t.csv")
    folder = trained(unmasked(tmp_path / "m"), data, tmp_path / "run", {"type": "frozen", "top": 1})
    assert "the tokenizer gave no attention mask, which BertForSequenceClassification reads" in caplog.text
    assert gap_to_pipeline(folder, "text-classification", rows=8) < 1e-5
    assert "attention_mask" in transformers.AutoTokenizer.from_pretrained(folder / "model")("a b").keys()


def texts_of_many_lengths(file, lengths=(1, 2, 3, 4, 5), rows=40):
    texts = [f"{'goal' if row % 2 else 'market'} " * lengths[row % len(lengths)] for row in range(rows)]
    pd.DataFrame({"text": texts, "label": ["a", "b"] * (rows // 2)}).to_csv(file, index=False)
    return file


@pytest.mark.parametrize("alike", [False, True])
def test_stored_activations_of_a_network_that_pads_left_and_swaps_its_dimensions(tmp_path, monkeypatch, caplog, alike):
    """XLNet hands (tokens, batch, width) from block to block; a batch of as many texts as tokens looks like any other."""
    caplog.set_level(logging.INFO)
    model = xlnet(tmp_path / "m")
    tokenizer, data = transformers.AutoTokenizer.from_pretrained(model), texts_of_many_lengths(tmp_path / "t.csv")
    if alike:
        texts = pd.Series([tiny.sentence([number % 4], random.Random(number)) for number in range(800)])
        lengths = texts.map(lambda text: len(tokenizer(text)["input_ids"]))
        tokens = int(lengths.mode()[0])
        monkeypatch.setattr("hftransfer.runtime.autotune.batch_size_for_inference", lambda *a, **k: tokens)
        few = texts[lengths == tokens].head(3 * tokens)
        pd.DataFrame({"text": few, "label": [f"class {number % 4}" for number in few.index]}).to_csv(data, index=False)
    folder = trained(model, data, tmp_path / "run", {"type": "frozen", "top": 1})
    assert "Activations are not stored: XLNetForSequenceClassification" in caplog.text
    assert gap_to_pipeline(folder, "text-classification", rows=8) < 1e-4  # the solved head multiplies rounding


def test_activations_without_a_mask_are_not_stored(tmp_path):
    """FNet has no mask: what a text's tokens give depends on its padding, and nothing says where that begins."""
    tokenizer = tiny._bert_tokenizer(tmp_path)
    tokenizer.model_input_names = tokenizer.init_kwargs["model_input_names"] = ["input_ids", "token_type_ids"]
    config = transformers.FNetConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, intermediate_size=64,
                                     max_position_embeddings=64, num_labels=7)  # fmt: skip
    loaded = load(with_tokenizer(transformers.FNetForSequenceClassification, config, tokenizer, tmp_path / "m"), "text")
    text = kind_of("text").bind(loaded.processor)
    items = text.encode(pd.DataFrame({"input": ["goal", "goal team match player"]}))
    layer_groups = LayerGroups.of(loaded.model)
    frozen = FrozenPass(
        loaded.model, layer_groups, text, ComputeConfig(torch.device("cpu")), "w", FeatureStore(tmp_path / "store")
    )
    with pytest.raises(NotStored):
        frozen.split_point(items, ["a", "b"], SplitPoint(loaded.model, layer_groups, 2))
    assert len(frozen.split_point(items[:1] * 2, ["a", "b"], SplitPoint(loaded.model, layer_groups, 2))) == 2


def volo(folder):
    model = timm.create_model("volo_d1_224", num_classes=7, img_size=32).eval()
    timm.models.save_for_hf(model, str(folder), model_args={"img_size": 32, "num_classes": 7}, safe_serialization=True,
                            data_config={"input_size": (3, 32, 32)})  # fmt: skip
    return folder


def test_a_second_head_for_the_old_labels_is_left_out(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    loaded = load(volo(tmp_path / "m"))
    assert "volo_d1_224: its auxiliary head is left out" in caplog.text
    assert loaded.new_parameters == {"timm_model.head.weight", "timm_model.head.bias"}
    save_model(loaded.model, loaded.processor, tmp_path / "saved")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.allclose(loaded.model.eval()(pixels).logits, again(pixels).logits, atol=1e-6)


def test_a_tokenizer_written_in_python(tmp_path):
    data = tiny.text_table(tmp_path / "t.csv", protein=True, rows=40)
    folder = trained(tiny.TEXT_FAMILIES["esm"](tmp_path / "m"), data, tmp_path / "run", "full")
    assert gap_to_pipeline(folder, "text-classification") < 1e-5


def test_the_settings_of_a_tokenizer_written_in_python_follow_its_vocabulary(tmp_path):
    folder = tiny.TEXT_FAMILIES["esm"](tmp_path / "m")
    same, other = (transformers.AutoTokenizer.from_pretrained(folder) for _ in range(2))
    (folder / "vocab.txt").write_text((folder / "vocab.txt").read_text().replace("L\nA", "A\nL"))
    other = transformers.AutoTokenizer.from_pretrained(folder)
    assert (
        kind_of("text").bind(same).settings()
        == kind_of("text").bind(same).settings()
        != kind_of("text").bind(other).settings()
    )


def test_special_tokens_inside_of_texts_are_plain_text(tmp_path, caplog):
    data = tiny.text_table(tmp_path / "t.csv", rows=40)
    frame = pd.read_csv(data)
    frame.loc[3, "text"] += " </s> and on"
    frame.to_csv(data, index=False)
    folder = trained(bart(tmp_path / "m"), data, tmp_path / "run")
    assert (
        "1 texts hold names of special tokens such as '</s>': they are read as plain text (model.split_special_tokens)."
        in caplog.text
    )
    pipe = transformers.pipeline("text-classification", str(folder / "model"), device="cpu")
    assert pipe(["a </s> b", "c"], batch_size=2)  # a second end token stops BART
    with pytest.raises(UserError, match="reads a text up to its last </s>, so a text cannot hold one. Leave it out."):
        load(tmp_path / "m", "text", split_special_tokens=False)


def test_special_tokens_are_read_as_tokens_where_that_is_wanted(tmp_path, caplog):
    folder = tiny.TEXT_FAMILIES["bert"](tmp_path / "m")
    frame = pd.DataFrame({"input": ["goal [SEP] team"]})
    plain, tokens = (load(folder, "text", split_special_tokens=split).processor for split in (True, False))
    assert kind_of("text").bind(plain).encode(frame)[0]["input_ids"].count(plain.sep_token_id) == 1
    assert kind_of("text").bind(tokens).encode(frame)[0]["input_ids"].count(tokens.sep_token_id) == 2
    assert "they are read as those tokens" in caplog.text


def test_a_tokenizer_without_any_token_to_pad_with(tmp_path):
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tiny._byte_pairs(())[2]))
    config = transformers.GPT2Config(vocab_size=len(fast), n_embd=32, n_layer=2, n_head=2, n_positions=64,
                                     bos_token_id=None, eos_token_id=None)  # fmt: skip
    with_tokenizer(transformers.GPT2ForSequenceClassification, config, fast, tmp_path / "m")
    with pytest.raises(UserError) as error:
        load(tmp_path / "m", "text")
    assert str(error.value) == (
        f"The tokenizer of {tmp_path / 'm'} has no padding, end or unknown token, and batches of texts need one. Add one "
        "to the checkpoint: tokenizer.add_special_tokens({'pad_token': '[PAD]'}), then "
        "model.resize_token_embeddings(len(tokenizer)), and save both."
    )


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.", "model._orig_mod."])
def test_prefixes_of_training_scripts_are_taken_off(tmp_path, prefix):
    tensors = {"conv.weight": torch.ones(2), "fc.bias": torch.zeros(3)}
    wrapped = {f"{prefix}{name}": tensor for name, tensor in tensors.items()}
    save_file(wrapped, tmp_path / "a.safetensors")
    torch.save({"state_dict": wrapped, "epoch": 3}, tmp_path / "model_best.pth.tar")
    for file in tmp_path.iterdir():
        assert read_weights(file).keys() == tensors.keys()


def test_the_old_layout_of_sentence_transformers(tmp_path):
    inner = tiny.TEXT_FAMILIES["bert"](tmp_path / "st" / "0_Transformer")
    (tmp_path / "st" / "modules.json").write_text(
        '[{"idx": 0, "path": "0_Transformer"}, {"idx": 1, "path": "1_Pooling"}]'
    )
    (tmp_path / "st" / "config.json").write_text('{"__version__": {"sentence_transformers": "1.0"}}')
    assert load(tmp_path / "st", "text").weights_hash == load(inner, "text").weights_hash
    (tmp_path / "st" / "modules.json").write_text('[{"path": "../other"}]')
    shutil.copytree(inner, tmp_path / "other")
    with pytest.raises(UserError):  # not followed out of the folder
        load(tmp_path / "st", "text")


def test_a_model_whose_answers_depend_on_the_batch_is_refused_at_once(tmp_path):
    data = tiny.text_table(tmp_path / "t.csv", rows=24)
    with pytest.raises(UserError) as error:
        trained(canine(tmp_path / "m"), data, tmp_path / "run")
    assert str(error.value).startswith(
        "CanineForSequenceClassification cannot be used here: what it predicts depends on"
    )
    assert "google/byt5-small" in str(error.value) and not (tmp_path / "run").exists()
