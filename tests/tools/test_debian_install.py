"""The installer, with fakes of the programs it calls, found first in PATH."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools/debian_install.sh"


class Machine:
    """A Debian on which `installed` is installed. Every program called is noted."""

    def __init__(self, directory: Path, *, user: int, installed: tuple[str, ...]) -> None:
        self._bin = directory / "bin"
        self._bin.mkdir()
        self._calls = directory / "calls"
        self._calls.touch()
        installed_names = "|".join([*installed, "nothing-else"])
        self.program(
            "dpkg-query",
            f'for last; do :; done; case $last in {installed_names}) echo "install ok installed";; esac',
        )
        self.program("id", f"echo {user}")
        self.program("apt-get", f'echo "apt-get $*" >>{self._calls}')
        self.program("systemctl", f'echo "systemctl $*" >>{self._calls}')

    def program(self, name: str, body: str) -> None:
        path = self._bin / name
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def install(self, *packages: str, policy: Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{self._bin}:{os.environ['PATH']}", "POLICY_RC_D": str(policy)}
        return subprocess.run(
            [SCRIPT, *packages], env=environment, capture_output=True, text=True, check=False
        )

    def calls(self) -> list[str]:
        return self._calls.read_text().splitlines()


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    """Where invoke-rc.d would look whether it may start a service."""
    return tmp_path / "policy-rc.d"


def test_nothing_happens_when_all_is_there(tmp_path: Path, policy: Path) -> None:
    machine = Machine(tmp_path, user=0, installed=("curl", "git"))

    done = machine.install("curl", "git", policy=policy)

    assert (done.returncode, done.stderr, machine.calls()) == (0, "", [])


def test_root_gets_what_is_missing_and_no_server_is_started_or_enabled(tmp_path: Path, policy: Path) -> None:
    machine = Machine(tmp_path, user=0, installed=("curl",))
    machine.program(
        "apt-get", f'{policy} >/dev/null 2>&1; echo "apt-get $* (policy says $?)" >>{tmp_path}/calls'
    )

    done = machine.install("curl", "haproxy", "gcc", policy=policy)

    assert done.returncode == 0, done.stderr
    assert machine.calls() == [
        "apt-get update -qq (policy says 101)",
        "apt-get install -qq -y --no-install-recommends haproxy gcc (policy says 101)",
        "systemctl disable --quiet haproxy",
    ]
    assert not policy.exists(), "the policy is for the time of the installation only"


def test_an_administrators_policy_is_left_alone(tmp_path: Path, policy: Path) -> None:
    policy.write_text("#!/bin/sh\nexit 0\n")
    machine = Machine(tmp_path, user=0, installed=())

    machine.install("curl", policy=policy)

    assert policy.read_text() == "#!/bin/sh\nexit 0\n"


def test_an_update_that_fails_is_tried_once_more(tmp_path: Path, policy: Path) -> None:
    machine = Machine(tmp_path, user=0, installed=())
    machine.program("sleep", "")
    machine.program(
        "apt-get", f'echo "apt-get $1" >>{tmp_path}/calls; [ "$(wc -l <{tmp_path}/calls)" -gt 1 ]'
    )

    done = machine.install("curl", policy=policy)

    assert done.returncode == 0, done.stderr
    assert machine.calls() == ["apt-get update", "apt-get update", "apt-get install"]


def test_anybody_else_is_told_what_to_type(tmp_path: Path, policy: Path) -> None:
    machine = Machine(tmp_path, user=1000, installed=("curl",))

    done = machine.install("curl", "haproxy", "gcc", policy=policy)

    assert done.returncode == 1
    assert "sudo apt-get install --no-install-recommends haproxy gcc\n" in done.stderr
    assert machine.calls() == []


def test_another_system_is_told_what_is_needed(tmp_path: Path) -> None:
    environment = {"PATH": str(tmp_path / "nothing here")}

    done = subprocess.run(
        ["/bin/sh", SCRIPT, "curl"], env=environment, capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert "not a Debian" in done.stderr
    assert "curl" in done.stderr
