"""What a reply must look like, as a grammar over ids that sampling follows.

`structure` is the form of a text, `grammar` the form of a reply around it, which each chat format
writes, and `compile` makes constraints of grammars with llguidance.
"""

from ossia.text.constrain.compile import Grammars
from ossia.text.constrain.grammar import Grammar
from ossia.text.constrain.structure import Structure, read_structured_outputs

__all__ = ["Grammar", "Grammars", "Structure", "read_structured_outputs"]
