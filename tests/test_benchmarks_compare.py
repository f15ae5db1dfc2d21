"""Comparisons of benchmarks: two files, two commits, and a user's own variant beside ours. No test asserts a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from own_variants import EXAMPLE, as_before
from waiting import STUCK

from benchmarks import __main__ as command
from benchmarks import base, compare, cuda, rivals
from benchmarks.memory import ROOT

DEVICE = {"model": "a CPU in a test", "cores_used": 2, "cores": 2}


def row(contestant, *seconds, case="a case", **more):
    names = {"case": case, "dtype": "float32", "pass": "forward", "contestant": contestant}
    return {**names, "ours": True, "auto": contestant == "simd", "runs_s": list(seconds), **more}


def content(*rows, **device):
    return {"device": {**DEVICE, **device}, "rows": list(rows)}


def written(folder, name, *rows, **device):
    (folder / name).write_text(json.dumps(content(*rows, **device)))
    return str(folder / name)


@pytest.fixture
def compared(tmp_path, capsys):
    """Compare two lists of rows by the command, and return its exit code and what it has printed."""

    def run(before, after, *options, **device):
        files = written(tmp_path, "before.json", *before), written(tmp_path, "after.json", *after, **device)
        code = command.main(["compare", *files, *options])
        return code, capsys.readouterr().out

    return run


# Two files ---------------------------------------------------------------------------------------------------------------------

EIGHT = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]
VERDICTS = {
    "middle halves apart": (EIGHT, [x + 0.5 for x in EIGHT], "slower"),
    "middle halves that overlap": (EIGHT, [x + 0.3 for x in EIGHT], "same"),
    "an outlier in each": ([*EIGHT[:7], 9.0], [0.1, *(x - 0.6 for x in EIGHT[1:])], "faster"),
    "few runs, ranges apart": ([1.0, 1.1, 1.2], [1.3, 1.4, 1.5], "slower"),
    "few runs, ranges that overlap": ([1.0, 1.1, 1.35], [1.3, 1.4, 1.5], "same"),
    "two runs": ([1.0, 1.1], [2.0, 2.1, 2.2], "too few runs"),
}


@pytest.mark.parametrize(("before", "after", "verdict"), VERDICTS.values(), ids=VERDICTS.keys())
def test_a_row_is_slower_or_faster_only_outside_the_spread_of_its_runs(before, after, verdict):
    files = (compare.results(name, content(row("simd", *runs))) for name, runs in (("a", before), ("b", after)))
    (found,) = compare.compared(*files)
    assert found.verdict == verdict


@pytest.mark.parametrize(
    ("factor", "options", "code"),
    [(1.2, [], 1), (1.2, ["--threshold", "1.3"], 0), (1.05, [], 0), (1.05, ["--threshold", "1.01"], 1), (0.5, [], 0)],
)
def test_the_exit_code_is_1_where_a_row_is_slower_by_more_than_the_threshold(compared, factor, options, code):
    steady = [1.0, 1.001, 1.002]
    found, printed = compared([row("simd", *steady)], [row("simd", *(factor * x for x in steady))], *options)
    assert found == code
    assert f"{factor:.2f}" in printed


def test_rows_of_one_file_only_are_listed_with_the_reason(compared):
    before = [row("simd", 1, 1, 1), row("blas", 1, 1, 1), row("tiled", 1, 1, 1)]
    after = [row("simd", 1, 1, 1), row("blas", reason="memory is short"), row("mine", 1, 1, 1)]
    code, printed = compared(before, after)
    assert code == 0
    lines = [line for line in printed.splitlines() if line.startswith("only in")]
    assert [line.rpartition(".json: ")[2] for line in lines] == [
        "a case float32 forward blas: memory is short",
        "a case float32 forward tiled: no such row",
        "a case float32 forward mine",
    ]


def test_a_result_that_became_wrong_fails(compared):
    code, printed = compared(
        [row("simd", 1, 1, 1), row("blas", 1, 1, 1)], [row("simd", 1, 1, 1), row("blas", wrong="output differs from ours")]
    )
    assert code == 1
    assert "wrong: a case float32 forward blas: output differs from ours" in printed


def test_the_variants_that_auto_ran_are_compared_where_they_differ():
    before = compare.results("a", content(row("simd", 1, 1, 1), row("blas", 3, 3, 3)))
    after = compare.results("b", content(row("simd", 4, 4, 4) | {"auto": False}, row("blas", 3, 3, 3) | {"auto": True}))
    ratios = {each.names[-1]: each.ratio for each in compare.compared(before, after)}
    assert ratios == {"simd": 4, "blas": 1, "auto: simd, now blas": 3}


def test_other_machines_are_warned_of(compared):
    _, printed = compared([row("simd", 1, 1, 1)], [row("simd", 1, 1, 1)], model="another CPU")
    assert "warning: the files are from different machines, model: a CPU in a test and another CPU" in printed
    assert "warning" not in compared([row("simd", 1, 1, 1)], [row("simd", 1, 1, 1)])[1]


def test_files_of_before_dtypes_were_named_in_rows_can_be_compared():
    old = {name: value for name, value in row("simd", 1, 1, 1).items() if name != "dtype"}
    before = compare.results("a", {**content(old), "dtype": "float32"})
    (found,) = compare.compared(before, compare.results("b", content(row("simd", 2, 2, 2))))
    assert found.ratio == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "got '{file}': "),
        ("{", "must be a JSON file that a benchmark has written, got '{file}'"),
        ("[]", "which has no rows"),
        (json.dumps(content(row("blas", 1, 1, 1))), "must have timed rows with the same names, got none in"),
        (
            json.dumps(content(row("simd", 1), row("simd", 1))),
            "must have different names, got two of 'a case float32 forward simd'",
        ),
    ],
)
def test_files_that_cannot_be_compared_are_refused(tmp_path, capsys, text, said):
    good, file = written(tmp_path, "good.json", row("simd", 1, 1, 1)), tmp_path / "bad.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        command.main(["compare", good, str(file)])
    assert stopped.value.code == 2
    assert said.format(file=file) in capsys.readouterr().err


def test_a_threshold_below_1_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["compare", "a.json", "b.json", "--threshold", "0.5"])
    assert stopped.value.code == 2
    assert "must be at least 1, got 0.5" in capsys.readouterr().err


# Two commits -------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with two commits, the first of which has the tag `first`, in the place of the checkout."""
    folder = tmp_path / "repository"
    (folder / "benchmarks").mkdir(parents=True)

    def git(*words):
        identity = ("-c", "user.name=test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
        done = subprocess.run(["git", "-C", str(folder), *identity, *words], capture_output=True, text=True, check=True)
        return done.stdout

    git("init", "--quiet")
    for number, name in enumerate(("first", "second")):
        (folder / "number.txt").write_text(str(number))
        git("add", "number.txt")
        git("commit", "--quiet", "-m", name)
        git("tag", name)
    monkeypatch.setattr(base, "ROOT", folder)
    monkeypatch.setattr(base, "_check_imports", lambda tree, harness: None)
    return git


@pytest.fixture
def measured(monkeypatch):
    """Put made-up times in the place of processes, and return the list of the trees and options of those that ran."""
    calls = []

    def measure(tree, harness, arguments):
        assert (harness / "benchmarks").is_dir()
        assert not (harness / "cupycorr").exists()
        number = int((tree.folder / "number.txt").read_text())
        calls.append((number, *arguments))
        return content(row("simd", 1.0 + number, 1.1 + number))

    monkeypatch.setattr(base, "_measured", measure)
    return calls


def test_both_commits_run_in_turn_and_their_runs_are_compared_together(repository, measured, tmp_path, capsys):
    file = tmp_path / "results.json"
    options = ["--base", "first", "--pairs", "2", "--cases", "piv", "--passes", "forward", "--json", str(file)]
    assert command.main(options) == 1
    words = ("--device=cpu", "--cases=piv", "--passes=forward", "--rivals=none")
    assert measured == [(number, *words) for number in (0, 1, 1, 0)]
    assert "1 slower (1 of them by more than 1.1)" in capsys.readouterr().out
    runs = [json.loads(path.read_text())["rows"][0]["runs_s"] for path in (tmp_path / "results-base.json", file)]
    assert runs == [[1.0, 1.1, 1.0, 1.1], [2.0, 2.1, 2.0, 2.1]]
    assert command.main(["compare", str(tmp_path / "results-base.json"), str(file), "--threshold", "3"]) == 0


def test_the_checkout_of_the_other_commit_goes_also_where_a_process_fails(repository, measured, monkeypatch, capsys):
    def failing(tree, harness, arguments):
        raise RuntimeError("out of luck")

    assert command.main(["--base", "first", "--threshold", "9"]) == 0
    assert len(repository("worktree", "list").splitlines()) == 1
    monkeypatch.setattr(base, "_measured", failing)
    assert command.main(["--base", "first"]) == 2
    assert "out of luck" in capsys.readouterr().err
    assert len(repository("worktree", "list").splitlines()) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--base", "nowhere"], "--base must be a commit of this repository, got 'nowhere'"),
        (["--base", "--help"], "expected one argument"),
        (["--base", "first", "--list"], "--list cannot be combined with --base"),
        (["--base", "first", "--pairs", "0"], "must be at least 1, got 0"),
        (["--base", "first", "--json", "no/such/folder/a.json"], "--json must be in a folder that exists"),
        (["--variants", "nobody"], "--variants must be names of variants (see --list), got 'nobody'"),
        (["--variants", "simd", "--rivals", "blas"], "--rivals must be 'none' or names of rivals (see --list), got 'blas'"),
        (["--load", "nowhere.py"], "got 'nowhere.py', which is no file"),
    ],
)
def test_a_command_that_cannot_be_is_refused_before_anything_runs(repository, measured, options, said, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(options)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert measured == []


def test_a_folder_that_is_no_checkout_has_no_base(tmp_path, monkeypatch):
    monkeypatch.setattr(base, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(ValueError, match="must be in a git checkout, got 'HEAD'"):
        base.run("HEAD", [], 1, 1.1, None)


def test_a_tree_must_be_the_one_that_processes_import(tmp_path):
    with pytest.raises(RuntimeError, match="must import the cupycorr of elsewhere"):
        base._check_imports(base.Tree("elsewhere", tmp_path), ROOT)


@pytest.mark.slow
def test_this_tree_is_compared_with_its_own_commit(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("the tree is no git checkout")
    options = ["--base", "HEAD", "--cases", "pwcnet-L6-sintel", "--passes", "forward", "--budget", "0.05", "--pairs", "2"]
    words = [sys.executable, "-m", "benchmarks", *options, "--json", str(tmp_path / "a.json"), "--threshold", "1000"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=STUCK)
    assert done.returncode == 0, done.stderr
    assert "1 same" in done.stdout or "slower" in done.stdout
    for name in ("a.json", "a-base.json"):
        (found,) = json.loads((tmp_path / name).read_text())["rows"]
        assert len(found["runs_s"]) >= 4


# A variant of a user -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def loaded(monkeypatch):
    """Nothing stays loaded after the test."""
    monkeypatch.setattr(rivals, "_loaded", [])
    with as_before():
        yield


def test_the_variant_of_the_example_is_in_the_table_beside_ours(loaded, tmp_path, capsys):
    file = tmp_path / "results.json"
    options = [
        "--load",
        str(EXAMPLE),
        "--variants",
        "mine*,blas",
        "--cases",
        "pwcnet-L6-sintel",
        "--budget",
        "0.05",
        "--no-memory",
    ]
    assert command.main([*options, "--json", str(file)]) == 0
    found = {(row["pass"], row["contestant"]): row for row in json.loads(file.read_text())["rows"]}
    contestants = {name for _, name in found}
    assert {"mine", "mine-numpy", "blas"} <= contestants
    mine = found["forward", "mine-numpy"]
    assert mine["runs_s"]
    assert not mine["ours"]
    assert mine["ratio"] > 0
    assert "needs a CuPy array" in found["forward", "mine"]["reason"]
    assert "it has no gradients" in found["vjp", "mine-numpy"]["reason"]
    assert "mine-numpy" in capsys.readouterr().out


@pytest.mark.gpu
def test_the_kernel_of_the_example_is_in_the_table_of_a_gpu(loaded, tmp_path, monkeypatch):
    """Run the benchmark of a device through CuPy, with small products and copies."""
    monkeypatch.setattr(cuda, "MATRIX", {name: (dtype, 64) for name, (dtype, _) in cuda.MATRIX.items()})
    monkeypatch.setattr(cuda, "COPIED", 2**20)
    file = tmp_path / "results.json"
    options = ["--device", "cuda", "--load", str(EXAMPLE), "--variants", "mine,tiled", "--cases", "pwcnet-L6-sintel"]
    options += ["--dtype", "float32", "--passes", "forward", "--budget", "0.01", "--json", str(file)]
    assert command.main(options) == 0
    found = {row["contestant"]: row for row in json.loads(file.read_text())["rows"]}
    assert {"mine", "tiled"} <= found.keys()
    assert found["mine"]["runs_s"]
    assert found["mine"]["share_of_bound"] > 0


def test_a_wrong_variant_is_named_and_not_timed(loaded, tmp_path, capsys):
    wrong = tmp_path / "wrong.py"
    wrong.write_text("from cupycorr import variants\nvariants.register('wrong', forward=lambda p, x1, x2, out: out.fill(0))\n")
    options = ["--load", str(wrong), "--variants", "wrong", "--cases", "pwcnet-L6-sintel", "--budget", "0.05", "--no-memory"]
    assert command.main([*options, "--passes", "forward"]) == 1
    assert "error: wrong on pwcnet-L6-sintel float32 forward: output differs from ours" in capsys.readouterr().out


def test_a_variant_with_the_name_of_a_rival_is_refused(loaded, tmp_path, capsys):
    (tmp_path / "rival.py").write_text(
        "from cupycorr import variants\nvariants.register('shift-loop', forward=lambda p, x1, x2, out: None)\n"
    )
    with pytest.raises(SystemExit):
        command.main(["--load", str(tmp_path / "rival.py")])
    assert "names of registered variants must not be those of rivals, got 'shift-loop'" in capsys.readouterr().err


def test_processes_that_measure_memory_load_the_same_files(loaded, tmp_path, monkeypatch):
    monkeypatch.chdir(EXAMPLE.parent)
    rivals.load("own_variant.py")
    assert rivals.load_options() == ["--load", str(EXAMPLE)]
    assert Path(rivals.load_options()[1]).is_absolute()
