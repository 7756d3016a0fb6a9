"""What a pair takes of the memory and of a GPU, before anything is loaded, and what of it fits.

Weights and caches are counted from the files; the constants below are fitted to what loaded pairs have
resident with their caches full (docs/reliability.md).
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from draftd.daemon import machine, readings
from draftd.daemon.model_files import Shape, read_shape
from draftd.daemon.settings import Settings
from draftd.daemon.tuned import draft_file
from draftd.ipc.errors import OutOfMemory
from draftd.models.catalog import Model, Pair
from draftd.models.fetch import cached_path

BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
GGUF_BITS = 4.8  # a weight in a 4-bit file, its wider tensors included: where the file is not here yet
FRONT = 50_000_000  # the front's process
RUNTIME = {"llama_cpp": 100_000_000, "transformers": 400_000_000}  # the engine's libraries
VOCABULARY = 500  # bytes of an entry in a tokenizer
CHUNK = 512  # tokens of a prompt's pass
ROWS = 64  # rows of logits of a wide pass
SMALLEST = 512  # positions, below which a smaller context is not worth proposing


@dataclass(frozen=True, slots=True)
class Room:
    """Bytes to be had now."""

    memory: int
    gpu: int | None  # of the GPUs that the target uses; None: unread, so nothing is refused for it


@dataclass(frozen=True, slots=True)
class Item:
    name: str
    memory: int
    gpu: int = 0


@dataclass(frozen=True, slots=True)
class Budget:
    """One way to run a pair and what it takes."""

    backend: str
    context: int
    slots: int
    gpu_layers: int  # of the target in llama.cpp; -1: all
    set_layers: int  # the same as the settings have it
    items: tuple[Item, ...]

    @property
    def memory(self) -> int:
        return sum(item.memory for item in self.items)

    @property
    def gpu(self) -> int:
        return sum(item.gpu for item in self.items)

    def fits(self, room: Room) -> bool:
        return self.memory <= room.memory and (room.gpu is None or self.gpu <= room.gpu)


def measure_room(settings: Settings) -> Room:
    """What the machine has now, with what a control group leaves, and its GPUs, as far as they are used."""
    return Room(readings.memory_room()[0], _gpu_free(settings))


def asked(pair: Pair, settings: Settings, room: Room) -> list[Budget]:
    """The configuration as it stands: one budget, two where the backend is yet to be measured."""
    return [
        _budget(pair, settings, backend, settings.context, settings.slots, settings.gpu_layers, room)
        for backend in backends(pair, settings)
    ]


def best(pair: Pair, settings: Settings, room: Room) -> Budget | None:
    """The fastest that fits: as many layers on a GPU as it takes, then fewer slots, then a smaller context.

    Slots cost no speed until requests wait, so they go first. None: nothing fits.
    """
    for context, slots in _smaller(settings.context, settings.slots):
        for backend in backends(pair, settings):
            for layers in _layers(pair, settings, backend, room):
                budget = _budget(pair, settings, backend, context, slots, layers, room)
                if budget.fits(room):
                    return budget
    return None


def check(pair: Pair, settings: Settings, room: Room) -> Settings:
    """The settings, with the one backend that fits where only one does; OutOfMemory, and the table on stderr.

    Models that are not here yet are the loader's to complain of.
    """
    if missing(pair, settings):
        return settings
    budgets = asked(pair, settings, room)
    fitting = [budget for budget in budgets if budget.fits(room)]
    if not fitting:
        print(*(table(budget, room) for budget in budgets), sep="\n\n", file=sys.stderr, flush=True)
        raise OutOfMemory(sentence(pair, budgets[-1], best(pair, settings, room), room))
    if len(fitting) == len(budgets):
        return settings
    return settings.model_copy(update={"backend": fitting[0].backend})


def missing(pair: Pair, settings: Settings) -> list[str]:
    """The models whose files are not here: of these only the weights are counted, by their listed size."""
    return [model.name for model in pair.models if not cached_path(model, settings.cache_dir).exists()]


def sentence(pair: Pair, budget: Budget, better: Budget | None, room: Room) -> str:
    """That it doesn't fit, by how much, and what would."""
    lack = f"{pair.name} needs {size(budget.memory)} of memory and {size(room.memory)} are to be had"
    if room.gpu is not None and budget.gpu > room.gpu:
        lack = f"{pair.name} needs {size(budget.gpu)} of the GPU and {size(room.gpu)} are to be had"
    if better is None:
        return f"{lack}: close other programs or choose a smaller pair"
    return f"{lack}: serve with {options(better)}, which needs {size(better.memory)}"


def options(budget: Budget) -> str:
    """How to ask `serve` for it, with the layers where the settings have another number."""
    words = f"--context {budget.context} --slots {budget.slots} --backend {budget.backend}"
    other = budget.gpu_layers != budget.set_layers
    return words + (f" and gpu_layers = {budget.gpu_layers}" if other else "")


def table(budget: Budget, room: Room) -> str:
    """What takes how much, a line each."""
    rows: list[tuple[str, int, int | None]] = [(item.name, item.memory, item.gpu) for item in budget.items]
    rows += [("together", budget.memory, budget.gpu), ("to be had now", room.memory, room.gpu)]
    with_gpu = bool(room.gpu or budget.gpu)
    head = f"{budget.backend}, {budget.slots} slots of {budget.context} positions"
    lines = [f"{head:<44}{'memory':>10}" + (f"{'GPU':>10}" if with_gpu else "")]
    for name, memory, gpu in rows:
        lines.append(f"{name:<44}{size(memory):>10}" + (f"{_shown(gpu):>10}" if with_gpu else ""))
    return "\n".join(lines)


