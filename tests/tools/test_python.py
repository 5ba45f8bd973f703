"""Code that attacks what is around it: nothing is read, written, reached, started or left over."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ossia.errors import OssiaError
from ossia.tools.python import Limits, Python, Ran, check, run, sandbox
from ossia.tools.toolset import Result
from tests.scripted import eventually

try:
    check()
except OssiaError as error:
    pytest.skip(str(error), allow_module_level=True)

DENIED = "PermissionError"


def raised(code: str, **limits: float) -> str:
    """The name of the error that ends the code."""
    ran = run(code, Limits(**limits))  # type: ignore[arg-type]
    return ran.output.strip().rpartition("\n")[2].partition(":")[0] or str(ran.end)


def test_it_shows_what_is_printed_and_the_last_expression():
    ran = run("import math\nprint('é')\nfor n in range(2): n\nmath.factorial(5)")
    assert (ran.output, ran.end, ran.exit_code) == ("é\n120\n", None, 0)
    assert run("None").output == run("").output == ""
    assert "'a'" in run("x = 'a'\nx").output


def test_an_error_is_shown_with_its_own_lines_alone():
    ran = run("def f():\n    return 1 / 0\nf()")
    assert ran.exit_code == 1
    assert "return 1 / 0" in ran.output
    assert ran.output.endswith("ZeroDivisionError: division by zero\n")
    assert "ossia" not in ran.output
    assert "SyntaxError" in run("f(").output
    assert run("raise SystemExit(3)").exit_code == 3


def test_calls_share_nothing():
    assert run("open('kept', 'w').write('x'); kept = 1\nimport os; os.listdir('.')").output == (
        "['kept']\n"
    )
    assert run("import os; os.listdir('.'), 'kept' in globals()").output == "([], False)\n"


def test_the_library_works():
    code = """
import asyncio, ctypes, concurrent.futures, decimal, json, os, shutil, sqlite3, tempfile, threading
import zoneinfo
async def double(n):
    await asyncio.sleep(0)
    return await asyncio.to_thread(lambda: 2 * n)
print(asyncio.run(double(4)))
with concurrent.futures.ThreadPoolExecutor(4) as pool:
    print(sum(pool.map(abs, range(-3, 3))))
database = sqlite3.connect('numbers.db')
database.execute('CREATE TABLE t (x)')
database.execute('INSERT INTO t VALUES (7)')
database.commit()
print(database.execute('SELECT x FROM t').fetchone())
os.makedirs('a/b')
with open('a/one', 'w') as file:
    file.write('text')
shutil.copy2('a/one', 'a/b/two')
os.symlink('a/b/two', 'three')
os.rename('a/one', 'a/b/one')
print(open('three').read(), sorted(os.listdir('a/b')))
with tempfile.NamedTemporaryFile() as file:
    print(file.write(b'12'))
open('mine.py', 'w').write('x = 5')
import mine
print(mine.x, len(os.urandom(4)))
"""
    expected = "8\n9\n(7,)\ntext ['one', 'two']\n2\n5 4\n"
    assert run(code).output == expected


SECRET = "between the model and the keys"
_ALL = """
for attack in {attacks!r}:
    try:
        exec(attack)
    except (OSError, ValueError):
        pass
    else:
        print(attack)
"""


def successful(attacks: list[str], **values: object) -> str:
    """Those of the attacks, in one process, that raise no error of the operating system."""
    return run(_ALL.format(attacks=[attack.format(**values) for attack in attacks])).output


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A file that anybody may read and write, in a folder that anybody may write to."""
    tmp_path.chmod(0o777)
    file = tmp_path / "secret"
    file.write_text(SECRET)
    file.chmod(0o666)
    return file


