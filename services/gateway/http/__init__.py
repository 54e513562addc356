"""The gateway's HTTP port: the official SDK's API, OpenAI's API, health and metrics.

It runs in the gateway's loop beside the gRPC server and calls the same application functions: runs, checkpoints,
sessions, operations and keys are the same on both.

- `sdk/` is the API of the official `tinker` SDK, under /api/v1. A group of its routes is a module with a function
  `routes`; `sdk/routes.py` lists the groups.
- `openai/` is OpenAI's API, under /v1: completions, chat completions and models. `openai/routes.py` lists its routes.
- `monitoring.py` has /healthz and /metrics, `description.py` /openapi.json and /docs.
- `app.py` puts them together; `backend.py` is what all of them call.
"""
