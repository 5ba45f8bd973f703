"""Harmony, the chat format of gpt-oss, over any vocabulary that has its control tokens.

`grammar` describes the format. `messages` turns a chat into harmony's messages, `render` writes
them as ids, with JSON schemas in TypeScript by `schema`, and `parse` reads ids back. `format` makes
a `ChatFormat` of them.
"""
