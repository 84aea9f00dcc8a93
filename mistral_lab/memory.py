"""Bytes from arithmetic: parameters by part, weights by precision, and the cache that grows with the text."""

from .config import ModelConfig

PRECISIONS = ("float32", "bfloat16", "int8", "nf4", "nf4-double")
BLOCK_SIZE = 64  # weights that share one absmax; arXiv:2305.14314, section 3
NESTED_BLOCK_SIZE = 256  # absmax values that share one float32, where the absmax values are quantised too; the same


class ParameterCounts(dict[str, int]):
    """Parameters by part: embedding, lm_head, attention, feed_forward, router, norms.

    `total` adds the parts up. `active` counts what one token goes through: of the experts, only those it is sent to.
    """

    def __init__(self, parts: dict[str, int], *, idle: int) -> None:
        super().__init__(parts)
        self.total = sum(parts.values())
        self.active = self.total - idle


def parameter_counts(config: ModelConfig) -> ParameterCounts:
    """Count the parameters of every part.

    Source: arXiv:2401.04088, section 2.1, for the two meanings of "parameters" in a mixture of experts.

    Returns:
        a dict, part to number, with `.total` and `.active`. "lm_head" is 0 where it is the embedding matrix again.
        "feed_forward" holds the experts of a mixture, "router" the matrix that chooses among them.

    >>> from mistral_lab.config import PRESETS
    >>> counts = parameter_counts(PRESETS["mixtral-8x7b-v0.1"])
    >>> counts["router"], counts.total, counts.active
    (1048576, 46702792704, 12879925248)
    """
    experts = config.num_experts or 1
    idle_experts = experts - (config.num_experts_per_tok or 1)
    one_expert = sum(rows * columns for rows, columns in _feed_forward(config))
    parts = {
        "embedding": config.vocab_size * config.dim,
        "lm_head": 0 if config.tied_embeddings else config.vocab_size * config.dim,
        "attention": config.n_layers * sum(rows * columns for rows, columns in _attention(config)),
        "feed_forward": config.n_layers * experts * one_expert,
        "router": config.n_layers * (config.num_experts or 0) * config.dim,
        "norms": (2 * config.n_layers + 1) * config.dim,
    }
    return ParameterCounts(parts, idle=config.n_layers * idle_experts * one_expert)


def weight_bytes(config: ModelConfig, precision: str) -> int:
    """Bytes of all weights at rest.

    The three quantised precisions quantise the matrices of attention and of every feed-forward network or expert, each
    matrix by itself; embedding, output layer, router and norms stay in 16 bits. Counted are the payload and the scales:

        int8        1 byte a weight, a float32 a row
        nf4         half a byte a weight, a float32 absmax for 64 weights
        nf4-double  half a byte a weight, a byte for 64 weights, a float32 for 256 of those bytes

    Not counted are code tables and offsets (about 1 KiB a matrix): they do not grow with the matrix.

    Source: arXiv:2305.14314, section 3 (NF4, double quantisation); arXiv:2208.07339, section 3.1 (int8, a scale a row).

    Args:
        precision: "float32", "bfloat16" (any 16 bits), "int8", "nf4" or "nf4-double".

    Returns:
        bytes; divide by 2**30 for GiB.

    >>> from mistral_lab.config import PRESETS
    >>> round(weight_bytes(PRESETS["mixtral-8x7b-v0.1"], "nf4-double") / 2**30, 2)
    22.8
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}: expected one of {', '.join(PRECISIONS)}")
    counts = parameter_counts(config)
    if precision in ("float32", "bfloat16"):
        return counts.total * (4 if precision == "float32" else 2)
    kept = counts["embedding"] + counts["lm_head"] + counts["router"] + counts["norms"]
    layer = sum(_matrix_bytes(*shape, precision) for shape in _attention(config))
    layer += (config.num_experts or 1) * sum(_matrix_bytes(*shape, precision) for shape in _feed_forward(config))
    return 2 * kept + config.n_layers * layer


def kv_cache_bytes(config: ModelConfig, tokens: int, *, batch: int = 1, bytes_per_value: int = 2) -> int:
    """Bytes of the keys and values that attention keeps for a text.

    Equation: 2 · L · K · D · min(tokens, W) · batch · bytes_per_value

    A sliding window caps it: keys further back than W can never be seen again.

    Source: arXiv:2310.06825, section 2 (rolling buffer cache).

    Args:
        tokens: tokens so far, prompt included.
        batch: sequences at once.
        bytes_per_value: 2 for bfloat16 and float16, 4 for float32.

    >>> from mistral_lab.config import PRESETS
    >>> mistral = PRESETS["mistral-7b-v0.1"]  # a window of 4,096
    >>> [kv_cache_bytes(mistral, tokens) // 2**20 for tokens in (8, 4_096, 32_768)]
    [1, 512, 512]
    """
    for name, value in (("tokens", tokens), ("batch", batch), ("bytes_per_value", bytes_per_value)):
        if value < 0:
            raise ValueError(f"{name} is {value}: expected 0 or more")
    kept = tokens if config.sliding_window is None else min(tokens, config.sliding_window)
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * kept * batch * bytes_per_value


def _attention(config: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of the query, key, value and output matrices of a layer."""
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return [(queries, config.dim), (keys, config.dim), (keys, config.dim), (config.dim, queries)]


def _feed_forward(config: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of the gate, up and down matrices of a layer, or of one expert."""
    return [(config.hidden_dim, config.dim), (config.hidden_dim, config.dim), (config.dim, config.hidden_dim)]


def _matrix_bytes(rows: int, columns: int, precision: str) -> int:
    weights = rows * columns
    if precision == "int8":
        return weights + 4 * rows
    blocks = -(-weights // BLOCK_SIZE)
    payload = -(-weights // 2)
    if precision == "nf4":
        return payload + 4 * blocks
    return payload + blocks + 4 * -(-blocks // NESTED_BLOCK_SIZE)
