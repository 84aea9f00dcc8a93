"""What windows cost: three small models on the same held-out texts, one of them with windows in all layers but one."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise

import numpy as np
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from . import evaluation
from .corpus import HELD_OUT, document
from .evaluation import Encoded, Interval, Recall
from .recipes import INTERLEAVED

FIRST = "tiny-mistral"  # the others' loss is compared with its
HOP = 63  # tokens that a layer with a window of 64 looks back
RANGES = [(low, low + HOP // 3 - 1) for low in range(1, 5 * HOP, HOP // 3)]  # tokens back: three ranges to a hop
POSITIONS = [(low, low + 63) for low in range(0, 512, 64)]
BLOCKS = 60
STORY, FURTHER_THAN = 1032, 128  # a document in English, and how far back its name lies at least


def measure_windows(
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    *,
    documents: int,
    asked: int,
    blocks: int = BLOCKS,
    story: int = STORY,
) -> dict:
    """Measure loss and recall of models that differ in how far their layers see.

    Args:
        models: by name; `FIRST` is among them, and losses are compared with its.
        tokenizer: of all of them.
        documents: how many held-out documents the loss is measured on.
        asked: how many the names are asked from.
        blocks: how many blocks of tokens, longer than training's, the loss by position is measured on.
        story: the number of the held-out document of which every model's answer is kept word by word.

    Returns:
        "settings", which all models share; "ranges", tokens back, and "positions", both as (first, last); "story": the
        document, the distance of the name, and the name; "models": for each

        - "layer_types", one per layer, and "parameters";
        - "loss": nats per token up to the trained length, and "loss_difference": the same less that of `FIRST`, paired
          by document; each as mean, low, high;
        - "loss_by_position": a mean, low, high for each of the positions; the last one's last token predicts nothing;
        - "recall": for each range how many names were asked, how many were right, and the bounds of Wilson's interval;
        - "story": its answer.
    """
    encoded, names = evaluation.held_out(tokenizer, documents), evaluation.held_out(tokenizer, asked)
    joined = joined_blocks(names, tokenizer, length=POSITIONS[-1][1] + 1, count=blocks)
    sizes = np.array([min(len(text.tokens) - 1, INTERLEAVED.length) for text in encoded])
    text, distance, target, size = place_of(tokenizer, story)
    losses = {
        name: np.array([nats[: INTERLEAVED.length].mean() for nats in evaluation.losses(model, encoded)])
        for name, model in models.items()
    }
    found = {}
    for name, model in models.items():
        nats = np.array(evaluation.losses(model, joined))
        recalled = evaluation.recall(model, tokenizer, names, ranges={str(bounds): bounds for bounds in RANGES})
        answer = evaluation.next_token_logits(model, text.tokens[: target + size - 1])[-size:].argmax(-1)
        found[name] = {
            "layer_types": layer_types(model.config),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "loss": asdict(evaluation.bootstrap(losses[name], sizes)),
            "loss_difference": asdict(evaluation.bootstrap(losses[name] - losses[FIRST], sizes)),
            "loss_by_position": [
                asdict(evaluation.bootstrap(nats[:, low : high + 1].mean(1))) for low, high in POSITIONS
            ],
            "recall": [_counted(recalled.get(str(bounds))) for bounds in RANGES],
            "story": tokenizer.decode(answer).strip(),
        }
    return {
        "settings": {
            "window": models[INTERLEAVED.name].config.sliding_window,
            "trained_length": INTERLEAVED.length,
            "seed": INTERLEAVED.seed,
            "steps": INTERLEAVED.steps,
            "loss_documents": documents,
            "recall_documents": asked,
            "blocks": blocks,
            "torch": torch.__version__,
        },
        "ranges": RANGES,
        "positions": POSITIONS,
        "story": {"document": story, "distance": distance, "answer": text.document.name},
        "models": found,
    }


def layer_types(config: PreTrainedConfig) -> list[str]:
    """Which layers of a model have a window, as transformers names them; a config without a list has one for all."""
    alike = "full_attention" if config.sliding_window is None else "sliding_attention"
    return list(getattr(config, "layer_types", None) or [alike] * config.num_hidden_layers)


def joined_blocks(
    encoded: Sequence[Encoded], tokenizer: PreTrainedTokenizerBase, *, length: int, count: int
) -> list[Encoded]:
    """Join documents as in training, one after another with </s> between, and cut each block off at its length.

    Raises:
        ValueError: the documents are too few for so many blocks.
    """
    blocks, tokens = [], []
    for text in encoded:
        tokens = [*tokens, *text.tokens, tokenizer.eos_token_id]
        if len(tokens) >= length:
            blocks.append(Encoded(text.document, tokens[:length]))
            tokens = []
        if len(blocks) == count:
            return blocks
    raise ValueError(f"{len(encoded)} documents make {len(blocks)} blocks of {length} tokens: expected {count}")


def place_of(tokenizer: PreTrainedTokenizerBase, number: int) -> tuple[Encoded, int, int, int]:
    """Find the first place in a held-out document whose name was last mentioned far outside the window.

    Returns:
        the document, the distance to the name, the place's first token, and the number of its tokens.

    Raises:
        ValueError: there is no such place in it.
    """
    found = document(number, split=HELD_OUT)
    text = Encoded(found, tokenizer(found.text).input_ids)
    for (source, _), (target, size) in pairwise(evaluation.mentions(tokenizer, text)):
        if target - 1 - source > FURTHER_THAN:
            return text, target - 1 - source, target, size
    raise ValueError(f"document {number} mentions its name at most {FURTHER_THAN} tokens back: choose another")


def _counted(row: Recall | None) -> dict:
    """How many of a range were asked and right; of a range that nobody asked about nothing is known."""
    if row is None:
        return {"asked": 0, "right": 0, "low": 0.0, "high": 1.0}
    bounds = evaluation.wilson(row.hits, row.asked)
    return {"asked": row.asked, "right": row.hits, "low": bounds.low, "high": bounds.high}


def as_json(found: dict, *, for_the_card: dict) -> str:
    """Write the record in the form of the bundled file: fractions with six places, a line for each model.

    Args:
        found: what `measure_windows` returned.
        for_the_card: what `card.measure_model` returned for the model whose weights are not shipped.
    """
    rounded = _rounded(found | {"card": for_the_card})
    models = rounded.pop("models")
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in rounded.items()]
    each = [f"{json.dumps(name)}: {json.dumps(model)}" for name, model in models.items()]
    return "{" + ",\n".join([*lines, '"models": {\n' + ",\n".join(each) + "}"]) + "}\n"


def _rounded(value: object) -> object:
    """Turn intervals and the like into plain objects, and every fraction into one of six places."""
    if isinstance(value, Interval | Recall):
        return _rounded(asdict(value))
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return round(value, 6) if isinstance(value, float) else value


def read_card(record: dict) -> dict:
    """Take from the record what the card says of the model whose weights are not shipped, as `card.measure_model`."""

    def recalls(table: dict) -> dict[str, Recall]:
        return {label: Recall(**(row | {"right": Interval(**row["right"])})) for label, row in table.items()}

    kept = record["card"]
    return kept | {
        "loss": {kind: Interval(**bounds) for kind, bounds in kept["loss"].items()},
        "recall": recalls(kept["recall"]),
        "blind recall": recalls(kept["blind recall"]),
    }
