"""What lesson 2 measures of a reader's attention inside a real model: how far its answers are from the library's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from ..loading import Loaded
from ..loading.compat import attention_of
from ..masks import causal_mask

# q (B, H, T, D), k and v (B, K, S, D), heads first as caches keep them, and a mask (T, S) -> (B, H, T, D).
Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

PLUGGED_IN = "sdpa_of_the_reader"  # in transformers' registry; where "sdpa" is in a name, a model must support SDPA


@dataclass(frozen=True)
class Differences:
    """How far apart two ways of attention are in one model, as the largest absolute difference.

    Args:
        layer: of what the first attention layer returns.
        logits: of the scores for the next token, after all layers.
    """

    layer: float
    logits: float


@torch.no_grad()
def differences(lab: Loaded, text: str, attend: Attend) -> Differences:
    """Compare a model as transformers runs it with the same model in which every layer attends by `attend`.

    Args:
        lab: any model whose attention transformers looks up by name.
        text: what the model reads, all at once.
        attend: called once per layer with q (1, H, T, D), k and v (1, K, T, D) and the layer's mask (T, T).
    """
    tokens = lab.tokenizer(text, return_tensors="pt").to(lab.model.device)
    ran = []
    for used in (None, attend):
        answers = []
        hook = lab.model.model.layers[0].self_attn.register_forward_hook(
            lambda *seen, to=answers: to.append(seen[-1][0])
        )
        try:
            with _attending(lab.model, used):
                answers.append(lab.model(**tokens).logits)
        finally:
            hook.remove()
        ran.append([answer.float() for answer in answers])
    return Differences(*(float((mine - theirs).abs().max()) for theirs, mine in zip(*ran, strict=True)))


@contextmanager
def _attending(model: PreTrainedModel, attend: Attend | None) -> Iterator[None]:
    """Have every layer of a model attend by a function; None leaves the library's."""
    if attend is None:
        yield
        return

    def forward(module, query, key, value, attention_mask, **others):
        T, S = query.shape[2], key.shape[2]
        # transformers leaves out a mask that is plainly causal.
        mask = causal_mask(S)[S - T :].to(query.device) if attention_mask is None else attention_mask[0, 0]
        answer = attend(query, key, value, mask).to(query.dtype)  # a reader may compute in float64
        return answer.transpose(1, 2).contiguous(), None

    AttentionInterface.register(PLUGGED_IN, forward)
    AttentionMaskInterface.register(PLUGGED_IN, sdpa_mask)
    before = attention_of(model)
    model.set_attn_implementation(PLUGGED_IN)
    try:
        yield
    finally:
        model.set_attn_implementation(before)
