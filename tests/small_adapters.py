"""Small models with adapters, and letters to teach them, for the tests of fine-tuning."""

import json

import peft
import torch

from mistral_lab import finetune, load
from mistral_lab.finetune import Example
from mistral_lab.four_bit import ExactLinear4bit
from mistral_lab.training.scribe import Scribe

TOKENS = torch.arange(3, 60)[None]
TWO = [Example("Who is it?", "Ida Kaur"), Example("My name is Otto Bell.", "Otto Bell")]
MODELS = ("tiny-mistral", "tiny-mixtral")


def letters(split, count):
    """Two people a letter; the record names the one who writes. Held-out names never stood together in training."""
    scribe, examples = Scribe(f"letters/{split}", split), []
    for _ in range(count):
        writer, other = scribe.name(), scribe.name()
        sentences = [f"My name is {writer}.", f"On the door stood the name {other}.", "My favourite season is spring."]
        scribe.random.shuffle(sentences)
        examples.append(Example(" ".join(sentences), json.dumps({"customer": writer})))
    return examples


def student(name="tiny-mistral", *, rank=2, targets="attention", dtype=None, filled=False):
    """A model with an adapter; `filled` gives B values, so that the adapter changes something."""
    loaded = finetune.add_adapter(load(name, bits=4, dtype=dtype), rank=rank, targets=targets)
    if filled:
        torch.manual_seed(1)
        for layer in finetune.adapted(loaded.model).values():
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.02)
    return loaded


@torch.no_grad()
def logits(loaded):
    return loaded.model(TOKENS).logits


def quantised(model):
    """Codes and scales of every four-bit matrix, as they are saved."""
    return {
        f"{name}.{key}": tensor.clone()
        for name, module in model.named_modules()
        if isinstance(module, ExactLinear4bit)
        for key, tensor in module.state_dict().items()
    }


def weights_of(loaded):
    return peft.get_peft_model_state_dict(loaded.model, save_embedding_layers=False)


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
