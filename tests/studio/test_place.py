"""The folder of the studio: what is found in it, what is sent into it, and that nothing leaves it."""

import zipfile

import pytest
from PIL import Image

from hftransfer.core.errors import UserError
from hftransfer.studio import archives
from hftransfer.studio.captures import counts_html, keep_picture
from hftransfer.studio.detected import can_be_fixed, data_config, examined, findings_html, fixed
from hftransfer.studio.jobs import Jobs
from hftransfer.studio.place import Place, plain_name
from hftransfer.studio.training import suggested_name, train, train_again
from tests.support import tiny


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path.resolve())


def archive(path, files):
    with zipfile.ZipFile(path, "w") as target:
        for name, content in files.items():
            target.writestr(name, content)
    return path


def files_in(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_data_sets_are_tables_and_folders_of_classes(place):
    for name in (
        "a/cat",
        "a/dog",
        "deep/b/cat",
        "deep/b/dog",
        "runs/r/model",
        "runs/r/x",
        "one/alone",
        ".git/x/y",
        "bert",
    ):
        (place.root / name).mkdir(parents=True)
        (place.root / name / "file.txt").write_text("")
    for name in ("table.csv", "runs/r/run.json", "old.patch.jsonl", "bert/config.json", "notes.txt"):
        (place.root / name).write_text("")
    assert place.data() == ["a", "deep/b", "table.csv"]
    assert place.checkpoints() == ["bert"]


def test_no_path_leaves_the_folder(place):
    (place.root.parent / "outside.csv").write_text("")
    (place.root / "link.csv").symlink_to(place.root.parent / "outside.csv")
    for name in ("../outside.csv", str(place.root.parent / "outside.csv"), "link.csv", "/etc"):
        with pytest.raises(UserError, match="lies outside of"):
            place.path(name)
    with pytest.raises(UserError, match="There is no nothing.csv"):
        place.path("nothing.csv")
    for name in ("../outside.csv", "", None):
        with pytest.raises(UserError):
            train(place, Jobs(place.root), name, "auto", "probe", 1, "", "", "")
    with pytest.raises(UserError, match="There is no run"):
        place.run("../..")


def test_a_zip_is_unpacked_without_its_outer_folder_and_hidden_files(place, tmp_path):
    sent = archive(
        tmp_path / "my pets!.zip", {"pets/cat/1.png": b"1", "pets/dog/2.png": b"2", "__MACOSX/pets/cat/._1.png": b""}
    )
    assert place.receive(sent) == "my pets-"
    assert files_in(place.root / "my pets-") == ["cat/1.png", "dog/2.png"]
    assert place.receive(archive(tmp_path / "flat.zip", {"cat/1.png": b"1", "dog/2.png": b"2"})) == "flat"
    assert files_in(place.root / "flat") == ["cat/1.png", "dog/2.png"]
    assert place.receive(tmp_path / "flat.zip") == "flat-2"


def test_hostile_zips_leave_nothing_behind(place, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_UNPACKED", 100)
    monkeypatch.setattr(archives, "MOST_FILES", 3)
    link = zipfile.ZipInfo("cat/link")
    link.external_attr = 0o120777 << 16
    cases = {
        "slip": {"../../escaped.png": b"x"}, "absolute": {"/escaped.png": b"x"}, "drive": {"c:/escaped.png": b"x"},
        "backslash": {"..\\escaped.png": b"x"}, "bomb": {"a.png": b"0" * 101}, "many": {f"{i}.png": b"" for i in range(4)},
        "none": {".hidden": b""}, "inside": {"a": b"x", "a/b": b"x"}, "link": {link: b"/etc/passwd"},
    }  # fmt: skip
    for name, files in cases.items():
        sent = archive(tmp_path / f"{name}.zip", files)
        before = sorted(tmp_path.parent.rglob("*"))
        with pytest.raises(UserError):
            place.receive(sent)
        assert sorted(tmp_path.parent.rglob("*")) == before, name
    (tmp_path / "no.zip").write_bytes(b"no zip")
    with pytest.raises(UserError, match="Cannot unpack no.zip"):
        place.receive(tmp_path / "no.zip")
    (tmp_path / "script.sh").write_text("")
    with pytest.raises(UserError, match="Expected a zip or a table"):
        place.receive(tmp_path / "script.sh")


def test_names_stay_in_their_folder():
    assert [plain_name(name) for name in ("../a/b", ".hidden", " Köln 1 ", "a\\b:c\0")] == [
        "-a-b",
        "hidden",
        "Köln 1",
        "a-b-c-",
    ]


def test_what_is_detected_and_repaired(place):
    folder = tiny.image_folder(place.root / "shapes", per_class=4)
    broken = sorted((folder / "red").iterdir())[0]
    broken.write_bytes(broken.read_bytes()[:60])
    config = data_config(place, "shapes")
    facts, findings = examined(config)
    assert "12 images" in facts and "red" in facts and "data:image/jpeg;base64," in facts
    assert "image-broken" in {finding.id for finding in findings} and can_be_fixed(findings)
    assert "hftransfer doctor DATA --fix" in findings_html(findings)
    cleaned = fixed(place, "shapes", config)
    assert cleaned == "shapes-cleaned" and "image-broken" not in {
        f.id for f in examined(data_config(place, cleaned))[1]
    }
    with pytest.raises(UserError, match="start the studio one folder higher"):
        fixed(place, ".", config)


def test_data_that_cannot_be_read_is_a_finding_and_texts_are_escaped(place):
    (place.root / "empty.csv").write_text("")
    facts, (finding,) = examined(data_config(place, "empty.csv"))
    assert facts == "" and finding.id == "data-unreadable"
    rows = "".join(f"<img src=x>{i},<b>{i % 2}</b>\n" for i in range(20))
    (place.root / "evil.csv").write_text("text,label\n" + rows)
    facts, findings = examined(data_config(place, "evil.csv", "data.label=label\n\n"))
    assert "<img src=x>" not in facts + findings_html(findings) and "&lt;b&gt;0" in facts
    with pytest.raises(UserError, match="Expected key=value"):
        data_config(place, "evil.csv", "label")


def test_pictures_from_the_camera(place, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "shot.png")
    for name in ("cat", "cat", "../dog"):
        kept = keep_picture(place, "captures", name, str(tmp_path / "shot.png"))
    assert kept == place.root / "captures" and len(files_in(kept)) == 3
    assert counts_html(kept) == '<ul class="counts"><li>-dog: 1</li><li>cat: 2</li></ul>'
    assert "captures" in place.data()
    with pytest.raises(UserError, match="Name the folder and the class"):
        keep_picture(place, "captures", " ", str(tmp_path / "shot.png"))
    (tmp_path / "no.png").write_text("")
    with pytest.raises(UserError, match="Cannot read the image"):
        keep_picture(place, "captures", "cat", str(tmp_path / "no.png"))


def test_the_command_of_a_choice(place, monkeypatch):
    (place.root / "pets.csv").write_text("text,label\n")
    (place.root / "runs" / "pets-auto").mkdir(parents=True)
    started = []
    monkeypatch.setattr(Jobs, "start", lambda self, arguments, output: started.append((arguments, output)))
    train(place, Jobs(place.root), "pets.csv", "starter/minilm", "auto", 5, "", "", "data.label=label")
    assert started[-1] == (
        ["train", "pets.csv", "--model", "starter/minilm", "--strategy", "auto", "--output", "runs/pets-auto-2",
         "strategy.budget=5m", "data.label=label"], place.root / "runs" / "pets-auto-2",
    )  # fmt: skip
    train(place, Jobs(place.root), "pets.csv", "", "probe", 5, "../mine", "", "")
    assert started[-1][0][-1] == "runs/-mine" and "auto" in started[-1][0]
    with pytest.raises(UserError, match="Expected key=value"):
        train(place, Jobs(place.root), "pets.csv", "", "probe", 5, "", "", "--patch=x")
    assert suggested_name(place, ".", "probe") == f"{plain_name(place.root.name)}-probe"


def test_a_run_is_trained_again_with_its_patch(place, tiny_run, monkeypatch):
    import shutil

    shutil.copytree(tiny_run("probe", "text"), place.runs / "text")
    with pytest.raises(UserError, match="No decision was made yet"):
        train_again(place, Jobs(place.root), "text")
    (place.runs / "text.patch.jsonl").write_text("")
    started = []
    monkeypatch.setattr(Jobs, "start", lambda self, arguments, output: started.append(arguments))
    train_again(place, Jobs(place.root), "text")
    assert started == [
        ["train", "runs/text/config.yaml", "--patch", "runs/text.patch.jsonl", "--output", "runs/text-2"]
    ]
