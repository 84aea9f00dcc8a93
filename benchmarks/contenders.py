"""The models that `make bench` times, each in a process of its own that waits until it is its turn.

Each process has its own pool of threads, so that PyTorch's and llama.cpp's do not get in each other's way, and a
process that waits reads from a pipe, which takes no time of the processor. All get random tokens as prompts and as the
tokens that they choose, so that a mixture goes to all of its experts, and each does the work of greedy decoding.

    lab           load(folder, bits=4), then `generate`, as a reader calls them
    transformers  from_pretrained with transformers' and bitsandbytes' own 4-bit layers, then `generate`
    llama.cpp     a GGUF file in Q4_0, through the C interface of llama-cpp-python

A context is filled without reading it: with random keys and values in transformers, and in llama.cpp with copies of the
keys and values of 32 tokens, turned to their new positions. What a step then costs is what it costs after reading.
"""

import copy
import ctypes
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil

BLOCK = 32  # tokens that llama.cpp reads to fill a context of any length
BATCH = 512  # tokens that llama.cpp reads at once
TRIAL_STEPS = 4  # with which flash attention is tried


@dataclass(frozen=True)
class Work:
    """What a contender is given to hold and to do.

    Args:
        path: of its checkpoint or file.
        threads: on the CPU.
        contexts: the tokens of context at which it will decode.
        prompts: the tokens of the prompts that it will read.
        new_tokens: how many it decodes in one turn.
    """

    path: Path
    threads: int
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    new_tokens: int


@dataclass(frozen=True)
class Turn:
    """One turn of a contender: seconds of the prompt or of one token, and bytes that the disk was read for meanwhile.

    `disk_bytes` is None where the system does not count them.
    """

    seconds: float
    disk_bytes: float | None


class Transformers:
    """A model of transformers in four bits, with its contexts; `Lab` and `Stock` load it."""

    def __init__(self, work: Work) -> None:
        import torch

        from mistral_lab.measure import filled

        torch.set_num_threads(work.threads)
        self.new_tokens, self.seed = work.new_tokens, 0
        begin = time.perf_counter()
        self.model = self.loaded(work.path)
        loaded_s = time.perf_counter() - begin
        begin = time.perf_counter()
        self.prefill(1)  # packs the weights where that is still to be done
        self.about = {
            "version": self.version(),
            "load_s": loaded_s,
            "first_token_s": time.perf_counter() - begin,
            "reads": self.model.name_or_path,
            "settings": f"{str(self.model.dtype).removeprefix('torch.')} on {self.model.device.type}",
        }
        self.filled = {context: filled(self.new_cache(), self.model, context) for context in work.contexts}

    def tokens(self, count: int):
        """Draw other tokens in every turn."""
        from mistral_lab.measure.decoding import random_tokens

        self.seed += 1
        return random_tokens(self.model, count, seed=self.seed)

    def prefill(self, prompt: int) -> Turn:
        """Read a prompt, up to its first token."""
        from mistral_lab.measure.decoding import timed_steps

        (step,) = timed_steps(self.model, self.tokens(prompt), [0], cache=self.new_cache())
        return Turn(step.seconds, step.paging.disk_bytes)

    def decode(self, context: int) -> Turn:
        """Choose `new_tokens` tokens after a context, and return the mean of all but the first."""
        from mistral_lab.measure.decoding import timed_steps

        chosen = self.tokens(self.new_tokens + 1)[0].tolist()
        cache = copy.deepcopy(self.filled[context])
        steps = timed_steps(self.model, self.tokens(context + 1), chosen, cache=cache)[1:]
        return mean_turn([Turn(step.seconds, step.paging.disk_bytes) for step in steps])


class Lab(Transformers):
    """`load(folder, bits=4)`, with the cache that `generate_text` uses."""

    def new_cache(self):
        """Return an empty cache."""
        from mistral_lab.loading.loaded import new_cache

        return new_cache(self.model)

    @staticmethod
    def version() -> str:
        """Return the version that is named in the record."""
        return f"mistral-lab {metadata.version('mistral-lab')}"

    @staticmethod
    def loaded(path: Path):
        """Load a checkpoint in four bits."""
        from mistral_lab import load

        return load(path, bits=4).model


class Stock(Transformers):
    """transformers' own quantiser, layers and cache: NF4, double quantisation, arithmetic in bfloat16."""

    def new_cache(self):
        """Return an empty cache."""
        from transformers import DynamicCache

        return DynamicCache(config=self.model.config)

    @staticmethod
    def version() -> str:
        """Return the versions that are named in the record."""
        return f"transformers {metadata.version('transformers')}, bitsandbytes {metadata.version('bitsandbytes')}"

    @staticmethod
    def loaded(path: Path):
        """Load a checkpoint whose config names bitsandbytes, on the GPU where there is one."""
        import torch
        from transformers import AutoModelForCausalLM

        device = "cuda" if torch.cuda.is_available() else "cpu"
        return AutoModelForCausalLM.from_pretrained(str(path), dtype=torch.bfloat16, device_map=device).eval()


