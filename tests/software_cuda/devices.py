"""The imagined devices, with the properties that NVIDIA publishes of the real ones."""

from dataclasses import dataclass

MOST_MEMORY_MIB = 4096  # of each device: it is memory of this machine


@dataclass(frozen=True)
class Device:
    """The properties of a kind of device; sizes, clocks and widths are in the unit that their names end with."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    shared_per_block_kib: int  # what a kernel can opt in to
    shared_per_multiprocessor_kib: int
    threads_per_multiprocessor: int
    memory_mib: int
    clock_mhz: int
    memory_clock_mhz: int
    bus_bits: int
    l2_kib: int
    float32_per_float64: int  # how many operations on float32 take the time of one on float64

    @property
    def usable_memory_mib(self):
        """The memory that a program can allocate, and that the device says to have."""
        return min(self.memory_mib, MOST_MEMORY_MIB)


# fmt: off
DEVICES = {
    #                 name                       capability  SMs  block  SM   threads  MiB     clock  memory  bus   L2     ratio
    "H200": Device(   "NVIDIA H200",             (9, 0),     132, 227,   228, 2048,    143771, 1980,  3201,   6144, 51200, 2),
    "A100": Device(   "NVIDIA A100-SXM4-80GB",   (8, 0),     108, 163,   164, 2048,    81920,  1410,  1593,   5120, 40960, 2),
    "T4": Device(     "Tesla T4",                (7, 5),      40,  64,    64, 1024,    16384,  1590,  5001,    256, 4096,  32),
    "V100": Device(   "Tesla V100-SXM2-32GB",    (7, 0),      80,  96,    96, 2048,    32768,  1530,  877,    4096, 6144,  2),
    "RTX 5090": Device("NVIDIA GeForce RTX 5090", (12, 0),   170,  99,   100, 1536,    32607,  2407,  14001,   512, 98304, 64),
}
# fmt: on


def named(names):
    """Return the devices of these names, such as ``("H200", "T4")``, in their order."""
    unknown = [name for name in names if name not in DEVICES]
    if unknown or not names:
        raise ValueError(f"devices must be names from {', '.join(DEVICES)}, got {', '.join(unknown) or 'none'}")
    return [DEVICES[name] for name in names]


def parsed(text):
    """Return the names in a list that is separated by commas, such as ``"H200,T4"``, once each of them is known."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    named(names)
    return names
