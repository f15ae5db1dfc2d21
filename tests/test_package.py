"""The wheel holds the package, requires only NumPy and works alone next to it; README, CI and pins agree."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from email.parser import Parser
from pathlib import Path

import nvrtc
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from waiting import STUCK

import cupycorr
from cupycorr._gpu import compiler, source
from cupycorr._operators import OPERATORS

ROOT = Path(__file__).resolve().parents[1]
CONSTRAINTS = ROOT / "tests" / "constraints.txt"
DEMO_COMMAND = 'pip install -e ".[demo]" && cupycorr demo'
TEST_COMMAND = 'pip install -e ".[test]" -c tests/constraints.txt && python -m pytest -n auto'


def run(*words, cwd, check=True):
    """Run a command without the environment variables through which it would find another copy of the package."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_", "CUPYCORR_"))}
    options = dict(cwd=cwd, env=environment, capture_output=True, text=True, timeout=STUCK)
    done = subprocess.run([str(word) for word in words], check=False, **options)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The path of the wheel, built from a copy because building leaves folders behind."""
    copy, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", built, copy, cwd=copy)
    (path,) = built.iterdir()
    return path


@pytest.fixture(scope="module")
def content(wheel):
    """Return the names of the wheel's files, its metadata and the text of its entry points."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        texts = {Path(name).name: archive.read(name).decode() for name in names if ".dist-info/" in name}
    return names, Parser().parsestr(texts["METADATA"]), texts["entry_points.txt"]


@pytest.fixture(scope="module")
def alone(wheel, tmp_path_factory):
    """The folder of programs of an environment that holds the wheel, its requirements and nothing else."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    programs = folder / ("Scripts" if os.name == "nt" else "bin")
    pip = [sys.executable, "-m", "pip", "--python", programs / "python"]
    run(*pip, "install", "--quiet", "--disable-pip-version-check", "-c", CONSTRAINTS, wheel, cwd=folder)
    return programs


# Content -------------------------------------------------------------------------------------------------------------


def test_the_wheel_holds_every_module_every_kernel_the_type_marker_and_the_licence(content):
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "cupycorr").rglob("*.py")}
    sources = {f"cupycorr/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "kernels_cu").rglob("*.cu*")}
    assert {"cupycorr/kernels_cu/common/platform.cuh", "cupycorr/kernels_cu/correlation/forward_direct.cu"} <= sources
    names, _, _ = content
    assert modules | sources | {"cupycorr/py.typed"} == {name for name in names if ".dist-info/" not in name}
    assert any(name.endswith("/LICENSE") for name in names)


def test_the_wheel_holds_nothing_else(content):
    folders = {name.partition("/")[0] for name in content[0]}
    assert folders == {"cupycorr", f"cupycorr-{cupycorr.__version__}.dist-info"}


def test_the_wheel_is_for_every_platform(wheel):
    assert wheel.name == f"cupycorr-{cupycorr.__version__}-py3-none-any.whl"


def test_numpy_is_the_only_hard_requirement(content):
    _, metadata, _ = content
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    assert [str(each) for each in required if each.marker is None] == ["numpy>=2.0"]
    assert all("extra" in str(each.marker) for each in required if each.marker is not None)
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Version"] == cupycorr.__version__


def test_the_extras_are_these(content):
    _, metadata, _ = content
    assert set(metadata.get_all("Provides-Extra")) == {"demo", "cpu", "torch", "onnx", "dask", "cuda12", "cuda13", "docs", "test"}


def test_every_remedy_names_an_extra_there_is(content):
    _, metadata, _ = content
    text = "".join(path.read_text() for path in (ROOT / "cupycorr").rglob("*.py"))
    named = set(re.findall(r"cupycorr\[(\w+)\]", text))
    assert {"cpu", "demo"} <= named <= set(metadata.get_all("Provides-Extra"))


def test_the_command_is_an_entry_point(content):
    assert "[console_scripts]\ncupycorr = cupycorr.cli:main" in content[2]


# Alone next to NumPy -------------------------------------------------------------------------------------------------

ALONE = """
    import importlib.metadata, json
    import numpy as np
    import cupycorr

    x = np.ones((1, 8, 6, 7), np.float32)
    out = cupycorr.spatial_correlation_sample(x, x, patch_size=3)
    g1, g2 = cupycorr.spatial_correlation_sample_vjp(np.ones_like(out), x, x, patch_size=3)
    large = np.ones((1, 64, 48, 64), np.float32)
    told = cupycorr.explain(large, large, patch_size=9)
    frame = np.random.default_rng(0).random((40, 50))
    field = cupycorr.match(frame, np.roll(frame, (1, -2), (0, 1)), window=9, search=((-3, 3), (-3, 3)))
    try:
        cupycorr.spatial_correlation_sample(x, x, variant="simd")
    except NotImplementedError as error:
        refusal = str(error)
    print(json.dumps({
        "installed": sorted(found.name for found in importlib.metadata.distributions()),
        "place": cupycorr.__file__,
        "out": [out.shape, float(out[0, 1, 1, 3, 3]), float(out[0, 0, 0, 0, 0])],
        "gradients": [float(g1[0, 0, 3, 3]), float(g2[0, 0, 0, 0])],
        "variant": told.variant,
        "reasons": [told.reasons["simd"], refusal],
        "motion": [float(np.median(field.dx)), float(np.median(field.dy))],
    }))
