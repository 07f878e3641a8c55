"""What is said about a checkpoint without reading its weights."""

import json
from pathlib import Path

import pytest
from molmoact_policy import inspection

DATA = Path(__file__).parent / "data"
NANO = Path(__file__).parents[1] / "checkpoints" / "nano"


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """nano, to be damaged."""
    for file in NANO.rglob("*"):
        target = tmp_path / file.relative_to(NANO)
        target.mkdir() if file.is_dir() else target.write_bytes(file.read_bytes())
    return tmp_path


def inspect(directory: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = inspection.main(["inspect", str(directory)])
    return code, *capsys.readouterr()


def test_good_checkpoint_is_described_and_ends_with_zero(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = inspect(NANO, capsys)
    assert (code, err) == (0, "")
    assert "family D" in out
    assert "actions     nano: 7 dimensions (1 arm), 8 rows 0.1 s apart in the base frame (confirmed)" in out
    assert "decoder for 128 codes" in out
    for dtype in ("float32", "bfloat16", "float16"):
        assert f"{dtype} 0.0" in out


@pytest.mark.parametrize(("name", "family"), [("tiny_d", "family D"), ("tiny_o", "family O")])
def test_bare_weights_are_described_with_what_they_lack(name: str, family: str, capsys) -> None:
    code, out, err = inspect(DATA / name, capsys)
    assert code == 1
    assert family in out
    assert "tensors of float32 in 1 file" in out
    assert "problem: checkpoint" in err and "preprocessor_config.json is missing" in err


def test_every_problem_is_named_at_once(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = (directory / "model.safetensors").read_bytes()
    (directory / "model.safetensors").write_bytes(content[:-1])
    (directory / "tokenizer.json").unlink()
    config = json.loads((directory / "config.json").read_text())
    config["norm_stats"]["nano"]["action"]["q01"].append(0.0)
    (directory / "config.json").write_text(json.dumps(config))
    code, _, err = inspect(directory, capsys)
    assert code == 1
    for problem in ("not a complete safetensors file", "tokenizer.json", "norm_stats['nano']['action']"):
        assert problem in err


def test_settings_of_another_language_model_are_one_problem(directory: Path, capsys) -> None:
    config = json.loads((directory / "config.json").read_text())
    config["llm_config"]["norm_after"] = True
    (directory / "config.json").write_text(json.dumps(config))
    code, out, err = inspect(directory, capsys)
    assert code == 1
    assert err.count("llm_config is neither Qwen2") == 1
    assert "actions" in out


def test_directory_without_a_configuration_is_no_checkpoint(tmp_path: Path, capsys) -> None:
    code, out, err = inspect(tmp_path, capsys)
    assert (code, out) == (1, "")
    assert "config.json is missing" in err
