"""Fixtures for chats."""

import pytest

from ossia.cli.conversation import Conversation
from ossia.tools import BUILT_IN
from tests.scripted import scripted_llm


@pytest.fixture
def conversation(bytes_folder):
    """Makes a conversation with these replies, and the engine that gives them."""

    def build(*scripts):
        llm, engine = scripted_llm(bytes_folder, scripts)
        return Conversation(llm, tools=BUILT_IN), engine

    return build