"""


@pytest.mark.slow
def test_the_wheel_alone_runs_on_numpy(alone, tmp_path):
    report = json.loads(run(alone / "python", "-W", "error", "-c", textwrap.dedent(ALONE), cwd=tmp_path).stdout)
    assert report["installed"] == ["cupycorr", "numpy"]
    assert Path(report["place"]).is_relative_to(alone.parent)
    assert report["out"] == [[1, 3, 3, 6, 7], 8, 0]
    assert report["gradients"] == [9, 4]
    assert report["variant"] == "blas"
    assert all('pip install "cupycorr[cpu]"' in reason for reason in report["reasons"])
    assert report["motion"] == pytest.approx([-2, 1], abs=0.1)


KERNELS = """
    import json
    from cupycorr._gpu import device, source
    from cupycorr._operators import OPERATORS

    try:
        device.import_cupy()
    except ImportError as error:
        refusal = str(error)
    files = sorted({kernel.file for operator in OPERATORS for _, kernel in operator.builds(None)})
    texts = {file: source.text(file) for file in files}
    print(json.dumps({"folder": str(source.folder()), "texts": texts, "refusal": refusal}))
"""


@pytest.fixture(scope="module")
def installed_kernels(alone, tmp_path_factory):
    """The CUDA sources that an installed wheel finds."""
    folder = tmp_path_factory.mktemp("elsewhere")
    return json.loads(run(alone / "python", "-W", "error", "-c", textwrap.dedent(KERNELS), cwd=folder).stdout)


@pytest.mark.slow
def test_the_wheel_alone_finds_its_own_kernels_and_they_are_the_checkouts(alone, installed_kernels):
    folder = Path(installed_kernels["folder"])
    assert folder.is_relative_to(alone.parent.resolve())
    assert folder.parts[-2:] == ("cupycorr", "kernels_cu")
    assert installed_kernels["texts"] == {file: source.text(file) for file in source.files()}


@pytest.mark.slow
def test_the_wheel_alone_names_the_pip_command_of_the_gpu(installed_kernels):
    assert 'pip install "cupycorr[cuda12]"' in installed_kernels["refusal"]


@pytest.mark.slow
@nvrtc.needed
def test_the_wheels_own_text_of_every_kernel_compiles(installed_kernels, tmp_path, monkeypatch):
    for file, text in installed_kernels["texts"].items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    monkeypatch.setattr(source, "folder", lambda: tmp_path)
    for kernel in {kernel.file: kernel for operator in OPERATORS for _, kernel in operator.builds(None)}.values():
        binary, _ = compiler.cubin(kernel, "sm_80")
        assert binary.startswith(b"\x7fELF")


@pytest.mark.slow
@pytest.mark.parametrize("words", [("demo",), ("info",), ()], ids=" ".join)
def test_the_command_alone_names_the_pip_command(alone, tmp_path, words):
    done = run(alone / "cupycorr", *words, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert 'pip install "cupycorr[demo]"' in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


# Commands and pins -------------------------------------------------------------------------------------------------


def lines(name):
    return [line.strip() for line in (ROOT / name).read_text().splitlines()]


def test_readme_and_ci_have_the_same_commands():
    assert DEMO_COMMAND in lines("README.md")
    assert TEST_COMMAND in lines("README.md")
    assert TEST_COMMAND in lines(".ci/run")


def pins():
    """Return the lines of the constraints as requirements."""
    return [Requirement(line) for line in lines("tests/constraints.txt") if line and not line.startswith("#")]


@pytest.mark.parametrize("python", ["3.10", "3.11", "3.12", "3.13"])
def test_every_requirement_of_the_suite_has_one_pin_that_satisfies_it(content, python):
    _, metadata, _ = content
    pinned = {}
    for pin in pins():
        if pin.marker is None or pin.marker.evaluate({"python_version": python}):
            assert pin.name not in pinned, f"{pin.name} is pinned twice"
            (version,) = pin.specifier
            assert version.operator == "=="
            pinned[canonicalize_name(pin.name)] = version.version
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    required = [each for each in required if each.marker is None or each.marker.evaluate({"extra": "test"})]
    assert len(required) > 10
    for each in required:
        assert each.specifier.contains(pinned[canonicalize_name(each.name)]), f"{each.name} has a pin outside {each.specifier}"
    assert pinned["torch"] == "2.13.0"
    assert set(pinned) == {canonicalize_name(each.name) for each in required}
