"""Train an adapter with transformers' Trainer, and evaluate whether the model's answers are right."""

import math
import os
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments

from ..arguments import check_count
from ..loading.loaded import Loaded
from .adapters import base_name, check_adapted, separate_experts
from .examples import SEPARATOR, Example, collate, tokenise
from .resuming import fingerprint, newest_checkpoint

CHECKPOINT_STEPS = 50


@dataclass(frozen=True)
class Tuning:
    """What a training run did.

    Args:
        losses: the loss of every step, in nats per token of the answers.
        seconds: how long training took. Of a run that was resumed, these are the seconds of its last part, while the
            losses are those of all steps.
        trainable_parameters: how many parameters were trained.
        optimiser_bytes: what the optimiser's state held at the end.
    """

    losses: tuple[float, ...]
    seconds: float
    trainable_parameters: int
    optimiser_bytes: int

    @property
    def steps(self) -> int:
        """The number of optimiser steps."""
        return len(self.losses)


@dataclass(frozen=True)
class Answers:
    """What the model answered, and whether each answer is the expected text to the last character."""

    texts: tuple[str, ...]
    right: np.ndarray

    @property
    def share(self) -> float:
        """The share of right answers."""
        return float(self.right.mean())


def tune(
    loaded: Loaded,
    examples: Sequence[Example],
    *,
    steps: int = 50,
    batch_size: int = 16,
    learning_rate: float = 1e-2,
    checkpointing: bool = False,
    seed: int = 0,
    checkpoints: str | os.PathLike | None = None,
) -> Tuning:
    """Train the adapter of a model on the answers of some examples; nothing else of the model changes.

    The optimiser is AdamW without weight decay. The learning rate starts at 0, so that the first step changes nothing,
    rises over a tenth of the steps and falls linearly to 0. Gradients are clipped to length 1.

    Where the model computes in float16, as on a card below compute capability 8.0, the smallest gradients would become
    0 in the backward pass. There the Trainer multiplies the loss by a large number and later divides the gradients of
    the adapter, which are float32, by that number. A step with a gradient beyond float16's range is skipped, and the
    number becomes smaller for the next one. On a CPU nothing scales the loss: load in bfloat16 or float32 there.

    Source: arXiv:2106.09685, section 4.2 (training the adapter alone); arXiv:1710.03740, section 3.2 (a scaled loss).

    Args:
        loaded: what `add_adapter` or `load_adapter` returned; its adapter is changed in place.
        examples: what to learn; they are shuffled, and repeated until all steps are done.
        steps: optimiser steps, at least 2.
        batch_size: examples per step.
        learning_rate: the highest learning rate, above 0.
        checkpointing: keep only what enters each layer and compute the rest again for the gradients, which takes less
            memory and more time.
        seed: the seed of the order of examples. PyTorch's random state is restored afterwards.
        checkpoints: a folder for a checkpoint every 50 steps and one at the end; `load_adapter` reads each of them. The
            same call, also in a new process, resumes from the last one. None writes no checkpoint.

    Returns:
        the losses, the time and the sizes of the run.

    Raises:
        FileExistsError: the folder holds checkpoints of another run, or this run is complete there.
        TypeError, ValueError: the model has no adapter, there are fewer than two examples, one is longer than the
            context (found before training starts), or another argument is outside its range.
    """
    check_adapted(loaded)
    for name, value in (("steps", steps), ("batch_size", batch_size), ("examples", len(examples))):
        check_count(name, value)
    _check_learns(steps, learning_rate)
    if len(examples) == 1:
        raise ValueError("there is only one example: expected two or more, so that one can be kept for evaluation")
    model = loaded.model
    rows = [tokenise(loaded.tokenizer, example, max_tokens=loaded.config.max_positions) for example in examples]
    settings = {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
    stopped_at = None
    if checkpoints is not None:
        run = {"model": base_name(loaded), "adapter": _shapes(model), "examples": fingerprint(rows), **settings}
        run |= {"dtype": str(model.dtype).removeprefix("torch.")}
        stopped_at = newest_checkpoint(Path(checkpoints), run)
    devices = range(torch.cuda.device_count())
    with (
        TemporaryDirectory() as unused,
        torch.random.fork_rng(devices),
        training_mode(model, checkpointing=checkpointing),
    ):
        arguments = training_arguments(model, folder=checkpoints or unused, save=checkpoints is not None, **settings)
        return _run(loaded, rows, arguments, stopped_at)


def training_arguments(
    model: nn.Module,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    folder: str | os.PathLike,
    save: bool,
) -> TrainingArguments:
    """Put the settings of `tune` into the form that transformers' Trainer takes.

    Args:
        model: the model to train; its dtype and device decide whether the loss is scaled.
        steps, batch_size, learning_rate, seed: as in `tune`.
        folder: where checkpoints go.
        save: whether any are written.
    """
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=max(1, steps // 10),
        lr_scheduler_type="linear",
        weight_decay=0.0,
        optim="adamw_torch",
        fp16=model.dtype == torch.float16,  # scales the loss; the adapter itself stays in float32
        use_cpu=model.device.type == "cpu",
        dataloader_pin_memory=False,
        seed=seed,
        save_strategy="steps" if save else "no",
        save_steps=CHECKPOINT_STEPS,
        logging_steps=1,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
    )


def _run(
    loaded: Loaded, rows: list[dict[str, list[int]]], arguments: TrainingArguments, stopped_at: str | None
) -> Tuning:
    """Train on tokenised examples, from a checkpoint where there is one, and say what was done."""
    model = loaded.model
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=partial(collate, pad_token_id=loaded.tokenizer.pad_token_id),
    )
    trainer.remove_callback(PrinterCallback)
    started = time.perf_counter()
    try:
        with separate_experts(model):  # where the Trainer puts a checkpoint's adapter back
            trainer.train(resume_from_checkpoint=stopped_at)
    finally:  # in float16 accelerate wraps the model's forward, and leaves it wrapped
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    seconds = time.perf_counter() - started
    state = trainer.optimizer.state_dict()["state"]
    return Tuning(
        losses=tuple(entry["loss"] for entry in trainer.state.log_history if "loss" in entry),
        seconds=seconds,
        trainable_parameters=sum(p.numel() for p in model.parameters() if p.requires_grad),
        optimiser_bytes=sum(tensor.nbytes for entry in state.values() for tensor in entry.values()),
    )


