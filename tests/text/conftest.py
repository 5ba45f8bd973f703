"""The independent reference for harmony: openai_harmony, fed from gpt-oss's tokenizer, offline."""

import pytest
from hypothesis import settings

from tests.text.harmony_reference import write_o200k

# The same examples in every run, so that a failure is one that anybody can repeat.
settings.register_profile("ossia", deadline=None, derandomize=True, max_examples=200)
settings.load_profile("ossia")


@pytest.fixture(scope="session")
def reference(gpt_oss_tokenizer, tmp_path_factory):
    """openai_harmony's encoding of gpt-oss."""
    openai_harmony = pytest.importorskip("openai_harmony")
    folder = tmp_path_factory.mktemp("o200k")
    write_o200k(gpt_oss_tokenizer, folder / "o200k_base.tiktoken")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_ENCODINGS_BASE", str(folder))
        return openai_harmony.load_harmony_encoding("HarmonyGptOss")
