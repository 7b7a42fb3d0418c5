#!/usr/bin/env bash
# Makes this folder ready to run: the Python packages in .venv, and a headless renderer that works.
# Run again it only checks, in a few seconds. Exit 0: ready; 2: wrong option; 4: this machine lacks
# something, said in the last line. Used by every target of the Makefile; docs/setup.md explains.
set -euo pipefail
unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
# The caller's shell must not decide what gets imported or where pip installs.
unset PYTHONPATH PYTHONHOME PYTHONSAFEPATH PIP_TARGET PIP_PREFIX
export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
source tools/rendering.sh
trap 'printf "\nsetup: interrupted; the same command takes it up again\n" >&2; exit 130' INT TERM

usage='usage: tools/setup.sh [--cuda] [--dev] [--rootless-rendering]
  --cuda                also the CUDA libraries for an NVIDIA GPU (requirements-cuda.txt)
  --dev                 also what .ci/run wants (requirements-dev.txt)
  --rootless-rendering  unpack the OSMesa renderer under .venv/rendering even where another works'
python=.venv/bin/python
needed_mb=3500

say() { printf 'setup: %s\n' "$*"; }
fail() { printf 'setup: error: %s\n' "$*" >&2; exit 4; }

is_root() { [ "$(id -u)" = 0 ]; }
can_be_root() { is_root || { command -v sudo && sudo -n true; } >/dev/null 2>&1; }
as_root() { if is_root; then "$@"; else sudo -n "$@"; fi; }

quietly() {  # run a command; its output is shown only when it fails
    local output
    output=$("$@" 2>&1) || { printf '%s\n' "$output" | tail -n 15 >&2; return 1; }
}

apt_install() {  # apt_install PACKAGE...: false where that is not ours to do, or fails
    command -v apt-get >/dev/null && can_be_root || return 1
    say "installing $* with apt-get"
    quietly as_root apt-get -q update || say 'apt-get update failed; trying the lists that are here'
    quietly as_root env DEBIAN_FRONTEND=noninteractive \
        apt-get -q -y install --no-install-recommends "$@"
}

suitable() {  # suitable PYTHON: is it one that TensorFlow 2.21 has wheels for?
    "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14)
                                  or sys.maxsize < 2 ** 32)' >/dev/null 2>&1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.11 python3.12 python3.13; do
        if suitable "$candidate"; then printf '%s\n' "$candidate"; return; fi
    done
    fail "needs a 64-bit Python >= 3.11 and < 3.14, found $(python3 --version 2>&1 || true |
        head -n 1); install one and name it: PYTHON=/path/to/python3.11 make ..."
}

make_environment() {
    local base free version
    free=$(df -k --output=avail . 2>/dev/null | tail -n 1 || true)
    if [ -n "$free" ] && [ "$free" -lt $((needed_mb * 1024)) ]; then
        fail "needs $needed_mb MB of disk here, $((free / 1024)) MB are free; make room, run again"
    fi
    base=$(find_python)
    if ! "$base" -c 'import ensurepip, venv' 2>/dev/null; then  # Debian and Ubuntu split these off
        version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        apt_install "python$version-venv" ||
            fail "$base cannot make virtual environments;" \
                "run: sudo apt-get install python$version-venv"
    fi
    say "making a virtual environment in .venv ($("$base" --version))"
    quietly "$base" -m venv --clear .venv || fail "$base -m venv .venv failed: see above"
}

show_large() {  # of what pip says, the downloads that take time
    local line pattern='(Downloading|Using cached) ([^ ]*/)?([^ -]+-[^ -]+)[^ ]* \(([0-9.]+) MB\)'
    while IFS= read -r line; do
        if [[ $line =~ $pattern && ${BASH_REMATCH[4]%.*} -ge 20 ]]; then
            say "  ${BASH_REMATCH[3]} (${BASH_REMATCH[4]} MB)"
        elif [[ $line == 'Installing collected packages'* ]]; then
            say '  unpacking'
        fi
    done
}

install_packages() {  # install_packages FILE SIZE, unless .venv holds what its lock says already
    local stamp=".venv/.installed-$1" wanted
    wanted=$({
        cat "locks/$1"
        "$python" --version
    } | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    say "installing the packages of $1 (the first time $2 to download)"
    if ! "$python" -m pip install --no-input --progress-bar off --require-hashes \
        -r "locks/$1" 2>&1 |
        tee .venv/install.log | show_large; then
        { grep -vE "^(Ignoring|Collecting|Requirement already| )" .venv/install.log || true; } |
            tail -n 8 >&2
        fail "pip could not install $1: what it said last is above, all of it in .venv/install.log"
    fi
    printf '%s\n' "$wanted" >"$stamp"
}

main() {
    local cuda='' dev='' rootless='' started=$SECONDS
    for option in "$@"; do
        case $option in
            --cuda) cuda=1 ;;
            --dev) dev=1 ;;
            --rootless-rendering) rootless=1 ;;
            -h | --help) printf '%s\n' "$usage"; exit 0 ;;
            *) printf 'setup: error: unknown option %s\n%s\n' "$option" "$usage" >&2; exit 2 ;;
        esac
    done
    mkdir -p .venv && [ -w .venv ] || fail "cannot write in $PWD/.venv; use a copy that is yours"
    # Two `make` at the same time: the second waits for the first one's set-up.
    if command -v flock >/dev/null; then
        exec 9<.
        flock -n 9 || { say 'waiting for another set-up of this folder'; flock 9; }
    fi
    if ! "$python" -m pip --version >/dev/null 2>&1; then make_environment; fi
    suitable "$python" || fail ".venv holds $("$python" --version), which TensorFlow 2.21 does" \
        "not support; run: make clean, then the same command again"
    install_packages requirements.txt 'about 0.8 GB'
    if [ -n "$cuda" ]; then install_packages requirements-cuda.txt 'about 3 GB'; fi
    if [ -n "$dev" ]; then install_packages requirements-dev.txt '200 MB'; fi
    if [ ! -e .venv/.installed-requirements-cuda.txt ] && nvidia-smi -L >/dev/null 2>&1; then
        say 'this machine has an NVIDIA GPU: tools/setup.sh --cuda adds what TensorFlow needs'
    fi
    ensure_rendering "$rootless"
    say "ready ($("$python" --version), $((SECONDS - started)) s)"
}

main "$@"