def size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _shown(gpu: int | None) -> str:
    return "unknown" if gpu is None else size(gpu)


def weights(model: Model, settings: Settings, backend: str) -> int:
    """Bytes of a model's weights in memory; by its listed size where the file is not here yet."""
    shape = _shape(cached_path(model, settings.cache_dir))
    if shape is not None:
        return _weights(shape, settings, backend)
    listed = model.size or 0
    return listed if backend == "llama_cpp" else int(listed * 8 * BYTES[settings.dtype] / GGUF_BITS)


@functools.cache
def offloads() -> bool:
    """Whether this llama.cpp can put layers on a GPU; one that can't be asked is taken to."""
    try:
        import llama_cpp

        from draftd.models import native
    except (ImportError, OSError, RuntimeError):  # not installed, or it does not load
        return True
    return bool(native.run(llama_cpp.llama_supports_gpu_offload))


def _budget(
    pair: Pair, settings: Settings, backend: str, context: int, slots: int, gpu_layers: int, room: Room
) -> Budget:
    gpu_layers = gpu_layers if gpu_layers and offloads() else 0
    items = [Item("draftd and its libraries", FRONT + RUNTIME[backend])]
    shape = _shape(cached_path(pair.target, settings.cache_dir))
    on_gpu = 0.0
    if backend == "transformers":
        auto = settings.device == "auto"
        on_gpu = 1.0 if room.gpu != 0 and settings.device != "cpu" and (not auto or machine.cuda()) else 0.0
    elif shape is not None and gpu_layers:
        on_gpu = 1.0 if gpu_layers < 0 else min(1.0, gpu_layers / (shape.layers + 1))
    held = weights(pair.target, settings, backend)
    items += _model("target", held, shape, settings, backend, context, slots, on_gpu)
    if settings.speculate and (found := draft_file(pair, settings, backend)) is not None:
        drafting = _shape(found[0])
        listed = pair.draft.size if pair.draft is not None else None
        held = found[0].stat().st_size if found[0].is_file() else listed or 0
        on_gpu = 1.0 if gpu_layers else 0.0  # it has as many layers there as the target
        items += _model("draft", held, drafting, settings, "llama_cpp", context, slots, on_gpu)
    return Budget(backend, context, slots, gpu_layers, settings.gpu_layers, tuple(items))


def _model(
    role: str,
    held: int,
    shape: Shape | None,
    settings: Settings,
    backend: str,
    context: int,
    slots: int,
    on_gpu: float,
) -> Iterator[Item]:
    """A model's parts, a share of them on the GPU; lacking the file that tells it, the weights alone."""

    def item(what: str, count: int) -> Item:
        return Item(f"{role}: {what}", count - int(on_gpu * count), int(on_gpu * count))

    yield item("weights", held)
    if shape is not None:
        if backend == "llama_cpp" and shape.packed:
            yield Item(f"{role}: weights packed for the processor", int((1.0 - on_gpu) * shape.packed))
        context = min(context, shape.longest or context)
        theirs = "float32" if shape.full else "float16"  # what llama.cpp keeps them in
        width = BYTES[theirs if backend == "llama_cpp" else settings.dtype]
        yield item("keys and values", shape.position_elements * context * slots * width)
        yield item("passes and vocabulary", _working(shape, backend))


def _working(shape: Shape, backend: str) -> int:
    """What passes compute in: a prompt's activations, rows of logits; and the tokenizer."""
    logits = 4 * shape.vocab * ROWS
    activations = 4 * CHUNK * shape.width * (40 if backend == "transformers" else 10)
    return logits + activations + VOCABULARY * shape.vocab


def _weights(shape: Shape, settings: Settings, backend: str) -> int:
    if backend == "llama_cpp":
        return shape.size
    output = shape.vocab * shape.width if shape.tied else 0  # packed for the kernel, it is a copy
    return (shape.elements + output) * BYTES[settings.dtype]


def backends(pair: Pair, settings: Settings) -> list[str]:
    """What may run the target, the one that needs less last."""
    backend = settings.backend if settings.backend != "auto" else pair.backend
    if pair.target.is_directory:
        return ["transformers"]
    return ["transformers", "llama_cpp"] if backend == "auto" else [backend]


def _smaller(context: int, slots: int) -> Iterator[tuple[int, int]]:
    yield context, slots
    while slots > 1:
        slots = max(1, slots // 2)
        yield context, slots
    while context // 2 >= SMALLEST:
        context //= 2
        yield context, slots


def _layers(pair: Pair, settings: Settings, backend: str, room: Room) -> Iterator[int]:
    """Numbers of layers for the GPU, the most first."""
    shape = _shape(cached_path(pair.target, settings.cache_dir))
    on_gpu = backend == "llama_cpp" and room.gpu and settings.device != "cpu"
    if on_gpu and shape is not None and offloads():
        yield -1
        yield from range(shape.layers, 0, -1)
        yield 0
    else:
        yield settings.gpu_layers
        if settings.gpu_layers:
            yield 0


def _shape(path: Path) -> Shape | None:
    """Read once: past a vocabulary takes 0.1 s, and ten forms of a pair and its draft may be weighed."""
    return _read(path, path.stat().st_mtime_ns) if path.exists() else None


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Shape | None:
    return read_shape(path)


def _gpu_free(settings: Settings) -> int | None:
    """Bytes free on NVIDIA GPUs; None where that can't be told: no GPU, or another maker's.

    Of all where a device map or llama.cpp spreads the layers, else of the target's own.
    """
    free = readings.gpu_memory()
    if settings.device_map or settings.backend == "llama_cpp":
        return sum(free) if free else None
    number = settings.device.removeprefix("cuda:")
    own = int(number) if number.isdigit() else 0
    return free[own] if own < len(free) else None
