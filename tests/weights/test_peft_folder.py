from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from tests.support.tiny_adapters import BASE, tensors, write_adapter, write_tensors

from enginehouse.core.errors import AdapterError
from enginehouse.weights.peft_folder import checkpoint_shapes, read_peft_folder

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


def refusal(folder: Path, *, max_rank: int | None = None, base=BASE) -> str:
    """What an adapter is refused with; the whole message."""
    with pytest.raises(AdapterError) as caught:
        read_peft_folder(folder, base=base, max_rank=max_rank)
    assert str(folder) in caught.value.message
    assert caught.value.fix
    return str(caught.value)


class TestRight:
    """What an engine can apply is read."""

    @pytest.mark.parametrize("bfloat16", [False, True])
    def test_what_is_in_it(self, tmp_path, bfloat16):
        """Base, rank, alpha, modules by the base's names, and that it does something."""
        found = read_peft_folder(
            write_adapter(tmp_path / "a", bfloat16=bfloat16), base=BASE, max_rank=8
        )
        assert (found.base_model, found.rank, found.alpha) == ("org/tiny", 4, 8.0)
        assert found.modules == tuple(
            f"model.layers.{layer}.self_attn.{name}"
            for layer in (0, 1)
            for name in ("q_proj", "v_proj")
        )
        assert found.size == (tmp_path / "a" / "adapter_model.safetensors").stat().st_size
        assert not found.is_zero

    @pytest.mark.parametrize("part", ["lora_A", "lora_B"])
    @pytest.mark.parametrize("bfloat16", [False, True])
    def test_one_that_changes_nothing(self, tmp_path, part, bfloat16):
        """All B zero, as before the first step, or all A; a negative zero is zero, too."""

        def zero(made):
            for name in made:
                if part in name:
                    made[name] = -np.zeros_like(made[name])

        folder = write_adapter(tmp_path / "a", change=zero, bfloat16=bfloat16)
        assert read_peft_folder(folder).is_zero

    def test_an_alpha_of_zero_changes_nothing(self, tmp_path):
        """The scale is alpha over rank."""
        assert read_peft_folder(write_adapter(tmp_path / "a", lora_alpha=0)).is_zero

    def test_one_module_that_learned_is_enough(self, tmp_path):
        """An adapter of which only one B is not zero does something."""

        def zero(made):
            for name in made:
                if "lora_B" in name and not name.startswith(Q0):
                    made[name] = np.zeros_like(made[name])

        assert not read_peft_folder(write_adapter(tmp_path / "a", change=zero)).is_zero

    def test_ranks_by_pattern(self, tmp_path):
        """A module has the rank of the pattern that its name ends with."""

        def shrink(made):
            made[f"{Q0}.lora_A.weight"] = made[f"{Q0}.lora_A.weight"][:2]
            made[f"{Q0}.lora_B.weight"] = np.ascontiguousarray(made[f"{Q0}.lora_B.weight"][:, :2])

        folder = write_adapter(
            tmp_path / "a", change=shrink, rank_pattern={r"layers\.0\.self_attn\.q_proj": 2}
        )
        assert read_peft_folder(folder, base=BASE).rank == 4

    def test_layers_that_were_left_out_on_purpose(self, tmp_path):
        """Only the layers that the configuration names are demanded; so are exclusions."""

        def first_only(made):
            for name in [name for name in made if ".layers.1." in name]:
                del made[name]

        chosen = write_adapter(tmp_path / "a", change=first_only, layers_to_transform=[0])
        spared = write_adapter(
            tmp_path / "b", change=first_only, exclude_modules=r"model\.layers\.1\..*"
        )
        for folder in (chosen, spared):
            assert len(read_peft_folder(folder, base=BASE).modules) == 2

    def test_targets_by_a_regular_expression(self, tmp_path):
        """The whole name of the module is matched, as PEFT does."""
        folder = write_adapter(tmp_path / "a", target_modules=r".*\.(q|v)_proj")
        assert len(read_peft_folder(folder, base=BASE).modules) == 4

    def test_an_embedding(self, tmp_path):
        """Its A and B have no .weight, and its weight is stored the other way round."""

        def embedding(made):
            name = "base_model.model.model.embed_tokens.lora_embedding"
            made[f"{name}_A"] = np.ones((4, 32), "<f4")
            made[f"{name}_B"] = np.ones((8, 4), "<f4")

        targets = ["q_proj", "v_proj", "embed_tokens"]
        folder = write_adapter(tmp_path / "a", change=embedding, target_modules=targets)
        assert "model.embed_tokens" in read_peft_folder(folder, base=BASE).modules

    def test_a_tied_head(self, tmp_path):
        """A checkpoint with tied embeddings has no lm_head of its own, and the model has one."""

        def head(made):
            made["base_model.model.lm_head.lora_A.weight"] = np.ones((4, 8), "<f4")
            made["base_model.model.lm_head.lora_B.weight"] = np.ones((32, 4), "<f4")

        targets = ["q_proj", "v_proj", "lm_head"]
        folder = write_adapter(tmp_path / "a", change=head, target_modules=targets)
        assert "lm_head" in read_peft_folder(folder, base=BASE).modules

    @pytest.mark.parametrize(
        "quantized",
        [
            {".qweight": (1, 8), ".scales": (1, 8)},
            {".weight": (32, 1), ".weight.absmax": (1,)},
            {".weight_packed": (8, 1)},
        ],
    )
    def test_a_quantized_base(self, tmp_path, quantized):
        """The shapes of packed weights say nothing; that the module is there does."""
        base = dict(BASE)
        for layer in (0, 1):
            for name in ("q_proj", "v_proj"):
                module = f"model.layers.{layer}.self_attn.{name}"
                del base[f"{module}.weight"]
                base |= {f"{module}{end}": shape for end, shape in quantized.items()}
        assert read_peft_folder(write_adapter(tmp_path / "a"), base=base).rank == 4

    def test_weights_stored_the_other_way_round(self, tmp_path):
        """As GPT-2's are, whose adapters say fan_in_fan_out."""
        base = {name: shape[::-1] for name, shape in BASE.items()}
        folder = write_adapter(tmp_path / "a", fan_in_fan_out=True)
        assert read_peft_folder(folder, base=base).rank == 4
        assert "does not fit" in refusal(write_adapter(tmp_path / "b"), base=base)


