"""Why this answer? Where in a picture, and which words of a text, spoke for one output of a model.

Pictures: Grad-CAM on the last activation that still has places (Selvaraju et al. 2017, arXiv 1610.02391, sec. 3), place by
place as in HiResCAM (Draelos & Carin 2020, arXiv 2011.08891): equal to Grad-CAM where the places are averaged before the
head. Texts: integrated gradients on the embeddings (Sundararajan et al. 2017, arXiv 1703.01365), summed over the pieces of
a word. Recordings: occlusion of time (`occlusion.py`). All read the finished model without changing it. They show what
moved the answer, not whether that is right.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from hftransfer.core.bars import Bar
from hftransfer.core.errors import UserError
from hftransfer.core.files import replacing, write_json
from hftransfer.models.layers import LayerGroups
from hftransfer.prediction.occlusion import segment_weights, with_bars
from hftransfer.prediction.predictor import Predictor, load
from hftransfer.report.gallery import shown_outputs
from hftransfer.runs.reader import PAIR_MARK, RecordedRun, file_name
from hftransfer.runtime.cpu_kernels import quick_operations

log = logging.getLogger(__name__)

SPECTROGRAM = 320  # pixels of its width
STEPS = 16  # points of the Gauss-Legendre rule along the path


@dataclass(frozen=True)
class Explanation:
    """What spoke for the output called `answer`.

    Of a picture: `heat`, (h, w) from 0 to 1 over `picture`, the pixels that the model saw. Of a text: `tokens`, pieces whose
    texts joined are the input, with weights from -1 (spoke against) to 1. Of a recording: `segments` of equal length, (start
    and end in seconds, weight from -1 to 1), and the spectrogram as `picture`. `evidence` is `Task.evidence` of the answer, and
    `gap` by how much the weights, before they were scaled, miss what they should sum to (texts).
    """

    answer: str
    evidence: float
    heat: np.ndarray | None = None
    picture: Image.Image | None = None
    tokens: Sequence[tuple[str, float]] = ()
    segments: Sequence[tuple[float, float, float]] = ()
    gap: float = 0.0

    def overlay(self) -> Image.Image:
        """Return the picture in grey with the heat laid over it in colour, or the spectrogram with bars below it."""
        from matplotlib import colormaps

        if self.segments:
            return with_bars(self.picture, np.array([weight for *_, weight in self.segments]))
        heat = Image.fromarray(self.heat.astype(np.float32)).resize(self.picture.size, Image.Resampling.BICUBIC)
        share = np.clip(np.asarray(heat), 0, 1)[..., None]
        grey = np.asarray(self.picture.convert("L").convert("RGB"), dtype=np.float64)
        colour = 255 * colormaps["inferno"](share[..., 0])[..., :3]
        return Image.fromarray((grey + 0.75 * share * (colour - grey)).round().astype(np.uint8))

    def write(self, path: Path) -> Path:
        """Write `path` with the suffix `.png` (the overlay) or `.json` (tokens); return it. Of segments it writes both."""
        if self.segments:
            names = ("start", "end", "weight")
            segments = [dict(zip(names, map(_rounded, segment), strict=True)) for segment in self.segments]
            found = {"answer": self.answer, "evidence": self.evidence, "segments": segments}
            write_json(path.with_name(f"{path.name}.json"), found)
        if self.picture is not None:
            self.overlay().save(target := path.with_name(f"{path.name}.png"))
            return target
        tokens = [{"text": text, "weight": round(weight, 4)} for text, weight in self.tokens]
        found = {"answer": self.answer, "evidence": self.evidence, "gap": self.gap, "tokens": tokens}
        write_json(target := path.with_name(f"{path.name}.json"), found)
        return target


def _rounded(value: float) -> float:
    return round(value, 4)


class NoExplanation(UserError):
    """The model at hand has no place from which an answer of this kind could be explained."""


def explain(predictor: Predictor, frame: pd.DataFrame, outputs: Sequence[int] | None = None) -> list[Explanation]:
    """One explanation for each row with `input` (and `input_pair`), of its largest output or of the one named.

    The model's weights, gradients and training flags are as before afterwards. Raises `NoExplanation` for a model in which
    no map can be found, and `UserError` for an unreadable input.
    """
    kind = predictor.modality.kind
    make = {"picture": _heat_map, "sound": _moments, "words": _attributions}.get(kind.content)
    if make is None:
        raise NoExplanation(f"Answers for {kind.plural} cannot be explained.")
    items = predictor.modality.encode(frame)
    with _undisturbed(predictor.model), torch.enable_grad():
        return [
            make(predictor, frame.iloc[[row]], items[row], None if outputs is None else outputs[row])
            for row in Bar(range(len(frame)), desc="explain", unit="row", disable=len(frame) < 2 or None)
        ]


def explain_run(folder: Path, use_cpu: bool = False) -> None:
    """Write the explanations of the rows that a run's report shows, where `RecordedRun.explanation` looks for them.

    A run without such rows, and a model that cannot be explained, gets a line in the log and no folder.
    """
    if (folder / "explanations").exists():
        return  # a whole run that is resumed
    run = RecordedRun.open(folder)
    chosen = shown_outputs(run)
    rows = run.splits[run.splits["id"].isin(chosen) & (run.splits["input"] != "")]
    if rows.empty:
        log.info("Explanations: none, as no shown row has its input at hand")
        return
    try:
        found = explain(load(folder, use_cpu), rows, [chosen[row] for row in rows["id"]])
    except NoExplanation as error:
        log.info("Explanations: none. %s", error)
        return
    write_explanations(found, rows["id"].tolist(), folder / "explanations")
    log.info("Explanations: %d rows of the report", len(found))


def write_explanations(found: Sequence[Explanation], ids: Sequence[str], folder: Path) -> None:
    """Write a file for each row, named by its id, into a new folder. Raises `UserError` when that cannot be made."""
    try:
        with replacing(folder) as begun:
            begun.mkdir()
            for row, explanation in zip(ids, found, strict=True):
                explanation.write(begun / file_name(row))
    except OSError as error:
        raise UserError(f"Cannot write the explanations to {folder}: {error.strerror}.") from None


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    """Run in evaluation mode, and restore every module's own flag (frozen blocks may differ from the rest)."""
    flags = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in flags:
            module.training = training


