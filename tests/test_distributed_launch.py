"""The launcher: which rank is at fault and why, what it refuses, and where the ranks run."""

import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from mistral_lab import checkpoints
from mistral_lab.distributed import launch, launcher
from mistral_lab.distributed.outcome import failure

pytestmark = pytest.mark.long

BUNDLED = str(checkpoints.locate("tiny-mixtral").path)

# Ranks that fail. Rank 0 waits for rank 1, or computes on as if nothing were.


def killed():
    import os
    import signal

    import torch

    if torch.distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    torch.distributed.barrier()


def raising():
    import torch

    if torch.distributed.get_rank() == 1:
        raise KeyError("no such\nkey")
    torch.distributed.barrier()


def exiting():
    import os
    import sys

    import torch

    if torch.distributed.get_rank() == 1:
        sys.stderr.write("out of paper\n")
        sys.stderr.flush()
        os._exit(3)
    torch.distributed.barrier()


def killed_alone():
    import os
    import signal
    import time

    import torch

    if torch.distributed.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)


def raising_alone():
    import time

    import torch

    if torch.distributed.get_rank() == 1:
        torch.distributed.all_reduce("not a tensor")
    time.sleep(600)


def raising_inside_torch():
    import time

    import torch

    if torch.distributed.get_rank() == 1:
        torch.distributed.broadcast(torch.ones(2), src=7)
    time.sleep(600)


def wrong_argument():
    import torch

    if torch.distributed.get_rank() == 1:
        torch.distributed.all_reduce("not a tensor")
    torch.distributed.barrier()


def leaving():
    import os
    import time

    import torch

    if torch.distributed.get_rank() == 1:
        os._exit(0)
    time.sleep(600)


def all_leaving():
    import sys

    sys.exit(0)


def hanging():
    import time

    import torch

    if torch.distributed.get_rank() == 1:
        time.sleep(600)
    torch.distributed.barrier()


def waiting():
    import torch

    torch.distributed.recv(torch.zeros(1), src=1 - torch.distributed.get_rank())


def returning():
    import time

    import torch

    if torch.distributed.get_rank() == 0:
        time.sleep(600)


NO_TENSOR = (
    r"^rank 1 failed: TypeError: [^;]*torch.Tensor[^;]* \(line \d of the function: torch.*\); all ranks were ended$"
)
LEFT = "ended with exit status 0 before the function returned"
AT_ONCE = {  # function -> what the launcher says of it, long before the limit
    killed: r"^rank 1 was killed by signal 9; all ranks were ended$",
    killed_alone: r"^rank 1 was killed by signal 9; all ranks were ended$",
    raising: r"^rank 1 failed: KeyError: 'no such\\nkey' \(line 5 of the function: raise KeyError.*\); all ranks were",
    raising_alone: NO_TENSOR,
    raising_inside_torch: r"^rank 1 failed: RuntimeError: .*invalid root rank: 7 .*\); all ranks were ended$",
    wrong_argument: NO_TENSOR,
    exiting: r"^rank 1 ended with exit status 3: out of paper; all ranks were ended$",
    leaving: f"^rank 1 {LEFT}; all ranks were ended$",
    all_leaving: f"^rank 0 {LEFT}; rank 1 {LEFT}; all ranks were ended$",
}
AT_THE_LIMIT = {
    hanging: r"^rank 1 hung: after 4 s it was in line 7 of hanging; all ranks were ended$",
    waiting: r"^rank \d waited for other ranks: after 4 s it was in line 4 of waiting",
    returning: r"^rank 0 hung: after 4 s it was in line 7 of returning; all ranks were ended$",
}
LIMIT_S = 300


@pytest.fixture(scope="module")
def failures():
    """Two at a time: function -> what was said, and after how long."""

    def fail(function):
        began = time.monotonic()
        with pytest.raises(RuntimeError) as raised:
            launch(function, ranks=2, limit_s=LIMIT_S if function in AT_ONCE else 4)
        return str(raised.value), time.monotonic() - began

    functions = [*AT_ONCE, *AT_THE_LIMIT]
    with ThreadPoolExecutor(2) as pool:
        return dict(zip(functions, pool.map(fail, functions), strict=True))


@pytest.mark.parametrize("function", [*AT_ONCE, *AT_THE_LIMIT], ids=lambda function: function.__name__)
def test_a_failing_rank_is_named_with_its_reason(failures, function):
    assert re.search((AT_ONCE | AT_THE_LIMIT)[function], failures[function][0]), failures[function][0]


@pytest.mark.parametrize("function", AT_ONCE, ids=lambda function: function.__name__)
def test_one_failed_rank_ends_the_others_long_before_their_limit(failures, function):
    assert failures[function][1] < LIMIT_S / 4  # seconds, where starting takes a few; the others would sleep for 600


def test_no_rank_is_left_behind(failures):
    listed = subprocess.run(["ps", "-A", "-o", "ppid=,args="], capture_output=True, text=True, check=True).stdout
    mine = [line for line in listed.splitlines() if line.split()[0] == str(os.getpid())]
    assert not any("worker.py" in line for line in mine)


