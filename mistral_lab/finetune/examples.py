"""Training examples: read with every line checked, and tokenised with the loss on the answer alone."""

import errno
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

KEYS = ("prompt", "answer")
SEPARATOR = "\n"  # between prompt and answer, in training and in evaluation
IGNORED = -100  # the label that PyTorch's cross-entropy ignores
SHOWN = 60  # characters of a wrong value that an error message quotes
NO_FILE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


@dataclass(frozen=True)
class Example:
    """A prompt, the expected answer, and the line of the file that holds both (0 where there is no file)."""

    prompt: str
    answer: str
    line: int = 0


def read_examples(source: str | os.PathLike) -> list[Example]:
    """Read examples, one JSON object per line; a single wrong line refuses the whole file.

    Args:
        source: a file, or the text itself. It is taken as text where its first character is "{" or it has more than
            one line. Every line is {"prompt": "...", "answer": "..."}; empty lines and further keys are ignored.

    Raises:
        FileNotFoundError, IsADirectoryError: there is no such file, or it is a folder.
        TypeError: the source is neither a path nor text.
        ValueError: a line is wrong (the message gives the number of the first one and what is wrong there), or there
            are fewer than two examples, so that none would be left for the evaluation.

    >>> [example] = read_examples('{"prompt": "2 + 2 =", "answer": "4"}\\n{"prompt": "3 + 3 =", "answer": "6"}')[1:]
    >>> example.answer, example.line
    ('6', 2)
    """
    examples, wrong = [], []
    text = _read(source)
    for number, line in enumerate(text.split("\n" if isinstance(text, str) else b"\n"), 1):
        if not line.strip():
            continue
        try:
            examples.append(_example(line, number))
        except ValueError as error:
            wrong.append(f"line {number}: {error}")
        except RecursionError:
            wrong.append(f"line {number}: nested too deeply: expected an object with the keys prompt and answer")
    if wrong and _is_list(text):
        raise ValueError("a JSON list: write one object per line, without brackets around them and commas between them")
    if wrong:
        raise ValueError(wrong[0] + (f" ({len(wrong) - 1} more lines are wrong)" if wrong[1:] else ""))
    if not examples:
        raise ValueError('there is no example: expected lines such as {"prompt": "...", "answer": "..."}')
    if len(examples) == 1:
        raise ValueError(
            f"line {examples[0].line} is the only example: expected two or more, so that one can be kept for evaluation"
        )
    return examples


def _read(source: str | os.PathLike) -> bytes | str:
    """The text itself, or the bytes of the file."""
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"source is a {type(source).__name__}: expected a path, or the text itself")
    if isinstance(source, str):
        text = source.removeprefix("\ufeff")  # Windows starts a text with a byte order mark, three bytes in a file
        if not text.strip() or "\n" in text or text.lstrip().startswith(("{", "[{")):
            return text
    try:
        return Path(source).read_bytes().removeprefix(b"\xef\xbb\xbf")
    except IsADirectoryError:
        raise IsADirectoryError(f"{_cut(repr(str(source)))} is a folder: expected a file, or the text itself") from None
    except (OSError, ValueError) as error:  # ValueError: the path holds a NUL
        if isinstance(error, OSError) and error.errno not in NO_FILE:
            raise
        raise FileNotFoundError(f"no file {_cut(repr(str(source)))}: expected a path, or the text itself") from None


def _is_list(text: bytes | str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


def _cut(text: str) -> str:
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _example(line: bytes | str, number: int) -> Example:
    try:
        text = line.decode() if isinstance(line, bytes) else line
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start + 1} is not UTF-8: save the file as UTF-8") from None
    try:
        entry = json.loads(text)
    except ValueError as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        place = f" at character {error.pos + 1}" if isinstance(error, json.JSONDecodeError) else ""
        raise ValueError(f"not JSON ({reason}{place})") from None
    if not isinstance(entry, dict):
        raise ValueError(f"a JSON {type(entry).__name__}: expected an object with the keys prompt and answer")
    for key in KEYS:
        if key not in entry:
            raise ValueError(f"the key {key!r} is missing; there is {_cut(', '.join(map(repr, entry))) or 'none'}")
        if not isinstance(entry[key], str):
            raise ValueError(f"{key!r} is {_cut(repr(entry[key]))}: expected text")
        if not entry[key].strip():
            raise ValueError(f"{key!r} is empty")
        try:
            entry[key].encode()
        except UnicodeEncodeError as error:
            half = entry[key][error.start]
            raise ValueError(f"{key!r} holds {half!a}, half of a character: expected both halves, or neither") from None
    return Example(entry["prompt"], entry["answer"], number)


def tokenise(tokenizer: PreTrainedTokenizerBase, example: Example, *, max_tokens: int) -> dict[str, list[int]]:
    """Turn an example into tokens and labels, so that the answer and the end token alone enter the loss.

        tokens  <s>   Who   is   it  ?    \\n    Ida  Kaur  </s>
        labels  -100  -100 -100 -100 -100 -100  Ida  Kaur  </s>

    The model itself shifts the labels: the label at a position is predicted from the tokens before it.

    Args:
        tokenizer: the model's tokenizer.
        example: a prompt and its answer.
        max_tokens: the length of the model's context.

    Returns:
        "input_ids" and "labels", of the same length.

    Raises:
        ValueError: the example takes more tokens than the context holds, or contains the text of a control token, which
            the model would read as one. The message gives the example's line.
    """
    where = f"line {example.line}" if example.line else f"the example {example.prompt[:40]!r}"
    for key in KEYS:
        for control in tokenizer.all_special_tokens:
            if control in getattr(example, key):
                raise ValueError(
                    f"{where}: {key!r} holds {control}, which the model reads as a control token: leave it out"
                )
    prompt = tokenizer(example.prompt + SEPARATOR).input_ids
    answer = [*tokenizer(example.answer, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    if len(prompt) + len(answer) > max_tokens:
        raise ValueError(
            f"{where}: the prompt takes {len(prompt):,} tokens and the answer {len(answer):,}, together more than the "
            f"model's context of {max_tokens:,}: shorten it or leave it out"
        )
    return {"input_ids": prompt + answer, "labels": [IGNORED] * len(prompt) + answer}


def collate(rows: Sequence[dict[str, list[int]]], *, pad_token_id: int) -> dict[str, torch.Tensor]:
    """Put tokenised examples into one batch, padded on the right.

    Args:
        rows: what `tokenise` returned, row i with T_i tokens.
        pad_token_id: the token to pad with.

    Returns:
        "input_ids", "labels" and "attention_mask", each (B, T) with T the largest T_i. Padding has the label -100: an
        end token that also serves as padding is learnt where it ends an answer, and only there.

    >>> batch = collate([{"input_ids": [1, 7, 2], "labels": [-100, 7, 2]}, {"input_ids": [1], "labels": [-100]}],
    ...     pad_token_id=2)
    >>> batch["input_ids"].tolist(), batch["labels"].tolist()
    ([[1, 7, 2], [1, 2, 2]], [[-100, 7, 2], [-100, -100, -100]])
    """
    longest = max(len(row["input_ids"]) for row in rows)

    def padded(values: list[list[int]], filler: int) -> torch.Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in values])

    return {
        "input_ids": padded([row["input_ids"] for row in rows], pad_token_id),
        "labels": padded([row["labels"] for row in rows], IGNORED),
        "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
    }
