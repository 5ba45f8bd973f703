"""`python -m recipes.stdlib`: write what ossia-stdlib learns from; score a model."""

import sys

from ossia.cli.main import main
from recipes.stdlib.command import app

sys.exit(main(commands=app))
