"""Variants that tell of every run, for tests of what the dispatch asks of them."""

from dataclasses import replace


class _Watched:
    """A plan that tells of each run before it begins, and of nothing else."""

    def __init__(self, plan, request, tell):
        self._plan, self._request, self._tell = plan, request, tell

    def __getattr__(self, name):
        return getattr(self._plan, name)

    def run(self, arrays):
        self._tell(self._request, arrays)
        self._plan.run(arrays)


def watched(row, tell):
    """Return a variant that calls ``tell(request, arrays)`` before each run."""
    return replace(row, plan=lambda request, device: _Watched(row.plan(request, device), request, tell))


def taking(row, seconds):
    """Return a variant that takes so many seconds by the cost model."""

    def plan(request, device):
        made = _Watched(row.plan(request, device), request, lambda *_: None)
        made.seconds = seconds
        return made

    return replace(row, plan=plan)
