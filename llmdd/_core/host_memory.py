"""How much memory this process can still get from the machine."""

from __future__ import annotations

from pathlib import Path


def available_bytes() -> int:
    """Bytes that a new pool may take: what the kernel says is available, or what the control group leaves, if less."""
    return min(_available_on_host(), _left_by_control_group())


def _available_on_host() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/meminfo has no line MemAvailable")


def _left_by_control_group() -> int:
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return 1 << 63
    return 1 << 63 if limit == "max" else max(0, int(limit) - used)
