"""The test device "elsewhere": built once, made known by `register()`, and taken by `load` after `choose()`."""

import os
import shutil
import sys
import sysconfig
import types
from pathlib import Path

import torch
from torch.utils import cpp_extension

NAME = "elsewhere"
SOURCE = Path(__file__).with_name("backend.cpp")
# PyPI's ninja lies beside the interpreter, which PATH may not name.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
BUILD = Path(__file__).parents[2] / "build" / "device" / f"torch-{torch.__version__}"


def missing() -> str | None:
    """What this machine lacks to build the device, in one sentence; None where it can."""
    lacking = [tool for tool in ("ninja", cpp_extension.get_cxx_compiler()) if not shutil.which(tool)]
    lacking += ["Python.h"] * (not Path(sysconfig.get_path("include"), "Python.h").exists())
    return f"the test device is built with what this machine lacks: {', '.join(lacking)}" if lacking else None


def register() -> torch.device:
    """Build what is not built yet (half a minute), and make `torch.device("elsewhere")` known; once a process."""
    if hasattr(torch, NAME):
        return torch.device(NAME, 0)
    BUILD.mkdir(parents=True, exist_ok=True)
    native = cpp_extension.load("elsewhere_backend", [str(SOURCE)], build_directory=str(BUILD), extra_cflags=["-O2"])
    torch.utils.rename_privateuse1_backend(NAME)
    torch._register_device_module(NAME, _module(native.default_generator()))
    torch.utils.generate_methods_for_privateuse1_backend()
    return torch.device(NAME, 0)


def _module(generator: torch.Generator) -> types.ModuleType:
    """What PyTorch and the libraries look for in `torch.elsewhere`, as they do in `torch.cuda`."""
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.set_device = lambda device: None
    module.synchronize = lambda device=None: None
    module.empty_cache = lambda: None
    module.manual_seed = generator.manual_seed
    module.manual_seed_all = generator.manual_seed
    module.get_rng_state = lambda device=None: generator.get_state()
    module.set_rng_state = lambda state, device=None: generator.set_state(state)
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    module._is_in_bad_fork = lambda: False
    return module


def choose() -> torch.device:
    """From now on `load()` and training take the test device unless told where, as they take a GPU that is there."""
    from mistral_lab.loading import loader

    device, choose_device, choose_dtype = register(), loader.choose_device, loader.choose_dtype

    def dtype_there(place, bits, config):  # that of a card, on which a lesson's numbers have to hold as well
        return torch.bfloat16 if place == device and bits != 32 else choose_dtype(place, bits, config)

    loader.choose_device = lambda wanted: device if wanted in (None, NAME, device) else choose_device(wanted)
    loader.choose_dtype = dtype_there
    os.environ["ACCELERATE_TORCH_DEVICE"] = NAME  # where transformers' Trainer trains
    return device
