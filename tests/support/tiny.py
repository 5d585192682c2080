"""Tiny models and data made on the spot: random weights, a few blocks deep, no network.

`VISION_FAMILIES` and `TEXT_FAMILIES` map a family's name to a function that writes such a checkpoint into a folder, in
the layout in which the Hub keeps that family, and returns the folder. The old head has 7 outputs, so that no test can
take it for a new one.
"""

import csv
import itertools
import json
import random
import shutil
import string
import tempfile
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path

import numpy as np
import timm
import torch
import transformers
from PIL import Image, ImageDraw
from tokenizers import (
    SentencePieceUnigramTokenizer,
    Tokenizer,
    models,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

OLD_LABELS = 7
SIZE = 32

WORDS = (
    ("goal", "match", "team", "player", "league", "coach"),
    ("market", "bank", "profit", "shares", "trade", "price"),
    ("film", "actor", "music", "band", "stage", "song"),
    ("vote", "minister", "law", "party", "election", "senate"),
)
FILLER = ("the", "a", "of", "and", "in", "was", "is", "today", "very", "with")
RESIDUES = ("LAVI", "DEKR", "STNQ", "FWYH")


def made_once(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Write a checkpoint once in a process, and copy it from then on; random numbers go on as after writing it."""
    place = tempfile.TemporaryDirectory(prefix="tiny-")
    random_state: list[torch.Tensor] = []

    def copy(folder: Path) -> Path:
        original = Path(place.name) / "made"
        if not random_state:
            make(original)
            random_state.append(torch.get_rng_state())
        torch.set_rng_state(random_state[0])
        return Path(shutil.copytree(original, folder, dirs_exist_ok=True))

    return copy


# --- image checkpoints -----------------------------------------------------------------------------------------------


def _hf_vision(name: str, settings: dict, processor: str = "ViTImageProcessor") -> Callable[[Path], Path]:
    @made_once
    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(num_labels=OLD_LABELS, **settings)
        model = getattr(transformers, f"{name}ForImageClassification")(config)
        _settle_batch_norm(model)
        model.save_pretrained(folder)
        size = {"shortest_edge": SIZE} if processor == "ConvNextImageProcessor" else {"height": SIZE, "width": SIZE}
        getattr(transformers, processor)(size=size).save_pretrained(folder)
        return Path(folder)

    return make


def timm_checkpoint(architecture: str, model_args: dict, size: int = SIZE) -> Callable[[Path], Path]:
    @made_once
    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        model = timm.create_model(architecture, pretrained=False, num_classes=OLD_LABELS, **model_args)
        _settle_batch_norm(model)
        # recorded as timm does it for a model made with num_classes, which TimmWrapper then receives twice
        stored_args = model_args | {"num_classes": OLD_LABELS}
        timm.models.save_for_hf(
            model,
            str(folder),
            model_args=stored_args,
            safe_serialization=True,
            data_config={"input_size": (3, size, size)},
        )
        return Path(folder)

    return make


def _settle_batch_norm(model: torch.nn.Module) -> None:
    """Running statistics from noise, as training would have left: without them random deep nets answer a constant."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_parameters()  # transformers' EfficientNet starts with scales around 0, which lets the signal die
        norm.momentum = 0.5  # some families move theirs by a hundredth a step
    model.train()
    with torch.no_grad():
        for _ in range(10):
            model(torch.randn(8, 3, SIZE, SIZE))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()


_TRANSFORMER = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": SIZE,
    "patch_size": 8,
}
_CONV = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}

