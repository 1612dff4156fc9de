"""Every path that a user gives: `~`, URLs, standard input, parameter sources."""

import importlib.util
import pathlib

import pytest

from prottrans_jax.files import paths


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_tilde_is_the_home_folder(home):
    assert paths.local("~/run", "--model_dir") == home / "run"
    assert paths.local("~", "--output") == home
    assert paths.local(pathlib.Path("~/a"), "output") == home / "a"


def test_other_paths_stay_as_they_are():
    for path in ("a/b.h5", "/x/y", "a~b", "x/~/y", "C:x", "name:1"):
        assert str(paths.local(path, "-o")) == path


def test_files_named_like_a_tilde_or_a_url_are_reached_through_dot_slash(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    path = paths.local("./~/x", "-o")
    assert path == tmp_path / "~" / "x" == paths.local(path, "-o")
    path = paths.local("./gs:/x", "-o")
    assert path == tmp_path / "gs:" / "x" == paths.local(path, "-o")


@pytest.mark.parametrize(
    ("url", "command"),
    [
        ("gs://b/x", "gcloud storage cp -r gs://b/x ."),
        ("s3://b", "aws s3 cp --recursive s3://b ."),
    ],
)
def test_buckets_are_refused_with_the_command_that_copies_them(url, command):
    with pytest.raises(paths.PathError) as error:
        paths.local(url, "--output")
    message = str(error.value)
    assert message.startswith(f"--output={url}: ") and command in message
    assert "\n" not in message


def test_places_are_folders_of_this_machine_or_of_a_bucket(home):
    pytest.importorskip("gcsfs")
    assert paths.place("~/run", "--model_dir") == home / "run"
    place = paths.place("gs://bucket/a//b/../c/", "--model_dir")
    assert str(place) == "gs://bucket/a/c"
    assert str(place / "x") == "gs://bucket/a/c/x" and place.name == "c"
    assert paths.place(place, "--model_dir") == place
    assert str(paths.place("gs://bucket", "-o")) == "gs://bucket"
    assert paths.place_text("./model/", "-m") == "./model/"


def test_a_bucket_without_its_package_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for url, extra in (("gs://b/x", "gcs"), ("s3://b/x", "s3")):
        with pytest.raises(paths.PathError, match=rf"prottrans_jax\[{extra}\]"):
            paths.place(url, "--model_dir")


@pytest.mark.parametrize("url", ["hdfs://n/x", "abfss://c@a/x", "az://c/x"])
def test_other_schemes_are_refused_with_those_that_are_accepted(url):
    for check in (paths.place, paths.local):
        with pytest.raises(paths.PathError) as error:
            check(url, "--output")
        message = str(error.value)
        assert message.startswith(f"--output={url}: ") and "gs:// and s3://" in message
        assert "prottrans_jax[gcs]" in message and "prottrans_jax[s3]" in message


@pytest.mark.parametrize("url", ["gs:/b/x", "GS://b", "gs://", "s3:///x", "S3:/b"])
def test_misspelt_buckets_are_refused_with_the_right_form(url):
    scheme = url.partition(":")[0].lower()
    with pytest.raises(paths.PathError, match=f"written {scheme}://BUCKET/PATH"):
        paths.place(url, "--output")


def test_a_bucket_that_pathlib_shortened_is_refused():
    with pytest.raises(paths.PathError, match=r"--output=gs:/b/x.*gs://BUCKET/PATH"):
        paths.place(pathlib.Path("gs://b/x"), "--output")


def test_urls_of_files_and_of_the_web_have_their_own_way_out():
    with pytest.raises(paths.PathError, match="without file://"):
        paths.local("file:///data/a.fasta", "-i")
    with pytest.raises(paths.PathError, match="Download it"):
        paths.local("https://rest.uniprot.org/x.fasta", "-i")


def test_an_unknown_home_an_empty_path_and_no_path_are_refused():
    with pytest.raises(paths.PathError, match=r"~nobody\.here.*\./~nobody"):
        paths.local("~nobody.here/x", "-o")
    with pytest.raises(paths.PathError, match="-o is empty"):
        paths.local("", "-o")
    with pytest.raises(paths.PathError, match="a path is text, not NoneType"):
        paths.local(None, "-o")
    with pytest.raises(paths.PathError, match="NUL"):
        paths.local("a\0b", "-o")


def test_standard_input_stays_where_it_is_allowed(home):
    assert paths.input_file("-", "-i") == "-"
    assert paths.input_file("~/a.fasta", "-i") == f"{home}/a.fasta"


def test_sources_keep_their_prefix_and_expand_each_place(home):
    assert paths.source("hf:~/m", "-m") == f"hf:{home}/m"
    assert paths.source("hf:/abs,~/b", "-m") == f"hf:/abs,{home}/b"
    assert paths.source("t5x:~/m", "-m") == f"t5x:{home}/m"
    assert paths.source("mtf:/abs/model.ckpt-1", "-m") == "mtf:/abs/model.ckpt-1"
    assert paths.source("Rostlab/prot_bert", "-m") == "Rostlab/prot_bert"
    assert paths.source("./model/", "-m") == "./model/"  # A folder, not of the hub.
    assert paths.source("~/run/checkpoints/3", "-m") == f"{home}/run/checkpoints/3"
    for url in ("hdfs://b/x", "t5x:hdfs://b/x", "hf:~/a,hdfs://b"):
        with pytest.raises(paths.PathError, match="gs:// and s3://"):
            paths.source(url, "-m")


def test_a_source_may_be_in_a_bucket():
    pytest.importorskip("gcsfs")
    assert paths.source("gs://b/run/", "-m") == "gs://b/run"
    assert paths.whole_source("gs://b/run", "-m") == "gs://b/run"
    assert paths.same_source("gs://b/run/", "gs://b/x/../run")
    assert not paths.same_source("gs://b/run", "s3://b/run")


def test_places_of_parameters_are_compared_as_folders(home, monkeypatch):
    monkeypatch.chdir(home)
    (home / "a").mkdir()
    (home / "b").symlink_to("a")
    whole = str(home / "a")
    for spelled in ("a", "a/", "./a", "~/a", "b", f"{home}/x/../a"):
        assert paths.same_source(spelled, whole), spelled
        assert paths.same_source(f"hf:{spelled},b", f"hf:{whole},a"), spelled
    assert not paths.same_source("c", whole)
    assert not paths.same_source("hf:a", "t5x:a")
    assert not paths.same_source("hf:a", "hf:a,a")


def test_names_of_the_hub_are_no_folders(home, monkeypatch):
    monkeypatch.chdir(home)
    assert paths.whole_source("hf:Owner/name", "x") == "hf:Owner/name"
    (home / "Owner/name").mkdir(parents=True)
    assert paths.whole_source("hf:Owner/name", "x") == f"hf:{home}/Owner/name"


def test_folders_of_environment_variables_are_read_like_all_others(home, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert paths.cache_home() == home / ".cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert paths.cache_home() == home / ".cache"
    monkeypatch.setenv("XDG_CACHE_HOME", "~/c")
    assert paths.cache_home() == home / "c"
    monkeypatch.setenv("XDG_CACHE_HOME", "gs://bucket/c")
    with pytest.raises(paths.PathError, match="XDG_CACHE_HOME=gs://bucket/c: buckets"):
        paths.cache_home()
