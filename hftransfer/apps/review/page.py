"""The page of the label loop: one question at a time, a key for every answer, each answer a line of the patch."""

import html
import logging
import shlex
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from hftransfer.apps.review.items import CHOICES, KINDS, Queue, Row, percent
from hftransfer.apps.web import start
from hftransfer.core.errors import UserError
from hftransfer.data.patch import Decision, append, read_patch, standing
from hftransfer.modalities import kind_of
from hftransfer.report.gallery import player, thumbnail
from hftransfer.report.masks import panels
from hftransfer.report.picked import words
from hftransfer.runs.folder import beside
from hftransfer.runs.reader import RecordedRun

log = logging.getLogger(__name__)

SIDE = 640  # pixels of a picture's longer side
CHARACTERS = 20_000
HERE = Path(__file__).parent
ALL = "everything"
DONE = {"relabel": "relabelled", "keep": "kept as it is", "drop": "dropped", "group": "grouped", "add": "added"}


def patch_of(run: RecordedRun) -> Path:
    """Return the patch that a run was trained with, which is continued; else `NAME.patch.jsonl` beside the run."""
    used = run.config["data"].get("patch")
    continued = used and Path(used).name.endswith(".patch.jsonl") and Path(used).is_file()
    return Path(used).resolve() if continued else beside(run.folder, "patch")


class Review:
    """The questions of a run and the patch that holds the answers; nothing is remembered but in that file."""

    def __init__(self, path: str | Path):
        self.run = RecordedRun.open(path)
        self.run.require("review")
        self.patch = patch_of(self.run)
        self.queue = Queue(self.run, beside(self.run.folder, "corrections"), self.patch)
        self.items = self.queue.items
        counts = {name: sum(item.kind == kind for item in self.items) for kind, name in KINDS.items()}
        log.info("To review: %s. Decisions go to %s", ", ".join(f"{n} {k}" for k, n in counts.items()), self.patch)

    def places(self, kind: str) -> list[int]:
        """Return the numbers of the items of a kind, or of all."""
        return [place for place, item in enumerate(self.items) if kind in (ALL, item.kind)]

    def decisions(self) -> dict[str, list[Decision]]:
        """Return what stands in the patch, row by row."""
        found: dict[str, list[Decision]] = {}
        for decision in standing(read_patch(self.patch)) if self.patch.is_file() else []:
            found.setdefault(decision.id, []).append(decision)
        return found

    def decide(self, place: int, action: str, label: Any = None) -> bool:
        """Write one answer for every row of an item; False where the action does not apply to it."""
        item, when = self.items[place], datetime.now(UTC).isoformat(timespec="seconds")
        if action == "relabel" and label in (None, "", []):
            return False
        if (action == "group" and len(item.rows) == 1) or (action == "keep" and item.is_new):
            return False
        decisions = {"relabel": lambda: item.relabel(label, when), "group": lambda: item.group(when)}
        append(self.patch, decisions.get(action, lambda: item.all(action, when))())
        return True

    def next(self, place: int, kind: str) -> int:
        """Return the next item of the kind without a decision, from the beginning again behind the last; else the same one."""
        decided, places = self.decisions(), self.places(kind)
        behind = [each for each in places if each > place] + [each for each in places if each <= place]
        return next((each for each in behind if self.items[each].rows[0].id not in decided), place)

    def step(self, place: int, kind: str, by: int) -> int:
        places = self.places(kind)
        return places[(places.index(place) + by) % len(places)] if place in places else places[0]


# --- what is shown ---------------------------------------------------------------------------------------------------


def progress_html(review: Review, kind: str) -> str:
    """How far it is."""
    decided, places = review.decisions(), review.places(kind)
    done = sum(review.items[place].rows[0].id in decided for place in places)
    return (f'<p class="progress" aria-live="polite"><progress max="{len(places)}" value="{done}"></progress> '
            f"{done} of {len(places)} decided</p>")  # fmt: skip


def item_html(review: Review, place: int) -> str:
    """One question: why it is asked, the rows with their labels, and what was decided."""
    item, decided = review.items[place], review.decisions()
    rows = "".join(_row_html(review, row) for row in item.rows)
    first = item.rows[0]
    notes = [] if first.id not in decided else [_decided(first, decided[first.id])]
    if any(row.split == "test" for row in item.rows):
        notes.append("Held out for the test: the patch changes it with <code>data.patch_test=true</code> alone.")
    said = "".join(f'<p class="note">{note}</p>' for note in notes)
    kind = html.escape(KINDS[item.kind].capitalize())
    return (f'<article class="question" data-place="{place}"><h2>{kind} <span>{place + 1} of {len(review.items)}</span></h2>'
            f'<p class="why">{html.escape(item.why)}.</p><div class="rows">{rows}</div>{said}</article>')  # fmt: skip