def _check_learns(steps: int, learning_rate: float) -> None:
    if steps < 2:
        raise ValueError(f"steps is {steps}: expected at least 2, as the rate starts at 0 and one step learns nothing")
    if not isinstance(learning_rate, int | float) or isinstance(learning_rate, bool):
        raise TypeError(f"learning_rate is {learning_rate!r}: expected a number above 0")
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate is {learning_rate}: expected a finite number above 0")


def _shapes(model: nn.Module) -> dict[str, list[int]]:
    """The names and shapes of the parameters that are trained."""
    return {name: list(weight.shape) for name, weight in model.named_parameters() if weight.requires_grad}


@contextmanager
def training_mode(model: nn.Module, *, checkpointing: bool) -> Iterator[None]:
    """Put a model into training mode, with or without checkpointing, and afterwards back into evaluation mode."""
    cached = model.config.use_cache
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # names that change in transformers 6
        warnings.filterwarnings("ignore", "Could not find a config file")  # checkpoints name the model, not its folder
        try:
            model.train()
            model.config.use_cache = False  # or every layer would keep its keys and values for a next token
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            yield
        finally:
            if checkpointing:
                model.gradient_checkpointing_disable()
                model.disable_input_require_grads()  # or the first norm's input would go on being kept
            model.config.use_cache = cached
            model.eval()


@torch.no_grad()
def exact_match(loaded: Loaded, examples: Sequence[Example], *, batch_size: int = 50) -> Answers:
    """Generate an answer to every prompt greedily, and compare it with the expected one.

    White space at both ends is ignored.

    Args:
        loaded: a model with or without an adapter.
        examples: the prompts and the expected answers.
        batch_size: prompts per batch, padded on the left.

    Returns:
        the answers in the order of the examples. Each may take as many tokens as the longest expected answer of its
        batch, and the end token; an answer that has not ended by then is wrong.

    Raises:
        TypeError, ValueError: there is no example, `tokenise` refuses one (found before any is generated), or a count
            is below 1.
    """
    check_count("examples", len(examples))
    check_count("batch_size", batch_size)
    tokenizer, answers = loaded.tokenizer, []
    for example in examples:
        tokenise(tokenizer, example, max_tokens=loaded.config.max_positions)
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        prompts = tokenizer(
            [example.prompt + SEPARATOR for example in batch], return_tensors="pt", padding=True, padding_side="left"
        ).to(loaded.model.device)
        most = max(len(tokenizer(example.answer, add_special_tokens=False).input_ids) for example in batch) + 1
        tokens = loaded.model.generate(
            input_ids=prompts["input_ids"],
            attention_mask=prompts["attention_mask"],
            max_new_tokens=most,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )[:, prompts["input_ids"].shape[1] :]
        answers += [_answer(tokenizer, row) for row in tokens.tolist()]
    pairs = zip(answers, examples, strict=True)
    right = [ended and text.strip() == example.answer.strip() for (text, ended), example in pairs]
    return Answers(tuple(text for text, _ in answers), np.array(right))


def _answer(tokenizer: PreTrainedTokenizerBase, tokens: list[int]) -> tuple[str, bool]:
    """The text before the end token, and whether there is an end token."""
    end = tokenizer.eos_token_id
    ended = end in tokens
    return tokenizer.decode(tokens[: tokens.index(end)] if ended else tokens, skip_special_tokens=True), ended
