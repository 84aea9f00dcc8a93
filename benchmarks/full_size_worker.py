"""What one process of benchmarks/full_size.py measures: it is started for this, and ends with it.

Each message to the runner is a dict: {"mark": ...} where the runner notes the peaks of memory so far, {"token": n}
after each token, {"kept": {...}} for a finished measurement, and {"failed": ...} with a sentence.
"""

import logging
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection

from tqdm import tqdm

TOUCHED = 8  # tokens of the short prompt whose first answer is waited for
LONG_PROMPT = 512  # tokens; a longer one is read once, because that takes minutes
LAYERS_AT = 128  # the context at which a token is followed through the layers

Send = Callable[[dict], None]


@dataclass(frozen=True)
class Job:
    """What to measure, in a form that another process can be given.

    Args:
        task: a key of `TASKS`.
        folder: of the checkpoint.
        device: as `load` takes it.
        device_bytes: the budget of a card; None without one.
        threads: of PyTorch on the CPU; None leaves its own choice.
        contexts, prompts: tokens, for the tasks that take several.
        warm_up, tokens: before the measured tokens, and how many are measured.
    """

    task: str
    folder: str
    device: str
    device_bytes: int | None = None
    threads: int | None = None
    contexts: tuple[int, ...] = ()
    prompts: tuple[int, ...] = ()
    warm_up: int = 16
    tokens: int = 16


def work(connection: Connection, job: Job) -> None:
    """Wait until the runner says that the limits stand, then measure and send.

    The lock of the progress bars is one of this process alone: the default is a semaphore of the system, and a process
    that the runner kills would leave it behind, with a warning after the runner's last line.
    """
    connection.recv()
    tqdm.set_lock(threading.RLock())
    try:
        TASKS[job.task](job, connection.send)
    except (MemoryError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError) as error:
        sentence = f"{type(error).__name__}: {error}".split("\n")[0]
        connection.send({"failed": sentence.replace(job.folder, "the checkpoint")})


def load_here(job: Job):
    """Import what loading needs, then load; return the model's `Loaded`, and the seconds of both."""
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it reports an optional package as missing
    begin = time.perf_counter()
    import bitsandbytes  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM  # noqa: F401
    from transformers.utils import logging as transformers_logging

    from mistral_lab import load

    transformers_logging.disable_progress_bar()
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    imported = time.perf_counter()
    budget = {} if job.device_bytes is None else {"device_bytes": job.device_bytes}
    loaded = load(job.folder, bits=4, device=job.device, **budget)
    done = time.perf_counter()
    return loaded, {"imports_s": imported - begin, "load_s": done - imported}


def held(device) -> dict[str, int]:
    """What this process holds now: without mapped files, of mapped files, and of tensors on a card."""
    import psutil
    import torch

    memory = psutil.Process().memory_info()
    mapped = getattr(memory, "shared", 0)
    found = {"anonymous_bytes": memory.rss - mapped, "mapped_bytes": mapped}
    if torch.device(device).type == "cuda":
        found |= {
            "card_bytes": torch.cuda.memory_allocated(device),
            "card_peak_bytes": torch.cuda.max_memory_allocated(device),
            "card_peak_reserved_bytes": torch.cuda.max_memory_reserved(device),
        }
    return found


def machine(device) -> dict:
    """The hardware and the versions of this process."""
    from mistral_lab.measure import Machine

    return asdict(Machine.here(device))


def as_lists(steps) -> dict[str, list]:
    """The steps of one measurement, column by column."""
    return {
        "seconds": [step.seconds for step in steps],
        "disk_bytes": [step.paging.disk_bytes for step in steps],
        "major_faults": [step.paging.major_faults for step in steps],
    }


class AlongTheLayers:
    """Notes something where the embedding begins and after each layer and the output layer, while it is entered."""

    def __init__(self, model, note: Callable[[], object]) -> None:
        self.passes: list[list] = []
        self.note = note
        self.parts = [*model.model.layers, model.lm_head]
        self.embedding = model.model.embed_tokens

    def __enter__(self) -> "AlongTheLayers":
        def begin(module, inputs) -> None:
            self.passes.append([self.note()])

        def after(module, inputs, output) -> None:
            self.passes[-1].append(self.note())

        self.hooks = [self.embedding.register_forward_pre_hook(begin)]
        self.hooks += [part.register_forward_hook(after) for part in self.parts]
        return self

    def __exit__(self, *failure) -> None:
        for hook in self.hooks:
            hook.remove()


def make_ready(job: Job, send: Send) -> None:
    """Load once, so that what `load` prepares on the disk is there, and say which files it reads and what they hold."""
    from mistral_lab.four_bit import audit

    loaded, _ = load_here(job)
    report = audit(loaded.model)
    rows = [asdict(row) for row in report.rows]
    send(
        {
            "kept": {
                "reads": loaded.model.name_or_path,
                "audit": {"verdict": report.verdict, "nbytes": report.nbytes, "rows": rows},
                "machine": machine(loaded.model.device),
            }
        }
    )