def _decided(row: Row, decisions: list[Decision]) -> str:
    said = []
    for decision in decisions:
        to = f" as {words(decision.label, row.input)}" if decision.action in ("relabel", "add") else ""
        said.append(html.escape(DONE[decision.action] + to))
    return f"<b>Decided:</b> {' and '.join(said)}."


def _row_html(review: Review, row: Row) -> str:
    kind, task = kind_of(review.run.record.modality), review.run.task
    if task.by_pixel:
        picture = panels(task, review.queue.picture(row), row.label, review.queue.prediction(row), SIDE)
        shown = f'<img alt="the image {html.escape(row.id, quote=True)} and its masks" src="{picture}">'
    elif kind.shows != "words":
        file = review.queue.picture(row)
        picture, sound = thumbnail(file, SIDE, kind), player(file, kind)
        shown = f'<img alt="the picture {html.escape(row.id, quote=True)}" src="{picture}">' if picture else "(gone)"
        shown += f'<audio controls preload="none" src="{sound}"></audio>' if sound else ""
    else:
        texts = [row.input] if row.input_pair is None else [row.input, row.input_pair]
        shown = "".join(f"<blockquote>{html.escape(_cut(text))}</blockquote>" for text in texts)
    given = "answered" if not row.split else "labelled"
    place = f"{row.split}, {_end(row.id)}" if row.split else "from the demo"
    return (f"<figure>{shown}<figcaption>{given} <b>{html.escape(review.queue.said(row))}</b>"
            f'<small title="{html.escape(row.id, quote=True)}">{html.escape(place)}</small></figcaption></figure>')  # fmt: skip


def _cut(text: str) -> str:
    return text if len(text) <= CHARACTERS else f"{text[:CHARACTERS]}… ({len(text) - CHARACTERS:,} more characters)"


def _end(name: str, characters: int = 40) -> str:
    """Return the end of a path, which tells more than its beginning."""
    return name if len(name) <= characters else f"…{name[1 - characters :]}"


def end_html(review: Review) -> str:
    """Return what to do with the patch, once there is one."""
    run, patch = review.run.folder, review.patch
    again = f"{run}-2"
    train = shlex.join(["hftransfer", "train", f"{run}/config.yaml", "--patch", str(patch), "--output", again])
    lines = f"{train}\n{shlex.join(['hftransfer', 'compare', str(run), again])}"
    said = "The data stay as they are. Train with the decisions, and see what they changed:"
    return f"<p>{said}</p><pre>{html.escape(lines)}</pre>"


# --- the page --------------------------------------------------------------------------------------------------------


def build_review(path: str | Path) -> gr.Blocks:
    """Return the app for one run. Raises `UserError` for a folder that is no run, and where nothing is worth a look."""
    review = Review(path)
    if not review.items:
        raise UserError(f"Nothing in {path} needs a second look: no likely label errors, no contradicting copies, no "
                        "confused pairs, no corrections.")  # fmt: skip
    with gr.Blocks(title=f"{review.run.name} · review", analytics_enabled=False) as app:
        gr.HTML(f'<header class="headline"><h1>{html.escape(review.run.name)}</h1>'
                f"<p>Decisions go to {html.escape(review.patch.name)}</p></header>")  # fmt: skip
        ReviewPage(review).build(app.load)
    return app.queue(max_size=100, default_concurrency_limit=1, api_open=False)


