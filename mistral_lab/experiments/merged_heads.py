"""What lesson 2 measures about quality and arithmetic: a trained model whose KV heads are merged, and trained on."""

import copy
import logging
import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..loading import Loaded
from ..measure.progress import with_progress
from ..training import corpus, evaluation

TEXTS_A_STEP = 2
LEARNING_RATE = 1e-3
# (K · D, width) seen as (K after, G, D, width) -> (K after, D, width)
MERGES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "averaged": lambda groups: groups.mean(dim=1),
    "first kept": lambda groups: groups[:, 0],
}


def merged(model: PreTrainedModel, n_kv_heads: int, merge: str) -> PreTrainedModel:
    """Copy a model in float32 beside it, with its key and value heads merged into fewer; all else stays.

    Source: Ainslie et al., "GQA", arXiv:2305.13245, section 2.1, which averages the heads of a group.

    Args:
        model: small, unquantised.
        n_kv_heads: of the copy; a divisor of the model's own number.
        merge: "averaged" or "first kept", within each group.

    Raises:
        ValueError: another merge, or a number that does not divide.
    """
    before = model.config.num_key_value_heads
    if merge not in MERGES or before % n_kv_heads:
        raise ValueError(
            f"{n_kv_heads} of {before} heads, {merge!r}: expected a divisor, and one of {', '.join(MERGES)}"
        )
    shape = copy.deepcopy(model.config)
    shape.num_key_value_heads = n_kv_heads
    weights = {name: tensor.float() for name, tensor in model.state_dict().items()}
    for name, matrix in weights.items():
        if name.endswith(("k_proj.weight", "v_proj.weight")):
            groups = matrix.unflatten(0, (n_kv_heads, before // n_kv_heads, -1))
            weights[name] = MERGES[merge](groups).flatten(0, 1)
    fewer = type(model)(shape).to(model.device)
    fewer.load_state_dict(weights)
    return fewer.eval()


@dataclass(frozen=True)
class FewerHeads:
    """What merging KV heads cost in loss on unseen texts, in nats per token.

    Args:
        losses: name of the model -> its loss, with the middle 95 % over resampled texts.
        cost: how much more the merged model loses than the one as built on the same texts, both after the same steps.
    """

    losses: dict[str, evaluation.Interval]
    cost: evaluation.Interval


def fewer_heads(lab: Loaded, *, documents: int = 12, steps: int = 10) -> FewerHeads:
    """Merge all KV heads of a small model into one, train it on for a few steps, and measure the loss on unseen texts.

    Args:
        lab: a bundled model; a large one is refused, because it is copied and trained here.
        documents: held-out texts.
        steps: of training on the corpus, two texts each. As a control the model as built is given the same steps.

    Raises:
        ValueError: the model is large, or has a single KV head already.
    """
    heads, parameters = lab.config.n_kv_heads, sum(p.numel() for p in lab.model.parameters())
    if heads == 1 or parameters > 10**8:
        raise ValueError(f"{lab.name} has {heads} KV heads and {parameters:,} parameters: take a bundled model here")
    texts = evaluation.held_out(lab.tokenizer, documents)
    built = f"as built, K = {heads}"
    models = {built: merged(lab.model, heads, "averaged")}  # groups of one: the same heads
    models |= {f"K = 1, {merge}": merged(lab.model, 1, merge) for merge in MERGES}
    later = {f"{name}, {steps} steps more": models[name] for name in (built, "K = 1, averaged")}
    stages, nats = [*models.items(), *later.items()], {}
    for number in with_progress(len(stages), "Merging heads and training on"):
        name, model = stages[number]
        if name in later:
            train_on(model, lab.tokenizer, steps)
        nats[name] = _losses(model, texts)
    as_built, fewer = (nats[name] for name in later)
    lengths = np.array([len(text.tokens) - 1 for text in texts])
    losses = {name: evaluation.bootstrap(per_text, lengths) for name, per_text in nats.items()}
    return FewerHeads(losses, evaluation.bootstrap(fewer - as_built, lengths))


def train_on(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, steps: int) -> None:
    """Train all weights of a model for a few steps on the training part of the corpus, in place."""
    # The Trainer imports bitsandbytes, which at import reports an optional package as missing.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainingArguments

    texts = [corpus.document(number).text for number in range(steps * TEXTS_A_STEP)]
    with tempfile.TemporaryDirectory() as folder:  # the Trainer wants one; nothing is saved
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=TEXTS_A_STEP,
            train_sampling_strategy="sequential",
            learning_rate=LEARNING_RATE,
            lr_scheduler_type="constant",
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=[tokenizer(text) for text in texts],
            data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),  # padding is not counted
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    model.eval()


def _losses(model: PreTrainedModel, texts: list[evaluation.Encoded]) -> np.ndarray:
    """(texts,) the mean loss of each text."""
    return np.array([tokens.mean() for tokens in evaluation.losses(model, texts)])


def count_arithmetic(n_kv_heads: int, *, n_heads: int = 32, tokens: int = 4096, head_dim: int = 128) -> tuple[int, int]:
    """Let PyTorch count the arithmetic of one new token's attention, a multiplication and an addition as two.

    Returns:
        what was counted, and the 4 · H · S · D that scores and weighted mean should take, in which K does not occur.
    """
    q = torch.zeros(1, n_kv_heads, n_heads // n_kv_heads, head_dim)
    k = v = torch.zeros(1, n_kv_heads, tokens, head_dim)
    with FlopCounterMode(display=False) as counter:
        ((q @ k.mT) / math.sqrt(head_dim)).softmax(-1) @ v
    return counter.get_total_flops(), 4 * n_heads * tokens * head_dim