VISION_FAMILIES: dict[str, Callable[[Path], Path]] = {
    "vit": _hf_vision("ViT", _TRANSFORMER),
    "dinov2": _hf_vision("Dinov2", _TRANSFORMER),
    "swin": _hf_vision(
        "Swin",
        {"image_size": SIZE, "patch_size": 4, "embed_dim": 8, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4},
    ),
    "convnext": _hf_vision("ConvNext", _CONV, "ConvNextImageProcessor"),
    "resnet": _hf_vision("ResNet", _CONV | {"embedding_size": 8, "layer_type": "basic"}, "ConvNextImageProcessor"),
    "efficientnet": _hf_vision(
        "EfficientNet",
        {
            "image_size": SIZE,
            "width_coefficient": 0.25,
            "depth_coefficient": 0.3,
            "hidden_dim": 320,
            "out_channels": [16, 24, 40],
            "in_channels": [32, 16, 24],
            "kernel_sizes": [3, 3, 5],
            "strides": [1, 2, 2],
            "depthwise_padding": [],
            "num_block_repeats": [1, 1, 2],
            "expand_ratios": [1, 6, 6],
        },
        "EfficientNetImageProcessor",
    ),
    "timm-resnet": timm_checkpoint("resnet10t", {"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 24], "stem_width": 8}),
    "timm-vgg": timm_checkpoint("vgg11", {"mlp_ratio": 0.005}),
    "timm-efficientnet": timm_checkpoint("test_efficientnet", {}),
    "timm-vit": timm_checkpoint(
        "vit_tiny_patch16_224", {"img_size": SIZE, "patch_size": 8, "depth": 3, "embed_dim": 32, "num_heads": 2}
    ),
    "timm-convnext": timm_checkpoint("convnext_atto", {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}),
    "timm-mobilenetv3": timm_checkpoint("mobilenetv3_small_050", {}),
}


# --- text checkpoints ------------------------------------------------------------------------------------------------


def _sentences() -> list[str]:
    rng = random.Random(0)
    return [" ".join(rng.choices(FILLER + group, k=8)) for group in WORDS for _ in range(50)]


def _wordpiece(special: tuple[str, ...]) -> dict[str, int]:
    """Letters and words, not trained: the trainer breaks ties by chance, and no two processes had the same numbers."""
    letters = [*string.ascii_lowercase, *string.digits, *string.punctuation]
    words = [word for word in itertools.chain(FILLER, *WORDS) if len(word) > 1]
    pieces = [*special, *letters, *(f"##{letter}" for letter in letters), *words]
    return {piece: number for number, piece in enumerate(pieces)}


@cache
def _byte_pairs(special: tuple[str, ...]) -> tuple[dict[str, int], list[tuple[str, str]], str]:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=list(special),
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    stored = json.loads(tokenizer.to_str())["model"]
    return stored["vocab"], [tuple(pair) for pair in stored["merges"]], tokenizer.to_str()


@cache
def _unigram(special: tuple[str, ...], unknown: str) -> list[tuple[str, float]]:
    tokenizer = SentencePieceUnigramTokenizer()
    tokenizer.train_from_iterator(
        _sentences(), vocab_size=200, special_tokens=list(special), unk_token=unknown, show_progress=False
    )
    vocab = [(piece, round(score, 6)) for piece, score in json.loads(tokenizer._tokenizer.to_str())["model"]["vocab"]]
    return [*vocab[: len(special)], *sorted(vocab[len(special) :], key=lambda row: (-row[1], row[0]))]


_BERT_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_ROBERTA_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def _bert_tokenizer(_: Path):
    return transformers.BertTokenizer(vocab=_wordpiece(_BERT_SPECIAL), model_max_length=64)


def _roberta_tokenizer(_: Path):
    vocab, merges, _text = _byte_pairs(_ROBERTA_SPECIAL)
    return transformers.RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=64)


def _albert_tokenizer(_: Path):
    vocab = _unigram(("<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"), "<unk>")
    return transformers.AlbertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=64)


def _deberta_tokenizer(_: Path):
    vocab = _unigram(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"), "[UNK]")
    return transformers.DebertaV2Tokenizer(vocab=vocab, model_max_length=64)


def _mpnet_tokenizer(_: Path):
    vocab = _wordpiece(("<s>", "<pad>", "</s>", "[UNK]", "<mask>"))
    return transformers.MPNetTokenizer(vocab=vocab, model_max_length=64)


def _modernbert_tokenizer(_: Path):
    tokenizer = Tokenizer.from_str(_byte_pairs(_BERT_SPECIAL)[2])
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", model_max_length=64, **names)
    fast.model_input_names = ["input_ids", "attention_mask"]
    return fast


def _gpt2_tokenizer(_: Path):
    vocab, merges, _text = _byte_pairs(("<|endoftext|>",))
    return transformers.GPT2Tokenizer(vocab=vocab, merges=merges, model_max_length=64)


def _decoder_tokenizer(side: str, pad: str | None) -> Callable:
    """A byte-level tokenizer that begins texts with a token, as those of decoders do; many come without padding."""

    def make(_: Path):
        tokenizer = Tokenizer.from_str(_byte_pairs(("<|begin|>", "<|end|>", "<pad>", "<|endoftext|>"))[2])
        tokenizer.post_processor = processors.TemplateProcessing("<|begin|> $A", special_tokens=[("<|begin|>", 0)])
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|end|>", padding_side=side, model_max_length=64,
            **({} if pad is None else {"pad_token": pad}),
        )  # fmt: skip
        fast.model_input_names = ["input_ids", "attention_mask"]
        return fast

    return make


