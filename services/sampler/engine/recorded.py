"""Device work that is recorded once and replayed: one launch in place of a thousand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Call = Callable[[], Tensor]
Record = Callable[[Call], Call]
"""From a call that reads tensors which stay where they are to one that does the same with what is in them then."""


class CudaRecord:
    """Records calls as CUDA graphs that share their memory: the result of one is overwritten by the next.

    The memory goes with the last of its graphs; for what is recorded after that, make another.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, call: Call) -> Call:
        """Runs the call once, records it, and returns its replay."""
        current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            call()  # libraries take what memory they need at the first call, which cannot be recorded
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
            result = call()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay
