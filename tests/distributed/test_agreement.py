"""Hosts that were given different things are named before they train."""

import threading

from prottrans_jax.distributed import agreement


def on_hosts(*groups):
    """What `check` does on hosts with these groups: an error's lines, or None, each."""
    barrier = threading.Barrier(len(groups))
    values: dict[str, list] = {}
    results: list = [None] * len(groups)

    def host(number):
        def gather(name, value):
            values.setdefault(name, [None] * len(groups))[number] = value
            barrier.wait()
            return values[name]

        try:
            agreement.check(gather, f"host{number}", groups[number])
        except agreement.DisagreementError as error:
            results[number] = str(error).splitlines()[1:]

    threads = [threading.Thread(target=host, args=[n]) for n in range(len(groups))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_hosts_with_the_same_go_on():
    same = {"package": {"jax": "1"}, "setting": {"LEARNING_RATE": "0.1"}}
    assert on_hosts(same, same, same) == [None, None, None]


def test_differing_host_and_setting_are_named_on_every_host():
    good = {"setting": {"LEARNING_RATE": "0.1", "RANDOM_SEED": "0"}}
    bad = {"setting": {"LEARNING_RATE": "0.2", "RANDOM_SEED": "0", "PACK": "False"}}
    lines = [
        "process 1 (host1): setting LEARNING_RATE: 0.1 -> 0.2",
        "process 1 (host1): setting PACK: (absent) -> False",
    ]
    assert on_hosts(good, bad, good) == [lines, lines, lines]


def test_consequences_of_a_setting_are_not_listed_beside_it():
    first = {"setting": {"RANDOM_SEED": "0"}, "data": {"train": {"seed": 0}}}
    other = {"setting": {"RANDOM_SEED": "1"}, "data": {"train": {"seed": 1}}}
    (line,) = on_hosts(first, other)[0]
    assert "setting RANDOM_SEED: 0 -> 1" in line


def test_other_records_under_the_same_settings_are_named():
    def data(fingerprint):
        return {"data": {"train": {"components": [{"fingerprint": fingerprint}]}}}

    (line,) = on_hosts(data("ab"), data("cd"))[1]
    assert line == "process 1 (host1): data train.components.0.fingerprint: ab -> cd"


def test_places_of_a_host_are_its_own():
    text = (
        "DATA_DIR = '/mnt/a'\nBATCH_SIZE = 4\nloader.RowLoader.data_dir = %DATA_DIR\n"
    )
    assert agreement.settings_of(f"import x\n\n{text}") == {"BATCH_SIZE": "4"}


def test_packages_are_named_with_their_versions():
    versions = agreement.packages()
    assert versions["jax"][0].isdigit() and "prottrans_jax's source" in versions
