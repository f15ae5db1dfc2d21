"""The benchmark of lookups: its flows, the rivals' results against the definition, and what a run says about contestants."""

import io
import json

import lookup_oracle
import numpy as np
import pytest
from rich.console import Console

torch = pytest.importorskip("torch")
pytest.importorskip("rich")

from benchmarks import lookup, lookup_cases, lookup_rivals, memory, report  # noqa: E402
from benchmarks.lookup import Settings, Task  # noqa: E402
from benchmarks.lookup_cases import LEVELS, RADIUS, Size  # noqa: E402
from benchmarks.lookup_rivals import CONTESTANTS, Contestant  # noqa: E402

SMALL = Size("small", 1, (16, 18))
SETTINGS = Settings(torch.float32, "cpu", rounds=2, budget=0.05, measure_memory=False)


# Flows ------------------------------------------------------------------------------------------------------------------------


def test_the_flow_with_edges_is_constant_within_squares_and_jumps_between_them():
    flow = lookup_cases.edges((40, 40))
    square = lookup_cases.BLOCK
    assert np.ptp(flow[:, :square, :square], axis=(1, 2)).max() == 0
    assert np.abs(flow[:, 0, square] - flow[:, 0, square - 1]).max() > 1


def test_noise_is_as_strong_as_it_says_and_neighbours_do_not_share_it():
    flow = lookup_cases.noise((100, 100))
    assert abs(flow.std() - lookup_cases.NOISE) < 0.1
    assert abs(np.corrcoef(flow[:, :, 1:].ravel(), flow[:, :, :-1].ravel())[0, 1]) < 0.05


def test_coordinates_converge_by_the_factor_of_an_iteration():
    size = Size("converging", 1, (30, 40))
    target = lookup_cases.grid(size.shape) + lookup_cases.smooth(size.shape)
    errors = [np.abs(coords[0] - target).mean() for coords in size.converging(4)]
    np.testing.assert_allclose(np.divide(errors[1:], errors[:-1]), lookup_cases.CONVERGENCE, rtol=1e-3)
    assert errors[0] > 2


def test_smooth_noise_varies_little_from_pixel_to_pixel():
    waves = lookup_cases.smooth_noise((60, 80))
    assert abs(waves.std() - 1) < 1e-6
    assert np.abs(np.diff(waves, axis=2)).max() < 0.5


# Contestants ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wanted():
    """Two small maps and coordinates, with RAFT's scores of them by the oracle."""
    fmap1, fmap2 = SMALL.maps(channels=16)
    coords = SMALL.coords("noise")
    levels = [fmap2.astype(np.float64)]
    for _ in range(LEVELS - 1):
        rows, columns = (size // 2 for size in levels[-1].shape[2:])
        cut = levels[-1][:, :, : 2 * rows, : 2 * columns]
        levels.append(cut.reshape(*cut.shape[:2], rows, 2, columns, 2).mean((3, 5)))
    scores, _, _ = lookup_oracle.forward(fmap1, levels, coords, 2 * RADIUS + 1, order="dx", scale=16**-0.5)
    return fmap1, fmap2, coords, scores.reshape(1, -1, *SMALL.shape)


@pytest.mark.parametrize("contestant", CONTESTANTS, ids=lambda contestant: contestant.name)
def test_every_contestant_computes_the_definition(contestant, wanted):
    reason = contestant.why_not("cpu")
    if reason is not None:
        pytest.skip(reason)
    fmap1, fmap2, coords, want = wanted
    with torch.no_grad():
        block = contestant.make(torch.from_numpy(fmap1), torch.from_numpy(fmap2))
        found = lookup_rivals.scores(block(torch.from_numpy(coords)))
    np.testing.assert_allclose(found.numpy(), want, atol=1e-4)


# Runs -------------------------------------------------------------------------------------------------------------------------


def _contestant(name, ours, value, **options):
    return Contestant(name, ours, lambda fmap1, fmap2: lambda coords: torch.full((1, 1, 2, 2), value), **options)


LOOKUP = lookup.TASKS[0]


def test_a_run_compares_results_and_says_why_a_contestant_did_not_run():
    contestants = (
        _contestant("ours", True, 1.0),
        _contestant("wrong", False, 1.5),
        _contestant("right", False, 1.0),
        _contestant("missing", False, 1.0, why_not=lambda device: "it is not installed"),
        _contestant("huge", False, 1.0, bytes=lambda size, channels: 2**60),
    )
    rows = {row.contestant: row for row in lookup.run(LOOKUP, SMALL, SETTINGS, contestants)}
    assert [name for name, row in rows.items() if not row.agrees] == ["wrong"]
    assert rows["wrong"].difference == 0.5
    assert rows["missing"].reason == "it is not installed"
    assert "GiB" in rows["huge"].reason
    assert all((row.timing is None) == (row.reason is not None) for row in rows.values())
    assert json.loads(json.dumps([*map(lookup.record, rows.values())]))
    console = Console(file=io.StringIO(), width=report.WIDTH)
    console.print(lookup.table_of([*rows.values()]))
    assert "DIFFERS" in console.file.getvalue()


def test_only_differentiable_contestants_take_part_in_training():
    training = lookup.TASKS[-1]
    assert lookup.why_not(_contestant("fixed", True, 1.0, differentiable=False), training, SMALL, SETTINGS)
    assert lookup.why_not(_contestant("trained", True, 1.0), training, SMALL, SETTINGS) is None


@pytest.mark.parametrize("task", lookup.TASKS, ids=lambda task: f"{task.name} {task.flow}")
def test_ours_and_the_rival_on_demand_agree_on_every_task(task):
    named = [each for each in CONTESTANTS if each.name in ("maps", "on demand")]
    short = Task(task.name, task.flow, task.prepare, min(task.iterations, 2), task.derivatives)
    rows = lookup.run(short, SMALL, SETTINGS, named)
    assert [row.contestant for row in rows if row.agrees and row.timing] == ["maps", "on demand"]


@pytest.mark.slow
def test_peak_memory_is_measured_in_a_process_of_its_own():
    words = ["--measure-memory", "chairs", "lookup", "zero"]
    ours, theirs = (memory.peak_in_own_process("benchmarks.lookup", [*words, name]) for name in ("maps", "on demand"))
    assert 0 <= ours < theirs
    assert memory.peak_in_own_process("benchmarks.lookup", [*words, "nobody"]) is None


def test_an_unknown_task_is_refused(capsys):
    with pytest.raises(SystemExit):
        lookup.main(["--tasks", "nonsense"])
    assert "nonsense" in capsys.readouterr().err
