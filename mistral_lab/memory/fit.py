"""What fits on a device: weights, cache and overhead one by one, and the nearest plan that fits where one does not."""

from collections.abc import Collection
from dataclasses import dataclass

from ..arguments import check_count
from ..config import PREFILL_CHUNK, ModelConfig
from .split import cache_by_device, weights_by_device
from .weights import BLOCK_SIZE, PRECISIONS, attention_shapes, check_precision, feed_forward_shapes

_MIB = 2**20
# Name: total bytes as nvidia-smi prints them; the first two do so on GitHub in ace-step/ACE-Step#344 and
# geerlingguy/raspberry-pi-pcie-devices#790. Of the RTX 4060 Ti's 16 GB the driver keeps 4 MiB back.
DEVICES = {
    "RTX 3070": 8_192 * _MIB,
    "RTX 3060 12GB": 12_288 * _MIB,
    "T4": 15_360 * _MIB,
    "RTX 4060 Ti 16GB": 16_380 * _MIB,
    "RTX 3090": 24_576 * _MIB,
    "RTX 4090": 24_564 * _MIB,
    "H100 80GB": 81_559 * _MIB,
    "A100 80GB": 81_920 * _MIB,
}
# What a process takes beside its tensors: the CUDA context, kernels, the workspace of cuBLAS. By the out-of-memory
# messages in github.com/3DTopia/Phidias-Diffusion/issues/8 and github.com/pinokiofactory/flux-webui/issues/11, both
# from an RTX 4090, this is 0.49 and 0.46 GiB. On a CPU, Python with PyTorch and transformers takes about as much.
RUNTIME_BYTES = 512 * _MIB


@dataclass(frozen=True)
class Plan:
    """What a model takes on a device, part by part, in bytes; `str()` is one line that says whether it fits.

    Weights, code tables and cache are exact. The workspace is an estimate from shapes, and the runtime is a constant.
    Where the model is split, the numbers are those of the fullest of the `devices`.
    """

    precision: str
    context: int
    batch: int
    device_bytes: int
    weights_bytes: int
    tables_bytes: int
    cache_bytes: int
    workspace_bytes: int
    runtime_bytes: int
    devices: int = 1
    split: str | None = None

    @property
    def overhead_bytes(self) -> int:
        """Everything that is neither weights nor cache: code tables, workspace and runtime."""
        return self.tables_bytes + self.workspace_bytes + self.runtime_bytes

    @property
    def total_bytes(self) -> int:
        """Weights, cache and overhead together."""
        return self.weights_bytes + self.cache_bytes + self.overhead_bytes

    @property
    def fits(self) -> bool:
        """Whether the device, or each of several, has that much memory."""
        return self.total_bytes <= self.device_bytes

    def __str__(self) -> str:
        sequences = "" if self.batch == 1 else f" in each of {self.batch} sequences"
        spread = "" if self.devices == 1 else f", {self.split} split over {self.devices} devices, on the fullest"
        parts = {"weights": self.weights_bytes, "cache": self.cache_bytes, "overhead": self.overhead_bytes}
        return (
            f"{self.precision}, {self.context:,} tokens{sequences}{spread}: "
            + " + ".join(f"{name} {size / 2**30:.2f}" for name, size in parts.items())
            + f" = {self.total_bytes / 2**30:.2f} GiB of {self.device_bytes / 2**30:.2f} GiB: "
            + ("fits" if self.fits else "does not fit")
        )


