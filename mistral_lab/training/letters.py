"""The task of the lesson on fine-tuning: letters that name two people, and a record that names the writer."""

import json

from .kinds.english import FAVOURITES
from .scribe import Scribe


def letters(split: str, count: int) -> str:
    """Write letters with their answers, one JSON object per line, as `finetune.read_examples` reads them.

    Each letter names its writer and another person, in any order; the answer is a record with the writer alone. No pair
    of a given and a family name occurs in both splits.

    Args:
        split: "train" or "held_out".
        count: the number of letters. A larger number begins with the same letters.

    >>> from mistral_lab.training.scribe import TRAIN
    >>> first, second = letters(TRAIN, 2).split("\\n")
    >>> json.loads(second)["prompt"]
    'My favourite animal is the frog. My name is Oscar Bosch. On the door stood the name Cleo Doyle.'
    >>> json.loads(second)["answer"]
    '{"customer": "Oscar Bosch"}'
    """
    scribe, lines = Scribe(f"post/{split}", split), []
    for _ in range(count):
        topic, writer, other = scribe.pick(sorted(FAVOURITES)), scribe.name(), scribe.name()
        sentences = [f"My name is {writer}.", f"On the door stood the name {other}."]
        sentences.append(f"My favourite {topic} is {scribe.pick(FAVOURITES[topic])}.")
        scribe.random.shuffle(sentences)
        lines.append(json.dumps({"prompt": " ".join(sentences), "answer": json.dumps({"customer": writer})}))
    return "\n".join(lines)
