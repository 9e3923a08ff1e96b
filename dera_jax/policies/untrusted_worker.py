"""Runs what models bring: chat templates, which are programs, and regular expressions, which may never end.

A process of its own, started by `untrusted`, with little time and memory. A line of JSON asks: `template`, the
`variables` of each text and the `marks` around what the assistant writes, or `patterns` and `names`. A line
answers: `found`, or `failure` and its `kind`: refused (it is broken, or says no itself), memory, length or other.
What takes too long ends the process.
"""

import json
import math
import re
import resource
import signal
import sys
import time
from datetime import datetime
from functools import lru_cache

if __name__ == "__main__":
    sys.path += sys.argv[1:]  # where jinja2 is: nothing else of the user's is at hand
from jinja2 import Environment, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

SECONDS = 5.0
"""Of computing that all of it may take beyond `EACH` for every text."""
EACH = 0.1
WALL_SECONDS = 60
"""That a request may take where the machine is busy with something else."""
MEMORY = 2**29
"""Bytes of address space. macOS has no such limit; there, what fills memory is ended by the limit of time."""
LONGEST = 2**24
"""Characters of a text."""


def main() -> None:
    """Answers until standard input ends."""
    _limit(resource.RLIMIT_AS, MEMORY)
    for number in (signal.SIGXCPU, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)  # ends the process, whatever it is in the middle of
    left = SECONDS
    for line in sys.stdin.buffer:
        try:
            request, start = json.loads(line), time.process_time()
            left += EACH * len(request.get("variables", ()))
            _limit(resource.RLIMIT_CPU, math.ceil(start + left))
            signal.alarm(WALL_SECONDS)
            answer = json.dumps(_answer(**request))
            signal.alarm(0)
            left = min(SECONDS, left - (time.process_time() - start))
        except MemoryError:
            answer = json.dumps({"kind": "memory"})
        sys.stdout.buffer.write(answer.encode() + b"\n")
        sys.stdout.buffer.flush()


def _limit(kind: int, soft: int) -> None:
    """Lowers or raises a limit, within what the user allows."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))


def _answer(**request) -> dict:
    try:
        found = _match(**request) if "patterns" in request else _render(**request)
    except (TemplateError, re.error) as error:
        return {"kind": "refused", "failure": str(error)}
    except (RecursionError, OverflowError) as error:
        deep = isinstance(error, RecursionError)
        return {"kind": "refused", "failure": "nested too deeply" if deep else str(error)}
    except MemoryError:
        raise
    except Exception as error:  # a program may fail in any way
        return {"kind": "other", "failure": str(error) or type(error).__name__}
    if any(isinstance(text, str) and len(text) > LONGEST for text in found):
        return {"kind": "length"}
    return {"found": found}


def _render(template: str, variables: list[dict], marks: tuple[str, str] = ("", "")) -> list[str]:
    compiled = compile_template(template)
    _Generation.marks = marks
    return [compiled.render(names) for names in variables]


def _match(patterns: list[str], names: list[str]) -> list[int | None]:
    """Returns the number of the first pattern that each name, or its end behind a dot, is; as PEFT matches."""
    for pattern in patterns:
        re.compile(pattern)
    compiled = [re.compile(rf"(.*\.)?({pattern})$") for pattern in patterns]
    return [next((n for n, one in enumerate(compiled) if one.match(name)), None) for name in names]


@lru_cache(maxsize=8)
def compile_template(text: str):
    """Returns a template of the environment that transformers makes for chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, LoopControlExtension]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return environment.from_string(text)


class _Generation(Extension):
    """`{% generation %}` around what the assistant writes."""

    tags = {"generation"}  # noqa: RUF012 (jinja2's)
    marks = ("", "")
    """Written before and behind it."""

    def __init__(self, environment: Environment):
        super().__init__(environment)

    def parse(self, parser):
        """Returns the block's body as it is."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller) -> str:
        start, end = self.marks
        return f"{start}{caller()}{end}"


def _to_json(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message):
    raise TemplateError(message)


class _Dict:
    """`dict` without what a class of Python's leads to."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        """As dict.fromkeys."""
        return dict.fromkeys(*args, **kwargs)


class _Namespace(Namespace):
    """`namespace` without names that begin with an underscore."""

    def __init__(*args, **kwargs):  # a template may name an attribute `self`
        self, args = args[0], args[1:]
        attributes = dict(*args, **kwargs)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        _check_name(name)
        Namespace.__setitem__(self, name, value)


def _check_name(name) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace takes no name that begins with an underscore, found {name!r}")


if __name__ == "__main__":
    main()
