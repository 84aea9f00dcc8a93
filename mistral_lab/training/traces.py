"""Watch the router while it trains: the load of every expert, every few steps."""

import json
from pathlib import Path

import numpy as np
from transformers import TrainerCallback

from .evaluation import Encoded, loads


class LoadTrace(TrainerCallback):
    """Measures the expert load (L, E) on fixed held-out documents every `every` steps."""

    def __init__(self, encoded: list[Encoded], *, every: int):
        self.encoded, self.every = encoded, every
        self.steps: list[int] = []
        self.loads: list[np.ndarray] = []

    def on_step_begin(self, args, state, control, model=None, **kwargs):
        """Before step 0, `every`, 2 * `every`, and so on."""
        if state.global_step % self.every == 0:
            self._measure(state.global_step, model)

    def on_train_end(self, args, state, control, model=None, **kwargs):
        """And once more after the last step."""
        self._measure(state.global_step, model)

    def _measure(self, step: int, model) -> None:
        model.eval()
        table = loads(model, self.encoded)
        model.train()
        self.steps.append(step)
        self.loads.append(np.concatenate([values for values in table.values() if len(values)]).mean(0))

    def save(self, path: Path) -> None:
        """Steps (n,) and loads (n, L, E) as JSON, rounded to four places."""
        path.write_text(json.dumps({"steps": self.steps, "loads": np.round(self.loads, 4).tolist()}) + "\n")
