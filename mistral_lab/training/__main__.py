"""`python -m mistral_lab.training`: train the bundled models, record what lessons show of others, write the card.

Recorded are a model with interleaved windows, the router while it trains, and adapters of many ranks.
"""

import argparse
import json
import os
import sys
import time
import zlib
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import (
    AutoModelForCausalLM,
    PreTrainedTokenizerBase,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from .. import checkpoints
from ..files import write_json, write_whole
from ..measure import processor
from . import card, windows
from .adapter_ranks import as_json, measure_ranks
from .corpus import KINDS
from .evaluation import held_out
from .recipes import INTERLEAVED, RECIPES, SHAPE, TRACES, Recipe
from .tokenizer import train_tokenizer
from .traces import LoadTrace
from .trainer import Blocks, export, train

BUNDLED = checkpoints.BUNDLED["tiny-mistral"].parent


class Clock(TrainerCallback):
    """Adds up the seconds of a run over interruptions.

    The steps after the last checkpoint are done again after an interruption, and their time counts again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = json.loads(path.read_text())["seconds"] if path.exists() else 0.0
        self.started = time.perf_counter()

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs) -> None:
        """Write the seconds down whenever a checkpoint is written."""
        seconds = self.before + time.perf_counter() - self.started
        run = {
            "seconds": round(seconds),
            "threads": torch.get_num_threads(),
            "processor": processor(),
            "torch": torch.__version__,
        }
        write_whole(self.path, json.dumps(run) + "\n")


def prepare(folder: Path, recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> None:
    """Create the folder for checkpoints, or refuse one that holds those of another recipe, model shape or text."""
    folder.mkdir(parents=True, exist_ok=True)
    data = Blocks(tokenizer, length=recipe.length, size=16, ramp=1)
    text = "".join(str(data[i]["input_ids"].tolist()) for i in range(len(data)))
    path, facts = folder / "recipe.json", json.dumps(asdict(recipe) | SHAPE | {"text": zlib.crc32(text.encode())})
    if not path.exists():
        write_whole(path, facts)
    elif path.read_text(encoding="utf-8") != facts:
        raise ValueError(f"{folder} holds checkpoints of another recipe: delete it to train {recipe.name} as it is now")


def train_and_export(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, folder: Path, exported: Path, runs: Path
) -> None:
    """Train a recipe, or go on where its run stopped; write the model, and the run's facts among those in `runs`.

    Args:
        recipe: what to train.
        tokenizer: the tokenizer of the model.
        folder: where checkpoints go.
        exported: where the model goes.
        runs: the file with the facts of all runs, as `card.render` takes them.
    """
    prepare(folder, recipe, tokenizer)
    clock = Clock(folder / "run.json")
    export(train(recipe, tokenizer, folder, callbacks=[clock]), tokenizer, exported)
    known = json.loads(runs.read_text()) if runs.exists() else {}
    write_json(runs, known | {recipe.name: json.loads(clock.path.read_text())})


def record_windows(bundled: Path, interleaved: Path, tokenizer: PreTrainedTokenizerBase) -> str:
    """Measure the model with interleaved windows beside the shipped ones, and return the record as JSON.

    Args:
        bundled: the folder of the shipped models.
        interleaved: the model that is recorded.
        tokenizer: the tokenizer of all of them.
    """
    mistral, mixtral = (bundled / name for name in RECIPES)
    models = {  # from the one that sees least
        name: AutoModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
        for name, folder in ((mistral.name, mistral), (INTERLEAVED.name, interleaved), (mixtral.name, mixtral))
    }
    encoded, asked = (held_out(tokenizer, count) for count in (card.DOCUMENTS, card.RECALL_DOCUMENTS))
    for_the_card = card.measure_model(models[INTERLEAVED.name], tokenizer, encoded, asked)
    found = windows.measure_windows(models, tokenizer, documents=card.DOCUMENTS, asked=card.RECALL_DOCUMENTS)
    return windows.as_json(found, for_the_card=for_the_card)


def main(arguments: list[str] | None = None) -> None:
    """Train what the command line names, then measure the models and write the card."""
    parser = argparse.ArgumentParser(prog="python -m mistral_lab.training", description=__doc__)
    parts = [*RECIPES, INTERLEAVED.name, "traces", "ranks", "card"]
    parser.add_argument("--only", choices=parts, help="do one part (default: all)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/training"), help="where checkpoints go (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = train_tokenizer()
    runs = BUNDLED / "runs.json"
    for name, recipe in RECIPES.items():
        if options.only in (None, name):
            train_and_export(recipe, tokenizer, options.work / name, BUNDLED / name, runs)
    if options.only in (None, INTERLEAVED.name):  # its weights stay in the working folder; the record is shipped
        folder = options.work / INTERLEAVED.name
        train_and_export(INTERLEAVED, tokenizer, folder, folder / "model", runs)
        (BUNDLED / "traces").mkdir(exist_ok=True)
        write_whole(BUNDLED / "traces" / "windows.json", record_windows(BUNDLED, folder / "model", tokenizer))
    if options.only in (None, "traces"):
        (BUNDLED / "traces").mkdir(exist_ok=True)
        for name, recipe in TRACES.items():
            trace = LoadTrace(held_out(tokenizer, 4 * len(KINDS)), every=10)
            with TemporaryDirectory() as folder:  # takes minutes, so an interrupted one starts again
                train(recipe, tokenizer, Path(folder), callbacks=[trace], save_steps=recipe.steps)
            write_whole(BUNDLED / "traces" / f"{name}.json", trace.as_json())
    if options.only in (None, "ranks"):
        (BUNDLED / "traces").mkdir(exist_ok=True)
        write_whole(BUNDLED / "traces" / "ranks.json", as_json(measure_ranks()))  # takes minutes too
    if options.only in (None, "card"):
        write_whole(BUNDLED / "README.md", card.render(card.measure(BUNDLED), json.loads(runs.read_text())))


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command goes on from the last checkpoint, where one was written")
