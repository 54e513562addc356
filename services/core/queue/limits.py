"""Limits of queued operations: of each run, of each tenant and in all.

The scripts in lua/ count the load in the step in which an operation is accepted or ends. An operation that would exceed
a limit is refused with the time after which to retry; accepted operations are not affected.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.core.config import GatewaySettings


@dataclass(frozen=True)
class LoadLimits:
    """Maximum load, queued and under way. A sampling operation is one sample, whatever its number of sequences."""

    operations_of_run: int
    operations_of_tenant: int
    operations: int
    samples_of_tenant: int
    samples: int

    request_bytes_of_tenant: int
    """Bytes of jobs in Redis and in the blob store."""

    request_bytes: int

    @classmethod
    def of(cls, settings: GatewaySettings) -> LoadLimits:
        """The limits in a gateway's settings."""
        return cls(
            operations_of_run=settings.max_waiting_per_run,
            operations_of_tenant=settings.max_waiting_operations_per_tenant,
            operations=settings.max_waiting_operations,
            samples_of_tenant=settings.max_waiting_samples_per_tenant,
            samples=settings.max_waiting_samples,
            request_bytes_of_tenant=settings.max_waiting_bytes_per_tenant,
            request_bytes=settings.max_waiting_bytes,
        )

    def of_training(self) -> list[str | bytes | int]:
        """The last arguments of enqueue_run.lua."""
        return [
            self.operations_of_run,
            self.operations_of_tenant,
            self.operations,
            self.request_bytes_of_tenant,
            self.request_bytes,
        ]

    def of_sampling(self) -> list[str | bytes | int]:
        """The last arguments of enqueue_sample.lua."""
        return [self.samples_of_tenant, self.samples, self.request_bytes_of_tenant, self.request_bytes]