FILES = [
    "open('/etc/passwd').read()",
    "open('{file}').read()",
    "open('{file}', 'w')",
    "open('{file}', 'r+')",
    "open('{folder}/new', 'w')",
    "import os; os.symlink('{file}', 'link'); open('link').read()",
    "import os; os.symlink('{folder}', 'link'); open('link/new', 'w')",
    "import os; os.link('{file}', 'link')",
    "import os; os.rename('{file}', 'mine')",
    "import os; os.unlink('{file}')",
    "import os; os.listdir('{folder}')",
    "import os; os.listdir('/')",
    "import os; os.listdir(os.path.expanduser('~root'))",
    "import os; os.listdir('/proc')",
    "import os; os.mkdir('{folder}/new')",
    "import os; open('new', 'w').close(); os.rename('new', '{folder}/new')",
    "import os; os.chdir('{folder}'); open('secret').read()",
    "import os; f = os.open('{folder}', os.O_PATH); os.open('secret', os.O_RDONLY, dir_fd=f)",
    "import os; f = os.open('{file}', os.O_PATH); open(f'/proc/self/fd/{{f}}').read()",
    "open('/proc/self/environ').read()",
    "open('/proc/{parent}/environ').read()",
    "open('/proc/{parent}/mem', 'rb').read(1)",
    "import os; os.listdir('/proc/{parent}/fd')",
    "open('/dev/tty')",
    "open('/dev/shm/new', 'w')",
    "import os; os.mkfifo('fifo')",
    "import os; os.mknod('device', 0o20600, os.makedev(1, 1))",
    "import os, ossia.tools; open(ossia.tools.__file__, 'a')",
    "import os; open(os.__file__, 'a')",
]


def test_files_outside_the_scratch_folder_are_out_of_reach(outside, tmp_path):
    before = sorted(tmp_path.iterdir())
    assert successful(FILES, file=outside, folder=tmp_path, parent=os.getpid()) == ""
    assert outside.read_text() == SECRET
    assert sorted(tmp_path.iterdir()) == before


def test_the_interpreter_is_read_only_and_its_files_keep_their_modes(outside):
    mode, times = outside.stat().st_mode, outside.stat().st_mtime_ns
    ran = run(
        f"import os; os.chmod({str(outside)!r}, 0); os.utime({str(outside)!r}, (1, 1)); 'done'"
    )
    assert ran.output == "'done'\n"  # programs go on, and nothing has changed
    assert (outside.stat().st_mode, outside.stat().st_mtime_ns) == (mode, times)
    assert (
        raised(
            f"import ctypes\nif ctypes.CDLL(None).truncate({str(outside)!r}.encode(), 0):"
            " raise PermissionError"
        )
        == DENIED
    )
    assert outside.read_text() == SECRET


NETWORK = [
    "import socket; socket.create_connection(('127.0.0.1', {port}))",
    "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
    "import socket; socket.socket(socket.AF_INET6)",
    "import socket; socket.socket(socket.AF_UNIX).connect('\\0{name}')",
    "import socket; socket.socket(socket.AF_UNIX).connect('/run/docker.sock')",
    "import socket; socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)",
    "import socket; a, b = socket.socketpair(); a.connect('\\0{name}')",
    "import socket; socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)",
    "import socket; a, b = socket.socketpair(); a.sendto(b'x', '\\0{name}')",
    "import socket; a, b = socket.socketpair(); socket.send_fds(a, [b'x'], [0])",
    "import asyncio; asyncio.run(asyncio.open_connection('127.0.0.1', {port}))",
    "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}')",
]


def test_there_is_no_network():
    name = f"ossia-test-{os.getpid()}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract,
    ):
        abstract.bind(f"\0{name}")
        abstract.setblocking(False)
        server.setblocking(False)
        assert successful(NETWORK, port=server.getsockname()[1], name=name) == ""
        for end in (server.accept, lambda: abstract.recv(1)):
            with pytest.raises(BlockingIOError):
                end()


