"""Replies as gpt-oss writes them, and what they are replies to."""

ANSWER = (
    "<|channel|>analysis<|message|>Hm.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Forty-two, é!<|return|>"
)


def call(name: str, arguments: str) -> str:
    """Thoughts, then a call of a function."""
    return (
        "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary "
        f"to=functions.{name} <|constrain|>json<|message|>{arguments}<|call|>"
    )


def final(text: str) -> str:
    """An answer without thoughts."""
    return f"<|channel|>final<|message|>{text}<|return|>"


QUESTION = [{"role": "user", "content": "What is the weather in Oslo?"}]
CITY = '{"city": "Oslo"}'
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}
