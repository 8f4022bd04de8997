"""Checks of the hf server around its batches: the generating thread, the service, its routes.

Run and read as hf_checks.py is.
"""

# ruff: noqa: ANN003 (a program: checks are called where they stand)
from __future__ import annotations

import asyncio
import json
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager

import peft
import tokenizers
import transformers
from aiohttp import test_utils
from hf_checks import (
    CHECKS,
    LLAMA,
    PROMPTS,
    SMALL,
    VOCABULARY,
    check,
    main,
    make_batch,
    make_model,
    make_sequence,
    reference,
)
from hf_server import application, compilers, constraints, options, rows
from hf_server.compilers import Compilers
from hf_server.errors import ApiError
from hf_server.generation import Generator
from hf_server.requests import Constraint
from hf_server.service import Service

CHECKS.clear()  # those of hf_checks are its own
compilers.LIMIT = 1  # seconds of CPU; the others' constraints take milliseconds
COMPILERS = Compilers()
BOMB = [str(number) for number in range(10_000, 35_000)]  # seconds for xgrammar


async def generated(batch, sequences, *, most_rows=8) -> Generator:
    """Run jobs through the generating thread."""
    generator = Generator(batch, most_rows=most_rows, budget=32, vocabulary_size=VOCABULARY)
    for sequence in sequences:
        sequence.job.done = asyncio.get_running_loop().create_future()
        sequence.job.pieces = asyncio.Queue()
        generator.submit(sequence.job)
    await asyncio.gather(*(sequence.job.done for sequence in sequences))
    return generator


@check
def rows_that_outgrow_the_cache_wait_and_go_on_where_they_were():
    """A cache for 60 places and rows of 40: never all at once, and every answer as it should be."""
    model = make_model(LLAMA)
    batch = make_batch(model)
    batch.most_tokens = 60
    sequences = [make_sequence(prompt, most=30) for prompt in PROMPTS]

    async def run():
        await (await generated(batch, sequences)).stop()

    asyncio.run(run())
    for sequence in sequences:
        (row,) = sequence.rows
        assert row.finish_reason == "length"
        assert row.ids == reference(model, row.prompt, 30)


@check
def more_rows_than_fit_wait_for_their_turn():
    """Two at a time, one request of which has five answers."""
    model = make_model(LLAMA)
    sequences = [make_sequence(prompt, most=5) for prompt in PROMPTS * 3]

    async def run():
        generator = await generated(make_batch(model), sequences, most_rows=2)
        assert (generator.running, generator.waiting) == (0, 0)
        assert generator.generation_tokens == 5 * len(sequences)
        await generator.stop()

    asyncio.run(run())
    for sequence in sequences:
        assert sequence.rows[0].ids == reference(model, sequence.ids, 5)


@check
def a_failing_step_fails_its_requests_and_not_the_server():
    """The next request is answered; a stopped server answers those under way with 503."""
    model = make_model(LLAMA)
    batch = make_batch(model)
    fine, forward = [False], model.forward

    def failing(**inputs):
        if not fine[0]:
            raise ValueError("broken")
        return forward(**inputs)

    model.forward = failing

    async def run():
        first = make_sequence(PROMPTS[0])
        generator = await generated(batch, [first])
        assert first.job.error.status == 500
        assert "broken" in first.job.error.message
        fine[0] = True
        second, endless = make_sequence(PROMPTS[1]), make_sequence(PROMPTS[2], most=200)
        for sequence in (second, endless):
            sequence.job.done = asyncio.get_running_loop().create_future()
            generator.submit(sequence.job)
        await second.job.done
        assert second.rows[0].ids == reference(model, PROMPTS[1], 8)
        await generator.stop()
        await endless.job.done
        assert endless.job.error.status == 503
        assert not generator.alive

    asyncio.run(run())


@check
def a_cancelled_request_leaves_the_batch():
    """Its rows, running or waiting, are gone at the next step."""
    model = make_model(LLAMA)

    async def run():
        batch = make_batch(model)
        running, waiting = make_sequence(PROMPTS[0], most=250), make_sequence(PROMPTS[1], most=9)
        gone = make_sequence(PROMPTS[2], most=250)
        loop = asyncio.get_running_loop()
        for sequence in (running, waiting, gone):
            sequence.job.done = loop.create_future()
        generator = Generator(batch, most_rows=1, budget=32, vocabulary_size=VOCABULARY)
        for sequence in (running, gone, waiting):
            generator.submit(sequence.job)
        await generator.call(lambda: None)
        generator.cancel(gone.job)
        generator.cancel(running.job)
        await waiting.job.done
        assert waiting.rows[0].ids == reference(model, PROMPTS[1], 9)
        assert not running.job.done.done()
        assert not gone.rows[0].ids
        await generator.stop()

    asyncio.run(run())


