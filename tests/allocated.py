"""Memory as torch's CPU allocator gives and takes it."""

import gc
from collections.abc import Callable
from typing import Any


def most_allocated(work: Callable[[], Any]) -> int:
    """Bytes that are there at most beside those before, while it works: by the events of torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    gc.collect()  # a model of an earlier test that went meanwhile would count against what is made
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    assert found.profiler is not None and found.profiler.kineto_results is not None
    events: list[Any] = [event for event in found.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most
