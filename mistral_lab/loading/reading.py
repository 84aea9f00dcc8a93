"""The core that `load` and `distributed.load_rank` share: from a folder to a model that is all there, or to an error.

Weights come from safetensors files alone, no code of a checkpoint is run, and nothing goes to the network.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from ..files import read_header, weight_files
from .forms import instead


def read_model(
    folder: Path, config, *, dtype: torch.dtype, device_map, quantisation=None, offload: Path | None = None
) -> PreTrainedModel:
    """Read a model, ready to be called, with every tensor that it needs.

    Args:
        folder: with the whole checkpoint.
        config: of transformers.
        dtype: of the weights, or with 4 bits of the arithmetic.
        device_map: as `from_pretrained` of transformers takes it.
        quantisation: a quantisation config of transformers, for weights that are quantised while they are read. None:
            they stay as the files have them.
        offload: an empty folder for the layers that `device_map` puts on the disk.

    Raises:
        OSError: the files lack tensors, have them in another shape, or hold more experts than `config.json` says.
    """
    _check_experts(folder, config)
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


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read a tokenizer that can pad.

    Raises:
        OSError: there is none that can be read.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # tokenizers raises Exception itself
        reason = str(error).split("\n")[0]
        raise OSError(f"{folder} has no readable tokenizer ({reason}): expected tokenizer.json") from None
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # Mistral ships none; attention never looks at padding
    return tokenizer


def check_four_bits(model: PreTrainedModel, name: str) -> None:
    """Raise RuntimeError unless attention, feed-forward networks and experts of a model are in four bits.

    Args:
        name: of the model, for the message.
    """
    from ..four_bit import audit

    report = audit(model)
    if not report.passed:
        raise RuntimeError(f"{name} was to be in 4 bits, but {report.verdict}; {instead(name)}")


@contextmanager
def quiet() -> Iterator[None]:
    """Show no progress bar and no warning inside; outside, everything is as it was."""
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


def _check_experts(folder: Path, config) -> None:
    """Refuse experts that `config.json` does not know: transformers would leave them out with no more than a warning.

    A rank has no place for the experts of other ranks either, so its report of what was left out says nothing.
    """
    experts = getattr(config, "num_local_experts", None)
    if not experts:
        return
    for file in weight_files(folder):
        for name in sorted(read_header(file)):
            number = re.search(r"\.experts\.(\d+)\.", name)
            if number and int(number[1]) >= experts:
                raise OSError(
                    f"{folder} holds {name}, and its config.json knows of experts 0 to {experts - 1} alone: copy or "
                    "download it again"
                )
