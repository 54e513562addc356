"""The gateway's HTTP port: health, metrics, and the interface of the official SDK.

It runs in the gateway's loop beside the gRPC server and calls the same application functions: runs, checkpoints,
sessions, operations and keys are the same things on both. A group of routes is a module with a function
`routes`; `sdk/routes.py` and `app.py` put the groups together.
"""
