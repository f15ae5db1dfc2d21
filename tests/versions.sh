#!/usr/bin/env bash
# Run tests on another version of torch or CuPy than the suite's, and print which passed: those of torch, or a sample of the device
# tests on the software CUDA.
#     tests/versions.sh torch==2.11.0 torch==2.14.1 cupy-cuda12x==14.0.1
# Each version gets an environment of its own, kept in the folder VERSIONS_FOLDER for the next time where that is set.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${VERSIONS_FOLDER:-$(mktemp -d)}
[ -n "${VERSIONS_FOLDER:-}" ] || trap 'rm -rf "$folder"' EXIT
declare -A tests=(
    [torch]="-m '' --software-cuda=H200 tests/torch tests/compat/test_compat.py tests/compat/test_compat_blocks.py tests/compat/test_compat_lookup.py tests/test_channels.py cupycorr/torch"
    [cupy-cuda12x]="-m 'gpu and not slow' --software-cuda=H200,T4 --software-cuda-sample=0/12 tests"
)

install() {
    # The suite's constraints, without the one on the package in question, and without torchvision's, which names a version of torch.
    grep -Ev "^($2|torchvision)==" tests/constraints.txt > "$1/constraints.txt"
    "$1/bin/pip" install -q -e ".[test]" "$3" -c "$1/constraints.txt"
}

table="version | result"
for version in "$@"; do
    package=${version%%==*}
    environment=$folder/$version
    log=$folder/$version.log
    if [ ! -x "$environment/bin/python" ]; then
        python3 -m venv "$environment"
        install "$environment" "$package" "$version" > "$log" 2>&1 || { table+=$'\n'"$version | not installed: $(tail -1 "$log")"; rm -rf "$environment"; continue; }
    fi
    eval "words=(${tests[$package]})"
    "$environment/bin/python" -m pytest -q "${words[@]}" > "$log" 2>&1
    table+=$'\n'"$version | $(tail -1 "$log")"
    grep '^FAILED' "$log"
done
echo "$table"
