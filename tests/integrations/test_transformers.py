"""Models of transformers and adapters of peft train with equal bits, and are written and read."""

import json

import numpy as np
import pyarrow as pa
import pytest
import ray.train
import torch
from typer.testing import CliRunner

from benchmarks.group import Group, verdict
from raytrain_plus import ElasticTrainer
from raytrain_plus.checkpoint import checkpointer
from raytrain_plus.checkpoint.export import export, write
from raytrain_plus.checkpoint.files import INDEX, Limits
from raytrain_plus.cli import app
from raytrain_plus.configure import ConfigError
from raytrain_plus.integrations.transformers import TransformersTask, save_pretrained
from raytrain_plus.task import TaskError
from tests.algorithms.side import FOLDER, forget, import_transformers
from tests.streams.test_plain import read_all

transformers = import_transformers()
peft = pytest.importorskip("peft")
tokenizers = pytest.importorskip("tokenizers")
forget()

WORDS = 40
GPT = {
    "model_type": "gpt2",
    "vocab_size": WORDS,
    "n_positions": 16,
    "n_embd": 8,
    "n_layer": 1,
    "n_head": 2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}
BERT = {
    "model_type": "bert",
    "vocab_size": WORDS,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 16,
    "pad_token_id": 0,
}
LORA = {"r": 2, "target_modules": ["c_attn"], "lora_dropout": 0.1}


def sentence(generator):
    return torch.from_numpy(generator.integers(1, WORDS, generator.integers(3, 9)))


def rows_of(step, rank, n=3):
    generator = np.random.default_rng([step, rank])
    return [
        {"input_ids": sentence(generator), "label": torch.tensor(int(generator.integers(2)))}
        for _ in range(n)
    ]


def part_of(task, *columns):
    def part(step, rank):
        rows = rows_of(step, rank)
        return task.collate([{name: row[name] for name in columns} for row in rows])

    return part


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model's folder, with a tokenizer that was trained on the spot."""
    folder = tmp_path_factory.mktemp("model") / "base"
    torch.manual_seed(5)
    config = {k: v for k, v in GPT.items() if k != "model_type"}
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).save_pretrained(folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="?"))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.WordLevelTrainer(special_tokens=["_", "?"], vocab_size=WORDS)
    words.train_from_iterator(["the cat sat on the mat", "a dog ran in the park"], trainer)
    words.save(str(folder / "tokenizer.json"))
    return folder