def _batch(predictor: Predictor, item: Any) -> dict[str, Tensor]:
    return predictor.compute_config.place(predictor.modality.collate([item]))


@torch.no_grad()
def _largest(predictor: Predictor, batch: dict[str, Tensor]) -> int:
    return int(predictor.model(**batch).logits[0].argmax())


# --- pictures --------------------------------------------------------------------------------------------------------

Activations = list[tuple[nn.Module, Tensor]]  # in the order in which the modules finished


def _heat_map(predictor: Predictor, row: pd.DataFrame, item: Any, output: int | None) -> Explanation:
    """Gradient times activation, summed over the channels; what speaks against the answer is left out (as in Grad-CAM)."""
    model, batch = predictor.model, _batch(predictor, item)
    output = _largest(predictor, batch) if output is None else output
    (pixels,) = batch.values()
    pixels.requires_grad_()  # so that there is a graph where every weight is frozen
    with _noting(model) as activations:
        evidence = predictor.task.evidence(model(**batch).logits, output).sum()
    ratio = pixels.shape[2] / pixels.shape[3]
    heat = _relevance(model, activations, evidence, ratio).clamp(min=0)
    heat = heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)
    picture = _as_seen(pixels[0].detach(), predictor.modality.image_settings)
    return Explanation(predictor.task.names[output], evidence.item(), heat.cpu().numpy(), picture)


@contextmanager
def _noting(model: nn.Module) -> Iterator[Activations]:
    """Note, while it lasts, what every module returns (the first tensor of it)."""
    found: Activations = []

    def note(module: nn.Module, args: tuple, output: Any) -> None:
        tensors = [leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)]
        if tensors:
            found.append((module, tensors[0]))

    with ExitStack() as stack:
        for module in model.modules():
            stack.enter_context(module.register_forward_hook(note))
        yield found


def _relevance(model: nn.Module, activations: Activations, evidence: Tensor, ratio: float) -> Tensor:
    """How much each place spoke for the answer, (h, w); `ratio` is the height of the picture over its width."""
    blocks = [model.get_submodule(path) for path in LayerGroups.of(model).blocks]
    end = max(index for index, (module, _) in enumerate(activations) if module is blocks[-1])
    leaving = activations[end][1]
    if leaving.ndim == 4:
        above = [hidden for _, hidden in activations[end + 1 :] if hidden.ndim == 4]
        in_blocks = [hidden for module, hidden in activations if module in blocks and hidden.ndim == 4]
        return _of_grid([*in_blocks, *above], evidence, ratio)
    patches = [tuple(hidden.shape[2:]) for module, hidden in activations if isinstance(module, nn.Conv2d)]
    grid = _token_grid(leaving.shape[1], patches, ratio)
    tokens = [hidden for _, hidden in activations if hidden.ndim == 3 and hidden.shape[1] == leaving.shape[1]]
    return _of_tokens(tokens, evidence, grid)


