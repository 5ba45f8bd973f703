"""What names of the standard library stand for: some known by heart, any other looked up."""

from __future__ import annotations

import builtins
import re
from collections.abc import Callable, Iterator
from functools import cache
from random import Random
from typing import Any

from ossia.errors import OssiaError
from ossia.text import Effort
from ossia.tools import BUILT_IN
from ossia.tools.documentation import MODULES, documentation, find, summary
from recipes.stdlib.dialogues.item import Call, Item, withheld

_LONGEST, _LONGEST_BY_HEART = 130, 90  # characters of a sentence
# By typer, in the process of a command. (torch replaces inspect.getfile, and is not imported here.)
_REPLACED = {"sys.excepthook"}

# Known by heart; a model of a few megabytes has room for few.
KNOWN = """
    abs all any bin bool chr divmod enumerate filter float hash hex id input int isinstance
    issubclass iter len list map max min next oct open ord pow print repr reversed round set
    sorted str sum tuple vars zip str.upper str.lower str.strip str.split str.join str.replace
    str.startswith str.endswith str.isdigit str.title str.count list.append list.pop
    list.reverse list.sort list.insert dict.get dict.pop set.add set.union math.sqrt math.floor
    math.ceil math.gcd math.sin math.log os.getcwd os.listdir os.mkdir os.remove os.path.join
    os.path.exists os.path.basename json.dumps re.findall re.split re.compile shlex.quote
    shutil.copy random.choice random.shuffle time.time time.sleep copy.deepcopy functools.wraps
    itertools.count itertools.product collections.Counter collections.deque
    collections.namedtuple heapq.heappush heapq.heappop bisect.bisect_left pathlib.Path
    textwrap.wrap textwrap.dedent statistics.mean statistics.median
"""

_BY_HEART = (
    "What does {} do?",
    "What is {}?",
    "Explain {}.",
    "Tell me what {} does.",
    "What is {} for?",
    "What can I do with {}?",
    "How does {} work?",
    "Describe {}.",
    "Please explain {}.",
    "Please describe {}.",
    "Tell me about {}.",
    "Can you tell me about {}?",
    "Can you tell me what {} does?",
    "I want to know what {} does.",
    "Can you explain {}?",  # the last two are never trained on
    "Please tell me about {}.",
)
_NEVER_TRAINED = 2

_LOOKED_UP = (
    "What does {} do?",
    "What does {} do?",
    "What does {} do in Python?",
    "What is {}?",
    "What is {} for?",
    "Explain {}.",
    "Tell me about {}.",
    "Look up {}.",
    "Describe {}.",
    "Document {}.",
    "How does {} work?",
    "What can I do with {}?",
    "Show the documentation of {}.",
    "Show me the documentation of {}.",
    "Documentation of {}",
    "{}?",
)
_OF_A_MODULE = (
    "What does the {} module do?",
    "What is the {} module?",
    "What is the module {} for?",
    "Explain the {} module.",
)
_TOOL = next(tool for tool in BUILT_IN if tool.name == "documentation")


def by_heart(random: Random) -> Item:
    """A known name; held out is the way to ask."""
    name = random.choice(_known())
    number = random.randrange(len(_BY_HEART))
    sentence = _sentence(name)
    place, _, last = name.rpartition(".")
    where = f"{last} of {place}" if place else "a built-in"
    return Item(
        "by_heart",
        number >= len(_BY_HEART) - _NEVER_TRAINED,
        (_BY_HEART[number].format(name),),
        {
            Effort.LOW: "",
            Effort.MEDIUM: f"I know {name}.",
            Effort.HIGH: f"The user asks for {name}, {where}. I know {name}.",
        },
        f"{name}: {sentence}",
        about=name if number < len(_BY_HEART) - _NEVER_TRAINED else "",
    )


def looked_up(random: Random) -> Item:
    """Any name, through the tool."""
    name = random.choice(_known() if random.random() < 0.3 else _names())
    sentence = _sentence(name)
    return Item(
        "looked_up",
        withheld(f"name {name}"),
        _ways_to_look_up(name),
        _thoughts(name),
        f"{name}: {sentence}",
        (_call(name),),
        (_TOOL.schema(),),
        name,
    )