CASES = {
    "causal": ({"config": GPT}, ("input_ids",)),
    "masked": ({"kind": "masked-lm", "config": BERT, "mask_token": 3}, ("input_ids",)),
    "classes": (
        {"kind": "sequence-classification", "config": BERT, "labels": 2},
        ("input_ids", "label"),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_models_from_a_configuration_have_equal_bits_anywhere(name):
    settings, columns = CASES[name]
    task = TransformersTask(**settings, learning_rate=0.01)
    assert verdict(lambda: Group(lambda: task, part_of(task, *columns)), steps=1) == "equal"


@pytest.mark.parametrize("name", CASES)
def test_each_kind_of_model_predicts_rows(name):
    settings, columns = CASES[name]
    task = TransformersTask(**settings)
    torch.manual_seed(1)
    batch = part_of(task, *columns)(0, 0)
    found = task.predict(task.model().eval(), batch)
    if name == "classes":
        assert torch.equal(found["label"], found["logits"].argmax(1))
        return
    if name == "causal":
        assert torch.equal(found["tokens"], batch["attention_mask"].sum(1) - 1)
    assert found["loss"].shape == (3,)
    counted = found["tokens"] > 0  # the masks may be none
    assert (found["loss"][counted] > 0).all()


def test_a_causal_model_writes_after_a_prompt(base):
    task = TransformersTask(folder=str(base))
    model = task.model().eval()
    seen = []

    def choose(logits):
        seen.append(logits)
        return 3

    with torch.no_grad():
        text = task.generate(model, "the cat", 20, choose)  # longer than the model looks back
    assert text.startswith("the cat ")
    assert len(text.split()) == 22
    assert {tuple(one.shape) for one in seen} == {(WORDS,)}
    with pytest.raises(TaskError, match="masked-lm does not write text"):
        TransformersTask(**CASES["masked"][0]).generate(None, "x", 1, choose)


def adapted(base, **more):
    return TransformersTask(folder=str(base), adapter=LORA, learning_rate=0.05, **more)


def test_an_adapter_is_all_that_a_checkpoint_holds(base, tmp_path):
    task = adapted(base)
    part = part_of(task, "input_ids")
    assert verdict(lambda: Group(lambda: task, part), steps=1) == "equal"
    group = Group(lambda: task, part)
    group.run(3)
    checkpointer.save(tmp_path / "c", group.replica, "run")
    held = {name for name in group.replica.tensors() if name.startswith("model/")}
    assert held
    assert all("lora_" in name for name in held)
    size = sum(file.stat().st_size for file in (tmp_path / "c").glob("*.safetensors"))
    assert size < (base / "model.safetensors").stat().st_size / 2
    whole = TransformersTask(folder=str(base))
    assert len(Group(lambda: whole, part).replica.tensors()) > 10  # the control

    ids = torch.arange(1, 9)[None]
    trained = export(task, tmp_path / "c")
    expected = trained(input_ids=ids).logits
    save_pretrained(task, tmp_path / "c", tmp_path / "adapter")
    again = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
    )
    assert torch.equal(again.eval()(input_ids=ids).logits, expected)
    untrained = transformers.AutoModelForCausalLM.from_pretrained(base).eval()
    assert not torch.equal(untrained(input_ids=ids).logits, expected)
    save_pretrained(task, tmp_path / "c", tmp_path / "merged", merge=True)
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(merged(input_ids=ids).logits, expected)
    assert (tmp_path / "merged" / "tokenizer.json").is_file()
    further = TransformersTask(folder=str(base), adapter=str(tmp_path / "adapter"))
    assert torch.equal(export_of(further)(input_ids=ids).logits, expected)


def export_of(task):
    return task.model().eval()


def test_a_causal_model_is_written_and_opened_with_equal_outputs(tmp_path):
    task = TransformersTask(config=GPT, learning_rate=0.01)
    group = Group(lambda: task, part_of(task, "input_ids"))
    group.run(1)
    checkpointer.save(tmp_path / "c", group.replica, "run")
    save_pretrained(task, tmp_path / "c", tmp_path / "model")
    ids = torch.arange(1, 9)[None]
    opened = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert torch.equal(opened(input_ids=ids).logits, export(task, tmp_path / "c")(ids).logits)


def test_the_folder_of_a_checkpoint_in_several_files_is_opened_by_transformers(tmp_path):
    task = TransformersTask(config=GPT, learning_rate=0.01)
    group = Group(lambda: task, part_of(task, "input_ids"))
    group.run(1)
    checkpointer.save(tmp_path / "c", group.replica, "run", limits=Limits(model_bytes=2_000))
    assert (tmp_path / "c" / INDEX).is_file()
    group.replica.model.config.save_pretrained(tmp_path / "c")
    files = write(export(task, tmp_path / "c"), tmp_path / "e" / "model.safetensors", 2_000)
    assert len(files) > 3
    group.replica.model.config.save_pretrained(tmp_path / "e")
    task.save_pretrained(export(task, tmp_path / "c"), tmp_path / "p", max_shard_size=2_000)
    assert (tmp_path / "p" / INDEX).is_file()
    task.save_pretrained(export(task, tmp_path / "c"), tmp_path / "one")  # the control
    assert not (tmp_path / "one" / INDEX).exists()
    weights = group.replica.model.state_dict()
    for folder in ("c", "e", "p"):
        opened, told = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path / folder, output_loading_info=True
        )
        assert not told["missing_keys"]
        found = opened.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in weights.items())
    index = json.loads((tmp_path / "c" / INDEX).read_text())
    shard = next(iter(index["weight_map"].values()))
    (tmp_path / "c" / shard).unlink()  # the control: all of its files are read
    with pytest.raises(OSError, match=shard):
        transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "c")


def trainer(base, tmp_path, **more):
    """A local run on texts, which the folder's tokenizer reads."""
    texts = ["the cat sat", "a dog ran in the park", "the mat", "the dog sat on the cat"] * 8
    return ElasticTrainer(
        task=adapted(base, input="text"),
        data=pa.table({"text": texts}),
        evaluation_data={"dev": pa.table({"text": texts[:3]})},
        batch_size=8,
        logical_ranks=4,
        scaling_config=ray.train.ScalingConfig(num_workers=0),
        run_config=ray.train.RunConfig(name="run", storage_path=str(tmp_path / "runs")),
        **more,
    )