def _of_grid(candidates: list[Tensor], evidence: Tensor, ratio: float) -> Tensor:
    """Return the map at the last activation with more than one place.

    Channels come first or (Swin in timm) last: the grid is the pair of axes that has the shape of the picture.
    """
    for hidden in reversed(candidates):
        layouts = {1: hidden.shape[2:], 3: hidden.shape[1:3]}
        channels = min(layouts, key=lambda axis: abs(math.log(layouts[axis][0] / layouts[axis][1] / ratio)))
        if math.prod(layouts[channels]) > 1:
            return (hidden * _gradient(hidden, evidence)).sum(channels)[0].detach()
    raise NoExplanation("One place is left where the network has channels: the pictures are too small for heat maps.")


def _of_tokens(candidates: list[Tensor], evidence: Tensor, grid: tuple[int, int]) -> Tensor:
    """At the last activation whose patches have a gradient, from the mean patch: what all have in common tells no place.

    Where the patches are averaged these are the last tokens. Where the class token alone is read they are the values in the
    last attention, and the product is attention times its gradient (Chefer et al. 2021, arXiv 2103.15679, sec. 3.1) summed
    over the heads. In the residual stream it would say little: a layer norm follows, to which length is nothing.
    """
    for hidden in reversed(candidates):
        patches = hidden[:, -math.prod(grid) :]
        gradient = _gradient(hidden, evidence)[:, -math.prod(grid) :]
        if gradient.any():
            return ((patches - patches.mean(1, keepdim=True)) * gradient).sum(2).reshape(grid).detach()
    raise NoExplanation(
        "The answer does not depend on the patches by any activation that a heat map could be read from."
    )


