"""`cupycorr.compat.install` and ``python -m cupycorr.compat run``: other packages' import names, and everything as it was after.

Real packages are stood in for by small files on ``sys.path``; what Python does for a script is asked of Python itself.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
import tempfile
import textwrap
import threading
import types
from pathlib import Path

import pytest
from waiting import STUCK

torch = pytest.importorskip("torch")

from cupycorr.compat import __main__ as command  # noqa: E402
from cupycorr.compat import install, installed, uninstall  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ROOTS = (
    "spatial_correlation_sampler",
    "spatial_correlation_sampler_backend",
    "mmcv",
    "correlation_package",
    "correlation_cuda",
    "networks",
    "correlation",
    "tensorflow_addons",
    "alt_cuda_corr",
    "corr_sampler",
    "cuda_corr",
    "droid_backends",
    "local_corr",
    "localcorr",
    "corr",
    "unimatch",
)
real = [root for root in ROOTS if importlib.util.find_spec(root)]
pytestmark = pytest.mark.skipif(bool(real), reason=f"really installed here: {', '.join(real)}")

# NVIDIA's tree as models hold copies of it, without its compiled half.
NVIDIAS = dict(
    networks__correlation_package__correlation="import correlation_cuda",
    networks__flow="from .correlation_package.correlation import correlation_cuda\n\ncorrelate = correlation_cuda.forward",
)

# Every import that code written for a neighbour has been seen to make: module, name, and the adapter that must answer.
SEEN = {
    "spatial_correlation_sampler": [
        ("spatial_correlation_sampler", "SpatialCorrelationSampler", "spatial_correlation_sampler"),
        ("spatial_correlation_sampler", "spatial_correlation_sample", "spatial_correlation_sampler"),
        (
            "spatial_correlation_sampler.spatial_correlation_sampler",
            "SpatialCorrelationSamplerFunction",
            "spatial_correlation_sampler",
        ),
        ("spatial_correlation_sampler_backend", "forward", "spatial_correlation_sampler_backend"),
        ("spatial_correlation_sampler_backend", "backward", "spatial_correlation_sampler_backend"),
    ],
    "unfold_sampler": [
        ("spatial_correlation_sampler", "SpatialCorrelationSampler", "unfold_sampler"),
        ("spatial_correlation_sampler.correlation", "channel_to_displacement", "unfold_sampler"),
    ],
    "mmcv": [("mmcv.ops", "Correlation", "mmcv"), ("mmcv.ops.correlation", "CorrelationFunction", "mmcv")],
    "flownet2": [
        ("correlation_package", "Correlation", "flownet2"),
        ("correlation_package.correlation", "CorrelationFunction", "flownet2"),
        ("correlation_package.modules", "Correlation", "flownet2"),
        ("correlation_package.modules.correlation", "Correlation", "flownet2"),
        ("correlation_package.modules.corr", "Correlation", "flownet2"),
        ("correlation_cuda", "forward", "correlation_cuda"),
    ],
    "pwcnet": [("correlation", "FunctionCorrelation", "pwcnet"), ("correlation.correlation", "ModuleCorrelation", "pwcnet")],
    "tfa": [
        ("tensorflow_addons", "CorrelationCost", "tfa"),
        ("tensorflow_addons.layers", "CorrelationCost", "tfa"),
        ("tensorflow_addons.layers.optical_flow", "CorrelationCost", "tfa"),
    ],
    "mmtracker": [("spatial_correlation_sampler", "SpatialCorrelationSampler", "spatial_correlation_sampler")],
    "alt_cuda_corr": [("alt_cuda_corr", "forward", "alt_cuda_corr"), ("alt_cuda_corr", "backward", "alt_cuda_corr")],
    "corr_sampler": [("corr_sampler", "forward", "corr_sampler"), ("corr_sampler", "backward", "corr_sampler")],
    "cuda_corr": [("cuda_corr", "forward", "cuda_corr"), ("cuda_corr", "patchify_backward", "cuda_corr")],
    "droid_backends": [
        ("droid_backends", "altcorr_forward", "droid_backends"),
        ("droid_backends", "corr_index_backward", "droid_backends"),
    ],
    "local_corr": [("local_corr", "local_corr", "local_corr"), ("local_corr.ops", "local_corr", "local_corr")],
    "localcorr": [
        ("localcorr", "get_localcorr_block", "localcorr"),
        ("localcorr", "get_localcorr_sampler", "localcorr"),
    ],
    "sea_raft": [("corr", "CorrBlock", "sea_raft")],
    "unimatch": [("unimatch.matching", "local_correlation_with_flow", "unimatch")],
}
IMPORTS = {f"{name}: {row[0]}.{row[1]}": (name, *row) for name, rows in SEEN.items() for row in rows}
neighbours = pytest.mark.parametrize("name", SEEN)


def registered():
    """Return the modules that have been imported under the names, from wherever."""
    return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in ROOTS}


def found():
    """Import every module that code written for a neighbour imports; return those that there are."""
    there = {}
    for module in {row[0] for rows in SEEN.values() for row in rows}:
        with contextlib.suppress(ImportError):
            there[module] = importlib.import_module(module)
    return there


@pytest.fixture(autouse=True)
def nothing_else_installed():
    """Each test begins with none of the names there, and ends so."""
    uninstall()
    assert registered() == {}
    yield
    uninstall()
    for name in registered():
        del sys.modules[name]


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """Writes modules where they can be imported from: a path and its source each."""
    monkeypatch.syspath_prepend(str(tmp_path))

    return lambda **sources: write(tmp_path, sources)


def write(folder, sources):
    for name, source in sources.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path = path.with_name("__init__.py") if path.stem == "init" else path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    importlib.invalidate_caches()
    return folder


def adapter(name):
    return importlib.import_module(f"cupycorr.compat.{name}")


def answers(module, name):
    return getattr(importlib.import_module(module), name)


# Names --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "module", "public", "answering"), IMPORTS.values(), ids=IMPORTS)
def test_an_import_that_code_makes_leads_to_the_adapter(name, module, public, answering):
    install(name)
    scope = {}
    exec(f"from {module} import {public}", scope)
    assert scope[public] is getattr(adapter(answering), public)


@neighbours
def test_every_name_of_the_adapter_is_there_also_by_a_star(name):
    install(name)
    for module, _, answering in SEEN[name]:
        scope = {}
        exec(f"from {module} import *", scope)
        assert {public: scope[public] for public in adapter(answering).__all__} == {
            public: getattr(adapter(answering), public) for public in adapter(answering).__all__
        }
        assert set(scope) == {"__builtins__", *adapter(answering).__all__}


def test_all_but_those_whose_import_names_are_also_others_are_installed_without_names():
    install()
    for module, public, answering in (
        row for name, rows in SEEN.items() if name not in ("unfold_sampler", "sea_raft") for row in rows
    ):
        assert answers(module, public) is getattr(adapter(answering), public)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("corr")


@neighbours
def test_a_module_of_ours_looks_like_a_module(name):
    install(name)
    there = found()
    for module, _, _ in SEEN[name]:
        ours = there[module]
        assert type(ours) is types.ModuleType
        assert importlib.util.find_spec(module) is ours.__spec__
        assert ours.__spec__.name == ours.__name__ == module
        assert importlib.import_module(module) is ours
        assert "cupycorr" in ours.__doc__
        assert "cupycorr" in repr(ours)
        inside = [other for other in there if other.startswith(f"{module}.")]
        assert getattr(ours, "__path__", None) == ([] if inside else None)
        assert ours.__package__ == (module if inside else module.rpartition(".")[0])
        above, _, last = module.rpartition(".")
        assert above not in sys.modules or getattr(sys.modules[above], last) is ours


def test_submodules_are_attributes_without_being_imported():
    install("tfa")
    import tensorflow_addons

    assert tensorflow_addons.layers.optical_flow.CorrelationCost is adapter("tfa").CorrelationCost


def test_what_is_not_emulated_is_not_found():
    install("mmcv")
    with pytest.raises(ModuleNotFoundError, match=r"mmcv\.runner"):
        importlib.import_module("mmcv.runner")


def test_a_copy_of_nvidias_python_half_finds_its_compiled_half(disk):
    folder = disk(**NVIDIAS)
    install("flownet2")
    assert importlib.import_module("networks.flow").correlate is adapter("correlation_cuda").forward
    assert Path(sys.modules["networks.correlation_package.correlation"].__file__).is_relative_to(folder)


def test_a_copy_of_it_under_its_own_name_stays_and_finds_its_compiled_half(disk):
    folder = disk(correlation_package__init="", correlation_package__correlation="from correlation_cuda import forward")
    install("flownet2")
    found = importlib.import_module("correlation_package.correlation")
    assert found.forward is adapter("correlation_cuda").forward
    assert Path(found.__file__).is_relative_to(folder)


def test_a_copy_of_the_extensions_python_half_finds_its_compiled_half(disk):
    disk(networks__sampler="import spatial_correlation_sampler_backend as correlation\n\nsample = correlation.forward")
    for name in ("spatial_correlation_sampler", "mmtracker"):
        with installed(name):
            backend = adapter("spatial_correlation_sampler_backend")
            assert importlib.import_module("networks.sampler").sample is backend.forward
        for module in ("networks.sampler", "networks"):
            del sys.modules[module]


def test_classes_pickle_under_a_name_that_stays():
    install("flownet2", "mmcv")
    for kind in (answers("correlation_package", "Correlation"), answers("mmcv.ops", "Correlation")):
        written = pickle.dumps(kind)
        assert b"cupycorr" in written
        assert b"correlation_package" not in written
        assert pickle.loads(written) is kind


# What is refused ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "function", [install, uninstall, lambda *names: installed(*names).__enter__()], ids=["install", "uninstall", "installed"]
)
@pytest.mark.parametrize("names", [("mmcv", "pwc"), (["mmcv"],)], ids=repr)
def test_an_unknown_name_is_refused_with_those_known(function, names):
    with pytest.raises(ValueError, match=rf"among {', '.join(SEEN)}, got .*{names[-1]!r}".replace("[", r"\[")):
        function(*names)
    assert registered() == {}


def test_two_conventions_of_one_import_name_are_refused_in_one_call():
    with pytest.raises(ValueError, match="mmtracker and unfold_sampler, which both are spatial_correlation_sampler"):
        install("tfa", "mmtracker", "unfold_sampler")
    assert registered() == {}


REAL = {
    "package": (
        "spatial_correlation_sampler",
        dict(spatial_correlation_sampler__init=""),
        "spatial_correlation_sampler/__init__.py",
    ),
    "module": ("pwcnet", dict(correlation=""), "correlation.py"),
    "compiled part of the extension": (
        "spatial_correlation_sampler",
        dict(spatial_correlation_sampler_backend=""),
        "spatial_correlation_sampler_backend.py",
    ),
    "compiled part": ("flownet2", dict(correlation_cuda=""), "correlation_cuda.py"),
}


@pytest.mark.parametrize("imported", [False, True], ids=["on disk", "imported"])
@pytest.mark.parametrize(("name", "sources", "path"), REAL.values(), ids=REAL)
def test_what_is_really_installed_is_refused_and_nothing_installed(disk, name, sources, path, imported):
    place = str(disk(**sources) / path)
    root = path.partition("/")[0].removesuffix(".py")
    there = {root: importlib.import_module(root)} if imported else {}
    with pytest.raises(ImportError, match=r"force=True") as refusal:
        install("tfa", name)
    assert f"{root} at {place}" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert (refusal.value.name, refusal.value.path) == (root, place)
    assert registered() == there


def test_what_is_imported_from_nowhere_is_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "correlation", types.ModuleType("correlation"))
    with pytest.raises(ImportError, match=r"correlation at sys\.modules"):
        install("pwcnet")


@pytest.mark.parametrize("imported", [False, True], ids=["on disk", "imported"])
def test_a_folder_that_is_no_package_is_not_taken_for_one(disk, imported):
    disk(correlation__correlation="raise AssertionError")
    before = importlib.import_module("correlation") if imported else None
    install("pwcnet")
    assert answers("correlation", "FunctionCorrelation") is adapter("pwcnet").FunctionCorrelation
    uninstall()
    assert sys.modules.get("correlation") is before


def test_without_torch_the_remedy_is_named_and_nothing_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in [name for name in sys.modules if name.startswith(("cupycorr.torch", "cupycorr.compat."))]:
        if name not in (install.__module__, command.__name__):
            monkeypatch.delitem(sys.modules, name)
    with pytest.raises(ModuleNotFoundError, match=r'pip install "cupycorr\[torch\]"'):
        install("tfa")
    assert registered() == {}


def test_importing_the_package_imports_no_torch():
    program = "import sys, cupycorr.compat; print('torch' in sys.modules, 'cupycorr.torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["False", "False"]


# Undoing ------------------------------------------------------------------------------------------------------------------------


@neighbours
def test_uninstalling_leaves_nothing(name):
    finders = list(sys.meta_path)
    install(name)
    assert found()
    uninstall(name)
    assert sys.meta_path == finders
    assert registered() == {}
    assert importlib.util.find_spec(SEEN[name][0][0].partition(".")[0]) is None


def test_uninstalling_what_is_not_installed_does_nothing():
    install("tfa")
    there = found()
    uninstall("pwcnet")
    assert found() == registered() == there


def test_what_was_displaced_by_force_is_back_with_its_submodules(disk):
    disk(spatial_correlation_sampler__init="from . import inner", spatial_correlation_sampler__inner="")
    importlib.import_module("spatial_correlation_sampler")
    there = registered()
    assert len(there) == 2
    install("spatial_correlation_sampler", force=True)
    assert "spatial_correlation_sampler.inner" not in sys.modules
    assert answers("spatial_correlation_sampler", "SpatialCorrelationSampler")
    install("spatial_correlation_sampler")  # is ours by now, and needs no force
    install("unfold_sampler")
    uninstall()
    assert registered() == there
    assert sys.modules["spatial_correlation_sampler"].inner is there["spatial_correlation_sampler.inner"]


def test_a_name_that_was_blocked_is_blocked_again(monkeypatch):
    monkeypatch.setitem(sys.modules, "correlation", None)
    with installed("pwcnet"):
        assert answers("correlation", "FunctionCorrelation")
    assert registered() == {"correlation": None}


def test_installing_twice_changes_nothing():
    install("flownet2", "tfa")
    there = found()
    install("tfa", "flownet2")
    assert found() == there
    uninstall("tfa", "flownet2")
    assert registered() == {}


def test_installing_what_was_forced_needs_no_force_again(disk):
    disk(correlation_cuda="")
    install("flownet2", force=True)
    there = found()
    install("flownet2")
    assert found() == there


def test_a_module_that_has_been_removed_is_found_again():
    install("pwcnet")
    module = importlib.import_module("correlation.correlation")
    del sys.modules["correlation.correlation"]
    assert importlib.import_module("correlation.correlation") is module


def test_the_other_convention_replaces_the_whole_package():
    install("spatial_correlation_sampler")
    install("unfold_sampler")
    assert (
        answers("spatial_correlation_sampler", "SpatialCorrelationSampler") is adapter("unfold_sampler").SpatialCorrelationSampler
    )
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("spatial_correlation_sampler.spatial_correlation_sampler")
    install("spatial_correlation_sampler")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("spatial_correlation_sampler.correlation")


def test_a_name_of_two_neighbours_stays_until_both_are_gone():
    install("spatial_correlation_sampler", "mmtracker")
    there = found()
    uninstall("spatial_correlation_sampler")
    assert found() == there
    uninstall("mmtracker")
    assert registered() == {}


@pytest.mark.parametrize("real", [{}, {"correlation": types.ModuleType("correlation")}], ids=["over nothing", "over a real one"])
def test_what_others_have_put_there_since_is_theirs(real, monkeypatch):
    sys.modules.update(real)
    install("pwcnet", "tfa", force=True)
    theirs = types.ModuleType("correlation")
    monkeypatch.setitem(sys.modules, "correlation", theirs)
    uninstall("tfa")
    assert sys.modules["correlation"] is theirs
    uninstall()
    assert registered() == {"correlation": theirs}


def test_a_block_undoes_what_it_did_and_nothing_else():
    install("tfa")
    before = found()
    with installed("tfa", "pwcnet"):
        assert answers("correlation", "FunctionCorrelation")
    assert found() == registered() == before


def test_a_block_undoes_after_an_exception():
    with pytest.raises(KeyError), installed("pwcnet"):
        raise KeyError
    assert registered() == {}


@pytest.mark.parametrize("name", ["mmcv", "tfa"])
def test_what_is_installed_within_a_block_stays(disk, name):
    disk(mmcv__init="")
    with installed(name):
        inside = found()
        install(name)
    assert found() == inside
    assert inside


def test_blocks_nest_and_each_leaves_what_was_there_before_it():
    install("mmtracker")
    outside = found()
    with installed("unfold_sampler"):
        inside = found()
        with installed("spatial_correlation_sampler"):
            assert found() == outside
        assert found() == inside
        assert inside != outside
    assert found() == outside


def test_blocks_may_end_in_any_order():
    with contextlib.ExitStack() as first, contextlib.ExitStack() as second:
        first.enter_context(installed("spatial_correlation_sampler"))
        second.enter_context(installed("unfold_sampler"))
        first.close()
        assert answers("spatial_correlation_sampler", "channel_to_displacement")
    assert registered() == {}


def test_threads_may_install_at_the_same_time():
    failures, interval = [], sys.getswitchinterval()

    def work(name):
        for _ in range(60):
            try:
                with installed(name):
                    importlib.import_module(SEEN[name][0][0])
            except Exception as error:
                failures.append(error)

    threads = [
        threading.Thread(target=work, args=[name]) for name in ("spatial_correlation_sampler", "mmtracker", "tfa", "flownet2")
    ]
    sys.setswitchinterval(1e-6)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert not failures
    assert registered() == {}


# mmcv ---------------------------------------------------------------------------------------------------------------------------

MMCV = dict(
    mmcv__init="__version__ = '2.1.0'",
    mmcv__ops__init="from .correlation import Correlation\nother = 1",
    mmcv__ops__correlation="class Correlation: pass\nclass CorrelationFunction: pass",
)


@pytest.mark.parametrize("force", [False, True])
def test_a_real_mmcv_keeps_all_but_its_correlation(disk, force):
    disk(**MMCV)
    ops = importlib.import_module("mmcv.ops")
    before, real = registered(), ops.Correlation
    install("mmcv", force=force)
    assert registered() == before
    assert ops.Correlation is ops.correlation.Correlation is adapter("mmcv").Correlation
    assert ops.correlation.CorrelationFunction is ops.CorrelationFunction is adapter("mmcv").CorrelationFunction
    assert ops.other == 1
    uninstall("mmcv")
    assert ops.Correlation is ops.correlation.Correlation is real
    assert ops.correlation.CorrelationFunction.__module__ == "mmcv.ops.correlation"
    assert not hasattr(ops, "CorrelationFunction")


WITHOUT_OPS = {
    "no ops": dict(),
    "ops not built": dict(mmcv__ops__init="from . import _ext"),
    "ops of another version": dict(mmcv__ops__init="raise AssertionError('correlation_forward miss in module _ext')"),
}


@pytest.mark.parametrize("missing", WITHOUT_OPS.values(), ids=WITHOUT_OPS)
def test_an_mmcv_without_ops_gets_one(disk, missing):
    disk(mmcv__init=MMCV["mmcv__init"], **missing)
    install("mmcv")
    import mmcv

    assert mmcv.__version__ == "2.1.0"
    assert mmcv.ops.Correlation is adapter("mmcv").Correlation
    assert answers("mmcv.ops.correlation", "CorrelationFunction") is adapter("mmcv").CorrelationFunction
    install("mmcv")
    uninstall("mmcv")
    assert not hasattr(mmcv, "ops")
    assert set(registered()) == {"mmcv"}


# DROID-SLAM ---------------------------------------------------------------------------------------------------------------------

DROID = "ba = iproj = object()\naltcorr_forward = corr_index_forward = corr_index_backward = altcorr_backward = None"


@pytest.mark.parametrize("imported", [False, True], ids=["on disk", "imported"])
@pytest.mark.parametrize("force", [False, True])
def test_a_real_droid_backends_keeps_all_but_its_correlations(disk, force, imported):
    disk(droid_backends=DROID)
    before = importlib.import_module("droid_backends") if imported else None
    install("droid_backends", force=force)
    module = importlib.import_module("droid_backends")
    assert before in (None, module)
    bundle_adjustment = module.ba
    assert {name: vars(module)[name] for name in adapter("droid_backends").__all__} == {
        name: getattr(adapter("droid_backends"), name) for name in adapter("droid_backends").__all__
    }
    assert "__getattr__" not in vars(module)
    uninstall("droid_backends")
    assert sys.modules["droid_backends"] is module
    assert module.altcorr_forward is None
    assert module.ba is bundle_adjustment


def test_a_droid_backends_that_was_built_for_another_torch_is_replaced(disk):
    disk(droid_backends="raise ImportError('undefined symbol')")
    install("droid_backends")
    assert answers("droid_backends", "altcorr_forward") is adapter("droid_backends").altcorr_forward


def test_what_is_not_emulated_of_droid_backends_is_an_attribute_error_with_the_reason():
    install("droid_backends")
    import droid_backends

    for name in ("ba", "frame_distance"):
        assert not hasattr(droid_backends, name)
        with pytest.raises(AttributeError, match=rf"no '{name}', only the correlation functions"):
            getattr(droid_backends, name)


# UniMatch -----------------------------------------------------------------------------------------------------------------------


def test_a_real_unimatch_keeps_all_but_its_correlation_around_a_flow(disk):
    disk(
        unimatch__init="",
        unimatch__matching="def global_correlation_softmax(): pass\ndef local_correlation_with_flow(): pass",
        unimatch__unimatch="from .matching import global_correlation_softmax, local_correlation_with_flow as correlate",
    )
    install("unimatch")
    model = importlib.import_module("unimatch.unimatch")
    assert model.correlate is adapter("unimatch").local_correlation_with_flow
    assert model.global_correlation_softmax.__module__ == "unimatch.matching"
    uninstall("unimatch")
    assert sys.modules["unimatch.matching"].local_correlation_with_flow.__module__ == "unimatch.matching"


# The command --------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys, tmp_path_factory):
    """Runs the command in this process: exit code (None for a script that ended), what it printed, and what it told on stderr."""
    for module, name in ((sys, "argv"), (sys, "path")):
        monkeypatch.setattr(module, name, list(getattr(module, name)))
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])

    def run(*words):
        sys.argv = ["cupycorr.compat", *map(str, words)]
        code = None
        try:
            command.main()
        except SystemExit as end:
            code = end.code
        out, err = capsys.readouterr()
        return code, out, err

    return run


def script(folder, source, name="script.py"):
    path = folder / name
    path.write_text(textwrap.dedent(source))
    return path


def test_a_scripts_own_options_reach_it_untouched(run, tmp_path):
    path = script(tmp_path, "import sys; print(sys.argv)")
    words = ["--force", "--help", "--as", "x", "-m", "--", "-h", ""]
    assert run("run", "--as", "pwcnet", "--force", path, *words) == (None, f"{[str(path), *words]}\n", "")


def test_a_modules_own_options_reach_it_untouched(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner").mkdir()
    source = "import sys; print(sys.argv, __name__, __spec__.name, __package__, sys.path[0])"
    path = script(tmp_path / "inner", source, "__main__.py")
    code, out, err = run("run", "--as=pwcnet", "-m", "inner", "-m", "--help")
    assert (code, out, err) == (None, f"{[str(path), '-m', '--help']} __main__ inner.__main__ inner {tmp_path}\n", "")


def test_functions_at_exit_find_the_names_of_the_module(tmp_path):
    source = """
        import atexit, pickle, sys

        class Here: pass

        atexit.register(lambda: print(type(pickle.loads(pickle.dumps(Here()))).__qualname__, sys.argv[0]))
    """
    path = script(tmp_path, source, "inner.py")
    done = subprocess.run([*RUN, "--as", "pwcnet", "-m", "inner"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == (f"Here {path}\n", "")


@pytest.mark.parametrize("end", [0, 7, "'text'", None])
def test_the_exit_code_is_the_scripts(run, tmp_path, end):
    assert run("run", "--as", "pwcnet", script(tmp_path, f"import sys; sys.exit({end})"))[0] == (
        end if end != "'text'" else "text"
    )


def test_the_compiler_flags_of_the_command_are_not_the_scripts(run, tmp_path):
    assert (
        run("run", "--as", "tfa", script(tmp_path, "def f(x: int): ...\nprint(f.__annotations__)"))[1] == "{'x': <class 'int'>}\n"
    )


FAILING = {
    "syntax": ("1 +", ["script.py"]),
    "below": ("import json; json.loads('x')", ["script.py"]),
    "below a module": ("import json; json.loads('x')", ["-m", "script"]),
    "an import of a module": ("import missing", ["-m", "script"]),
}


@pytest.mark.parametrize(("source", "words"), FAILING.values(), ids=FAILING)
def test_a_traceback_begins_where_the_script_does(run, tmp_path, monkeypatch, source, words):
    path = script(tmp_path, source)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((SyntaxError, ValueError, ImportError)) as caught:
        run("run", "--as", "tfa", *words)
    shown = io.StringIO()
    with contextlib.redirect_stderr(shown):
        sys.excepthook(caught.type, caught.value, caught.tb)
    plain = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
    assert shown.getvalue() == plain.stderr


REFUSED = {
    "no script": (["run"], "must be given"),
    "no module": (["run", "-m"], "-m must be followed by a module"),
    "missing script": (["run", "--as", "tfa", "missing.py"], "cannot read the script 'missing.py': No such file"),
    "a folder": (["run", "--as", "tfa", "."], "cannot read the script '.': "),
    "missing module": (["run", "--as", "tfa", "-m", "missing"], "cannot run the module missing: No module named missing"),
    "missing package": (["run", "--as", "tfa", "-m", "missing.inner"], "No module named 'missing'"),
    "folder without main": (["run", "--as", "tfa", "-m", "json"], "cannot run the module json: No module named json.__main__"),
    "no code": (["run", "--as", "tfa", "-m", "sys"], "cannot run the module sys: No code object available for sys"),
    "unknown name": (["run", "--as", "pwc", "-m", "this"], "names must be among spatial_correlation_sampler, "),
    "two conventions": (
        ["run", "--as", "unfold_sampler", "--as", "mmtracker", "-m", "this"],
        "must not want the same import name",
    ),
}


@pytest.mark.parametrize(("words", "text"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_run_is_one_line_and_exit_code_2(run, words, text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    told = [line for line in err.splitlines() if not line.startswith("usage: ")]
    assert len(told) == 1
    assert text in told[0]


def test_a_named_neighbour_that_is_really_installed_is_refused_without_force(run, disk):
    path = script(disk(correlation=""), "import correlation; print(correlation.__doc__)")
    code, out, err = run("run", "--as", "pwcnet", path)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"correlation at {path.with_name('correlation.py')}" in err
    assert "cupycorr's correlation" in run("run", "--as", "pwcnet", "--force", path)[1]


def test_what_is_really_installed_is_left_alone_and_said(run, disk):
    folder = disk(correlation="here = 'real'", **MMCV)
    path = script(
        folder, "import correlation, mmcv.ops, tensorflow_addons; print(correlation.here, mmcv.ops.Correlation.__module__)"
    )
    code, out, err = run("run", path)
    assert (code, out) == (None, "real mmcv.ops.correlation\n")
    told = err.splitlines()
    assert len(told) == 2
    assert "mmcv is left alone: mmcv.ops is" in told[0]
    assert f"pwcnet is left alone: correlation is really installed, at {folder / 'correlation.py'}" in told[1]


def test_where_everything_is_really_installed_the_script_runs_with_it(run, disk):
    everything = dict(spatial_correlation_sampler="", correlation_package="", correlation="", tensorflow_addons="", **MMCV)
    path = script(disk(**everything), "from spatial_correlation_sampler import SpatialCorrelationSampler")
    with pytest.raises(ImportError, match="SpatialCorrelationSampler"):
        run("run", path)


def test_the_script_may_undo_what_was_installed_and_install_again(run, tmp_path):
    source = """
        import importlib, cupycorr.compat
        import correlation
        cupycorr.compat.uninstall()
        for name in ("correlation", "correlation_cuda"):
            try:
                importlib.import_module(name)
            except ModuleNotFoundError as error:
                print(error)
        cupycorr.compat.install("pwcnet")
        print(importlib.import_module("correlation").FunctionCorrelation.__module__)
    """
    printed = ["No module named 'correlation'", "No module named 'correlation_cuda'", "cupycorr.compat.pwcnet"]
    assert run("run", script(tmp_path, source))[1].splitlines() == printed


def test_the_help_names_the_options_and_the_neighbours(run):
    for words in (["--help"], ["run", "--help"]):
        code, out, err = run(*words)
        assert (code, err) == (0, "")
        assert all(word in out for word in ("--as NAME", "--force", "-m MODULE", *SEEN))


# Whole processes ----------------------------------------------------------------------------------------------------------------

PYTHON = [sys.executable]
RUN = [sys.executable, "-m", "cupycorr.compat", "run"]


def process(words, folder, *, where=None, path=(ROOT,), check=True):
    """A process in a folder of its own for temporary files, which must be empty afterwards."""
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    entries = os.pathsep.join(map(str, path))
    environment = {**os.environ, "PYTHONPATH": entries, "TMPDIR": str(temporary), "TEMP": str(temporary), "TMP": str(temporary)}
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, cwd=where or folder, env=environment, timeout=STUCK)
    assert not check or done.returncode == 0, done.stderr
    assert not [left for left in temporary.iterdir() if left.name.startswith("cupycorr")]
    return done


def test_a_script_is_run_as_python_runs_it(tmp_path):
    """Its arguments, folder, names, output, traceback and exit code, through a link from another folder."""
    (tmp_path / "code").mkdir()
    source = """
        import inspect, sys
        import beside
        print(sys.argv, sys.path[0], __file__, __name__, __package__, __spec__, __doc__, __cached__, type(__loader__).__name__)
        print(sorted({*globals()} - {"__annotations__"}), vars(sys.modules["__main__"]) is globals(), inspect.getsource(beside.f))
        def fail():
            raise KeyError("seen")
        fail()
    """
    script(tmp_path / "code", "def f(): ...", "beside.py")
    (tmp_path / "link.py").symlink_to(script(tmp_path / "code", source))
    plain, ours = (process([*words, "link.py", "a", "--force"], tmp_path, check=False) for words in (PYTHON, RUN))
    assert (ours.stdout, ours.stderr, ours.returncode) == (plain.stdout, plain.stderr, 1)


UNMODIFIED = """
    import json
    import torch
    from correlation_package.correlation import Correlation
    from mmcv.ops import Correlation as Sums
    from spatial_correlation_sampler import SpatialCorrelationSampler, spatial_correlation_sample

    x1 = (torch.arange(40.0).reshape(1, 2, 4, 5) % 7).requires_grad_()
    x2 = torch.arange(40.0).reshape(1, 2, 4, 5) % 5
    volumes = {
        "sampler": SpatialCorrelationSampler(1, 3, 1, 0, 1)(x1, x2),
        "mmcv": Sums(max_displacement=1)(x1, x2),
        "mean": Correlation(pad_size=1, kernel_size=1, max_displacement=1, stride1=1, stride2=1, corr_multiply=1)(x1, x2),
    }
    spatial_correlation_sample(x1, x2, patch_size=3).sum().backward()
    print(json.dumps({"gradient": x1.grad.tolist(), **{name: volume.tolist() for name, volume in volumes.items()}}))