def test_a_run_goes_on_with_the_same_base_only_and_for_longer_if_asked(base, tmp_path):
    first = trainer(base, tmp_path).fit()
    assert first.metrics["dev/loss"] > 0
    changed = tmp_path / "changed"
    changed.mkdir()
    for file in base.iterdir():
        (changed / file.name).write_bytes(file.read_bytes())
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, "resid_pdrop": 0.2}))
    with pytest.raises(ConfigError, match="base model: was"):
        trainer(changed, tmp_path, resume=True)
    with pytest.raises(ConfigError, match=r"another length; total_steps: was 4, is 8.*--extend"):
        trainer(base, tmp_path, resume=True, duration="2ep")
    longer = trainer(base, tmp_path, resume=True, duration="2ep", extend=True).fit()
    assert longer.metrics["steps"] == 8
    assert longer.return_value["changes"] == ["total_steps: was 4, is 8"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "seq2seq", "config": GPT}, "kind is 'seq2seq', and must be one of causal-lm"),
        ({}, "either the folder of a model or the config"),
        ({"config": {"n_layer": 1}}, "no model_type"),
        ({"folder": "/nowhere"}, "/nowhere has no config.json"),
        ({"kind": "masked-lm", "config": BERT}, "needs mask_token"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, said):
    with pytest.raises(TaskError, match=said):
        TransformersTask(**settings)


LLAMA = {
    "model_type": "llama",
    "vocab_size": WORDS,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 16,
}
PACKED = {
    "input_ids": torch.tensor([5, 6, 7, 8, 9, 10, 11, 0]),
    "document_ids": torch.tensor([3, 3, 3, 4, 4, 4, 4, -1]),
    "document_offset": torch.tensor(0),
}


@pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt2", "llama"])
def test_documents_of_a_packed_row_count_as_rows_of_their_own(config):
    torch.manual_seed(3)
    task = TransformersTask(config=config, separate_documents=True)
    plain = TransformersTask(config=config)
    model = task.model().eval()
    batch = task.collate([PACKED, PACKED])
    with torch.no_grad():
        logits = task.forward(model, batch)
        read_on = plain.forward(model, plain.collate([PACKED, PACKED]))
        for start, end in ((0, 3), (3, 7)):
            alone = plain.collate([{"input_ids": PACKED["input_ids"][start:end]}])
            expected = plain.forward(model, alone)
            torch.testing.assert_close(logits[1:, start:end], expected)
            assert (start == 0) == torch.allclose(read_on[1:, start:end], expected, atol=1e-6)
    _, weights = task.loss(logits, batch)
    assert weights[0].tolist() == [True, True, False, True, True, True, False]
    _, weights = plain.loss(read_on, plain.collate([PACKED, PACKED]))
    assert weights[0].tolist() == [True, True, True, True, True, True, False]


def test_rows_that_name_no_documents_cannot_be_separated():
    task = TransformersTask(config=GPT, separate_documents=True)
    with pytest.raises(TaskError, match="needs the column 'document_ids'"):
        task.collate([{"input_ids": torch.tensor([1, 2])}])
    with pytest.raises(TaskError, match="is for a causal language model"):
        TransformersTask(config=BERT, kind="masked-lm", mask_token=3, separate_documents=True)


def test_chats_become_tokens_through_the_model_s_template(base, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "chat_template": "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}",
    }
    folder = tmp_path / "chat"
    folder.mkdir()
    (folder / "tokenizer.json").write_text((base / "tokenizer.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    chats = [
        [{"role": "the", "content": "cat"}, {"role": "dog", "content": "sat"}],
        [{"role": "a", "content": "mat", "name": "x"}],
    ]
    lines = [json.dumps({"messages": chat}) for chat in chats]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    arguments = ["data", "tokenize", str(tmp_path / "a.jsonl"), str(tmp_path / "s"), "--chat"]
    arguments += ["--column", "messages", "--tokenizer", str(folder), "--processes", "1"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.stderr
    words = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = [words.decode(list(row)) for row in read_all(tmp_path / "s")["input_ids"]]
    assert found == ["the cat dog sat", "a mat"]
    arguments[arguments.index(str(folder))] = str(base)
    plain = CliRunner().invoke(app, [*arguments[:3], str(tmp_path / "t"), *arguments[4:]])
    assert plain.exit_code == 2
    assert "has no chat template" in plain.stderr