class TestNoAdapter:
    """What is none is refused by name."""

    def test_no_folder_and_an_empty_one(self, tmp_path):
        """The message tells the two apart."""
        assert "there is no such folder" in refusal(tmp_path / "nowhere")
        (tmp_path / "empty").mkdir()
        assert "there is no adapter_config.json" in refusal(tmp_path / "empty")

    def test_a_file(self, tmp_path):
        """A file where a folder should be."""
        (tmp_path / "a").write_text("x")
        assert "cannot be read" in refusal(tmp_path / "a")

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{", "cannot be read"),
            ("", "cannot be read"),
            ("\udcff", "cannot be read"),
            ("[]", "holds no LoRA"),
            ("{}", "holds no LoRA"),
            ('{"peft_type": "PREFIX_TUNING"}', "PREFIX_TUNING"),
            ('{"peft_type": "LORA", "r": 4}', "lora_alpha"),
            ('{"peft_type": "LORA", "lora_alpha": 8}', "`r`"),
            ('{"peft_type": "LORA", "r": "8", "lora_alpha": 8}', "$.r"),
            ('{"peft_type": "LORA", "r": 0, "lora_alpha": 8}', "$.r"),
            ('{"peft_type": "LORA", "r": 4, "lora_alpha": NaN}', "$.lora_alpha"),
            ('{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": [1]}', "rank_pattern"),
            ('{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": "("}', "position"),
        ],
    )
    def test_a_wrong_configuration(self, tmp_path, text, said):
        """Broken JSON, another method, and fields that are none of PEFT's types."""
        folder = write_adapter(tmp_path / "a")
        (folder / "adapter_config.json").write_text(text, errors="surrogateescape")
        assert said in refusal(folder)

    def test_a_pickle(self, tmp_path):
        """Loading one may run code, so it is refused whatever is in it, and never opened."""
        folder = write_adapter(tmp_path / "a")
        (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
        message = refusal(folder)
        assert "adapter_model.bin, a pickle" in message
        assert "safe_serialization=True" in message

    def test_no_tensors_file(self, tmp_path):
        """The configuration alone is no adapter."""
        folder = write_adapter(tmp_path / "a")
        (folder / "adapter_model.safetensors").unlink()
        assert "has no adapter_model.safetensors" in refusal(folder)

    @pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.99])
    def test_half_written(self, tmp_path, share):
        """Cut off in the head or in the values."""
        path = write_adapter(tmp_path / "a") / "adapter_model.safetensors"
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        assert "damaged or incomplete" in refusal(tmp_path / "a")

    def test_garbage(self, tmp_path):
        """A file that only has the name."""
        path = write_adapter(tmp_path / "a") / "adapter_model.safetensors"
        path.write_bytes(b"\xff" * 4096)
        assert "damaged" in refusal(tmp_path / "a")

    def test_no_tensors_in_it(self, tmp_path):
        """A whole file with nothing in it."""
        assert "holds no tensors" in refusal(write_adapter(tmp_path / "a", change=dict.clear))

    @pytest.mark.parametrize("shape", [(), (8,), (0, 8)])
    def test_tensors_that_are_no_matrices(self, tmp_path, shape):
        """A scalar, a row, and nothing at all."""

        def flatten(made):
            made[f"{Q0}.lora_A.weight"] = np.ones(shape, "<f4")

        assert "has the shape" in refusal(write_adapter(tmp_path / "a", change=flatten))

    def test_integers(self, tmp_path):
        """Values of a type that is no adapter's."""
        folder = write_adapter(tmp_path / "a")
        entry = ("I8", (4, 8), bytes(32))
        write_tensors(folder / "adapter_model.safetensors", {f"{Q0}.lora_A.weight": entry})
        assert "type I8" in refusal(folder)


