"""Mixture of experts as Mixtral computes it: routing, sparse experts, and what the choices look like."""

from .balance import load_balancing_loss
from .experts import Expert, expert_forward, sparse_experts, split_experts
from .routing import Routing, capture_routing, route_top_k
from .statistics import co_activation, expert_load, load_entropy, lru_hit_rate, repeat_rate

__all__ = [
    "Expert",
    "Routing",
    "capture_routing",
    "co_activation",
    "expert_forward",
    "expert_load",
    "load_balancing_loss",
    "load_entropy",
    "lru_hit_rate",
    "repeat_rate",
    "route_top_k",
    "sparse_experts",
    "split_experts",
]
