"""Lesson 1: the parameters of a model, the least time of a token, the draw, and characters that come in pieces."""

import codecs
from collections.abc import Callable
from dataclasses import replace

import torch

from ..config import PRESETS, ModelConfig
from ..memory import parameter_counts
from ..sampling import kept_by_top_p, token_probabilities
from .judging import Mistake, judge


def parameter_count(function: Callable) -> Callable:
    """Check `function(config)`: the parameters of a dense model whose input and output tables are two.

    >>> my_answer = parameter_count(lambda config: NotImplemented)
    parameter_count: not tried yet; the lesson goes on with its own
    """

    def answer(config):
        return parameter_counts(config).total

    def counted(tables=2, matrices=3, norms=2, last_norm=1, kv=None, width=None, layers=None):
        def wrong(config):
            width_of_heads = config.n_heads * config.head_dim if width is None else width(config)
            kv_heads = config.n_kv_heads if kv is None else kv(config)
            layer = (
                config.dim * (2 * width_of_heads + 2 * kv_heads * config.head_dim)
                + matrices * config.dim * config.hidden_dim
                + norms * config.dim
            )
            layers_counted = config.n_layers if layers is None else layers
            return tables * config.vocab_size * config.dim + layers_counted * layer + last_norm * config.dim

        return wrong

    config = ModelConfig(
        vocab_size=50,
        dim=12,
        n_layers=3,
        n_heads=6,
        n_kv_heads=2,
        head_dim=4,
        hidden_dim=20,
        norm_eps=1e-5,
        rope_theta=1e4,
        max_positions=64,
    )
    changes = ("vocab_size", 70), ("dim", 16), ("n_layers", 5), ("n_heads", 8), ("n_kv_heads", 1), ("head_dim", 6)
    return judge(
        "parameter_count",
        function,
        answer=answer,
        cases=[(PRESETS["mistral-7b-v0.1"],), (config,)]
        + [(replace(config, **{name: size}),) for name, size in (*changes, ("hidden_dim", 28))],
        mistakes=[
            Mistake(
                counted(kv=lambda config: config.n_heads),
                "you get {got}: keys and values have {config.n_kv_heads} heads, not {config.n_heads} as queries have",
            ),
            Mistake(counted(tables=1), "you get {got}: a table is missing; the input and the output have one each"),
            Mistake(counted(matrices=2), "you get {got}: the feed-forward network has three matrices, not two"),
            Mistake(counted(layers=1), "you get {got}, with one layer: there are {config.n_layers}"),
            Mistake(
                counted(norms=0, last_norm=0), "you get {got}: the norms are missing, 2 in each layer and 1 at the end"
            ),
            Mistake(counted(last_norm=0), "you get {got}: the last norm is missing, after all layers"),
            Mistake(counted(norms=1), "you get {got}: each layer has two norms"),
            Mistake(counted(tables=0), "you get {got}: the tables are missing, at the input and at the output"),
            Mistake(
                counted(width=lambda config: config.dim),
                "you get {got}: the query heads are together n_heads times head_dim wide, which need not be dim",
            ),
        ],
    )


def least_time(function: Callable) -> Callable:
    """Check `function(parameters, bits, bytes_per_s)`: the least seconds in which memory delivers the weights.

    >>> my_answer = least_time(lambda parameters, bits, bytes_per_s: NotImplemented)
    least_time: not tried yet; the lesson goes on with its own
    """

    def answer(parameters, bits, bytes_per_s):
        return parameters * bits / 8 / bytes_per_s

    return judge(
        "least_time",
        function,
        answer=answer,
        cases=[(8e9, 16, 1e11), (8e9, 4, 1e11), (2e9, 16, 1e11), (8e9, 16, 5e10)],
        mistakes=[
            Mistake(
                lambda parameters, bits, bytes_per_s: parameters * bits / bytes_per_s,
                "your time is 8 times too long: are those bits where bytes are meant?",
            ),
            Mistake(
                lambda parameters, bits, bytes_per_s: parameters * bits / 4 / bytes_per_s,
                "your time is twice too long: how many bits has a byte?",
            ),
            Mistake(
                lambda parameters, bits, bytes_per_s: parameters * 4 / bytes_per_s,
                "you count 4 bytes for every weight, which is float32: here a weight has {bits} bits",
            ),
            Mistake(
                lambda parameters, bits, bytes_per_s: bytes_per_s / (parameters * bits / 8),
                "you return tokens per second: the question is how many seconds one takes",
            ),
        ],
    )


