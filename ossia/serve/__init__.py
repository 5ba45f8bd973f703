"""An OpenAI-compatible HTTP server over one LLM: requests to asks, events to answers, no tensors.

It needs the extra `ossia[serve]`; only `ossia.serve.options` can be imported without.
"""
