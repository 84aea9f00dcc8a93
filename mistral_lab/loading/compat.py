"""What this module uses of transformers that it does not document, with the versions in which it was seen."""

from transformers import PreTrainedModel


def undivided_classes(model: PreTrainedModel) -> list[str]:
    """Name the classes of modules that lie whole on one device, such as a decoder layer: each has a residual stream.

    transformers 5.15.0 to 5.24.0 keeps them in `_no_split_modules`.
    """
    return list(model._no_split_modules)


def attention_of(model: PreTrainedModel) -> str:
    """Name the attention that a model uses, as transformers' registry has it.

    `set_attn_implementation` is documented and has no counterpart; the config keeps the name in `_attn_implementation`.
    """
    return model.config._attn_implementation
