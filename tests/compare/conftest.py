import pytest

from tinynet.compare.worker import PeerProcess


@pytest.fixture(scope="session")
def started(tmp_path_factory):
    """Peers in processes of their own, started once for all tests: started("pytorch")."""
    folder, processes = tmp_path_factory.mktemp("logs"), {}

    def start(name: str) -> PeerProcess:
        if name not in processes:
            processes[name] = PeerProcess(name, 2, folder / f"{name}.txt")
            processes[name].call("start", 2)
        return processes[name]

    yield start
    for process in processes.values():
        process.kill()
