"""Which engines there are to a run, and what their settings say to each other."""

import pytest
from pydantic import TypeAdapter, ValidationError

from weft.engines.config import EngineConfig, LocalConfig, RayConfig, VllmConfig, own_engine


def config(**settings):
    return TypeAdapter(EngineConfig).validate_python(settings)


def test_ray_is_two_workers_with_the_local_engine_on_this_machine():
    found = config(name="ray")
    assert found.address == "local"
    assert found.engines == (LocalConfig(), LocalConfig())


def test_a_worker_s_cores_are_this_machine_s_shared_out(monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 16)
    assert config(name="ray", workers=4).cores == 4
    assert config(name="ray", workers=32).cores == 1
    assert config(name="ray", workers=4, address="head:6379").cores == 1
    assert config(name="ray", workers=4, threads=3).cores == 3


def test_each_of_several_servers_has_a_worker():
    found = config(name="ray", over={"name": "vllm"}, urls=["http://a:8000/", "http://b:8000"])
    assert found.engines == (VllmConfig(url="http://a:8000"), VllmConfig(url="http://b:8000"))
    assert own_engine(found) == found.engines[0]
    assert own_engine(RayConfig()) == own_engine(LocalConfig()) == LocalConfig()
    one = config(name="ray", over={"name": "vllm", "url": "http://a:8000"})
    assert one.engines == (VllmConfig(url="http://a:8000"),)


@pytest.mark.parametrize("address", ["local", "auto", "head:6379", "ray://head:10001"])
def test_addresses_of_clusters(address):
    assert config(name="ray", address=address).address == address


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"address": "somewhere"}, "should match pattern"),
        ({"workers": 2, "over": {"name": "vllm"}}, "2 workers need a server each: give `urls`"),
        ({"urls": ["http://a:1"]}, "`urls` are of servers"),
        ({"over": {"name": "vllm"}, "urls": ["http://a:1", "http://a:1/"]}, "names a server twice"),
        (
            {"over": {"name": "vllm"}, "urls": ["http://a:1"], "workers": 2},
            "2 workers, and 1 `urls`",
        ),
        ({"over": {"name": "vllm"}, "urls": ["a:1"]}, "not the address of a server"),
        ({"over": {"name": "ray"}}, "does not match any of the expected tags"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        config(name="ray", **settings)
