"""Lesson 1: counting parameters, the least time, the draw, and printing whole characters."""

import codecs
import itertools
from dataclasses import replace

import numpy as np
import torch


def drawn(logits, temperature, top_p):
    weights = np.asarray(logits) / temperature
    weights = np.exp(weights - weights.max())
    weights /= weights.sum()
    together, kept = 0.0, np.zeros_like(weights)
    for token in np.argsort(-weights):
        if together < top_p:
            kept[token] = weights[token]
        together += weights[token]
    return kept / kept.sum()


def printed_pieces(pieces):
    waiting, printed = [], []
    for piece in pieces:
        text = ""
        for byte in piece:
            waiting.append(byte)
            lead = waiting[0]
            if len(waiting) == (1 if lead < 0x80 else 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4):
                text += bytes(waiting).decode()
                waiting = []
        printed.append(text)
    return printed


def counted_one_by_one(config):
    head, kv_head = config.dim * config.head_dim, config.dim * config.head_dim
    total = config.dim  # the last norm
    for _ in range(config.n_layers):
        total += 2 * config.n_heads * head + 2 * config.n_kv_heads * kv_head
        total += 3 * config.dim * config.hidden_dim + 2 * config.dim
    return total + 2 * config.vocab_size * config.dim


def parameters(config, kv_heads=None, matrices=3, norms=2, tables=2, last=1):
    dim, kv = config.dim, config.n_kv_heads if kv_heads is None else kv_heads(config)
    attention = dim * config.head_dim * (2 * config.n_heads + 2 * kv)
    layer = attention + matrices * dim * config.hidden_dim + norms * dim
    return tables * config.vocab_size * dim + config.n_layers * layer + last * dim


def sorted_and_cut(logits, temperature, top_p):
    p = torch.softmax(logits / temperature, dim=-1)
    ordered, order = torch.sort(p, descending=True)
    ordered[torch.cumsum(ordered, 0) - ordered >= top_p] = 0
    return torch.empty_like(p).scatter_(0, order, ordered / ordered.sum())


def cut_by_infinite_logits(logits, temperature, top_p):
    scaled = logits / temperature
    order = scaled.argsort(descending=True)
    total = scaled[order].softmax(0).cumsum(0)
    hidden = torch.zeros(len(logits), dtype=torch.bool)
    hidden[order[1:]] = total[:-1] >= top_p
    return scaled.masked_fill(hidden, float("-inf")).softmax(0)


def by_decoder(pieces):
    decoder = codecs.getincrementaldecoder("utf8")("strict")
    return [decoder.decode(piece) for piece in pieces]


def longest_start(pieces):
    held, printed = b"", []
    for piece in pieces:
        held += piece
        for end in range(len(held), -1, -1):
            try:
                text = held[:end].decode()
            except UnicodeDecodeError:
                continue
            printed.append(text)
            held = held[end:]
            break
    return printed


def by_what_is_new(pieces):
    texts = [""] + [b"".join(pieces[:end]).decode("utf-8", "ignore") for end in range(1, len(pieces) + 1)]
    return [new[len(old) :] for old, new in itertools.pairwise(texts)]


def by_position_of_the_error(pieces):
    held, printed = b"", []
    for piece in pieces:
        held += piece
        try:
            text, held = held.decode(), b""
        except UnicodeDecodeError as error:
            text, held = held[: error.start].decode(), held[error.start :]
        printed.append(text)
    return printed


def all_or_nothing(pieces):
    printed, held = [], b""
    for piece in pieces:
        held += piece
        try:
            printed.append(held.decode())
            held = b""
        except UnicodeDecodeError:
            printed.append("")
    return printed


def top_p_of(p, top_p):
    order = p.argsort(descending=True)
    kept = torch.zeros_like(p)
    kept[order] = (p[order].cumsum(0) - p[order] < top_p).to(p)
    return kept


def softmaxed(logits, temperature, top_p, change):
    p = change((logits / temperature).softmax(0), top_p)
    return p / p.sum()


