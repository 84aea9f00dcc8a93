"""Who may attend to whom: boolean masks in which True means "may attend", and how far a stack of layers sees."""

import torch

from .arguments import check_count


def causal_mask(T: int) -> torch.Tensor:
    """Each token sees itself and all before it.

    Returns:
        (T, T) bool; row i is query i, column j is key j.

    Raises:
        TypeError, ValueError: T is not a whole number of at least 1.

    >>> causal_mask(3).int().tolist()
    [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    """
    check_count("T", T)
    return position_mask(torch.arange(T), torch.arange(T))


def sliding_window_mask(T: int, window: int | None) -> torch.Tensor:
    """Each token sees the last `window` tokens, itself included.

    Equation: mask[i, j] = 0 <= i - j < W.
    Source: arXiv:2310.06825, section 2 and figure 1.
    Differs: Mistral's first reference code saw W + 1 keys in prefill and W in decode; attention-gym sees W + 1.

    Args:
        T: tokens, as queries and as keys.
        window: W, keys that a query sees; None, or T and more, gives `causal_mask(T)`.

    Returns:
        (T, T) bool; row i is query i, column j is key j.

    Raises:
        TypeError, ValueError: T, or a window other than None, is not a whole number of at least 1.

    >>> sliding_window_mask(4, 2).int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    """
    check_count("T", T)
    return position_mask(torch.arange(T), torch.arange(T), window=window)


def position_mask(queries: torch.Tensor, keys: torch.Tensor, *, window: int | None = None) -> torch.Tensor:
    """Apply the rule behind both masks to any positions: those of a chunk of queries, or of the keys in a cache.

    Args:
        queries: (T,) positions, whole numbers.
        keys: (S,) positions, whole numbers, in any order.
        window: W, keys that a query sees, itself included; None lets it see all keys up to its own position.

    Returns:
        (T, S) bool, on the device of the positions.

    Raises:
        TypeError, ValueError: a window other than None that is not a whole number of at least 1, or positions with
            more than one axis.

    >>> position_mask(torch.tensor([5]), torch.tensor([6, 5, 4, 3]), window=2).tolist()
    [[False, True, True, False]]
    >>> position_mask(torch.tensor([5]), torch.tensor([6, 5, 4, 3])).tolist()
    [[False, True, True, True]]
    """
    if window is not None:
        check_count("window", window)
    if queries.ndim != 1 or keys.ndim != 1:
        raise ValueError(
            f"queries has shape {tuple(queries.shape)} and keys {tuple(keys.shape)}: expected positions (T,) and (S,)"
        )
    distance = queries[:, None] - keys
    causal = distance >= 0
    return causal if window is None else causal & (distance < window)


def receptive_field(window: int, n_layers: int) -> int:
    """Count the tokens, itself included, that can reach a token's output through a stack of windowed layers.

    Equation: L·(W - 1) + 1, because each layer reaches W - 1 tokens further back.
    Differs: arXiv:2310.06825, section 2, rounds it to L·W.

    Raises:
        TypeError, ValueError: a count that is not a whole number of at least 1.

    >>> receptive_field(window=4096, n_layers=32)
    131041
    """
    check_count("window", window)
    check_count("n_layers", n_layers)
    return n_layers * (window - 1) + 1