def draw_probabilities(function: Callable) -> Callable:
    """Check `function(logits (V,), temperature, top_p) -> (V,)`: the probabilities that a token is drawn with.

    >>> my_answer = draw_probabilities(lambda logits, temperature, top_p: NotImplemented)
    draw_probabilities: not tried yet; the lesson goes on with its own
    """

    def answer(logits, temperature, top_p):
        return token_probabilities(logits, temperature=temperature, top_p=top_p)

    def tempered(logits, temperature):
        return (logits / temperature).softmax(0)

    def scaled(p):
        return p / p.sum()

    def multiplied(logits, temperature, top_p):
        return answer(logits * temperature**2, temperature, top_p)

    def crossing_dropped(logits, temperature, top_p):
        p = tempered(logits, temperature)
        descending, order = p.sort(descending=True)
        stays = torch.zeros_like(p)
        stays[order] = (descending.cumsum(0) < top_p).to(p)
        return scaled(p * stays)

    def not_scaled(logits, temperature, top_p):
        return tempered(logits, temperature) * kept_by_top_p(logits / temperature, top_p)

    def cut_first(logits, temperature, top_p):
        return scaled(tempered(logits, temperature) * kept_by_top_p(logits, top_p))

    def threshold(logits, temperature, top_p):
        p = tempered(logits, temperature)
        return scaled(p * (p >= 1 - top_p))

    logits = torch.tensor([0.10, 0.45, 0.05, 0.25, 0.15], dtype=torch.float64).log()
    return judge(
        "draw_probabilities",
        function,
        answer=answer,
        cases=[(logits, 1.0, 0.97), (logits, 1.0, 0.6), (logits, 0.5, 0.97), (logits, 0.5, 0.6), (logits, 2.0, 0.6)]
        + [(logits.flip(0) * 2, 2.0, 0.6), (logits, 2.0, 0.2), (logits, 2.0, 1.0)],
        mistakes=[
            Mistake(multiplied, "a temperature below 1 must sharpen, and yours flattens: do you multiply by it?"),
            Mistake(crossing_dropped, "you drop the token that crosses the line: it stays"),
            Mistake(not_scaled, "your probabilities add to {got}, not to 1: scale up what stays"),
            Mistake(cut_first, "you cut before the temperature: temperature comes first, then top-p"),
            Mistake(threshold, "top-p is no threshold for one token: add up, from the likeliest on"),
            Mistake(
                lambda logits, temperature, top_p: answer(logits, temperature, top_p).sort(descending=True).values,
                "your probabilities are sorted: give them in the order of the vocabulary",
            ),
        ],
        show=lambda p: f"{p.sum():.2f}",
    )


def whole_characters(function: Callable) -> Callable:
    """Check `function(pieces)`: for each piece of UTF-8, the text that can be printed once it has come.

    >>> my_answer = whole_characters(lambda pieces: NotImplemented)
    whole_characters: not tried yet; the lesson goes on with its own
    """

    def answer(pieces):
        decoder = codecs.getincrementaldecoder("utf-8")()
        return [decoder.decode(piece) for piece in pieces]

    def all_or_nothing(pieces):
        printed, held = [], b""
        for piece in pieces:
            held += piece
            text = held.decode(errors="replace")
            whole = "\ufffd" not in text
            printed.append(text if whole else "")
            held = b"" if whole else held
        return printed

    def so_far(pieces):
        return [b"".join(pieces[: end + 1]).decode(errors="ignore") for end in range(len(pieces))]

    def at_the_end(pieces):
        return [""] * (len(pieces) - 1) + [b"".join(pieces).decode(errors="ignore")]

    return judge(
        "whole_characters",
        function,
        answer=answer,
        cases=[
            ([b"AI", b" is"],),
            (["饕".encode()[:1], "饕".encode()[1:2], "饕".encode()[2:]],),
            ([b"a" + "饕".encode()[:2], "饕".encode()[2:] + "🦙".encode()[:1], "🦙".encode()[1:], b"!"],),
            ([b"one", "é".encode()[:1]],),
        ],
        mistakes=[
            Mistake(
                lambda pieces: [piece.decode(errors="replace") for piece in pieces],
                "you print {got}: a piece alone is no character; hold it back until the others have come",
            ),
            Mistake(
                lambda pieces: [piece.decode(errors="ignore") for piece in pieces],
                "you print {got}: pieces are lost; keep them until the character is whole",
            ),
            Mistake(all_or_nothing, "you print {got}: whole characters wait with the piece that comes after them"),
            Mistake(so_far, "you print {got}: return only what is new with each piece"),
            Mistake(at_the_end, "you print {got}: print each character as soon as it is whole"),
        ],
    )
