"""What the bundled models can do on held-out text, measured as the model card states it."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .corpus import HELD_OUT, KINDS, TRAIN, Document, document
from .ngram import NGram
from .scribe import Scribe

RESAMPLES = 2000
Z = NormalDist().inv_cdf(0.975)  # 95 % of a normal distribution lies within so many standard deviations
RANGES = {"1 to 63": (1, 63), "64 to 128": (64, 128), "129 to 252": (129, 252)}


@dataclass(frozen=True)
class Encoded:
    """A held-out document and its tokens."""

    document: Document
    tokens: list[int]


@dataclass(frozen=True)
class Interval:
    """A mean, and the bounds between which 95 % of its uncertainty lies, from `bootstrap` or from `wilson`."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ({self.low:.2f} to {self.high:.2f})"


def bootstrap(values: np.ndarray, weights: np.ndarray | None = None) -> Interval:
    """Estimate how uncertain a mean over documents is, by resampling them with replacement.

    Args:
        values: one value per document, (n,).
        weights: (n,), where documents differ in length; None weighs all alike.
    """
    weights = np.ones(len(values)) if weights is None else weights
    drawn = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    means = (values * weights)[drawn].sum(1) / weights[drawn].sum(1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(np.average(values, weights=weights)), float(low), float(high))


def wilson(right: int, asked: int) -> Interval:
    """Estimate how uncertain a share of right answers is, with a width even where all or none are right.

    Resampling 23 right answers can only give 23 right ones, so a bootstrap of them has no width, and that is false.

    Equation: with p = right / asked, n = asked and z = 1.96, the bounds are
    (p + z²/2n ± z · √(p(1 − p)/n + z²/4n²)) / (1 + z²/n).
    Source: Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", 1927.

    Args:
        right: how many answers were right.
        asked: of how many that do not depend on each other.

    Returns:
        the share, and its interval of 95 %.

    Raises:
        ValueError: nothing was asked, or `right` is not a part of it.

    >>> str(wilson(23, 23)), str(wilson(0, 23)), str(wilson(5, 10))
    ('1.00 (0.86 to 1.00)', '0.00 (0.00 to 0.14)', '0.50 (0.24 to 0.76)')
    """
    if not 0 <= right <= asked or asked < 1:
        raise ValueError(f"{right} of {asked} right: expected at least one answer, and no more right than asked")
    share = right / asked
    middle, half = share + Z**2 / (2 * asked), Z * math.sqrt(share * (1 - share) / asked + (Z / (2 * asked)) ** 2)
    low, high = ((middle + sign * half) / (1 + Z**2 / asked) for sign in (-1, 1))
    return Interval(share, min(low, share), max(high, share))  # at 0 and 1 a bound may miss the share by a rounding


def held_out(tokenizer: PreTrainedTokenizerBase, documents: int) -> list[Encoded]:
    """Tokenise the first documents of the held-out split."""
    texts = [document(i, split=HELD_OUT) for i in range(documents)]
    return [Encoded(text, tokenizer(text.text).input_ids) for text in texts]


@torch.inference_mode()
def next_token_logits(model: PreTrainedModel, tokens: list[int], mask: torch.Tensor | None = None) -> torch.Tensor:
    """Compute the logits (T, V) of one document, in float32; a mask (T, T) takes the place of the model's own."""
    seen = None if mask is None else mask[None, None].to(model.device)
    return model(input_ids=torch.tensor([tokens], device=model.device), attention_mask=seen).logits[0].float().cpu()


def losses(
    model: PreTrainedModel, encoded: list[Encoded], masks: Sequence[torch.Tensor] | None = None
) -> list[np.ndarray]:
    """Compute the nats of every token of every document: <s> is given, all that follows is predicted.

    Args:
        model: a transformers model.
        encoded: documents of any lengths T.
        masks: (T, T) bool for each document, in place of the model's own; True means "may attend". None keeps it.

    Returns:
        (T - 1,) for each document.
    """
    each = [None] * len(encoded) if masks is None else masks
    return [
        torch.nn.functional.cross_entropy(
            next_token_logits(model, text.tokens, mask)[:-1], torch.tensor(text.tokens[1:]), reduction="none"
        ).numpy()
        for text, mask in zip(encoded, each, strict=True)
    ]


def baseline(tokenizer: PreTrainedTokenizerBase, encoded: list[Encoded], *, order: int, documents: int) -> NGram:
    """Make an n-gram model for these held-out documents, which has counted the first training documents."""
    model = NGram(order, vocab_size=len(tokenizer), wanted=(text.tokens for text in encoded))
    model.count(tokenizer(document(i, split=TRAIN).text).input_ids for i in range(documents))
    return model


def baseline_losses(model: NGram, encoded: list[Encoded], *, order: int) -> list[np.ndarray]:
    """Compute what `losses` does for an n-gram model, by its own order or a lower one."""
    return [model.nats(text.tokens, order=order)[1:] for text in encoded]


def by_kind(encoded: list[Encoded], nats: list[np.ndarray]) -> dict[str, Interval]:
    """Average the nats per token for each kind of text, with an interval over documents."""
    table = {}
    for kind in KINDS:
        chosen = [values for text, values in zip(encoded, nats, strict=True) if text.document.kind == kind]
        table[kind] = bootstrap(np.array([v.mean() for v in chosen]), np.array([len(v) for v in chosen]))
    return table


def mentions(tokenizer: PreTrainedTokenizerBase, text: Encoded) -> list[tuple[int, int]]:
    """Find where the document's name occurs, each time as (first token, number of tokens).

    A name after a space and a name after a quotation mark are different tokens; both count.
    """
    found = set()
    for lead in (" ", ""):
        name = tokenizer(lead + text.document.name, add_special_tokens=False).input_ids
        found |= {(i, len(name)) for i in range(len(text.tokens)) if text.tokens[i : i + len(name)] == name}
    return sorted(found)


