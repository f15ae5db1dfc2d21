"""Prepare the software CUDA in the user's cache folder, or say why that is impossible here.

Two things are built there, each in a folder that is named after all that it is made of: the library, which is CUDA's driver and
runtime on the CPU, and CuPy's module `cupy_backends.cuda.api.runtime`. The installed one contains NVIDIA's runtime, which works
with NVIDIA's driver alone; ours is built from the source of the installed version of CuPy and uses the library instead. Nothing
that is installed is changed, and the cache folder may be deleted at any time.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIBRES = HERE.parent / "support" / "fibre"  # which the emulator of kernels uses too
CUPY = "cupy-cuda12x"
CUPY_VERSIONS = (14,)  # major versions
SETUPTOOLS_OF_CUPY = 77  # the oldest one that can read the metadata in CuPy's source
OLDEST_COMPILER = 11  # of g++: the first one that knows __builtin_bit_cast
SOURCE_FOLDERS = ("library", "kernel", "headers")
SONAME = "libcuda.so.1"  # the name by which CuPy and NVRTC open the driver
RUNTIME = "cupy_backends/cuda/api/runtime"
# A build and a download take no longer even on a busy machine. Another process may do all of that while it holds a lock.
DOWNLOAD_SECONDS, BUILD_SECONDS, OTHER_PROCESS_SECONDS = 1800, 1800, 3600

COMPILE = ("-std=c++20", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-strict-aliasing", "-ffp-contract=off", "-Wall")


class CannotPrepareError(RuntimeError):
    """The software CUDA cannot be prepared; the text is the reason."""


@dataclass(frozen=True)
class Prepared:
    """The places of what was prepared."""

    library: Path  # the shared object with the driver and the runtime
    runtime: Path  # the extension module that takes the place of CuPy's
    modules: Path  # the folder for kernels that are translated from PTX
    kernels: Path  # the folder for CuPy's cache of compiled kernels


def cache_folder():
    """Return the folder that everything is made in."""
    named = os.environ.get("CUPYCORR_SOFTWARE_CUDA_CACHE")
    if named:
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "cupycorr-software-cuda"


# What is needed ----------------------------------------------------------------------------------------------------------------


def _package_folder(name):
    """Return the folder of an installed package, which is not imported, or None."""
    try:
        spec = importlib.util.find_spec(name)
    except ImportError:
        return None
    return Path(next(iter(spec.submodule_search_locations))) if spec and spec.submodule_search_locations else None


def cuda_headers():
    """Return the folder of CUDA's headers."""
    return _package_folder("nvidia.cuda_runtime") / "include"


def cupy_version():
    """Return the version of the installed CuPy."""
    return importlib.metadata.version(CUPY)


@functools.cache
def compiler_version():
    """Return the version of g++."""
    return subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=True).stdout.strip()


def _without_platform():
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"it needs Linux on x86-64, this is {platform.system()} on {platform.machine()}"
    return None


def _without_compiler():
    if shutil.which("g++") is None:
        return "there is no g++"
    if int(compiler_version().split(".")[0]) < OLDEST_COMPILER:
        return f"it needs g++ {OLDEST_COMPILER} or newer, this one is {compiler_version()}"
    return None


def _without_python_headers():
    folder = Path(sysconfig.get_paths()["include"])
    return None if (folder / "Python.h").is_file() else f"Python's own headers are missing: there is no Python.h in {folder}"


def _without_cython():
    return None if importlib.util.find_spec("Cython") else "Cython is not installed"


def _without_cupy():
    try:
        version = cupy_version()
    except importlib.metadata.PackageNotFoundError:
        return f"{CUPY} is not installed"
    if int(version.split(".")[0]) not in CUPY_VERSIONS:
        return f"it needs CuPy {' or '.join(map(str, CUPY_VERSIONS))}, the installed one is {version}"
    return None


def _without_nvrtc():
    return None if _package_folder("nvidia.cuda_nvrtc") else "NVRTC is missing: nvidia-cuda-nvrtc-cu12 is not installed"


def _without_cuda_headers():
    folder = _package_folder("nvidia.cuda_runtime")
    if folder and (folder / "include" / "cuda_runtime_api.h").is_file():
        return None
    return "CUDA's headers are missing: nvidia-cuda-runtime-cu12 is not installed"


