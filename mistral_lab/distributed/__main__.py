"""`torchrun --nproc_per_node 2 -m mistral_lab.distributed`: tiny-mixtral over the ranks, beside one process."""

import logging
import os
import sys

import torch
from torch import distributed
from transformers.utils import logging as transformers_logging

from ..config import ModelConfig
from ..memory import traffic_bytes, weights_by_device
from .traffic import Traffic

NAME = "tiny-mixtral"


@torch.no_grad()
def main() -> None:
    """Print whether the logits are equal, and beside the predictions what each rank holds and receives."""
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # at import it reports an optional package as missing
    from ..four_bit import audit, nf4_config
    from .loader import load_rank

    try:
        model = load_rank(NAME)
    except (OSError, RuntimeError, ValueError) as error:
        # Every rank says it: `torchrun` ends the others as soon as one has failed, whichever that is.
        sys.exit(f"rank {os.environ['RANK']}: {error}" if "RANK" in os.environ else f"error: {error}")
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    held = audit(model).nbytes
    tokens = torch.arange(3, 67, device=model.device)[None]
    with Traffic() as traffic:
        logits = model(tokens).logits
    whole = type(model).from_pretrained(
        model.name_or_path, dtype=model.dtype, device_map=model.device, quantization_config=nf4_config()
    )
    held_by_one = audit(whole).nbytes  # before the first forward, which on some CPUs adds scales
    equal = torch.equal(logits, whole.eval()(tokens).logits)
    reports = [None] * ranks
    distributed.all_gather_object(reports, (equal, held, sum(traffic.received_bytes.values())))
    if rank == 0:
        config = ModelConfig.from_pretrained(NAME)
        shares = weights_by_device(config, "nf4-double", devices=ranks, split="experts")
        print(f"{NAME} in 4 bits, whole experts per rank; one process holds {held_by_one:,} bytes")
        for number, (same, size, received) in enumerate(reports):
            predicted = sum(part.total for part in shares[number].values())
            print(
                f"rank {number}: logits equal to one process's, bit for bit: {same}; holds {size:,} bytes "
                f"(predicted {predicted:,}), received {received:,} for {tokens.numel()} tokens"
            )
        received = sum(received for _, _, received in reports)
        per_token = traffic_bytes(config, devices=ranks, split="experts", bytes_per_value=model.dtype.itemsize)
        predicted = tokens.numel() * per_token
        print(f"all ranks received {received:,} bytes (predicted {predicted:,})")
    distributed.destroy_process_group()
    if not equal:
        sys.exit(1)


if __name__ == "__main__":
    main()
