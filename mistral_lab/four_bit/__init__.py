"""Four bits that are four bits: bitsandbytes' NF4 for every weight matrix of a decoder, Mixtral's experts included.

transformers stores all experts of a layer in two tensors, and bitsandbytes replaces only `nn.Linear`: the well-known
`load_in_4bit=True` leaves 96.6 % of Mixtral in 16 bits. Importing this module registers a quantiser with transformers
that quantises the experts too.
"""

from .audit import Audit, AuditRow, audit
from .checkpoint import packed_for, quantized_folder, warn_of_repeated_packing
from .experts import FourBitExpert, FourBitExperts
from .linear import ExactLinear4bit, leave_unpacked
from .quantizer import FourBitConfig, check_cpu, nf4_config, use_our_quantizer
from .shards import holds_packed_codes, quantized_tensors

__all__ = [
    "Audit",
    "AuditRow",
    "ExactLinear4bit",
    "FourBitConfig",
    "FourBitExpert",
    "FourBitExperts",
    "audit",
    "check_cpu",
    "holds_packed_codes",
    "leave_unpacked",
    "nf4_config",
    "packed_for",
    "quantized_folder",
    "quantized_tensors",
    "use_our_quantizer",
    "warn_of_repeated_packing",
]
