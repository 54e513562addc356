"""Kinds of JSON fields that the SDK's requests share."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from services.core.names import MAX_SAMPLE_SEQ_ID, MAX_SEQ_ID
from services.gateway.http.body import Fields

Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
SeqId = Annotated[int, Field(ge=0, le=MAX_SEQ_ID)]
SampleSeqId = Annotated[int, Field(ge=0, le=MAX_SAMPLE_SEQ_ID)]
Metadata = dict[str, str] | None


class SdkFields(Fields):
    """A request of the SDK; `type` says again what the path says."""

    type: str = ""
