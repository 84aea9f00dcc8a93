"""Tests that take the device they run on: `pytest tests/device --device cuda`, by default the test device."""

import backend
import pytest
import torch

from mistral_lab import load


def pytest_addoption(parser):
    parser.addoption("--device", choices=("cpu", "cuda", backend.NAME), default=backend.NAME)


def pytest_configure(config):
    """Say in one sentence what this machine lacks, before anything is collected."""
    chosen = config.getoption("--device")
    if chosen == "cuda" and not torch.cuda.is_available():
        pytest.exit("PyTorch sees no CUDA card on this machine: run these tests where there is one", returncode=2)
    if chosen == backend.NAME and (reason := backend.missing()):
        pytest.exit(f"nothing tested: {reason}", returncode=2)


@pytest.fixture(scope="session")
def device(request):
    """Where the tensors of a test lie."""
    chosen = request.config.getoption("--device")
    return backend.choose() if chosen == backend.NAME else torch.device({"cpu": "cpu", "cuda": "cuda:0"}[chosen])


@pytest.fixture(scope="module")
def dense(device):
    return load("tiny-mistral", device=device, dtype="float32")


@pytest.fixture(scope="module")
def mixture(device):
    return load("tiny-mixtral", device=device, dtype="float32")
