"""`python -m mistral_lab.training`: train the bundled models, trace the router, measure, write the model card."""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from transformers import TrainerCallback

from . import card
from .corpus import KINDS
from .evaluation import held_out
from .recipes import RECIPES, TRACES, Recipe
from .tokenizer import train_tokenizer
from .traces import LoadTrace
from .trainer import export, train

BUNDLED = Path(__file__).parent.parent / "bundled"


class Clock(TrainerCallback):
    """Adds up the seconds that a run took, over interruptions.

    What came after the last checkpoint is done again, and counted again.
    """

    def __init__(self, path: Path):
        self.path = path
        self.before = json.loads(path.read_text())["seconds"] if path.exists() else 0.0
        self.started = time.perf_counter()

    def on_save(self, args, state, control, **kwargs):
        """Whenever a checkpoint is written."""
        seconds = self.before + time.perf_counter() - self.started
        run = {
            "seconds": round(seconds),
            "threads": torch.get_num_threads(),
            "processor": processor(),
            "torch": torch.__version__,
        }
        self.path.write_text(json.dumps(run) + "\n")


def processor() -> str:
    """The processor's model name, or the architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def prepare(folder: Path, recipe: Recipe) -> None:
    """Make the folder for a recipe's checkpoints, or refuse one that holds another recipe's."""
    folder.mkdir(parents=True, exist_ok=True)
    path, text = folder / "recipe.json", json.dumps(asdict(recipe))
    if path.exists() and path.read_text() != text:
        raise ValueError(f"{folder} holds checkpoints of another recipe: delete it to train {recipe.name} as it is now")
    path.write_text(text)


def main(arguments: list[str] | None = None) -> None:
    """Train what is asked for, then measure both models and write the card."""
    parser = argparse.ArgumentParser(prog="python -m mistral_lab.training", description=__doc__)
    parser.add_argument("--only", choices=[*RECIPES, "traces", "card"], help="do one part (default: all)")
    parser.add_argument(
        "--work", type=Path, default=Path("build/training"), help="where checkpoints go (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    tokenizer = train_tokenizer()
    runs = BUNDLED / "runs.json"
    for name, recipe in RECIPES.items():
        if options.only in (None, name):
            folder = options.work / name
            prepare(folder, recipe)
            clock = Clock(folder / "run.json")
            export(train(recipe, tokenizer, folder, callbacks=[clock]), tokenizer, BUNDLED / name)
            known = json.loads(runs.read_text()) if runs.exists() else {}
            runs.write_text(json.dumps(known | {name: json.loads(clock.path.read_text())}, indent=1) + "\n")
    if options.only in (None, "traces"):
        (BUNDLED / "traces").mkdir(exist_ok=True)
        for name, recipe in TRACES.items():
            folder = options.work / recipe.name
            prepare(folder, recipe)
            trace = LoadTrace(held_out(tokenizer, 4 * len(KINDS)), every=10)
            train(recipe, tokenizer, folder, callbacks=[trace], save_steps=recipe.steps)
            trace.save(BUNDLED / "traces" / f"{name}.json")
    if options.only in (None, "card"):
        (BUNDLED / "README.md").write_text(
            card.render(card.measure(BUNDLED), json.loads(runs.read_text())), encoding="utf-8"
        )


if __name__ == "__main__":
    try:
        main()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the last checkpoint is whole; the same command goes on from it")
