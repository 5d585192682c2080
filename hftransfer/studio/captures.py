"""Pictures from the camera, kept in the folders of their classes."""

import html
import shutil
import uuid
from pathlib import Path

from hftransfer.apps.uploads import check_image
from hftransfer.core.errors import UserError
from hftransfer.studio.place import Place, plain_name


def keep_picture(place: Place, folder: str, name: str, picture: str | None) -> Path:
    """Copy a picture into `folder`/`name`, and return the folder. Raises `UserError`."""
    if not plain_name(name) or not plain_name(folder):
        raise UserError("Name the folder and the class of the picture first.")
    check_image(picture)
    target = place.root / plain_name(folder) / plain_name(name)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(picture, target / f"{uuid.uuid4().hex[:12]}{Path(picture).suffix.lower()}")
    return target.parent


def counts_html(folder: Path) -> str:
    """Return how many pictures each class has."""
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    counted = (f"<li>{html.escape(path.name)}: {len(list(path.iterdir()))}</li>" for path in classes)
    return f'<ul class="counts">{"".join(counted)}</ul>'
