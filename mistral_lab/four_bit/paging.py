"""Weights that are mapped from files: which of them the system keeps in memory, and files that changed under a model.

What is mapped is read when it is first touched, and stays in the system's page cache until the room is needed for
something else. The system drops what was used longest ago. For a mixture that is larger than the memory this is the
wrong rule: a prompt runs through all experts of all layers in turn, and what is dropped is always what comes next.
"""

import ctypes
import os
import sys
from collections.abc import Iterable
from functools import cache
from mmap import PAGESIZE
from pathlib import Path

import torch
from torch import nn

from .experts import FourBitExpert, FourBitExperts, experts_by_name
from .slots import matrices_of

PAGEOUT = 21  # of madvise(2), from Linux 5.4 on: take these pages back now; Python's mmap has no name for it
RESERVE_BYTES = 2**30  # of the page cache, for experts on their way through


def share_page_cache(model: nn.Module, memory_bytes: int) -> int:
    """Have the same experts of each layer stay in the page cache, and the others pass through it.

    As many experts as fit are left to the system. What it has read of any other is given back as soon as the layer has
    used it (MADV_PAGEOUT, which passes over pages that another process maps too), so that it pushes out none of those
    that stay. A prompt then finds that share of the experts in memory,
    where it might find none, and a token finds it too. Answers do not change.

    On two cores with Mixtral 8x7B at full size in 12 GiB, its disk reading 1.1 GB/s: a prompt of 8 tokens read 9.6 GB
    instead of 15.5, and a token took 3.3 s instead of 4.5. Asking the system for experts ahead, by MADV_WILLNEED for
    those that the router chose or for guesses at the next layer's, made neither faster: reading on touch kept the disk
    busy already, and every wrong guess was read in vain.

    Args:
        model: a Mixtral with experts in 4 bits that are mapped from files. It is changed in place; a later call takes
            the place of an earlier one.
        memory_bytes: what the page cache has for experts.

    Returns:
        how many experts of all layers together stay.

    Raises:
        ValueError: a model without experts in 4 bits.
    """
    layers = list(experts_by_name(model).values())
    each = sum(tensor.nbytes for tensor in _mapped(layers[0][0]))
    fitting = max(0, memory_bytes - RESERVE_BYTES) // each
    # Expert 0 of every layer first, then expert 1, so that all layers have as many, or one more.
    stay = [(layer, number) for number in range(len(layers[0])) for layer in range(len(layers))][:fitting]
    for layer, experts in enumerate(layers):
        numbers = [number for number in range(len(experts)) if (layer, number) not in stay]
        if experts.passing is None:
            experts.register_forward_hook(_give_back)
        experts.passing = {number: _addresses(experts[number]) for number in numbers}
    return len(stay)


def _give_back(experts: FourBitExperts, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
    """The hook; at the top level, so that models can be pickled."""
    advise = _madvise()
    for number in inputs[1].unique().tolist() if advise else ():
        # In a copy of the model, or after unpacking, the expert lies elsewhere, in memory that is no file's.
        if experts.passing.get(number) == _addresses(experts[number]):
            for tensor in _mapped(experts[number]):
                start = -(-tensor.data_ptr() // PAGESIZE) * PAGESIZE  # whole pages: the first may hold something else
                advise(start, max(0, tensor.data_ptr() + tensor.nbytes - start), PAGEOUT)


def _mapped(expert: FourBitExpert) -> list[torch.Tensor]:
    """What computing with an expert reads."""
    return [part for matrix in matrices_of(expert) for part in (matrix.weight.data, matrix.weight.quant_state.absmax)]


def _addresses(expert: FourBitExpert) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in _mapped(expert))


@cache
def _madvise():
    """The C library's `madvise`; None elsewhere than on Linux. Nothing depends on it: the system may decline advice."""
    if sys.platform != "linux":
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes, advise.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return advise


def watch_files(model: nn.Module, files: Iterable[Path]) -> None:
    """Before each forward of a model, make sure that the files which its weights are mapped from are as they are now.

    A file that is written to under a running model changes its weights, and one that is cut off ends the process when
    a weight beyond its new end is touched. A file that was removed, or replaced by another one under its name, is no
    harm: what is mapped stays. The check is one `os.stat` per file.

    Args:
        model: changed in place; the files of an earlier call are no longer watched.
        files: that weights are mapped from, each existing.

    Raises:
        OSError: from then on, by a forward that finds a file changed; here, a file that is not there.
    """
    watched = hasattr(model, "mapped_files")
    model.mapped_files = [(os.fspath(file), _identity(os.stat(file)), _version(os.stat(file))) for file in files]
    if not watched:
        model.register_forward_pre_hook(_check_files)


def _check_files(model: nn.Module, inputs: tuple) -> None:
    """The hook, at the top level, so that models can be pickled."""
    for path, identity, version in model.mapped_files:
        try:
            found = os.stat(path)
        except OSError:
            continue
        if _identity(found) == identity and _version(found) != version:
            size = f"has {found.st_size:,} bytes" if found.st_size != version[0] else "was written to"
            raise OSError(
                f"{path} {size} since the model was loaded from it with {version[0]:,} bytes: its weights are no "
                "longer what they were, so restore the file and load the model again"
            )


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _version(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns
