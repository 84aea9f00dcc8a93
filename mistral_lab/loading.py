"""One call from a name to a model that answers: bundled, local or from the hub; device, dtype and bits."""

import gc
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from ._checkpoints import BUNDLED, Source, locate, weight_files
from ._files import Need, lab_cache
from ._generation import Printer, check_prompt, check_sampling
from .config import ModelConfig, read_config
from .memory import PRECISIONS, PREFILL_CHUNK, RUNTIME_BYTES, Plan, nearest_fit, plan, weight_bytes

DEFAULT_MODEL = "tiny-mistral"
SHORT_CONTEXT = 512  # tokens with which a model must fit to be loaded
SMALL_BYTES = 2**30  # on a CPU, weights up to this size in float32 are kept in float32


@dataclass(frozen=True)
class Loaded:
    """A model with its tokenizer, the name it was loaded by, and its shape."""

    model: PreTrainedModel = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    name: str
    config: ModelConfig

    def generate_text(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 100,
        temperature: float = 0.7,
        top_p: float = 0.9,
        seed: int | None = None,
        stream: bool = False,
    ) -> str:
        """Continue a prompt with `generate` of transformers, `top_k=0`: temperature and top-p alone shape the choice.

        Args:
            prompt: text; the tokenizer puts its start token in front.
            max_new_tokens: most tokens to add; the model's end token stops earlier.
            temperature: divides the logits; 0 takes the likeliest token each time, and `top_p` then plays no part.
            top_p: the least probability that the candidates must reach together, in (0, 1]; 1 keeps every token.
            seed: the same seed gives the same text; PyTorch's random state (CPU and CUDA) is put back afterwards. None
                draws from that state.
            stream: print the text as it comes; a character that takes several tokens is printed when it is whole.

        Returns:
            the prompt and its continuation, without special tokens: what is streamed, but for the last line break.
            Where `max_new_tokens` cuts a character in two, the text ends in U+FFFD, as that of `generate` does.

        Raises:
            TypeError, ValueError: an argument outside its range.

        Differs: left to itself, `generate` also cuts to the 50 likeliest tokens.

        >>> load("tiny-mistral").generate_text("My favourite condiment is", max_new_tokens=1, seed=0)[:25]
        'My favourite condiment is'
        """
        check_prompt(prompt)
        check_sampling(max_new_tokens, temperature, top_p, seed)
        inputs = self.tokenizer(prompt, return_tensors="pt").to(self.model.device)
        choice = {"do_sample": False}
        if temperature > 0:
            choice = {"do_sample": True, "temperature": float(temperature), "top_p": float(top_p), "top_k": 0}
        with nullcontext() if seed is None else torch.random.fork_rng(range(torch.cuda.device_count())):
            if seed is not None:
                torch.manual_seed(seed)
            tokens = self.model.generate(
                inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=max_new_tokens,
                pad_token_id=self.tokenizer.pad_token_id,
                prefill_chunk_size=PREFILL_CHUNK if inputs["input_ids"].shape[1] > PREFILL_CHUNK else None,
                streamer=Printer(self.tokenizer) if stream else None,
                **choice,
            )
        return self.tokenizer.decode(tokens[0], skip_special_tokens=True)


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
    nothing goes to the network.

    Args:
        name: "tiny-mistral" or "tiny-mixtral", which are in the package; "mistral-7b-v0.1", "mistral-7b-v0.3",
            "mistral-7b-instruct-v0.1", "mixtral-8x7b-v0.1" or "mixtral-8x7b-instruct-v0.1", each at one commit of the
            hub; a folder; or a hub id "owner/name". None is what the environment variable MISTRAL_LAB_MODEL names, or
            else "tiny-mistral".
        bits: 4 is NF4 with double quantisation, experts included. It is made once and kept: in the folder that the
            environment variable MISTRAL_LAB_CACHE names, or else `mistral_lab` beside the hub's downloads. 8 is
            LLM.int8(), for a dense model. 16 and 32 are unquantised, as None is, which chooses between them.
        device: "cpu", "cuda", "cuda:1" or "mps". None is CUDA where there is a GPU (an unquantised model is spread over
            all of them, and over the CPU and the disk where they are too small), otherwise the CPU.
        dtype: of the weights, or with 4 bits of the arithmetic. None is, on a GPU, bfloat16 from compute capability 8.0
            on and float16 below; on a CPU, float32 up to 1 GiB of weights, bfloat16 beyond that and with 4 bits. With 8
            bits it is float16, in which LLM.int8() multiplies.
        revision: branch, tag or commit on the hub. None is the commit that goes with a known name, otherwise "main".

    Raises:
        FileNotFoundError: no such folder, repository or revision, or no config or safetensors in it.
        PermissionError, ConnectionError: the hub wants a token, or is out of reach.
        MemoryError: the device is too small, said before anything is downloaded, or memory ran out.
        OSError: too small a disk, said before anything is downloaded; a truncated, damaged or incomplete checkpoint.
        RuntimeError: a GPU where there is none; four bits on a CPU without AVX2, or that did not come out as four bits.
        NotImplementedError: a mixture of experts with `bits=8`.
        TypeError, ValueError: any other argument that means nothing.

    >>> load("tiny-mixtral").config.num_experts
    8
    """
    if bits not in (None, 4, 8, 16, 32):
        raise ValueError(f"bits is {bits!r}: expected 4, 8, 16, 32 or None")
    if name is None:
        name = os.environ.get("MISTRAL_LAB_MODEL") or DEFAULT_MODEL
    source = locate(name, revision)
    target = _choose_device(device)
    transformers_config = read_config(source.config_folder())
    config = ModelConfig.from_transformers(transformers_config)
    dtype = _choose_dtype(target, bits, config) if dtype is None else _check_dtype(dtype, bits)
    spread = device is None and target.type == "cuda" and bits in (None, 16, 32)
    shortest = _plan(config, _precision(transformers_config, bits, dtype), target)
    if not (spread or shortest.fits):
        raise MemoryError(_does_not_fit(source.name, config, shortest))
    with _quiet() if source.name in BUNDLED else nullcontext(), _memory(source.name, config, shortest):
        folder, transformers_config, quantisation = _prepare(source, transformers_config, bits, dtype, target)
        model = _load_model(folder, transformers_config, dtype, "auto" if spread else target, quantisation)
        tokenizer = _load_tokenizer(folder)
    if bits == 4:
        _check_four_bits(model, source.name)
    return Loaded(model, tokenizer, source.name, config)


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


def _prepare(source: Source, config, bits: int | None, dtype: torch.dtype, device: torch.device):
    """The folder to read, its config, and how transformers is to quantise it on the way (None: not at all)."""
    mixture = bool(getattr(config, "num_local_experts", None))
    if getattr(config, "quantization_config", None):
        from .four_bit import adopt  # imports bitsandbytes, which takes a second that most calls need not spend

        if bits not in (None, 4):
            raise ValueError(f"{source.name} is quantised already: load it with bits=None")
        if mixture and not adopt(config):
            raise ValueError(
                f"{source.name} is quantised in a way that this lab does not read for a mixture of experts: expected "
                "NF4 of bitsandbytes, or a checkpoint in 16 bits"
            )
        return source.folder(), config, None
    if bits == 8:
        if mixture:
            raise NotImplementedError(
                f"{source.name} is a mixture of experts, and bits=8 would leave its experts in 16 bits: load it with "
                "bits=4 or bits=None"
            )
        return source.folder(), config, BitsAndBytesConfig(load_in_8bit=True)
    if bits != 4:
        return source.folder(), config, None
    from .four_bit import check_cpu, nf4_config, quantized_folder

    if device.type == "cpu":
        check_cpu()
    copy_bytes = weight_bytes(ModelConfig.from_transformers(config), "nf4-double")
    folder = source.folder(Need(lab_cache(), copy_bytes, "for its copy in four bits"))
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


def _check_four_bits(model: PreTrainedModel, name: str) -> None:
    from .four_bit import audit

    report = audit(model)
    if not report.passed:
        raise RuntimeError(f"{name} was to be in 4 bits, but {report.verdict}")


def _precision(transformers_config, bits: int | None, dtype: torch.dtype) -> str:
    """The name that `memory` has for what will be loaded."""
    if bits == 8:
        return "int8"
    if bits == 4 or getattr(transformers_config, "quantization_config", None):
        return "nf4-double"
    return "float32" if dtype == torch.float32 else "bfloat16"


def _plan(config: ModelConfig, precision: str, device: torch.device) -> Plan:
    """What the model takes with a short text, beside what a card has in all or a computer has free."""
    if device.type == "cuda":
        room = torch.cuda.mem_get_info(device)[1]
    else:  # the plan counts a process with its libraries, and this one is running already
        room = psutil.virtual_memory().available + min(psutil.Process().memory_info().rss, RUNTIME_BYTES)
    context = min(SHORT_CONTEXT, config.max_positions)
    return plan(config, precision=precision, context=context, device_bytes=room)


def _does_not_fit(name: str, config: ModelConfig, asked: Plan) -> str:
    other = nearest_fit(
        config,
        precision=asked.precision,
        context=asked.context,
        device_bytes=asked.device_bytes,
        precisions=[precision for precision in PRECISIONS if not (config.num_experts and precision == "int8")],
    )
    offer = f"the nearest that does is {other}" if other else "at no precision does it: choose a smaller model"
    return f"{name} does not fit this device ({asked}); {offer}"


@contextmanager
def _memory(name: str, config: ModelConfig, asked: Plan) -> Iterator[None]:
    """Turn running out of memory into one MemoryError with the plan, and give back what was taken."""
    try:
        yield
        return
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        ran_out = isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)
        if not ran_out:  # PyTorch's error on a CPU is a plain RuntimeError with those words
            raise
        # The traceback holds the half-loaded model; it is dropped before memory is given back.
        error.__traceback__ = None
    gc.collect()
    torch.cuda.empty_cache()
    taken = "other programs, or this one, hold the rest" if asked.fits else _does_not_fit(name, config, asked)
    raise MemoryError(f"{name} ran out of memory while it was loaded ({asked}); {taken}")


def _load_model(folder: Path, config, dtype: torch.dtype, device_map, quantisation) -> PreTrainedModel:
    model, report = AutoModelForCausalLM.from_pretrained(
        str(folder),
        config=config,
        dtype=dtype,
        device_map=device_map,
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
