"""Memory from arithmetic: parameters by part, weights by precision, the cache, what fits, what runs all the same."""

from .caches import kv_cache_bytes, rolling_cache_bytes
from .fit import DEVICES, RUNTIME_BYTES, Plan, largest_context, nearest_fit, plan, workspace_bytes
from .outside import (
    PUBLISHED_HIT_RATES,
    OutsidePlan,
    bytes_for_slots,
    expert_bytes,
    experts_touched,
    plan_outside,
    rate_text,
    uniform_hit_rate,
)
from .room import free_bytes, room_bytes, room_to_load_bytes, total_bytes
from .speeds import LAPTOP, SPEEDS, Speeds, speeds_of
from .split import SPLITS, cache_by_device, split_evenly, traffic_bytes, weights_by_device
from .weights import (
    BLOCK_SIZE,
    NESTED_BLOCK_SIZE,
    PRECISIONS,
    ParameterCounts,
    WeightBytes,
    parameter_counts,
    weight_bytes,
    weight_parts,
)

__all__ = [
    "BLOCK_SIZE",
    "DEVICES",
    "LAPTOP",
    "NESTED_BLOCK_SIZE",
    "PRECISIONS",
    "PUBLISHED_HIT_RATES",
    "RUNTIME_BYTES",
    "SPEEDS",
    "SPLITS",
    "OutsidePlan",
    "ParameterCounts",
    "Plan",
    "Speeds",
    "WeightBytes",
    "bytes_for_slots",
    "cache_by_device",
    "expert_bytes",
    "experts_touched",
    "free_bytes",
    "kv_cache_bytes",
    "largest_context",
    "nearest_fit",
    "parameter_counts",
    "plan",
    "plan_outside",
    "rate_text",
    "rolling_cache_bytes",
    "room_bytes",
    "room_to_load_bytes",
    "speeds_of",
    "split_evenly",
    "total_bytes",
    "traffic_bytes",
    "uniform_hit_rate",
    "weight_bytes",
    "weight_parts",
    "weights_by_device",
    "workspace_bytes",
]
