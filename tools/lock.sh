#!/bin/sh
# Usage: tools/lock.sh
#
# Writes constraints.txt: the version of every package that `pip install -e .[dev]` brings today. Made in a fresh
# environment, so that nothing is listed that was only tried once.
set -eu

cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

tools/make_venv.sh "$scratch/venv"
"$scratch/venv/bin/python" -m pip install --quiet --disable-pip-version-check -e '.[dev]'
{
    echo "# Written by tools/lock.sh (make lock). Versions that the tests passed with; pyproject.toml says what may be used."
    "$scratch/venv/bin/python" -m pip freeze --exclude-editable
} >"$scratch/constraints.txt"
mv "$scratch/constraints.txt" constraints.txt
