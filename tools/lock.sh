#!/usr/bin/env bash
# Writes locks/: of each requirements file every package that it brings along, with the version and
# the hashes of all its files. Run again after a change of a requirements file; --upgrade takes the
# newest versions of what is not pinned there.
set -euo pipefail
unset CDPATH
cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."

# The largest first: the others take the versions that it chose.
for name in requirements-dev requirements-cuda requirements-import requirements; do
    constraints=()
    if [ "$name" != requirements-dev ]; then constraints=(-c locks/requirements-dev.txt); fi
    .venv/bin/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-annotate --custom-compile-command tools/lock.sh \
        "${constraints[@]}" "$@" "$name.txt" -o "locks/$name.txt"
done
