"""Four bits that are four bits: bitsandbytes' NF4 for every matrix of a decoder, Mixtral's experts included.

transformers stores all experts of a layer in two tensors, and bitsandbytes replaces `nn.Linear` alone: the well-known
`load_in_4bit=True` leaves 96.6 % of Mixtral in 16 bits. Importing this room registers a quantiser with transformers
that does not.
"""

from .audit import Audit, AuditRow, audit
from .checkpoint import quantized_folder, quantized_tensors
from .experts import FourBitExpert, FourBitExperts
from .linear import ExactLinear4bit
from .quantizer import FourBitConfig, check_cpu, nf4_config, use_our_quantizer

__all__ = [
    "Audit",
    "AuditRow",
    "ExactLinear4bit",
    "FourBitConfig",
    "FourBitExpert",
    "FourBitExperts",
    "audit",
    "check_cpu",
    "nf4_config",
    "quantized_folder",
    "quantized_tensors",
    "use_our_quantizer",
]