def _esm_tokenizer(folder: Path):
    vocab = ["<cls>", "<pad>", "<eos>", "<unk>", *"LAGVSERTIDPKQNFYMHWCXBUZO.-", "<null_1>", "<mask>"]
    Path(folder).mkdir(parents=True, exist_ok=True)
    file = Path(folder) / "vocab.txt"
    file.write_text("\n".join(vocab))
    return transformers.EsmTokenizer(str(file), model_max_length=64)


# The usual 0.02 is for widths of hundreds: at 32 the first token hardly sees the others, and heads on it are all rounding.
_SPREAD = {"initializer_range": 0.1}
_ENCODER = _SPREAD | {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


_DECODER = _ENCODER | {"num_key_value_heads": 1, "bos_token_id": 0, "eos_token_id": 1}


def _text(name: str, settings: dict, make_tokenizer: Callable) -> Callable[[Path], Path]:
    @made_once
    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        tokenizer = make_tokenizer(folder)
        tokenizer.save_pretrained(folder)
        special = {} if tokenizer.pad_token_id is None else {"pad_token_id": tokenizer.pad_token_id}
        if name == "GPT2":
            special = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id}
        config = getattr(transformers, f"{name}Config")(
            num_labels=OLD_LABELS, vocab_size=len(tokenizer), **special, **settings
        )
        getattr(transformers, f"{name}ForSequenceClassification")(config).save_pretrained(folder)
        return Path(folder)

    return make


TEXT_FAMILIES: dict[str, Callable[[Path], Path]] = {
    "bert": _text("Bert", _ENCODER, _bert_tokenizer),
    "roberta": _text("Roberta", _ENCODER | {"max_position_embeddings": 66, "type_vocab_size": 1}, _roberta_tokenizer),
    "distilbert": _text(
        "DistilBert",
        _SPREAD | {"dim": 32, "n_layers": 3, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 64},
        _bert_tokenizer,
    ),
    "albert": _text("Albert", _ENCODER | {"embedding_size": 16}, _albert_tokenizer),
    "electra": _text("Electra", _ENCODER | {"embedding_size": 16}, _bert_tokenizer),
    "deberta-v2": _text(
        "DebertaV2",
        _ENCODER | {"relative_attention": True, "position_buckets": 16, "pos_att_type": ["p2c", "c2p"]},
        _deberta_tokenizer,
    ),
    "mpnet": _text("MPNet", _ENCODER | {"max_position_embeddings": 66}, _mpnet_tokenizer),
    "modernbert": _text(
        "ModernBert",
        _ENCODER | {"local_attention": 16, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": 2, "eos_token_id": 3},
        _modernbert_tokenizer,
    ),
    "gpt2": _text("GPT2", _SPREAD | {"n_embd": 32, "n_layer": 3, "n_head": 2, "n_positions": 64}, _gpt2_tokenizer),
    "esm": _text(
        "Esm",
        _ENCODER | {"position_embedding_type": "rotary", "token_dropout": False, "mask_token_id": 32},
        _esm_tokenizer,
    ),
    "llama": _text("Llama", _DECODER, _decoder_tokenizer("right", None)),
    "qwen2": _text("Qwen2", _DECODER, _decoder_tokenizer("right", "<|endoftext|>")),
    "qwen3": _text("Qwen3", _DECODER | {"head_dim": 16}, _decoder_tokenizer("left", "<|endoftext|>")),
    "gemma": _text("Gemma", _DECODER | {"head_dim": 16}, _decoder_tokenizer("left", "<pad>")),
    "mistral": _text("Mistral", _DECODER | {"head_dim": 16, "sliding_window": None}, _decoder_tokenizer("left", None)),
}


# --- audio checkpoints -----------------------------------------------------------------------------------------------

_SPEECH = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "conv_dim": (8, 8, 8),
    "conv_kernel": (10, 8, 8), "conv_stride": (10, 8, 4), "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
    "classifier_proj_size": 16, "hidden_dropout": 0.0, "layerdrop": 0.1, "num_feat_extract_layers": 3,
}  # fmt: skip
_WHISPER = {
    "d_model": 32, "encoder_layers": 3, "encoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_layers": 0,
    "num_mel_bins": 20, "classifier_proj_size": 16, "vocab_size": 8, "pad_token_id": 0, "bos_token_id": 0,
    "eos_token_id": 0, "decoder_start_token_id": 0, "begin_suppress_tokens": None, "init_std": 0.1,
}  # fmt: skip
_AST = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "patch_size": 8,
    "num_mel_bins": 16, "max_length": 400, "time_stride": 8, "frequency_stride": 8, "initializer_range": 0.1,
}  # fmt: skip


