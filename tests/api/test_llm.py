"""LLM over a scripted engine: a reply is one stream of events, whatever ends it."""

import asyncio
import dataclasses
import gc
import os
import shutil
import threading

import numpy as np
import pytest
import torch

import ossia
from ossia.api import Finished, ReplyBuilder, TokenLogprob
from ossia.config import (
    GELU,
    AttentionConfig,
    LayerConfig,
    LayerNorm,
    LearnedPositions,
    MLPConfig,
    ModelConfig,
)
from ossia.engine import LogitsError
from ossia.model import Decoder
from ossia.text import Channel, TextDelta, ToolCallStart, load_tokenizer
from tests.scripted import eventually, scripted_llm, write_byte_tokenizer

HARMONY = (
    "<|channel|>analysis<|message|>Hm.<|end|>"
    "<|start|>assistant<|channel|>final<|message|>Forty-two, é!<|return|>"
)
CALL = (
    "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary "
    'to=functions.weather <|constrain|>json<|message|>{"city": "Oslo"}<|call|>'
)
ASK = [{"role": "user", "content": "?"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture
def llm_for(folder):
    return lambda *scripts, **options: scripted_llm(folder, scripts, **options)


def text_of(events):
    return "".join(event.text for event in events if isinstance(event, TextDelta))


class TestGenerate:
    def test_prompts_run_in_one_batch_and_come_back_in_order(self, llm_for):
        llm, engine = llm_for("one", "second", "3")
        completions = llm.generate(["a", "bb", "ccc"])
        assert [c.text for c in completions] == ["one", "second", "3"]
        assert [c.prompt_tokens for c in completions] == [1, 2, 3]
        assert [len(c.token_ids) for c in completions] == [3, 6, 1]
        assert engine.most_at_once == 3

    def test_a_string_is_one_prompt_and_ids_are_taken_as_they_are(self, llm_for):
        llm, engine = llm_for("x", "y")
        assert [c.text for c in llm.generate("a")] == ["x"]
        llm.generate([[5, 6]])
        assert engine.requests[1].prompt == [5, 6]

    def test_one_flat_list_of_ids_is_refused(self, llm_for):
        llm, _ = llm_for("x")
        with pytest.raises(ossia.OssiaError, match="list of lists"):
            llm.generate([5, 6])

    def test_a_refused_prompt_takes_the_others_out_of_the_engine(self, llm_for):
        llm, engine = llm_for("x", "y")
        with pytest.raises(ossia.OssiaError, match="empty"):
            llm.generate(["fine", ""])
        assert not engine.has_work

    def test_the_models_own_end_is_a_token_but_not_text(self, llm_for):
        llm, _ = llm_for("done<|endoftext|>never", eos_token_id=257)
        (completion,) = llm.generate("p")
        assert (completion.text, completion.finish_reason) == ("done", "stop")
        assert completion.token_ids[-1] == 257

    def test_ignore_eos_goes_on(self, llm_for):
        llm, _ = llm_for("a<|endoftext|>b", eos_token_id=257)
        (completion,) = llm.generate("p", ignore_eos=True)
        assert (completion.text, completion.finish_reason) == ("a<|endoftext|>b", "length")

    def test_logprobs_stand_beside_each_token_if_asked_for(self, llm_for):
        llm, _ = llm_for("ab", "ab")
        (without,), (with_them,) = llm.generate("p"), llm.generate("p", logprobs=1)
        assert without.logprobs is None
        assert [(item.token, item.logprob, item.top) for item in with_them.logprobs] == [
            (token, -0.5, ((token, -0.5),)) for token in with_them.token_ids
        ]

    def test_prompts_are_scored_if_asked_for(self, llm_for):
        llm, engine = llm_for("abc", "d")
        scored, plain = llm.generate(["xyz"], prompt_logprobs=1), llm.generate("xyz")
        x, y, z = llm.tokenizer.encode("xyz")
        assert scored[0].text == "abc"
        assert scored[0].prompt_logprobs == (
            TokenLogprob(y, -0.25, ((0, -0.125),)),
            TokenLogprob(z, -0.25, ((0, -0.125),)),
        )
        assert plain[0].prompt_logprobs is None
        assert engine.requests[0].prompt == [x, y, z]

    def test_max_tokens_0_only_reads(self, llm_for):
        llm, _ = llm_for("a")
        (completion,) = llm.generate("xyz", max_tokens=0)
        assert (completion.text, completion.token_ids) == ("", ())
        assert (completion.finish_reason, completion.prompt_tokens) == ("length", 3)
        assert completion.prompt_logprobs is None

    def test_texts_are_scored_from_where_it_matters(self, llm_for):
        llm, engine = llm_for("", "", "")
        found = llm.logprobs(["xyz", "xy"], start=[2, 1], top=2)
        y, z = llm.tokenizer.encode("yz")
        assert [[score.token for score in scores] for scores in found] == [[z], [y]]
        assert found[0][0].top == ((0, -0.125), (0, -0.125))
        assert {request.sampling.max_tokens for request in engine.requests} == {0}
        assert llm.logprobs([[y]]) == [()]
        with pytest.raises(ossia.OssiaError, match="start has 1 positions for 2 texts"):
            llm.logprobs(["a", "b"], start=[1])

    def test_results_are_frozen(self, llm_for):
        (completion,) = llm_for("x")[0].generate("p")
        with pytest.raises(dataclasses.FrozenInstanceError):
            completion.text = "other"


class TestSampling:
    def test_defaults_come_from_generation_config_and_the_caller_wins(self, llm_for):
        llm, engine = llm_for("x", "y", temperature=0.6, top_k=20, top_p=0.95, eos_token_id=[7, 9])
        llm.generate("p", top_k=5, temperature=None)
        sampling = engine.requests[0].sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p) == (0.6, 5, 0.95)
        assert sampling.stop_ids == {7, 9}

    def test_do_sample_false_is_greedy(self, llm_for):
        llm, engine = llm_for("x", do_sample=False)
        llm.generate("p")
        assert engine.requests[0].sampling.temperature == 0

    def test_an_unknown_option_is_named(self, llm_for):
        with pytest.raises(ossia.OssiaError, match="unknown sampling option temprature"):
            llm_for("x")[0].generate("p", temprature=1)

    def test_a_wrong_default_matters_only_where_the_caller_gives_none(self, llm_for):
        for key, wrong, right in (
            ("temperature", "hot", 0.5),
            ("top_p", 0.0, 0.5),
            ("top_k", 2.5, 3),
            ("repetition_penalty", -1, 1),
        ):
            llm, engine = llm_for("x", "y", "z", **{key: wrong})
            with pytest.raises(
                ossia.OssiaError, match=rf"generation_config\.json: {key} .* or give {key}"
            ):
                llm.generate("p")
            llm.generate("p", **{key: right})
            assert getattr(engine.requests[0].sampling, key) == right

    def test_defaults_are_read_as_numbers_of_any_type(self, llm_for):
        llm, engine = llm_for("x", temperature=1, top_k=50.0, top_p=1, min_p=None, do_sample=None)
        llm.generate("p")
        sampling = engine.requests[0].sampling
        assert (sampling.temperature, sampling.top_k, sampling.top_p) == (1.0, 50, 1.0)

    @pytest.mark.parametrize("stop", [5, ["a", 1], {"a": 1}, [None]])
    def test_a_stop_that_is_no_string_is_refused(self, llm_for, stop):
        with pytest.raises(ossia.OssiaError, match="stop must be a string or a list of strings"):
            llm_for("x")[0].generate("p", stop=stop)

    def test_ids_of_a_prompt_may_be_of_any_integer_type(self, llm_for):
        ids = [3, 1, 2]
        for prompt in (torch.tensor(ids), np.array(ids), np.array(ids, np.uint8), tuple(ids)):
            llm, engine = llm_for("x")
            llm.generate([prompt])
            assert list(engine.requests[0].prompt) == ids
            assert all(type(id) is int for id in engine.requests[0].prompt)

    def test_a_bad_value_is_refused(self, llm_for):
        with pytest.raises(ossia.OssiaError, match="top_p"):
            llm_for("x")[0].generate("p", top_p=2.0)


class TestStopStrings:
    def test_no_part_of_one_is_ever_shown_and_the_request_is_aborted(self, llm_for):
        llm, engine = llm_for("answer STOP more")
        engine.endless = True
        pieces, event = [], None
        for event in llm.stream_text("p", stop="STOP"):
            if isinstance(event, TextDelta):
                pieces.append(event.text)
                assert "S" not in "".join(pieces)
        assert "".join(pieces) == "answer "
        assert isinstance(event, Finished)
        assert event.reason == "stop"
        assert eventually(lambda: engine.aborted == [0])

    def test_what_only_began_like_one_is_shown_at_the_end(self, llm_for):
        (completion,) = llm_for("answer STO")[0].generate("p", stop=["STOP"])
        assert (completion.text, completion.finish_reason) == ("answer STO", "length")

    def test_in_a_chat_they_end_the_answer_and_not_the_reasoning(self, llm_for):
        reply = llm_for(HARMONY)[0].chat(ASK, stop=["Hm", "two"])
        assert (reply.reasoning, reply.content) == ("Hm.", "Forty-")

    def test_an_empty_one_is_refused(self, llm_for):
        llm, engine = llm_for("x")
        with pytest.raises(ossia.OssiaError, match="stop string"):
            llm.generate("p", stop="")
        assert not engine.has_work


class TestChat:
    def test_events_end_with_finished_and_never_hold_half_a_character(self, llm_for):
        *events, finished = llm_for(HARMONY)[0].stream(ASK)
        assert finished == Finished("stop", finished.prompt_tokens, finished.completion_tokens)
        assert "�" not in text_of(events)
        assert text_of(e for e in events if e.channel is Channel.FINAL) == "Forty-two, é!"
        assert text_of(e for e in events if e.channel is Channel.REASONING) == "Hm."

    def test_a_tool_call_is_named_and_ends_the_turn(self, llm_for):
        reply = llm_for(CALL)[0].chat(ASK)
        (call,) = reply.tool_calls
        assert (call.name, call.arguments) == ("weather", '{"city": "Oslo"}')
        assert reply.finish_reason == "tool_calls"

    def test_a_reply_becomes_a_message_that_can_be_rendered_again(self, llm_for):
        llm, engine = llm_for(CALL, HARMONY)
        asked = llm.chat(ASK)
        call = asked.message()["tool_calls"][0]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "sunny"}
        answer = llm.chat([*ASK, asked.message(), result])
        assert answer.content == "Forty-two, é!"
        rendered = llm.tokenizer.decode(engine.requests[1].prompt)
        assert '{"city": "Oslo"}' in rendered
        assert "sunny" in rendered

    def test_instructions_and_an_answer_s_schema_reach_the_prompt(self, llm_for):
        llm, engine = llm_for(HARMONY)
        llm.chat(ASK, instructions="Be brief.", response_format={"type": "json_object"})
        prompt = llm.tokenizer.decode(engine.requests[0].prompt)
        assert "# Instructions\n\nBe brief.\n\n# Response Formats" in prompt

    def test_the_end_counts_the_tokens_of_the_reasoning(self, llm_for):
        assert [*llm_for(HARMONY)[0].stream(ASK)][-1].reasoning_tokens == len("Hm.")

    @pytest.mark.parametrize(
        ("reply", "malformed"),
        [
            (HARMONY, False),
            ("<|message|>Hi<|message|> there<|return|>", True),
            ("Hi<|return|>", True),
            ("<|channel|>final", False),  # cut off, which is no fault of the model
        ],
    )
    def test_the_end_says_whether_the_reply_was_malformed(self, llm_for, reply, malformed):
        assert [*llm_for(reply)[0].stream(ASK)][-1].malformed == malformed

    def test_a_reply_cut_short_keeps_what_was_made(self, llm_for):
        reply = llm_for("<|channel|>final<|message|>Forty-tw")[0].chat(ASK)
        assert (reply.content, reply.finish_reason) == ("Forty-tw", "length")


