"""Dialogues for a small model to learn to chat from, made up by a seed.

Tasks that it can learn (arithmetic, spelling, the standard library, calls of tools), with an
analysis that is as long as the reasoning effort asks for.
"""

from recipes.stdlib.dialogues.mix import Dialogue, held_out, training

__all__ = ["Dialogue", "held_out", "training"]
