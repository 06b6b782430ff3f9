"""A GGUF file is read as transformers reads it: once for config and tokenizer, quickly, and without bars of its own."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoModelForCausalLM
from tritonrank.rankers.checkpoint_gguf import reading_gguf
from tritonrank.rankers.pretrained import load_config, load_tokenizer, load_whole

HIDDEN, INNER, HEADS, KEY_HEADS, LAYERS = 32, 48, 4, 2, 2
TOKENS = [chr(code) for code in range(ord("!"), ord("~") + 1)] + ["Ġ", "ab", "cd", "<s>", "</s>"]
ORDINARY, CONTROL = 1, 3


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    """A random Llama of two layers with a byte-level BPE of two merges."""
    path = tmp_path / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([CONTROL if token in ("<s>", "</s>") else ORDINARY for token in TOKENS])
    writer.add_token_merges(["a b", "c d"])
    writer.add_bos_token_id(TOKENS.index("<s>"))
    writer.add_eos_token_id(TOKENS.index("</s>"))
    random = np.random.default_rng(7)
    width = HIDDEN // HEADS * KEY_HEADS
    shapes = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        of_layer = {
            "attn_norm": (HIDDEN,),
            "ffn_norm": (HIDDEN,),
            "attn_q": (HIDDEN, HIDDEN),
            "attn_k": (width, HIDDEN),
        }
        of_layer |= {"attn_v": (width, HIDDEN), "attn_output": (HIDDEN, HIDDEN), "ffn_down": (HIDDEN, INNER)}
        of_layer |= {"ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN)}
        shapes |= {f"blk.{layer}.{name}": shape for name, shape in of_layer.items()}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_config_tokenizer_and_weights_are_those_that_transformers_reads(
    tiny_gguf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config, tokenizer = load_config(str(tiny_gguf)), load_tokenizer(str(tiny_gguf))
    model = load_whole(AutoModelForCausalLM, str(tiny_gguf))
    told = capfd.readouterr()
    assert "it/s" not in told.err + told.out, "no bars but our own"
    assert (config.num_hidden_layers, config.num_key_value_heads) == (LAYERS, KEY_HEADS)
    assert tokenizer.convert_ids_to_tokens(tokenizer("cab", add_special_tokens=False)["input_ids"]) == ["c", "ab"]
    reference = AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file=tiny_gguf.name)
    assert "it/s" in capfd.readouterr().err, "transformers by itself draws one"
    for name, weight in reference.state_dict().items():
        assert weight.equal(model.state_dict()[name]), name


def test_a_saved_tokenizer_does_not_carry_the_whole_file(tiny_gguf: Path, tmp_path: Path) -> None:
    load_tokenizer(str(tiny_gguf)).save_pretrained(tmp_path / "saved")
    assert {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in (tmp_path / "saved").iterdir()}
    assert not (tmp_path / "saved" / "tokenizer.model").exists()


def test_a_file_is_read_once_and_what_was_replaced_comes_back(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, opened = gguf.GGUFReader, []
    whole = before._build_fields

    def counted(self: Any, *arguments: Any) -> Any:
        opened.append(self)
        return whole(self, *arguments)

    monkeypatch.setattr(before, "_build_fields", counted)
    load_tokenizer(str(tiny_gguf))
    assert len(opened) == 1, "transformers reads it for the config and again for the tokenizer"
    with reading_gguf():
        assert gguf.GGUFReader is not before
    assert gguf.GGUFReader is before
