"""How fast bytes come to where they are used: a device's own memory, the link to it, the disk; published numbers."""

from dataclasses import dataclass

# The most that others measured from pinned memory to a card over 16 lanes of PCIe: 3.0, 12.2 and 13.1 GB/s (on GitHub,
# mpicbg-scicomp/gearshifft#82 and usadellab/Helixer#22); 4.0, 23.9 to 26.4 (NVIDIA/nvbandwidth#15); 5.0, 56.4
# (tinygrad/open-gpu-kernel-modules#29). Eight lanes of 4.0 have half of the sixteen.
_PCIE_3, _PCIE_4, _PCIE_4_HALF, _PCIE_5 = 13.1e9, 26.4e9, 13.2e9, 56.4e9
_NVME = 3.5e9  # as SSDs with four lanes of PCIe 3.0 are sold (Samsung's 970 PRO); with 4.0 it can be twice as much


@dataclass(frozen=True)
class Speeds:
    """Bytes per second, each the most that the machine can reach, because a floor of time is computed with them.

    Args:
        memory_bytes_per_s: at which the device reads its own memory; on a CPU, the computer's.
        link_bytes_per_s: from the computer's memory to the device; None on a CPU, which needs no link.
        disk_bytes_per_s: from the disk to the computer's memory, read in long stretches.

    Raises:
        ValueError: a speed that is not above 0.
    """

    memory_bytes_per_s: float
    link_bytes_per_s: float | None
    disk_bytes_per_s: float

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (value is None and name == "link_bytes_per_s") and not value > 0:
                raise ValueError(f"{name} is {value}: expected a number of bytes per second above 0")


# By the names in `DEVICES`. Memory as published: the T4's in NVIDIA's product brief, those of A100 and H100, the kind
# with an SXM socket, in their data sheets, those of the RTX cards in the tables of cpu-gpu.alldbin.com and
# hardwareluxx.de; the RTX 4060 Ti has 128 bits at 18 Gbit/s. The link is the card's; a computer may have a slower one.
SPEEDS = {
    "RTX 3070": Speeds(448e9, _PCIE_4, _NVME),
    "RTX 3060 12GB": Speeds(360e9, _PCIE_4, _NVME),
    "T4": Speeds(320e9, _PCIE_3, _NVME),
    "RTX 4060 Ti 16GB": Speeds(288e9, _PCIE_4_HALF, _NVME),
    "RTX 3090": Speeds(936e9, _PCIE_4, _NVME),
    "RTX 4090": Speeds(1008e9, _PCIE_4, _NVME),
    "H100 80GB": Speeds(3350e9, _PCIE_5, _NVME),
    "A100 80GB": Speeds(2039e9, _PCIE_4, _NVME),
}
# Two channels of DDR4-3200, each 8 bytes wide: 2 · 8 bytes · 3.2e9 transfers per second. DDR5-5600 has 1.75 times that.
LAPTOP = Speeds(51.2e9, None, _NVME)


def speeds_of(name: str) -> Speeds | None:
    """Return the published speeds of a card by the name that its driver gives it, or None for a card not listed.

    >>> speeds_of("NVIDIA GeForce RTX 3060") is SPEEDS["RTX 3060 12GB"]
    True
    """
    words = name.replace("-", " ").split()
    for card, speeds in SPEEDS.items():
        known = [word for word in card.split() if not word.endswith("GB")]
        places = [start for start in range(len(words)) if words[start : start + len(known)] == known]
        # "RTX 3070 Ti" is another card than "RTX 3070".
        if any(words[start + len(known) : start + len(known) + 1] not in (["Ti"], ["SUPER"]) for start in places):
            return speeds
    return None
