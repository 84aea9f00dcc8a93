"""What lesson 2 measures of attention for one new token: what it copies, and how long it takes.

H query heads read K key and value heads; one new token asks over S tokens of text. `attend` is always a function of
q (B, H, T, D), k and v (B, K, S, D), heads first as caches keep them, and a mask (T, S); it returns (B, H, T, D).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.models.mistral.modeling_mistral import repeat_kv

from ..measure import Machine, peak_bytes, time_in_turns
from .from_memory import Ring, memory_speed
from .plugged_in import Attend

HEAD_DIM = 128  # of Mistral 7B
QUERY_HEADS = 32
KV_HEADS = 8
LAYERS = 2  # in one timed call, one after another, as a model's are
NEAR_CALLS = 8  # in one timed call, of which only the first fetches keys and values from memory


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


def extra_memory(attend: Attend, *, n_kv_heads: int = KV_HEADS, tokens: int = 16_384) -> float:
    """Measure the memory that `attend` takes at its peak for one new token, as a multiple of the keys' and values'.

    It is called once, on the CPU in bfloat16. Copies of keys and values for groups of four take 4 times their memory,
    and a change to float32 takes 2 times.

    Args:
        n_kv_heads, tokens: K and S.
    """
    q, (k, v) = _queries(torch.bfloat16), Ring(torch.bfloat16, n_kv_heads, tokens).layer(n_kv_heads)
    mask = torch.ones(1, tokens, dtype=torch.bool)
    before = peak_bytes(lambda: None)
    return max(0, peak_bytes(lambda: attend(q, k, v, mask)) - before) / (k.nbytes + v.nbytes)


@dataclass(frozen=True)
class WayTimes:
    """Seconds that one layer's attention takes for one new token, each way in every round.

    Args:
        runs_s: way -> (rounds,).
        faults: way -> pages that the operating system had to hand out during one call; empty where it does not say.
        nbytes: of the keys and values of one layer.
        floor_s: in which memory delivers them at the least, by `memory_speed`.
        dtype: of everything.
    """

    runs_s: dict[str, np.ndarray]
    faults: dict[str, int]
    nbytes: int
    floor_s: float
    dtype: str

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
    n_kv_heads: int = KV_HEADS,
    tokens: int = 4096,
    rounds: int = 7,
) -> WayTimes:
    """Time five ways of attention for one new token on the CPU.

    All take turns in every round, each on the keys and values of layers that were not read for long, so that they come
    from memory and not from the processor's cache. Each round starts with another way, and the first only warms up.

    The ways: "copies, fresh memory" (`repeat_and_attend`), "copies, kept memory" (the same into memory that is there
    already), "no copies: enable_gqa" (PyTorch's own), "group as rows" (PyTorch's kernel, given the queries of a group
    as the rows of one head) and "yours".

    Args:
        attend: the reader's way.
        dtype: "bfloat16", in which the large models compute, or "float32".
        n_kv_heads, tokens: K and S; H is 32 and D 128, as in Mistral 7B.
        rounds: that are kept.
    """
    q, ring = _queries(getattr(torch, dtype)), Ring(getattr(torch, dtype), n_kv_heads, tokens)
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
    runs_s = _in_turns({name: partial(_step, way, q, ring, n_kv_heads) for name, way in ways.items()}, rounds)
    k, v = ring.layer(n_kv_heads)
    faults = {name: _page_faults(lambda way=way: way(q, k, v)) for name, way in ways.items()}
    return WayTimes(
        runs_s=runs_s,
        faults={name: count for name, count in faults.items() if count is not None},
        nbytes=k.nbytes + v.nbytes,
        floor_s=(k.nbytes + v.nbytes) / memory_speed(torch.get_num_threads()),
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

    def share(self, rows: int) -> float:
        """The time of so many rows as a share of one row's, of their medians."""
        return self.median_s(rows) / self.median_s(1)

    @property
    def apart_share(self) -> float:
        """The time of a group's queries one by one as a share of one row's, of their medians."""
        return float(np.median(self.head_by_head_s)) / self.median_s(1)

    @property
    def shared_share(self) -> float:
        """The time one by one over eight KV heads as a share of that over 32, of their medians."""
        return float(np.median(self.head_by_head_s) / np.median(self.unshared_s))


