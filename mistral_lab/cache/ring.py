"""Keys and values of one layer: the last W tokens in a ring of slots, or all tokens in storage that grows."""

import torch

from ..arguments import check_count


class Store:
    """Storage for keys and values of one layer, (B, K, capacity, D) each, and a count of the tokens written to it."""

    def __init__(self, capacity: int, n_kv_heads: int, head_dim: int, batch: int, dtype, device):
        for name, size in (("n_kv_heads", n_kv_heads), ("head_dim", head_dim), ("batch", batch)):
            check_count(name, size)
        self.seen = 0  # tokens since the start or the last reset: the next token's position
        shape = (batch, n_kv_heads, capacity, head_dim)
        self._use_storage(_allocate(shape, dtype, device), _allocate(shape, dtype, device))

    def reset(self) -> None:
        """Forget every token; the storage stays."""
        self.seen = 0

    def select_batch(self, rows) -> None:
        """Make sequence i what sequence `rows[i]` was: for beam search, or for a batch that grows or shrinks."""
        with torch.inference_mode(False):
            self._use_storage(self.keys[rows], self.values[rows])

    def _use_storage(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values

    @property
    def nbytes(self) -> int:
        """Bytes of all storage held, slack included."""
        return self.keys.untyped_storage().nbytes() + self.values.untyped_storage().nbytes()


class KVRing(Store):
    """Keys and values of the last W tokens of one layer; position p is kept in slot p mod W.

    A new token overwrites the one that has just left the window, and nothing is ever moved. Every token is written
    twice, W slots apart, so that any W consecutive positions lie side by side and can be handed out in position order
    as a view. With W = 4 (a dot is an empty slot):

        slot          0  1  2  3    4  5  6  7    handed out
        position 0    0  .  .  .    0  .  .  .    0           slot 4
        position 3    0  1  2  3    0  1  2  3    0 1 2 3     slots 4 to 7
        position 4    4  1  2  3    4  1  2  3    1 2 3 4     slots 1 to 4
        position 5    4  5  2  3    4  5  2  3    2 3 4 5     slots 2 to 5

    Source: arXiv:2310.06825, section 2, "Rolling Buffer Cache".
    Differs: the paper's buffer has W slots and hands out slot order, "4 5 2 3" in the last line. Attention gives the
    same result for any order, because the keys already contain their rotary positions; but a padding mask in position
    order needs the keys in that order too. The price is 2W slots instead of W.

    Args:
        window: W, keys that a query sees, itself included.
        n_kv_heads: K.
        head_dim: D.
        batch: B, sequences.
        dtype: of keys and values.
        device: where the slots are; all of them are taken at once.

    Raises:
        TypeError: a size that is not a whole number.
        ValueError: a size below 1.

    >>> ring = KVRing(window=4, n_kv_heads=1, head_dim=2)
    >>> k = torch.arange(6.0).reshape(1, 6, 1, 1).expand(1, 6, 1, 2)  # the key of position p is (p, p)
    >>> for p in range(6):
    ...     keys, values, positions = ring.append(k[:, p : p + 1], k[:, p : p + 1])
    >>> positions.tolist(), keys[0, :, 0, 0].tolist(), ring.slot_positions().tolist()
    ([2, 3, 4, 5], [2.0, 3.0, 4.0, 5.0], [4, 5, 2, 3])
    """

    def __init__(self, window: int, n_kv_heads: int, head_dim: int, *, batch=1, dtype=torch.float32, device="cpu"):
        check_count("window", window)
        self.window = window
        super().__init__(2 * window, n_kv_heads, head_dim, batch, dtype, device)

    def append(self, k, v) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Add a chunk of tokens, and hand out all keys and values that its queries may attend to.

        The first query of the chunk sees W − 1 tokens before it, so S = min(seen, W − 1) + T, which exceeds W where
        T > 1: the window's mask decides who sees what among them.

        Args:
            k: (B, T, K, D), T at least 1, of the ring's dtype and on its device.
            v: (B, T, K, D).

        Returns:
            keys (B, S, K, D), values (B, S, K, D) and their positions (S,) in increasing order. No gradient flows
            through them. They may be views of the ring or of the chunk, valid until the next append.

        Raises:
            TypeError, ValueError: another shape, dtype or device. The ring is then left as it was.
        """
        batch, n_kv_heads, _, head_dim = self.keys.shape
        check_chunk(k, v, {"B": batch, "T": None, "K": n_kv_heads, "D": head_dim}, self.keys)
        keys, values = self.write(k.transpose(1, 2), v.transpose(1, 2))
        positions = torch.arange(self.seen - keys.shape[2], self.seen, device=keys.device)
        return keys.transpose(1, 2), values.transpose(1, 2), positions

    def slot_positions(self) -> torch.Tensor:
        """The position that each slot holds: (W,) int64 on the ring's device, −1 in a slot never written."""
        slots = torch.arange(self.window, device=self.keys.device)
        newest = self.seen - 1 - (self.seen - 1 - slots) % self.window
        return newest.clamp(min=-1)

    def _use_storage(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super()._use_storage(keys, values)
        # In this view, (B, K, 2, W, D), one assignment writes both places of a position.
        self._key_halves = keys.unflatten(2, (2, self.window))
        self._value_halves = values.unflatten(2, (2, self.window))

    def write(self, k, v) -> tuple[torch.Tensor, torch.Tensor]:
        """Do what `append` does, in the layout of storage and of transformers: (B, K, T, D) in, (B, K, S, D) out."""
        if k.requires_grad or v.requires_grad:
            k, v = k.detach(), v.detach()
        return self._write_token(k, v) if k.shape[2] == 1 else self._write_chunk(k, v)

    def _write_token(self, k, v) -> tuple[torch.Tensor, torch.Tensor]:
        slot = self.seen % self.window
        self._key_halves.select(3, slot).copy_(k)
        self._value_halves.select(3, slot).copy_(v)
        self.seen += 1
        return self._last_tokens(min(self.seen, self.window))

    def _write_chunk(self, k, v) -> tuple[torch.Tensor, torch.Tensor]:
        keys, values = k, v
        before = min(self.seen, self.window - 1)
        if before:  # copied, because the chunk is about to overwrite them
            older_keys, older_values = self._last_tokens(before)
            keys, values = torch.cat([older_keys, k], dim=2), torch.cat([older_values, v], dim=2)
        new = k.shape[2]
        kept = min(new, self.window)
        self.seen += new
        slot = (self.seen - kept) % self.window
        run = min(kept, self.window - slot)  # up to the end of the ring; the rest continues at slot 0
        for halves, chunk in ((self._key_halves, k.unsqueeze(2)), (self._value_halves, v.unsqueeze(2))):
            halves[:, :, :, slot : slot + run] = chunk[:, :, :, new - kept : new - kept + run]
            halves[:, :, :, : kept - run] = chunk[:, :, :, new - kept + run :]
        return keys, values

    def _last_tokens(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """View the last `count` tokens in position order: they end in the second half, at the newest token's slot."""
        start = (self.seen - 1) % self.window + self.window - count + 1
        return self.keys.narrow(2, start, count), self.values.narrow(2, start, count)


class GrowingStore(Store):
    """Keys and values of all tokens; the storage grows by half, so a token is copied twice on average, not T times."""

    def __init__(self, n_kv_heads: int, head_dim: int, *, batch: int, dtype, device):
        super().__init__(0, n_kv_heads, head_dim, batch, dtype, device)

    def write(self, k, v) -> tuple[torch.Tensor, torch.Tensor]:
        """Add a chunk (B, K, T, D), and hand out the keys and values of all tokens (B, K, S, D)."""
        total = self.seen + k.shape[2]
        if total > self.keys.shape[2]:
            self._use_storage(self._grown(self.keys, total), self._grown(self.values, total))
        self.keys.narrow(2, self.seen, k.shape[2]).copy_(k.detach())
        self.values.narrow(2, self.seen, k.shape[2]).copy_(v.detach())
        self.seen = total
        return self.keys.narrow(2, 0, total), self.values.narrow(2, 0, total)

    def _grown(self, slots, total: int) -> torch.Tensor:
        batch, n_kv_heads, capacity, head_dim = slots.shape
        grown = _allocate((batch, n_kv_heads, max(total, capacity * 3 // 2), head_dim), slots.dtype, slots.device)
        grown.narrow(2, 0, self.seen).copy_(slots.narrow(2, 0, self.seen))
        return grown


def check_chunk(k, v, expected: dict[str, int | None], like: torch.Tensor) -> None:
    """Refuse keys and values that do not have the expected sizes (None: any, at least 1), dtype and device."""
    sizes = tuple(expected.values())
    for name, chunk in (("keys", k), ("values", v)):
        if not isinstance(chunk, torch.Tensor):
            raise TypeError(f"{name} are a {type(chunk).__name__}: expected a tensor")
        shape = tuple(chunk.shape)
        fitting = tuple(map(lambda size, actual: size or actual, sizes, shape))
        if shape != fitting or len(shape) != 4 or 0 in shape:
            wanted = ", ".join("any" if size is None else str(size) for size in sizes)
            raise ValueError(
                f"{name} are {shape}: expected ({', '.join(expected)}) = ({wanted}); "
                "T is at least 1; call reset() before another batch"
            )
        if chunk.dtype != like.dtype or chunk.device != like.device:
            raise ValueError(
                f"{name} are {chunk.dtype} on {chunk.device}: expected {like.dtype} on {like.device}, as before"
            )
    if k.shape != v.shape:
        raise ValueError(f"keys are {tuple(k.shape)} and values {tuple(v.shape)}: expected the same shape")


def _allocate(shape, dtype, device) -> torch.Tensor:
    """Allocate (B, K, S, D), heads first: a write goes to K places, but attention reads a head from one piece."""
    with torch.inference_mode(False):  # a tensor made inside inference mode could not be written to outside it
        return torch.empty(shape, dtype=dtype, device=device)