RIGHT = [
    ("least_time", lambda parameters, bits, bytes_per_s: parameters * (bits / 8) / bytes_per_s),
    ("draw_probabilities", drawn),
    ("whole_characters", printed_pieces),
    ("parameter_count", counted_one_by_one),
    ("parameter_count", parameters),
    ("parameter_count", lambda config: float(counted_one_by_one(config))),
    ("parameter_count", lambda config: np.int64(parameters(config))),
    ("parameter_count", lambda config: torch.tensor(parameters(config))),
    ("least_time", lambda parameters, bits, bytes_per_s: parameters / (8 / bits) / bytes_per_s),
    ("least_time", lambda parameters, bits, bytes_per_s: (parameters * bits // 8) / bytes_per_s),
    ("least_time", lambda parameters, bits, bytes_per_s: np.float32(parameters * bits / (8 * bytes_per_s))),
    ("least_time", lambda parameters, bits, bytes_per_s: torch.tensor(parameters * 0.125 * bits / bytes_per_s)),
    ("draw_probabilities", sorted_and_cut),
    ("draw_probabilities", cut_by_infinite_logits),
    ("draw_probabilities", lambda logits, temperature, top_p: drawn(logits, temperature, top_p).tolist()),
    ("draw_probabilities", lambda logits, temperature, top_p: sorted_and_cut(logits.double(), temperature, top_p)),
    ("draw_probabilities", lambda logits, temperature, top_p: list(sorted_and_cut(logits, temperature, top_p))),
    ("whole_characters", by_decoder),
    ("whole_characters", longest_start),
    ("whole_characters", by_what_is_new),
    ("whole_characters", by_position_of_the_error),
    ("whole_characters", lambda pieces: tuple(by_decoder(pieces))),
]


def top_p_with(p, top_p, include):
    order = p.argsort(descending=True)
    kept, together = torch.zeros_like(p), 0.0
    for token in order:
        if include(together, p[token], top_p):
            kept[token] = p[token]
        together += p[token]
    return kept


def crossing_dropped(logits, temperature, top_p):
    kept = top_p_with((logits / temperature).softmax(0), top_p, lambda before, p, limit: before + p <= limit)
    return kept / kept.sum()


def hot(logits, temperature, top_p):
    kept = top_p_with((logits * temperature).softmax(0), top_p, lambda before, p, limit: before < limit)
    return kept / kept.sum()


def not_scaled(logits, temperature, top_p):
    return top_p_with((logits / temperature).softmax(0), top_p, lambda before, p, limit: before < limit)


def ties_kept(p, limit):
    least = p[top_p_of(p, limit) > 0].min()
    return p * (p >= least)


def of_likeliest(count):
    def wrong(logits, temperature, top_p):
        few = logits.argsort(descending=True)[:count]
        found = torch.zeros_like(logits)
        found[few] = torch.as_tensor(sorted_and_cut(logits[few], temperature, top_p))
        return found

    return wrong


def without_softmax(logits, temperature, top_p):
    p = logits / temperature
    p = p * top_p_of(p, top_p)
    return p / p.sum()


def powers_cut(logits, temperature, top_p):
    p = torch.exp(logits / temperature)
    p = p * top_p_of(p, top_p)
    return p / p.sum()


def bare_powers(logits, temperature, top_p):
    p = torch.exp(logits / temperature)
    p = p / p.sum()
    p = p * top_p_of(p, top_p)
    return p / p.sum()


def new_by_replacing(pieces):
    printed, before = [], ""
    for end in range(1, len(pieces) + 1):
        now = b"".join(pieces[:end]).decode(errors="ignore")
        printed.append(now.replace(before, "") if before else now)
        before = now
    return printed


def emptied_when_printed(pieces):
    printed, held = [], b""
    for piece in pieces:
        held += piece
        text = held.decode(errors="ignore")
        printed.append(text)
        if text:
            held = b""
    return printed


def by_threes(pieces):
    printed, held = [], b""
    for piece in pieces:
        held += piece
        if held.isascii() or len(held) >= 3:
            printed.append(held.decode(errors="ignore"))
            held = b""
        else:
            printed.append("")
    return printed


def summed(config, attention=None, feed_forward=None, norms=None):
    c = config
    layers = c.n_layers
    heads = 2 * c.dim * c.head_dim * (c.n_heads + c.n_kv_heads)
    total = heads * (layers if attention is None else attention)
    total += 3 * c.dim * c.hidden_dim * (layers if feed_forward is None else feed_forward)
    return total + ((2 * layers + 1) * c.dim if norms is None else norms) + 2 * c.vocab_size * c.dim


WRONG = [
    ("parameter_count", lambda c: summed(c, 1, 1), "in each of the 32 layers, and you count one layer"),
    ("parameter_count", lambda c: summed(c, feed_forward=1), "feed-forward network stands in each of the 32 layers"),
    ("parameter_count", lambda c: summed(c, attention=1), "attention stands in each of the 32 layers"),
    ("parameter_count", lambda c: summed(c, feed_forward=0), "feed-forward networks are missing"),
    ("parameter_count", lambda c: summed(c, attention=0), "attention is missing"),
    ("parameter_count", lambda c: summed(c, norms=c.n_layers * (2 * c.n_layers + 1) * c.dim), "not those of one layer"),
    ("parameter_count", lambda c: c.n_layers * summed(c, 1, 1), "tables and the last norm stand once, not in each"),
    (
        "parameter_count",
        lambda c: c.n_layers * summed(c, 1, 1, norms=0) + (2 * c.n_layers + 1) * c.dim,
        "the tables stand once, not in each of the 32 layers",
    ),
    ("parameter_count", lambda c: summed(c, norms=2 * c.n_layers + 1), "each norm has dim numbers"),
    (
        "parameter_count",
        lambda c: parameters(replace(c, head_dim=c.dim // c.n_heads)),
        "for dim 12, n_heads 6 and head_dim 4: a head is head_dim wide",
    ),
    (
        "parameter_count",
        lambda c: parameters(c) + 2 * c.dim * c.dim,
        r"\Afor config = ModelConfig\(vocab_size=32000, dim=4096, [^)]*hidden_dim=14336\): your answer is",
    ),
    ("least_time", lambda n, bits, rate: round(n * bits / 8 / rate, 3), "drops the fraction, as rounding does"),
    (
        "draw_probabilities",
        lambda x, t, top_p: softmaxed(
            x, t, top_p, lambda p, limit: top_p_with(p, limit, lambda before, p, limit: before <= limit)
        ),
        "reach top_p exactly, they are enough",
    ),
    (
        "draw_probabilities",
        lambda x, t, top_p: softmaxed(x, t, top_p, ties_kept),
        "of two equally likely tokens at the line you keep both",
    ),
    ("draw_probabilities", of_likeliest(50), "you keep 50 tokens at most"),
    ("draw_probabilities", of_likeliest(10), "95 of 100 values are wrong"),
    ("draw_probabilities", without_softmax, "you leave out the softmax"),
    ("draw_probabilities", powers_cut, "exponentials alone are no probabilities"),
    ("draw_probabilities", bare_powers, "exponential of a logit near 1,000 is infinite"),
    ("whole_characters", new_by_replacing, "a text that comes twice is lost"),
    ("whole_characters", emptied_when_printed, "an unfinished end of the buffer is thrown away"),
    ("whole_characters", by_threes, r"your answer is \['a', '', .*expected \['a', '饕'"),
    ("least_time", lambda n, bits, rate: n * bits / rate, "8 times too long: are those bits"),
    ("least_time", lambda n, bits, rate: 2 * n * bits / 8 / rate, "a pass reads each weight once, and a byte has 8"),
    ("least_time", lambda n, bits, rate: n * max(1, bits // 8) / rate, "with 4 bits a weight is less than a byte"),
    ("least_time", lambda n, bits, rate: n * -(-bits // 8) / rate, "with 4 bits a weight is less than a byte"),
    ("least_time", lambda n, bits, rate: n * 4 / rate, "4 bytes for every weight, which is float32"),
    ("least_time", lambda n, bits, rate: rate / (n * bits / 8), "tokens per second"),
    ("least_time", lambda n, bits, rate: n * 2 / rate, "2 bytes for every weight"),
    ("draw_probabilities", hot, "below 1 must sharpen.*multiply by it"),
    ("draw_probabilities", crossing_dropped, "drop the token that crosses the line"),
    ("draw_probabilities", not_scaled, r"add to 0\.\d\d, not to 1: scale up"),
    ("draw_probabilities", lambda logits, temperature, top_p: drawn(logits, 1.0, top_p), "temperature changes nothing"),
    (
        "draw_probabilities",
        lambda logits, temperature, top_p: (logits / temperature).softmax(0),
        "top-p changes nothing",
    ),
    ("whole_characters", lambda pieces: [p.decode(errors="replace") for p in pieces], "hold it back"),
    ("whole_characters", lambda pieces: [p.decode(errors="ignore") for p in pieces], "pieces are lost"),
    (
        "whole_characters",
        lambda pieces: [*[""] * (len(pieces) - 1), b"".join(pieces).decode(errors="ignore")],
        "as soon as",
    ),
    ("whole_characters", lambda pieces: [p.decode() for p in pieces], "raises UnicodeDecodeError"),
    ("parameter_count", lambda c: parameters(c, kv_heads=lambda c: c.n_heads), "have 8 heads, not 32 as queries"),
    ("parameter_count", lambda c: parameters(c, tables=1), "a table is missing"),
    ("parameter_count", lambda c: parameters(c, matrices=2), "three matrices, not two"),
    ("parameter_count", lambda c: parameters(c, norms=0, last=0), "the norms are missing"),
    ("parameter_count", lambda c: parameters(c, last=0), "get 7,241,728,000: the last norm is missing"),
    ("parameter_count", lambda c: parameters(c, norms=1), "each layer has two norms"),
    ("parameter_count", lambda c: 2 * parameters(c), "is that bytes"),
    ("parameter_count", lambda c: parameters(c) - c.dim * c.n_layers * c.n_heads * c.head_dim, "one is missing"),
    (
        "parameter_count",
        lambda c: 2 * c.vocab_size * c.dim + c.n_layers * (4 * c.dim**2 + 3 * c.dim * c.hidden_dim + 2 * c.dim) + c.dim,
        "not four matrices of one size",
    ),
    ("parameter_count", lambda c: 7_241_732_096, "whatever `config` is"),
    ("least_time", lambda n, bits, rate: 1e3 * n * bits / 8 / rate, "milliseconds: seconds are asked for"),
    ("least_time", lambda n, bits, rate: n / 1e9 * bits / 8 / rate, "10.9 times too little"),
    ("least_time", lambda n, bits, rate: n * bits / 8 / (rate / 1e9), "bytes, not in GB"),
    ("least_time", lambda n, bits, rate: n * bits / 8 / (rate / 2**30), "1.074e[+]09 times too large: is it a unit"),
    ("least_time", lambda n, bits, rate: n * bits // 8 // rate, "drops the fraction"),
    ("least_time", lambda n, bits, rate: n * bits * 8 / rate, "not multiplied"),
    ("least_time", lambda n, bits, rate: n * bits / 8 * rate, "what gives seconds is a division"),
    ("least_time", lambda n, bits, rate: -n * bits / 8 / rate, "wrong sign"),
    (
        "draw_probabilities",
        lambda x, t, top_p: softmaxed(x, t, top_p, lambda p, limit: p * (p > 1 - limit)),
        "top-p is no threshold",
    ),
    (
        "draw_probabilities",
        lambda x, t, top_p: softmaxed(x, 1.0, top_p, lambda p, limit: p * top_p_of(p, limit)) / t,
        r"temperature = 0.5, .*5 of 5 values are wrong, the first at \[0\]",
    ),
    (
        "draw_probabilities",
        lambda x, t, top_p: softmaxed(x, t, top_p, lambda p, limit: p * top_p_of(x.softmax(0), limit)),
        "you cut before the temperature",
    ),
    (
        "draw_probabilities",
        lambda x, t, top_p: softmaxed(x, t, top_p, lambda p, limit: (p * top_p_of(p, limit)).sort().values.flip(0)),
        "are sorted",
    ),
    (
        "draw_probabilities",
        lambda x, t, top_p: ((x / t).softmax(0) * top_p_of((x / t).softmax(0), top_p)).softmax(0),
        "a second softmax",
    ),
    (
        "draw_probabilities",
        lambda x, t, top_p: softmaxed(x, t, top_p, lambda p, limit: p * (1 - top_p_of(p, 1 - limit))),
        r"5 of 5 values are wrong, the first at \[0\]",
    ),
    ("whole_characters", all_or_nothing, "whole characters wait"),
    (
        "whole_characters",
        lambda pieces: [b"".join(pieces[:end]).decode(errors="ignore") for end in range(1, len(pieces) + 1)],
        "only what is new",
    ),
    ("whole_characters", lambda pieces: [text for text in by_decoder(pieces) if text], "needs an entry"),
    ("whole_characters", lambda pieces: "".join(by_decoder(pieces)), "returns text: expected a list of 2 str"),
    ("whole_characters", lambda pieces: [piece.decode("latin-1") for piece in pieces], "a byte alone is no character"),
]
