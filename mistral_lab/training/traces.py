"""Record the router while it trains: the load of every expert and the loss, every few steps."""

import json

import numpy as np
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .evaluation import Encoded, as_load, choices, losses


class LoadTrace(TrainerCallback):
    """Measures the expert load (L, E) and the loss on fixed held-out documents every `every` steps."""

    def __init__(self, encoded: list[Encoded], *, every: int) -> None:
        self.encoded, self.every = encoded, every
        self.steps: list[int] = []
        self.loads: list[np.ndarray] = []
        self.losses: list[float] = []

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs,
    ) -> None:
        """Measure before steps 0, `every`, 2 * `every`, and so on."""
        if state.global_step % self.every == 0:
            self._measure(state.global_step, model)

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs,
    ) -> None:
        """Measure once more after the last step."""
        self._measure(state.global_step, model)

    def _measure(self, step: int, model: nn.Module) -> None:
        model.eval()
        chosen = np.concatenate(list(choices(model, self.encoded).values()))
        nats = np.concatenate(losses(model, self.encoded)).mean()
        model.train()
        self.steps.append(step)
        self.loads.append(as_load(chosen))
        self.losses.append(float(nats))

    def as_json(self) -> str:
        """Write steps (n,), loads (n, L, E) and losses (n,) in nats per token, rounded to four places."""
        rounded = {"loads": np.round(self.loads, 4).tolist(), "losses": np.round(self.losses, 4).tolist()}
        return json.dumps({"steps": self.steps} | rounded) + "\n"
