"""`python -m recipes.stdlib`: write the chats that teach ossia-stdlib; score a model on them."""

import sys

from ossia.cli.main import main
from recipes.stdlib.command import dialogues

sys.exit(main(commands=dialogues))
