"""`molmoact train` and `molmoact merge` on the CPU, in processes of their own where it matters."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from molmoact_policy.checkpoint import official_shapes, scan
from molmoact_policy.model import MolmoActConfig, MolmoActForActionReasoning
from molmoact_policy.policy import Policy
from molmoact_training import merging, run_state, train
from molmoact_training.batches import Batch
from molmoact_training.mixture import Mixture
from safetensors.torch import load_file

from .training_run import arguments, finish, log_lines, start, write_checkpoint, write_dataset

TRAIN = "molmoact_training.train"
LAUNCHER = (
    *("accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m", TRAIN),
)
LORA = {"lora": {"rank": 4, "alpha": 8, "dropout": 0.0}, "ema": None}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture(scope="module")
def data(tmp_path_factory, checkpoint) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), checkpoint)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, checkpoint, data) -> Path:
    """A run that nothing disturbed."""
    run = tmp_path_factory.mktemp("run")
    finish(start(TRAIN, *arguments(checkpoint, data, run)))
    return run


def weights_of(run: Path, step: int = 6) -> dict[str, torch.Tensor]:
    stored = run_state.StoredState(run_state.checkpoint_of(run, step))
    return {name: stored.whole(name) for name in stored.names("")}


def assert_close(found: list[dict[str, float]], expected: list[dict[str, float]]) -> None:
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for own, other in zip(found, expected, strict=True):
        assert own == pytest.approx(other, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("shard", [[], ["--shard"]], ids=["replicated", "sharded"])
def test_two_processes_learn_what_one_learns(shard, tmp_path, checkpoint, data, finished) -> None:
    finish(start(*LAUNCHER, *arguments(checkpoint, data, tmp_path), *shard))
    assert_close(log_lines(tmp_path), log_lines(finished))
    for name, tensor in weights_of(tmp_path).items():
        assert torch.allclose(tensor, weights_of(finished)[name], atol=1e-5), name


def test_a_spread_run_goes_on_with_any_number_of_processes(tmp_path, checkpoint, data, finished) -> None:
    together = (*LAUNCHER, *arguments(checkpoint, data, tmp_path), "--shard")
    finish(start(*together))
    expected = weights_of(tmp_path)
    for command in (together, (TRAIN, *arguments(checkpoint, data, tmp_path))):
        shutil.rmtree(run_state.checkpoint_of(tmp_path, 6))
        finish(start(*command))
        assert_close(log_lines(tmp_path), log_lines(finished))
        for name, tensor in weights_of(tmp_path).items():
            assert torch.allclose(tensor, expected[name], atol=1e-5), name


def test_held_out_frames_are_shown_with_what_the_model_says(tmp_path, checkpoint, data) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    finish(start(*LAUNCHER, *arguments(checkpoint, data, tmp_path, validation__decoded=1, steps=3), "--shard"))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    [shown] = events.Images("held-out/0")
    assert (shown.step, shown.width, shown.height) == (3, 2 * 40, 30)
    text = events.Tensors("held-out/0/text_summary")[0].tensor_proto.string_val[0].decode()
    assert text.startswith(("pick up the red cube", "push the blue block"))
    assert "gradient_norm/language" in events.Tags()["scalars"]


def test_a_killed_run_goes_on_as_if_nothing_had_happened(tmp_path, checkpoint, data, finished) -> None:
    command = (TRAIN, *arguments(checkpoint, data, tmp_path))
    process = start(*command)
    for line in process.stdout:
        if '"step": 4' in line:  # printed before the checkpoint of step 4 is written
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert run_state.steps_kept(tmp_path)[-1] < 6
    finish(start(*command))
    assert log_lines(tmp_path) == log_lines(finished)
    expected = weights_of(finished)
    found = weights_of(tmp_path)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name]), name


def test_a_run_keeps_the_newest_checkpoints_and_every_nth(tmp_path) -> None:
    for step in range(2, 12, 2):
        run_state.begin(tmp_path, step)
        run_state.write_part(tmp_path, step, 0, {"model.a": torch.zeros(1)})
        run_state.finish(tmp_path, step, processes=1, keep=2, keep_every=4)
    assert run_state.steps_kept(tmp_path) == [4, 8, 10]


def test_a_checkpoint_that_was_not_finished_does_not_count(tmp_path) -> None:
    run_state.begin(tmp_path, 2)
    run_state.write_part(tmp_path, 2, 0, {"model.a": torch.zeros(1)})
    assert run_state.steps_kept(tmp_path) == []


def test_one_process_of_this_machine_is_this_one(monkeypatch, tmp_path, checkpoint, data) -> None:
    monkeypatch.setattr(train, "_launch", lambda *_: pytest.fail("launched a process that would launch itself again"))
    assert train.main([*arguments(checkpoint, data, tmp_path), "--processes", "1", "--dry-run"]) == train.GOOD


def test_no_process_at_all_is_refused(capsys, tmp_path, checkpoint, data) -> None:
    with pytest.raises(SystemExit):
        train.main([*arguments(checkpoint, data, tmp_path), "--processes", "0"])
    assert "--processes 0: expected at least 1" in capsys.readouterr().err


def test_another_run_does_not_go_on_in_its_place(capsys, checkpoint, data, finished) -> None:
    changed = arguments(checkpoint, data, finished, loss__z_loss=0.5, ema=None)
    assert train.main(changed) == train.USAGE
    error = capsys.readouterr().err
    assert "preset.loss.z_loss was 0.0, now 0.5" in error
    assert "preset.ema was 0.995, now None" in error


def test_two_trainings_do_not_work_in_one_run(capsys, checkpoint, data, finished) -> None:
    with run_state.locked(finished, hold=True):
        assert train.main(arguments(checkpoint, data, finished)) == train.USAGE
    assert "another training works in it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "named"),
    [({"optimizer__warmup": 3}, "optimizer.warmup"), ({"batch": 3}, "micro_batch 2 does not divide batch 3")],
)
def test_a_wrong_setting_is_named_before_anything_is_written(
    tmp_path, capsys, checkpoint, data, changes, named
) -> None:
    assert train.main(arguments(checkpoint, data, tmp_path / "run", **changes)) == train.USAGE
    assert named in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [("model_type", "llava", "model_type 'llava'"), ("image_patch_id", 3, "id of <im_patch>")],
)
def test_a_checkpoint_of_another_architecture_is_named(tmp_path, capsys, checkpoint, data, part, value, named) -> None:
    other = tmp_path / "other"
    shutil.copytree(checkpoint, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {part: value}))
    assert train.main(arguments(other, data, tmp_path / "run")) == train.USAGE
    assert named in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_stops_the_run_with_its_batch_saved(
    tmp_path, capsys, monkeypatch, checkpoint, data
) -> None:
    draw = Mixture.batch

    def broken(self: Mixture, step: int, first: int, count: int) -> Batch:
        batch = draw(self, step, first, count)
        if (step, first) == (1, 2):
            batch.images[1, 0, 0, 0] = torch.nan
        return batch

    monkeypatch.setattr(Mixture, "batch", broken)
    assert train.main(arguments(checkpoint, data, tmp_path)) == train.BAD
    error = capsys.readouterr().err
    assert "step 1: loss is nan; samples without a finite loss: posed: episode" in error
    saved = tmp_path / "failed-step-00000001"
    report = json.loads((saved / "process-00000.json").read_text())
    assert report["at_fault"] == [report["samples"][1][1]]
    assert torch.isnan(load_file(saved / "process-00000-portion-1.safetensors")["images"]).sum() == 1


def test_a_merged_run_is_a_checkpoint_that_acts(tmp_path, finished) -> None:
    out = tmp_path / "merged"
    assert merging.main([str(finished), "--out", str(out)]) == merging.GOOD
    policy = Policy.from_pretrained(out)
    stored = {name: tensor.shape for name, tensor in scan(out).items()}
    assert stored == official_shapes(policy.model)
    assert policy.statistics.key == "nano"
    assert policy.embodiment.rows == 8
    average = weights_of(finished)["average.lm_head.weight"]
    assert torch.equal(policy.model.lm_head.weight, average)


def test_merged_adapters_give_the_logits_that_were_trained(tmp_path, checkpoint, data) -> None:
    run, out = tmp_path / "run", tmp_path / "merged"
    changes = arguments(
        checkpoint, data, run, train_embeddings="none", optimizer__learning_rates__language=0.02, **LORA
    )
    assert train.main(changes) == train.GOOD
    assert merging.main([str(run), "--out", str(out)]) == merging.GOOD

    preset = train.read_preset("nano", changes[1 : changes.index("--checkpoint")])
    config = MolmoActForActionReasoning.from_pretrained(checkpoint).config
    trained = train.trained_model.load(checkpoint, config, preset).eval()
    weights = merging.trained_weights(run)
    assert {name for name, p in trained.named_parameters() if p.requires_grad} == weights.keys()
    assert all("lora_" in name for name in weights)
    trained.load_state_dict(weights, strict=False)
    ids = torch.tensor([[5, 7, 300, 9]])
    merged = MolmoActForActionReasoning.from_pretrained(out)
    untrained = MolmoActForActionReasoning.from_pretrained(checkpoint)
    with torch.inference_mode():
        expected = trained(input_ids=ids).logits
        assert torch.allclose(merged(input_ids=ids).logits, expected, atol=1e-5)
        assert not torch.allclose(untrained(input_ids=ids).logits, expected, atol=1e-2)


def test_the_adapter_of_a_run_is_one_that_peft_reads(tmp_path, checkpoint, data) -> None:
    from peft import PeftModel

    changes = arguments(checkpoint, data, tmp_path, train_embeddings="none", **LORA)
    assert train.main(changes) == train.GOOD
    base = MolmoActForActionReasoning.from_pretrained(checkpoint)
    read = PeftModel.from_pretrained(base, tmp_path / train.ADAPTER_DIRECTORY)
    parameters = dict(read.named_parameters())
    for name, tensor in merging.trained_weights(tmp_path).items():
        assert torch.equal(parameters[f"base_model.model.{name}"], tensor), name


@pytest.mark.parametrize(
    ("embeddings", "adapters", "whole"),
    [("none", 94.7e6, 0), ("all", 89.7e6, 2 * 152064 * 3584 + 128 * 3584 + 3584), ("head", 89.7e6, 152064 * 3584)],
)
def test_adapters_of_the_7b_model_have_the_size_of_the_releases(embeddings, adapters, whole) -> None:
    changes = {"lora": {"rank": 32, "alpha": 16, "dropout": 0.0}, "train_embeddings": embeddings}
    preset = train.Preset.from_file("nano", changes)
    with torch.device("meta"):
        model = train.trained_model.prepare(MolmoActForActionReasoning(MolmoActConfig()), preset)
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    assert sum(size for name, size in trained.items() if "lora_" in name) == pytest.approx(adapters, abs=0.05e6)
    assert sum(size for name, size in trained.items() if "lora_" not in name) == whole


@pytest.mark.parametrize(("choice", "known", "expected"), [("auto", True, set()), ("auto", False, "all")])
def test_embeddings_are_trained_when_depth_tokens_are_new(choice, known, expected) -> None:
    config = MolmoActConfig()
    config.norm_stats = {"somewhere": {}} if known else {}
    preset = train.Preset.from_file("nano", {**LORA, "train_embeddings": choice})
    found = train.trained_model.trained_whole(config, preset)
    if expected == "all":
        everything = train.Preset.from_file("nano", {**LORA, "train_embeddings": "all"})
        expected = train.trained_model.trained_whole(config, everything)
    assert found == expected
