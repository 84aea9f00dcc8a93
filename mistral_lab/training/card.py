"""The model card: every number in it is measured here, on the checkpoints as shipped."""

import json
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from . import evaluation
from .corpus import KINDS
from .recipes import RECIPES

PROMPTS = (
    "My favourite condiment is",
    "AI的未来是",
    "Ma couleur préférée est",
    "12 + 30 =",
    "def find_largest(prices):",
)
DOCUMENTS, BASELINE_DOCUMENTS, RECALL_DOCUMENTS = 600, 20_000, 1_800


def measure(folder: Path) -> dict:
    """Everything the card says of both models: nested dicts, ready for `render`."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny-mistral")
    encoded = evaluation.held_out(tokenizer, DOCUMENTS)
    asked = evaluation.held_out(tokenizer, RECALL_DOCUMENTS)
    baselines = {
        label: evaluation.baseline_losses(tokenizer, encoded, order=order, train_documents=BASELINE_DOCUMENTS)
        for label, order in (("unigram", 1), ("5-gram", 5))
    }
    results = {
        "baselines": {label: evaluation.by_kind(encoded, nats) for label, nats in baselines.items()},
        "models": {},
    }
    for name in RECIPES:
        model = AutoModelForCausalLM.from_pretrained(folder / name, dtype="float32").eval()
        nats = evaluation.losses(model, encoded)
        gains = {
            label: evaluation.by_kind(encoded, [b - n for b, n in zip(values, nats, strict=True)])
            for label, values in baselines.items()
        }
        results["models"][name] = {
            "parameters": sum(p.numel() for p in model.parameters()),
            "loss": evaluation.by_kind(encoded, nats),
            "gain": gains,
            "recall": evaluation.recall(model, tokenizer, asked),
            "blind recall": evaluation.recall(model, tokenizer, asked, context=64),
            "texts": {prompt: complete(model, tokenizer, prompt) for prompt in PROMPTS},
        }
        if hasattr(model.config, "num_local_experts"):
            table = evaluation.loads(model, encoded)
            results["routing"] = {
                "least": float(np.concatenate(list(table.values())).mean(0).min()),
                "difference": evaluation.routing_difference(table),
                "shuffled": evaluation.shuffled_difference(table),
            }
    return results


def complete(model: PreTrainedModel, tokenizer, prompt: str) -> str:
    """Greedy continuation of 30 tokens, prompt included."""
    tokens = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=30, do_sample=False)
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


def render(results: dict, runs: dict[str, dict]) -> str:
    """The card as Markdown.

    Args:
        results: what `measure` returned.
        runs: for each model what its training left in `run.json`: seconds, threads, processor, torch.
    """
    lines = [HEAD]
    lines += [
        "## Training",
        "",
        "| model | parameters | steps | tokens seen | seed | minutes | threads | on |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, recipe in RECIPES.items():
        run, tokens = runs[name], recipe.steps * recipe.batch_size * recipe.length
        lines.append(
            f"| `{name}` | {results['models'][name]['parameters']:,} | {recipe.steps:,} | {tokens:,} | {recipe.seed} "
            f"| {run['seconds'] / 60:.0f} | {run['threads']} | {run['processor']}, torch {run['torch']} |"
        )
    lines += ["", "## Held-out loss", "", LOSS_TEXT.format(documents=DOCUMENTS, counted=BASELINE_DOCUMENTS), ""]
    names = list(results["models"])
    lines += [
        "| kind | unigram | 5-gram | " + " | ".join(f"`{name}` | gain on the 5-gram" for name in names) + " |",
        "| --- |" + " --- |" * (2 + 2 * len(names)),
    ]
    for kind in KINDS:
        row = [kind] + [f"{results['baselines'][label][kind].mean:.2f}" for label in ("unigram", "5-gram")]
        for name in names:
            row += [
                f"{results['models'][name]['loss'][kind].mean:.2f}",
                str(results["models"][name]["gain"]["5-gram"][kind]),
            ]
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", "## Recall of unseen names", "", RECALL_TEXT.format(documents=RECALL_DOCUMENTS), ""]
    lines += [
        "| model | tokens back | asked | right | right, sight cut to 64 tokens | chance |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name in names:
        for label, row in results["models"][name]["recall"].items():
            blind = results["models"][name]["blind recall"][label]
            cells = [
                f"`{name}`",
                label,
                str(row.asked),
                _percent(row.right),
                _percent(blind.right),
                f"{row.chance:.1%}",
            ]
            lines.append("| " + " | ".join(cells) + " |")
    routing = results["routing"]
    lines += ["", "## Routing of `tiny-mixtral`", "", ROUTING_TEXT.format(least=f"{routing['least']:.1%}"), ""]
    lines += [
        "| layer | distance between kinds | with shuffled labels, 95 % of shuffles below |",
        "| --- | --- | --- |",
    ]
    for layer, distance in enumerate(routing["difference"]):
        lines.append(f"| {layer} | {distance:.3f} | {np.percentile(routing['shuffled'][:, layer], 95):.3f} |")
    lines += ["", "## What they write", "", "Greedy, 30 new tokens, prompt included.", ""]
    for prompt in PROMPTS:
        lines.append(f"- {json.dumps(prompt, ensure_ascii=False)}")
        for name in names:
            lines.append(f"  - `{name}`: {json.dumps(results['models'][name]['texts'][prompt], ensure_ascii=False)}")
    return "\n".join(lines) + "\n" + LIMITS


def _percent(interval: evaluation.Interval) -> str:
    return f"{interval.mean:.1%} ({interval.low:.1%} to {interval.high:.1%})"


HEAD = """# The bundled models

`tiny-mistral` (`MistralForCausalLM`, sliding window of 64) and `tiny-mixtral` (`MixtralForCausalLM`, 8 experts, 2 a
token, no window) are real checkpoints in Hugging Face format, in bfloat16, with one tokenizer: byte-level BPE of
2,560 pieces. They were trained from nothing by `mistral_lab/training`; `make train` does it again. This page is
written by the same command, from measurements of the files beside it.

**Data.** An endless corpus written by a seeded program, in six kinds: English, French, Chinese, Python, arithmetic,
JSON. Nobody's text was copied. Most documents bring a name back, some of them far beyond the window. About one pair
of words in eight (a name, a thing and a place, two numbers to add) is kept out of training; the held-out split takes
its pairs from those alone.
"""
LOSS_TEXT = """Nats a token on {documents} held-out documents; the baselines counted {counted:,} training documents
(Witten-Bell smoothing).
Gain: mean difference, with the middle 95 % of bootstrap resamples over documents."""
RECALL_TEXT = """How often the whole name of a person, whose two words never stood together in training, is the first
choice when it is due,
on {documents:,} held-out documents. Distance is counted from the predicting token back to the name's last mention.
`tiny-mistral` sees 63 tokens back; what lies further reached it through the layers. Beside it the same question with
all but the last 64 tokens removed, and chance: the same answers held against other documents' names. Intervals over
questions."""
ROUTING_TEXT = """The least used expert of any layer carries {least} of the held-out assignments (an even share is
12.5 %). How far each kind's
expert load lies from the common load (total variation, mean over kinds), beside the same with the kinds' labels
shuffled:"""
LIMITS = """
## What they cannot do

They know a few hundred words and the sentence shapes of their corpus. They do not answer questions, follow
instructions, translate, or know the world; the reasons they give are drawn at random in their training text. Their
arithmetic is unreliable. They are here so that attention, caches, routing and number formats can be taken apart on
weights that were really trained, on any machine. Their routing says little about a large model's.

Licence: Apache 2.0, as the rest of the repository.
"""
