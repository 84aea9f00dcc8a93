"""Lesson 1: characters whose bytes come in pieces."""

import codecs
import itertools
from collections.abc import Callable

from .judging import Mistake, judge


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
