"""Systems: which networks there are, what one step does, what is logged. The trainer knows none by name.

Adding one: write `trainer/systems/<name>.py` with a `System`, add a line to `SYSTEMS`, and put its configuration
together in `configs/schema.py`.
"""

from __future__ import annotations

from common.registry import Registry

SYSTEMS: Registry = Registry("system", {"vfm_vae": "trainer.systems.vfm_vae:VFMVAESystem"})
