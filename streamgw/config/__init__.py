"""Files to values and back: blocking code, YAML, no event loop."""
