"""Runs of an earlier version go on under this one, from the middle, with its numbers.

`earlier_runs/` holds runs of commit 86a33f0, stopped after 2 of 4 steps: tiny models in
`sample_xlnet.gin` and `sample_transformer_xl.gin`, whose modules, classes and gin names
have moved since. The losses are those of the same commit at steps 3 and 4.
"""

import json
import pathlib
import zipfile

import pytest

from prottrans_jax.config import building
from prottrans_jax.training import trainer

RUNS = pathlib.Path(__file__).parent / "earlier_runs"
LOSSES = {
    "transformer_xl": [3.1762373447418213, 3.1727607250213623],
    "xlnet": [3.616508297803925, 3.5711187318313953],
}
GRADIENT_NORMS = {
    "transformer_xl": [0.1838192194700241, 0.16317173838615417],
    "xlnet": [0.8427640795707703, 0.876041829586029],
}


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_a_run_of_an_earlier_version_goes_on_with_its_numbers(name, tmp_path):
    with zipfile.ZipFile(RUNS / f"{name}.zip") as archive:
        archive.extractall(tmp_path)
    bindings = [f"MODEL_DIR = {str(tmp_path)!r}", "NUM_DEVICES = 1"]
    building.parse([tmp_path / "config.gin"], bindings)
    summary = building.configured(trainer.train)(config_text=building.resolved_config())
    assert summary.step == 4
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    resumed = [line for line in lines if line["step"] > 2]
    losses = [line["train/loss"] for line in resumed]
    # Sums of float32 in another order on another CPU.
    assert losses == pytest.approx(LOSSES[name], rel=1e-6)
    norms = [line["train/grad_norm"] for line in resumed]
    assert norms == pytest.approx(GRADIENT_NORMS[name], rel=1e-5)