def time_rows(
    rows: Sequence[int] = (1, 2, 4, 8), *, dtype: str = "bfloat16", tokens: int = 4096, rounds: int = 7
) -> RowTimes:
    """Time PyTorch's attention on the CPU with 1, 2, 4 ... queries as rows, and head by head.

    All take turns in every round: the rows and the 32 query heads one by one over the same eight KV heads, and as a
    control 32 query heads with a KV head each.
    """
    q, ring = _queries(getattr(torch, dtype)), Ring(getattr(torch, dtype), QUERY_HEADS, tokens)
    generator = torch.Generator().manual_seed(0)
    queries = {n: torch.randn(1, KV_HEADS, n, HEAD_DIM, generator=generator).to(q.dtype) for n in rows}
    calls = {n: partial(_step, scaled_dot_product_attention, some, ring, KV_HEADS) for n, some in queries.items()}
    calls["shared"] = partial(_step, partial(scaled_dot_product_attention, enable_gqa=True), q, ring, KV_HEADS)
    calls["unshared"] = partial(_step, scaled_dot_product_attention, q, ring, QUERY_HEADS)
    runs_s = _in_turns(calls, rounds)
    head_by_head_s, unshared_s = runs_s.pop("shared"), runs_s.pop("unshared")
    return RowTimes(tuple(rows), np.array(list(runs_s.values())), head_by_head_s, unshared_s)


@dataclass(frozen=True)
class HeadTimes:
    """Seconds of one layer's attention for one new token, for several numbers of KV heads.

    Args:
        n_kv_heads: (n,).
        runs_s: (n, rounds), by the reader's way.
        floor_s: (n,) in which memory delivers the keys and values at the least, by `memory_speed`.
        near_runs_s: (rounds,), with the fewest heads, whose keys and values are in the processor's cache: what is left
            is arithmetic.
        machine: on which it was measured.
    """

    n_kv_heads: tuple[int, ...]
    runs_s: np.ndarray
    floor_s: np.ndarray
    near_runs_s: np.ndarray
    machine: Machine

    @property
    def near_s(self) -> float:
        """The median over the rounds with the fewest heads in the processor's cache."""
        return float(np.median(self.near_runs_s))

    @property
    def median_s(self) -> np.ndarray:
        """(n,) over the rounds."""
        return np.median(self.runs_s, axis=1)

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

    All numbers of heads take turns in every round, as in `time_ways`.
    """
    q, ring = _queries(getattr(torch, dtype)), Ring(getattr(torch, dtype), max(n_kv_heads), tokens)
    mask = torch.ones(1, tokens, dtype=torch.bool)

    def way(q, k, v):
        return attend(q, k, v, mask)

    k, v = ring.layer(min(n_kv_heads))
    k, v = k.clone(), v.clone()  # nothing else reads these
    calls = {count: partial(_step, way, q, ring, count) for count in n_kv_heads}
    calls["near"] = lambda: [way(q, k, v) for _ in range(NEAR_CALLS)]
    runs_s = _in_turns(calls, rounds)
    near_runs_s = runs_s.pop("near") * LAYERS / NEAR_CALLS
    floor_s = np.array(n_kv_heads) * (k.nbytes + v.nbytes) / min(n_kv_heads) / memory_speed(torch.get_num_threads())
    return HeadTimes(tuple(n_kv_heads), np.array(list(runs_s.values())), floor_s, near_runs_s, Machine.here())


def _queries(dtype: torch.dtype) -> torch.Tensor:
    """One new token's queries (1, H, 1, D)."""
    return torch.randn(1, QUERY_HEADS, 1, HEAD_DIM, generator=torch.Generator().manual_seed(1)).to(dtype)


def _step(way: Callable, q: torch.Tensor, ring: Ring, n_kv_heads: int) -> None:
    """Call one way for a few layers, as one step of decoding does."""
    for _ in range(LAYERS):
        way(q, *ring.layer(n_kv_heads))


def _in_turns(calls: dict, rounds: int) -> dict:
    """(rounds,) seconds per layer of each call."""
    return {name: np.array(found.runs_s) / LAYERS for name, found in time_in_turns(calls, repeats=rounds).items()}


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
