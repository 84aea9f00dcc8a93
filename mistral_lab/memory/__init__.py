"""Memory from arithmetic: parameters by part, weights by precision, the growing cache, and what fits."""

from .caches import kv_cache_bytes, rolling_cache_bytes
from .fit import DEVICES, RUNTIME_BYTES, Plan, largest_context, nearest_fit, plan, workspace_bytes
from .room import free_bytes, room_bytes, room_to_load_bytes, total_bytes
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
    "NESTED_BLOCK_SIZE",
    "PRECISIONS",
    "RUNTIME_BYTES",
    "SPLITS",
    "ParameterCounts",
    "Plan",
    "WeightBytes",
    "cache_by_device",
    "free_bytes",
    "kv_cache_bytes",
    "largest_context",
    "nearest_fit",
    "parameter_counts",
    "plan",
    "rolling_cache_bytes",
    "room_bytes",
    "room_to_load_bytes",
    "split_evenly",
    "total_bytes",
    "traffic_bytes",
    "weight_bytes",
    "weight_parts",
    "weights_by_device",
    "workspace_bytes",
]
