"""Device work that is recorded once and replayed with one launch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Call = Callable[[], Tensor]
Record = Callable[[Call], Call]
"""Turns a call that reads tensors with fixed addresses into one that repeats it on their present contents."""


class CudaRecord:
    """Records calls as CUDA graphs that share memory: the result of one is overwritten by the next replay.

    The memory is freed with the last of its graphs; graphs that are recorded after that need another instance.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Call) -> Call:
        """Runs the call once, records it, and returns its replay."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            call()  # libraries allocate memory in the first call, which cannot be recorded
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = call()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
