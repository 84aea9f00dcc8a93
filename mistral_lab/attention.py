"""Attention as Mistral computes it: rotary positions, grouped queries, and a sliding window in chunks.

B batch, T queries, S keys, H query heads, K key and value heads, G = H/K query heads per group, D head_dim, W window.
"""

import math
from collections.abc import Iterator

import torch
from torch.nn import functional

from .arguments import check_count
from .masks import position_mask

# Queries per step of `windowed_attention`. The step computes the scores of QUERY_CHUNK queries with at most
# 2·QUERY_CHUNK keys more than their window holds.
QUERY_CHUNK = 128


def rotate(x: torch.Tensor, positions: torch.Tensor, *, theta: float) -> torch.Tensor:
    """Rotate pairs of values by an angle that grows with the position, so that q·k depends on the distance alone.

    Two layouts of the pairs are in use. **Halves**, here and in Hugging Face checkpoints: value i is paired with value
    i + D/2. **Interleaved**, in the paper and in Mistral's own checkpoints: value 2i is paired with value 2i + 1.
    One is the other with the D values reordered. Queries and keys that are reordered alike have the same products, so a
    checkpoint is converted by reordering the rows of its query and key weights. Weights of one layout with the rotation
    of the other raise no error, but the model writes nonsense.

    Equation: with a = position · theta^(-2i/D), (x[i], x[i + D/2]) becomes
        (x[i]·cos a - x[i + D/2]·sin a, x[i + D/2]·cos a + x[i]·sin a), for i = 0 ... D/2 - 1.
    Source: Su et al., "RoFormer", arXiv:2104.09864, section 3.2.2.

    Args:
        x: (B, T, H, D) queries or keys.
        positions: (T,), or (B, T) where the sequences of a batch start at different positions; whole numbers.
        theta: base of the frequencies, 1e4 in Mistral 7B v0.1, 1e6 in v0.3 and in Mixtral.

    Returns:
        (B, T, H, D) in the dtype of x; the angles are computed in float32 whatever that dtype is, as in transformers.

    Raises:
        ValueError: an odd D, positions of another shape, dtype or device, or theta not above zero.

    >>> x = torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2)  # one pair at positions 0, 1, 2: cos and sin of 0, 1, 2 radians
    >>> rotate(x, torch.arange(3), theta=1e4).flatten(1)
    tensor([[ 1.0000,  0.0000,  0.5403,  0.8415, -0.4161,  0.9093]])
    """
    if x.ndim != 4 or x.shape[-1] % 2 or not x.is_floating_point():
        raise ValueError(
            f"x has shape {tuple(x.shape)} in {x.dtype}: expected floating-point (B, T, H, D) with an even D"
        )
    B, T, _, D = x.shape
    if tuple(positions.shape) not in ((T,), (B, T)):
        raise ValueError(f"positions has shape {tuple(positions.shape)}: expected ({T},) or ({B}, {T})")
    if positions.is_floating_point() or positions.dtype == torch.bool or positions.device != x.device:
        raise ValueError(
            f"positions is {positions.dtype} on {positions.device}: expected whole numbers on {x.device}, where x is"
        )
    if not (math.isfinite(theta) and theta > 0):
        raise ValueError(f"theta is {theta}: expected a positive number")
    frequencies = 1.0 / theta ** (torch.arange(0, D, 2, dtype=torch.float32, device=x.device) / D)
    angles = (positions[..., None].float() * frequencies).unsqueeze(-2)  # ([B,] T, 1, D/2): the same for every head
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def grouped_query_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in which each key and value head serves a group of G = H/K query heads.

    Query head h reads key and value head h // G. Keys and values are never repeated: the G queries of a group stand
    beside each other in one product. K = H is multi-head attention, and K = 1 is multi-query attention.

    Equation: weights = softmax(q·k / √D over the keys that the mask lets through); out = weights · v.
    Source: Ainslie et al., "GQA", arXiv:2305.13245, section 2.2.

    Args:
        q: (B, T, H, D), rotated already.
        k, v: (B, S, K, D), with H a multiple of K.
        mask: bool, True where a query may attend; (T, S), or any shape that broadcasts to (B, H, T, S).

    Returns:
        out (B, T, H, D), and weights (B, H, T, S), of which each row sums to 1.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit, or a query that sees no key.

    >>> q, k = torch.zeros(1, 1, 2, 2), torch.zeros(1, 4, 1, 2)  # two query heads, one KV head, all scores equal
    >>> out, weights = grouped_query_attention(q, k, k + 5)
    >>> out.tolist(), weights[0, :, 0].tolist()
    ([[[[5.0, 5.0], [5.0, 5.0]]]], [[0.25, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, 0.25]])
    """
    _check_heads(q, k, v)
    (B, T, H, D), (S, K) = q.shape, k.shape[1:3]
    groups = (K, H // K)
    scores = torch.einsum("btkgd,bskd->bkgts", q.unflatten(2, groups), k).flatten(1, 2) / math.sqrt(D)  # (B, H, T, S)
    if mask is not None:
        _check_mask(mask, (B, H, T, S), q.device)
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(dim=-1)
    out = torch.einsum("bkgts,bskd->btkgd", weights.unflatten(1, groups), v).flatten(2, 3)
    return out, weights


def windowed_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, window: int | None) -> torch.Tensor:
    """Exact sliding-window attention whose time and memory grow with T·W, not with T².

    The queries are taken in chunks of C, each against the blocks of C keys that its window touches:

        C = 2, W = 3      keys  0 1 | 2 3 | 4 5
        queries 4, 5            . . | x x | x .    query 4 sees 2, 3, 4
                                . . | . x | x x    query 5 sees 3, 4, 5

    Counted from the first block, the picture is the same for every chunk. So one mask of C rows serves all chunks, and
    those at the start of the text take fewer of its columns. A mask of T² values is never made.

    Equation: `grouped_query_attention(q, k, v, sliding_window_mask(T, W))[0]`.
    Source: arXiv:2310.06825, section 2.
    Differs: `scaled_dot_product_attention` takes the window as a dense mask and computes every score it hides.

    Args:
        q: (B, T, H, D), rotated already.
        k, v: (B, T, K, D), with H a multiple of K.
        window: W, keys that a query sees, itself included; None, or T and more, gives causal attention.

    Returns:
        (B, T, H, D), differentiable.

    Raises:
        TypeError: window is neither None nor a whole number.
        ValueError: window below 1, or shapes, dtypes or devices that do not fit.

    >>> x = torch.randn(1, 5, 2, 4)
    >>> torch.equal(windowed_attention(x, x, x, window=1), x)  # each token sees itself alone: out is v
    True
    """
    _check_heads(q, k, v)
    if window is not None:
        check_count("window", window)
    if k.shape[1] != q.shape[1]:
        raise ValueError(f"k and v have {k.shape[1]} tokens: expected {q.shape[1]}, as many as q")
    recorded = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    chunks = _windowed_chunks(q, k, v, window, recorded)
    if recorded:
        return torch.cat(list(chunks), dim=1)
    out = torch.empty_like(q)  # written in place: a list of chunks and their concatenation would take twice the memory
    for place, chunk in zip(out.split(QUERY_CHUNK, dim=1), chunks, strict=True):
        place.copy_(chunk)
    return out


def _windowed_chunks(q, k, v, window: int | None, recorded: bool) -> Iterator[torch.Tensor]:
    """Yield what `windowed_attention` returns, C tokens at a time; `recorded` where gradients will be needed."""
    T, H, K = *q.shape[1:3], k.shape[2]
    group_size = H // K
    keys_back = T - 1 if window is None else min(window, T) - 1
    blocks_back = math.ceil(keys_back / QUERY_CHUNK)  # before the chunk's own block
    positions = torch.arange((blocks_back + 1) * QUERY_CHUNK, device=q.device)
    mask = position_mask(positions[-QUERY_CHUNK:], positions, window=window)
    mask = mask.repeat_interleave(group_size, dim=0)  # a row for each query of a group

    k_blocks, v_blocks = k.split(QUERY_CHUNK, dim=1), v.split(QUERY_CHUNK, dim=1)
    for index, chunk in enumerate(q.split(QUERY_CHUNK, dim=1)):
        first = max(0, index - blocks_back)
        if recorded:  # each slice of k would have a gradient as long as k; concatenated blocks do not
            keys, values = (torch.cat(blocks[first : index + 1], dim=1) for blocks in (k_blocks, v_blocks))
        else:
            keys, values = (x[:, first * QUERY_CHUNK : (index + 1) * QUERY_CHUNK] for x in (k, v))
        # (B, C, H, D) -> (B, K, C·G, D): the queries of a group are rows before the one head that they share.
        rows = chunk.unflatten(2, (K, group_size)).transpose(1, 2).flatten(2, 3)
        absent = (blocks_back - (index - first)) * QUERY_CHUNK  # columns of keys before the first token
        visible = mask[: rows.shape[2], absent : absent + keys.shape[1]]
        out = functional.scaled_dot_product_attention(
            rows, keys.transpose(1, 2), values.transpose(1, 2), attn_mask=visible
        )
        yield out.unflatten(2, (-1, group_size)).transpose(1, 2).flatten(2, 3)


def _check_heads(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    shapes = f"q has shape {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise ValueError(f"{shapes}: expected q (B, T, H, D) and k, v (B, S, K, D)")
    B, _, H, D = q.shape
    S, K = k.shape[1:3]
    if k.shape != v.shape or k.shape[0] != B or k.shape[3] != D:
        raise ValueError(f"{shapes}: expected k and v of one shape ({B}, S, K, {D})")
    if K == 0 or H % K:
        raise ValueError(f"{shapes}: expected H, here {H}, to be a multiple of K, here {K}")
    if S == 0 or D == 0:
        raise ValueError(f"{shapes}: expected at least one key to attend to, of at least one value")
    dtypes, devices = {q.dtype, k.dtype, v.dtype}, {q.device, k.device, v.device}
    if len(dtypes) > 1 or not q.is_floating_point():
        raise ValueError(f"q is {q.dtype}, k {k.dtype}, v {v.dtype}: expected one floating-point dtype")
    if len(devices) > 1:
        raise ValueError(f"q is on {q.device}, k on {k.device}, v on {v.device}: expected one device")


def _check_mask(mask: torch.Tensor, expected: tuple[int, int, int, int], device: torch.device) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"mask is {mask.dtype}: expected torch.bool, True where a query may attend")
    if mask.device != device:
        raise ValueError(f"mask is on {mask.device}: expected {device}, where q is")
    padded = (1,) * (4 - mask.ndim) + tuple(mask.shape)
    if len(padded) != 4 or any(size not in (1, whole) for size, whole in zip(padded, expected, strict=True)):
        raise ValueError(
            f"mask has shape {tuple(mask.shape)}: expected {expected[2:]}, or a shape that broadcasts to {expected}"
        )
    blind = ~mask.any(dim=-1)
    if blind.any():
        where = tuple(blind.nonzero()[0].tolist())
        raise ValueError(f"mask row {where} is all False: expected every query to see at least one key, itself say")
