"""What the services do: one folder for each owner of state, its rules apart from its stores.

Importing it makes Python collect garbage less often while everything else is loaded: modules and models stay
until the process ends, and to go through them again and again took a tenth of its start.
"""

import gc

# Python's own thresholds.
_USUAL = gc.get_threshold()

gc.set_threshold(50_000, 20, 20)


def end_loading() -> None:
    """Collect garbage as usual from now on, without what is loaded. A process calls it once it is ready."""
    gc.freeze()
    gc.set_threshold(*_USUAL)
