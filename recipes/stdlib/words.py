"""Words of chats that source code lacks, as text for a vocabulary to learn from.

With a vocabulary of the standard library alone, harmony's system message takes more than twice as
many tokens.
"""

from __future__ import annotations

from ossia.text.chat import Chat, Effort, Role
from ossia.text.harmony.grammar import CHANNELS, FUNCTIONS
from ossia.text.harmony.messages import JSON_ARGUMENTS, from_chat
from ossia.text.harmony.render import contents

# Repeats, enough for these words to become tokens next to megabytes of source.
_TIMES = 1000

# Each begins a line, as in a chat.
_QUESTIONS = (
    "Hello! Hi, who are you?",
    "What can you do? Please tell me.",
    "Thank you! Goodbye.",
    "Calculate, compute, add, subtract, multiply and compare the numbers.",
    "What is the sum, the difference, the product, the result?",
    "Which number is larger, the largest, the smallest?",
    "Sort the numbers in order.",
    "Reverse the word.",
    "Spell the word letter by letter.",
    "How many times does the letter appear in it?",
    "How many letters does it have?",
    "Write the word in uppercase.",
    "Is it the first, the last letter?",
    "Join the words. Count the letters.",
    "What does the function do?",
    "What is the module for? Explain the method.",
    "Look up the documentation of the class in the standard library of Python.",
)
_ANSWERS = (
    "The user asks me to use the tool. I should call the function, then answer the question.",
    "Digit by digit: write, carry, borrow, digits, step, plus, minus, times, equals.",
    "So the answer is the result. The answer: the letters.",
    "I am a small language model, trained on the source and documentation of the library.",
    "I cannot answer this: I do not know.",
    "I can do arithmetic, spell words and look up documentation.",
)
_TOOL = {
    "name": "calculate",
    "description": "Calculate an arithmetic expression.",
    "parameters": {
        "type": "object",
        "properties": {"expression": {"type": "string", "description": "The expression."}},
        "required": ["expression"],
    },
}


def chat_words() -> list[str]:
    """Texts with the words of harmony and of simple chats, each repeated many times."""
    headers = [*Role, *CHANNELS, f" to={FUNCTIONS}", JSON_ARGUMENTS.rpartition(">")[2]]
    texts = []
    for effort in Effort:
        chat = [
            {"role": Role.USER, "content": "\n".join(_QUESTIONS)},
            {"role": Role.ASSISTANT, "content": "\n".join(_ANSWERS)},
        ]
        tools = [{"type": "function", "function": _TOOL}]
        settled = Chat.of(chat, tools=tools, reasoning_effort=effort, date="2026-01-01")
        texts += [*headers, *contents(from_chat(settled))]
    return ["\n".join(texts)] * (_TIMES // len(Effort))
