"""The interface of the official `tinker` SDK under /api/v1: its JSON and protobuf, our application functions.

Requests become messages of tinker.v1 and are carried out as those of gRPC clients are; results become what the SDK
expects. A training request that cannot be carried out is accepted and fails through its future: the SDK counts its
seq_id as used either way.
"""
