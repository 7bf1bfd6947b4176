#!/usr/bin/env bash
#
# Makes the Python environment of this checkout, .venv, or brings it up to date with the requirements.
#
#   tools/setup_env.sh [--dev]      --dev: also what requirements-dev.txt lists (tests and checks)
#
# The last line on stdout is the path of the interpreter; all else goes to stderr. PYTHON in the environment names the
# interpreter that .venv is made from (Python 3.11 or newer). Delete .venv to start again from nothing.

set -euo pipefail

readonly usage="usage: tools/setup_env.sh [--dev]"

say() { printf 'setup: %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$*" >&2
    exit 2
}

is_supported() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

# --- what a complete environment looks like --------------------------------------------------------------------------

# A stamp inside .venv says for which files, and for which place (.venv cannot be moved), the last install was complete.
# It is removed before an install and written after it. Beside it, a marker says that an install has begun.

sha256() { if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1; }

stamp_lines() {
    printf 'checkout %s\n' "$root"
    local file
    for file in "${files[@]}"; do
        printf '%s %s\n' "$file" "$(sha256 <"$file")"
    done
}

is_complete() {
    [[ -x "$python" && -f "$stamp" && ! -e "$marker" ]] || return 1
    local line
    while IFS= read -r line; do
        grep -qxF -- "$line" "$stamp" || return 1
    done < <(stamp_lines)
}

finish() {
    printf '%s\n' "$python"
    exit 0
}

# --- steps -----------------------------------------------------------------------------------------------------------

take_lock() { # held until this script and everything that it started have ended; another call waits for it
    command -v flock >/dev/null || return 0
    exec 9<"$root/tools/setup_env.sh"
    flock --nonblock 9 && return 0
    say "waiting for another set-up of this checkout to end"
    flock 9 || say "this file system has no locks; do not run two set-ups at the same time"
}

base_interpreter() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        command -v "$PYTHON" >/dev/null || fail "PYTHON=$PYTHON is not a command; give the path of an interpreter."
        is_supported "$PYTHON" ||
            fail "PYTHON=$PYTHON is $("$PYTHON" --version 2>&1 | head -n 1), expected Python 3.11 or newer."
        printf '%s\n' "$PYTHON"
        return
    fi
    for candidate in python3 python3.14 python3.13 python3.12 python3.11 python; do
        if is_supported "$candidate"; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    fail "found no Python 3.11 or newer (python3: $(python3 --version 2>/dev/null || echo missing));" \
        "install one, or set PYTHON to the path of its interpreter."
}

discard_unfinished() {
    if [[ -e "$marker" ]]; then
        say "the last install was interrupted; starting again"
    elif [[ -f "$stamp" ]] && ! grep -qxF -- "checkout $root" "$stamp"; then
        say ".venv was made for another place; starting again"
    elif [[ -e "$venv" && ! -x "$python" ]]; then
        say ".venv has no working interpreter; starting again"
    else
        return 0
    fi
    rm -rf -- "$venv"
}

make_environment() {
    say "making .venv with $("$base" --version)"
    "$base" -c 'import venv' 2>/dev/null ||
        fail "$base has no venv module. On Debian and Ubuntu: apt-get install python3-venv."
    if "$base" -c 'import ensurepip' 2>/dev/null; then
        "$base" -m venv "$venv" >&2
    elif "$base" -m pip --version >/dev/null 2>&1; then # Debian keeps ensurepip apart; its pip can do the same
        "$base" -m venv --without-pip "$venv" >&2
        "$base" -m pip --python "$python" install --quiet pip >&2
    else
        fail "$base has neither ensurepip nor pip. On Debian and Ubuntu: apt-get install python3-venv."
    fi
}

install_requirements() {
    local log="$venv/install.log"
    say "installing ${files[*]:1} (several GB and some minutes the first time)"
    if ! "$python" -m pip install --no-input "${arguments[@]}" 2>&1 | tee "$log" | show_progress; then
        printf '%s\n' "--- the last lines of $log" >&2
        tail -n 20 "$log" >&2
        fail "pip could not install the requirements; see above. The next call starts again from nothing."
    fi
}

show_progress() { # of pip's report, what tells how far it is
    local line
    while read -r line; do # without leading blanks
        case "$line" in
            "Downloading "* | "Using cached "* | "Processing "*) say "  ${line%% (from *}" ;;
            "Installing collected packages:"*) say "  unpacking $(tr -cd , <<<"$line," | wc -c | tr -d ' ') packages" ;;
        esac
    done
}

# --- from here on, in order ------------------------------------------------------------------------------------------

files=(pyproject.toml requirements.txt) # pyproject.toml: it names the packages that `-e .` makes importable
arguments=(-r requirements.txt)
case "$*" in
    "") ;;
    --dev)
        files+=(requirements-dev.txt)
        arguments=(-r requirements-dev.txt)
        ;;
    -h | --help) echo "$usage" && exit 0 ;;
    *) fail "found '$*'. $usage" ;;
esac

root="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
cd -- "$root" # the relative paths in the requirements are read from here
readonly root venv="$root/.venv"
readonly python="$venv/bin/python" stamp="$venv/.complete" marker="$venv/.installing"

is_complete && finish
take_lock
is_complete && finish # the call that was waited for may have done it

# What the caller's shell or pip configuration redirects must not reach this environment.
unset PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX
export PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 PIP_DISABLE_PIP_VERSION_CHECK=1

discard_unfinished
[[ -x "$python" ]] || base="$(base_interpreter)"
mkdir -p -- "$venv"
touch -- "$marker"
rm -f -- "$stamp"
[[ -x "$python" ]] || make_environment
is_supported "$python" || fail ".venv holds $("$python" --version), expected Python 3.11 or newer; delete .venv first."
install_requirements
stamp_lines >"$stamp.partial"
rm -- "$marker"
mv -- "$stamp.partial" "$stamp"
say "done"
finish
