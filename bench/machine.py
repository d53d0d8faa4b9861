"""What a run's figures depend on beside the code: the machine, and nothing that names it."""

from __future__ import annotations

import os
import platform
from pathlib import Path

from .resident import kibibytes
from .results import Machine

CACHES = Path("/sys/devices/system/cpu/cpu0/cache")


def this_machine() -> Machine:
    """The machine that this process runs on."""
    return Machine(
        processor=processor(),
        architecture=platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release().split("-")[0],
        libc=" ".join(platform.libc_ver()),
        python=f"{platform.python_implementation()} {platform.python_version()}",
        caches=caches(),
        load=os.getloadavg()[0],
    )


def processor() -> str:
    """The name that the processor gives itself; its architecture where the kernel does not pass that on."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def caches() -> dict[str, int]:
    """The sizes of the first core's caches, in bytes; none where the kernel does not tell them."""
    found = {}
    for place in sorted(CACHES.glob("index*")):
        level, kind = ((place / name).read_text().strip() for name in ("level", "type"))
        suffix = {"Data": "d", "Instruction": "i"}.get(kind, "")
        found[f"L{level}{suffix}"] = kibibytes((place / "size").read_text().strip().replace("K", " kB"))
    return found