def _gradient(hidden: Tensor, evidence: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(evidence, hidden, retain_graph=True, allow_unused=True)
    return torch.zeros_like(hidden) if gradient is None else gradient


def _token_grid(tokens: int, patches: list[tuple[int, int]], ratio: float) -> tuple[int, int]:
    """Rows and columns of the patches among `tokens`: those of the patch convolution, or the largest grid that fits.

    What is left over are class and register tokens, which come first.
    """
    fitting = [grid for grid in patches if math.prod(grid) <= tokens]
    if fitting:
        return max(fitting, key=math.prod)
    height = max(1, int(math.sqrt(tokens * ratio)))
    return height, int(height / ratio)


def _as_seen(pixels: Tensor, settings: Any) -> Image.Image:
    """Return the picture that the model saw: cut and scaled, its normalisation undone."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (settings.mean, settings.std))
    values = (pixels.cpu() * std + mean).clamp(0, 1) * 255
    return Image.fromarray(values.round().byte().permute(1, 2, 0).numpy())


# --- recordings ------------------------------------------------------------------------------------------------------


def _moments(predictor: Predictor, row: pd.DataFrame, item: Any, output: int | None) -> Explanation:
    """Return by how much the evidence falls when a segment of time is silent, over the largest such change."""
    output, evidence, edges, weights = segment_weights(predictor, item, output)
    weights = weights / max(np.abs(weights).max(), np.finfo(float).tiny)
    segments = list(zip(edges[:-1].tolist(), edges[1:].tolist(), weights.tolist(), strict=True))
    picture = predictor.modality.picture(item, SPECTROGRAM)
    return Explanation(predictor.task.names[output], evidence, picture=picture, segments=segments)


# --- texts -----------------------------------------------------------------------------------------------------------


def _attributions(predictor: Predictor, row: pd.DataFrame, item: Any, output: int | None) -> Explanation:
    """Integrated gradients from a text of mask tokens (padding where there is none) to the text at hand."""
    batch = _batch(predictor, item)
    output = _largest(predictor, batch) if output is None else output
    texts = [row[name].iloc[0] for name in ("input", "input_pair") if name in row]
    spans = _word_spans(predictor.modality.tokenizer, texts, predictor.modality.max_length)
    weights, ends = _integrated_gradients(predictor, batch, output, [span is not None for span in spans])
    gap = float(ends[1] - ends[0] - weights.sum())
    return Explanation(predictor.task.names[output], float(ends[1]), tokens=_pieces(texts, spans, weights), gap=gap)


def _integrated_gradients(
    predictor: Predictor, batch: dict[str, Tensor], output: int, replaced: list[bool]
) -> tuple[np.ndarray, np.ndarray]:
    """Attributions (T,) of the tokens to the evidence for `output`, and the evidence at the baseline and at the text.

    They sum to the difference of the two, up to the error of the quadrature (completeness, sec. 3). Tokens that are not
    `replaced` (those of the tokenizer itself) stand in the baseline as they are.
    """
    model, tokenizer = predictor.model, predictor.modality.tokenizer
    nothing = tokenizer.pad_token_id if tokenizer.mask_token_id is None else tokenizer.mask_token_id
    embed = model.get_input_embeddings()
    ids = batch["input_ids"]
    base_ids = torch.where(torch.tensor([replaced], device=ids.device), torch.full_like(ids, nothing), ids)
    points, shares = np.polynomial.legendre.leggauss(STEPS)
    along = torch.tensor([0, 1, *(points + 1) / 2], dtype=torch.float32, device=ids.device).view(-1, 1, 1)
    with torch.no_grad():
        text, base = embed(ids), embed(base_ids)
    path = (base + along * (text - base)).requires_grad_()
    compute_config = predictor.compute_config
    with quick_operations(compute_config.device), embed.register_forward_hook(lambda module, args, out: path.clone()):
        rows = {name: value.expand(len(path), *value.shape[1:]) for name, value in batch.items()}
        with compute_config.context():
            logits = model(**rows).logits.float()
        evidence = predictor.task.evidence(logits, output)
        (gradient,) = torch.autograd.grad(evidence.sum(), path)
    weight = torch.tensor([0, 0, *shares / 2], dtype=torch.float32, device=ids.device).view(-1, 1, 1)
    attributed = ((gradient * weight).sum(0) * (text - base)[0]).sum(1)
    return attributed.cpu().double().numpy(), evidence[:2].detach().cpu().double().numpy()


@dataclass(frozen=True)
class _Span:
    """Where a token stands: characters `start` to `end` of text number `text`, in its word number `word`."""

    text: int
    word: int
    start: int
    end: int


def _word_spans(tokenizer: Any, texts: Sequence[str], max_length: int) -> list[_Span | None]:
    """One span for each token of the encoded texts; None for tokens of the tokenizer itself, such as [CLS].

    Raises `NoExplanation` when a tokenizer without offsets changes the text, so that its tokens cannot be found in it.
    """
    fast = tokenizer.is_fast
    encoded = tokenizer(
        *texts, truncation=True, max_length=max_length, return_offsets_mapping=fast, return_special_tokens_mask=True
    )
    if fast:
        places = zip(encoded.sequence_ids(), encoded.word_ids(), encoded["offset_mapping"], strict=True)
        return [None if text is None else _Span(text, word, *span) for text, word, span in places]
    spans: list[_Span | None] = []
    text, end = 0, 0
    for number, (token, special) in enumerate(
        zip(tokenizer.convert_ids_to_tokens(encoded["input_ids"]), encoded["special_tokens_mask"], strict=True)
    ):
        if special:
            text, end = (text + 1, 0) if end else (text, end)
            spans.append(None)
            continue
        start = texts[text].find(token, end)
        if start < 0:
            raise NoExplanation(f"{type(tokenizer).__name__} does not tell where in the text its tokens stand.")
        end = start + len(token)
        spans.append(_Span(text, number, start, end))
    return spans


def _pieces(texts: Sequence[str], spans: Sequence[_Span | None], weights: np.ndarray) -> list[tuple[str, float]]:
    """Return the texts cut into words with their weight and what lies between them; joined they are the texts again."""
    words: dict[tuple[int, int], tuple[int, int, float]] = {}
    for span, weight in zip(spans, weights, strict=True):
        if span is not None:
            start, end, sum_ = words.get((span.text, span.word), (span.start, span.end, 0.0))
            words[span.text, span.word] = min(start, span.start), max(end, span.end), sum_ + float(weight)
    largest = max((abs(weight) for *_, weight in words.values()), default=0) or 1
    pieces: list[tuple[str, float]] = []
    for number, text in enumerate(texts):
        pieces += [(PAIR_MARK, 0.0)] if number else []
        done = 0
        for start, end, weight in (found for (owner, _), found in words.items() if owner == number):
            start += len(text[start:end]) - len(text[start:end].lstrip())  # GPT-2's words carry the space before them
            pieces += [(text[done:start], 0.0), (text[start:end], weight / largest)]
            done = max(done, end)
        pieces.append((text[done:], 0.0))
    return [piece for piece in pieces if piece[0]]