@check
def a_failing_row_fails_its_request_and_no_other():
    """Whatever its constraint raises, the rest of the batch goes on."""

    class Broken:
        def fill_next_token_bitmask(self, bitmask, place):
            bitmask[place] = -1

        def accept_token(self, token):
            raise RuntimeError(f"no {token}")

    model = make_model(LLAMA)
    first, second = make_sequence(PROMPTS[0]), make_sequence(PROMPTS[1])
    second.rows[0].matcher = Broken()

    async def run():
        await (await generated(make_batch(model), [first, second])).stop()

    asyncio.run(run())
    assert first.job.error is None
    assert first.rows[0].ids == reference(model, PROMPTS[0], 8)
    assert second.job.error.status == 500


def make_tokenizer():
    """Its tokens are the end, number 0, and the 256 bytes."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: place for place, text in enumerate(["</s>", *letters])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>")


def make_constraints():
    """For the tokenizer of these checks."""
    return constraints.Constraints(
        make_tokenizer(), compilers=COMPILERS, vocabulary_size=257, ends=frozenset({0})
    )


@check
def constraints_that_would_take_for_ever_are_refused():
    """Each within its limit, while another is compiled; what is right is compiled all the same."""
    bombs = [Constraint(kind="choice", text=json.dumps([*BOMB, str(n)])) for n in range(2)]
    fine = Constraint(kind="regex", text="[0-9]{3}")
    compiler = make_constraints()
    with ThreadPoolExecutor(len(bombs)) as threads:
        outcomes = [threads.submit(refusal, compiler, bomb) for bomb in bombs]
        compiler.compile(fine)
        assert not any(outcome.done() for outcome in outcomes), "it waited for the others"
        for bomb, outcome in zip(bombs, outcomes, strict=True):
            error = outcome.result()
            assert error is not None, bomb.kind
            assert error.status == 400, (bomb.kind, error.message)


def refusal(compiler, constraint) -> ApiError | None:
    """What compiling it is refused with."""
    try:
        compiler.compile(constraint)
    except ApiError as error:
        return error
    return None


@check
def what_is_wrong_with_a_constraint_is_said():
    """In xgrammar's words."""
    compiler = make_constraints()
    for kind, text in (("regex", "(["), ("grammar", "root = x"), ("json", '{"type": "oops"}')):
        error = refusal(compiler, Constraint(kind=kind, text=text))
        assert error is not None, kind
        assert error.status == 400
        assert "more time or memory" not in error.message, error.message


@check
def a_constraint_that_hangs_at_its_tokens_fails_alone():
    """Its time is counted from token to token, and the rest of the batch goes on."""
    model = make_model(LLAMA)
    batch = make_batch(model)
    slow, other = (make_sequence(prompt, most=8) for prompt in PROMPTS[:2])

    class Slow:
        def fill_next_token_bitmask(self, bitmask, place):
            bitmask[place] = -1

        def accept_token(self, _):
            time.sleep(0.02)
            return True

        def is_terminated(self):
            return False

    (row,) = slow.rows
    row.matcher = Slow()
    before, rows.MOST_CONSTRAINING = rows.MOST_CONSTRAINING, 0.05

    async def run():
        await (await generated(batch, [slow, other])).stop()

    try:
        asyncio.run(run())
    finally:
        rows.MOST_CONSTRAINING = before
    assert slow.job.error is not None
    assert slow.job.error.status == 400
    assert other.job.error is None
    assert len(other.rows[0].ids) == 8


@check
def choices_are_constrained_to_their_bytes():
    """Also those of characters that JSON writes as two, and of those that it escapes."""
    compiler = make_constraints()
    for text in ("👍", "日本", 'say "hi"\\n', "\x07\n", "é👩‍👧"):
        asked = Constraint(kind="choice", text=json.dumps([text]))
        matcher = constraints.matcher(compiler.compile(asked))
        assert matcher.accept_string(text.encode()), text
        assert matcher.accept_token(0), text


