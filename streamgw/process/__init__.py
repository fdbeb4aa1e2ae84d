"""Composition: the only place where the data plane and the control plane meet."""
