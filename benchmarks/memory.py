"""How much memory a call takes, from the allocator itself."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes of torch that are live at once during a call, beyond those before.

    Torch's profiler hears of every block that its allocator hands out or takes back, so
    the scratch space inside kernels is counted too, and what the call returns. Results
    of tests are within the few bytes of the scalars that Python numbers become.
    """
    run()  # what is made once and kept belongs to no call
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        held = run()
    events = profiled.profiler.kineto_results.events()
    blocks = [event for event in events if event.name() == "[memory]"]
    blocks.sort(key=lambda event: event.start_ns())
    del held
    return max(accumulate((event.nbytes() for event in blocks), initial=0))