"""


def test_unmodified_code_of_three_packages_computes_what_they_define(tmp_path):
    x1, x2 = ([[[(20 * c + 5 * y + x) % base for x in range(5)] for y in range(4)] for c in range(2)] for base in (7, 5))

    def at(c, y, x):
        return x2[c][y][x] if 0 <= y < 4 and 0 <= x < 5 else 0

    def plane(dy, dx):
        return [[sum(x1[c][y][x] * at(c, y + dy, x + dx) for c in range(2)) for x in range(5)] for y in range(4)]

    rows = [[plane(dy, dx) for dx in (-1, 0, 1)] for dy in (-1, 0, 1)]
    around = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    gradient = [[[sum(at(c, y + dy, x + dx) for dy, dx in around) for x in range(5)] for y in range(4)] for c in range(2)]
    means = [[[value / 2 for value in line] for line in image] for row in rows for image in row]

    done = process([*RUN, script(tmp_path, UNMODIFIED)], tmp_path)
    assert done.stderr == ""
    assert json.loads(done.stdout) == {"sampler": [rows], "mmcv": [rows], "mean": [means], "gradient": [gradient]}


# A package that cannot be imported, and an mmcv without ops.
HALF_REAL = dict(spatial_correlation_sampler="raise ImportError('not built')", mmcv__init=MMCV["mmcv__init"])


@pytest.fixture
def child(disk, tmp_path, monkeypatch):
    """This process as one that another has spawned: with its ``sys.path``, and nothing installed."""
    disk(**NVIDIAS, **HALF_REAL)
    shims = tmp_path / "shims"
    shims.mkdir()
    command._install.write_shims(str(shims), ["spatial_correlation_sampler", "mmcv", "flownet2", "pwcnet"])
    command._install._SHIMS.clear()
    monkeypatch.setattr(sys, "path", [str(shims), *sys.path])


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize("first", ["networks.flow", "correlation", "mmcv.ops", "spatial_correlation_sampler", "mmcv"])
def test_a_child_finds_the_same_whichever_it_imports_first(first):
    before = list(sys.path)
    importlib.import_module(first)
    assert sys.path == before
    assert importlib.import_module("networks.flow").correlate is adapter("correlation_cuda").forward
    assert answers("correlation", "FunctionCorrelation") is adapter("pwcnet").FunctionCorrelation
    assert answers("mmcv.ops", "Correlation") is adapter("mmcv").Correlation
    assert answers("mmcv", "__version__") == "2.1.0"
    assert answers("spatial_correlation_sampler", "spatial_correlation_sample")


CHILD = """
    import multiprocessing, os, sys
    from concurrent.futures import ProcessPoolExecutor
    from mmcv.ops import Correlation
    from spatial_correlation_sampler import SpatialCorrelationSampler
    import networks.flow, correlation, mmcv

    def names(_):
        kinds = Correlation, SpatialCorrelationSampler, networks.flow.correlate, correlation.FunctionCorrelation
        return [kind.__module__ for kind in kinds] + [mmcv.__version__, __name__]

    if __name__ == "__main__":
        if hasattr(os, "fork") and not os.fork():
            sys.exit()  # and takes nothing away that the others need
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            print(names(0), *pool.map(names, [0]), sep="\\n")
"""


def test_processes_that_the_script_spawns_find_the_same(tmp_path):
    """Also where a real package was displaced, mmcv has no ops, and cupycorr lies in the current folder only."""
    real = tmp_path / "real"
    write(tmp_path, NVIDIAS)
    write(real, HALF_REAL)
    done = process([*RUN, "--force", script(tmp_path, CHILD)], tmp_path, where=ROOT, path=[real])
    names = ["cupycorr.compat.mmcv", "cupycorr.torch", "cupycorr.compat.correlation_cuda", "cupycorr.compat.pwcnet", "2.1.0"]
    assert done.stdout.splitlines() == [str([*names, "__main__"]), str([*names, "__mp_main__"])]
