"""What holds for every test."""

from __future__ import annotations

import hypothesis

# How long one example takes is a fact about the machine and its other guests, not about the code under test.
hypothesis.settings.register_profile("no-deadline", deadline=None)
hypothesis.settings.load_profile("no-deadline")
