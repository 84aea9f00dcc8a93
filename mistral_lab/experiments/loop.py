"""Lesson 1: one text on its way round the loop, token after token, and the scores of what may come next."""

from dataclasses import dataclass

import numpy as np
import torch

from ..loading.loaded import Loaded
from ..sampling import check_sampling, token_probabilities

ROW_NUMBERS = 6  # of an embedding's row, to look at
CANDIDATES = 5  # of each draw, to look at


@dataclass(frozen=True)
class Trip:
    """A prompt and the tokens that a model added to it, one by one.

    Args:
        texts: (tokens,) of each token by itself; one that is no whole character alone is U+FFFD.
        ids: (tokens,) its number in the vocabulary, which is the row of the embedding.
        prompt_tokens: how many of them are the prompt, the start token included.
        rows: (tokens, numbers) the first numbers of each row.
        layers, vocab_size: of the model.
        candidates: (new, shown) texts of the likeliest tokens at each draw; the drawn one is always among them.
        probabilities: (new, shown) of each of them at that temperature, before top-p.
        kept: (new, shown) bool, which of them top-p left to be drawn.
        drawn: (new,) the place of the drawn one among them.
    """

    texts: tuple[str, ...]
    ids: tuple[int, ...]
    prompt_tokens: int
    rows: np.ndarray
    layers: int
    vocab_size: int
    candidates: tuple[tuple[str, ...], ...]
    probabilities: np.ndarray
    kept: np.ndarray
    drawn: tuple[int, ...]


@torch.no_grad()
def follow_tokens(
    loaded: Loaded,
    prompt: str,
    *,
    new_tokens: int = 4,
    temperature: float = 0.7,
    top_p: float = 0.9,
    seed: int = 0,
) -> Trip:
    """Let a model write a few tokens, and note everything on the way: ids, rows, scores, draws.

    The whole prompt goes through the model in one pass. Each new token then goes alone, beside a cache of the keys and
    values of all earlier ones.

    Args:
        loaded: a model of transformers with its tokenizer.
        prompt: text that is continued.
        new_tokens: how many are drawn.
        temperature, top_p: as in `generate_text`.
        seed: of the draws, which are made on the CPU.

    Raises:
        TypeError, ValueError: an argument outside its range.
    """
    check_sampling(new_tokens, temperature, top_p, seed)
    model, tokenizer = loaded.model, loaded.tokenizer
    random = torch.Generator().manual_seed(seed)
    ids = tokenizer(prompt)["input_ids"]
    prompt_tokens = len(ids)
    waiting, cache = torch.tensor([ids], device=model.device), None
    candidates, probabilities, kept, drawn = [], [], [], []
    for _ in range(new_tokens):
        out = model(waiting, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        logits = out.logits[0, -1].float().cpu()
        chances = token_probabilities(logits, temperature=temperature, top_p=1.0)
        left = token_probabilities(logits, temperature=temperature, top_p=top_p)
        token = int(left.multinomial(1, generator=random))
        shown = chances.argsort(descending=True, stable=True)[:CANDIDATES].tolist()
        if token not in shown:
            shown[-1] = token
        candidates.append(tuple(tokenizer.decode([one]) for one in shown))
        probabilities.append(chances[shown].numpy())
        kept.append((left[shown] > 0).numpy())
        drawn.append(shown.index(token))
        ids.append(token)
        waiting = torch.tensor([[token]], device=model.device)
    rows = model.get_input_embeddings()(torch.tensor(ids, device=model.device))[:, :ROW_NUMBERS]
    return Trip(
        texts=tuple(tokenizer.decode([token]) for token in ids),
        ids=tuple(ids),
        prompt_tokens=prompt_tokens,
        rows=rows.float().cpu().numpy(),
        layers=loaded.config.n_layers,
        vocab_size=loaded.config.vocab_size,
        candidates=tuple(candidates),
        probabilities=np.array(probabilities),
        kept=np.array(kept),
        drawn=tuple(drawn),
    )


@torch.no_grad()
def next_logits(loaded: Loaded, text: str) -> torch.Tensor:
    """Return the score of each token of the vocabulary as the next one after a text: (V,) float64, on the CPU."""
    tokens = loaded.tokenizer(text, return_tensors="pt").to(loaded.model.device)
    return loaded.model(**tokens).logits[0, -1].cpu().double()
