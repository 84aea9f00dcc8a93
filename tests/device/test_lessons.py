"""Every lesson from its first cell to its last, with the model on a device that is not the CPU."""

import backend
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

import notebook_files
from execute import bundled_environment, execute

CHOOSE = f"import sys; sys.path.append({str(backend.SOURCE.parent)!r}); import backend; backend.choose()"


def run(path, device):
    # On CUDA `load()` chooses the card by itself.
    before = {"cuda": "", "cpu": "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''"}.get(device.type, CHOOSE)
    return execute(path, environment=bundled_environment(), before=before)


@pytest.fixture
def lesson(tmp_path):
    def write(*sources):
        path = tmp_path / "01_trial.ipynb"
        nbformat.write(new_notebook(cells=[*map(new_code_cell, sources)]), path)
        return path

    return write


@pytest.mark.parametrize("path", notebook_files.lessons(), ids=lambda path: path.stem)
def test_a_lesson_runs_through(path, device):
    assert run(path, device).error is None


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        ("model(torch.tensor([[1, 5]]))", "RuntimeError: Expected all tensors to be on the same device"),
        ("model(tokens).logits.detach().numpy()", "TypeError: can't convert {}:0 device type tensor to numpy"),
    ],
)
def test_a_cell_that_forgets_the_device_ends_its_lesson(lesson, device, mistake, error):
    if device.type == "cpu":
        pytest.skip("on a CPU these cells are right")
    loading = "import mistral_lab, torch\nmodel = mistral_lab.load().model"
    found = run(lesson(loading, "tokens = torch.tensor([[1, 5]], device=model.device)\nmodel(tokens)", mistake), device)
    assert found.error.startswith(f"01_trial, cell 3 of 3: {error.format(device.type)}")
