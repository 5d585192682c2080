"""The documentation site builds without a warning, and its reference pages name every command and setting."""

import sys
from pathlib import Path

import pytest
import typer

from hftransfer.cli.commands import app
from hftransfer.config import RunConfig
from tests.support.fork_server import run_python

TOP = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = run_python(command, cwd=TOP)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_of_the_folder_is_linked_from_the_navigation(site):
    home = (site / "index.html").read_text()
    assert all(f'href="{path.stem}/"' in home for path in (TOP / "docs").glob("*.md") if path.stem != "index")


def test_the_reference_names_every_command(site):
    page = (site / "reference" / "commands" / "index.html").read_text()
    assert all(f"hftransfer {name}<" in page for name in typer.main.get_command(app).commands)


def test_the_reference_names_every_setting(site):
    page = (site / "reference" / "configuration" / "index.html").read_text()
    for name, field in RunConfig.model_fields.items():
        assert f"<code>{name}</code>" in page
        for inner in getattr(field.annotation, "model_fields", {}):
            assert f"<code>{inner}</code>" in page, f"{name}.{inner}"


def test_pages_load_nothing_from_other_sites(site):
    for page in site.rglob("*.html"):
        for line in page.read_text().splitlines():
            assert 'src="http' not in line and 'rel="stylesheet" href="http' not in line, page
