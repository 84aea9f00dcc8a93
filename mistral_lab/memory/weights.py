"""Parameters by part, and the bytes that they take in every precision."""

from dataclasses import dataclass, fields

from ..config import ModelConfig

PRECISIONS = ("float32", "bfloat16", "int8", "nf4", "nf4-double")  # from the largest to the smallest
BLOCK_SIZE = 64  # weights that share one absmax; arXiv:2305.14314, section 3
NESTED_BLOCK_SIZE = 256  # absmax values that share one float32 in double quantisation; the same section


@dataclass(frozen=True)
class ParameterCounts:
    """The parameters of a model, part by part.

    Args:
        embedding: one row per piece of the vocabulary.
        lm_head: the output layer; 0 where it is the embedding matrix again.
        attention: the query, key, value and output matrices of all layers.
        feed_forward: the feed-forward networks of all layers; in a mixture, all experts.
        router: the matrices that choose among the experts; 0 in a dense model.
        norms: the weights of all norms.
        idle: those of `feed_forward` that belong to experts to which a token is not sent; 0 in a dense model.
    """

    embedding: int
    lm_head: int
    attention: int
    feed_forward: int
    router: int
    norms: int
    idle: int = 0

    @property
    def by_part(self) -> dict[str, int]:
        """The six parts and their parameters, for a table or a picture."""
        return {part.name: getattr(self, part.name) for part in fields(self) if part.name != "idle"}

    @property
    def total(self) -> int:
        """The parameters of all parts."""
        return sum(self.by_part.values())

    @property
    def active(self) -> int:
        """The parameters that one token goes through: of the experts, only those to which it is sent."""
        return self.total - self.idle


@dataclass(frozen=True)
class WeightBytes:
    """The bytes of some stored weights: the numbers themselves, the scales that belong to them, and fixed tables.

    Args:
        payload: the weights themselves, in however many bits.
        absmax: the scales, one per block (4 bits) or per row (8 bits).
        nested_absmax: in double quantisation, the scales of the scales, one for 256 of them.
        code_tables: bitsandbytes keeps the sixteen values, and the 256 values of quantised scales, beside every matrix.
        offsets: one float32 per matrix, which double quantisation subtracts from the scales before quantising them.
    """

    payload: int = 0
    absmax: int = 0
    nested_absmax: int = 0
    code_tables: int = 0
    offsets: int = 0

    @property
    def total(self) -> int:
        """Payload, absmax and nested absmax: what grows with the model and what `weight_bytes` counts."""
        return self.payload + self.absmax + self.nested_absmax

    @property
    def tables(self) -> int:
        """Code tables and offsets: 64 or 1,092 bytes per matrix, whatever its size."""
        return self.code_tables + self.offsets

    def __add__(self, other: "WeightBytes") -> "WeightBytes":
        return WeightBytes(*(getattr(self, part.name) + getattr(other, part.name) for part in fields(self)))

    def __mul__(self, times: int) -> "WeightBytes":
        return WeightBytes(*(getattr(self, part.name) * times for part in fields(self)))


def parameter_counts(config: ModelConfig) -> ParameterCounts:
    """Count the parameters of every part of a model.

    Source: arXiv:2401.04088, section 2.1, for the two meanings of "parameters" in a mixture of experts.

    Returns:
        the count of each part, with `total`, `active`, and `by_part` as a dict.

    >>> from mistral_lab.config import PRESETS
    >>> counts = parameter_counts(PRESETS["mixtral-8x7b-v0.1"])
    >>> counts.router, counts.total, counts.active
    (1048576, 46702792704, 12879925248)
    """
    experts = config.num_experts or 1
    idle_experts = experts - (config.num_experts_per_tok or 1)
    one_expert = sum(rows * columns for rows, columns in feed_forward_shapes(config))
    return ParameterCounts(
        embedding=config.vocab_size * config.dim,
        lm_head=0 if config.tied_embeddings else config.vocab_size * config.dim,
        attention=config.n_layers * sum(rows * columns for rows, columns in attention_shapes(config)),
        feed_forward=config.n_layers * experts * one_expert,
        router=config.n_layers * (config.num_experts or 0) * config.dim,
        norms=(2 * config.n_layers + 1) * config.dim,
        idle=config.n_layers * idle_experts * one_expert,
    )


