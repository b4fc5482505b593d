"""What the services do: one folder for each owner of state, its rules apart from its stores.

A process that loads this package looks for cyclic garbage when 50,000 objects are new, not at 700 as usual.
What it loads stays for as long as it lives: looking through that again and again takes a fifth of its start.
"""

import gc

gc.set_threshold(50_000, 20, 20)
