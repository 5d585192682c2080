"""What the doctor says: a finding, and the catalogue of all kinds with their severity, explanation and fix."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from hftransfer.core.errors import UserError, did_you_mean

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Kind:
    """A kind of finding: how severe it is, what it means and why it matters, and how to fix it."""

    severity: Severity
    meaning: str
    fix: str


# error: training would stop, or the result would be wrong; warning: it would be worse or flattered; note: good to know.
KINDS = {
    "data-unreadable": Kind(
        "error",
        "The data, or some of the inputs, could not be read, or it is unclear which column is what.",
        "Do what the message says.",
    ),
    "file-passed-over": Kind(
        "warning",
        "Files that are no images or recordings which this installation can read. They take no part, so their classes are "
        "smaller.",
        "Convert them, or install what reads them (pip install pillow-heif for HEIC). Move away what does not belong there.",
    ),
    "folder-empty": Kind(
        "warning",
        "Folders without an input where the class folders stand. They are no classes.",
        "Fill them, or remove them.",
    ),
    "image-broken": Kind(
        "error",
        "Files that cannot be decoded whole: missing, empty, truncated, or no image at all. Training stops at them.",
        "Replace them, or leave them out: data.on_error=skip, or hftransfer doctor DATA --fix.",
    ),
    "image-suffix": Kind(
        "note",
        "The content is of another format than the suffix says. It is read by its content here; other tools may fail.",
        "hftransfer doctor DATA --fix names them by their content.",
    ),
    "image-animated": Kind(
        "note",
        "Animations or files with several pages. Only the first one is used.",
        "Save the frame that is meant as an image of its own.",
    ),
    "image-rotated": Kind(
        "note",
        "Photos stored on their side with an EXIF note to turn them. They are turned upright here, in training and in "
        "prediction; a tool that ignores the note sees them lying.",
        "Nothing to do here.",
    ),
    "image-mode": Kind(
        "note",
        "Images that are not 8-bit RGB. Greys are repeated in three channels, transparency is laid on white, 16-bit "
        "greys keep their upper 8 bits.",
        "Nothing to do, unless only some classes are concerned (see label-in-input).",
    ),
    "image-small": Kind(
        "warning",
        "Images whose short side is less than half of what the model reads: they are enlarged and hold little detail.",
        "Use larger images, or a smaller input: model.image_size=N.",
    ),
    "image-large": Kind(
        "note",
        "Images whose short side is more than four times what the model reads: decoding them takes most of the time.",
        "Store them smaller once; twice the model's input is plenty.",
    ),
    "image-shape": Kind(
        "note",
        "Images more than 2.5 times as long as wide. Resizing squeezes them, or cropping cuts off their ends.",
        "Look whether what matters is still visible at the model's input; cut or pad them if not.",
    ),
    "image-blank": Kind(
        "warning",
        "Images with next to no contrast: lens caps, failed exports, empty scans. They teach the model noise.",
        "Look at them and remove those without content.",
    ),
    "recording-broken": Kind(
        "error",
        "Recordings that cannot be decoded whole: missing, empty, cut off, or no sound at all. Training stops at them.",
        "Replace them, or leave them out: data.on_error=skip, or hftransfer doctor DATA --fix.",
    ),
    "recording-rates": Kind(
        "note",
        "Recordings of several sample rates. All are resampled to the model's rate, but what a low rate has cut off does "
        "not come back: a rate above 8 kHz for one class alone can tell that class.",
        "Nothing to do, unless only some classes are concerned (see label-in-input).",
    ),
    "recording-channels": Kind(
        "note",
        "Recordings of several numbers of channels. The channels of each are averaged to one.",
        "Where the channels hold different sources (the two ends of a call), save the one that is meant.",
    ),
    "recording-silent": Kind(
        "warning",
        "Recordings with next to no sound: microphones that were off, failed exports, lost uploads. They teach the model "
        "noise.",
        "Listen to them and remove those without content.",
    ),
    "recording-clipped": Kind(
        "warning",
        "Recordings that were louder than their format holds: peaks are cut flat, which adds sounds that were not there.",
        "Record them again at a lower level. If only some classes are concerned, a model can learn the clipping.",
    ),
    "recording-long": Kind(
        "warning",
        "Recordings longer than the window of the model: what follows is cut off and cannot count.",
        "Cut them into pieces that bear the label, or take a model that reads any length (wav2vec2, HuBERT, WavLM).",
    ),
    "text-empty": Kind(
        "error",
        "Rows without any text, or with broken Unicode. Training stops at them.",
        "Fill them, or leave them out: data.on_error=skip, or hftransfer doctor DATA --fix.",
    ),
    "text-encoding": Kind(
        "warning",
        "Texts that were decoded wrongly somewhere before (\"cafÃ©\" for \"café\") or hold replacement characters.",
        "hftransfer doctor DATA --fix repairs those that were UTF-8 read as Windows-1252; the others are lost.",
    ),
    "text-html": Kind(
        "warning",
        "HTML tags or entities in texts. Pretrained language models saw little of it, and it uses up the length.",
        "hftransfer doctor DATA --fix takes the tags out and resolves the entities.",
    ),
    "text-long": Kind(
        "warning",
        "Texts longer than the model reads: the rest is cut off and cannot count.",
        "A larger model.max_length up to the model's limit, a model with a longer one, or shorter texts.",
    ),
    "text-language": Kind(
        "warning",
        "The tokenizer does not know the language or script well: many unknown tokens, or words broken into many pieces.",
        "Take a checkpoint that was pretrained on this language, or a multilingual one.",
    ),
    "mask-broken": Kind(
        "error",
        "Masks that cannot be read, or whose shape is not that of their picture. Training stops at them.",
        "Replace them, or leave them out: data.on_error=skip.",
    ),
    "mask-resized": Kind(
        "note",
        "Masks of another size than their picture, but of its shape. They are resized to it: each pixel takes the value at its "
        "centre.",
        "Nothing to do. Masks at the size of their picture have more exact outlines.",
    ),
    "mask-binary": Kind(
        "note",
        "Masks that hold 0 and 255 alone. They are read as background and one class; elsewhere 255 means not labelled.",
        "Nothing to do if 255 is the class.",
    ),
    "mask-blurred": Kind(
        "warning",
        "Values between those of classes along outlines: the masks were resized with smoothing, or saved as JPEG. Outlines are "
        "less exact, and classes appear where there are none.",
        "Save masks as PNG, and resize them with nearest-exact interpolation.",
    ),
    "mask-unnamed": Kind(
        "warning",
        "Values or colours of masks that no class has. These pixels are read as not labelled.",
        "Name them in data.classes or in the file of classes, or correct the masks.",
    ),
    "mask-empty": Kind(
        "note",
        "Masks that hold the background alone, or no labelled pixel. The model learns from them where nothing is.",
        "Nothing to do if nothing is to be seen there; draw what is missing otherwise.",
    ),
    "mask-rare": Kind(
        "warning",
        "Classes with less than 1 % of the labelled pixels: a model that never finds them has a high pixel accuracy.",
        "Read the IoU of each class, and try training.imbalance=balanced. More images of these classes help most.",
    ),
    "mask-class-missing": Kind(
        "warning",
        "Classes that no mask of a part has. Without training masks they cannot be learned; without test masks nothing is known "
        "about them.",
        "Give the splits so that each part has every class, add images, or merge the class with another.",
    ),
    "mask-overlap": Kind(
        "note",
        "Pixels inside of the outlines of several classes. A pixel has one class: that of the later annotation.",
        "Order the annotations so that what lies in front comes last, or correct the outlines.",
    ),
    "mask-shifted": Kind(
        "warning",
        "The outlines of masks lie beside the edges of their pictures, in most images to the same side. Resizing that takes the "
        "upper left pixel, or a cropped picture, shifts masks so.",
        "Look at some masks over their pictures, and make them again from the originals.",
    ),
    "entity-repaired": Kind(
        "note",
        "Tags that continue no entity of their type, or spans that overlap or have blanks at their ends. They are read as the "
        "log says.",
        "Look at some of them: a wrong tag in the middle of an entity makes two of it.",
    ),
    "entity-types": Kind(
        "note",
        "Names that are marked at least five times, a fifth of them or more with another type. Names may be ambiguous; often "
        "annotators disagree.",
        "Look at them, and agree on a rule.",
    ),
    "entity-contradiction": Kind(
        "warning",
        "The same words between the same neighbours, marked once and not at all or with another type elsewhere. The model cannot "
        "learn both.",
        "Look at them, and correct the wrong ones.",
    ),
    "entity-type-missing": Kind(
        "warning",
        "Types that no text of a part has. Without training entities they cannot be found; without test entities nothing is "
        "known about them.",
        "More texts with these types, or a division that spreads them.",
    ),
    "entity-long": Kind(
        "warning",
        "Entities longer than a window of the model: none shows them whole. Shorter ones are never cut, as windows overlap.",
        "A larger model.max_length, or entities of fewer words.",
    ),
    "label-missing": Kind(
        "error",
        "Rows without a label. Training stops at them.",
        "Label them, or leave them out: data.on_error=skip, or hftransfer doctor DATA --fix.",
    ),
    "label-one-class": Kind(
        "error",
        "All examples have the same label: there is nothing to learn.",
        "Check that the right column is the label (data.label=…), or add examples of another class.",
    ),
    "label-single": Kind(
        "error",
        "Classes with one example cannot be divided into training and test.",
        "Add examples, merge such classes, give the splits yourself, or leave them out: data.on_error=skip.",
    ),
    "label-unknown": Kind(
        "error",
        "Labels of the validation or test part that never occur in training: the model cannot give them.",
        "Add training examples, correct the spelling, or leave these rows out: data.on_error=skip.",
    ),
    "label-rare": Kind(
        "warning",
        "Classes with fewer than ten examples: their scores are noise, and little can be learned.",
        "Collect more, or merge them with a neighbouring class.",
    ),
    "label-imbalance": Kind(
        "note",
        "The largest class is more than ten times the smallest: accuracy hides the small ones.",
        "Read balanced accuracy and macro-F1, and try training.imbalance=balanced.",
    ),
    "label-near-equal": Kind(
        "warning",
        'Class names that differ only in case, blanks or punctuation ("Cat", "cat "): probably one class, split in two.',
        "hftransfer doctor DATA --fix gives them one name, that of the larger class.",
    ),
    "label-conflict": Kind(
        "warning",
        "The same input, or a near copy of it, stands there with different labels: one of them is wrong, or two apply.",
        "Look at each pair and correct it; if several labels may apply, make it multi-label.",
    ),
    "label-numbers": Kind(
        "note",
        "The labels are whole numbers, which may be names of classes or quantities.",
        "Say which: data.task=single_label or data.task=regression.",
    ),
    "label-in-input": Kind(
        "warning",
        "Something about the inputs other than their content tells the label: the size, the format, the camera, or the "
        "label's own name in the text. A model can learn that in place of the matter and fails where it differs.",
        "Look at how the classes were collected; make the classes alike in this, or take the words out.",
    ),
    "label-in-metadata": Kind(
        "note",
        "File names or other columns tell the label. The model does not see them, but they show that classes were "
        "collected apart (another day, another device, another source), which often shows in the inputs too.",
        "If the column names a source, a person or a day, keep it on one side: data.split.group=COLUMN.",
    ),
    "input-missing": Kind(
        "note",
        "Rows in which a column of the input is empty. The text of such a row lacks it; several inputs get a mean and a mark.",
        "Nothing to do where the value is often unknown in use too; else fill it.",
    ),
    "input-conflict": Kind(
        "note",
        "One picture or recording stands in several rows whose labels differ. The other inputs have to tell them apart, and a "
        "head on this input alone cannot.",
        "Nothing to do where one picture shows several things; else correct the label, or name the right file in each row.",
    ),
    "input-tells-label": Kind(
        "warning",
        "A column of the input gives the label nearly always. Often it is written after the label is known, and will be "
        "empty or different in use.",
        "If it is not known before the label is, take it out of data.input.",
    ),
    "duplicate": Kind(
        "warning",
        "Rows whose input is byte for byte the same as another's. They count double.",
        "hftransfer doctor DATA --fix keeps one of those with equal labels.",
    ),
    "duplicate-near": Kind(
        "note",
        "Inputs that show or say nearly the same: other sizes, exposures, mirrored copies, frames of one film; texts that "
        "share four fifths of their pieces.",
        "data.split.group=auto keeps them on one side of the split.",
    ),
    "duplicate-neighbour": Kind(
        "note",
        "Inputs that the model sees as nearly the same (four times closer than nearest neighbours usually are) although "
        "their content did not show it: other cuts of one photo, rewordings, or classes that the model cannot tell apart.",
        "Look at the pairs: remove second copies, and name what they share with data.split.group=COLUMN.",
    ),
    "leak": Kind(
        "error",
        "Test or validation inputs that stand in the training part too: the score counts what was learned by heart.",
        "hftransfer doctor DATA --fix takes them out of the training part; or divide anew with data.split.group=auto.",
    ),
    "leak-near": Kind(
        "warning",
        "Test or validation inputs with a near copy in the training part: the score is flattered.",
        "hftransfer doctor DATA --fix takes them out of the training part; or divide anew with data.split.group=auto.",
    ),
    "leak-pair": Kind(
        "note",
        "Text pairs of which one half stands in the training part too: the test is about known texts.",
        "For a test on new texts, keep equal halves together: name a column for them with data.split.group.",
    ),
    "leak-ahead": Kind(
        "warning",
        "A random division puts copies, or files of one series, on both sides: the score would be flattered.",
        "data.split.group=auto keeps them on one side; data.split.group=COLUMN where a column names the source.",
    ),
    "leak-measured": Kind(
        "note",
        "What the difference is worth: the same linear probe on splits that keep relatives together and on random ones.",
        "Report the figure with relatives kept together: it is what new data will show.",
    ),
    "group-divided": Kind(
        "warning",
        "Groups of data.split.group that the given splits tear apart.",
        "Leave the given splits out so that whole groups are divided, or accept that the score is flattered.",
    ),
    "source-divided": Kind(
        "warning",
        "One speaker, patient or author stands in training and test. The score then holds for sources that the model knows, "
        "and a new one is often harder.",
        "data.split.group=COLUMN keeps each source on one side; leave given splits out, or give a test part of new sources.",
    ),
    "model-unreadable": Kind("error", "The checkpoint cannot be used; nothing was tried with it.", "Do what it says."),
    "model": Kind(
        "note",
        "What was found in the checkpoint: blocks, head, adapters' targets, batch normalisation.",
        "Nothing to do.",
    ),
    "memory": Kind(
        "warning",
        "One real training step of the whole network takes most of the memory.",
        "A smaller training.per_device_train_batch_size with training.gradient_accumulation_steps, "
        "training.gradient_checkpointing=true, or a strategy that trains less.",
    ),
    "disk": Kind("error", "There is too little room for checkpoints and the model.", "Free some, or set output=… elsewhere."),
    "shared-memory": Kind(
        "warning",
        "/dev/shm is too small for workers that load data; fewer are started. Containers give 64 MB by default.",
        "Start the container with --shm-size=2g or --ipc=host.",
    ),
    "precision": Kind("note", "The arithmetic that the device does best.", "training.bf16=true or false decides."),
    "token": Kind("note", "No token for the Hub was found: a push would fail at the end.", "hf auth login"),
    "output": Kind("error", "The run folder cannot be written.", "Set output=… to a folder that can."),
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One thing that was found: the stable `id` of its kind, a sentence with figures, and the rows or files."""

    id: str
    message: str
    rows: tuple[str, ...] = ()

    @property
    def severity(self) -> Severity:
        return KINDS[self.id].severity

    @property
    def fix(self) -> str:
        return KINDS[self.id].fix

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"rows": list(self.rows), "severity": self.severity, "fix": self.fix}

    def as_text(self, most: int = 5) -> str:
        """Return a few lines for a terminal: at most `most` of the rows."""
        rows = [f"    {row}" for row in self.rows[:most]]
        more = [f"    … and {len(self.rows) - most} more"] if len(self.rows) > most else []
        head = f"{self.severity.upper():8}{self.id}: {self.message}"
        return "\n".join([head, *rows, *more, f"    → {self.fix}"])


def explain(id_: str) -> str:
    """Return what a kind of finding means and how to fix it. Raises `UserError` with the nearest id."""
    if id_ not in KINDS:
        raise UserError(f"There is no finding {id_!r}.{did_you_mean(id_, KINDS)}")
    kind = KINDS[id_]
    return f"{id_} ({kind.severity})\n\n{kind.meaning}\n\nFix: {kind.fix}"


def exit_code(findings: list[Finding], strict: bool = False) -> int:
    """0 when training can start, 1 when there is an error (with `strict` also for a warning)."""
    bad = {"error", "warning"} if strict else {"error"}
    return int(any(finding.severity in bad for finding in findings))
