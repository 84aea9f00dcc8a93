"""Four bits that are four bits: bitsandbytes' NF4 for every matrix of a decoder, Mixtral's experts included.

transformers stores all experts of a layer in two tensors, and bitsandbytes replaces `nn.Linear` alone: the well-known
`load_in_4bit=True` leaves 96.6 % of Mixtral in 16 bits. Importing this room registers a quantiser with transformers
that does not.
"""

from .audit import Audit, AuditRow, audit
from .checkpoint import four_bits, quantized_folder
from .linear import ExactLinear4bit
from .quantizer import FourBitConfig, FourBitExpert, FourBitExperts, adopt, check_cpu, nf4_config

__all__ = [
    "Audit",
    "AuditRow",
    "ExactLinear4bit",
    "FourBitConfig",
    "FourBitExpert",
    "FourBitExperts",
    "adopt",
    "audit",
    "check_cpu",
    "four_bits",
    "nf4_config",
    "quantized_folder",
]