class TestEndings:
    def test_leaving_a_loop_aborts_the_request(self, llm_for):
        llm, engine = llm_for("a long text")
        engine.endless = True
        for _ in llm.stream_text("p"):
            break
        gc.collect()
        assert eventually(lambda: engine.aborted == [0])
        assert not engine.has_work

    def test_an_exception_in_a_with_block_aborts_the_request(self, llm_for):
        llm, engine = llm_for("a long text")
        engine.endless = True

        def interrupted():
            with llm.stream_text("p") as stream:
                for _ in stream:
                    raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert eventually(lambda: engine.aborted == [0])

    def test_a_stream_that_was_never_read_is_aborted_too(self, llm_for):
        llm, engine = llm_for("a long text")
        engine.endless = True
        llm.stream_text("p").close()
        assert eventually(lambda: llm.stats().unfinished == 0)
        assert engine.aborted in ([0], [])  # it may never have come to the engine
        assert not engine.has_work

    def test_a_finished_stream_is_not_aborted(self, llm_for):
        llm, engine = llm_for("a")
        stream = llm.stream_text("p")
        assert len(list(stream)) == 2
        stream.close()
        assert engine.aborted == []

    def test_interrupt_ends_with_what_was_made(self, llm_for):
        llm, engine = llm_for("abc")
        engine.endless = True
        stream, builder = llm.stream_text("p"), ReplyBuilder()
        builder.add(next(stream))
        stream.interrupt()
        for event in stream:
            builder.add(event)
        reply = builder.reply()
        assert (reply.content, reply.finish_reason) == ("a", "interrupted")
        assert reply.completion_tokens == 1
        assert eventually(lambda: engine.aborted == [0])


