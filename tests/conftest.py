import os

import hypothesis

# Nothing may need a network, and nothing may be found in a cache that a fresh machine does not have.
os.environ["HF_HUB_OFFLINE"] = "1"

# Timings of numerical code on shared machines say nothing.
hypothesis.settings.register_profile(
    "default", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=True
)
hypothesis.settings.load_profile("default")
