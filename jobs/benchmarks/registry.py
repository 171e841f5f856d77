"""All benchmarks by name, in the order in which they are offered; docs/benchmarks.md tells of each."""

from __future__ import annotations

from jobs.benchmarks import (
    alpaca_items,
    easy_pope,
    easy_vqa,
    ifeval,
    llava_items,
    mm_vet_items,
    mmbench_items,
    mt_items,
    pope_items,
    text_tasks,
)
from jobs.benchmarks.contract import Benchmark
from jobs.benchmarks.measures import half_of

__all__ = ["BENCHMARKS", "half_of"]

BENCHMARKS: dict[str, Benchmark] = {
    module.BENCHMARK.name: module.BENCHMARK
    for module in (
        easy_vqa,
        easy_pope,
        text_tasks,
        pope_items,
        mmbench_items,
        mm_vet_items,
        llava_items,
        mt_items,
        alpaca_items,
        ifeval,
    )
}
