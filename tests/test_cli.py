"""What every command prints."""

import pytest

from genaffect_jax import cli


def test_paths_are_printed_as_they_are_even_with_richs_own_notation(capsys: pytest.CaptureFixture[str]) -> None:
    paths = "out/[red]/[/x]/:joy:/[link=a]b", "out/[/]"

    def work(console) -> bool:
        for path in paths:
            console.print(f"{path}: written", soft_wrap=True)
        return True

    assert cli.run(work) == 0
    assert capsys.readouterr().err.splitlines() == [f"{path}: written" for path in paths]
