"""Four bits that are four bits: bitsandbytes' NF4 for every weight matrix of a decoder, Mixtral's experts included.

transformers stores all experts of a layer in two tensors, and bitsandbytes replaces only `nn.Linear`: the well-known
`load_in_4bit=True` leaves 96.6 % of Mixtral in 16 bits. Importing this module registers a quantiser with transformers
that quantises the experts too.
"""

from .audit import Audit, AuditRow, audit
from .checkpoint import packed_for, quantized_folder, warn_of_repeated_packing
from .experts import ExpertUse, FourBitExpert, FourBitExperts, watch_experts
from .guess import GuessHits, guess_experts, guess_hits
from .linear import ExactLinear4bit, leave_unpacked
from .outside import Costs, Outside, OutsideExperts, experts_outside, keep_experts_outside
from .paging import share_page_cache, watch_files
from .quantizer import FourBitConfig, check_cpu, nf4_config, use_our_quantizer
from .shards import holds_packed_codes, keeps_matrices_together, quantized_tensors
from .traffic import ExpertTraffic, expert_traffic

__all__ = [
    "Audit",
    "AuditRow",
    "Costs",
    "ExactLinear4bit",
    "ExpertTraffic",
    "ExpertUse",
    "FourBitConfig",
    "FourBitExpert",
    "FourBitExperts",
    "GuessHits",
    "Outside",
    "OutsideExperts",
    "audit",
    "check_cpu",
    "expert_traffic",
    "experts_outside",
    "guess_experts",
    "guess_hits",
    "holds_packed_codes",
    "keep_experts_outside",
    "keeps_matrices_together",
    "leave_unpacked",
    "nf4_config",
    "packed_for",
    "quantized_folder",
    "quantized_tensors",
    "share_page_cache",
    "use_our_quantizer",
    "warn_of_repeated_packing",
    "watch_experts",
    "watch_files",
]