PROCESSES = [
    "import os; os.fork()",
    "import os; os.forkpty()",
    "import os; os.execv('/bin/true', ['true'])",
    "import os; os.posix_spawn('/bin/true', ['true'], {{}})",
    "import subprocess; subprocess.run(['true'])",
    "import multiprocessing; multiprocessing.Process(target=print).start()",
    "import os; not os.system('true') or os.fork()",
    "import os; os.setsid()",
    "import os; os.kill({parent}, 9)",
    "import os; os.kill({parent}, 0)",
    "import os; os.kill(-1, 9)",
    "import os; os.kill(0, 9)",
    "import os, signal; signal.pidfd_send_signal(os.pidfd_open({parent}), 9)",
    "import fcntl, os; fcntl.fcntl(0, fcntl.F_SETOWN, {parent})",
    "import fcntl; fcntl.flock(0, fcntl.LOCK_EX)",
    "import resource; resource.prlimit({parent}, resource.RLIMIT_CPU, (1, 1))",
    "import os; os.sched_setaffinity({parent}, [0])",
    "import os; os.setpriority(os.PRIO_PROCESS, {parent}, 19)",
    "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "import os; os.unshare(os.CLONE_NEWUSER) if hasattr(os, 'unshare') else os.fork()",
    "import os; os.setuid(0)",
    "import os; os.chroot('.')",
    "import os; os.memfd_create('unlimited')",
]


def test_processes_are_out_of_reach_and_cannot_be_made():
    assert successful(PROCESSES, parent=os.getpid()) == ""


UNNEEDED = {
    "ptrace": 101,
    "process_vm_readv": 310,
    "io_uring_setup": 425,
    "clone3": 435,
    "open_by_handle_at": 304,
    "bpf": 321,
    "keyctl": 250,
    "shmget": 29,
    "mount": 165,
    "unshare": 272,
    "perf_event_open": 298,
    "userfaultfd": 323,
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the numbers are x86-64's")
def test_calls_of_the_kernel_that_are_not_needed_do_not_exist():
    code = f"""
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
for name, number in {UNNEEDED}.items():
    if libc.syscall(number, 0, 0, 0, 0, 0) != -1 or ctypes.get_errno() not in (1, 38):
        print(name)
"""
    assert run(code).output == ""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="another interface of x86-64")
def test_the_other_numbers_of_the_same_processor_end_the_process():
    ran = run("import ctypes; ctypes.CDLL(None).syscall(0x40000000 + 39); print('went on')")
    assert (ran.output, ran.end) == ("", "it ended by the signal SIGSYS")


def test_nothing_is_inherited(monkeypatch):
    monkeypatch.setenv("OSSIA_API_KEYS", SECRET)
    with socket.create_server(("127.0.0.1", 0)) as server:
        os.set_inheritable(server.fileno(), True)
        code = """
import os
def is_open(n):
    try: os.fstat(n)
    except OSError: return False
    return True
print(dict(os.environ))
print([n for n in range(64) if is_open(n)])
"""
        output = run(code).output
    assert SECRET not in output
    assert "PATH" not in output
    environment, descriptors = output.splitlines()
    assert len(eval(descriptors)) <= 4  # the standard ones, and that of the null device
    assert str(Path.home()) not in environment


def test_time_is_limited_whatever_the_code_does_about_it():
    busy = Limits(cpu_seconds=1, seconds=600)  # others may have the processor
    assert run("while True: pass", busy).end == "it used the processor for more than 1 s"
    stubborn = """
import os, signal
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
print('begun')
"""
    ended = run(stubborn + "while True: pass", busy).end
    assert ended == "it used the processor for more than 1 s"
    for seconds in (1, 10, 100):  # within which a loaded machine may not even run the first line
        ran = run(stubborn + "os.close(1); os.close(2)\nsignal.pause()", Limits(seconds=seconds))
        assert ran.end == f"it ran longer than {seconds} s"
        if ran.output:
            break
    assert ran.output == "begun\n"