def _without_cache():
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        return f"the cache folder {folder} cannot be written to: {error.strerror}"


NEEDS = (
    _without_platform,
    _without_compiler,
    _without_python_headers,
    _without_cython,
    _without_cupy,
    _without_nvrtc,
    _without_cuda_headers,
    _without_cache,
)


def missing():
    """Return the first thing that is missing on this machine, in words, or None. Nothing is downloaded or built."""
    return next(filter(None, (need() for need in NEEDS)), None)


# How a part is made ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(path):
    """Hold a lock that no other process holds at the same time."""
    import fcntl  # which not every system has that runs the suite

    end = time.monotonic() + OTHER_PROCESS_SECONDS
    with open(path, "w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise CannotPrepareError(f"another process has held {path} for {OTHER_PROCESS_SECONDS} seconds") from None
                time.sleep(0.1)
        yield


def _digest(ingredients):
    return hashlib.sha256("\n".join(ingredients).encode()).hexdigest()[:16]


def _made(part, ingredients, make, tell, what):
    """Return the folder of a part that is made of these ingredients; `make` makes it if there is none yet.

    Other processes see the folder only when it is complete. `tell` gets `what` before it is made.
    """
    folder = cache_folder() / part / _digest(ingredients)
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_suffix(".lock")):
            if folder.is_dir():
                return folder
            tell(what)
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix="unfinished-", ignore_cleanup_errors=True) as unfinished:
                make(Path(unfinished) / "made")
                os.rename(Path(unfinished) / "made", folder)
    except OSError as error:
        raise CannotPrepareError(f"{folder} cannot be made: {error}") from error
    return folder


def _run(words, seconds, what, **options):
    """Run a program; `what` says in an error what could not be done."""
    try:
        done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=seconds, **options)
    except subprocess.TimeoutExpired:
        raise CannotPrepareError(f"{what}: {words[0]} has taken longer than {seconds} seconds") from None
    if done.returncode:
        raise CannotPrepareError(f"{what}:\n{(done.stderr or done.stdout).strip()[-3000:]}")


def _texts(*folders):
    """Return the names and contents of the C++ files of folders."""
    paths = sorted(path for folder in folders for path in (HERE / folder).rglob("*") if path.suffix in (".cpp", ".hpp", ".h"))
    return [f"{path.relative_to(HERE.parent)}\n{path.read_text()}" for path in paths]


def _includes():
    return [f"-I{folder}" for folder in (HERE, HERE / "headers", cuda_headers())]


# The library -------------------------------------------------------------------------------------------------------------------


def _link(folder, *inputs):
    """Link a shared object that has the name of the driver."""
    words = ["g++", "-shared", *inputs, "-o", folder / SONAME, f"-Wl,-soname,{SONAME}", "-ldl", "-pthread"]
    _run(words, BUILD_SECONDS, "the library cannot be linked")


def _build_library(folder):
    folder.mkdir()
    includes = _includes()  # not in a thread: this one may be about to import CuPy, and others wait for that where they import
    sources = [path for name in ("library", "kernel") for path in sorted((HERE / name).rglob("*.cpp"))]

    def compile_one(source):
        made = folder / f"{source.parent.name}-{source.stem}.o"
        _run(["g++", *COMPILE, *includes, "-c", source, "-o", made], BUILD_SECONDS, f"{source.name} cannot be compiled")
        return made

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        objects = list(pool.map(compile_one, sources))
    _link(folder, *objects)
    for made in objects:
        made.unlink()


# CuPy's runtime module ---------------------------------------------------------------------------------------------------------


