"""`gripline axes`: the contact sheet."""

from pathlib import Path

import pytest
from PIL import Image

from pipelines.axes import FACTORS, _cells
from pipelines.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["axes", *arguments])
    shown = capsys.readouterr()
    return int(str(ended.value.code)), shown.out, shown.err


def test_a_sheet_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "toy.png"
    assert run(capsys, "toy", "--task", "toy-blue", "--out", str(path)) == (0, f"{path}\n", "")
    with Image.open(path) as sheet:
        assert sheet.width > 600 and sheet.height > 1500
        assert len(sheet.convert("RGB").getcolors(maxcolors=2**24) or []) > 100


def test_strengths_grow_from_left_to_right() -> None:
    """Catches a sheet that shows one strength under several captions."""
    shifts = [cell.spec.perturbation.camera_offset_m for cell in _cells("camera", "metaworld", "faucet-open-v3")]
    lengths = [sum(part**2 for part in shift) ** 0.5 for shift in shifts]
    assert lengths == pytest.approx([0.06 * factor for factor in FACTORS], abs=1e-3)
    lights = [cell.spec.perturbation.light_gain for cell in _cells("light", "metaworld", "faucet-open-v3")]
    assert lights == sorted(lights, reverse=True) and len(set(lights)) == len(FACTORS)
    physics = [cell.spec.perturbation for cell in _cells("physics", "metaworld", "faucet-open-v3")]
    assert (physics[0].friction_gain, physics[0].mass_gain) == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["metawold"], "unknown suite 'metawold'; did you mean 'metaworld'?"),
        (["toy", "--task", "toy-rde"], "unknown task 'toy-rde' of suite 'toy'; did you mean 'toy-red'?"),
        (["toy", "--out", "a.pdf"], "--out: 'a.pdf' does not end in .png"),
        (["toy", "--out", "no/such/a.png"], "--out: no/such is no folder"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], told: str) -> None:
    code, _, errors = run(capsys, *arguments)
    assert code == 2 and told in errors and errors.count("\n") == 1