class LlamaCpp:
    """A GGUF file in llama.cpp, on the CPU, mapped.

    llama.cpp can copy the weights into an order that its products like better (`use_extra_bufts`, its default). Then
    they are its own memory and not the page cache's, and a file larger than memory cannot be loaded. `repacked` says
    whether it may. Flash attention is on or off, whichever decodes faster at the longest context.
    """

    repacked = False

    def __init__(self, work: Work) -> None:
        import llama_cpp

        self.llama = llama_cpp
        self.new_tokens, self.random = work.new_tokens, np.random.default_rng(0)
        self.threads = work.threads
        self.silent = llama_cpp.llama_log_callback(lambda level, text, data: None)  # has to live as long as the model
        llama_cpp.llama_log_set(self.silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        begin = time.perf_counter()
        settings = llama_cpp.llama_model_default_params()
        settings.n_gpu_layers = 0
        settings.use_extra_bufts = self.repacked
        self.model = llama_cpp.llama_model_load_from_file(str(work.path).encode(), settings)
        if not self.model:
            raise OSError(f"llama.cpp cannot load {work.path.name}: remove the file, and it is written again")
        self.vocabulary = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        loaded_s = time.perf_counter() - begin
        self.size = max(*work.contexts, *work.prompts) + BLOCK + work.new_tokens + 1
        begin = time.perf_counter()
        flash = self.better_attention(max(work.contexts))
        self.about = {
            "version": f"llama-cpp-python {llama_cpp.__version__}",
            "load_s": loaded_s,
            "first_token_s": self.first_token_s,
            "settings": f"flash attention {'on' if flash else 'off'}, "
            f"{'repacked' if self.repacked else 'mapped'}; {' '.join(self.instructions())}",
        }
        self.states = {context: self.state_after(context) for context in work.contexts}

    def instructions(self) -> list[str]:
        """List the instruction sets that this build uses."""
        text = self.llama.llama_print_system_info().decode()
        return [part.split("=")[0].split(":")[-1].strip() for part in text.split("|") if part.strip().endswith("= 1")]

    def open_context(self, flash: bool) -> None:
        """Make room for keys and values. Sequence 0 is what is decoded, sequence 1 helps to fill it."""
        llama = self.llama
        settings = llama.llama_context_default_params()
        settings.n_ctx, settings.n_batch, settings.n_ubatch = self.size, BATCH, BATCH
        settings.n_threads = settings.n_threads_batch = self.threads
        settings.n_seq_max, settings.kv_unified = 2, True
        on, off = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED, llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        settings.flash_attn_type = on if flash else off
        self.context = llama.llama_init_from_model(self.model, settings)
        if not self.context:
            raise MemoryError(f"llama.cpp cannot make room for {self.size} tokens: give smaller --contexts")
        self.memory = llama.llama_get_memory(self.context)

    def better_attention(self, context: int) -> bool:
        """Decode with flash attention off and on, leave the faster setting open, and say whether it is on."""
        found = {}
        for flash in (False, True):
            self.open_context(flash)
            self.first_token_s = self.read(BLOCK)
            self.restore(self.state_after(context))
            self.read(1)
            found[flash] = min(self.read(1) for _ in range(TRIAL_STEPS))
            if flash and found[True] <= found[False]:
                return True
            self.llama.llama_free(self.context)
        self.open_context(False)
        return False

    def read(self, count: int) -> float:
        """Give the model random tokens, choose as greedy decoding does, and return the seconds."""
        llama_token = self.llama.llama_token
        tokens = (llama_token * count)(*self.random.integers(self.vocabulary, size=count).tolist())
        begin = time.perf_counter()
        for first in range(0, count, BATCH):
            piece = ctypes.cast(ctypes.byref(tokens, first * ctypes.sizeof(llama_token)), self.llama.llama_token_p)
            batch = self.llama.llama_batch_get_one(piece, min(BATCH, count - first))
            if failed := self.llama.llama_decode(self.context, batch):
                raise RuntimeError(f"llama_decode says {failed}: expected 0")
        logits = self.llama.llama_get_logits_ith(self.context, -1)
        np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax()
        return time.perf_counter() - begin

    def state(self):
        """Copy the keys and values of sequence 0."""
        buffer = (ctypes.c_uint8 * self.llama.llama_state_seq_get_size(self.context, 0))()
        self.llama.llama_state_seq_get_data(self.context, buffer, len(buffer), 0)
        return buffer

    def restore(self, state, sequence: int = 0) -> None:
        """Put keys and values back; for sequence 0 in place of all others."""
        if sequence == 0:
            self.llama.llama_memory_clear(self.memory, False)
        if not self.llama.llama_state_seq_set_data(self.context, state, len(state), sequence):
            raise RuntimeError(f"llama.cpp does not take back the keys and values of {len(state)} bytes")

    def state_after(self, context: int):
        """Fill sequence 0 with copies of the keys and values of one block, and return them."""
        llama = self.llama
        llama.llama_memory_clear(self.memory, False)
        self.read(min(BLOCK, context))
        block = self.state()
        for start in range(BLOCK, context, BLOCK):
            self.restore(block, sequence=1)
            llama.llama_memory_seq_add(self.memory, 1, -1, -1, start)
            llama.llama_memory_seq_cp(self.memory, 1, 0, -1, -1)
            llama.llama_memory_seq_rm(self.memory, 1, -1, -1)
        llama.llama_memory_seq_rm(self.memory, 0, context, -1)
        self.read(1)  # now the keys are turned
        llama.llama_memory_seq_rm(self.memory, 0, context, -1)
        if llama.llama_memory_seq_pos_max(self.memory, 0) != context - 1:
            raise RuntimeError(f"llama.cpp holds another number of tokens than {context}")
        return self.state()

    def prefill(self, prompt: int) -> Turn:
        """Read a prompt, up to its first token."""
        from mistral_lab.measure.paging import Paging

        self.llama.llama_memory_clear(self.memory, False)
        before = Paging.now()
        return Turn(self.read(prompt), Paging.now().since(before).disk_bytes)

    def decode(self, context: int) -> Turn:
        """Choose `new_tokens` tokens after a context, and return the mean of all but the first."""
        from mistral_lab.measure.paging import Paging

        self.restore(self.states[context])
        self.read(1)
        turns = []
        for _ in range(self.new_tokens):
            before = Paging.now()
            turns.append(Turn(self.read(1), Paging.now().since(before).disk_bytes))
        return mean_turn(turns)


class RepackedLlamaCpp(LlamaCpp):
    """llama.cpp as it comes, which copies the weights into another order where that makes products faster."""

    repacked = True


KINDS = {"lab": Lab, "transformers": Stock, "llama.cpp": RepackedLlamaCpp, "llama.cpp mapped": LlamaCpp}


def mean_turn(turns: list[Turn]) -> Turn:
    """Take the mean of several turns.

    >>> mean_turn([Turn(1.0, None), Turn(3.0, None)])
    Turn(seconds=2.0, disk_bytes=None)
    """
    seconds = statistics.fmean(turn.seconds for turn in turns)
    unknown = any(turn.disk_bytes is None for turn in turns)
    return Turn(seconds, None if unknown else statistics.fmean(turn.disk_bytes for turn in turns))


class Worker:
    """A contender in a process of its own.

    Args:
        kind: a key of `KINDS`.
    """

    def __init__(self, kind: str) -> None:
        context = multiprocessing.get_context("spawn")  # a forked copy would have PyTorch's pool without its threads
        self.kind = kind
        self.connection, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, kind), daemon=True)
        self.process.start()
        other.close()

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self.process.pid

    def busy_s(self) -> float:
        """Return the seconds that the processor has worked for it so far; 0 where the process is gone."""
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return times.user + times.system

    def ask(self, question: str, *values):
        """Have it do something, and return the answer.

        Args:
            question: "open" with its `Work`, "prefill" with a number of tokens, or "decode" with a context.

        Raises:
            RuntimeError: what went wrong there, in its words; or the process ended, as where memory ran out.
        """
        try:
            self.connection.send((question, values))
            fine, answer = self.connection.recv()
        except (EOFError, OSError):
            self.process.join(timeout=10)
            raise RuntimeError(f"ended with {self.process.exitcode}, perhaps because memory ran out") from None
        if not fine:
            raise RuntimeError(answer)
        return answer

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.join(timeout=10)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def serve(connection, kind: str) -> None:
    """Hold a contender and answer until the other side closes the connection."""
    contender = None
    while True:
        try:
            question, values = connection.recv()
        except EOFError:
            return
        try:
            if question == "open":
                contender = KINDS[kind](*values)
                answer = contender.about
            else:
                answer = getattr(contender, question)(*values)
            connection.send((True, answer))
        except Exception as error:  # of any library; it becomes a line of the table
            connection.send((False, f"{type(error).__name__}: {' '.join(str(error).split())}"))


def in_turns(
    workers: list[Worker], work: Callable[[Worker], Turn | None], number: int
) -> tuple[dict[str, Turn | None], float]:
    """Have each worker do the same, one after the other, beginning with another in every round.

    Returns:
        the turns, and the largest share of a processor that a worker took while it waited.
    """
    first = number % max(len(workers), 1)
    turns, waited = {}, 0.0
    for worker in workers[first:] + workers[:first]:
        others = [other for other in workers if other is not worker]
        before, begin = [other.busy_s() for other in others], time.perf_counter()
        turns[worker.kind] = work(worker)
        seconds = time.perf_counter() - begin
        shares = (
            (other.busy_s() - earlier) / seconds for other, earlier in zip(others, before, strict=True) if seconds > 1
        )  # the system counts in hundredths of a second
        waited = max([waited, *shares])
    return turns, waited
