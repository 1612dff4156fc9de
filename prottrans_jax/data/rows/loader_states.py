"""What the saved state of a loader says of each task, and comparing it."""

from collections.abc import Mapping, Sequence
from typing import Any

from prottrans_jax import differences, setting_trees
from prottrans_jax.data.rows import earlier_states, task_components
from prottrans_jax.proteins import vocabulary

VERSION = 2


def of(component: task_components.Component) -> dict[str, Any]:
    """All of a component that determines the content of rows; plain JSON."""
    corruption = component.corrupt.corruption
    return {
        "fingerprint": component.split.fingerprint,
        "objective": setting_trees.of("corruption", corruption, _is_vocabulary),
        "vocabulary": corruption.vocabulary.name,
        "rate": str(component.rate),
    }


def in_this_form(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """A saved state in the form of this version.

    Raises:
      ValueError: The state is of an unknown version, or damaged.
    """
    version = state.get("version")
    if version == 1:
        return earlier_states.with_trees(state)
    if version != VERSION:
        raise ValueError(
            f"loader state has version {version}; this library reads 1 to {VERSION}."
        )
    return state


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


def _is_vocabulary(_: str, content: object) -> bool:
    # A state has its name.
    return isinstance(content, vocabulary.Vocabulary)
