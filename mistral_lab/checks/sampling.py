"""Lesson 1: the probabilities that a token is drawn with, and characters that come in pieces."""

import codecs
import itertools
from collections.abc import Callable

import torch

from ..sampling import kept_by_top_p, token_probabilities
from .judging import Mistake, judge
from .values import read_answer


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

    def kept(p, stays):
        descending, order = p.sort(descending=True)
        return torch.zeros_like(p).scatter(0, order, stays(descending).to(p))

    def cut(stays):
        def wrong(logits, temperature, top_p):
            p = tempered(logits, temperature)
            return scaled(p * kept(p, lambda descending: stays(descending, top_p)))

        return wrong

    def without_softmax(chances):
        def wrong(logits, temperature, top_p):
            p = chances(logits / temperature)
            return scaled(p * kept(p, lambda descending: descending.cumsum(0) - descending < top_p))

        return wrong

    def by_bare_exp(logits, temperature, top_p):
        powers = (logits / temperature).exp()
        p = powers / powers.sum()
        return scaled(p * kept(p, lambda descending: descending.cumsum(0) - descending < top_p))

    def likelier_may_reach(p, top_p):
        return p.cumsum(0) - p <= top_p

    def top_k_first(logits, temperature, top_p, k):
        few = logits.argsort(descending=True)[:k]
        return torch.zeros_like(logits).scatter(0, few, answer(logits[few], temperature, top_p).to(logits))

    def top_k_too(p, top_p, k):
        return (p.cumsum(0) - p < top_p) & (torch.arange(len(p)) < k)

    def likeliest_out(p, top_p):
        return p.cumsum(0) - p >= 1 - top_p

    def nucleus_out(p, top_p):
        return p.cumsum(0) - p >= top_p

    def divided_before_the_cut(logits, temperature, top_p):
        p = logits.softmax(0) / temperature
        return scaled(p * kept(p, lambda descending: descending.cumsum(0) - descending < top_p))

    def crossing_dropped(p, top_p):
        return p.cumsum(0) < top_p

    def crossing_dropped_but_one(p, top_p):
        return crossing_dropped(p, top_p) | (torch.arange(len(p)) == 0)

    def likeliest_first(p, top_p):
        return torch.arange(len(p)) < max(1, round(top_p * len(p)))

    def least_likely_first(logits, temperature, top_p):
        p = tempered(logits, temperature)
        rising, order = p.sort()
        return scaled(p * torch.zeros_like(p).scatter(0, order, (rising.cumsum(0) - rising < top_p).to(p)))

    def softened(logits, temperature, top_p):
        p = tempered(logits, temperature)
        return (p * kept_by_top_p(logits / temperature, top_p)).softmax(0)

    def hidden_by_zero(logits, temperature, top_p):
        return (logits / temperature * kept_by_top_p(logits / temperature, top_p)).softmax(0)

    def not_scaled(logits, temperature, top_p):
        return tempered(logits, temperature) * kept_by_top_p(logits / temperature, top_p)

    def cut_first(logits, temperature, top_p):
        return scaled(tempered(logits, temperature) * kept_by_top_p(logits, top_p))

    def threshold(least, *, at_least_one=False):
        def wrong(logits, temperature, top_p):
            p = tempered(logits, temperature)
            return scaled(p * (p >= (min(least(top_p), p.max()) if at_least_one else least(top_p))))

        return wrong

    logits = torch.tensor([0.10, 0.45, 0.05, 0.25, 0.15]).log() + 1.5  # logits need not be logarithms of probabilities
    exact = torch.tensor([0.25, 0.5, 0.125, 0.125]).log()  # the likeliest reaches one half, and no more is needed
    many = torch.linspace(0, 1, 100)
    peaked = torch.tensor([0.01, 0.02, 0.9, 0.03, 0.015, 0.02, 0.005]).log() - 2  # one token is more than top-p alone
    return judge(
        "draw_probabilities",
        function,
        answer=answer,
        cases=[(logits, 1.0, 0.97), (logits, 1.0, 0.6), (logits, 0.5, 0.97), (logits, 0.5, 0.6), (logits, 2.0, 0.6)]
        + [(logits.flip(0) * 2, 2.0, 0.6), (logits, 2.0, 0.2), (logits, 2.0, 1.0), (peaked, 1.0, 0.8)]
        + [(exact, 1.0, 0.5), (many, 1.0, 0.97), (many.flip(0), 1.0, 0.97), (logits + 1000, 1.0, 0.6)],
        mistakes=[
            Mistake(multiplied, "a temperature below 1 must sharpen, and yours flattens: do you multiply by it?"),
            Mistake(cut(crossing_dropped), "you drop the token that crosses the line: it stays"),
            Mistake(cut(crossing_dropped_but_one), "you drop the token that crosses the line: it stays"),
            Mistake(
                lambda logits, temperature, top_p: answer(logits, 1.0, top_p),
                "the temperature changes nothing: divide the logits by it, before the softmax",
            ),
            Mistake(
                lambda logits, temperature, top_p: tempered(logits, temperature),
                "top-p changes nothing: the least likely tokens must have a probability of 0",
            ),
            Mistake(
                lambda logits, temperature, top_p: answer(logits, 1.0, 1.0),
                "you return the softmax alone: the temperature and top-p change nothing",
            ),
            Mistake(
                without_softmax(lambda scaled_logits: scaled_logits),
                "you leave out the softmax: logits are no probabilities",
            ),
            *(
                Mistake(
                    threshold(least, at_least_one=at_least_one),
                    "top-p is no threshold for one token: add up, from the likeliest on",
                )
                for least in (lambda top_p: 1 - top_p, lambda top_p: top_p)
                for at_least_one in (False, True)
            ),
            Mistake(
                without_softmax(torch.exp),
                "the exponentials alone are no probabilities: divide by their sum before top-p cuts",
            ),
            Mistake(
                by_bare_exp,
                "the exponential of a logit near 1,000 is infinite: take `softmax`, or subtract the largest first",
            ),
            Mistake(
                cut(likelier_may_reach),
                "where the likelier tokens reach top_p exactly, they are enough: a token stays while they have less",
            ),
            *(
                Mistake(wrong, f"you keep {k} tokens at most, which is top-k: keep as many as top-p asks for")
                for k in (50, 40, 20, 10, 5)
                for wrong in (
                    lambda logits, temperature, top_p, k=k: top_k_first(logits, temperature, top_p, k),
                    cut(lambda p, top_p, k=k: top_k_too(p, top_p, k)),
                )
            ),
            *(
                Mistake(
                    wrong,
                    "you divide probabilities by the temperature: divide the logits by it, before the softmax",
                )
                for wrong in (
                    lambda logits, temperature, top_p: answer(logits, 1.0, top_p) / temperature,
                    divided_before_the_cut,
                )
            ),
            *(
                Mistake(
                    cut(stays), "you take out the likeliest tokens and keep the others: it is the least likely that go"
                )
                for stays in (likeliest_out, nucleus_out)
            ),
            Mistake(not_scaled, "your probabilities add to {got}, not to 1: scale up what stays"),
            Mistake(
                cut_first, "you cut before the temperature: in transformers the temperature comes first, then top-p"
            ),
            Mistake(
                cut(likeliest_first),
                "you keep a share of the tokens: top-p is a share of the probability, however many tokens that takes",
            ),
            Mistake(least_likely_first, "you add up from the least likely token: begin with the likeliest"),
            Mistake(softened, "you take a second softmax to scale up: divide by the sum of what stays"),
            Mistake(
                hidden_by_zero,
                "a logit of 0 still gets probability, because exp(0) is 1: take out tokens after the softmax, or make "
                "their logits minus infinity",
            ),
            Mistake(
                lambda logits, temperature, top_p: answer(logits, temperature, top_p).log(),
                "you return logarithms: take the probabilities themselves",
            ),
            Mistake(
                lambda logits, temperature, top_p: answer(logits, temperature, top_p).sort(descending=True).values,
                "your probabilities are sorted: give them in the order of the vocabulary",
            ),
        ],
        show=lambda p: f"{p.sum():.2f}",
        also=_keeps_one_of_two,
    )


