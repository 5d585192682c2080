"""One thread, no network, a feature store of its own: before torch is imported."""

import os
import tempfile

os.environ["OMP_NUM_THREADS"] = "1"  # tiny networks gain nothing from more, and two processes would fight
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HFTRANSFER_CACHE"] = tempfile.mkdtemp(prefix="hftransfer-tests-")
os.environ.pop("HFTRANSFER_MALLOPT", None)
