"""Timing that the benchmarks share: functions take turns, and what is compared is compared within one round.

A ratio of two medians would take up every drift of the machine's speed between them; the median of the rounds' ratios
does not.
"""

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from ltvit_lib import costs

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile, record_function

WARM_UP = 2  # rounds that do not count
CALLS = 4  # in a turn: steps whose images are augmented at once, and on a GPU the host may run ahead as in training


def now() -> float:
    """Seconds on a clock, read when the device has done all that was asked of it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def rounds(functions: dict[str, Callable], repeats: int) -> pd.DataFrame:
    """Seconds a call: a column a function, a row a round of `CALLS` calls each."""
    rows = []
    for _ in range(repeats + WARM_UP):
        row = {}
        for name, function in functions.items():
            began = now()
            for _ in range(CALLS):
                function()
            row[name] = (now() - began) / CALLS
        rows.append(row)
    return pd.DataFrame(rows[WARM_UP:])


def ratio(above: pd.Series, below: pd.Series) -> dict[str, float]:
    """Median and quartiles over the rounds of one time over another."""
    low, middle, high = (above / below).quantile([0.25, 0.5, 0.75])
    return {"ratio": middle, "low": low, "high": high}


class Product:
    """A square matrix product, to measure a device by in the same round: in bf16 on a GPU, in float32 on a CPU."""

    def __init__(self, size: int | None = None):
        gpu = torch.cuda.is_available()
        size = size or (8192 if gpu else 1024)
        kind = {"device": "cuda", "dtype": torch.bfloat16} if gpu else {}
        self.factors, self.flops = torch.randn(2, size, size, **kind), 2 * size**3

    def __call__(self) -> None:
        self.factors[0] @ self.factors[1]

    def peak(self, seconds: pd.Series) -> tuple[pd.Series | float, str]:
        """Operations a second to measure against, and which: the device's if known, else this product's in a round."""
        known = costs.peak_flops(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
        return (known, "data sheet, dense bf16") if known else (self.flops / seconds, "measured matrix product")


def peak_memory(functions: dict[str, Callable]) -> dict[str, float]:
    """MiB that a call of each holds at its fullest, beyond what was held before it."""
    return _peak_on_cuda(functions) if torch.cuda.is_available() else _peak_on_cpu(functions)


def _peak_on_cuda(functions: dict[str, Callable]) -> dict[str, float]:
    peaks = {}
    for name, function in functions.items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        peaks[name] = (torch.cuda.max_memory_allocated() - before) / 2**20
    return peaks


def _peak_on_cpu(functions: dict[str, Callable]) -> dict[str, float]:
    """Adds up what torch's profiler saw allocated and freed."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        for name, function in functions.items():
            with record_function(name):
                function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    moves = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e["name"] == "[memory]")
    peaks = {}
    for call in (e for e in events if e.get("cat") == "user_annotation" and e["name"] in functions):
        own = [size for at, size in moves if call["ts"] <= at <= call["ts"] + call["dur"]]
        peaks[call["name"]] = max(0, np.cumsum(own).max(initial=0)) / 2**20
    return peaks