def _keeps_one_of_two(function: Callable) -> str | None:
    """Whether of two equal tokens at the line one stays: which one is left open."""
    logits = torch.tensor([0.5, 0.25, 0.25]).log()
    stays = read_answer(function(logits, 1.0, 0.6), logits) > 0
    return None if stays.sum() == 2 else "of two equally likely tokens at the line you keep both: one is enough"


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

    def counted_in_threes(pieces, whole, errors):
        printed, held = [], b""
        for piece in pieces:
            held += piece
            printed.append(held.decode(errors=errors) if whole(len(held)) or held.isascii() else "")
            held = b"" if whole(len(held)) or held.isascii() else held
        return printed

    def emptied(pieces):
        printed, held = [], b""
        for piece in pieces:
            held += piece
            printed.append(held.decode(errors="ignore"))
            held = held if printed[-1] == "" else b""
        return printed

    def taken_out(pieces):
        texts = ["", *so_far(pieces)]
        return [new.replace(old, "") for old, new in itertools.pairwise(texts)]

    def end_printed(pieces):
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return [decoder.decode(piece, final=end == len(pieces)) for end, piece in enumerate(pieces, 1)]

    def signs_cut(pieces):
        so_far = [b"".join(pieces[: end + 1]).decode(errors="replace").rstrip("\ufffd") for end in range(len(pieces))]
        return [new[len(old) :] for old, new in itertools.pairwise(["", *so_far])]

    one, two, three, four = b"a", "é".encode(), "饕".encode(), "🦙".encode()
    return judge(
        "whole_characters",
        function,
        answer=answer,
        cases=[
            ([b"AI", b" is"],),
            ([three[:1], three[1:2], three[2:]],),
            ([one + three[:2], three[2:] + four[:1], four[1:], b"!"],),
            ([b"one", two[:1]],),
            ([two[:1], two[1:] + two + four[:3], four[3:] + three[:1]],),
            ([four[:2], four[2:3], four[3:]],),
            ([three],),
            ([one, one, two],),
            (["\ufffd".encode(), one],),  # the text itself may hold the sign
        ],
        mistakes=[
            *(
                Mistake(
                    lambda pieces, errors=errors: [piece.decode(errors=errors) for piece in pieces],
                    "you print {got}: a piece alone is no character; hold it back until the others have come",
                )
                for errors in ("replace", "backslashreplace")
            ),
            Mistake(
                lambda pieces: [piece.decode(errors="ignore") for piece in pieces],
                "you print {got}: pieces are lost; keep them until the character is whole",
            ),
            Mistake(
                lambda pieces: ["".join(map(chr, piece)) for piece in pieces],
                "you print {got}: a byte alone is no character; take the bytes of one together, and decode UTF-8",
            ),
            Mistake(
                lambda pieces: [piece.decode(errors="ignore") for piece in pieces if piece.decode(errors="ignore")],
                "you print {got}: pieces are lost, and each of the pieces needs an entry, '' where nothing is printed",
            ),
            Mistake(
                lambda pieces: [text for text in answer(pieces) if text],
                "you give {got}: each of the pieces needs an entry, '' where nothing is printed yet",
            ),
            Mistake(all_or_nothing, "you print {got}: whole characters wait with the piece that comes after them"),
            Mistake(so_far, "you print {got}: return only what is new with each piece"),
            Mistake(at_the_end, "you print {got}: print each character as soon as it is whole"),
            Mistake(
                lambda pieces: [*[""] * (len(pieces) - 1), b"".join(pieces).decode(errors="replace")],
                "you print {got}: print each character as soon as it is whole",
            ),
            *(
                Mistake(
                    lambda pieces, whole=whole, errors=errors: counted_in_threes(pieces, whole, errors),
                    "you print {got}: not every character takes 3 bytes; some take 1, 2 or 4",
                )
                for whole in (lambda held: held % 3 == 0, lambda held: held >= 3)
                for errors in ("replace", "ignore")
            ),
            Mistake(
                emptied,
                "you print {got}: when something is printed, an unfinished end of the buffer is thrown away with it",
            ),
            Mistake(
                taken_out, "you print {got}: a text that comes twice is lost; cut off what was printed by its length"
            ),
            Mistake(
                signs_cut,
                "you print {got}: a \ufffd may stand in the text; cut off unfinished bytes, not signs for them",
            ),
            Mistake(
                end_printed,
                "you print {got}: the last character is not whole yet, so it is held back; do not print a sign for it",
            ),
        ],
    )
