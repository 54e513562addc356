"""Adapters on the device.

An adapter goes to the device when its first request starts, and stays there after its last one. Whoever submits the
request has it read ahead on another thread, because whatever runs waits for what a start takes. When the limit is
reached, the least recently used adapter without users is dropped. A location's content never changes, so a loaded
adapter is never stale.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from services.model.adapter_files import read_adapter
from services.model.adapters import AdapterWeights
from services.model.base import BaseModel


@dataclass
class _Loaded:
    weights: AdapterWeights
    users: int = 0


class Residency:
    """Loaded adapters by location, at most `limit` of them."""

    def __init__(self, base: BaseModel, limit: int) -> None:
        self._base = base
        self._limit = limit
        self._loaded: OrderedDict[Path, _Loaded] = OrderedDict()
        """Least recently used first."""

        self._ahead: OrderedDict[Path, AdapterWeights] = OrderedDict()
        """Adapters in the CPU's memory whose first request has not started, at most `limit` of them."""

        self._ahead_lock = Lock()

    @property
    def locations(self) -> tuple[Path, ...]:
        """Locations of the loaded adapters, least recently used first."""
        return tuple(self._loaded)

    @property
    def users(self) -> dict[Path, int]:
        """Number of users of each loaded adapter."""
        return {location: loaded.users for location, loaded in self._loaded.items()}

    def read_ahead(self, location: Path) -> None:
        """Reads an adapter that is neither loaded nor read, on any thread.

        Raises:
            PlatformError: it cannot be read, or is not for this base model.
        """
        if location in self._loaded or location in self._ahead:
            return
        weights = read_adapter(location, self._base)
        with self._ahead_lock:
            self._ahead[location] = weights
            while len(self._ahead) > self._limit:
                self._ahead.popitem(last=False)

    def acquire(self, location: Path) -> AdapterWeights | None:
        """The adapter at a location, to be released once; None while the limit is reached and all are in use.

        Raises:
            PlatformError: it cannot be read, or is not for this base model.
        """
        if location not in self._loaded:
            if not self._drop_unused():
                return None
            with self._ahead_lock:
                weights = self._ahead.pop(location, None)
            if weights is None:
                weights = read_adapter(location, self._base)
            self._loaded[location] = _Loaded(weights.to(self._base.device))
        self._loaded.move_to_end(location)
        self._loaded[location].users += 1
        return self._loaded[location].weights

    def release(self, location: Path) -> None:
        """Undoes one `acquire`."""
        self._loaded[location].users -= 1

    def _drop_unused(self) -> bool:
        """Drops adapters without users until one more fits; False if all have users."""
        unused = [location for location, loaded in self._loaded.items() if loaded.users == 0]
        while len(self._loaded) >= self._limit and unused:
            del self._loaded[unused.pop(0)]
        return len(self._loaded) < self._limit
