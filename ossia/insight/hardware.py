"""The machines that a roofline knows: published figures with their sources, or measured ones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ossia.errors import OssiaError

MEASURED = "measured by `ossia bench machine`"

# Two 512-bit multiply-adds a cycle in float32, at 3 GHz (Intel 64 and IA-32 Architectures
# Optimization Reference Manual, "Skylake Server microarchitecture").
_CORE_FLOPS = 2 * 16 * 2 * 3e9
_CPU = re.compile(r"cpu:(\d+):(\d+(?:\.\d+)?)(?::(\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class Hardware:
    """What bounds a model on one machine.

    flops: per second, of matrix products in bfloat16 that accumulate in float32, without
    structured sparsity; None if the vendor does not publish them, so that only memory bounds.
    sources: where the figures stand.
    """

    name: str
    memory_bytes: float | None
    read_bytes_per_second: float
    flops: float | None
    sources: tuple[str, ...]
    note: str = ""

    @property
    def is_measured(self) -> bool:
        return MEASURED in self.sources


_ADA = "https://images.nvidia.com/aem-dam/Solutions/geforce/ada/nvidia-ada-gpu-architecture.pdf"
_RTX_BLACKWELL = (
    "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/"
    "nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_HALVED = "published with sparsity: halved here"

HARDWARE = {
    "h100": Hardware(
        "H100 SXM",
        80e9,
        3.35e12,
        989.5e12,
        ("https://www.nvidia.com/en-us/data-center/h100/",),
        _HALVED,
    ),
    "h200": Hardware(
        "H200 SXM",
        141e9,
        4.8e12,
        989.5e12,
        ("https://www.nvidia.com/en-us/data-center/h200/",),
        _HALVED,
    ),
    "b200": Hardware(
        "B200",
        180e9,
        8e12,
        2.25e15,
        (
            "https://www.nvidia.com/en-us/data-center/dgx-b200/",
            "https://www.nvidia.com/en-us/data-center/hgx/",
        ),
        "an eighth of DGX B200 (1,440 GB, 64 TB/s) and of HGX B200's 36 PFLOP/s with sparsity, "
        "halved",
    ),
    "rtx-4090": Hardware("RTX 4090", 24e9, 1.008e12, 165.2e12, (_ADA,)),
    "rtx-5090": Hardware("RTX 5090", 32e9, 1.792e12, 209.5e12, (_RTX_BLACKWELL,)),
    "m4-max": Hardware(
        "M4 Max",
        128e9,
        546e9,
        None,
        ("https://www.apple.com/newsroom/2024/10/apple-introduces-m4-pro-and-m4-max/",),
        "with the most memory on offer; Apple publishes no rate of bfloat16 products",
    ),
    "m3-ultra": Hardware(
        "M3 Ultra",
        512e9,
        819e9,
        None,
        ("https://www.apple.com/mac-studio/specs/",),
        "with the most memory on offer; Apple publishes no rate of bfloat16 products",
    ),
}


def named(name: str) -> Hardware:
    """The hardware of a name in `HARDWARE`, or of cpu:CORES:GB/S or cpu:CORES:GB/S:TFLOP/S.

    Raises OssiaError for anything else.
    """
    if (found := HARDWARE.get(name.lower())) is not None:
        return found
    if (cpu := _CPU.fullmatch(name.lower())) is None:
        raise OssiaError(
            f"--hardware {name}: must be one of {', '.join(HARDWARE)}; here; cpu:CORES:GB/S, such "
            "as cpu:16:205; or a file of `ossia bench machine --json`"
        )
    cores, bandwidth = int(cpu[1]), float(cpu[2]) * 1e9
    if not cores or not bandwidth:
        raise OssiaError(f"--hardware {name}: cores and GB/s must be above 0")
    flops = float(cpu[3]) * 1e12 if cpu[3] else cores * _CORE_FLOPS
    rate = "as given" if cpu[3] else "64 FLOP a cycle and core at 3 GHz, as of AVX-512"
    return Hardware(
        f"CPU of {cores} core{'s' if cores > 1 else ''}, {float(cpu[2]):g} GB/s",
        None,
        bandwidth,
        flops,
        ("given with --hardware",),
        rate,
    )


def measured(record: Mapping[str, Any], source: str) -> Hardware:
    """The machine of a record of `ossia bench machine --json`; `source` names it in messages.

    Raises OssiaError for anything else.
    """
    try:
        return Hardware(
            str(record["processor"]) or "this machine",
            float(record["memory_bytes"]),
            float(record["read_bytes_per_second"]["all"]["median"]),
            max(float(rate["median"]) for rate in record["operations_per_second"].values()),
            (MEASURED,),
            f"{int(record['threads'])} threads; the fastest of its matrix products",
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise OssiaError(f"{source} is not what `ossia bench machine --json` prints") from error