def test_only_the_time_of_the_code_counts(monkeypatch):
    """By a clock that goes on while the process starts, and once it has ended."""
    now, processes = [0.0], []
    start, await_start = sandbox._start, sandbox._await_start

    def started(*arguments: Any) -> Any:
        processes.append(start(*arguments))
        return processes[-1]

    def begun(*arguments: Any) -> str | None:
        end = await_start(*arguments)
        now[0] += 1000
        return end

    def ended(*_: Any) -> None:
        if processes[-1].returncode is None:
            os.waitid(os.P_PID, processes[-1].pid, os.WEXITED | os.WNOWAIT)
        now[0] += 1000

    monkeypatch.setattr(sandbox, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(sandbox, "_start", started)
    monkeypatch.setattr(sandbox, "_await_start", begun)
    monkeypatch.setattr(sandbox, "_full", ended)
    assert run("print('in time')", Limits(seconds=1)) == Ran("in time\n", None, 0)


def test_a_process_that_never_starts_is_ended(monkeypatch):
    monkeypatch.setattr(sandbox, "_BOOT", "import time; time.sleep(600)")
    monkeypatch.setattr(sandbox, "_START_SECONDS", 0.1)
    assert run("").end == "it did not start within 0.1 s"


def test_memory_is_limited():
    assert raised("x = bytearray(2**31)") == "MemoryError"
    assert raised("import mmap; mmap.mmap(-1, 2**31)") == "OSError"
    assert raised("x = []\nwhile True: x.append(bytes(10**7))", memory=2**28) == "MemoryError"


def test_threads_descriptors_and_files_are_limited():
    bomb = """
import os, threading
made, stay = 0, threading.Event()
try:
    while True:
        threading.Thread(target=stay.wait, daemon=True).start()
        made += 1
except RuntimeError:
    print(made)
"""
    with ThreadPoolExecutor(4) as pool:  # a thread that has ended may count for a moment
        ran = list(pool.map(lambda _: run(bomb, Limits(threads=8)).output, range(8)))
    if os.getuid() == 0:
        assert ran == ["8\n"] * 8
    else:  # threads of the same user's other processes come and go, and count
        assert all(output.strip().isdecimal() for output in ran)
    assert raised("f = []\nwhile True: f.append(open('x', 'w'))") == "OSError"
    assert raised("open('x', 'wb').write(bytes(2**21))", file=2**20) == "OSError"
    fill = "n = 0\nwhile True:\n n += 1\n open(f'{n}', 'wb').write(bytes(2**20))"
    assert "MiB" in str(run(fill, Limits(scratch=2**23)).end)
    many = "n = 0\nwhile True:\n n += 1\n open(f'{n}', 'w')"
    assert "files" in str(run(many, Limits(entries=100)).end)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_each_of_many_at_once_is_another_user():
    with ThreadPoolExecutor(4) as pool:
        users = list(pool.map(lambda _: run("import os; print(os.getuid())").output, range(8)))
    assert len({int(user) for user in users} - {0}) == 8


def test_endless_output_is_cut_and_ended():
    ran = run("while True: print('x' * 1000)", Limits(cpu_seconds=1, seconds=600, output=1000))
    assert len(ran.output) < 1100
    assert "bytes left out" in ran.output
    assert ran.end is not None
    ran = run("print('first' + 5000 * '.' + 'last')", Limits(output=1000))
    assert ran.output.startswith("first")
    assert ran.output.endswith("last\n")


def test_it_can_be_stopped():
    stop = threading.Event()
    stop.set()
    assert run("import time; time.sleep(60)", stop=stop).end == "it was stopped"


def test_nothing_is_left_behind(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox.tempfile, "tempdir", str(tmp_path))
    tmp_path.chmod(0o755)
    deep = """
import os
os.mkdir('shut', 0)
for n in range(40):  # to a path of 8,000 characters
    os.mkdir(200 * 'd', 0o300)
    os.chdir(200 * 'd')
os.symlink('/', 'root')
"""
    run(deep)
    assert [*tmp_path.iterdir()] == []


def test_the_process_ends_with_the_server():
    code = "import time\nprint('begun', flush=True)\ntime.sleep(600)"
    server = f"""
import os, threading
from ossia.tools.python import sandbox
started = sandbox._start
def start(*arguments):
    process = started(*arguments)
    print(process.pid, flush=True)
    threading.Timer(1, os._exit, (0,)).start()
    return process
sandbox._start = start
sandbox.run({code!r})
"""
    done = subprocess.run(
        [sys.executable, "-c", server], capture_output=True, check=True, text=True
    )
    status = Path(f"/proc/{int(done.stdout)}/status")
    # A zombie, where nobody waits for orphans.
    assert eventually(lambda: not status.exists() or "zombie" in status.read_text())


def test_where_the_lock_cannot_be_shut_nothing_runs(monkeypatch):
    without = "from ossia.tools.python.jail import landlock\nlandlock._CREATE_RULESET = 999\nmain("
    monkeypatch.setattr(sandbox, "_BOOT", sandbox._BOOT.replace("main(", without))
    with pytest.raises(OssiaError, match="no Landlock") as error:
        run("print('ran')")
    assert "\n" not in str(error.value)
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(OssiaError, match="needs Linux"):
        run("print('ran')")


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="only root can become another user"
)
def test_a_server_that_is_not_root_is_as_safe():
    """With root's right to read, as the interpreter may be in root's home."""
    code = (
        "from ossia.tools.python import check, run; check();"
        "print(run('import os; print(os.getuid()); os.fork()').output)"
    )
    become = "--reuid 4242 --regid 4242 --clear-groups --inh-caps +dac_read_search"
    command = ["setpriv", *become.split(), "--ambient-caps", "+dac_read_search"]
    done = subprocess.run(
        [*command, sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("4242\n"), done.stderr
    assert DENIED in done.stdout


def call(arguments: str, **limits: float) -> tuple[str, bool]:
    async def result() -> Result:
        return await Python(Limits(**limits)).begin()("python", arguments)  # type: ignore[arg-type]

    got = asyncio.run(result())
    return got.text, got.is_error


def test_the_tool_takes_bare_code_and_an_object_that_holds_it():
    assert call("print(6 * 7)") == ("42\n", False)
    assert call('{"code": "print(6 * 7)"}') == ("42\n", False)
    assert call('{"a": 1}') == ("{'a': 1}\n", False)
    text, is_error = call("x")
    assert is_error
    assert "NameError" in text
    text, is_error = call("while True: pass", seconds=1)
    assert is_error
    assert "ran longer than 1 s" in text
    assert call("x = 1")[0].startswith("[The code printed nothing")


def test_a_call_that_is_cancelled_ends_its_process(monkeypatch):
    started, processes = sandbox._start, []

    def start(*arguments: Any) -> Any:
        processes.append(started(*arguments))
        return processes[-1]

    async def cancel() -> None:
        tool = Python()
        monkeypatch.setattr(sandbox, "_start", start)
        running = asyncio.ensure_future(tool.begin()("python", "import time; time.sleep(600)"))
        while not processes:
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancel())
    assert processes[0].wait(300) == -9


def test_runs_leave_the_threads_free_that_others_share(monkeypatch):
    free, running = threading.Event(), threading.Event()

    def hold(*_: Any) -> Ran:
        running.set()
        assert free.wait(300)
        return Ran("ran", None, 0)

    async def others() -> list[str]:
        call = Python().begin()
        monkeypatch.setattr("ossia.tools.python.tool.run", hold)
        calls = [asyncio.ensure_future(call("python", "1")) for _ in range(64)]
        assert await asyncio.to_thread(running.wait, 300)
        await asyncio.to_thread(free.set)  # which none of the calls keeps from running
        return [(await one).text for one in calls]

    assert asyncio.run(others()) == ["ran"] * 64
