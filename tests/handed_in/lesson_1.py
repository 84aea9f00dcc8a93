"""Lesson 1: counting parameters, and the least time."""

from dataclasses import replace

import numpy as np
import torch


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


RIGHT = [
    ("least_time", lambda parameters, bits, bytes_per_s: parameters * (bits / 8) / bytes_per_s),
    ("parameter_count", counted_one_by_one),
    ("parameter_count", parameters),
    ("parameter_count", lambda config: float(counted_one_by_one(config))),
    ("parameter_count", lambda config: np.int64(parameters(config))),
    ("parameter_count", lambda config: torch.tensor(parameters(config))),
    ("least_time", lambda parameters, bits, bytes_per_s: parameters / (8 / bits) / bytes_per_s),
    ("least_time", lambda parameters, bits, bytes_per_s: (parameters * bits // 8) / bytes_per_s),
    ("least_time", lambda parameters, bits, bytes_per_s: np.float32(parameters * bits / (8 * bytes_per_s))),
    ("least_time", lambda parameters, bits, bytes_per_s: torch.tensor(parameters * 0.125 * bits / bytes_per_s)),
]


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
    ("least_time", lambda n, bits, rate: n * bits / rate, "8 times too long: are those bits"),
    ("least_time", lambda n, bits, rate: 2 * n * bits / 8 / rate, "a pass reads each weight once, and a byte has 8"),
    ("least_time", lambda n, bits, rate: n * max(1, bits // 8) / rate, "with 4 bits a weight is less than a byte"),
    ("least_time", lambda n, bits, rate: n * -(-bits // 8) / rate, "with 4 bits a weight is less than a byte"),
    ("least_time", lambda n, bits, rate: n * 4 / rate, "4 bytes for every weight, which is float32"),
    ("least_time", lambda n, bits, rate: rate / (n * bits / 8), "tokens per second"),
    ("least_time", lambda n, bits, rate: n * 2 / rate, "2 bytes for every weight"),
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
]