def test_a_rank_past_its_limit_ends_itself_where_no_launcher_is_left(tmp_path):
    (tmp_path / "task.py").write_text("def sleep():\n    import time\n    time.sleep(600)\n", encoding="utf-8")
    (tmp_path / "task").write_bytes(launcher.pickle.dumps(("sleep", ())))
    store = launcher.meeting_point(None)
    worker = launcher.start_rank(tmp_path, 0, 1, store.port, 0.5)
    try:
        assert worker.wait(timeout=100) == 1
    finally:
        worker.kill()
    assert "line 3 in sleep" in (tmp_path / "stack-0").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("stack", "said"),
    [
        ('distributed_c10d.py", line 5 in init_process_group', "rank 1 hung: after 60 s its function had not started"),
        ('__init__.py", line 8 in <module>', "rank 0 hung: after 60 s its function had not started; rank 1 hung"),
    ],
    ids=["rank 0 waits", "rank 0 imports too"],
)
def test_a_rank_that_still_imports_at_its_limit_does_not_wait_for_others(tmp_path, stack, said):
    inside = os.path.join("lib", "torch", "distributed")
    (tmp_path / "stack-0").write_text(f'File "/{inside}{os.sep}{stack}', encoding="utf-8")
    (tmp_path / "stack-1").write_text(f'File "/{inside}{os.sep}rpc.py", line 3 in <module>', encoding="utf-8")
    assert failure(tmp_path, [1, 1], 50.0, 60.0).startswith(said)


def watching():
    import os
    import time

    import torch

    number = torch.tensor(os.getpid())
    torch.distributed.broadcast(number, src=1)
    if torch.distributed.get_rank() == 1:
        return True
    for _ in range(30):  # 3 s, in which a process that does not wait has long ended
        time.sleep(0.1)
        try:
            os.kill(int(number), 0)
        except ProcessLookupError:
            return False
    return True


def test_a_rank_that_has_returned_stays_until_all_have():
    assert launch(watching, ranks=2) == [True, True]


def talking(word):
    import torch

    print(f"{word} {torch.distributed.get_rank()}")
    return torch.distributed.get_rank() + 10


def test_results_and_printed_lines_come_back_rank_by_rank(capsys):
    assert launch(talking, "rank", ranks=2) == [10, 11]
    assert capsys.readouterr().out == "rank 0\nrank 1\n"


# Where the ranks run.


def split_by_transformers(folder):
    import os

    import torch
    from transformers import AutoModelForCausalLM
    from transformers.distributed import DistributedConfig

    split = DistributedConfig(tp_size=2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, distributed_config=split)
    return model.device.type, os.environ["HERE"]


def test_where_the_accelerator_carries_no_ranks_they_run_on_the_cpu(tmp_path, monkeypatch):
    # Read by every Python that starts with this folder on its path: the ranks, before their first line.
    (tmp_path / "sitecustomize.py").write_text(
        'import os, torch\nos.environ["HERE"] = "a Mac"\n'
        'torch._C._get_accelerator = lambda *check: torch.device("mps")\n',
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert launch(split_by_transformers, BUNDLED, ranks=2) == [("cpu", "a Mac")] * 2


def visible():
    import os

    return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.parametrize(("cards", "seen"), [(1, ""), (2, "3,5")])
def test_ranks_that_have_no_card_each_see_none(monkeypatch, cards, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    assert launch(visible, ranks=2) == [seen] * 2


def importing():
    import beside_the_notebook

    return beside_the_notebook.ANSWER


def test_a_module_beside_the_notebook_is_found(tmp_path, monkeypatch):
    (tmp_path / "beside_the_notebook.py").write_text("ANSWER = 42\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # as in a notebook
    assert launch(importing, ranks=1) == [42]


# What is refused before anything starts.


def test_a_port_that_is_taken_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"^port {port} is taken by another program: give another one"):
            launch(talking, "rank", ranks=2, port=port)


def from_outside():
    word = "a name from a function around it"

    def inner():
        return word

    return inner


def registered(function):
    return function


@registered
def decorated():
    return 1


PLAIN = "expected a plain function, made with def, without a decorator and without names from a function around it"


@pytest.mark.parametrize(
    "function",
    [lambda: 1, len, from_outside(), torch.no_grad()(talking), decorated, "talking"],
    ids=["lambda", "builtin", "closure", "no_grad", "decorated", "text"],
)
def test_what_is_no_plain_function_is_refused(function):
    with pytest.raises(TypeError, match=f"cannot be sent to other processes: {PLAIN}$"):
        launch(function, ranks=2)


def test_a_function_without_source_is_refused():
    names = {}
    exec("def typed():\n    return 1", names)
    with pytest.raises(TypeError, match="has no source text: expected a function from a cell or a file$"):
        launch(names["typed"], ranks=2)


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"ranks": 0}, ValueError, "ranks is 0: expected at least 1"),
        ({"ranks": "2"}, TypeError, "ranks is '2': expected a whole number"),
        ({"ranks": 2.5}, TypeError, "ranks is 2.5: expected a whole number"),
        ({"limit_s": "5"}, TypeError, "limit_s is '5': expected a number of seconds"),
        ({"limit_s": None}, TypeError, "limit_s is None: expected a number of seconds"),
        ({"limit_s": 0}, ValueError, "limit_s is 0: expected seconds, above 0 and at most 86,400"),
        ({"limit_s": -1.5}, ValueError, "limit_s is -1.5: expected seconds, above 0 and at most 86,400"),
        ({"limit_s": float("inf")}, ValueError, "limit_s is inf: expected seconds, above 0 and at most 86,400"),
        ({"limit_s": float("nan")}, ValueError, "limit_s is nan: expected seconds, above 0 and at most 86,400"),
        ({"port": "29500"}, TypeError, "port is '29500': expected a whole number"),
        ({"port": 70_000}, ValueError, "port is 70000: expected at most 65535"),
        ({"port": -1}, ValueError, "port is -1: expected at least 1"),
        ({"port": 0}, ValueError, "port is 0: expected at least 1"),
    ],
)
def test_a_number_that_cannot_be_is_refused(wrong, kind, message):
    with pytest.raises(kind) as raised:
        launch(talking, "rank", **{"ranks": 2} | wrong)
    assert str(raised.value) == message
