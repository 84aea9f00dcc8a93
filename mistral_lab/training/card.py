"""The model card: its numbers are measured here, on the checkpoints as they are shipped.

What it says of the model that is not shipped stands in the record of the run that trained it.
"""

import json
from pathlib import Path

import numpy as np
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from . import evaluation, windows
from .corpus import KINDS
from .evaluation import Encoded
from .recipes import INTERLEAVED, RECIPES

PROMPTS = (
    "My favourite condiment is",
    "AI的未来是",
    "Ma couleur préférée est",
    "12 + 30 =",
    "def find_largest(prices):",
)
DOCUMENTS, RECALL_DOCUMENTS, SUMS = 600, 1_800, 300
BASELINES, BASELINE_DOCUMENTS = {"unigram": 1, "5-gram": 5}, 32_000


def measure_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, encoded: list[Encoded], asked: list[Encoded]
) -> dict:
    """Measure what the card says of every model: its loss on some documents, and the names that it recalls in others.

    With its sight cut to 64 tokens a model can only guess a name that lies further back.
    """
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "loss": evaluation.by_kind(encoded, evaluation.losses(model, encoded)),
        "recall": evaluation.recall(model, tokenizer, asked),
        "blind recall": evaluation.recall(model, tokenizer, asked, context=64),
    }


def measure(folder: Path) -> dict:
    """Measure everything that the card says of the shipped models, as nested dicts for `render`.

    What it says of the model that is not shipped is read from the record in `folder`.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny-mistral")
    encoded = evaluation.held_out(tokenizer, DOCUMENTS)
    asked = evaluation.held_out(tokenizer, RECALL_DOCUMENTS)
    counted = evaluation.baseline(tokenizer, encoded, order=max(BASELINES.values()), documents=BASELINE_DOCUMENTS)
    baselines = {label: evaluation.baseline_losses(counted, encoded, order=order) for label, order in BASELINES.items()}
    results = {
        "baseline tokens": counted.tokens_counted,
        "baselines": {label: evaluation.by_kind(encoded, nats) for label, nats in baselines.items()},
        "models": {},
        "not shipped": windows.read_card(json.loads((folder / "traces" / "windows.json").read_text(encoding="utf-8"))),
    }
    for name in RECIPES:
        model = AutoModelForCausalLM.from_pretrained(folder / name, dtype="float32").eval()
        nats = evaluation.losses(model, encoded)
        results["models"][name] = measure_model(model, tokenizer, encoded, asked) | {
            "gain": {
                label: evaluation.by_kind(encoded, [b - n for b, n in zip(values, nats, strict=True)])
                for label, values in baselines.items()
            },
            "sums": evaluation.right_sums(model, tokenizer, SUMS),
            "texts": {prompt: complete(model, tokenizer, prompt) for prompt in PROMPTS},
        }
        if hasattr(model.config, "num_local_experts"):
            table = evaluation.choices(model, encoded)
            results["routing"] = {
                "least": float(evaluation.as_load(np.concatenate(list(table.values()))).min()),
                "difference": evaluation.routing_difference(table),
                "shuffled": evaluation.shuffled_difference(table),
            }
    return results


def complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """Continue a prompt greedily by 30 tokens; the prompt is included."""
    tokens = model.generate(**tokenizer(prompt, return_tensors="pt"), max_new_tokens=30, do_sample=False)
    return tokenizer.decode(tokens[0], skip_special_tokens=True)


def render(results: dict, runs: dict[str, dict]) -> str:
    """Write the card as Markdown.

    Args:
        results: what `measure` returned.
        runs: for each model what its training wrote to `run.json`: seconds, threads, processor, torch.
    """
    models = results["models"]
    everyone = models | {INTERLEAVED.name: results["not shipped"]}
    training = [
        [f"`{name}`", f"{everyone[name]['parameters']:,}", f"{recipe.steps:,}"]
        + [f"{recipe.steps * recipe.batch_size * recipe.length:,}", str(recipe.seed)]
        + [f"{runs[name]['seconds'] / 60:.0f}", str(runs[name]["threads"])]
        + [f"{runs[name]['processor']}, torch {runs[name]['torch']}"]
        for name, recipe in (RECIPES | {INTERLEAVED.name: INTERLEAVED}).items()
    ]
    losses = [
        [kind, *(f"{results['baselines'][label][kind].mean:.2f}" for label in BASELINES)]
        + [f"{model['loss'][kind].mean:.2f}" for model in everyone.values()]
        for kind in KINDS
    ]
    gains = [
        [f"`{name}`", label, *(str(model["gain"][label][kind]) for kind in KINDS)]
        for name, model in models.items()
        for label in BASELINES
    ]
    recalls = [
        [f"`{name}`", label, str(row.asked), _percent(row.right)]
        + [_percent(model["blind recall"][label].right), f"{row.chance:.3%}"]
        for name, model in everyone.items()
        for label, row in model["recall"].items()
    ]
    routing = results["routing"]
    bounds = np.percentile(routing["shuffled"], 95, axis=0)
    distances = [
        [str(layer), f"{distance:.3f}", f"{bound:.3f}"]
        for layer, (distance, bound) in enumerate(zip(routing["difference"], bounds, strict=True))
    ]
    texts = [
        f"- {json.dumps(prompt, ensure_ascii=False)}\n"
        + "\n".join(f"  - `{name}`: {json.dumps(m['texts'][prompt], ensure_ascii=False)}" for name, m in models.items())
        for prompt in PROMPTS
    ]
    sums = "; ".join(f"`{name}` {_percent(model['sums'])}" for name, model in models.items())
    return (
        "\n\n".join(
            [
                HEAD.strip(),
                "## Training",
                _table("model|parameters|steps|tokens seen|seed|minutes|threads|on", training),
                "## Held-out loss",
                LOSS_TEXT.format(
                    documents=DOCUMENTS, counted=BASELINE_DOCUMENTS, millions=results["baseline tokens"] / 1e6
                ).strip(),
                _table("|".join(["kind", *BASELINES, *(f"`{name}`" for name in everyone)]), losses),
                "What each shipped model gains on each baseline, in nats per token, with the interval.",
                _table("|".join(["model", "gain on", *KINDS]), gains),
                "## Recall of unseen names",
                RECALL_TEXT.format(documents=RECALL_DOCUMENTS).strip(),
                _table("model|tokens back|asked|right|right, sight cut to 64 tokens|chance", recalls),
                "## Routing of `tiny-mixtral`",
                ROUTING_TEXT.format(least=f"{routing['least']:.1%}").strip(),
                _table("layer|distance between kinds|95 % of shuffles stay below", distances),
                "## What they write",
                "Greedy, 30 new tokens, prompt included.",
                "\n".join(texts),
                "## What they cannot do",
                LIMITS.format(questions=SUMS, sums=sums).strip(),
            ]
        )
        + "\n"
    )


def _table(header: str, rows: list[list[str]]) -> str:
    """A Markdown table; the cells of the header are separated by bars."""
    columns = header.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _percent(interval: evaluation.Interval) -> str:
    return f"{interval.mean:.1%} ({interval.low:.1%} to {interval.high:.1%})"


HEAD = """
# The bundled models

