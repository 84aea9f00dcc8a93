import os

import pytest
from hypothesis import settings

# Before anything imports transformers: tests use the bundled models, and no network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("MISTRAL_LAB_MODEL", None)

# The same examples on every run, and no limit on an example's time: a slow machine is no failure.
settings.register_profile("lab", derandomize=True, deadline=None, database=None, max_examples=60)
settings.load_profile("lab")


@pytest.fixture(autouse=True, scope="session")
def _cache_of_quantised_models(tmp_path_factory):
    """What `load(bits=4)` keeps on disk stays among the test run's own files."""
    os.environ["MISTRAL_LAB_CACHE"] = str(tmp_path_factory.mktemp("quantised"))
