#!/bin/sh
# Make .venv and install d3s2 into it, if that has not been done with the same pins before. `make` calls this.
# `./install.sh course` adds what tests, assignments and the book need.
# A problem ends in one sentence that says what to do; pip's own words are in .venv/install.log.
set -eu
cd "$(dirname "$0")"

need_mb=4000
venv=.venv
requirements=requirements${1:+-$1}.in
stamp=$venv/.installed${1:+-$1}
log=$venv/install.log

fail() {
    printf 'd3s2: %s\n' "$*" >&2
    exit 1
}

fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }
version() { "$1" -c 'import sys; print(sys.version_info[:2])' 2>/dev/null; }
# What PYTHON asks for; without it, whatever fits
is_asked_for() { [ -z "${PYTHON:-}" ] || [ "$(version "$1")" = "$(version "$PYTHON")" ]; }

pins=$(cat requirements*.in constraints.txt pyproject.toml packaging/imaug/pyproject.toml install.sh | cksum)
if [ -x "$venv/bin/d3s2" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$pins $(pwd)" ] && fits "$venv/bin/python" &&
    is_asked_for "$venv/bin/python"; then
    exit 0
fi

python=
for candidate in ${PYTHON:-python3.11 python3.12 python3.13 python3}; do
    if fits "$candidate"; then python=$candidate && break; fi
done
if [ -z "$python" ]; then
    found=$(${PYTHON:-python3} --version 2>&1 || true)
    fail "Python 3.11, 3.12 or 3.13 is needed and was not found (${PYTHON:-python3} says: ${found:-nothing})." \
        "Install it, or name it: make run PYTHON=/path/to/python3.11"
fi

free_mb=$(df -Pk . | awk 'NR == 2 { print int($4 / 1024) }')
if [ "$free_mb" -lt "$need_mb" ]; then
    fail "$free_mb MB are free in $(pwd), but the installation needs $need_mb MB (8000 with the CUDA build of torch)." \
        "Free some space, or clone to another disk."
fi

explain() {
    if grep -qiE 'no space left|disk quota' "$log"; then
        fail "The disk became full during the installation. Free some space (8000 MB for the CUDA build of torch)," \
            "then run the same command again."
    elif grep -qiE 'could not find a version|no matching distribution|connection ?error|max retries|timed out|name resolution|unreachable' "$log"; then
        fail "The package index could not be reached, or lacks a package: check the network and pip's settings" \
            "(pip config list), then run the same command again. pip's words: $venv/install.log"
    fi
    tail -n 5 "$log" >&2
    fail "The installation failed; the lines above are the last of $venv/install.log."
}

echo "d3s2: installing into $venv with $("$python" --version 2>&1) (once, a few minutes) ..."
[ -d "$venv" ] && [ "$(version "$venv/bin/python")" != "$(version "$python")" ] && mv "$venv" "$venv.old.$$"
mkdir -p "$venv"
rm -f "$venv"/.installed*
"$python" -m venv "$venv" >"$log" 2>&1 ||
    fail "$python cannot make virtual environments: install its venv module (on Debian: python3-venv). $(tail -n 1 "$log")"
# The empty imaug keeps out 320 MB that nothing imports; see its pyproject.toml.
set -- -r "$requirements" -e . ./packaging/imaug -c constraints.txt
# uv, where it is there, installs the same pins sooner. It does not read pip's settings: where it finds no packages, pip may.
by_uv() { command -v uv >/dev/null && uv pip install --python "$venv/bin/python" "$@" >>"$log" 2>&1; }
by_uv "$@" ||
    "$venv/bin/python" -m pip install --disable-pip-version-check "$@" >>"$log" 2>&1 || explain
printf '%s %s' "$pins" "$(pwd)" | tee "$stamp" >"$venv/.installed"
echo "d3s2: installed."