@dataclass(frozen=True)
class Recall:
    """How often the model predicted an unseen name completely.

    Args:
        asked: the number of places where the name was due.
        hits: the number of these where the model predicted it.
        right: their share.
        chance: the share where each prediction is compared with the names of all other documents instead.
    """

    asked: int
    hits: int
    right: Interval
    chance: float


def recall(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: list[Encoded],
    *,
    context: int | None = None,
    ranges: Mapping[str, tuple[int, int]] = RANGES,
) -> dict[str, Recall]:
    """Measure how often the model predicts the document's name, by the distance to its nearest earlier mention.

    A name counts only if all of its tokens are the model's first choice. The distance is counted from the token that
    predicts the name; distances outside all of `ranges` are left out. With `context`, the model sees only that many
    tokens before the answer: with 64 a name further back is out of sight, which shows what guessing alone achieves. The
    intervals come from resampling documents; where all answers are right, or none, resampling cannot tell one from
    certainty, and they are Wilson's.
    """
    asked: dict[str, list[tuple[int, tuple, tuple]]] = {label: [] for label in ranges}
    for number, text in enumerate(encoded):
        places = mentions(tokenizer, text)
        choice = None if context else next_token_logits(model, text.tokens).argmax(-1).tolist()
        for (source, _), (target, size) in pairwise(places):
            label = next((key for key, (low, high) in ranges.items() if low <= target - 1 - source <= high), None)
            if label is None:
                continue
            if context:
                seen = text.tokens[max(0, target - context) : target + size - 1]
                guess = tuple(next_token_logits(model, seen)[-size:].argmax(-1).tolist())
            else:
                guess = tuple(choice[target - 1 : target - 1 + size])
            asked[label].append((number, guess, tuple(text.tokens[target : target + size])))
    return {label: _score(questions) for label, questions in asked.items() if questions}


def _score(questions: list[tuple[int, tuple, tuple]]) -> Recall:
    """Score (document, guess, answer) triples."""
    hits: dict[int, list[bool]] = defaultdict(list)
    for number, guess, answer in questions:
        hits[number].append(guess == answer)
    shares, sizes = np.array([np.mean(h) for h in hits.values()]), np.array([len(h) for h in hits.values()])
    pairs = matches = 0
    answers = Counter(answer for _, _, answer in questions)
    own = Counter((number, answer) for number, _, answer in questions)
    for number, guess, _ in questions:
        pairs += len(questions) - len(hits[number])
        matches += answers[guess] - own[number, guess]
    right = sum(sum(h) for h in hits.values())
    interval = wilson(right, len(questions)) if right in (0, len(questions)) else bootstrap(shares, sizes)
    return Recall(len(questions), right, interval, matches / pairs if pairs else 0.0)


@torch.inference_mode()
def chosen_experts(model: PreTrainedModel, tokens: list[int]) -> list[np.ndarray]:
    """The experts that each token of a document chose, (T, A) per layer."""
    given = torch.tensor([tokens], device=model.device)
    layers = model(input_ids=given, output_router_logits=True).router_logits
    return [logits.topk(model.config.num_experts_per_tok, -1).indices.cpu().numpy() for logits in layers]


def choices(model: PreTrainedModel, encoded: list[Encoded]) -> dict[str, np.ndarray]:
    """Count how often each expert of each layer was chosen, for each kind of text: (documents, L, E)."""
    experts = model.config.num_local_experts
    table: dict[str, list[list[np.ndarray]]] = defaultdict(list)
    for text in encoded:
        layers = chosen_experts(model, text.tokens)
        table[text.document.kind].append([np.bincount(c.ravel(), minlength=experts) for c in layers])
    return {kind: np.array(values) for kind, values in table.items()}


def as_load(chosen: np.ndarray) -> np.ndarray:
    """Turn counts (documents, L, E) into the share of all assignments that each expert carries, (L, E)."""
    total = chosen.sum(0)
    return total / total.sum(-1, keepdims=True)


def routing_difference(table: dict[str, np.ndarray]) -> np.ndarray:
    """Measure how far the expert loads of the kinds lie from the common load: mean total variation per layer, (L,)."""
    common = as_load(np.concatenate(list(table.values())))
    return np.mean([np.abs(as_load(chosen) - common).sum(-1) / 2 for chosen in table.values()], axis=0)


def shuffled_difference(table: dict[str, np.ndarray], *, shuffles: int = 200) -> np.ndarray:
    """Measure `routing_difference` with the kinds of the documents shuffled, (shuffles, L): what chance alone gives."""
    generator = np.random.default_rng(0)
    everything, sizes = np.concatenate(list(table.values())), [len(chosen) for chosen in table.values()]
    results = []
    for _ in range(shuffles):
        parts = np.split(everything[generator.permutation(len(everything))], np.cumsum(sizes)[:-1])
        results.append(routing_difference(dict(zip(table, parts, strict=True))))
    return np.array(results)


def right_sums(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, questions: int) -> Interval:
    """Measure the share of held-out sums of two numbers below 100 that greedy decoding completes correctly."""
    scribe, hits = Scribe("sums", HELD_OUT), []
    for _ in range(questions):
        a, b = scribe.pair("sum", range(100), range(100))
        tokens = tokenizer(f"Pupil: {scribe.name()}.\n{a} + {b} = {a + b}.").input_ids
        size = len(tokenizer(f" {a + b}.", add_special_tokens=False).input_ids)
        hits.append(next_token_logits(model, tokens)[-size - 1 : -1].argmax(-1).tolist() == tokens[-size:])
    return bootstrap(np.array(hits, dtype=float))
