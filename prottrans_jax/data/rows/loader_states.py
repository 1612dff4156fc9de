"""What the saved state of a loader says of each task, and comparing it."""

from collections.abc import Mapping, Sequence
from typing import Any

from prottrans_jax import differences
from prottrans_jax.data.corruption import causal, masking, permuted, streams
from prottrans_jax.data.rows import task_components

# Names of these classes in saved states.
_SAVED_NAMES = {
    masking.TokenMasking: "MaskedLM",
    permuted.PermutationTargets: "PermutationLM",
    causal.NextToken: "CausalLM",
}


def of(component: task_components.Component) -> dict[str, Any]:
    """All of a component that determines the content of rows; plain JSON."""
    corruption = component.corrupt.corruption
    return {
        "fingerprint": component.split.fingerprint,
        "objective": _saved_repr(corruption),
        "vocabulary": corruption.vocabulary.name,
        "rate": str(component.rate),
    }


def component_differences(
    components: Sequence[task_components.Component],
    present: Mapping[str, Any],
    saved: Mapping[str, Any],
) -> list[str]:
    """One line for each difference in the records or corruption of a task."""
    before, now = saved.get("components", []), present["components"]
    if len(before) != len(now):
        return [f"tasks of the mixture: {len(before)} -> {len(now)}"]
    lines = []
    for component, old, new in zip(components, before, now, strict=True):
        if old["fingerprint"] != new["fingerprint"]:
            split = component.split
            lines.append(
                f"{component.name}: the data changed. {split.folder}, split "
                f"{split.name!r}, {split.num_records:,} records, has fingerprint "
                f"{new['fingerprint'][:12]}; the run read {old['fingerprint'][:12]}"
            )
        rest = differing(new, old, skip=("fingerprint",))
        lines += [f"{component.name}: {line}" for line in rest]
    return lines


def differing(
    present: Mapping[str, Any], saved: Mapping[str, Any], skip: Sequence[str] = ()
) -> list[str]:
    """One line for each setting that differs; see `differences.lines`."""
    names = [name for name in present if name not in skip]
    return differences.lines(*({n: x.get(n) for n in names} for x in (saved, present)))


def _saved_repr(corruption: streams.Corruption) -> str:
    """The repr under the class name that states of loaders use."""
    name = type(corruption).__qualname__
    saved_name = _SAVED_NAMES.get(type(corruption), name)
    return saved_name + repr(corruption).removeprefix(name)
