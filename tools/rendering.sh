# Makes headless rendering work, with the system's package manager or without root. Sourced by
# setup.sh, whose say, fail, quietly and apt_install it uses. `python -m envs.rendering` judges.

osmesa_command='sudo apt-get update && sudo apt-get install --no-install-recommends libosmesa6'

ensure_rendering() {  # ensure_rendering FORCE_ROOTLESS
    local report
    if [ -n "$1" ]; then
        unpack_osmesa || fail "could not unpack OSMesa without root; run: $osmesa_command"
        report=$(MUJOCO_GL=osmesa "$python" -m envs.rendering) || fail "$report"
        say "$report"
        return
    fi
    if report=$("$python" -m envs.rendering); then say "$report"; return; fi
    # A backend that the user chose is not ours to replace.
    [ -z "${MUJOCO_GL:-}" ] || fail "$report"
    command -v apt-get >/dev/null || fail "headless rendering does not work, and there is no" \
        "apt-get to install Mesa's EGL or OSMesa with; docs/setup.md has the commands by system"
    apt_install libosmesa6 || apt_install libegl1 libgl1 libgl1-mesa-dri || unpack_osmesa ||
        fail "headless rendering needs a library that could not be installed; run: $osmesa_command"
    report=$("$python" -m envs.rendering) || fail "$report"
    say "$report"
}

unpack_osmesa() {  # without root: OSMesa and what it needs, from apt, unpacked in .venv/rendering
    [ "$(uname -m)" = x86_64 ] && command -v dpkg >/dev/null || return 1
    say 'unpacking the OSMesa renderer under .venv/rendering (no root needed; 20-60 MB to load)'
    rendering_work=$(mktemp -d)
    trap 'rm -rf -- "$rendering_work"' EXIT
    quietly download_osmesa "$rendering_work" || return 1
    rm -rf .venv/rendering && mv .venv/rendering.part .venv/rendering
}

download_osmesa() {  # download_osmesa FOLDER: leaves the unpacked packages in .venv/rendering.part
    local work=$1 packages package
    # Package lists of our own: the system's may be absent (container images) or out of date.
    local apt=(apt-get -q -o "Dir::State=$work/state" -o "Dir::Cache=$work/cache"
        -o Dir::State::status=/var/lib/dpkg/status)
    mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial" "$work/deb" || return 1
    "${apt[@]}" update || return 1
    # What this system lacks, as apt sees it, so that the list fits any release.
    packages=$("${apt[@]}" --simulate --no-install-recommends install libosmesa6) || return 1
    packages=$(printf '%s\n' "$packages" | sed -n 's/^Inst \([^ ]*\).*/\1/p' | sort -u)
    (cd "$work/deb" && "${apt[@]}" download ${packages:-libosmesa6}) || return 1
    rm -rf .venv/rendering.part && mkdir .venv/rendering.part || return 1
    for package in "$work"/deb/*.deb; do
        dpkg -x "$package" .venv/rendering.part || return 1
    done
}
