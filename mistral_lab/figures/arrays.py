"""Checks of the arrays that a picture is given: their shapes, and numbers that its marks or its axis can show."""

import numpy as np


def as_amounts(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values as floats, refused unless all of them are finite and 0 or more, as a bar's length is."""
    values = np.asarray(values, float)
    if values.shape != shape:
        raise ValueError(f"the amounts have shape {values.shape}: expected {shape}, one for each name")
    if not np.isfinite(values).all() or (values < 0).any():
        raise ValueError("an amount is negative, infinite or NaN: expected finite amounts of 0 or more")
    return values


def as_finite(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values as floats, refused unless all of them are finite; they may have any sign."""
    values = np.asarray(values, float)
    if values.shape != shape or not np.isfinite(values).all():
        raise ValueError(f"an array has shape {values.shape}: expected {shape}, all of them finite numbers")
    return values


def as_positive(name: str, values: np.ndarray, shape: tuple[int, ...], *, gaps: bool = False) -> np.ndarray:
    """Return the values as floats, refused unless a logarithmic axis has a place for each of them.

    Args:
        name: of the array, for the message.
        values: finite and above 0.
        shape: what they must have.
        gaps: whether a value may be NaN, where there is nothing to draw.
    """
    values = np.asarray(values, float)
    if values.shape != shape:
        raise ValueError(f"{name} has shape {values.shape}: expected {shape}")
    allowed = (np.isfinite(values) & (values > 0)) | (gaps & np.isnan(values))
    if not allowed.all():
        expected = "finite numbers above 0, or NaN" if gaps else "finite numbers above 0"
        raise ValueError(
            f"{name} holds {values[~allowed][0]:g}: expected {expected}, because a logarithmic axis shows no others"
        )
    return values


def as_intervals(lows: np.ndarray, middles: np.ndarray, highs: np.ndarray, *, of: str = "mean") -> np.ndarray:
    """Join three arrays of one shape into one, (3, *shape), refused unless each interval holds its middle.

    Args:
        lows, middles, highs: checked for themselves already.
        of: what the middle is, such as "median", for the message.
    """
    bounds = np.stack([lows, middles, highs])
    if (np.diff(bounds, axis=0) < 0).any():
        raise ValueError(f"a {of} lies outside its interval: expected lows <= {of}s <= highs")
    return bounds


def as_amount_intervals(
    lows: np.ndarray, middles: np.ndarray, highs: np.ndarray, shape: tuple[int, ...], *, of: str = "mean"
) -> np.ndarray:
    """Check three arrays with `as_amounts`, and join them with `as_intervals`.

    Args:
        lows, middles, highs: finite and 0 or more.
        shape: what each of them must have.
        of: what the middle is, such as "median", for the message.

    Returns:
        (3, *shape): lows, middles and highs.
    """
    return as_intervals(*(as_amounts(values, shape) for values in (lows, middles, highs)), of=of)
