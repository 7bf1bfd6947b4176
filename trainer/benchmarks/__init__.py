"""What `tools/benchmark.py` times, for each system.

Adding one: write `trainer/benchmarks/<name>.py` with a function from a `Request` to a `Plan`, and add a line here.
"""

from __future__ import annotations

from common.registry import Registry

BENCHMARKS: Registry = Registry(
    "benchmark of the system",
    {
        "vfm_vae": "trainer.benchmarks.vfm_vae:plan",
        "vfmtok": "trainer.benchmarks.vfmtok:plan",
        "lightningdit": "trainer.benchmarks.lightningdit:plan",
        "reg": "trainer.benchmarks.reg:plan",
        "gpt_c2i": "trainer.benchmarks.gpt_c2i:plan",
    },
)
