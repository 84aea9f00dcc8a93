"""What was measured once, on models that are not shipped, and is kept in files of the package."""

import json
from dataclasses import dataclass
from functools import cache

import numpy as np

from ..checkpoints import BUNDLED
from ..training.evaluation import Interval, wilson

WINDOWS = BUNDLED["tiny-mistral"].parent / "traces" / "windows.json"


@dataclass(frozen=True)
class RecordedStory:
    """A held-out document whose name was last mentioned far outside the window.

    Args:
        document: its number.
        distance: tokens from the predicting token back to the name.
        answer: the name.
    """

    document: int
    distance: int
    answer: str


@dataclass(frozen=True)
class WindowsModel:
    """What was measured on one model.

    Args:
        layer_types: "sliding_attention" or "full_attention" for each layer.
        parameters: how many it has.
        loss: nats per token of held-out documents, up to the trained length.
        loss_difference: the same less that of tiny-mistral, paired by document.
        loss_by_position: nats per token for each of the record's `positions`.
        asked, right: (ranges,) how many names were due, and how many of them the model said.
        recall: their share for each of the record's `ranges`, with Wilson's interval.
        story: what it answered where the name of the story was due.
    """

    layer_types: tuple[str, ...]
    parameters: int
    loss: Interval
    loss_difference: Interval
    loss_by_position: tuple[Interval, ...]
    asked: np.ndarray
    right: np.ndarray
    recall: tuple[Interval, ...]
    story: str


@dataclass(frozen=True)
class WindowsRecord:
    """Three models that differ in how far their layers see, measured on the same held-out texts.

    tiny-mistral has a window in each layer. tiny-interleaved was trained alike, but its last layer has none.
    tiny-mixtral has none at all; it is a mixture of experts, and differs in more than the window.

    Args:
        settings: what all share: window, trained length, seed, steps, how many documents.
        ranges: tokens back, (first, last).
        positions: in a text, (first, last).
        story: the document that each model's `story` answers.
        models: by name.
    """

    settings: dict
    ranges: tuple[tuple[int, int], ...]
    positions: tuple[tuple[int, int], ...]
    story: RecordedStory
    models: dict[str, WindowsModel]

    def recalled(self, name: str, low: int, high: int) -> Interval:
        """Add up the names of all ranges between two distances.

        Args:
            name: of the model.
            low, high: tokens back, both included: where a range begins and where one ends.

        Returns:
            the share of names that the model said, with Wilson's interval.

        Raises:
            ValueError: no range begins at `low` or none ends at `high`.
        """
        firsts, lasts = zip(*self.ranges, strict=True)
        if low not in firsts or high not in lasts or high < low:
            raise ValueError(f"from {low} to {high}: expected the first number of one of {self.ranges} and the last")
        rows = slice(firsts.index(low), lasts.index(high) + 1)
        model = self.models[name]
        return wilson(int(model.right[rows].sum()), int(model.asked[rows].sum()))


@cache
def read_windows_record() -> WindowsRecord:
    """Read what `python -m mistral_lab.training --only tiny-interleaved` measured.

    >>> record = read_windows_record()
    >>> record.models["tiny-interleaved"].layer_types.count("full_attention"), record.ranges[:2]
    (1, ((1, 21), (22, 42)))
    """
    found = json.loads(WINDOWS.read_text(encoding="utf-8"))
    return WindowsRecord(
        settings=found["settings"],
        ranges=tuple((low, high) for low, high in found["ranges"]),
        positions=tuple((low, high) for low, high in found["positions"]),
        story=RecordedStory(**found["story"]),
        models={name: _model(kept) for name, kept in found["models"].items()},
    )


def _model(kept: dict) -> WindowsModel:
    """Make a model's measurements of its part of the record."""
    rows = kept["recall"]
    return WindowsModel(
        layer_types=tuple(kept["layer_types"]),
        parameters=kept["parameters"],
        loss=Interval(**kept["loss"]),
        loss_difference=Interval(**kept["loss_difference"]),
        loss_by_position=tuple(Interval(**bounds) for bounds in kept["loss_by_position"]),
        asked=np.array([row["asked"] for row in rows]),
        right=np.array([row["right"] for row in rows]),
        recall=tuple(Interval(row["right"] / max(row["asked"], 1), row["low"], row["high"]) for row in rows),
        story=kept["story"],
    )