class TestNotPlain:
    """What engines would leave out or apply wrongly."""

    @pytest.mark.parametrize(
        "config",
        [
            {"use_dora": True},
            {"modules_to_save": ["lm_head"]},
            {"bias": "all"},
            {"lora_bias": True},
            {"layer_replication": [[0, 2]]},
            {"alora_invocation_tokens": [1, 2]},
        ],
    )
    def test_features(self, tmp_path, config):
        """Each is named."""
        assert next(iter(config)) in refusal(write_adapter(tmp_path / "a", **config))

    @pytest.mark.parametrize("init", ["pissa", "pissa_niter_16", "olora", "loftq"])
    def test_an_initialisation_that_changes_the_base(self, tmp_path, init):
        """The served base is not the one that it was trained on."""
        message = refusal(write_adapter(tmp_path / "a", init_lora_weights=init))
        assert "path_initial_model_for_weight_conversion" in message

    def test_an_initialisation_that_does_not(self, tmp_path):
        """Only the adapter's own start."""
        assert (
            read_peft_folder(write_adapter(tmp_path / "a", init_lora_weights="gaussian")).rank == 4
        )

    def test_a_tensor_besides(self, tmp_path):
        """A whole layer that was saved with it."""

        def besides(made):
            made["base_model.model.lm_head.weight"] = np.ones((32, 8), "<f4")

        message = refusal(write_adapter(tmp_path / "a", change=besides))
        assert "base_model.model.lm_head.weight" in message


class TestIncomplete:
    """What is missing is named."""

    @pytest.mark.parametrize("part", ["A", "B"])
    def test_half_of_a_pair(self, tmp_path, part):
        """One tensor is missing."""
        folder = write_adapter(
            tmp_path / "a", change=lambda made: made.pop(f"{Q0}.lora_{part}.weight")
        )
        assert f"layers.0.self_attn.q_proj has no lora_{part}" in refusal(folder)

    def test_a_layer(self, tmp_path):
        """Both tensors of a module that the configuration names."""

        def drop(made):
            for name in [name for name in made if ".layers.1." in name]:
                del made[name]

        message = refusal(write_adapter(tmp_path / "a", change=drop))
        assert "nothing for model.layers.1.self_attn.q_proj" in message


class TestRank:
    """Ranks agree with one another, with the configuration and with the server."""

    def test_above_the_server_s(self, tmp_path):
        """512 where 16 is the most; the flag that would do is named."""
        message = refusal(write_adapter(tmp_path / "a", rank=512), max_rank=16)
        assert "has rank 512" in message
        assert "--max-lora-rank 512" in message

    def test_what_would_do(self, tmp_path):
        """The flag and the rank; which values it takes is up to the engine, which checks them."""
        message = refusal(write_adapter(tmp_path / "a", rank=33), max_rank=16)
        assert "--max-lora-rank 33" in message

    @pytest.mark.parametrize("declared", [2, 8])
    def test_another_adapter_s_configuration(self, tmp_path, declared):
        """Its scale would be wrong, whether the rank is above or below."""
        message = refusal(write_adapter(tmp_path / "a", r=declared))
        assert f"its adapter_config.json says {declared}" in message

    def test_a_and_b_differ(self, tmp_path):
        """Their product does not exist."""

        def shorten(made):
            made[f"{Q0}.lora_A.weight"] = made[f"{Q0}.lora_A.weight"][:2]

        assert "lora_A has rank 2 and lora_B 4" in refusal(
            write_adapter(tmp_path / "a", change=shorten)
        )


