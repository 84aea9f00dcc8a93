"""One call from a name to a model that answers: bundled, local or from the hub; device, dtype and bits."""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ..checkpoints import BUNDLED, Source, locate, weight_files
from ..config import ModelConfig, read_config
from ..files import Need, lab_cache
from ..memory import weight_bytes
from .fitting import as_held, does_not_fit, out_of_memory_explained, plan_here, planned_precision
from .forms import check_form, explained, instead, is_whole, offer_copy, quantised_precision
from .loaded import Loaded
from .placement import check_disk, free_memory, need_of_experts, offload_folder, remove_with, spread

DEFAULT_MODEL = "tiny-mistral"
SMALL_BYTES = 2**30  # on a CPU, weights up to this size in float32 are kept in float32


def load(
    name: str | os.PathLike | None = None,
    *,
    bits: int | None = None,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> Loaded:
    """Load a Mistral, Mixtral or Llama model with its tokenizer, ready to generate.

    Weights come from safetensors files alone and no code of a checkpoint is ever run. For bundled models and folders
    nothing goes to the network. A checkpoint in 16 bits is read, and one in 4 bits of bitsandbytes, NF4 or FP4, with
    everything in 4 bits that its files hold so. A dense model is also read in any other form, such as int8, GPTQ or
    AWQ, for which transformers finds the library that reads it.

    Args:
        name: "tiny-mistral" or "tiny-mixtral", which are in the package; "mistral-7b-v0.1", "mistral-7b-v0.3",
            "mistral-7b-instruct-v0.1", "mixtral-8x7b-v0.1" or "mixtral-8x7b-instruct-v0.1", each at one commit of the
            hub; a folder; or a hub id "owner/name". None is what the environment variable MISTRAL_LAB_MODEL names, or
            else "tiny-mistral".
        bits: 4 is NF4 with double quantisation, experts included. It is made once and kept: in the folder that the
            environment variable MISTRAL_LAB_CACHE names, or else `mistral_lab` beside the hub's downloads. 8 is
            LLM.int8(), for a dense model. 16 and 32 are unquantised, as None is, which chooses between them. A
            checkpoint that is quantised already stays as it is: None takes it, and so do the bits that it has, of which
            4 insist that all matrices of attention, feed-forward networks and experts are in 4 bits.
        device: "cpu", "cuda", "cuda:1" or "mps". None is CUDA where there is a GPU, otherwise the CPU. A quantised
            model lies whole on one device. An unquantised one is spread, with None, over all GPUs, and over memory and
            disk where they are too small; for that the experts of a mixture are written again, to a folder beside the
            quantised models that goes when the model does.
        dtype: of the weights, or with 4 bits of the arithmetic. None is, on a GPU, bfloat16 from compute capability 8.0
            on and float16 below; on a CPU, float32 up to 1 GiB of weights, bfloat16 beyond that and in 4 bits. In 8
            bits it is float16, in which LLM.int8() multiplies.
        revision: branch, tag or commit on the hub. None is the commit that goes with a known name, otherwise "main".

    Raises:
        FileNotFoundError: no such folder, repository or revision, or no config or safetensors in it: GGUF files alone,
            Mistral's own format or an adapter, of which the message says what to take instead.
        PermissionError, ConnectionError: the hub wants a token, or is out of reach.
        MemoryError: the device is too small, said before anything is downloaded, or memory ran out.
        OSError: too small a disk for the download, the copy or the layers that go there, said beforehand; a truncated,
            damaged or incomplete checkpoint.
        RuntimeError: a GPU where there is none; four bits on a CPU without AVX2, or that did not come out as four bits.
        NotImplementedError: a mixture of experts with `bits=8`.
        ImportError: a quantised form whose library is not installed.
        TypeError, ValueError: a quantised form that is not read, other bits than it has, or any other argument that
            means nothing.

    Warns: before a download in 16 bits that `bits=4` needs, of its size and of a copy in 4 bits that spares it; and
        where experts have to be written to the disk.

    >>> load("tiny-mixtral").config.num_experts
    8
    """
    if bits not in (None, 4, 8, 16, 32):
        raise ValueError(f"bits is {bits!r}: expected 4, 8, 16, 32 or None")
    source = locate(_named(name), revision)
    target = _choose_device(device)
    with explained(source):
        folder = source.config_folder()
    transformers_config = read_config(folder)
    config = ModelConfig.from_transformers(transformers_config)
    check_form(source.name, transformers_config, bits, target)
    stored = quantised_precision(transformers_config)
    kept_bits = bits if stored is None else 8 if stored == "int8" else 4
    dtype = _choose_dtype(target, kept_bits, config) if dtype is None else _check_dtype(dtype, bits)
    shortest = plan_here(config, stored or planned_precision(bits, dtype), target)
    if stored and is_whole(folder):
        shortest = as_held(shortest, _fetched(source), dtype)
    device_map, beside = target, ()
    if device is None and target.type == "cuda" and kept_bits not in (4, 8):
        device_map, written = spread(transformers_config, dtype, free_memory())
        beside = (need_of_experts(lab_cache(), written),) if written else ()
        check_disk(source.name, *beside)
    elif not shortest.fits:
        raise MemoryError(does_not_fit(source.name, config, shortest))
    with _quiet() if source.name in BUNDLED else nullcontext():
        with out_of_memory_explained(source.name, config, shortest):
            folder, transformers_config, quantisation = _prepare(
                source, folder, transformers_config, bits, dtype, target, *beside
            )
        if stored and not (shortest := as_held(shortest, folder, dtype)).fits:
            raise MemoryError(does_not_fit(source.name, config, shortest))
        with out_of_memory_explained(source.name, config, shortest):
            with offload_folder(*beside) if beside else nullcontext() as place:
                model = _load_model(folder, transformers_config, dtype, device_map, quantisation, place)
                if place:
                    remove_with(model, place)
            tokenizer = _load_tokenizer(folder)
    if bits == 4:
        _check_four_bits(model, source.name)
    return Loaded(model, tokenizer, source.name, config)


def quantized_copy(
    name: str | os.PathLike | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
) -> Path:
    """Download a checkpoint in 16 bits and write it in four bits, once, without loading the model.

    On the device it needs room for one matrix at a time, and in memory for one file of the copy. So it makes the copy
    also where the whole model is too large for the device, as before `distributed.load_rank` spreads it over several.

    Args:
        name, revision: as in `load`, but of no bundled model, which is quantised as it is read.
        device: what quantises; a GPU takes minutes where a CPU takes half an hour. None as in `load`.
        dtype: of what is not quantised, and what a matrix is rounded to before. None as in `load(name, bits=4)`.

    Returns:
        the folder with the copy. It is the one that `load(name, bits=4)` makes and reads, and its path is a name for
        `load` and `load_rank`. Of a checkpoint that is quantised already it is that checkpoint's own folder.

    Raises:
        ValueError: a bundled model.
        Exception: what `load` raises for the other arguments, the download and the disk.
    """
    source = locate(_named(name), revision)
    if source.name in BUNDLED:
        raise ValueError(f"{source.name} is quantised as it is read and has no copy: use load({source.name!r}, bits=4)")
    target = _choose_device(device)
    with explained(source):
        folder = source.config_folder()
    transformers_config = read_config(folder)
    check_form(source.name, transformers_config, 4, target)
    config = ModelConfig.from_transformers(transformers_config)
    dtype = _choose_dtype(target, 4, config) if dtype is None else _check_dtype(dtype, 4)
    return _prepare(source, folder, transformers_config, 4, dtype, target)[0]


def _named(name):
    return os.environ.get("MISTRAL_LAB_MODEL") or DEFAULT_MODEL if name is None else name


def _choose_device(device) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device is {device!r}: expected 'cpu', 'cuda', 'cuda:1' or 'mps'") from None
    if device.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device is {str(device)!r}: expected 'cpu', 'cuda', 'cuda:1' or 'mps'")
    gpus = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= gpus:
        raise RuntimeError(
            f"device is {str(device)!r}, but PyTorch sees {gpus or 'no'} such GPU here: use device='cpu'"
        )
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _choose_dtype(device: torch.device, bits: int | None, config: ModelConfig) -> torch.dtype:
    if bits == 32:
        return torch.float32
    if bits == 8 or device.type == "mps":
        return torch.float16
    if device.type == "cuda":
        return dtype_of_card(device)
    small = bits is None and weight_bytes(config, "float32") <= SMALL_BYTES
    return torch.float32 if small else torch.bfloat16


def dtype_of_card(device: torch.device) -> torch.dtype:
    """The 16-bit dtype in which a CUDA card multiplies fast: bfloat16 from compute capability 8.0 on, else float16."""
    # Not `torch.cuda.is_bf16_supported()`: it is true on a T4 (7.5), which emulates bfloat16 slowly.
    return torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16


def _check_dtype(dtype, bits: int | None) -> torch.dtype:
    chosen = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if chosen not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"dtype is {dtype!r}: expected torch.float32, torch.bfloat16 or torch.float16, or its name")
    if bits in (16, 32) and chosen.itemsize * 8 != bits:
        raise ValueError(f"bits is {bits} and dtype is {dtype!r}: expected one of them, or two that agree")
    return chosen


