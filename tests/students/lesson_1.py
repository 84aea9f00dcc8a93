"""Lesson 1: counting parameters, the least time, the draw, and printing whole characters."""

import numpy as np
import torch


def drawn(logits, temperature, top_p):
    weights = np.exp(np.asarray(logits) / temperature)
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


RIGHT = [
    ("least_time", lambda parameters, bits, bytes_per_s: parameters * (bits / 8) / bytes_per_s),
    ("draw_probabilities", drawn),
    ("whole_characters", printed_pieces),
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


WRONG = [
    ("least_time", lambda n, bits, rate: n * bits / rate, "8 times too long: are those bits"),
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
]