class TestAnotherBase:
    """An adapter for another model is refused with both."""

    def test_another_width(self, tmp_path):
        """The first module that does not fit, and both shapes."""
        base = {name: tuple(2 * size for size in shape) for name, shape in BASE.items()}
        message = refusal(write_adapter(tmp_path / "a"), base=base)
        assert "q_proj is 8 by 8 there and 16 by 16 here" in message
        assert "it was made for org/tiny" in message

    def test_more_layers(self, tmp_path):
        """A layer that the base does not have."""
        base = {name: shape for name, shape in BASE.items() if ".layers.1." not in name}
        message = refusal(write_adapter(tmp_path / "a"), base=base)
        assert "model.layers.1.self_attn.q_proj, which the base model does not have" in message

    def test_another_prefix(self, tmp_path):
        """Engines map some of these: they and the proof decide, as long as it is all of them."""
        folder = write_adapter(tmp_path / "a", prefix="base_model.model.language_model.")
        assert read_peft_folder(folder, base=BASE).rank == 4

    def test_another_prefix_in_part(self, tmp_path):
        """What engines would load in part."""

        def move(made):
            for part in ("A", "B"):
                name = f"{Q0}.lora_{part}.weight"
                made[name.replace("model.model.", "model.other.model.")] = made.pop(name)

        folder = write_adapter(tmp_path / "a", change=move)
        assert "prefix" in refusal(folder)

    def test_other_modules(self, tmp_path):
        """One projection in the place of several is another model's, whatever the prefix."""

        def rename(made):
            for name in list(made):
                made[name.replace("q_proj", "qkv_proj")] = made.pop(name)

        for number, prefix in enumerate(("base_model.model.", "base_model.model.other.")):
            folder = write_adapter(
                tmp_path / str(number),
                change=rename,
                prefix=prefix,
                target_modules=["qkv_proj", "v_proj"],
            )
            assert "qkv_proj, which the base model does not have" in refusal(folder)

    def test_no_base_to_compare_with(self, tmp_path):
        """Then the folder alone is judged."""
        folder = write_adapter(tmp_path / "a", prefix="base_model.model.language_model.")
        assert read_peft_folder(folder).rank == 4


class TestNotFinite:
    """An adapter whose training diverged."""

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("bfloat16", [False, True])
    def test_one_value_is_enough(self, tmp_path, value, bfloat16):
        """The tensor is named."""

        def spoil(made):
            made[f"{Q0}.lora_B.weight"][1, 1] = value

        message = refusal(write_adapter(tmp_path / "a", change=spoil, bfloat16=bfloat16))
        assert f"1 of the values of {Q0}.lora_B.weight" in message

    def test_the_largest_values_are_finite(self, tmp_path):
        """The exponent one below that of infinity."""

        def enlarge(made):
            made[f"{Q0}.lora_B.weight"][:] = np.float32(3.3e38)

        folder = write_adapter(tmp_path / "a", change=enlarge, bfloat16=True)
        assert not read_peft_folder(folder).is_zero


class TestCheckpointShapes:
    """A base's shapes come from the heads of its files."""

    def test_over_several_files(self, tmp_path):
        """As large checkpoints are stored; a folder without any has none."""
        assert checkpoint_shapes(tmp_path) == {}
        for number in (1, 2):
            made = {f"weight{number}": ("F32", (1,), bytes(4))}
            write_tensors(tmp_path / f"model-{number}.safetensors", made)
        assert checkpoint_shapes(tmp_path) == {"weight1": (1,), "weight2": (1,)}

    def test_a_broken_file(self, tmp_path):
        """Named."""
        (tmp_path / "model.safetensors").write_bytes(b"x")
        with pytest.raises(AdapterError, match=r"model\.safetensors"):
            checkpoint_shapes(tmp_path)


def test_the_adapters_that_these_tests_write_differ():
    """By their seeds, so that one in another's place is seen."""
    assert not np.allclose(tensors(seed=1)[f"{Q0}.lora_A.weight"], tensors()[f"{Q0}.lora_A.weight"])


def test_a_configuration_that_is_nested_too_deeply_is_refused(tmp_path: Path):
    """One adapter less, and nothing else is wrong."""
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_config.json").write_text('{"r": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(AdapterError):
        read_peft_folder(folder)
