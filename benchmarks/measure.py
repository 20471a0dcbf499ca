"""Common parts of the speed benchmarks: interleaved timing, peak memory, machine, table and JSON file."""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from itertools import accumulate
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Names of bf16 arithmetic in /proc/cpuinfo on x86 and ARM; without it, bf16 is emulated and slower than fp32."""


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """Options of every benchmark; `description` is the docstring of the program."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of the CPU kernels")
    options.add_argument("--repeats", type=int, default=repeats, help="measurements per variant, in alternating order")
    options.add_argument("--json", type=Path, help="file to write")
    options.add_argument("--quick", action="store_true", help="tiny sizes, to test the program")
    return options


def prepare(options: argparse.Namespace) -> torch.device:
    """Set the threads, and on CUDA the setting of the GPU recipes (`benchmark: true`)."""
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = options.device == "cuda"
    return torch.device(options.device)


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(device: torch.device) -> float:
    """Seconds; with one thread on the CPU those of this process, which other processes prolong less."""
    synchronize(device)
    alone = device.type == "cpu" and torch.get_num_threads() == 1
    return time.process_time() if alone else time.perf_counter()


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    started = clock(device)
    call()
    return clock(device) - started


def interleaved(
    variants: Mapping[str, Callable[[], Any]], repeats: int, warmup: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every variant, interleaved in alternating order, so that a drift of the machine affects all alike.

    Args:
        variants: Functions to call, by name.
        repeats: Measurements per variant.
        warmup: Further measurements at the start, which are dropped.
        device: Device to synchronise before and after every call.
    """
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(warmup + repeats):
        for name in list(variants) if number % 2 == 0 else list(variants)[::-1]:
            taken = seconds(variants[name], device)
            if number >= warmup:
                times[name].append(taken)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratios(a: list[float], b: list[float]) -> dict[str, float]:
    """Spread of `a / b` over the repeats."""
    return spread([x / y for x, y in zip(a, b, strict=True)])


def peak_memory(call: Callable[[], Any], device: torch.device) -> int:
    """Peak bytes of `call` above those allocated before it.

    On CUDA the allocator counts; on the CPU the profiler records every allocation and release of a tensor. Neither
    includes scratch space inside libraries.
    """
    synchronize(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    return max(accumulate((event.nbytes() for event in events), initial=0))


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, its bf16 instructions, GPU and versions."""
    described = {
        "cpu": cpu_name(),
        "bf16 instructions": sorted(BF16_FLAGS & cpu_flags()) or "none",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": metadata.version("lightning"),
    }
    if device.type == "cuda":
        described |= {
            "gpu": torch.cuda.get_device_name(device),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    return described


def cpu_name() -> str:
    return next(iter(_cpuinfo("model name")), platform.processor() or platform.machine())


def cpu_flags() -> set[str]:
    lines = _cpuinfo("flags") or _cpuinfo("Features")
    return set(lines[0].split()) if lines else set()


def _cpuinfo(key: str) -> list[str]:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return [line.split(":", 1)[1].strip() for line in lines if line.split(":")[0].strip() == key]


def cell(value: object) -> str:
    """Format a number with three decimals, a large one without; anything else as text."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
    return "" if value is None else str(value)


def table(rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...] = ("median", "min", "max", "target")) -> str:
    """Format a Markdown table; missing values are empty cells."""
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(cell(row.get(column)) for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(options: argparse.Namespace, rows: Mapping[str, Mapping[str, Any]], **more: Any) -> None:
    """Print the table and the machine, and write both with the settings to `--json`.

    Args:
        options: Options of the program.
        rows: Results by name; each with any of `median`, `min`, `max` and `target`.
        more: Further content of the file.
    """
    described = machine(torch.device(options.device))
    settings = {name: str(value) for name, value in vars(options).items() if not isinstance(value, Path)}
    print(table(rows))
    print("\n" + ", ".join(f"{name}: {value}" for name, value in described.items()))
    program = Path(sys.argv[0]).name
    write(options.json, {"program": program, "machine": described, "settings": settings, "rows": rows, **more})


def write(path: Path | None, content: Mapping[str, Any]) -> None:
    """Write JSON, unless the path is None."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
