"""What holds for every test."""

from __future__ import annotations

import hypothesis

# How long one example takes is a fact about the machine and its other guests, not about the code under test.
# The gate looks at the same examples each time: what it says is about the change under test. `make explore` looks further.
_patient = hypothesis.settings(deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.register_profile("gate", _patient, derandomize=True)
hypothesis.settings.register_profile("explore", _patient, max_examples=2000, print_blob=True)
hypothesis.settings.load_profile("gate")
