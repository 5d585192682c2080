"""The checkpoints that `--candidates auto` tries: few, small enough for a laptop, and trained in different ways.

What a checkpoint was trained to do decides as much as its size: supervised features separate objects, self-distilled and
contrastive ones are the broadest, reconstructing ones (MAE, MLM) need fine-tuning before they show what they hold.
Licences as their model cards state them in 2025; they are the owner's to change.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """`name` is a reference as `--model` takes it; `licence` None: not known here."""

    name: str
    modality: str
    objective: str
    licence: str | None


CANDIDATES = (
    Candidate("starter/efficientnet-lite0", "image", "supervised, ImageNet-1k", "Apache-2.0"),
    Candidate("starter/efficientnet-lite1", "image", "supervised, ImageNet-1k", "Apache-2.0"),
    Candidate("starter/efficientnet-lite2", "image", "supervised, ImageNet-1k", "Apache-2.0"),
    Candidate("timm/mobilenetv3_large_100.ra_in1k", "image", "supervised, ImageNet-1k", "Apache-2.0"),
    Candidate("timm/resnet50.a1_in1k", "image", "supervised, ImageNet-1k", "Apache-2.0"),
    Candidate("google/vit-base-patch16-224-in21k", "image", "supervised, ImageNet-21k", "Apache-2.0"),
    Candidate("facebook/convnextv2-tiny-22k-224", "image", "reconstruction, then supervised, ImageNet-22k", "Apache-2.0"),
    Candidate("facebook/dinov2-small", "image", "self-distilled (DINOv2), LVD-142M", "Apache-2.0"),
    Candidate("facebook/dinov2-base", "image", "self-distilled (DINOv2), LVD-142M", "Apache-2.0"),
    Candidate("timm/vit_base_patch16_clip_224.openai", "image", "contrastive with texts (CLIP)", "Apache-2.0"),
    Candidate("google/siglip-base-patch16-224", "image", "contrastive with texts (SigLIP)", "Apache-2.0"),
    Candidate("timm/vit_base_patch16_224.mae", "image", "reconstruction (MAE), ImageNet-1k", "CC-BY-NC-4.0"),
    Candidate("starter/minilm", "text", "sentence encoder, English", "Apache-2.0"),
    Candidate("sentence-transformers/all-mpnet-base-v2", "text", "sentence encoder, English", "Apache-2.0"),
    Candidate("BAAI/bge-small-en-v1.5", "text", "sentence encoder, English", "MIT"),
    Candidate("intfloat/e5-small-v2", "text", "sentence encoder, English", "MIT"),
    Candidate("intfloat/multilingual-e5-small", "text", "sentence encoder, 100 languages", "MIT"),
    Candidate("distilbert/distilbert-base-uncased", "text", "masked words (MLM), distilled, English", "Apache-2.0"),
    Candidate("google-bert/bert-base-uncased", "text", "masked words (MLM), English", "Apache-2.0"),
    Candidate("FacebookAI/roberta-base", "text", "masked words (MLM), English", "MIT"),
    Candidate("answerdotai/ModernBERT-base", "text", "masked words (MLM), English and code", "Apache-2.0"),
    Candidate("microsoft/deberta-v3-small", "text", "replaced words (RTD), English", "MIT"),
    Candidate("FacebookAI/xlm-roberta-base", "text", "masked words (MLM), 100 languages", "MIT"),
    Candidate("starter/whisper-base", "audio", "speech to text, supervised, 98 languages (encoder)", "MIT"),
    Candidate("openai/whisper-base", "audio", "speech to text, supervised, 98 languages", "Apache-2.0"),
    Candidate("openai/whisper-small", "audio", "speech to text, supervised, 98 languages", "Apache-2.0"),
    Candidate("facebook/wav2vec2-base", "audio", "contrastive on masked speech (wav2vec 2.0), English", "Apache-2.0"),
    Candidate("facebook/hubert-base-ls960", "audio", "masked units of speech (HuBERT), English", "Apache-2.0"),
    Candidate("microsoft/wavlm-base-plus", "audio", "masked units of mixed and noisy speech (WavLM), English", None),
    Candidate("MIT/ast-finetuned-audioset-10-10-0.4593", "audio", "supervised, AudioSet (any sound)", "BSD-3-Clause"),
)  # fmt: skip


def described(name: str) -> Candidate | None:
    """Return what is known here of the checkpoint `name`."""
    return next((candidate for candidate in CANDIDATES if candidate.name == name), None)
