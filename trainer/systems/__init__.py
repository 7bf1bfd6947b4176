"""Systems: which networks there are, what one step does, what is logged. The trainer knows none by name.

Adding one: write `trainer/systems/<name>.py` with a `System`, and add a line to `SYSTEMS`; put its configuration
together in `configs/<name>.py`, and add a line to `EXPERIMENTS` in `configs/schema.py`.
"""

from __future__ import annotations

from common.registry import Registry

SYSTEMS: Registry = Registry(
    "system",
    {
        "vfm_vae": "trainer.systems.vfm_vae:VFMVAESystem",
        "vfmtok": "trainer.systems.vfmtok:VFMTokSystem",
        "lightningdit": "trainer.systems.lightningdit:LightningDiTSystem",
        "reg": "trainer.systems.reg:REGSystem",
        "gpt_c2i": "trainer.systems.gpt_c2i:GPTSystem",
    },
)
