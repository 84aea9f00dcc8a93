"""Explorers of predictions: what temperature and top-p leave of the next token, and what each layer would guess."""

from collections.abc import Sequence

import numpy as np
import torch

from ..figures import bare_figure, drawable, plot_guesses, plot_next_tokens, with_spaces
from ..sampling import kept_by_top_p, token_probabilities
from .base import Explorer, choice_slider, count_slider

ROWS = 12  # depths that a picture shows; of more, every second or third
SHOWN = 8  # candidates in a picture
LONGEST = 14  # characters of a token, escapes included
ENDS = (0.4, 0.7, 1)  # of the axis of probabilities
TEMPERATURES = tuple(tenths / 10 for tenths in range(21))
TOP_PS = tuple(twentieths / 20 for twentieths in range(1, 21))


def next_token(logits: torch.Tensor, tokenizer) -> Explorer:
    """Move temperature and top-p, and see which tokens can still be drawn, and how likely each is.

    Equation: p = softmax(logits / temperature); the likeliest tokens stay, until together they reach top-p.
    Source: arXiv:1904.09751, section 3.1.

    Args:
        logits: (V,) of one position, finite, on any device.
        tokenizer: the model's; only `decode` is used.

    Raises:
        ValueError: logits of another rank, or not finite, or fewer than two.
    """
    scores = torch.as_tensor(logits).detach().cpu().double()  # not every device has double
    if scores.ndim != 1 or len(scores) < 2 or not scores.isfinite().all():
        raise ValueError(f"logits has shape {tuple(scores.shape)}: expected finite numbers (V,) of one position")
    ranked, order = scores.sort(descending=True, stable=True)
    candidates = [_short(tokenizer.decode([int(token)])) for token in order[:SHOWN]]
    learned_bits = _entropy(token_probabilities(ranked, temperature=1.0, top_p=1.0).numpy())

    def view(temperature: float, top_p: float):
        tempered = token_probabilities(ranked, temperature=temperature, top_p=1.0).numpy()
        number_kept = int(kept_by_top_p(torch.from_numpy(tempered).log(), top_p).sum())
        kept = np.arange(len(ranked)) < number_kept  # of equally likely tokens, those that are listed first
        drawn = np.where(kept, tempered, 0) / tempered[kept].sum()
        count = np.count_nonzero(drawn)
        figure, axes = bare_figure(1, 2, height_in=3.2, share=True)
        shown = slice(min(SHOWN, len(ranked)))
        warm = "temperature 0: greedy" if temperature == 0 else f"temperature {temperature:g}"
        for ax, chances, stays, title in (
            (axes[0, 0], tempered, kept[shown], warm),
            (axes[0, 1], drawn, None, f"then top-p {top_p:g} (0: cut)"),
        ):
            rest = chances[SHOWN:]
            others = (len(rest), rest.sum(), rest[kept[SHOWN:]].sum()) if len(rest) else None
            plot_next_tokens(chances[shown], tokens=candidates, kept=stays, others=others, title=title, ax=ax)
        end = next(end for end in ENDS if max(tempered[0], drawn[0]) <= end or end == 1)  # few steps: it seldom jumps
        axes[0, 0].set_xlim(0, 1.25 * end)
        axes[0, 0].set_xticks([0, end / 2, end])
        for label in axes[0, 0].get_yticklabels():
            label.set_parse_math(False)  # a token may hold dollar signs
        return figure, (
            f"At temperature {temperature:g} and top-p {top_p:g}, {count:,} of {len(ranked):,} tokens can be drawn, "
            f"“{with_spaces(candidates[0])}” with probability {drawn[0]:.2f}. The entropy, which says how "
            f"undecided the draw is, is {learned_bits:.2f} bits as the model has it, {_entropy(tempered):.2f} after "
            f"the temperature, {_entropy(drawn):.2f} after both."
        )

    controls = {
        "temperature": choice_slider("temperature", 0.7, TEMPERATURES),
        "top_p": choice_slider("top-p", 0.9, TOP_PS),
    }
    return Explorer(controls, view)


def guesses_by_layer(logits: Sequence[torch.Tensor], tokens: Sequence[int], tokenizer) -> Explorer:
    """Walk through a text and see the next token that each layer would guess if the model ended there: the logit lens.

    Source: nostalgebraist, "interpreting GPT: the logit lens", 2020.

    Args:
        logits: (T, V) for each depth, read after the embedding, then after each layer.
        tokens: (T,) numbers of the text.
        tokenizer: the model's; only `decode` is used.

    Raises:
        ValueError: depths of different shape, or not as many positions as tokens.
    """
    shapes = {tuple(depth.shape) for depth in logits}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2 or shape[0] != len(tokens) or not len(tokens):
        raise ValueError(
            f"logits has shapes {[tuple(depth.shape) for depth in logits]}, with {len(tokens)} tokens: "
            "expected (T, V) for each depth, and T tokens"
        )
    shown = [*range(0, len(logits) - 1, 1 + len(logits) // ROWS), len(logits) - 1]
    best = [logits[depth].detach().float().softmax(dim=-1).max(dim=-1) for depth in shown]
    probabilities = np.stack([found.values.cpu().numpy() for found in best])  # (depths, T)
    guesses = np.stack([found.indices.cpu().numpy() for found in best])
    names = [f"layer {depth - 1}" if depth else "embedding" for depth in shown]

    def view(position: int):
        guessed = guesses[:, position]
        texts = [repr(_short(tokenizer.decode([int(token)]))) for token in guessed]
        figure, axes = bare_figure(height_in=0.9 + 0.3 * len(names))
        plot_guesses(probabilities[:, position], guesses=texts, names=names, same=guessed == guessed[-1], ax=axes[0, 0])
        settled = len(names) - 1
        while settled and guessed[settled - 1] == guessed[-1]:
            settled -= 1
        settled_at = names[settled] if settled else "the embedding"
        read = drawable(tokenizer.decode([int(token) for token in tokens[: position + 1]])[-20:])
        return figure, (
            f"After “…{read}” the model answers {drawable(texts[-1])} with probability "
            f"{probabilities[-1, position]:.2f}; from {settled_at} on, that is the likeliest."
        )

    return Explorer({"position": count_slider("position", len(tokens) - 1, 0, len(tokens) - 1)}, view)


def _short(token: str) -> str:
    """As many characters of a token as the picture has room for."""
    while len(drawable(token)) > LONGEST:
        token = token[:-1]
    return token


def _entropy(probabilities: np.ndarray) -> float:
    """In bits; 0 · log2 0 is 0."""
    positive = probabilities[probabilities > 0]
    return abs(float((positive * np.log2(positive)).sum()))