def measure_load(job: Job, send: Send) -> None:
    """Time loading and the first token of a short prompt, and follow the memory through the layers meanwhile."""
    loaded, seconds = load_here(job)
    from mistral_lab.loading.loaded import new_cache
    from mistral_lab.measure import Paging, measure_bandwidth, random_tokens, timed_steps

    model, device = loaded.model, loaded.model.device
    after_load = held(device)
    send({"mark": "load"})
    with AlongTheLayers(model, lambda: held(device)) as memory:
        following = random_tokens(model, 2, seed=1)[0].tolist()
        steps = timed_steps(model, random_tokens(model, TOUCHED), following, cache=new_cache(model))
    send({"mark": "first token"})
    send(
        {
            "kept": {
                **seconds,
                "first_token_s": steps[0].seconds,
                "second_token_s": steps[1].seconds,
                "prompt_tokens": TOUCHED,
                **asdict(Paging.now()),
                "held_after_load": after_load,
                "held_after_first_token": held(device),
                "held_by_layer": {name: [moment[name] for moment in memory.passes[0]] for name in after_load},
                "read_bytes_per_s": measure_bandwidth(device),
                "machine": machine(device),
            }
        }
    )


def measure_decode(job: Job, send: Send) -> None:
    """Time tokens at each context, one token layer by layer, and the reading of each prompt, in one process."""
    from mistral_lab.loading.loaded import new_cache
    from mistral_lab.measure import filled, measure_bandwidth, random_tokens, timed_steps
    from mistral_lab.measure.timing import waiter

    loaded, _ = load_here(job)
    model, device = loaded.model, loaded.model.device
    wait = waiter(device)
    common = {"machine": machine(device)}

    def beside(measurement: Callable):
        """Measure the speed of memory before and after: it changes from minute to minute where others share it."""
        before = measure_bandwidth(device)
        found = measurement()
        return found, common | {"read_bytes_per_s": max(before, measure_bandwidth(device))}

    def steps_at(context: int, count: int, *, timed: bool = True) -> tuple[list, dict[str, int]]:
        """Steps of one token each, after one that is left out: `generate` begins with it; and what is held by then."""
        drawn = random_tokens(model, context + count, seed=context)
        report = (lambda number, step: send({"token": number})) if timed else None
        prompt, following = drawn[:, :context], drawn[0, context:].tolist()
        cache = filled(new_cache(model), model, context - 1)
        steps = timed_steps(model, prompt, [0, *following], cache=cache, after=report)[1:]
        return steps, held(device)  # while the cache is there

    steps_at(LAYERS_AT, job.warm_up)
    for context in job.contexts:
        (steps, holds), speed = beside(lambda context=context: steps_at(context, job.tokens))
        send({"kept": {"what": "context", "setting": context, **as_lists(steps), **holds, **speed}})

    def moment() -> float:
        wait()
        return time.perf_counter()

    if job.contexts:
        with AlongTheLayers(model, moment) as times:
            _, speed = beside(lambda: steps_at(LAYERS_AT, job.tokens, timed=False))
        since = [[after - passed[0] for after in passed] for passed in times.passes[1:]]
        by_layer = [statistics.median(column) for column in zip(*since, strict=True)]
        send({"kept": {"what": "layers", "setting": LAYERS_AT, "seconds_by_layer": by_layer, **speed}})
    for prompt in job.prompts:
        speed, runs = common | {"read_bytes_per_s": measure_bandwidth(device)}, []
        for number in range(3 if prompt <= LAYERS_AT else 2 if prompt <= LONG_PROMPT else 1):
            runs += timed_steps(model, random_tokens(model, prompt, seed=number), [0], cache=new_cache(model))
            send({"token": number})
        send({"kept": {"what": "prefill", "setting": prompt, **as_lists(runs), **held(device), **speed}})


def measure_budget(job: Job, send: Send) -> None:
    """Time tokens under a limit of memory, after a warm-up that fills what the limit leaves for the weights."""
    loaded, seconds = load_here(job)
    from mistral_lab.loading.loaded import new_cache
    from mistral_lab.measure import measure_bandwidth, random_tokens, timed_steps

    model, device = loaded.model, loaded.model.device
    drawn = random_tokens(model, TOUCHED + job.warm_up + job.tokens)
    steps = timed_steps(
        model,
        drawn[:, :TOUCHED],
        drawn[0, TOUCHED:].tolist(),
        cache=new_cache(model),
        after=lambda number, step: send({"token": number}),
    )
    send({"mark": "tokens"})
    found = {
        **seconds,
        "first_token_s": steps[0].seconds,
        "warm_up_s": sum(step.seconds for step in steps[: job.warm_up]),
        "warm_up_tokens": job.warm_up,
        **as_lists(steps[job.warm_up :]),
        **held(device),
        "machine": machine(device),
    }
    del loaded, model
    send({"kept": {**found, "read_bytes_per_s": measure_bandwidth(device)}})  # it needs memory: after the rest


TASKS = {"ready": make_ready, "load": measure_load, "decode": measure_decode, "budget": measure_budget}