def _audio(
    name: str, settings: dict, processor: Callable, suffix: str = "ForSequenceClassification"
) -> Callable[[Path], Path]:
    @made_once
    def make(folder: Path) -> Path:
        torch.manual_seed(0)
        config = getattr(transformers, f"{name}Config")(num_labels=OLD_LABELS, **settings)
        getattr(transformers, f"{name}{suffix}")(config).save_pretrained(folder)
        processor().save_pretrained(folder)
        return Path(folder)

    return make


def _waves(mask: bool) -> Callable:
    return lambda: transformers.Wav2Vec2FeatureExtractor(return_attention_mask=mask)


AUDIO_FAMILIES: dict[str, Callable[[Path], Path]] = {
    "whisper": _audio(
        "Whisper", _WHISPER, lambda: transformers.WhisperFeatureExtractor(feature_size=20), "ForAudioClassification"
    ),
    "ast": _audio(
        "AST", _AST, lambda: transformers.ASTFeatureExtractor(num_mel_bins=16, max_length=400), "ForAudioClassification"
    ),
    "wav2vec2": _audio(
        "Wav2Vec2", _SPEECH | {"feat_extract_norm": "layer", "do_stable_layer_norm": True}, _waves(True)
    ),
    "wav2vec2-group": _audio("Wav2Vec2", _SPEECH, _waves(False)),
    "hubert": _audio("Hubert", _SPEECH, _waves(True)),
    "wavlm": _audio("WavLM", _SPEECH | {"feat_extract_norm": "layer"}, _waves(True)),
    "sew": _audio("SEW", _SPEECH, _waves(False)),
}


# --- data ------------------------------------------------------------------------------------------------------------

COLOURS = {"red": (220, 40, 40), "green": (40, 190, 60), "blue": (50, 70, 220), "yellow": (230, 210, 40)}


