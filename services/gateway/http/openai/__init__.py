"""The OpenAI-compatible part of the HTTP port: completions and chat on any base model or checkpoint."""
