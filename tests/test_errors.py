"""Errors name fields in Python and options on the command line; each has one exit status."""

import pytest

from genaffect_jax import errors
from genaffect_jax.config import FaceEncoderConfig, MMDiTConfig, SamplingConfig, TrainConfig
from genaffect_jax.errors import EXIT_STATUS, ConfigError, GenAffectError, WeightsError, listed, require


@pytest.mark.parametrize(
    ("make", "in_python", "on_command_line"),
    [
        (lambda: SamplingConfig(chunk=0), "chunk=0: must be at least 1", "--chunk 0: must be at least 1"),
        (
            lambda: TrainConfig(steps=0),
            "train.steps=0: must be at least 1",
            "--train.steps 0: must be at least 1",
        ),
        (
            lambda: MMDiTConfig(num_layers=0),
            "mmdit.num_layers=0: must be at least 1",
            "--mmdit.num_layers 0: must be at least 1",
        ),
        (
            lambda: FaceEncoderConfig(widths=()),
            "encoder.widths=(): must not be empty",
            "--encoder.widths (): must not be empty",
        ),
    ],
)
def test_a_setting_is_a_field_in_python_and_an_option_on_the_command_line(make, in_python, on_command_line):
    with pytest.raises(ConfigError) as error:
        make()
    assert str(error.value) == in_python
    assert error.value.on_command_line == on_command_line


def test_an_error_without_a_field_is_the_same_everywhere():
    error = GenAffectError("the disk is full")
    assert str(error) == error.on_command_line == "the disk is full"


def test_a_setting_that_is_missing_has_no_value_on_the_command_line():
    with pytest.raises(ConfigError, match=r"data\.root=None: needs a folder") as error:
        require(False, "data.root", None, "needs a folder")
    assert error.value.on_command_line == "--data.root: needs a folder"


def test_every_error_has_one_exit_status_and_is_an_error_of_this_package():
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    kinds = {kind for kind in kinds if not issubclass(kind, Warning)}  # which end nothing
    assert set(EXIT_STATUS) == kinds - {GenAffectError}
    assert all(issubclass(kind, GenAffectError) and status != 0 for kind, status in EXIT_STATUS.items())


def test_a_message_has_a_length_whatever_a_file_or_library_puts_into_it():
    long = WeightsError(f"w.safetensors: missing {'key ' * 50_000}: convert the file")
    assert len(str(long)) < 2100
    assert str(long).startswith("w.safetensors: missing key")
    assert str(long).endswith(": convert the file")
    assert "characters left out" in str(long)
    setting = ConfigError("must be a number", field="steps", found="9" * 5000)
    assert len(str(setting)) < 2100
    assert len(setting.on_command_line) < 2100
    with pytest.raises(ConfigError) as error:
        raise setting.renamed("sampling.steps")
    assert len(str(error.value)) < 2100


def test_many_problems_are_one_line_that_counts_the_rest():
    assert listed(["a", "b"]) == "a; b"
    assert listed(["a", "b", "c"], 2) == "a; b; and 1 more"
    many = listed([f"missing transformer_blocks.{i}.attn.to_q.weight (1536, 1536)" for i in range(2000)])
    assert len(many) < 1000
    assert many.endswith("; and 1986 more")
    assert len(listed(["x" * 10_000] * 3)) < 1000