class TestTogether:
    def test_streams_may_interleave(self, llm_for):
        llm, _ = llm_for("abcd", "ABCDEF")
        first, second = llm.stream_text("p"), llm.stream_text("q")
        taken = [next(first), next(second), next(second)]
        assert text_of(taken) == "aAB"
        assert text_of(first) == "bcd"
        assert text_of(second) == "CDEF"

    def test_threads_may_share_an_llm(self, llm_for):
        scripts = [f"reply {n} " * 20 for n in range(8)]
        llm, _ = llm_for(*scripts)
        replies = []
        threads = [
            threading.Thread(target=lambda: replies.append(llm.generate("p")[0].text))
            for _ in scripts
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=300)
        assert sorted(replies) == sorted(scripts)

    def test_one_requests_broken_logits_end_only_that_one(self, llm_for):
        llm, engine = llm_for("broken", "fine")
        engine.may_step.clear()
        broken, fine = llm.stream_text("p"), llm.stream_text("q")
        engine.broken.add(0)
        engine.may_step.set()
        assert text_of(fine) == "fine"
        with pytest.raises(LogitsError):
            next(broken)


class TestAsyncio:
    def test_a_reply_is_the_same_events(self, llm_for):
        llm, _ = llm_for(HARMONY, HARMONY)

        async def events():
            return [event async for event in llm.astream(ASK)]

        assert asyncio.run(events()) == list(llm.stream(ASK))

    def test_what_was_prepared_once_can_be_started_several_times(self, llm_for):
        llm, engine = llm_for(HARMONY, HARMONY)

        async def read():
            ask = llm.prepare(ASK)
            streams = llm.start(ask), llm.start(ask)
            return [[event async for event in stream] for stream in streams], streams[0].channels

        replies, channels = asyncio.run(read())
        assert [text_of(events) for events in replies] == ["Hm.Forty-two, é!"] * 2
        assert channels.count(Channel.FINAL) == len("Forty-two, é!".encode())
        assert engine.requests[0].prompt == engine.requests[1].prompt

    def test_what_cannot_be_asked_is_refused_at_once(self, llm_for):
        llm, engine = llm_for(HARMONY)

        async def asked():
            with pytest.raises(ossia.OssiaError, match="unknown sampling option temprature"):
                llm.astream(ASK, temprature=1)

        asyncio.run(asked())
        assert not engine.requests


