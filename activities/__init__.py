"""What the services do: one folder for each owner of state, its rules apart from its stores.

Importing it makes Python collect garbage less often: after 50,000 new objects instead of 700, and the older
generations after 20 collections instead of 10. Modules and models stay until the process ends; to go through
them again and again took a tenth of its start.
"""

import gc

gc.set_threshold(50_000, 20, 20)