def looked_up_twice(random: Random) -> Item:
    """Two names, one call after the other."""
    names = random.sample(_names(), 2)
    sentences = [_sentence(name) for name in names]
    joined = " and ".join(names)
    return Item(
        "looked_up_twice",
        any(withheld(f"name {name}") for name in names),
        (f"What do {joined} do?", f"Explain {joined}.", f"Look up {joined}."),
        _thoughts(joined),
        "\n".join(f"{name}: {said}" for name, said in zip(names, sentences, strict=True)),
        tuple(map(_call, names)),
        (_TOOL.schema(),),
    )


def unknown_name(random: Random) -> Item:
    """A name that does not exist, as the tool says."""
    name = _misnamed(random.choice(_names()), random)
    answer = f"The standard library has no {name}."
    result = f"error: the standard library has no {name}"
    return Item(
        "unknown_name",
        withheld(f"name {name}"),
        _ways_to_look_up(name),
        _thoughts(name),
        answer,
        (Call(_TOOL.name, _TOOL.parameter, name, result),),
        (_TOOL.schema(),),
        name,
    )


def _ways_to_look_up(name: str) -> tuple[str, ...]:
    if name in MODULES:
        return tuple(way.format(name) for way in (*_OF_A_MODULE, *_LOOKED_UP))
    called = tuple(way.format(f"{name}()") for way in _LOOKED_UP[:4])
    return (*(way.format(name) for way in _LOOKED_UP * 3), *called)


@cache
def _call(name: str) -> Call:
    return Call(_TOOL.name, _TOOL.parameter, name, documentation(name))


def _misnamed(name: str, random: Random) -> str:
    """A name that nothing has: with another one's last part, or put together from several."""
    place = name.rpartition(".")[0]
    while True:
        other = random.choice(_names()).rpartition(".")[2]
        made = f"{place}.{other}" if place else f"{other}_{name}"
        if random.random() < 0.5:
            parts = "_".join(random.choice(_names()).rpartition(".")[2] for _ in range(2))
            made = f"{random.choice(MODULES)}.{parts}" if random.random() < 0.7 else parts
        try:
            find(made)
        except OssiaError:
            return made


def _thoughts(name: str) -> dict[Effort, str]:
    return {
        Effort.LOW: "",
        Effort.MEDIUM: f"I look up {name}.",
        Effort.HIGH: f"The user asks for {name}. The tool {_TOOL.name} shows it, "
        "so I call the tool.",
    }


@cache
def _sentence(name: str) -> str:
    """The first one of its documentation."""
    return re.split(r"(?<=[.!?]) ", summary(find(name)))[0]


def _is_short(name: str, most: int = _LONGEST) -> bool:
    sentence = _sentence(name)
    return sentence.isascii() and 10 <= len(sentence) <= most


@cache
def _known() -> tuple[str, ...]:
    return tuple(name for name in KNOWN.split() if _is_short(name, _LONGEST_BY_HEART))


@cache
def _names() -> tuple[str, ...]:
    """Modules, functions and classes with their methods, if their documentation begins with a short
    sentence.
    """
    names = {*MODULES, *_members(builtins, "", builtins.__name__)}
    for module in MODULES:
        names.update(_members(find(module), f"{module}.", module))
    return tuple(sorted(filter(_is_short, names - _REPLACED)))


def _members(owner: Any, prefix: str, module: str) -> Iterator[str]:
    """The names that a module defines, and those of its classes."""
    for name, value in vars(owner).items():
        home = getattr(value, "__module__", None)
        if (
            name.startswith("_")
            or not callable(value)
            or home not in (module, f"_{module}", "posix")
        ):
            continue
        yield f"{prefix}{name}"
        if isinstance(value, type):
            for method, function in vars(value).items():
                if not method.startswith("_") and callable(function):
                    yield f"{prefix}{name}.{method}"


TASKS: tuple[Callable[[Random], Item], ...] = (
    by_heart,
    looked_up,
    looked_up,
    looked_up_twice,
    unknown_name,
)
