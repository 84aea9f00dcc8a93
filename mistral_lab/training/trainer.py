"""Train one recipe with transformers' Trainer, so that an interrupted run resumes from a whole checkpoint."""

import shutil
import zipfile
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils import ModelOutput

from ..files import Need, check_safetensors, folder_written_whole, full_disk_explained, trainer_checkpoints
from .compat import ExpertsResumingTrainer
from .corpus import document
from .recipes import Recipe

CHECKPOINT_BYTES = 64 * 2**20  # more than any checkpoint here takes, optimiser included
DOCUMENTS_PER_BLOCK = 17  # more than ever fit; not a multiple of six, so that blocks begin with every kind in turn


class Blocks(Dataset):
    """Blocks of exactly `length` tokens, made of documents with </s> after each; the last document is cut off.

    Block i is written when it is needed and depends on i alone, so a resumed run sees the same blocks as an
    uninterrupted one. In the first quarter of the `ramp` blocks names come back at once; the gaps then grow, and at the
    end of the ramp they are those of the corpus.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, length: int, size: int, ramp: int) -> None:
        self.tokenizer, self.length, self.size, self.ramp = tokenizer, length, size, ramp

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        tokens: list[int] = []
        number = index * DOCUMENTS_PER_BLOCK
        spread = min(1.0, max(0.0, index / self.ramp - 0.25) / 0.75)
        while len(tokens) < self.length:
            tokens += self.tokenizer(document(number, spread=spread).text).input_ids + [self.tokenizer.eos_token_id]
            number += 1
        block = torch.tensor(tokens[: self.length])
        return {"input_ids": block, "labels": block}


class BalancedTrainer(ExpertsResumingTrainer):
    """A Trainer whose balancing loss is computed for each layer by itself.

    Differs: transformers pools all layers before it multiplies shares and probabilities, so a layer that overuses an
    expert and another that hardly uses it cancel out. Here the mean of the layers' own losses replaces the pooled loss.
    """

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        """Compute the cross-entropy plus `router_aux_loss_coef` times the mean balancing loss of the layers."""
        outputs = model(**inputs, output_router_logits=True)
        experts, chosen = model.config.num_local_experts, model.config.num_experts_per_tok
        layers = [load_balancing_loss_func((logits,), experts, chosen) for logits in outputs.router_logits]
        loss = outputs.loss + model.config.router_aux_loss_coef * (torch.stack(layers).mean() - outputs.aux_loss)
        return (loss, outputs) if return_outputs else loss


def last_whole_checkpoint(folder: Path) -> Path | None:
    """Find the newest whole checkpoint; those that an interruption cut short are skipped."""
    for path in reversed(trainer_checkpoints(folder)):
        try:
            check_safetensors(path / "model.safetensors")
        except OSError:
            continue
        # torch writes zip files, whose directory stands at the end.
        if all(zipfile.is_zipfile(path / state) for state in ("optimizer.pt", "scheduler.pt", "rng_state.pth")):
            return path
    return None


def train(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    *,
    save_steps: int = 500,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = True,
    bf16: bool = True,
) -> PreTrainedModel:
    """Train a recipe to its last step, from the last whole checkpoint in `folder` where there is one.

    Args:
        recipe: what to train.
        tokenizer: the tokenizer of the model.
        folder: where checkpoints go. At most two are kept, and the older one is deleted only when the newer is whole.
        save_steps: steps between checkpoints.
        callbacks: callbacks for the Trainer.
        progress: whether to show a progress bar.
        bf16: compute matrix products in bfloat16; weights and optimiser stay in float32.

    Returns:
        the trained model, in evaluation mode.

    Raises:
        OSError: the disk is full; the message says what is left to resume from.
    """
    model = recipe.new_model()
    folder.mkdir(parents=True, exist_ok=True)
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        train_sampling_strategy="sequential",
        learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.05},
        weight_decay=recipe.weight_decay,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        bf16=bf16,
        use_cpu=True,
        seed=recipe.seed,
        save_steps=save_steps,
        save_total_limit=2,
        logging_steps=50,
        report_to="none",
        disable_tqdm=not progress,
        remove_unused_columns=False,
    )
    batch = recipe.batch_size
    data = Blocks(tokenizer, length=recipe.length, size=recipe.steps * batch, ramp=recipe.ramp * batch)
    shared = dict(model=model, args=arguments, train_dataset=data, callbacks=list(callbacks))
    trainer = BalancedTrainer(**shared) if recipe.architecture == "mixtral" else Trainer(**shared)
    checkpoint = last_whole_checkpoint(folder)
    with full_disk_of_training(folder):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return model.eval()


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write model and tokenizer in bfloat16 as a plain Hugging Face folder, which appears whole or not at all.

    The model itself becomes bfloat16 too. A licence in the folder that it replaces stays.
    """
    model.config.use_cache = True  # the Trainer turns it off
    with full_disk_of_training(folder.parent), folder_written_whole(folder, replace=True) as fresh:
        model.to(torch.bfloat16).save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        for file in folder.glob("LICENSE*"):
            shutil.copyfile(file, fresh / file.name)


def full_disk_of_training(folder: Path) -> AbstractContextManager[None]:
    """Turn a full disk into one OSError that says which checkpoint in the folder the next run resumes from."""

    def explain() -> str:
        whole = last_whole_checkpoint(folder)
        kept = f"{whole.name} is whole and the next run resumes from it" if whole else "what was there before is whole"
        return f"the disk is full: free some space and train again; {kept}"

    return full_disk_explained(explain, least=Need(folder, CHECKPOINT_BYTES, "for a checkpoint"))
