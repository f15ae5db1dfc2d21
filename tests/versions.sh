#!/usr/bin/env bash
# Run a part of the tests with other versions of Python and of packages, and print a table of versions and results.
#     tests/versions.sh                                                # the sets below; torch takes gigabytes
#     tests/versions.sh "3.12 newest" "3.11 oldest torch==2.11.0"      # these sets
# A set is a version of Python, `oldest` (packages as old as setup.cfg allows) or `newest` (packages as new as can be installed),
# and more requirements of pip. Its environment is kept in the folder VERSIONS_FOLDER for the next time where that is set. The tests
# are those of arrays on the CPU and, on Linux, a sample of the device tests on the software CUDA; where a set names torch, those of
# tensors instead. The exit code is 1 if a test fails or a set cannot be installed.
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

arrays=(
    tests/correlation/test_operator.py::test_{named_cases_equal_the_oracle,every_dtype_equals_the_oracle}
    tests/lookup/test_definition.py::test_named_lookups_equal_the_definition tests/matching/test_definition.py::test_every_dtype
    tests/motion/test_{definition,real_images}.py tests/scaling/test_match.py tests/files/test_{frames,results,scheduler}.py
    tests/test_cli.py tests/machines/test_{workers,blas_limits,object_cache}.py
)
devices=(
    -m "gpu and not slow" --software-cuda=H200,T4 --software-cuda-sample=0/24
    tests/{correlation,lookup,matching,scaling}/test_gpu.py tests/motion/test_cupy.py
)
tensors=(
    --software-cuda=H200 tests/torch tests/compat/test_compat{,_blocks,_lookup}.py tests/test_channels.py cupycorr/torch
)

# Print the command of a version of Python.
find_python() {
    local candidate
    for candidate in "python$1" python3 python; do
        "$candidate" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2> /dev/null && echo "$candidate" && return
    done
    echo "there is no Python $1" >&2
    return 1
}

# Print the requirements of the tests, without torch and what checks only code and archives; for `oldest`, with the oldest versions
# of what a user may have.
requirements() {
    "$1" - "$2" <<'PYTHON'
import configparser
import re
import sys

ELSEWHERE = """torch torchvision ruff mypy import-linter pytest-cov codespell pre-commit check-jsonschema twine bump-my-version
cogapp numpydoc mkdocs-material mkdocstrings-python playwright onnx onnxruntime onnxscript""".split()

setup = configparser.ConfigParser()
setup.read("setup.cfg")
extras = setup["options.extras_require"]
numpy = setup["options"]["install_requires"]
users = "\n".join([numpy, *(extras[name] for name in ("cpu", "demo", "dask", "torch", "cuda12"))])
oldest = {re.match(r"[\w-]+", line)[0] for line in users.split()} if sys.argv[1] == "oldest" else set()
for line in "\n".join([numpy, extras["test"]]).split():
    name = re.match(r"[\w-]+", line)[0]
    if name not in ELSEWHERE:
        print(re.sub(r">=([\w.]+)[^;]*", r"==\1", line) if name in oldest else line)
PYTHON
}

install() {
    local environment=$1 python age=$3 words
    python=$(find_python "$2") && words=$(requirements "$python" "$age") && "$python" -m venv "$environment" || return 1
    shift 3
    echo "$words" > "$environment/requirements.txt"
    python=$(in_environment "$environment")
    "$python" -m pip install -q --upgrade pip &&
        "$python" -m pip install -q -r "$environment/requirements.txt" "$@" &&
        "$python" -m pip install -q --no-deps -e . &&
        touch "$environment/complete"
}

in_environment() {
    if [ -d "$1/Scripts" ]; then echo "$1/Scripts/python"; else echo "$1/bin/python"; fi
}

# Print the last line of pytest's output, and on stderr each test that failed.
test_with() {
    local python log=$2 code
    python=$(in_environment "$1")
    shift 2
    "$python" -m pytest -q "$@" > "$log" 2>&1
    code=$?
    grep -E '^(FAILED|ERROR)' "$log" >&2
    tail -n 1 "$log"
    return "$code"
}

versions() {
    "$(in_environment "$1")" - <<'PYTHON'
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

table="set | versions | result"
failed=0
for set in "${sets[@]}"; do
    read -ra words <<< "$set"
    environment=$folder/${set// /_}
    if [ ! -e "$environment/complete" ]; then
        rm -rf "$environment"
        install "$environment" "${words[@]}" > "$environment.log" 2>&1 || {
            table+=$'\n'"$set | - | not installed: $(grep -v '^WARNING' "$environment.log" | tail -n 1)"
            failed=1
            continue
        }
    fi
    case " ${words[*]:2}" in
        *" torch"*) result=$(test_with "$environment" "$environment.tensors" "${tensors[@]}") || failed=1 ;;
        *)
            result=$(test_with "$environment" "$environment.arrays" "${arrays[@]}") || failed=1
            [ "$(uname)" != Linux ] || result+="; devices: $(test_with "$environment" "$environment.devices" "${devices[@]}")" || failed=1
            ;;
    esac
    table+=$'\n'"$set | $(versions "$environment") | $result"
done
echo "$table"
exit "$failed"
