"""What each of several devices holds, and what they receive, for the three ways to cut a model into pieces."""

from dataclasses import replace

from ..arguments import check_count
from ..config import ModelConfig
from .caches import kv_cache_bytes
from .weights import WeightBytes, weight_parts

SPLITS = ("layers", "experts", "tensors")


def split_evenly(count: int, parts: int) -> list[int]:
    """Cut a number of things into parts as equal as can be; the first parts hold one more.

    >>> split_evenly(8, 3)
    [3, 3, 2]
    """
    return [count // parts + (part < count % parts) for part in range(parts)]


def weights_by_device(
    config: ModelConfig, precision: str, *, devices: int, split: str | None
) -> list[dict[str, WeightBytes]]:
    """Say which bytes of `weight_parts` each device holds.

        layers   whole layers in a row, as transformers' `device_map="auto"` places them; the embedding with the first
                 device, the output layer and the last norm with the last
        experts  whole experts, as `mistral_lab.distributed` places them; all else is on every device
        tensors  an equal share of every matrix, as `DistributedConfig(tp_size=...)` of transformers places them; router
                 and norms are on every device

    Source: transformers 5.23.0, `base_model_tp_plan` of Mixtral, and `embedding_rowwise` and `colwise_gather_output`
    for the two ends.

    Args:
        precision: one of `PRECISIONS`.
        devices: how many; 1 takes the whole model.
        split: one of `SPLITS`; None where there is one device.

    Returns:
        for each device a dict with the keys of `weight_parts`.

    Raises:
        ValueError: a split that is not known, or that this model cannot be given to so many devices by; 4 or 8 bits
            split by tensors, of which transformers 5.23.0 cuts the codes and leaves the scales behind.

    >>> from mistral_lab.config import PRESETS
    >>> shares = weights_by_device(PRESETS["mixtral-8x7b-v0.1"], "nf4-double", devices=2, split="experts")
    >>> [round(sum(part.total for part in share.values()) / 2**30, 2) for share in shares]
    [11.97, 11.97]
    """
    _check(config, devices, split)
    whole = weight_parts(config, precision)
    if split == "tensors" and devices > 1 and precision not in ("float32", "bfloat16"):
        others = "'layers' or 'experts'" if config.num_experts and precision != "int8" else "'layers'"
        raise ValueError(
            f"split is 'tensors' and precision is {precision!r}: expected {others}, or precision 'bfloat16', because "
            "transformers 5.23.0 loses the scales of a quantised matrix that it cuts"
        )
    if devices == 1:
        return [whole]
    if split == "layers":
        return [_some_layers(config, precision, device, devices) for device in range(devices)]
    if split == "experts":
        owned = [
            replace(config, num_experts=n, num_experts_per_tok=1) for n in split_evenly(config.num_experts, devices)
        ]
        return [whole | {"feed_forward": weight_parts(share, precision)["feed_forward"]} for share in owned]
    share = weight_parts(_narrow(config, devices), precision)
    return [share | {part: whole[part] for part in ("router", "norms")}] * devices


def cache_by_device(
    config: ModelConfig, tokens: int, *, batch: int, bytes_per_value: int, devices: int, split: str | None
) -> list[int]:
    """Bytes of `kv_cache_bytes` on each device: a layer's lie where its attention is computed.

    Args:
        tokens, batch, bytes_per_value: as in `kv_cache_bytes`.
        devices, split: as in `weights_by_device`. With "experts" attention is on every device, so the cache is too.

    >>> from mistral_lab.config import PRESETS
    >>> asked = {"batch": 1, "bytes_per_value": 2, "devices": 2}
    >>> [cache_by_device(PRESETS["mixtral-8x7b-v0.1"], 8, split=s, **asked)[0] // 2**10 for s in SPLITS]
    [512, 1024, 512]
    """
    _check(config, devices, split)
    shares = [config] * devices
    if split == "layers":
        shares = [replace(config, n_layers=layers) for layers in split_evenly(config.n_layers, devices)]
    elif split == "tensors":
        shares = [replace(config, n_heads=config.n_heads // devices, n_kv_heads=config.n_kv_heads // devices)] * devices
    return [kv_cache_bytes(share, tokens, batch=batch, bytes_per_value=bytes_per_value) for share in shares]


def traffic_bytes(config: ModelConfig, *, devices: int, split: str | None, bytes_per_value: int = 2) -> int:
    """Bytes that all devices together receive for a token; a device receives one R-th of it on average.

    Equation, for R devices, L layers, d the width of the residual stream, A experts a token, V the vocabulary and b
    bytes a value:

        layers   (R - 1) · d·b                    the stream goes on to every device but the first
        experts  (R - 1) · L·A·d·b                each answer goes to every device but its own
        tensors  (R - 1) · ((2L + 1)·2d + V)·b    in a ring: all-reduces of the embedding, of attention and of the
                                                  feed-forward network of each layer; an all-gather of the logits

    Source: arXiv:1909.08053, section 3 (two sums a layer); Patarasu and Yuan, "Bandwidth optimal all-reduce algorithms
    for clusters of workstations", 2009 (the ring); `mistral_lab.distributed`, whose `Traffic` counts it, for experts.

    Args:
        devices, split: as in `weights_by_device`.
        bytes_per_value: 2 for bfloat16 and float16, 4 for float32.

    Returns:
        bytes of activations. What a program sends beside them, such as the angles of rotary positions that
        `device_map` hands to every layer, is not counted.

    >>> from mistral_lab.config import PRESETS
    >>> mixtral = PRESETS["mixtral-8x7b-v0.1"]
    >>> [traffic_bytes(mixtral, devices=2, split=split) // 2**10 for split in SPLITS]
    [8, 512, 1102]
    """
    _check(config, devices, split)
    check_count("bytes_per_value", bytes_per_value)
    if devices == 1:
        return 0
    values = {
        "layers": config.dim,
        "experts": config.n_layers * (config.num_experts_per_tok or 1) * config.dim,
        "tensors": (2 * config.n_layers + 1) * 2 * config.dim + config.vocab_size,
    }
    return (devices - 1) * values[split] * bytes_per_value


def _some_layers(config: ModelConfig, precision: str, device: int, devices: int) -> dict[str, WeightBytes]:
    layers = split_evenly(config.n_layers, devices)[device]
    parts = weight_parts(replace(config, n_layers=layers), precision)
    if device != 0:
        parts["embedding"] = WeightBytes()
    if device != devices - 1:
        last_norm = weight_parts(replace(config, n_layers=1), precision)["norms"].payload // 3  # a layer has two more
        parts["norms"] = WeightBytes(payload=parts["norms"].payload - last_norm)
        parts["lm_head"] = WeightBytes()
    elif config.tied_embeddings:
        parts["lm_head"] = weight_parts(replace(config, tied_embeddings=False), precision)["lm_head"]
    return parts


def _narrow(config: ModelConfig, devices: int) -> ModelConfig:
    """The model of which one device's matrices are the whole."""
    names = ("n_heads", "n_kv_heads", "hidden_dim", "vocab_size")
    return replace(config, **{name: getattr(config, name) // devices for name in names})


def _check(config: ModelConfig, devices: int, split: str | None) -> None:
    """Refuse what cannot be split so."""
    check_count("devices", devices)
    if split is None and devices == 1:
        return
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}: expected one of {', '.join(SPLITS)} for {devices} devices")
    if split == "experts":
        if config.num_experts is None:
            raise ValueError("split is 'experts', but the model is dense: expected 'layers' or 'tensors'")
        if devices > config.num_experts:
            raise ValueError(
                f"{devices} devices for {config.num_experts} experts: expected at most one for each expert"
            )
    if split == "layers" and devices > config.n_layers:
        raise ValueError(f"{devices} devices for {config.n_layers} layers: expected at most one for each layer")
    if split == "tensors":
        for name in ("n_kv_heads", "hidden_dim", "vocab_size"):
            if getattr(config, name) % devices:
                raise ValueError(f"{name} is {getattr(config, name)}: expected a multiple of the {devices} devices")
