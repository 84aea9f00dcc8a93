"""Training an adapter with transformers' Trainer, and asking whether the answers are right."""

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
from transformers import PrinterCallback, Trainer, TrainingArguments

from ..arguments import check_count
from .adapters import base_name, check_adapted, separate_experts
from .examples import SEPARATOR, Example, collate, tokenise
from .resuming import fingerprint, newest_checkpoint

CHECKPOINT_STEPS = 50


@dataclass(frozen=True)
class Tuning:
    """What a training run did: the loss of every step in nats a token of answer, the seconds, what was trained.

    `optimiser_bytes` is what the optimiser's state held at the end. Of a run that was stopped and gone on with, the
    losses are those of all steps, the seconds those of its last part.
    """

    losses: tuple[float, ...]
    seconds: float
    trainable_parameters: int
    optimiser_bytes: int

    @property
    def steps(self) -> int:
        """Steps of the optimiser."""
        return len(self.losses)


@dataclass(frozen=True)
class Answers:
    """What the model answered, and whether each is the expected text to the last character."""

    texts: tuple[str, ...]
    right: np.ndarray

    @property
    def share(self) -> float:
        """The share that is right."""
        return float(self.right.mean())


def tune(
    loaded,
    examples: Sequence[Example],
    *,
    steps: int = 50,
    batch_size: int = 16,
    learning_rate: float = 1e-2,
    checkpointing: bool = False,
    seed: int = 0,
    checkpoints: str | os.PathLike | None = None,
) -> Tuning:
    """Train the adapter of a model on the answers of some examples; everything else stays as it is.

    AdamW without weight decay; the learning rate starts at 0, so that the first step changes nothing, rises over a
    tenth of the steps and falls to 0 along a line; gradients are clipped to length 1.

    Where the model computes in float16, as on a card below compute capability 8.0, the smallest gradients would become
    0 on their way back. There the Trainer multiplies the loss by a large number and divides the gradients of the
    adapter, which are float32, by it again. A step with a gradient beyond float16's range is left out, and the next
    takes a smaller number. On a CPU nothing scales the loss: load in bfloat16 or float32 there.

    Source: arXiv:2106.09685, section 4.2 (training the adapter alone); arXiv:1710.03740, section 3.2 (a scaled loss).

    Args:
        loaded: of `add_adapter` or `load_adapter`; its adapter is changed in place.
        examples: shuffled, and gone through again and again until the steps are done.
        steps: of the optimiser, at least 2.
        batch_size: examples a step.
        learning_rate: the highest, above 0.
        checkpointing: keep only what enters each layer, and compute the rest again for the gradients: less memory, more
            time.
        seed: of the order. PyTorch's random state is put back.
        checkpoints: a folder in which the run is written down every 50 steps and at its end; `load_adapter` reads each
            checkpoint. The same call, in a new process too, goes on from the last one. None: nowhere.

    Raises:
        FileExistsError: the folder holds checkpoints of another run, or this one is complete there.
        TypeError, ValueError: a model without an adapter, fewer than two examples, one that is longer than the context
            (said before anything is trained), or another argument outside its range.
    """
    check_adapted(loaded)
    for name, value in (("steps", steps), ("batch_size", batch_size), ("examples", len(examples))):
        check_count(name, value)
    _check_learns(steps, learning_rate)
    if len(examples) == 1:
        raise ValueError("there is only one example: expected two or more, so that one can be kept for asking")
    rows = [tokenise(loaded.tokenizer, example, max_tokens=loaded.config.max_positions) for example in examples]
    model, stopped_at = loaded.model, None
    if checkpoints is not None:
        run = {"model": base_name(loaded), "adapter": _shapes(model), "examples": fingerprint(rows)}
        run |= {"steps": steps, "batch_size": batch_size, "learning_rate": learning_rate, "seed": seed}
        run |= {"dtype": str(model.dtype).removeprefix("torch.")}
        stopped_at = newest_checkpoint(Path(checkpoints), run)
    devices = range(torch.cuda.device_count())
    with (
        TemporaryDirectory() as unused,
        torch.random.fork_rng(devices),
        training_mode(model, checkpointing=checkpointing),
    ):
        settings = TrainingArguments(
            output_dir=str(checkpoints or unused),
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
            save_strategy="no" if checkpoints is None else "steps",
            save_steps=CHECKPOINT_STEPS,
            logging_steps=1,
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
            label_names=["labels"],
        )
        trainer = Trainer(
            model=model,
            args=settings,
            train_dataset=rows,
            data_collator=partial(collate, pad_token_id=loaded.tokenizer.pad_token_id),
        )
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        try:
            with separate_experts(model):  # where the Trainer puts a checkpoint's adapter back
                trainer.train(resume_from_checkpoint=stopped_at)
        finally:  # in float16 accelerate wraps the model's forward, and leaves it so
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


def _shapes(model) -> dict[str, list[int]]:
    """What is trained, by name."""
    return {name: list(weight.shape) for name, weight in model.named_parameters() if weight.requires_grad}


@contextmanager
def training_mode(model, *, checkpointing: bool) -> Iterator[None]:
    """Put a model into training mode, with checkpointing or without, and afterwards back into that of asking."""
    cached = model.config.use_cache
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of names that transformers 6 will have changed
        warnings.filterwarnings("ignore", "Could not find a config file")  # checkpoints name the model, not its folder
        try:
            model.train()
            model.config.use_cache = False  # or the keys and values of every layer would be gathered for a next token
            if checkpointing:
                model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            yield
        finally:
            if checkpointing:
                model.gradient_checkpointing_disable()
                model.disable_input_require_grads()  # or the first norm would go on being kept for its gradient
            model.config.use_cache = cached
            model.eval()


@torch.no_grad()
def exact_match(loaded, examples: Sequence[Example], *, batch_size: int = 50) -> Answers:
    """Ask greedily for every answer, and compare it with the expected one, white space at both ends aside.

    Args:
        loaded: with or without an adapter.
        batch_size: prompts at once, padded on the left.

    Returns:
        answers in the order of the examples. Each has room for as many tokens as the longest expected answer of its
        batch, and for the end token; an answer that does not end there is wrong.

    Raises:
        TypeError, ValueError: no example, one that `tokenise` refuses (said before any is asked), or a count below 1.
    """
    check_count("examples", len(examples))
    check_count("batch_size", batch_size)
    tokenizer, answers = loaded.tokenizer, []
    for example in examples:
        tokenise(tokenizer, example, max_tokens=loaded.config.max_positions)
    for start in range(0, len(examples), batch_size):
        batch = examples[start : start + batch_size]
        asked = tokenizer(
            [example.prompt + SEPARATOR for example in batch], return_tensors="pt", padding=True, padding_side="left"
        ).to(loaded.model.device)
        room = max(len(tokenizer(example.answer, add_special_tokens=False).input_ids) for example in batch) + 1
        tokens = loaded.model.generate(
            input_ids=asked["input_ids"],
            attention_mask=asked["attention_mask"],
            max_new_tokens=room,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )[:, asked["input_ids"].shape[1] :]
        answers += [_answer(tokenizer, row) for row in tokens.tolist()]
    pairs = zip(answers, examples, strict=True)
    right = [ended and text.strip() == example.answer.strip() for (text, ended), example in pairs]
    return Answers(tuple(text for text, _ in answers), np.array(right))


def _answer(tokenizer, tokens: list[int]) -> tuple[str, bool]:
    """The text up to the end token, and whether there is one."""
    end = tokenizer.eos_token_id
    ended = end in tokens
    return tokenizer.decode(tokens[: tokens.index(end)] if ended else tokens, skip_special_tokens=True), ended