class TestClosing:
    def test_leaving_the_block_ends_what_runs_with_an_error(self, llm_for):
        llm, engine = llm_for("a long text")
        engine.endless = True
        with llm:
            stream = llm.stream_text("p")
            next(stream)
        with pytest.raises(ossia.OssiaError, match="the model is closed"):
            list(stream)
        with pytest.raises(ossia.OssiaError, match="the model is closed"):
            llm.generate("p")
        llm.close()

    def test_figures_tell_what_is_unfinished(self, llm_for):
        llm, engine = llm_for("ab", "cd")
        engine.may_step.clear()
        streams = [llm.stream_text("p"), llm.stream_text("q")]
        assert eventually(lambda: llm.stats().engine.running == 2)
        assert (llm.stats().unfinished, llm.stats().max_queue) == (2, 1024)
        engine.may_step.set()
        assert [text_of(stream) for stream in streams] == ["ab", "cd"]
        assert eventually(lambda: llm.stats().unfinished == 0)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
    def test_a_stream_stays_with_the_process_that_began_it(self, llm_for):
        llm, engine = llm_for("parent", "child")
        engine.endless = True
        stream = llm.stream_text("p")
        next(stream)
        child = os.fork()
        if child == 0:
            try:
                list(stream)
            except ossia.OssiaError as error:
                engine.endless = False
                right = "forked" in str(error) and llm.generate("q")[0].text == "child"
                os._exit(7 if right else 1)
            os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        assert text_of(next(stream) for _ in range(7)) == "arenttt"


def test_tool_calls_start_before_their_arguments(llm_for):
    kinds = [type(event) for event in llm_for(CALL)[0].stream(ASK)]
    assert kinds.count(ToolCallStart) == 1
    assert kinds.index(ToolCallStart) < kinds.index(ossia.ToolCallDelta)


def test_the_tokenizer_of_an_original_folder_lies_beside_it(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "model")
    size = load_tokenizer(folder).vocab_size
    attention = AttentionConfig(2, 2, 8, bias=True)
    layer = LayerConfig(attention, MLPConfig(64, GELU(), bias=True))
    config = ModelConfig(
        size, 16, 32, (layer,), LearnedPositions(), LayerNorm(), True, dtype="float32"
    )
    decoder = Decoder(config)
    decoder.init_weights()
    ossia.save_model(decoder, tmp_path / "model" / "original")
    llm = ossia.LLM(tmp_path / "model")
    assert len(llm.generate("Hi", max_tokens=3, ignore_eos=True)[0].token_ids) == 3
