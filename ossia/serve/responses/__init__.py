"""OpenAI's Responses: conversations of items, kept so that a later response can go on from one."""
