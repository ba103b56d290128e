"""A sweep on two nodes of a Ray cluster on this machine, one of which is killed: every record once, equal to the local engine's.

make ray        (installs Ray into a folder of its own)
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from perdure.errors import ConfigError
from perdure.sweeps.engines import OUT_OF_MEMORY, Done, Resources
from perdure.sweeps.plan import cells, load_sweep
from perdure.sweeps.sweep import run_sweep
from tests.sweeps.ray_jobs import hold
from tests.sweeps.test_engines import same_records
from tests.sweeps.test_sweep import sweep_file  # noqa: F401

# read when Ray is imported or started: a busy machine is slow
os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
os.environ.setdefault("RAY_agent_register_timeout_ms", "300000")
if os.environ.get("PERDURE_RAY") == "required":
    import ray  # noqa: F401  # pyright: ignore[reportMissingImports]
else:
    pytest.importorskip("ray")

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1800)]


@pytest.fixture
def two_nodes():
    """A head without cores, and two nodes with one core each."""
    import ray  # pyright: ignore[reportMissingImports]
    from ray.cluster_utils import Cluster  # pyright: ignore[reportMissingImports]

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
    ray.init(cluster.address, log_to_driver=False)
    yield cluster, nodes
    ray.shutdown()
    cluster.shutdown()


def on_ray(**more):
    from perdure.sweeps.ray_engine import Ray

    return Ray(None, Resources(**more))


def test_one_of_two_nodes_is_killed_and_no_record_is_lost(two_nodes, sweep_file, tmp_path):  # noqa: F811
    cluster, (first, _) = two_nodes
    sweep, told = load_sweep(sweep_file), []

    def tell(line: str) -> None:
        told.append(line)
        if len(told) == 2:  # the first run has ended: both nodes are at work
            cluster.remove_node(first, allow_graceful=False)

    found = run_sweep(sweep, tmp_path / "ray", 1, tell, on_ray())
    every = [cell.id for cell in cells(sweep)]
    ended = [line.split()[1].rstrip(":") for line in told if line.startswith("[")]
    assert sorted(ended) == sorted(every), "each once"
    assert not [*(tmp_path / "ray/runs").glob("*-*")], "nothing but records comes here"
    local = run_sweep(sweep, tmp_path / "local", 1, print)
    same_records(found, local)


def test_a_job_that_kills_its_worker_is_given_up_and_the_others_go_on(two_nodes, tmp_path):
    ended = {}
    jobs = [hold("die", tmp_path), hold("a", tmp_path), hold("memory", tmp_path), hold("b", tmp_path)]
    on_ray().run_all(jobs, hold.run, lambda job, done, why: ended.__setitem__(job.name, (done, why)))
    assert ended["a"] == (Done("a"), "")
    assert ended["b"] == (Done("b"), "")
    assert ended["die"] == (
        None,
        "its worker or node was lost 3 times, perhaps out of memory; run the sweep again to continue it",
    )
    assert len([*tmp_path.glob("die-*")]) == 3
    assert ended["memory"] == (None, OUT_OF_MEMORY)


def test_what_no_node_has_is_refused_and_not_waited_for(two_nodes):
    with pytest.raises(
        ConfigError, match=r"A run is to take 1 CPUs, 8 GPUs, but the Ray cluster's nodes have: .*Ask for less"
    ):
        on_ray(gpus=8).run_all([1], hold.run, print)


def test_an_address_where_nothing_answers():
    from perdure.sweeps.ray_engine import Ray

    with pytest.raises(ConfigError, match=r"No Ray cluster answers at '127.0.0.1:1'.*ray start --head"):
        Ray("127.0.0.1:1", Resources()).run_all([1], hold.run, print)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_leaves_no_process(how, tmp_path):
    import psutil

    sweep = subprocess.Popen([sys.executable, "-m", "tests.sweeps.ray_jobs", tmp_path])
    while not [*tmp_path.glob("sleep-*")]:
        time.sleep(0.1)
        assert sweep.poll() is None
    below = psutil.Process(sweep.pid).children(recursive=True)
    sweep.send_signal(how)
    assert sweep.wait(120) != 0
    assert not psutil.wait_procs(below, timeout=60)[1]