@asynccontextmanager
async def serving(*, api_key=None):
    """A service on a tiny model with one adapter's folder, and a client of its routes."""
    flags = "--model base --port 0 --device cpu --max-num-seqs 4 --enable-lora --max-loras 2"
    chosen = options.parse([*flags.split(), "--allow-runtime-lora-updating"])
    config = transformers.LlamaConfig(**SMALL | {"vocab_size": 300})
    with tempfile.TemporaryDirectory() as folder:
        adapted = peft.get_peft_model(
            make_model(config).module, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
        )
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.data.normal_(0, 1)
        adapted.save_pretrained(folder)
        service = Service(chosen, make_model(config), make_tokenizer(), compilers=COMPILERS)
        routes = application.make_application(service, api_key=api_key, admin_key="adm1n")
        headers = {"Authorization": "Bearer adm1n"}
        server = test_utils.TestServer(routes)
        async with test_utils.TestClient(server, headers=headers) as client:
            yield service, client, folder
            await service.generator.stop()


async def ask(client, model, **fields):
    """The tokens of a greedy answer, or the error."""
    body = {"model": model, "prompt": PROMPTS[0], "temperature": 0, "max_tokens": 8}
    body |= {"ignore_eos": True, "return_token_ids": True}
    async with client.post("/v1/completions", json=body | fields) as reply:
        found = await reply.json()
    return found["choices"][0]["token_ids"] if "choices" in found else found["error"]


async def load(client, name, folder):
    """The status of loading an adapter."""
    body = {"lora_name": name, "lora_path": folder}
    async with client.post("/v1/load_lora_adapter", json=body) as reply:
        return reply.status


async def unload(client, name):
    """The status of unloading it."""
    async with client.post("/v1/unload_lora_adapter", json={"lora_name": name}) as reply:
        return reply.status


@check
def token_ids_that_the_model_lacks_are_refused():
    """Of the prompt, and of what ends an answer: 400 to who asks, nothing to the others."""

    async def run():
        async with serving() as (_, client, _):
            wrong = {"stop_token_ids": [999999], "min_tokens": 1}
            fine, *errors = await asyncio.gather(
                ask(client, "base"), ask(client, "base", **wrong), ask(client, "base", prompt=[300])
            )
            assert len(fine) == 8
            found = [(error["code"], error["param"]) for error in errors]
            assert found == [(400, "stop_token_ids"), (400, "prompt")]

    asyncio.run(run())


@check
def candidates_are_named_chosen_and_bounded():
    """By their ids, the ids that were asked for, and as many as the server gives."""

    async def run():
        async with serving() as (_, client, _):
            body = {"model": "base", "prompt": PROMPTS[0], "max_tokens": 1, "logprobs": 2}
            body |= {"return_tokens_as_token_ids": True, "logprob_token_ids": [7, 9, 11]}
            async with client.post("/v1/completions", json=body) as reply:
                found = (await reply.json())["choices"][0]["logprobs"]
            assert {"token_id:7", "token_id:9", "token_id:11"} <= found["top_logprobs"][0].keys()
            assert found["tokens"][0] in found["top_logprobs"][0]
            for name in ("logprobs", "prompt_logprobs"):
                error = await ask(client, "base", **{name: 21})
                assert (error["code"], error["param"]) == (400, name)

    asyncio.run(run())


@check
def an_adapter_is_unloaded_after_the_requests_that_named_it():
    """Also those that were not tokenised yet; from then on its name is unknown."""

    async def run():
        async with serving() as (service, client, folder):
            assert await load(client, "mine", folder) == 200
            base, mine = await ask(client, "base"), await ask(client, "mine")
            assert base != mine
            arrived, go_on = asyncio.Event(), asyncio.Event()

            async def slow(_, **__):
                arrived.set()
                await go_on.wait()
                return PROMPTS[0]

            service.tokenize = slow
            asking = asyncio.create_task(ask(client, "mine", prompt="x"))
            await arrived.wait()
            unloading = asyncio.create_task(unload(client, "mine"))
            await asyncio.wait([unloading], timeout=0.3)
            assert (await ask(client, "mine"))["code"] == 404
            go_on.set()
            assert await asking == mine
            assert await unloading == 200
            assert not service._adapter_store._loaded

    asyncio.run(run())


