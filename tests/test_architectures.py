"""Which ranker it is, is asked of one object per architecture: signs of a branch elsewhere are counted here."""

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from tritonrank.rankers import architectures
from tritonrank.recipe import ModelSettings
from tritonrank_runtime.architectures import ARCHITECTURES, DEFAULT
from tritonrank_runtime.engine import MODEL_FILE

ROOT = Path(__file__).parents[1]
OF_ONE_ARCHITECTURE = {
    "build/tritonrank_runtime/joint.py",
    "build/tritonrank_runtime/shared_context.py",
    "build/tritonrank_runtime/decoder.py",
    "build/tritonrank_runtime/decoder_network.py",
    "build/tritonrank_runtime/torch_passes.py",  # both as PyTorch runs them
    "build/tritonrank_runtime/network.py",
    "build/tritonrank/rankers/joint.py",
    "build/tritonrank/rankers/shared_context.py",
    "build/tritonrank/rankers/decoder.py",
    "build/tritonrank/rankers/decoder_modeling.py",
    "build/tritonrank/rankers/decoder_source.py",
    "build/tritonrank/rankers/decoder_weights.py",
    "build/tritonrank/rankers/split.py",  # packs both for training
    "build/tritonrank/rankers/modeling.py",
    "build/tritonrank/graphs/batched.py",  # the graph of ``score_batch``
    "build/tritonrank/gpu_check/network_runs.py",
    "build/tritonrank/gpu_check/decoder.py",
    "build/tritonrank/gpu_check/decoder_ways.py",
    # The engines' own formats of weights and rows: each computes both architectures, from their tensors.
    "build/tritonrank/graphs/native_weights.py",
    "build/tritonrank_runtime/native/graphs.py",
    "build/tritonrank_runtime/native/weights.py",
    "build/tritonrank_runtime/packed/operations.py",
    "build/tritonrank_runtime/packed/decoder_network.py",
    "build/tritonrank_runtime/packed/network.py",
    "build/tritonrank_runtime/packed/packing.py",
    "build/tritonrank_runtime/packed/requests.py",
    "build/tritonrank_runtime/packed/pairs.py",
    "build/tritonrank_runtime/packed/rows.py",
    # Checkpoints of many families that rank pairs, served as they are.
    "build/tritonrank/graphs/pair_graph.py",
    "build/tritonrank/rankers/pair_ranker.py",
    "build/tritonrank/rankers/pair_text.py",
    "build/tritonrank/rankers/golden_rows.py",
    "build/tritonrank/rankers/golden_tokens.py",
}
KNOWN = {
    # What a checkpoint is may be asked before anything of it is loaded: messages name the one that it should be.
    "build/tritonrank/rankers/checkpoint_check.py": 6,
    # A schema, a default, and that of a ready checkpoint; the test below compares them with the list.
    "build/tritonrank/recipe/training.py": 6,
    # Whether a folder holds a language model is told before anything of it is loaded.
    "build/tritonrank/pipeline/up.py": 1,
    # A setting says where it is declared which ranker uses it.
    "build/tritonrank/recipe/applicability.py": 3,
    "build/tritonrank/recipe/serving.py": 1,
    # Whose images are read, and who computes in ranks, is refused before anything is opened.
    "build/tritonrank/recipe/whole.py": 3,
    # What a padded plan computes follows from the tensors that it is padded to.
    "build/tritonrank/tensorrt/padding_cost.py": 5,
    # The tensor of a Hugging Face tokenizer for plain texts, no ranker's.
    "build/tritonrank/report/baselines.py": 1,
    # Those of the towers' encoder, which ranks nothing.
    "build/tritonrank/retrieval/embed.py": 2,
    "build/tritonrank/retrieval/text_tower.py": 9,
    "build/tritonrank/retrieval/tower_int8.py": 2,
    "gateway/tritonrank_recommend/catalogue/encoder.py": 2,
}
"""Signs in other files, each with its reason."""
CLASSES = {
    "SharedContextRanker", "SharedContextConfig", "SharedContextNetwork", "SplitEngine", "BatchedEngine",
    "DecoderRanker", "DecoderConfig", "DecoderNetwork", "Decoder", "DecoderArchitecture",
    "JointEngine", "JointPass", "Joint", "SharedContext", "JointArchitecture", "SharedContextArchitecture",
}  # fmt: skip
CONSTANTS = {
    "JOINT", "SHARED_CONTEXT", "CONTEXT_FILE", "CANDIDATES_FILE", "INPUT_NAMES", "PREFIX_FILE",
    "BRANCHES_FILE",
}  # fmt: skip
TEXTS = {
    *(one.name for one in ARCHITECTURES),
    *(tensor.name for one in ARCHITECTURES for tensor in one.inputs),
    *(name for one in ARCHITECTURES for name in one.graph_files if name != MODEL_FILE),
    "token_ids", "first_tokens", "last_tokens",
}  # fmt: skip
"""Names of architectures, tensors and files by which one could be told from another."""
ASKED = {"architecture", "model_type"}