class ReviewPage:
    """The components, and what happens when a button is pressed. `place` is what the person sees, sent by the page."""

    def __init__(self, review: Review):
        self.review = review

    def build(self, load: Callable) -> None:
        """Build the widgets; the event `load` shows the first question."""
        review, kinds = self.review, {item.kind for item in self.review.items}
        shown = [("Everything", ALL), *((name.capitalize(), kind) for kind, name in KINDS.items() if kind in kinds)]
        with gr.Row(equal_height=True, elem_classes="top"):
            self.kind = gr.Dropdown(shown, value=ALL, show_label=False, container=False, min_width=220, label="Show",
                                    visible=len(kinds) > 1)  # fmt: skip
            self.progress = gr.HTML(min_height=0)
        with gr.Row(equal_height=False):
            with gr.Column(scale=3, min_width=300):
                self.question = gr.HTML(min_height=0)
            with gr.Column(scale=2, min_width=300, elem_classes="answers"):
                self._build_answers()
        with gr.Accordion("What to do with the decisions", open=False):
            gr.HTML(end_html(review))
        self.place, self.history = gr.Number(0, visible=False, precision=0), gr.State([])
        self.outputs = [self.place, self.progress, self.question, *self.choices, self.group, self.keep]
        self._connect(load)

    def _build_answers(self) -> None:
        names = self.review.run.task.names
        with gr.Column(elem_classes="choices", min_width=280):
            self.choices = [gr.Button(visible=False, elem_id=f"choice-{key}") for key in range(1, CHOICES + 1)]
        several = self.review.run.task.several
        by_name = not self.review.run.task.by_part and (several or len(names) > CHOICES + 1)
        with gr.Row(visible=by_name, equal_height=True):
            self.other = gr.Dropdown(list(names), value=None, multiselect=several, label="Another label", min_width=160)
            self.relabel = gr.Button("Relabel", size="sm", min_width=90, scale=0)
        with gr.Row(elem_classes="actions"):
            self.keep, self.drop, self.group = (
                gr.Button(f"{name} ({name[0].lower()})", size="sm", min_width=80, elem_id=name.lower())
                for name in ("Keep", "Drop", "Group")
            )
        with gr.Row(elem_classes="actions"):
            self.back, self.undo, self.forward = (
                gr.Button(words_, size="sm", min_width=80, elem_id=id_)
                for words_, id_ in (("←", "back"), ("Undo (u)", "undo"), ("→", "forward"))
            )

    def _connect(self, load: Callable) -> None:
        shown = [self.place, self.kind, self.history]
        for number, button in enumerate(self.choices):
            self._on(button.click, partial(self._choose, number), shown)
        self._on(self.relabel.click, self._relabel, [*shown, self.other])
        for action, button in (("keep", self.keep), ("drop", self.drop), ("group", self.group)):
            self._on(button.click, partial(self._decide, action), shown)
        self._on(self.undo.click, self._undo, shown)
        self._on(self.back.click, lambda place, kind, history: (self.review.step(place, kind, -1), history), shown)
        self._on(self.forward.click, lambda place, kind, history: (self.review.step(place, kind, 1), history), shown)
        first = lambda place, kind, history: (self.review.next(-1, kind), history)  # noqa: E731
        self._on(self.kind.input, first, shown)
        self._on(load, first, shown)

    def _on(self, event: Callable, change: Callable, inputs: list[Any]) -> None:
        """`change` gives the next place and the history; the page then shows that place."""

        def answer(place: float, kind: str, *others: Any) -> tuple[Any, ...]:
            try:
                place, history = change(int(place), kind, *others)
            except UserError as error:
                raise gr.Error(html.escape(str(error)), print_exception=False) from None
            return *self._shown(place, kind), history, None

        event(
            answer, inputs, [*self.outputs, self.history, self.other], api_visibility="private", show_progress="hidden"
        )

    def _shown(self, place: int, kind: str) -> tuple[Any, ...]:
        item = self.review.items[place]
        buttons = [
            gr.update(
                value=_choice(number, *choice, item.rows[0].input),
                visible=True,
                variant="primary" if number == 0 else "secondary",
            )
            for number, choice in enumerate(item.choices)
        ]
        buttons += [gr.update(visible=False)] * (CHOICES - len(buttons))
        several = len(item.rows) > 1
        return (place, progress_html(self.review, kind), item_html(self.review, place), *buttons,
                gr.update(visible=several), gr.update(visible=not item.is_new))  # fmt: skip

    def _choose(self, number: int, place: int, kind: str, history: list[int]) -> tuple[int, list[int]]:
        choices = self.review.items[place].choices
        label = choices[number][0] if number < len(choices) else None
        return self._decide("relabel", place, kind, history, label)

    def _relabel(self, place: int, kind: str, history: list[int], label: Any) -> tuple[int, list[int]]:
        return self._decide("relabel", place, kind, history, label)

    def _decide(
        self, action: str, place: int, kind: str, history: list[int], label: Any = None
    ) -> tuple[int, list[int]]:
        if not self.review.decide(place, action, label):
            return place, history
        return self.review.next(place, kind), [*history, place]

    def _undo(self, place: int, kind: str, history: list[int]) -> tuple[int, list[int]]:
        """Take back the last answer of this sitting, else that of the item shown."""
        last, history = (history[-1], history[:-1]) if history else (place, history)
        if self.review.items[last].rows[0].id in self.review.decisions():
            self.review.decide(last, "undo")
        return last, history


def _choice(number: int, label: Any, share: float | None, text: str = "") -> str:
    return f"{number + 1}  {words(label, text)}" + ("" if share is None else f"  {percent(share)}")


def launch(path: str | Path, share: bool = False, port: int | None = None, wait: bool = True) -> tuple[gr.Blocks, str]:
    """Serve `build_review(path)` until it is interrupted; with `wait=False` return the app and its address at once.

    Raises `UserError` when the port is taken.
    """
    app = build_review(path)
    if share:
        log.warning("Everybody who has the link sees the rows shown and can write to the patch")
    keys = (HERE / "keys.js").read_text(encoding="utf-8")
    return start(app, share, port, wait, "1mb", [HERE.parent / "demo.css", HERE / "review.css"], js=keys)
