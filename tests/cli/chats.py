"""Scripts of replies in harmony, and a turn of a conversation."""

from ossia.cli.conversation import Conversation


def final(text: str, analysis: str = "Hm.") -> str:
    return (
        f"<|channel|>analysis<|message|>{analysis}<|end|>"
        f"<|start|>assistant<|channel|>final<|message|>{text}<|return|>"
    )


CALL = (
    "<|channel|>commentary to=functions.weather <|constrain|>json"
    '<|message|>{"city": "Oslo"}<|call|>'
)

CALCULATE = (
    "<|channel|>commentary to=functions.calculate <|constrain|>json"
    '<|message|>{"expression": "6 * 7"}<|call|>'
)


def converse(conversation: Conversation, text: str) -> str:
    """Answer a turn; the remark at its end."""
    stream, remark = conversation.ask(text), ""
    while stream is not None:
        with stream:
            for event in stream:
                conversation.hear(event)
        conversation.run_tools()
        remark = conversation.reply_ended()
        stream = conversation.go_on()
    return remark
