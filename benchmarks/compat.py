"""What the benchmarks use of transformers that it does not document, seen in transformers 5.15.0 to 5.24.0."""

from transformers import CompileConfig, PreTrainedConfig


def compiled_everywhere() -> CompileConfig:
    """Make a `CompileConfig` for `generate`, which by itself compiles on GPUs alone."""
    config = CompileConfig(mode="default")
    config._compile_all_devices = True
    return config


def choose_experts(config: PreTrainedConfig, name: str) -> None:
    """Have the experts of a model run by one of transformers' implementations, here without the model around them.

    Documented are `experts_implementation` at loading and `set_experts_implementation` of a whole model.
    """
    config._experts_implementation = name
