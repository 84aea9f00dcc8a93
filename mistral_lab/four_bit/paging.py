"""Weights that are mapped from files: the system is told which experts come next, and a file that changed is noticed.

What is mapped is read when it is first touched, a small piece at a time, and the system drops from its page cache what
it needs the room for. It does not know which expert the router will choose. The router's choice is known a moment
before the expert is touched, and a guess at the next layer's a layer before.
"""

import ctypes
import mmap
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch
from torch import nn

from .experts import FourBitExperts
from .guess import guess_experts
from .slots import matrices


def will_need(tensors: Iterable[torch.Tensor]) -> None:
    """Ask the system to read the memory of tensors on the CPU from disk, where it is mapped and not in the page cache.

    Elsewhere than on Linux and macOS nothing is done. Nothing fails: it is advice, which the system may decline.
    """
    advise = _madvise()
    if advise is None:
        return
    for tensor in tensors:
        start = tensor.data_ptr() - tensor.data_ptr() % mmap.PAGESIZE  # advice is given on whole pages
        advise(start, tensor.data_ptr() + tensor.nbytes - start, mmap.MADV_WILLNEED)


@cache
def _madvise():
    """The C library's `madvise`; None where the system has none."""
    if not hasattr(mmap, "MADV_WILLNEED"):
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes, advise.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return advise


@cache
def _thread() -> ThreadPoolExecutor:
    """One thread for all models: the call returns only when the system has queued what it will read."""
    return ThreadPoolExecutor(1, thread_name_prefix="read-ahead")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_thread.cache_clear)  # threads do not come along


def read_experts_ahead(model: nn.Module) -> None:
    """Have each layer of experts ask the system for those it needs and, by a guess, for those of the next layer.

    For a model whose mapped experts do not all fit into the page cache. Where they do, asking costs about what it takes
    to look up each page, in a thread of its own; so ask only where memory is short. Answers do not change. Where
    experts are kept outside of a device, call this afterwards; what is not pinned is then asked for.

    Source: the guess, arXiv:2312.17238, section 3.2; the advice, madvise(2).

    Args:
        model: a Mixtral with experts in 4 bits, which are mapped from files. It is changed in place; calling this
            again changes nothing.

    Raises:
        ValueError: a model without experts in 4 bits.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, FourBitExperts)]
    if not names:
        raise ValueError(f"{type(model).__name__} has no experts in 4 bits: expected a Mixtral loaded with bits=4")
    following = None
    for name in reversed(names):
        experts = model.get_submodule(name)
        if not experts.reads_ahead:
            experts.reads_ahead, experts.next_layer = True, following
            experts.register_forward_pre_hook(_ask_for_experts)
        following = model.get_submodule(f"{name.rpartition('.')[0]}.gate"), experts


def _ask_for_experts(experts: FourBitExperts, inputs: tuple[torch.Tensor, ...]) -> None:
    """The hook: ask for what this call needs, then for the next layer's guess.

    It stands at the top level, so that models can be pickled.
    """
    x, indices = inputs[:2]
    needed = [experts[number] for number in indices.unique().tolist()]
    if experts.next_layer is not None:
        router, following = experts.next_layer
        needed += [following[number] for number in guess_experts(x, router, indices.shape[1]).unique().tolist()]
    _thread().submit(will_need, [matrix.weight.data for expert in needed for matrix in matrices(expert)])


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
