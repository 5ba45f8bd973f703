"""The tool `python`: code that a model writes, run where it can harm nothing.

gpt-oss was trained with a tool of this name, which is called with the bare code. The reference
implementation (openai/gpt-oss, tools/python_docker) runs each call in a container of its own and
answers with what it prints; the notebooks of its training also show the last expression.
"""

from ossia.tools.python.sandbox import Limits, Ran, check, run
from ossia.tools.python.tool import Python, code_of

__all__ = ["Limits", "Python", "Ran", "check", "code_of", "run"]
