#!/bin/bash
# Create .venv and install the pinned wheels into it. PYTHON names the interpreter for a new environment (default: python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

fail() {
    echo "make setup: $*" >&2
    exit 1
}

check_platform() {
    [ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || fail "the ROS wheels exist for Linux on x86_64 only, this is $(uname -s) on $(uname -m)"
    command -v "$python" >/dev/null || fail "no interpreter '$python': install Python 3.10-3.12, or name one: make setup PYTHON=python3.11"
    "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' ||
        fail "'$python' is $("$python" --version 2>&1), Python 3.10-3.12 is needed; name another one: make setup PYTHON=python3.11"
}

# Names of the Debian packages that are not there: for virtual environments, for compiling messages, for the renderer.
missing_system_packages() {
    local version
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "$version-venv"
    "$python" -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' || echo "$version-dev"
    command -v c++ >/dev/null || echo build-essential
    "$python" -c 'import ctypes, ctypes.util as u; ctypes.CDLL(u.find_library("OSMesa") or "libOSMesa.so")' 2>/dev/null || echo libosmesa6
}

install_system_packages() {
    local missing
    mapfile -t missing < <(missing_system_packages)
    [ ${#missing[@]} -gt 0 ] || return 0
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        fail "system packages are missing: ${missing[*]}. Install them and try again: sudo apt-get install ${missing[*]}"
    fi
    echo "Installing ${missing[*]}"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"
    mapfile -t missing < <(missing_system_packages)
    [ ${#missing[@]} -eq 0 ] || fail "'$python' still lacks ${missing[*]} after installing it: is it the system's interpreter?"
}

check_platform
install_system_packages

exec {lock}>.venv.lock # two terminals may run make at the same time
flock "$lock"
.venv/bin/python -m pip --version >/dev/null 2>&1 || "$python" -m venv --clear .venv
echo "Installing the pinned wheels into .venv (several minutes the first time)"
pip=(.venv/bin/python -m pip --disable-pip-version-check --no-input install --quiet)
"${pip[@]}" -r requirements.txt -r requirements-dev.txt
"${pip[@]}" --no-deps -r requirements-assets.txt
.venv/bin/python scripts/prepare_ros_wheels.py
touch .venv/.installed
