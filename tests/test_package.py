"""The wheel holds the package, requires only NumPy and works alone next to it; the source archive holds every file.

README, CI, pins, versions and the files of the forge agree with each other.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import zipfile
from email.parser import Parser
from pathlib import Path

import check_jsonschema
import nvrtc
import pytest
from click.testing import CliRunner
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


def tracked():
    """Return the paths of the project's files: those that git tracks or would add, or all files of an unpacked source archive."""
    if (ROOT / ".git").exists():
        listed = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", cwd=ROOT).stdout
        names = {Path(name) for name in listed.split("\0") if name and (ROOT / name).is_file()}
    else:
        listed = next(ROOT.glob("*.egg-info")) / "SOURCES.txt"
        names = {Path(name) for name in listed.read_text().splitlines() if ".egg-info" not in name}
    assert len(names) > 400
    return names


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The folder of both archives: the source archive of a copy in which all is committed, and the wheel built from it."""
    copy, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("archives")
    for name in tracked():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, copy / name)
    run("git", "init", "--quiet", cwd=copy)
    run("git", "add", "--all", cwd=copy)
    run("git", "-c", "user.name=nobody", "-c", "user.email=nobody", "commit", "--quiet", "--message=all", cwd=copy)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", built, copy, cwd=copy)
    return built


@pytest.fixture(scope="module")
def wheel(archives):
    (path,) = archives.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def unpacked(archives, tmp_path_factory):
    """The folder of the unpacked source archive."""
    (path,) = archives.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(folder := tmp_path_factory.mktemp("unpacked"), filter="data")
    return folder / path.name.removesuffix(".tar.gz")


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


# The source archive --------------------------------------------------------------------------------------------------


def test_the_source_archive_holds_every_file_of_the_project_and_metadata(unpacked):
    found = {path.relative_to(unpacked) for path in unpacked.rglob("*") if path.is_file()}
    metadata = {path for path in found if path.parts[0] in ("PKG-INFO", "cupycorr.egg-info")}
    assert found - metadata == tracked()
    assert {Path(".ci/run"), Path("tests/software_cuda/library/state.cpp"), Path("kernels_cu/common/tile.cuh")} <= found


def test_both_archives_are_fit_for_the_index(archives):
    run(sys.executable, "-m", "twine", "check", "--strict", *archives.iterdir(), cwd=archives)


PART_OF_THE_SUITE = ("tests/pages", "tests/test_arrays.py", "tests/test_package.py", "tests/machines/test_emulator.py")


@pytest.mark.slow
def test_the_suite_runs_from_the_source_archive(unpacked):
    done = run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *PART_OF_THE_SUITE, cwd=unpacked)
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 100


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


# Versions ------------------------------------------------------------------------------------------------------------

# Every file that has the version -> the lines in which it has it.
VERSIONS = {
    "setup.cfg": "version = {}",
    "cupycorr/__init__.py": '__version__ = "{}"',
    "CITATION.cff": "version: {}",
    "pyproject.toml": 'current_version = "{}"',
}


def test_the_version_is_the_same_in_every_file():
    for name, line in VERSIONS.items():
        assert line.format(cupycorr.__version__) in lines(name), name


def test_one_command_changes_the_version_in_every_file_and_begins_a_section_of_the_changelog(tmp_path):
    for name in (*VERSIONS, "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    run(sys.executable, "-m", "bumpversion", "bump", "--new-version", "12.34.56", cwd=tmp_path)
    for name, line in VERSIONS.items():
        before, after = (ROOT / name).read_text().splitlines(), (tmp_path / name).read_text().splitlines()
        changed = [(old.strip(), new.strip()) for old, new in zip(before, after, strict=True) if old != new]
        assert changed == [(line.format(cupycorr.__version__), line.format("12.34.56"))]
    headings = re.findall(r"^## \[(.*?)\](?: - (\d{4}-\d\d-\d\d))?$", (tmp_path / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == ("Unreleased", "")
    assert headings[1][0] == "12.34.56"
    assert headings[1][1]


# Files of the forge --------------------------------------------------------------------------------------------------

SCHEMAS = [
    (".github/workflows/*.yml", "vendor.github-workflows"),
    (".github/workflows/*.yml", "custom.github-workflows-require-timeout"),
    (".github/ISSUE_TEMPLATE/[!c]*.yml", "vendor.github-issue-forms"),
    (".github/ISSUE_TEMPLATE/config.yml", "vendor.github-issue-config"),
    (".github/dependabot.yml", "vendor.dependabot"),
    ("CITATION.cff", "vendor.citation-file-format"),
]


@pytest.mark.parametrize(("files", "schema"), SCHEMAS, ids=[schema for _, schema in SCHEMAS])
def test_files_of_the_forge_follow_their_schemas(files, schema):
    found = sorted(map(str, ROOT.glob(files)))
    assert found
    done = CliRunner().invoke(check_jsonschema.main, ["--builtin-schema", schema, *found])
    assert done.exit_code == 0, done.output


def test_the_oldest_torch_that_is_tested_is_the_oldest_that_is_allowed(content):
    _, metadata, _ = content
    required = [Requirement(text) for text in metadata.get_all("Requires-Dist")]
    (oldest,) = {str(each.specifier).removeprefix(">=") for each in required if each.name == "torch"}
    for name in (".github/workflows/tests.yml", "tests/versions.sh"):
        assert re.search(rf"oldest torch=={re.escape(oldest)}(\.0)?\b", (ROOT / name).read_text()), name


def test_pre_commit_takes_its_configuration():
    run(sys.executable, "-m", "pre_commit", "validate-config", ROOT / ".pre-commit-config.yaml", cwd=ROOT)


def test_every_program_of_pre_commit_comes_with_the_test_extra(content):
    _, metadata, _ = content
    required = {canonicalize_name(Requirement(text).name) for text in metadata.get_all("Requires-Dist")}
    programs = set(re.findall(r"^ +entry: ([\w-]+)", (ROOT / ".pre-commit-config.yaml").read_text(), re.MULTILINE))
    assert {"ruff", "codespell"} <= programs
    assert {"import-linter" if name == "lint-imports" else name for name in programs} <= required


def test_reports_of_bugs_contain_the_facts_of_the_machine():
    forms = [(ROOT / ".github/ISSUE_TEMPLATE" / name).read_text() for name in ("bug.yml", "slow.yml")]
    assert all("cupycorr info --json" in form for form in forms)