`tiny-mistral` (`MistralForCausalLM`, sliding window of 64) and `tiny-mixtral` (`MixtralForCausalLM`, 8 experts, 2
per token, no window) are real checkpoints in Hugging Face format, in bfloat16, with one tokenizer: byte-level BPE of
2,560 pieces. They were trained from scratch by `mistral_lab/training`; `make train` does it again. This page is
written by the same command, from measurements of the files beside it.

A third model, `tiny-interleaved` (`MinistralForCausalLM`), is measured beside them. It was trained as `tiny-mistral`
was, with the same recipe, seed and texts; but the last of its four layers has no window, as every fourth has in
Ministral. No lesson loads it, so its weights are not here: what was measured on them is in `traces/windows.json`. A
model of one size with `tiny-mistral` and no window at all was not trained: `tiny-mixtral`, the only one without, is a
mixture of experts, and differs in more than that.

**Data.** An endless corpus written by a seeded program, in six kinds: English, French, Chinese, Python, arithmetic and
JSON. Nobody's text was copied. In every document a name comes back, often far beyond the window. In each form of
sentence about one pair of words in eight (given and family name, thing and place, the two numbers of a sum) is kept
out of training; the held-out split takes its pairs from those alone.
"""
LOSS_TEXT = """
Nats per token on {documents} held-out documents. The baselines (Witten-Bell smoothing) counted {counted:,} training
documents, {millions:.1f} million tokens. Intervals here and below are the middle 95 % of bootstrap resamples over
documents; where all answers are right, or none, resampling would have no width, and they are Wilson's.
"""
RECALL_TEXT = """
How often the whole name of a person, whose two words never stood together in training, is the first choice when it is
due, on {documents:,} held-out documents. Distance is counted from the predicting token back to the nearest mention; the
few beyond 252 are left out. A layer of `tiny-mistral` sees 63 tokens back; a name further away reached it through
several layers. In `tiny-interleaved` the last layer sees all of the text by itself. Two columns compare: the same
questions with all but the last 64 tokens removed, and chance, where each answer is compared with the names of all other
documents.
"""
ROUTING_TEXT = """
The least used expert of any layer carries {least} of the held-out assignments (an even share is 12.5 %). How far each
kind's expert load lies from the common load (total variation, mean over kinds), and how far where the labels of the
documents are shuffled:
"""
LIMITS = """
They know the words and the sentence forms of their corpus, and nothing of the world; the reasons they give were drawn
at random. They do not answer questions, follow instructions or translate. Of {questions} held-out sums of two numbers
below 100 they complete correctly: {sums}. They are here so that attention, caches, routing and number formats can be
taken apart on weights that were really trained, on any machine. Their routing says little about a large model's.

Licence: Apache 2.0, as the rest of the repository.
"""
