"""What a measurement was taken on: hardware and versions, without the machine's name or any path."""

import platform
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path

import torch

from ..arguments import check_count


@dataclass(frozen=True)
class Machine:
    """Hardware and versions that decide how long the same work takes. Two measurements compare if these are equal.

    Args:
        device: "cpu", "mps", or the name of the CUDA card that held the model.
        processor: the CPU's name.
        instructions: the vector instructions PyTorch uses, and AVX512_BF16 where the CPU has it.
        threads: PyTorch's, on the CPU.
        torch, transformers, bitsandbytes: versions.
    """

    device: str
    processor: str
    instructions: str
    threads: int
    torch: str
    transformers: str
    bitsandbytes: str

    def __post_init__(self) -> None:
        check_count("threads", self.threads)
        for field in fields(self):
            if field.type is str and not isinstance(getattr(self, field.name), str):
                raise TypeError(f"{field.name} is {getattr(self, field.name)!r}: expected a text")

    @classmethod
    def here(cls, device="cpu") -> "Machine":
        """This machine, with the model on one of its devices."""
        kind = torch.device(device).type
        return cls(
            device=torch.cuda.get_device_name(device) if kind == "cuda" else kind,
            processor=processor(),
            instructions=instructions(),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            transformers=metadata.version("transformers"),
            bitsandbytes=metadata.version("bitsandbytes"),
        )

    def __str__(self) -> str:
        cpu = f"{self.processor}, {self.threads} thread{'' if self.threads == 1 else 's'}"
        return f"{cpu if self.device == 'cpu' else f'{self.device} ({cpu})'}, torch {self.torch}"


def machines_here() -> set[Machine]:
    """This machine once for each of its devices."""
    devices = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    devices += ["mps"] * torch.backends.mps.is_available()
    return {Machine.here(device) for device in devices}


def processor() -> str:
    """The processor's model name, or the architecture where the system does not tell."""
    return _cpuinfo("model name") or platform.machine()


def instructions() -> str:
    """The vector instructions PyTorch uses on this CPU; where Linux names AVX512_BF16 among the CPU's, that too.

    bitsandbytes multiplies 4-bit weights without writing them out only where the CPU has AVX512_BF16.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{capability}, AVX512_BF16" if "avx512_bf16" in _cpuinfo("flags").split() else capability


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # only Linux has it
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")
