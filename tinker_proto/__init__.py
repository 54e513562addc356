"""The contract: the only place where the client and the services meet.

`v1` holds the stubs of package tinker.v1 and `internal.v1` those of the queue's messages, both generated from protos/
when the package is installed. `tensor` and `path` are the conversions that both sides must agree on.
"""