def _download_source(folder):
    """Put those files of CuPy's source into a folder that its runtime module is made of."""
    version = cupy_version()
    with tempfile.TemporaryDirectory(dir=folder.parent) as downloads:
        # CuPy's build looks for CUDA before it tells pip its dependencies, unless it is told that this is no real build.
        options = ["--no-deps", "--no-binary", "cupy", "--retries", "1", "--timeout", "15", "--disable-pip-version-check"]
        if _setuptools_version() >= SETUPTOOLS_OF_CUPY:
            options.append("--no-build-isolation")  # pip asks for CuPy's name and version only: it need not install a build
        _run(
            [sys.executable, "-m", "pip", "download", *options, "--dest", downloads, f"cupy=={version}"],
            DOWNLOAD_SECONDS,
            f"the source of CuPy {version} cannot be downloaded",
            env={**os.environ, "CUPY_INSTALL_USE_STUB": "1"},
        )
        (archive,) = Path(downloads).glob("cupy-*.tar.gz")
        folder.mkdir()
        with tarfile.open(archive) as members:
            for member in members:
                _, _, name = member.name.partition("/")
                if member.isfile() and name.startswith("cupy_backends/") and ".." not in name:
                    target = folder / name
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(members.extractfile(member).read())


def _setuptools_version():
    """Return the major version of setuptools, or 0 if it is not installed."""
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0])
    except importlib.metadata.PackageNotFoundError:
        return 0


def _cuda_version():
    """Return the version of CUDA's headers as they write it, such as 12090."""
    return int(re.search(r"#define CUDA_VERSION (\d+)", (cuda_headers() / "cuda.h").read_text())[1])


def _build_runtime(source, folder):
    """Build CuPy's runtime module as CuPy's own setup does. It asks for a library of the driver's name, whatever its sources."""
    names = dict(CUPY_CUDA_VERSION=_cuda_version(), CUPY_HIP_VERSION=0, CUPY_USE_CUDA_PYTHON=False)
    directives = dict(embedsignature=True, c_api_binop_methods=True, binding=False)
    shutil.copytree(source, folder)
    words = [sys.executable, "-m", "cython", "-3", "--cplus", "--no-docstrings", f"{RUNTIME}.pyx"]
    words += ["-E", ",".join(f"{name}={value}" for name, value in names.items())]
    words += ["-X", ",".join(f"{name}={value}" for name, value in directives.items())]
    _run(words, BUILD_SECONDS, "Cython cannot translate CuPy's runtime module", cwd=folder)

    (folder / "nothing.cpp").touch()
    _link(folder, "-x", "c++", folder / "nothing.cpp")
    includes = [*_includes(), f"-I{sysconfig.get_paths()['include']}"]
    words = ["g++", "-shared", "-fPIC", "-O1", "-w", *includes, folder / f"{RUNTIME}.cpp", "-o", folder / "runtime.so"]
    _run([*words, "-Wl,--no-as-needed", folder / SONAME], BUILD_SECONDS, "CuPy's runtime module cannot be compiled")

    for path in folder.iterdir():
        if path.name != "runtime.so":
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# Everything --------------------------------------------------------------------------------------------------------------------


def _silent(_text):
    pass


@functools.cache
def _prepared(cache, tell):
    reason = missing()
    if reason:
        raise CannotPrepareError(reason)
    compiler = f"g++ {compiler_version()}"
    headers = f"CUDA {_cuda_version()}"
    python = f"{sys.implementation.cache_tag} {sysconfig.get_config_var('SOABI')}"
    cupy = f"CuPy {cupy_version()}"
    cython = f"Cython {importlib.metadata.version('Cython')}"
    this = Path(__file__).read_text()

    source = _made("source", [cupy], _download_source, tell, f"the source of {cupy}")
    runtime_of = [compiler, headers, python, cupy, cython, this, *_texts("headers")]
    build = functools.partial(_build_runtime, source)
    runtime = _made("runtime", runtime_of, build, tell, "CuPy's runtime module") / "runtime.so"
    library_of = [compiler, headers, this, *_texts(*SOURCE_FOLDERS, FIBRES)]
    library = _made("library", library_of, _build_library, tell, "the library") / SONAME

    modules, kernels = cache / "modules", cache / "kernels"
    for folder in (modules, kernels):
        folder.mkdir(exist_ok=True)
    return Prepared(library, runtime, modules, kernels)


def prepare(tell=_silent):
    """Make everything ready and return the places; `tell` gets the name of each thing before it is made.

    Several processes may call it at once. Raises `CannotPrepareError` with the reason.
    """
    return _prepared(cache_folder(), tell)