def _prepare(source: Source, there: Path, config, bits: int | None, dtype: torch.dtype, device: torch.device, *beside):
    """The folder to read, its config, and how transformers is to quantise it on the way (None: not at all)."""
    if getattr(config, "quantization_config", None):
        # bitsandbytes takes a second that most calls need not spend.
        from ..four_bit import check_cpu, use_our_quantizer

        if use_our_quantizer(config) and device.type == "cpu":
            check_cpu()
        return _fetched(source), config, None
    if bits == 8:
        if getattr(config, "num_local_experts", None):
            raise NotImplementedError(
                f"{source.name} is a mixture of experts, and bits=8 would leave its experts in 16 bits: load it with "
                "bits=4 or bits=None"
            )
        return _fetched(source), config, BitsAndBytesConfig(load_in_8bit=True)
    if bits != 4:
        return _fetched(source, *beside), config, None
    from ..four_bit import check_cpu, nf4_config, quantized_folder

    if device.type == "cpu":
        check_cpu()
    shape = ModelConfig.from_transformers(config)
    if source.repo and not is_whole(there):
        offer_copy(source, shape)
    folder = _fetched(source, Need(lab_cache(), weight_bytes(shape, "nf4-double"), "for its copy in four bits"))
    if source.name in BUNDLED:
        return folder, config, nf4_config()
    name, commit = source.origin(folder)
    ready = quantized_folder(
        folder,
        weight_files(folder),
        cache=lab_cache(),
        name=name,
        revision=commit,
        dtype=dtype,
        device=device,
    )
    return ready, read_config(ready), None


