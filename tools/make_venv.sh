#!/bin/sh
# Usage: tools/make_venv.sh DIRECTORY
#
# Makes a virtual environment with pip in it; does nothing where there is one already. Debian splits what `python3 -m
# venv` needs off into python3-venv: installed when we are root, named when we are not.
set -eu

venv=$1
python=${PYTHON:-python3}

stop() {
    echo "streamgw: $1" >&2
    exit 1
}

if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    exit 0
fi
command -v "$python" >/dev/null || stop "$python is not installed; it needs Python 3.11 or newer"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    stop "$("$python" --version) is too old; it needs Python 3.11 or newer (make PYTHON=python3.12 …)"

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    if "$python" -m virtualenv --version >/dev/null 2>&1; then
        exec "$python" -m virtualenv --quiet "$venv"
    fi
    "$(dirname "$0")/debian_install.sh" python3-venv
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
        stop "$python has no venv, also with python3-venv installed; try make PYTHON=/usr/bin/python3 …"
fi
exec "$python" -m venv --clear "$venv"
