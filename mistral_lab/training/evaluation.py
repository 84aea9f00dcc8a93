"""What the bundled models can do on held-out text, measured as the model card states it."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .corpus import HELD_OUT, KINDS, TRAIN, Document, document
from .ngram import NGram

RANGES = {"1 to 63": (1, 63), "64 to 128": (64, 128), "129 to 252": (129, 252)}


@dataclass(frozen=True)
class Encoded:
    """A held-out document and its tokens."""

    document: Document
    tokens: list[int]


@dataclass(frozen=True)
class Interval:
    """A mean and the middle 95 % of its bootstrap resamples."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def bootstrap(
    values: np.ndarray, weights: np.ndarray | None = None, *, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Resample documents with replacement: values (n,), and weights (n,) where documents differ in length."""
    weights = np.ones(len(values)) if weights is None else weights
    drawn = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    means = (values * weights)[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.average(values, weights=weights)), float(low), float(high))


def held_out(tokenizer: PreTrainedTokenizerBase, documents: int) -> list[Encoded]:
    """The first documents of the held-out split, tokenised."""
    texts = [document(i, split=HELD_OUT) for i in range(documents)]
    return [Encoded(text, tokenizer(text.text).input_ids) for text in texts]


@torch.inference_mode()
def next_token_logits(model: PreTrainedModel, tokens: list[int]) -> torch.Tensor:
    """Logits (T, V) in float32 for one document."""
    return model(input_ids=torch.tensor([tokens])).logits[0].float()


def losses(model: PreTrainedModel, encoded: list[Encoded]) -> list[np.ndarray]:
    """Nats a token for every document, each of shape (T - 1,): <s> is given, all that follows is predicted."""
    return [
        torch.nn.functional.cross_entropy(
            next_token_logits(model, text.tokens)[:-1], torch.tensor(text.tokens[1:]), reduction="none"
        ).numpy()
        for text in encoded
    ]


def baseline_losses(
    tokenizer: PreTrainedTokenizerBase, encoded: list[Encoded], *, order: int, train_documents: int
) -> list[np.ndarray]:
    """The same for an n-gram model that counted the first training documents."""
    model = NGram(order, vocab_size=len(tokenizer), wanted=(text.tokens for text in encoded))
    model.count(tokenizer(document(i, split=TRAIN).text).input_ids for i in range(train_documents))
    return [model.nats(text.tokens)[1:] for text in encoded]


def by_kind(encoded: list[Encoded], nats: list[np.ndarray]) -> dict[str, Interval]:
    """Mean nats a token for each kind, with an interval over documents."""
    table = {}
    for kind in KINDS:
        chosen = [values for text, values in zip(encoded, nats, strict=True) if text.document.kind == kind]
        table[kind] = bootstrap(np.array([v.mean() for v in chosen]), np.array([len(v) for v in chosen]))
    return table


def name_positions(tokenizer: PreTrainedTokenizerBase, text: Encoded) -> tuple[list[int], int]:
    """Where the document's name starts, each time, and how many tokens it has."""
    for lead in (" ", ""):
        name = tokenizer(lead + text.document.name, add_special_tokens=False).input_ids
        found = [i for i in range(len(text.tokens)) if text.tokens[i : i + len(name)] == name]
        if found:
            return found, len(name)
    return [], 0


@dataclass(frozen=True)
class Recall:
    """How often an unseen name came back whole.

    `asked` is the number of questions, `right` the share answered, `chance` the share when the same answers are held
    against other documents' names.
    """

    asked: int
    right: Interval
    chance: float


def recall(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: list[Encoded], *, context: int | None = None
) -> dict[str, Recall]:
    """Greedy recall of the document's name by distance, from the token that predicts it back to the name's last
    mention.

    A name counts only if all of its tokens are the model's first choice. With `context`, the model sees only that
    many tokens before the answer: with 64 a name further back is out of sight, which shows what guessing alone
    achieves.
    """
    hits: dict[str, list[bool]] = {label: [] for label in RANGES}
    guesses: dict[str, list[tuple[int, ...]]] = {label: [] for label in RANGES}
    answers: dict[str, list[tuple[int, ...]]] = {label: [] for label in RANGES}
    for text in encoded:
        starts, size = name_positions(tokenizer, text)
        choice = None if context else next_token_logits(model, text.tokens).argmax(-1).tolist()
        for source, target in zip(starts, starts[1:], strict=False):
            label = next((key for key, (low, high) in RANGES.items() if low <= target - 1 - source <= high), None)
            if label is None:
                continue
            if context:
                seen = text.tokens[max(0, target - context) : target + size - 1]
                guess = tuple(next_token_logits(model, seen)[-size:].argmax(-1).tolist())
            else:
                guess = tuple(choice[target - 1 : target - 1 + size])
            answer = tuple(text.tokens[target : target + size])
            hits[label].append(guess == answer)
            guesses[label].append(guess)
            answers[label].append(answer)
    table = {}
    for label in RANGES:
        if hits[label]:
            order = np.random.default_rng(0).permutation(len(hits[label]))
            chance = float(np.mean([guesses[label][i] == answers[label][j] for i, j in enumerate(order)]))
            table[label] = Recall(len(hits[label]), bootstrap(np.array(hits[label], dtype=float)), chance)
    return table


@torch.inference_mode()
def first_choices(model: PreTrainedModel, tokens: list[int]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Per layer, the experts each token chose (T, A) and all router logits (T, E)."""
    logits = model(input_ids=torch.tensor([tokens]), output_router_logits=True).router_logits
    return [
        (layer.topk(model.config.num_experts_per_tok, -1).indices.numpy(), layer.float().numpy()) for layer in logits
    ]


def loads(model: PreTrainedModel, encoded: list[Encoded]) -> dict[str, np.ndarray]:
    """Share of assignments that each expert of each layer carries in every document: kind -> (documents, L, E)."""
    experts = model.config.num_local_experts
    table: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for text in encoded:
        chosen = [indices for indices, _ in first_choices(model, text.tokens)]
        table[text.document.kind].append(np.array([np.bincount(c.ravel(), minlength=experts) / c.size for c in chosen]))
    return {kind: np.array(values) for kind, values in table.items()}


def routing_difference(table: dict[str, np.ndarray]) -> np.ndarray:
    """How far the kinds' expert loads lie from the common one, a layer: mean total variation distance, (L,)."""
    common = np.concatenate(list(table.values())).mean(0)
    return np.mean([np.abs(values.mean(0) - common).sum(-1) / 2 for values in table.values()], axis=0)


def shuffled_difference(table: dict[str, np.ndarray], *, shuffles: int = 200, seed: int = 0) -> np.ndarray:
    """The same with the documents' kinds shuffled, (shuffles, L): what chance alone gives."""
    generator = np.random.default_rng(seed)
    everything, sizes = np.concatenate(list(table.values())), [len(values) for values in table.values()]
    results = []
    for _ in range(shuffles):
        parts = np.split(everything[generator.permutation(len(everything))], np.cumsum(sizes)[:-1])
        results.append(routing_difference(dict(zip(table, parts, strict=True))))
    return np.array(results)
