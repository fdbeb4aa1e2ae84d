"""streamgw: a Layer-4 gateway on Trio."""

__version__ = "0.1.0"