def image(label: str, size: int = 48, seed: int = 0) -> Image.Image:
    """A coloured shape on noise: the colour tells the class, place and shape do not."""
    rng = np.random.default_rng(seed)
    canvas = Image.fromarray(rng.integers(90, 150, (size, size, 3), dtype=np.uint8))
    left, top = (int(value) for value in rng.integers(0, size // 3, 2))
    box = (left, top, left + int(size * 0.6), top + int(size * 0.6))
    draw = ImageDraw.Draw(canvas)
    (draw.ellipse if rng.integers(2) else draw.rectangle)(box, fill=COLOURS[label])
    return canvas


def image_folder(
    path: Path, classes: Iterable[str] = ("red", "green", "blue"), per_class: int = 12, size: int = 48
) -> Path:
    """Writes `path/<class>/<number>.png` and returns `path`. Classes are names of `COLOURS`."""
    for index, label in enumerate(classes):
        folder = Path(path) / label
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            image(label, size, seed=1000 * index + number).save(folder / f"{number:03d}.png")
    return Path(path)


def mask_folder(path: Path, count: int = 30, size: int = 48) -> Path:
    """Writes `path/images/<number>.png` and `path/masks/<number>.png`: a square (1) and a bar (2) on a background (0)."""
    for part in ("images", "masks"):
        (Path(path) / part).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        rng = np.random.default_rng(number)
        mask = np.zeros((size, size + 8), np.uint8)
        top, left = rng.integers(2, size // 2, 2)
        mask[top : top + size // 3, left : left + size // 3] = 1
        mask[-size // 6 :, : rng.integers(size // 3, size)] = 2
        colours = np.array([[70, 80, 90], [220, 60, 50], [60, 90, 220]])[mask]
        pixels = np.clip(colours + rng.normal(0, 15, colours.shape), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(Path(path) / "images" / f"{number:03d}.png")
        Image.fromarray(mask).save(Path(path) / "masks" / f"{number:03d}.png")
    return Path(path)


PITCHES = {"low": 300, "middle": 900, "high": 2500}


def tone(label: str, seed: int = 0, rate: int = 16000) -> np.ndarray:
    """A tone in noise, (samples,) float32, of 0.2 to 0.6 s: its pitch tells the class, length and loudness do not."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(rate * rng.uniform(0.2, 0.6))) / rate
    wave = np.sin(2 * np.pi * PITCHES[label] * rng.uniform(0.9, 1.1) * time + rng.uniform(0, 6))
    return (rng.uniform(0.2, 0.7) * wave + rng.normal(0, 0.02, len(time))).astype(np.float32)


def audio_folder(path: Path, per_class: int = 16, rate: int = 16000) -> Path:
    """Writes `path/<class>/<number>.wav` and returns `path`."""
    import soundfile

    for index, label in enumerate(PITCHES):
        folder = Path(path) / label
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(per_class):
            soundfile.write(folder / f"{number:03d}.wav", tone(label, 1000 * index + number, rate), rate)
    return Path(path)


def sentence(topics: Iterable[int], rng: random.Random, protein: bool = False, length: int = 8) -> str:
    """A text that speaks of each of the `topics` (indices of `WORDS`, or of `RESIDUES` for a protein)."""
    topics = list(topics)
    if protein:
        return "".join(rng.choice(RESIDUES[rng.choice(topics)]) for _ in range(3 * length))
    words = [rng.choice(WORDS[topic]) for topic in topics for _ in range(3)]
    words += rng.choices(FILLER, k=max(0, length - len(words)))
    return " ".join(rng.sample(words, len(words)))


ENTITIES = {"sport": WORDS[0], "money": WORDS[1]}


def token_file(path: Path, rows: int = 60, seed: int = 0) -> Path:
    """Writes sentences with entities of one or two words, whose words tell their type, as CoNLL; returns `path`."""
    rng, lines = random.Random(seed), []
    for _ in range(rows):
        for _ in range(rng.randint(2, 4)):
            lines += [f"{word}\tO" for word in rng.choices(FILLER, k=rng.randint(1, 3))]
            kind = rng.choice([*ENTITIES, None])
            for place, word in enumerate(rng.choices(ENTITIES[kind], k=rng.randint(1, 2)) if kind else ()):
                lines.append(f"{word}\t{'BI'[place > 0]}-{kind}")
        lines.append("")
    Path(path).write_text("\n".join(lines))
    return Path(path)


def text_table(
    path: Path,
    task: str = "single_label",
    pairs: bool = False,
    rows: int = 60,
    classes: int = 3,
    protein: bool = False,
    seed: int = 0,
) -> Path:
    """Writes a CSV table with the columns `text` (or `first,second`) and `label`, and returns `path`.

    The words tell the label: `topic0`, `topic1`, … for single-label; several of them joined by "|" for multi-label; for
    regression a float from 0 to 1, the share of topic 0. With `pairs` the label is `same`/`different` (the topics of
    the two texts), how alike their shares of topic 0 are, or the topics of both.
    """
    rng = random.Random(seed)
    make_row = _PAIR_ROWS[task] if pairs else _ROWS[task]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["first", "second", "label"] if pairs else ["text", "label"])
        writer.writerows(make_row(row % classes, classes, rng, protein) for row in range(rows))
    return Path(path)


def _single(topic, classes, rng, protein):
    return sentence([topic], rng, protein), f"topic{topic}"


def _multi(topic, classes, rng, protein):
    topics = sorted({topic, rng.randrange(classes)})
    return sentence(topics, rng, protein, 12), "|".join(f"topic{each}" for each in topics)


def _score(topic, classes, rng, protein):
    share = rng.randint(0, 4)
    text = " ".join(rng.sample([rng.choice(WORDS[0])] * share + [rng.choice(WORDS[1])] * (4 - share), 4))
    return text, share / 4


def _pair(topic, classes, rng, protein):
    other = topic if rng.random() < 0.5 else (topic + 1) % classes
    label = "same" if topic == other else "different"
    return sentence([topic], rng, protein), sentence([other], rng, protein), label


def _pair_score(topic, classes, rng, protein):
    """How alike the shares of topic 0 in two texts are: 0 to 1 in quarters."""
    (first, share), (second, other) = (_score(topic, classes, rng, protein) for _ in range(2))
    return first, second, 1 - abs(share - other)


def _pair_multi(topic, classes, rng, protein):
    other = rng.randrange(classes)
    label = "|".join(f"topic{each}" for each in sorted({topic, other}))
    return sentence([topic], rng, protein), sentence([other], rng, protein), label


_ROWS = {"single_label": _single, "multi_label": _multi, "regression": _score}
_PAIR_ROWS = {"single_label": _pair, "multi_label": _pair_multi, "regression": _pair_score}
