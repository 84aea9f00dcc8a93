"""Attention for one new token on a CPU: the queries of a group as rows of one product, and no key read twice."""

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .compat import attention_of

BY_GROUPS = "sdpa_by_groups"  # in transformers' registry; where "sdpa" is in a name, a model must support SDPA


def attend_by_groups(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others,
) -> tuple[torch.Tensor, None]:
    """Attend for one query per sequence, group by group; hand anything else over to transformers' "sdpa".

    The G query heads of a group read the same keys. So G heads of one query each are, without a copy, one head of G
    queries, and every key is read once for all of them:

        q (B, H, 1, D) -> (B, K, G, D), with k, v (B, K, S, D)

    Args:
        module: the attention layer.
        query: q.
        key: k.
        value: v.
        attention_mask: True or 0 where a query may attend; (B, 1 or H, 1, S), or None where it may attend to all.
        dropout: of the weights.
        scaling: of the scores; None is D ** −0.5.
        others: what else transformers passes on to its attention functions.

    Returns:
        (B, T, H, D), and None in the place of the weights.

    Differs: PyTorch's kernel for CPUs, with `enable_gqa`, reads the keys of a group once for each of its query heads.
        transformers folds the heads as here, but only where there is a mask, and one token seldom needs one.
    """
    extra = any(others.get(name) is not None for name in ("softcap", "position_bias", "cache"))
    if query.shape[2] != 1 or extra:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
    B, H, _, D = query.shape
    K = key.shape[1]
    if attention_mask is not None and attention_mask.shape[1] > 1:
        attention_mask = attention_mask.reshape(-1, K, H // K, attention_mask.shape[-1])
    out = scaled_dot_product_attention(
        query.reshape(B, K, H // K, D), key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling
    )
    return out.reshape(B, 1, H, value.shape[-1]), None


AttentionInterface.register(BY_GROUPS, attend_by_groups)
AttentionMaskInterface.register(BY_GROUPS, sdpa_mask)


def use_groups(model: PreTrainedModel) -> None:
    """Have a model attend by groups where it attends by transformers' "sdpa"; leave every other kind of attention.

    The values are those of "sdpa" up to rounding, as `attend_by_groups` only arranges the same products otherwise.

    Args:
        model: on a CPU; what it computes for more than one token at once does not change.
    """
    if attention_of(model) == "sdpa":
        model.set_attn_implementation(BY_GROUPS)
