#!/usr/bin/env bash
# Run the torch tests on other versions of torch than the suite's, and print which passed:
#     tests/versions.sh 2.11.0 2.14.1
# Each version gets an environment of its own, kept in the folder VERSIONS_FOLDER for the next time where that is set.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${VERSIONS_FOLDER:-$(mktemp -d)}
[ -n "${VERSIONS_FOLDER:-}" ] || trap 'rm -rf "$folder"' EXIT
tests=(tests/torch/test_torch.py tests/torch/test_torch_compile.py tests/torch/test_torch_derivatives.py tests/torch/test_torch_training.py
    tests/torch/test_torch_gpu_path.py tests/compat/test_compat.py tests/test_channels.py cupycorr/torch)

install() {
    # The suite's constraints, without the one on torch.
    grep -v '^torch==' tests/constraints.txt > "$1/constraints.txt"
    "$1/bin/pip" install -q -e ".[test]" "torch==$2" -c "$1/constraints.txt"
}

table="torch | result"
for version in "$@"; do
    environment=$folder/$version
    log=$folder/$version.log
    if [ ! -x "$environment/bin/python" ]; then
        python3 -m venv "$environment"
        install "$environment" "$version" > "$log" 2>&1 || { table+=$'\n'"$version | not installed: $(tail -1 "$log")"; rm -rf "$environment"; continue; }
    fi
    "$environment/bin/python" -m pytest -q -m "" "${tests[@]}" > "$log" 2>&1
    table+=$'\n'"$version | $(tail -1 "$log")"
    grep '^FAILED' "$log"
done
echo "$table"
