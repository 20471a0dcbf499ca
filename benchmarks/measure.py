"""Common parts of the speed benchmarks: interleaved timing, peak memory, the machine, the table and the JSON file."""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""How /proc/cpuinfo names bf16 arithmetic on x86 and on ARM; without it bf16 is emulated, and slower than fp32."""


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options that every benchmark has; `description` is the docstring of the program."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU kernels")
    options.add_argument("--repeats", type=int, default=repeats, help="measurements of each arm, in alternating order")
    options.add_argument("--json", type=Path, help="file to write")
    options.add_argument("--quick", action="store_true", help="tiny sizes, to see that the program runs")
    return options


def prepare(options: argparse.Namespace) -> torch.device:
    """Set the threads, and on CUDA the setting of the GPU recipes (`benchmark: true`)."""
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = options.device == "cuda"
    return torch.device(options.device)


def synchronize(device: torch.device) -> None:
    """Wait for the device; the CPU is never behind."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    call()
    synchronize(device)
    return time.perf_counter() - started


def interleaved(
    arms: Mapping[str, Callable[[], Any]], repeats: int, warmup: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every arm, one after the other in every repeat, in alternating order.

    A machine that becomes slower or faster in between does so for all arms.

    Args:
        arms: What to call, by name.
        repeats: Measurements of each arm.
        warmup: Further ones before, which are dropped.
        device: Waited for before and after every call.
    """
    times: dict[str, list[float]] = {name: [] for name in arms}
    for number in range(warmup + repeats):
        for name in list(arms) if number % 2 == 0 else list(arms)[::-1]:
            taken = seconds(arms[name], device)
            if number >= warmup:
                times[name].append(taken)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratios(a: list[float], b: list[float]) -> dict[str, float]:
    """Ratios of `a` over `b`, repeat by repeat."""
    return spread([x / y for x, y in zip(a, b, strict=True)])


def peak_memory(call: Callable[[], Any], device: torch.device) -> int:
    """Peak bytes of `call` above those allocated before it.

    On CUDA the allocator counts. On CPU the profiler sees every allocation and release of a tensor's memory; summed in
    the order of time, they are what is alive. Scratch space inside of libraries is in neither.
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
    result = profiler.profiler.kineto_results
    events = sorted((e for e in result.events() if e.name() == "[memory]"), key=lambda event: event.start_ns())
    alive = peak = 0
    for event in events:
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak


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
    """A number with three decimals, or with none where it is large; anything else as text."""
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3f}"
    return "" if value is None else str(value)


def table(rows: Mapping[str, Mapping[str, Any]], columns: tuple[str, ...] = ("median", "min", "max", "target")) -> str:
    """A Markdown table; a row without a column has an empty cell."""
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[name, *(cell(row.get(column)) for column in columns)] for name, row in rows.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(options: argparse.Namespace, rows: Mapping[str, Mapping[str, Any]], **more: Any) -> None:
    """Print the table and the machine, and write both with the settings to `--json`.

    Args:
        options: Of the program.
        rows: What was measured, by name; each with any of `median`, `min`, `max` and `target`.
        more: For the file only.
    """
    described = machine(torch.device(options.device))
    settings = {name: str(value) for name, value in vars(options).items() if not isinstance(value, Path)}
    print(table(rows))
    print("\n" + ", ".join(f"{name}: {value}" for name, value in described.items()))
    program = Path(sys.argv[0]).name
    write(options.json, {"program": program, "machine": described, "settings": settings, "rows": rows, **more})


def write(path: Path | None, content: Mapping[str, Any]) -> None:
    """As JSON, if there is a path."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n")
