"""Lesson 1: the draw of the next token, and printing whole characters."""

import codecs
import itertools

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
    ("draw_probabilities", drawn),
    ("whole_characters", printed_pieces),
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


def few_of_the_nucleus(logits, temperature, top_p):
    p = (logits / temperature).softmax(0)
    p = p * top_p_of(p, top_p) * (p >= p.sort(descending=True).values[:5].min())
    return p / p.sum()


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


def without_signs(pieces):
    texts, so_far = [""], b""
    for piece in pieces:
        so_far += piece
        texts.append(so_far.decode("utf-8", "replace").rstrip("�"))
    return [new[len(old) :] for old, new in itertools.pairwise(texts)]


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


WRONG = [
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
    ("draw_probabilities", of_likeliest(10), "you keep 10 tokens at most"),
    ("draw_probabilities", few_of_the_nucleus, "you keep 5 tokens at most"),
    ("draw_probabilities", without_softmax, "you leave out the softmax"),
    ("draw_probabilities", powers_cut, "exponentials alone are no probabilities"),
    ("draw_probabilities", bare_powers, "exponential of a logit near 1,000 is infinite"),
    ("whole_characters", new_by_replacing, "a text that comes twice is lost"),
    ("whole_characters", without_signs, "may stand in the text; cut off unfinished bytes, not signs for them"),
    ("whole_characters", emptied_when_printed, "an unfinished end of the buffer is thrown away"),
    ("whole_characters", by_threes, r"you print \['a', '', .*not every character takes 3 bytes"),
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
    (
        "draw_probabilities",
        lambda x, t, top_p: softmaxed(x, t, top_p, lambda p, limit: p * (p > 1 - limit)),
        "top-p is no threshold",
    ),
    (
        "draw_probabilities",
        lambda x, t, top_p: softmaxed(x, t, top_p, lambda p, limit: p * (p >= min(1 - limit, p.max()))),
        "top-p is no threshold",
    ),
    (
        "draw_probabilities",
        lambda x, t, top_p: softmaxed(x, 1.0, top_p, lambda p, limit: p * top_p_of(p, limit)) / t,
        "you divide probabilities by the temperature: divide the logits",
    ),
    (
        "draw_probabilities",
        lambda x, t, top_p: softmaxed(x, 1.0, top_p, lambda p, limit: p * top_p_of(p / t, limit)),
        "you divide probabilities by the temperature: divide the logits",
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
        "you take out the likeliest tokens and keep the others",
    ),
    (
        "draw_probabilities",
        lambda x, t, top_p: softmaxed(x, t, top_p, lambda p, limit: p * (1 - top_p_of(p, limit))),
        "you take out the likeliest tokens and keep the others",
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
