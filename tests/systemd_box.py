"""A real systemd in namespaces of its own, over a copy of this machine's files that vanishes with it.

Needs root, and a kernel that lets it mount overlayfs and cgroup2. Nothing it does reaches the machine: its
root is an overlay whose upper layer is in memory, its units are its own, and its first process ends all.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
INIT = Path("/lib/systemd/systemd")
WAIT = 60.0  # seconds

BOOT = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs {box}
mkdir {box}/upper {box}/work {box}/root
mount -t overlay overlay -o lowerdir=/,upperdir={box}/upper,workdir={box}/work {box}/root
cd {box}/root
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=1777 tmpfs tmp
mount -t tmpfs -o mode=755 tmpfs dev
mkdir run/lock dev/pts dev/shm
for device in null zero full random urandom tty; do
    touch dev/$device; mount --bind /dev/$device dev/$device
done
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
: >etc/fstab
rm -rf etc/systemd/system/*.wants
for unit in networkd resolved timesyncd udevd udev-trigger modules-load logind binfmt sysctl random-seed \
        pstore remount-fs machine-id-commit update-utmp; do
    ln -sf /dev/null etc/systemd/system/systemd-$unit.service
done
for unit in systemd-udevd-kernel.socket systemd-udevd-control.socket getty.target kmod-static-nodes.service \
        proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount \
        sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount; do
    ln -sf /dev/null etc/systemd/system/$unit
done
printf '[Unit]\\nRequires=basic.target dbus.socket\\nAfter=basic.target\\n' >etc/systemd/system/box.target
mkdir oldroot
pivot_root . oldroot
mount -t proc proc /proc
umount -l /oldroot
exec env -i container=draftd-test PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    {init} --system --unit=box.target --log-target=console </dev/null
"""


class Unavailable(Exception):
    """Why there can be no box here."""


class Box:
    """A booted systemd; `run` runs a command in it."""

    def __init__(self, directory: Path) -> None:
        if os.geteuid() != 0 or not INIT.exists():
            raise Unavailable("needs root and systemd")
        self._cgroup = _cgroup2() / f"draftd-test-{os.getpid()}"
        self._log = directory / "boot"
        box = directory / "box"
        box.mkdir()
        script = BOOT.format(box=box, init=INIT)
        try:
            self._cgroup.mkdir()
        except OSError as error:
            raise Unavailable(f"cannot make a cgroup: {error}") from None
        enter = f'echo $$ >{self._cgroup}/cgroup.procs; exec unshare -mpfCui --kill-child bash -c "$BOOT"'
        with self._log.open("w") as out:
            self._outer = subprocess.Popen(
                ["bash", "-c", enter], env={**os.environ, "BOOT": script}, stdout=out, stderr=out
            )
        try:
            self.init = self._first_process()
            self._booted()
        except BaseException:
            self.close()
            raise

    def inside(self, path: str) -> Path:
        """Where a file of the box is found from without."""
        return Path(f"/proc/{self.init}/root{path}")

    def run(self, *command: str, check: bool = True, user: str | None = None) -> str:
        """What a command in the box said; its failure is the test's."""
        as_user = ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups"] if user else []
        done = subprocess.run(
            ["nsenter", "-t", str(self.init), "-a", *as_user, *command],
            capture_output=True,
            text=True,
            timeout=WAIT,
        )
        if check and done.returncode != 0:
            log = self.run("journalctl", "--no-pager", "-n", "30", check=False)
            raise AssertionError(f"{command}: {done.returncode}\n{done.stdout}{done.stderr}\n{log}")
        return done.stdout

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        outside = self.inside(path)
        outside.parent.mkdir(parents=True, exist_ok=True)
        outside.write_text(text)
        outside.chmod(mode)

    def install_draftd(self) -> None:
        """The tree's packages in /opt/draftd, over the libraries of the Python that runs the tests."""
        site = f"/opt/draftd/lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"
        self.run("mkdir", "/opt/python")  # where it is may be somebody's home, which the service does not see
        self.run("mount", "--bind", sys.base_prefix, "/opt/python")
        for unit in ("draftd", "draftd-metrics", "draftd-gateway"):  # where its library may be
            environment = "[Service]\nEnvironment=LD_LIBRARY_PATH=/opt/python/lib\n"
            self.write(f"/etc/systemd/system/{unit}.service.d/python.conf", environment)
        self.run("/opt/python/bin/python3", "-m", "venv", "--without-pip", "/opt/draftd")
        outside = self.inside(f"{site}/draftd")
        for part in ("daemon", "models", "drafts", "ipc", "systemd"):
            shutil.copytree(ROOT / part, outside / part, ignore=shutil.ignore_patterns("__pycache__"))
        libraries = [path for path in sys.path if path.endswith("site-packages")]
        self.write(f"{site}/libraries.pth", "\n".join(libraries) + "\n")
        script = "#!/opt/draftd/bin/python\nfrom draftd.daemon.cli import main\nmain()\n"
        self.write("/opt/draftd/bin/draftd", script, 0o755)

    def close(self) -> None:
        """End all that runs in it."""
        with contextlib.suppress(AttributeError, ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        self._outer.kill()
        self._outer.wait()
        end = time.monotonic() + WAIT
        for directory in [*sorted(self._cgroup.rglob("*/"), reverse=True), self._cgroup]:
            while directory.exists() and time.monotonic() < end:
                with contextlib.suppress(OSError):  # busy until the last process has gone
                    directory.rmdir()
                time.sleep(0.01)

    def _first_process(self) -> int:
        end = time.monotonic() + WAIT
        while time.monotonic() < end and self._outer.poll() is None:
            children = Path(f"/proc/{self._outer.pid}/task/{self._outer.pid}/children").read_text().split()
            if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd":
                return int(children[0])
            time.sleep(0.01)
        raise Unavailable(f"no systemd starts in namespaces here: {self._log.read_text()[-500:]}")

    def _booted(self) -> None:
        end = time.monotonic() + WAIT
        state = ""
        while time.monotonic() < end:
            state = self.run("systemctl", "is-system-running", check=False).strip()
            if state in ("running", "degraded"):
                return
            time.sleep(0.05)
        raise Unavailable(f"systemd does not come up here: {state}")


def _cgroup2() -> Path:
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise Unavailable("no cgroup2 is mounted")
