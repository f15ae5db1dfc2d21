#!/usr/bin/env bash
# Run some of the tests with other versions of Python and of packages, and print a table of versions and results.
#     tests/versions.sh                                                # the sets below; torch takes gigabytes
#     tests/versions.sh "3.12 newest" "3.11 oldest torch==2.11.0"      # these sets
# A set is a version of Python, `oldest` (packages as old as setup.cfg allows) or `newest` (packages as new as can be installed),
# and more requirements of pip. Its environment is kept in the folder VERSIONS_FOLDER for the next time where that is set. The tests
# are those of arrays on the CPU, and a sample of the device tests on the software CUDA; where the set names torch, those of
# tensors instead.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${VERSIONS_FOLDER:-$(mktemp -d)}
[ -n "${VERSIONS_FOLDER:-}" ] || trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder"

sets=(
    "3.10 oldest"
    "3.12 oldest"
    "3.10 newest"
    "3.12 newest"
    "3.13 newest"
    "3.14 newest"
    "3.11 oldest torch==2.11.0"
    "3.11 newest torch"
)
[ "$#" = 0 ] || sets=("$@")

arrays="tests/correlation/test_operator.py tests/correlation/test_groups.py tests/lookup/test_definition.py
    tests/lookup/test_simd_gradients.py tests/matching/test_definition.py tests/motion tests/scaling tests/files tests/test_cli.py
    tests/machines/test_workers.py tests/machines/test_blas_limits.py"
devices="tests/correlation/test_gpu.py tests/lookup/test_gpu.py tests/matching/test_gpu.py tests/motion/test_cupy.py tests/scaling"
tensors="tests/torch tests/compat/test_compat.py tests/compat/test_compat_blocks.py tests/compat/test_compat_lookup.py
    tests/test_channels.py cupycorr/torch"
on_devices=(-m "gpu and not slow" --software-cuda=H200,T4 --software-cuda-sample=0/12)

requirements() {
    # Print the requirements of the tests without torch, and, for `oldest`, the oldest versions of what a user may have.
    python3 - "$1" <<'PYTHON'
import configparser
import re
import sys

setup = configparser.ConfigParser()
setup.read("setup.cfg")
extras = setup["options.extras_require"]
users = "\n".join([setup["options"]["install_requires"], *(extras[name] for name in ("cpu", "demo", "dask", "torch", "cuda12"))])
tests = "\n".join([setup["options"]["install_requires"], extras["test"]])
oldest = {re.match(r"[\w-]+", line)[0] for line in users.split()} if sys.argv[1] == "oldest" else set()
for line in tests.split():
    name = re.match(r"[\w-]+", line)[0]
    if name not in ("torch", "torchvision"):
        print(re.sub(r">=([\w.]+).*", r"==\1", line) if name in oldest else line)
PYTHON
}

install() {
    local environment=$1 python=$2 age=$3 words
    shift 3
    command -v "python$python" > /dev/null && "python$python" -c "" 2> /dev/null || { echo "there is no Python $python"; return 1; }
    "python$python" -m venv "$environment" && mapfile -t words < <(requirements "$age") &&
        "$environment/bin/python" -m pip install -q --upgrade pip &&
        "$environment/bin/python" -m pip install -q "${words[@]}" "$@" &&
        "$environment/bin/python" -m pip install -q --no-deps -e .
}

# Print the last line of pytest's output, and each test that failed.
test_with() {
    local environment=$1 log=$2
    shift 2
    "$environment/bin/python" -m pytest -q "$@" > "$log" 2>&1
    grep -E '^(FAILED|ERROR)' "$log" >&2
    tail -1 "$log"
}

versions() {
    "$1/bin/python" - <<'PYTHON'
from importlib.metadata import PackageNotFoundError, version

found = []
for name in ("numpy", "torch", "cupy-cuda12x", "llvmlite", "dask"):
    try:
        found.append(f"{name} {version(name)}")
    except PackageNotFoundError:
        pass
print(", ".join(found))
PYTHON
}

table="set | versions | tests on the CPU | tests of devices"
for set in "${sets[@]}"; do
    read -ra words <<< "$set"
    environment=$folder/${set// /_}
    if [ ! -x "$environment/bin/pytest" ]; then
        install "$environment" "${words[@]}" > "$environment.log" 2>&1 || {
            table+=$'\n'"$set | not installed: $(tail -1 "$environment.log") | |"
            rm -rf "$environment"
            continue
        }
    fi
    if [[ " ${words[*]:2}" == *" torch"* ]]; then
        # shellcheck disable=SC2086 # the files are several words
        results="$(test_with "$environment" "$environment.tensors" --software-cuda=H200 $tensors) |"
    else
        # shellcheck disable=SC2086
        results="$(test_with "$environment" "$environment.arrays" $arrays) | $(test_with "$environment" "$environment.devices" "${on_devices[@]}" $devices)"
    fi
    table+=$'\n'"$set | $(versions "$environment") | $results"
done
echo "$table"
