"""The task of the lesson on fine-tuning: letters that name two people, and a record that names the one who writes."""

import json

from .kinds.english import FAVOURITES
from .scribe import Scribe


def letters(split: str, count: int) -> str:
    """Write letters with their answers, a JSON object a line, as `finetune.read_examples` reads them.

    Each letter names its writer and another person, in any order; the answer is a record with the writer alone. Given
    and family name never stand together in both splits.

    Args:
        split: "train" or "held_out".
        count: of letters; of a larger number the first are the same.

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