def plan(
    config: ModelConfig,
    *,
    precision: str,
    context: int,
    batch: int = 1,
    device_bytes: int,
    devices: int = 1,
    split: str | None = None,
) -> Plan:
    """Say how much memory a model takes at a context length, and whether a device, or each of several, has it.

    The weights are those of `weight_bytes`. The cache is that of `kv_cache_bytes`, in float32 with float32 weights and
    in 16 bits otherwise. It is what attention needs; `rolling_cache_bytes` counts what a `RollingCache` holds for it.
    The overhead is code tables, `workspace_bytes` and `RUNTIME_BYTES`. The prompt is assumed to be read in chunks of
    `PREFILL_CHUNK` tokens; a long prompt that is read at once needs more. Loading is not counted.

    Args:
        config: the shape of the model.
        precision: one of `PRECISIONS`.
        context: tokens, prompt and answer together.
        batch: sequences at once.
        device_bytes: the device's total memory. PyTorch can use some hundreds of MiB less than nvidia-smi prints (23.64
            of 23.99 GiB on an RTX 4090): where the margin is thin, give `torch.cuda.mem_get_info()[1]`.
        devices: the number of equal devices, each with `device_bytes`.
        split: how the model is spread over several devices: by "layers", by "experts" or, unquantised, by "tensors", as
            `weights_by_device` explains. The workspace on each is counted as that of the whole model, although a split
            by tensors needs less.

    Returns:
        a plan for the fullest device.

    Raises:
        TypeError, ValueError: a count below 1, an unknown precision or split, or one that this model does not allow.

    >>> from mistral_lab.config import PRESETS
    >>> mixtral, card = PRESETS["mixtral-8x7b-v0.1"], DEVICES["RTX 4090"]
    >>> [plan(mixtral, precision=p, context=4096, device_bytes=card).fits for p in ("nf4", "nf4-double")]
    [False, True]
    """
    for name, value in (("context", context), ("batch", batch), ("device_bytes", device_bytes)):
        check_count(name, value)
    spread = {"devices": devices, "split": split}
    value = {"batch": batch, "bytes_per_value": _bytes_per_value(precision)}
    held = [
        (sum(part.total for part in parts.values()), sum(part.tables for part in parts.values()), cache)
        for parts, cache in zip(
            weights_by_device(config, precision, **spread),
            cache_by_device(config, context, **value, **spread),
            strict=True,
        )
    ]
    weights, tables, cache = max(held, key=sum)
    return Plan(
        precision=precision,
        context=context,
        batch=batch,
        device_bytes=device_bytes,
        weights_bytes=weights,
        tables_bytes=tables,
        cache_bytes=cache,
        workspace_bytes=sum(workspace_bytes(config, precision, context, batch=batch).values()),
        runtime_bytes=RUNTIME_BYTES,
        devices=devices,
        split=split,
    )


