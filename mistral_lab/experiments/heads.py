"""What lesson 2 measures of attention for one new token: what it copies, and how long it takes.

H query heads read K key and value heads; one new token asks over S tokens of text. `attend` is always a function of
q (B, H, T, D), k and v (B, K, S, D), heads first as caches keep them, and a mask (T, S); it returns (B, H, T, D).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.mistral.modeling_mistral import repeat_kv

from ..measure import peak_bytes, time_in_turns
from .plugged_in import Attend

HEAD_DIM = 128  # of Mistral 7B
QUERY_HEADS = 32
LAYERS = 2  # caches that are read in turn, as the layers of a model are: together larger than a processor's own cache


def repeat_and_attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend as many implementations do: copy each KV head once for every query head of its group, then attend.

    Source: `repeat_kv` in transformers, and its "eager" attention.
    """
    copies = q.shape[1] // k.shape[1]
    return scaled_dot_product_attention(q, repeat_kv(k, copies), repeat_kv(v, copies), attn_mask=mask)


def in_rows(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Attend by two products, with the queries of a group as rows; for one new token, which sees the whole text."""
    rows = _as_rows(q, k)
    return ((rows @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1) @ v).reshape(q.shape)


def extra_memory(attend: Attend, *, n_kv_heads: int = 8, tokens: int = 8192) -> float:
    """Measure the memory that `attend` takes at its peak for one new token, as a multiple of the keys' and values'.

    It is called once, on the CPU in float32. Copies of keys and values for groups of four take 4 times their memory.

    Args:
        n_kv_heads, tokens: K and S.
    """
    q, [(k, v)] = _cache(n_kv_heads, tokens, torch.float32, layers=1)
    mask = torch.ones(1, tokens, dtype=torch.bool)
    before = peak_bytes(lambda: None)
    return max(0, peak_bytes(lambda: attend(q, k, v, mask)) - before) / (k.nbytes + v.nbytes)


@dataclass(frozen=True)
class WayTimes:
    """Seconds that one layer's attention takes for one new token, each way in every round.

    Args:
        runs_s: way -> (rounds,).
        read_s: (rounds,), for reading the same keys and values once and doing nothing else, in the same rounds.
        faults: way -> pages that the operating system had to hand out during one call; empty where it does not say.
        nbytes: of the keys and values of one layer.
        dtype: of everything.
    """

    runs_s: dict[str, np.ndarray]
    read_s: np.ndarray
    faults: dict[str, int]
    nbytes: int
    dtype: str

    @property
    def floor_s(self) -> float:
        """The fastest that the keys and values were read: no way that reads them all can take less."""
        return float(self.read_s.min())

    @property
    def bytes_per_s(self) -> float:
        """How fast memory was read when the floor was measured."""
        return self.nbytes / self.floor_s

    def median_s(self, way: str) -> float:
        """The median of a way's rounds."""
        return float(np.median(self.runs_s[way]))

    def ratio(self, way: str, other: str) -> float:
        """How many times as long one way took as another, the median over rounds, so that a slow round cancels out."""
        return float(np.median(self.runs_s[way] / self.runs_s[other]))


def time_ways(
    attend: Attend,
    *,
    dtype: str = "bfloat16",
    n_kv_heads: int = 8,
    tokens: int = 4096,
    rounds: int = 7,
    seed: int = 0,
) -> WayTimes:
    """Time five ways of attention for one new token on the CPU, and the reading of its keys and values alone.

    All take turns in every round, on the caches of several layers one after another, as a model's layers are read. Each
    round starts with another way, and the first round only warms up.

    The ways: "copies, fresh memory" (`repeat_and_attend`), "copies, kept memory" (the same into memory that is there
    already), "no copies: enable_gqa" (PyTorch's own), "group as rows" (PyTorch's kernel, given the queries of a group
    as the rows of one head) and "yours".

    Args:
        attend: the reader's way.
        dtype: "bfloat16", in which the large models compute, or "float32".
        n_kv_heads, tokens: K and S; H is 32 and D 128, as in Mistral 7B.
        rounds: that are kept.
        seed: of the queries, keys and values.
    """
    q, layers = _cache(n_kv_heads, tokens, getattr(torch, dtype), layers=LAYERS, seed=seed)
    mask = torch.ones(1, tokens, dtype=torch.bool)
    kept = [torch.empty(1, n_kv_heads, QUERY_HEADS // n_kv_heads, tokens, HEAD_DIM, dtype=q.dtype) for _ in range(2)]

    def into_kept(q, k, v):
        for room, part in zip(kept, (k, v), strict=True):
            room.copy_(part[:, :, None].expand_as(room))
        return scaled_dot_product_attention(q, *(room.flatten(1, 2) for room in kept))

    ways = {
        "copies, fresh memory": repeat_and_attend,
        "copies, kept memory": into_kept,
        "no copies: enable_gqa": lambda q, k, v: scaled_dot_product_attention(q, k, v, enable_gqa=True),
        "group as rows": lambda q, k, v: scaled_dot_product_attention(_as_rows(q, k), k, v).reshape(q.shape),
        "yours": lambda q, k, v: attend(q, k, v, mask),
    }
    calls = {name: _over(layers, way, q) for name, way in ways.items()}
    calls["read"] = _over(layers, _read, q)
    runs_s = {name: np.array(timing.runs_s) / LAYERS for name, timing in time_in_turns(calls, repeats=rounds).items()}
    faults = {name: _page_faults(lambda way=way: way(q, *layers[0])) for name, way in ways.items()}
    return WayTimes(
        read_s=runs_s.pop("read"),
        runs_s=runs_s,
        faults={name: count for name, count in faults.items() if count is not None},
        nbytes=2 * layers[0][0].nbytes,
        dtype=dtype,
    )


@dataclass(frozen=True)
class RowTimes:
    """Seconds of PyTorch's attention in one layer, with several queries per KV head as rows of one product.

    Args:
        rows: (n,) queries for each of eight KV heads.
        runs_s: (n, rounds).
        head_by_head_s: (rounds,), for 32 query heads over the same eight KV heads with `enable_gqa=True`.
        unshared_s: (rounds,), for 32 query heads over 32 KV heads, where nothing is shared.
    """

    rows: tuple[int, ...]
    runs_s: np.ndarray
    head_by_head_s: np.ndarray
    unshared_s: np.ndarray

    def median_s(self, rows: int) -> float:
        """The median over the rounds for one number of rows."""
        return float(np.median(self.runs_s[self.rows.index(rows)]))


def time_rows(
    rows: Sequence[int] = (1, 2, 4, 8), *, dtype: str = "bfloat16", tokens: int = 4096, rounds: int = 7
) -> RowTimes:
    """Time PyTorch's attention on the CPU with 1, 2, 4 ... queries as rows, and head by head.

    All take turns in every round: the rows and the 32 query heads one by one over the same eight KV heads, and as a
    control 32 query heads with a KV head each.
    """
    q, shared = _cache(8, tokens, getattr(torch, dtype), layers=LAYERS)
    _, unshared = _cache(QUERY_HEADS, tokens, q.dtype, layers=LAYERS)
    queries = {count: torch.randn(1, 8, count, HEAD_DIM).to(q.dtype) for count in rows}
    calls = {count: _over(shared, scaled_dot_product_attention, some) for count, some in queries.items()}
    calls["shared"] = _over(shared, lambda *qkv: scaled_dot_product_attention(*qkv, enable_gqa=True), q)
    calls["unshared"] = _over(unshared, scaled_dot_product_attention, q)
    runs_s = {name: np.array(timing.runs_s) / LAYERS for name, timing in time_in_turns(calls, repeats=rounds).items()}
    head_by_head_s, unshared_s = runs_s.pop("shared"), runs_s.pop("unshared")
    return RowTimes(tuple(rows), np.array(list(runs_s.values())), head_by_head_s, unshared_s)


@dataclass(frozen=True)
class HeadTimes:
    """Seconds of one layer's attention for one new token, for several numbers of KV heads.

    Args:
        n_kv_heads: (n,).
        runs_s: (n, rounds), by the reader's way.
        read_s: (n, rounds), reading the same keys and values, in the same rounds.
        dtype: of everything.
    """

    n_kv_heads: tuple[int, ...]
    runs_s: np.ndarray
    read_s: np.ndarray
    dtype: str

    @property
    def median_s(self) -> np.ndarray:
        """(n,) over the rounds."""
        return np.median(self.runs_s, axis=1)

    @property
    def floor_s(self) -> np.ndarray:
        """(n,) the fastest that the keys and values were read."""
        return self.read_s.min(axis=1)

    def ratio(self, one: int, other: int) -> float:
        """How many times as long one number of KV heads took as another, the median over rounds."""
        first, second = (self.runs_s[self.n_kv_heads.index(count)] for count in (one, other))
        return float(np.median(first / second))


def time_heads(
    attend: Attend,
    n_kv_heads: Sequence[int] = (32, 16, 8, 4, 2, 1),
    *,
    dtype: str = "bfloat16",
    tokens: int = 4096,
    rounds: int = 7,
) -> HeadTimes:
    """Time one way of attention for one new token on the CPU, with fewer and fewer KV heads under 32 query heads.

    All numbers of heads take turns in every round, each with keys and values of its own, so that they come from memory
    and not from the processor's cache.
    """
    mask = torch.ones(1, tokens, dtype=torch.bool)
    caches = {count: _cache(count, tokens, getattr(torch, dtype), layers=LAYERS) for count in n_kv_heads}
    # All are attended to before any is read: right after its attention a small cache would still be in the processor.
    calls = {
        ("attend", count): _over(layers, lambda q, k, v: attend(q, k, v, mask), q)
        for count, (q, layers) in caches.items()
    }
    calls |= {("read", count): _over(layers, _read, q) for count, (q, layers) in caches.items()}
    timings = time_in_turns(calls, repeats=rounds)
    runs_s, read_s = (
        np.array([timings[kind, count].runs_s for count in n_kv_heads]) / LAYERS for kind in ("attend", "read")
    )
    return HeadTimes(tuple(n_kv_heads), runs_s, read_s, dtype)


def _cache(n_kv_heads: int, tokens: int, dtype: torch.dtype, *, layers: int, seed: int = 0):
    """One new token's queries (1, H, 1, D), and the keys and values (1, K, S, D) of each layer."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(1, QUERY_HEADS, 1, HEAD_DIM, generator=generator).to(dtype)
    shape = (2, 1, n_kv_heads, tokens, HEAD_DIM)
    return q, [torch.randn(shape, generator=generator).to(dtype).unbind() for _ in range(layers)]


def _over(layers: list, way: Callable, q: torch.Tensor) -> Callable[[], None]:
    """A call of one way for every layer, as one step of decoding makes it."""

    def step() -> None:
        for k, v in layers:
            way(q, k, v)

    return step


def _read(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
    """Read keys and values once. Adding float32 up is the fastest reading that PyTorch has, whatever the bits mean."""
    for part in (k, v):
        part.view(torch.float32).sum()


def _as_rows(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """(B, H, 1, D) -> (B, K, G, D): the queries of a group as the rows of the one head that they share."""
    return q.reshape(q.shape[0], k.shape[1], -1, q.shape[-1])


def _page_faults(call: Callable[[], object]) -> int | None:
    """Count the pages that the operating system hands this process during a call; None where it does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    call()  # what is made once and kept is not counted
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    call()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
