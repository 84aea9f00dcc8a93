"""Fine-tuning on four-bit weights: examples, adapters, training, what it costs, saving and merging."""

from .adapters import ATTENTION, adapted, add_adapter, target_names
from .cost import TuningBytes, measured_activation_bytes, trainable_parameters, tuning_bytes
from .examples import IGNORED, SEPARATOR, Example, collate, read_examples, tokenise
from .merging import export, merged
from .saving import load_adapter, save_adapter
from .tuning import Answers, Tuning, exact_match, tune

__all__ = [
    "ATTENTION",
    "IGNORED",
    "SEPARATOR",
    "Answers",
    "Example",
    "Tuning",
    "TuningBytes",
    "adapted",
    "add_adapter",
    "collate",
    "exact_match",
    "export",
    "load_adapter",
    "measured_activation_bytes",
    "merged",
    "read_examples",
    "save_adapter",
    "target_names",
    "tokenise",
    "trainable_parameters",
    "tune",
    "tuning_bytes",
]
