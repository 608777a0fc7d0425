"""How much memory a call takes, from the allocator itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that are live at once, of those that a call allocates.

    Torch's profiler hears of every block that the allocator hands out or takes back:
    the scratch space inside kernels counts, and so does what the call returns. What was
    there before does not, even if the call lets go of it.
    """
    run()  # what is made once and kept belongs to no call
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        held = run()
    roots = profiled.profiler.kineto_results.experimental_event_tree()
    blocks = [event for event in _all(roots) if event.name == "[memory]"]
    blocks.sort(key=lambda event: event.start_time_ns)
    del held
    live: dict[int, int] = {}
    now = most = 0
    for block in (event.extra_fields for event in blocks):
        if block.alloc_size > 0:
            live[block.ptr] = block.alloc_size
            now += block.alloc_size
        else:
            now -= live.pop(block.ptr, 0)
        most = max(most, now)
    return most


def _all(events: Iterable[Any]) -> Iterator[Any]:
    for event in events:
        yield event
        yield from _all(event.children)
