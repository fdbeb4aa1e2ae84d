"""Tests of tools/: the checks that `make lint` and `make own-coverage` consist of."""
