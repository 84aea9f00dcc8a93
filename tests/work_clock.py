"""A clock for tests of what is timed: a call takes as many seconds as the work that it was seen to do."""

from collections.abc import Callable, Hashable, Mapping

from mistral_lab.measure import Timing


class WorkClock:
    """Stands in for the functions of `measure` that time. Whatever a test watches calls `add` while it works."""

    def __init__(self):
        self.seconds = 0.0

    def add(self, seconds: float) -> None:
        """Let so much time pass."""
        self.seconds += seconds

    def time_callable(self, function: Callable[[], object], *, repeats: int = 5, device: object = "cpu") -> Timing:
        """Run a callable as often as `measure.time_callable` does."""
        runs = []
        for _ in range(repeats + 1):
            before = self.seconds
            function()
            runs.append(self.seconds - before)
        return Timing(tuple(runs[1:]))

    def time_in_turns(self, functions: Mapping[Hashable, Callable[[], object]], *, repeats: int = 5) -> dict:
        """Run callables as often as `measure.time_in_turns` does; work takes no longer after another call."""
        return {name: self.time_callable(function, repeats=repeats) for name, function in functions.items()}