@check
def an_adapter_is_loaded_once_under_one_name():
    """Of two at the same time one is refused, and who goes away meanwhile leaves no nameless."""

    async def run():
        async with serving() as (service, client, folder):
            both = await asyncio.gather(*(load(client, "twice", folder) for _ in range(2)))
            assert sorted(both) == [200, 400]
            assert len(service._adapter_store._loaded) == 1
            arrived, go_on = asyncio.Event(), threading.Event()
            loop, really = asyncio.get_running_loop(), service._adapter_store.load

            def slow(name, path):
                loop.call_soon_threadsafe(arrived.set)
                go_on.wait(10)
                return really(name, path)

            service._adapter_store.load = slow
            going = asyncio.create_task(load(client, "mine", folder))
            await arrived.wait()
            going.cancel()
            await asyncio.wait([going], timeout=0.3)
            await asyncio.sleep(0.3)  # until the server has seen it
            go_on.set()
            async with asyncio.timeout(10):
                while "mine" not in service.adapters:  # noqa: ASYNC110 - it is a dict
                    await asyncio.sleep(0.01)
            for name in ("twice", "mine"):
                assert await unload(client, name) == 200
            assert not service._adapter_store._loaded

    asyncio.run(run())


async def status(client, path, *, key=None, method="POST", data=None):
    """Of a reply, to somebody with that key or none."""
    headers = {"Authorization": f"Bearer {key}" if key else ""}
    async with client.request(method, path, headers=headers, data=data) as reply:
        return reply.status


@check
def administration_demands_its_key():
    """The user's key, where there is one, opens everything else but /health."""

    async def run():
        adapter = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
        for user in (None, "the-us3rs"):
            async with serving(api_key=user) as (_, client, _):
                for path in adapter:
                    found = [await status(client, path, key=key) for key in (None, user, "adm1n")]
                    assert found == [401, 401, 400], (path, user, found)
                for path in ("/v1/models", "/metrics", "/version"):
                    keys = (None, "any", user, "adm1n")
                    found = [await status(client, path, key=key, method="GET") for key in keys]
                    ours = 200 if user is None else 401
                    assert found == [ours, ours, 200, 200], (path, user, found)
                assert await status(client, "/health", method="GET") == 200

    asyncio.run(run())


@check
def bodies_that_nobody_can_use_are_refused():
    """Nested too deeply, half a character, a template: 400, while another request is answered."""
    chat = {"messages": [{"role": "user", "content": "hi"}]}
    loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
    deep, half = "[" * 100_000 + "]" * 100_000, '"\\ud83d"'
    bodies = (
        ("/v1/completions", deep),
        ("/v1/completions", '{"prompt": "x", "user": ' + "[" * 900 + "]" * 900 + "}"),
        ("/v1/completions", '{"prompt": ' + half + "}"),
        ("/v1/chat/completions", '{"messages": [{"role": "user", "content": ' + half + "}]}"),
        ("/tokenize", '{"prompt": ' + half + "}"),
        ("/v1/completions", '{"prompt": "x", "structured_outputs": {"regex": ' + half + "}}"),
        *(
            ("/v1/chat/completions", json.dumps(chat | {"chat_template_kwargs": {name: loops}}))
            for name in ("chat_template", "tokenizer_kwargs", "tokenize")
        ),
        ("/v1/completions", json.dumps({"prompt": ["x"] * 1000, "n": 200})),
        ("/v1/completions", json.dumps({"prompt": "x", "stop": [str(n) for n in range(1000)]})),
    )

    async def run():
        async with serving() as (_, client, _):
            answer, *found = await asyncio.gather(
                ask(client, "base"), *(status(client, path, data=body) for path, body in bodies)
            )
            assert len(answer) == 8
            assert found == [400] * len(bodies), found

    asyncio.run(run())


@check
def a_constraint_that_takes_for_ever_keeps_nobody_waiting():
    """Over HTTP: one that is right is answered meanwhile, and the other gets its 400."""
    bomb = {"choice": BOMB}

    async def run():
        async with serving() as (_, client, _):
            waiting = asyncio.create_task(ask(client, "base", structured_outputs=bomb))
            assert len(await ask(client, "base")) == 8
            assert not waiting.done()
            assert (await waiting)["code"] == 400

    asyncio.run(run())


if __name__ == "__main__":
    main()