def signs(source: str) -> Iterator[str]:
    """What in a source file tells one architecture from another, with its line."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if text in TEXTS:
                yield f"{node.lineno}: {text!r}"
            case ast.Name(id=name) if name in CONSTANTS:
                yield f"{node.lineno}: {name}"
            case ast.Call(func=ast.Name(id="isinstance"), args=[_, kinds]):
                found = {one.id for one in ast.walk(kinds) if isinstance(one, ast.Name)} & CLASSES
                yield from (f"{node.lineno}: isinstance of {name}" for name in found)
            case ast.Compare(left=ast.Attribute(attr=name)) if name in ASKED:
                against = {type(one) for one in node.comparators}
                if against <= {ast.Name, ast.Attribute}:  # a text is a sign already, or another family's name
                    yield f"{node.lineno}: {name} compared"


def sources() -> dict[str, Path]:
    folders = ("build/tritonrank", "build/tritonrank_runtime", "model_repository", "gateway", "clients")
    paths = (path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")))
    return {path.relative_to(ROOT).as_posix(): path for path in paths}


def test_no_file_but_the_architectures_own_tells_them_apart() -> None:
    found = {
        place: [*signs(path.read_text(encoding="utf-8"))]
        for place, path in sources().items()
        if place not in OF_ONE_ARCHITECTURE
    }
    too_many = {place: told for place, told in found.items() if len(told) > KNOWN.get(place, 0)}
    assert not too_many, "ask rankers/architectures.py or tritonrank_runtime/architectures.py instead"
    assert {place for place, told in found.items() if told} == set(KNOWN), "fewer are known now: take them off the list"


def test_all_files_of_an_architecture_exist() -> None:
    assert set(sources()) >= OF_ONE_ARCHITECTURE | set(KNOWN)


@pytest.mark.parametrize(
    "planted",
    [
        "if isinstance(model, SharedContextRanker): pass",
        "if isinstance(engine, JointEngine | BatchedEngine): pass",
        "if rules.architecture == SHARED_CONTEXT: pass",
        "if recipe.model.architecture == 'joint': pass",
        "if recipe.model.architecture != other.name: pass",
        "if config.model_type == 'shared-context': pass",
        "if 'context_ids' in inputs: pass",
        "if inputs[0].name == 'context_ids': pass",
        "if (folder / 'context.onnx').is_file(): pass",
        "if (folder / CONTEXT_FILE).is_file(): pass",
        "mask = batch['segments'] if 'segments' in batch else batch['attention_mask']",
    ],
)
def test_a_branch_by_any_sign_is_found(planted: str) -> None:
    assert [*signs(planted)]


def test_both_sides_and_the_recipe_have_the_same_architectures() -> None:
    assert [one.served.name for one in architectures.ARCHITECTURES] == [one.name for one in ARCHITECTURES]
    allowed = get_args(ModelSettings.model_fields["architecture"].annotation)
    assert set(allowed) == {one.name for one in ARCHITECTURES}
    assert ModelSettings(checkpoint="any/cross-encoder").architecture == DEFAULT.name


def test_no_two_architectures_share_a_tensor_or_a_parameter() -> None:
    tensors = Counter(tensor.name for one in ARCHITECTURES for tensor in one.inputs)
    lengths = Counter(tensor.longest for one in ARCHITECTURES for tensor in one.inputs if tensor.longest)
    assert {*tensors.values(), *lengths.values()} == {1}
