"""A Space that shows the model beside it. `hftransfer push RUN OWNER/NAME --space OWNER/DEMO` fills this folder."""

import logging
import os
from pathlib import Path

from hftransfer.apps.demo import launch

logging.basicConfig(level=logging.INFO, format="%(message)s")
launch(os.environ.get("MODEL", str(Path(__file__).with_name("model"))))