def workspace_bytes(config: ModelConfig, precision: str, context: int, *, batch: int = 1) -> dict[str, int]:
    """Estimate the most that a forward pass holds beside weights and cache while it reads a chunk of the prompt.

    With C = min(context, 512) tokens in the chunk, S tokens that it may see, and b bytes per value:

        residual      batch · C · 4·dim · b: the residual stream, its norm, and the norm's float32
        mask          batch · C · S
        attention     batch · (C · 2·(H + K) + S · R) · D · b: queries, keys, values and output. R is 2·H, keys
                      and values again for every query head; where H = K, it is K, keys copied for a longer cache
        feed_forward  batch · C · 3·hidden_dim · b: gate, up and their product, in one network or one expert
        matrix        the largest quantised matrix written out in 16 bits, and its absmax in float32
        logits        batch · V · (b + 4): of the last position, and again in float32

    Attention and the feed-forward network run one after the other, so only the larger of the two counts; the matrix
    belongs to the latter. A mixture counts as if every token of the chunk went to the same expert. Attention scores are
    not counted, because PyTorch's scaled_dot_product_attention does not keep them.

    Source: the shapes in the Mistral of transformers 5.23.0; `_gemm_4bit_default_impl` of bitsandbytes 0.50.2, which
    writes the matrix out where no fused product is used: for many tokens, and on a CPU without AVX512_BF16.

    Args:
        config, precision, context, batch: as in `plan`.

    Returns:
        the bytes of each part that is held at the same time.

    Raises:
        TypeError, ValueError: a count below 1, or an unknown precision.

    >>> from mistral_lab.config import PRESETS
    >>> parts = workspace_bytes(PRESETS["mixtral-8x7b-v0.1"], "nf4-double", 4_096)
    >>> {part: round(size / 2**20, 1) for part, size in parts.items()}
    {'residual': 16.0, 'mask': 2.0, 'feed_forward': 42.0, 'matrix': 115.5, 'logits': 0.2}
    """
    check_precision(precision)
    for name, value in (("context", context), ("batch", batch)):
        check_count(name, value)
    H, K, D = config.n_heads, config.n_kv_heads, config.head_dim
    width = _bytes_per_value(precision)
    chunk = min(context, PREFILL_CHUNK)
    seen = context if config.sliding_window is None else min(context, config.sliding_window - 1 + chunk)
    copies = K if H == K else 2 * H
    attention = {"attention": batch * (chunk * 2 * (H + K) + seen * copies) * D * width}
    network = {"feed_forward": batch * chunk * 3 * config.hidden_dim * width}
    if precision not in ("float32", "bfloat16"):
        largest = max(rows * columns for rows, columns in attention_shapes(config) + feed_forward_shapes(config))
        network["matrix"] = 2 * largest + 4 * -(-largest // BLOCK_SIZE)
    return {
        "residual": batch * chunk * 4 * config.dim * width,
        "mask": batch * chunk * seen,
        **max(attention, network, key=lambda parts: sum(parts.values())),
        "logits": batch * config.vocab_size * (width + 4),
    }


def largest_context(config: ModelConfig, *, precision: str, batch: int = 1, device_bytes: int) -> int:
    """Find the most tokens at which a plan fits, up to what the checkpoint declares; 0 where not even one token fits.

    Args:
        config, precision, batch, device_bytes: as in `plan`.

    >>> from mistral_lab.config import PRESETS
    >>> largest_context(PRESETS["mistral-7b-v0.1"], precision="nf4-double", device_bytes=DEVICES["T4"])
    32768
    """

    def fits(context: int) -> bool:
        return plan(config, precision=precision, context=context, batch=batch, device_bytes=device_bytes).fits

    fitting, beyond = 0, config.max_positions + 1
    while beyond - fitting > 1:
        middle = (fitting + beyond) // 2
        fitting, beyond = (middle, beyond) if fits(middle) else (fitting, middle)
    return fitting


def nearest_fit(
    config: ModelConfig,
    *,
    precision: str,
    context: int,
    batch: int = 1,
    device_bytes: int,
    precisions: Collection[str] = PRECISIONS,
) -> Plan | None:
    """Find the plan to offer instead of one that does not fit.

    The first choice is the same context in fewer bits, as many as fit. If there is none, it is the longest context that
    fits in the fewest bits on offer.

    Args:
        config: the shape of the model.
        precision: what was wanted; nothing with more bits is offered.
        context, batch, device_bytes: as in `plan`.
        precisions: the precisions that may be offered.

    Returns:
        a plan that fits, or None where not even one token fits.

    >>> from mistral_lab.config import PRESETS
    >>> asked = {"precision": "bfloat16", "context": 4096, "device_bytes": DEVICES["RTX 4090"]}
    >>> print(nearest_fit(PRESETS["mixtral-8x7b-v0.1"], **asked))
    nf4-double, 4,096 tokens: weights 22.80 + cache 0.50 + overhead 0.67 = 23.97 GiB of 23.99 GiB: fits
    """
    check_precision(precision)
    device = {"batch": batch, "device_bytes": device_bytes}
    fewer = [other for other in PRECISIONS[PRECISIONS.index(precision) :] if other in precisions]
    for other in fewer:
        smaller = plan(config, precision=other, context=context, **device)
        if smaller.fits:
            return smaller
    shorter = largest_context(config, precision=fewer[-1], **device) if fewer else 0
    return plan(config, precision=fewer[-1], context=shorter, **device) if shorter else None


def _bytes_per_value(precision: str) -> int:
    """Bytes per value of activations and cache: float32 with float32 weights, otherwise 16 bits."""
    return 4 if precision == "float32" else 2