def _fetched(source: Source, *beside: Need) -> Path:
    with explained(source):
        return source.folder(*beside)


def _check_four_bits(model: PreTrainedModel, name: str) -> None:
    from ..four_bit import audit

    report = audit(model)
    if not report.passed:
        raise RuntimeError(f"{name} was to be in 4 bits, but {report.verdict}; {instead(name)}")


def _load_model(folder: Path, config, dtype, device_map, quantisation, offload: Path | None) -> PreTrainedModel:
    model, report = AutoModelForCausalLM.from_pretrained(
        str(folder),
        config=config,
        dtype=dtype,
        device_map=device_map,
        offload_folder=offload,
        quantization_config=quantisation,
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    # transformers fills what a checkpoint lacks with random numbers and only warns.
    wrong = sorted(report["missing_keys"]) + sorted(name for name, *_ in report["mismatched_keys"])
    if wrong:
        raise OSError(
            f"{folder} lacks {len(wrong)} of the tensors that its config.json needs, or has them in another shape, "
            f"{wrong[0]} first: copy or download it again"
        )
    return model.eval()


def _load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises Exception itself
        reason = str(error).split("\n")[0]
        raise OSError(f"{folder} has no readable tokenizer ({reason}): expected tokenizer.json") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # Mistral ships none; attention never looks at padding
    return tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no warning inside; outside everything is as it was."""
    bars, level = transformers_logging.is_progress_bar_enabled(), logging.root.manager.disable
    transformers_logging.disable_progress_bar()
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
        if bars:
            transformers_logging.enable_progress_bar()