def weight_parts(config: ModelConfig, precision: str) -> dict[str, WeightBytes]:
    """Count the bytes of every part of a model, by what they are for.

    The three quantised precisions quantise the matrices of attention and of every feed-forward network or expert, each
    matrix by itself. Embedding, output layer, router and norms stay in 16 bits. Payload and scales are

        int8        1 byte per weight, one float32 per row
        nf4         half a byte per weight, one float32 absmax per 64 weights
        nf4-double  half a byte per weight, one byte per 64 weights, one float32 per 256 of those bytes

    Source: arXiv:2305.14314, section 3 (NF4, double quantisation); arXiv:2208.07339, section 3.1 (int8, a scale per
    row); the `QuantState` of bitsandbytes 0.50.2 (tables and offsets).

    Args:
        config: the shape of the model.
        precision: "float32", "bfloat16" (any 16 bits), "int8", "nf4" or "nf4-double".

    Returns:
        a dict with the keys of `ParameterCounts.by_part`. It counts what bitsandbytes holds before the first forward
        pass; on a CPU that pass repacks the matrices.

    >>> from mistral_lab.config import PRESETS
    >>> parts = weight_parts(PRESETS["mixtral-8x7b-v0.1"], "nf4-double")
    >>> parts["feed_forward"].payload, parts["feed_forward"].absmax, parts["feed_forward"].nested_absmax
    (22548578304, 704643072, 11010048)
    """
    check_precision(precision)
    wide = 4 if precision == "float32" else 2
    parts = {part: WeightBytes(payload=wide * count) for part, count in parameter_counts(config).by_part.items()}
    if precision not in ("float32", "bfloat16"):
        for part, shapes, matrices in (
            ("attention", attention_shapes(config), config.n_layers),
            ("feed_forward", feed_forward_shapes(config), config.n_layers * (config.num_experts or 1)),
        ):
            parts[part] = sum((_quantised_matrix(*shape, precision) for shape in shapes), WeightBytes()) * matrices
    return parts


def weight_bytes(config: ModelConfig, precision: str) -> int:
    """Count the bytes of all weights: payload, absmax and nested absmax of every part.

    Code tables and offsets (about 1 KiB per matrix) are not counted, because they do not grow with the matrix.
    `weight_parts` gives both, and the source of each.

    Args:
        config: the shape of the model.
        precision: "float32", "bfloat16" (any 16 bits), "int8", "nf4" or "nf4-double".

    Returns:
        bytes; divide by 2**30 for GiB.

    >>> from mistral_lab.config import PRESETS
    >>> round(weight_bytes(PRESETS["mixtral-8x7b-v0.1"], "nf4-double") / 2**30, 2)
    22.8
    """
    return sum(part.total for part in weight_parts(config, precision).values())


def check_precision(precision: str) -> None:
    """Raise ValueError unless a precision is one of `PRECISIONS`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision is {precision!r}: expected one of {', '.join(PRECISIONS)}")


def attention_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of the query, key, value and output matrices of one layer."""
    queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    return [(queries, config.dim), (keys, config.dim), (keys, config.dim), (config.dim, queries)]


def feed_forward_shapes(config: ModelConfig) -> list[tuple[int, int]]:
    """Rows and columns of the gate, up and down matrices of one layer or one expert."""
    return [(config.hidden_dim, config.dim), (config.hidden_dim, config.dim), (config.dim, config.hidden_dim)]


def _quantised_matrix(rows: int, columns: int, precision: str) -> WeightBytes:
    """The bytes of one quantised matrix; its last block and its last byte may be partly filled."""
    weights = rows * columns
    if precision == "int8":
        return WeightBytes(payload=weights, absmax=4 * rows)
    blocks, payload = -(-weights // BLOCK_SIZE), -(-weights // 2)
    if precision == "nf4":
        return WeightBytes(payload=payload, absmax=4 * blocks, code_tables=4 * 16)
    nested = -(-blocks // NESTED_BLOCK_SIZE)
    return WeightBytes(payload, absmax=blocks, nested_absmax=4 * nested, code_tables=4 * (16 + 256), offsets=4)
