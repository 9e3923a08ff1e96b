"""Serves a pair to OpenAI's clients, with a strength for each request and a page to try it on.

  python -m eval.serve --reference=DIR --aligned=DIR
  curl localhost:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{"messages": [{"role": "user", "content": "Hi"}], "dera": {"lambda": 1.5}}'

A request says its strength in a `dera` object or in the model's name, NAME@1.5; else it is
--lambda. The page is at http://localhost:8000. Completions of any strength, length and sampling
are decoded side by side, --rows at a time; decoding options are what requests leave open. Ctrl-C
or SIGTERM ends the server when what it has begun is done.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from dera_jax.commands.options import cli, decoding, models
from dera_jax.commands.parts.listening import listen, uvicorn_module
from dera_jax.commands.process import endings, interrupts
from dera_jax.common.checks import check_count, check_number
from dera_jax.rules.known import load_rule

KEY = "DERA_API_KEY"
"""Environment variable, in the place of --api-key."""
DRAIN = 120
"""Seconds that what has begun has to end in, once the server is told to end."""


def make_parser() -> cli.Parser:
    """Returns the parser of `python -m eval.serve`."""
    parser = cli.Parser("serve", __doc__)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: all (default %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port (default %(default)s)")
    parser.add_argument(
        "--lambda", dest="lambda_", default="1", metavar="STRENGTH",
        help="strength of requests that bring none; for two aligned models 0.5+0.5 (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--lambda-range", default="0:2", metavar="LEAST:MOST",
        help="strengths that requests may ask for (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--served-model-name", metavar="NAME", help="name of the pair (default: that of the aligned model)"
    )
    parser.add_argument(
        "--beta", type=float, metavar="B",
        help="KL strength that the aligned model was trained with, to show β/λ (default: as in its manifest)",
    )  # fmt: skip
    parser.add_argument(
        "--steps", type=int, default=16, metavar="N",
        help="tokens between two looks at who comes and goes: 1, 2, 4, 8 or 16; fewer answer sooner, more take less "
        "time in all while every row is busy (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--queue", type=int, default=256, metavar="N",
        help="completions that may wait for a row; more are answered 429 (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--max-body", type=int, default=1 << 20, metavar="BYTES",
        help="largest request; larger ones are answered 413 (default %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        help=f"what clients must send (default: {KEY} of the environment, else nothing)",
    )
    models.add_model_options(parser)
    decoding.add_decode_options(parser, leave_out=("seed", "share"))
    # Requests bring a seed or get a new one; their rows share nothing.
    parser.set_defaults(max_new_tokens=512, seed=0, share="off")
    return parser


@endings.command
def main(argv: Sequence[str] | None = None) -> None:
    """Runs `python -m eval.serve`."""
    args = make_parser().parse_args(argv)
    decode = decoding.decode_config(args)
    config, rule, draw = _checked(args, decode)
    uvicorn = uvicorn_module()
    with listen(args.host, args.port) as listening:
        app = _load(args, config, rule, draw)
        port = listening.getsockname()[1]
        print(
            f"{config.name} at http://{args.host}:{port} (λ = {args.lambda_}, {config.rows} rows)", flush=True
        )
        with interrupts.raised():
            settings = uvicorn.Config(
                app, log_level="warning", access_log=False, timeout_graceful_shutdown=DRAIN
            )
            uvicorn.Server(settings).run([listening])


def _load(args: argparse.Namespace, config, rule, draw):
    """Returns the application, its models loaded and compiled."""
    mesh = models.open_mesh(args)

    from dera_jax.devices.processes import several

    if several():
        raise ValueError(
            "eval.serve: expected one process (a mesh of its own devices is fine), found several"
        )
    cli.announce_devices()
    policies = models.load_models(args, mesh=mesh)

    from dera_jax.decoding.value_models import check_values
    from dera_jax.serving.app import make_app
    from dera_jax.serving.service import Service
    from dera_jax.serving.warming import warm_up
    from dera_jax.sweeps.plan import known_beta

    check_values(policies, rule.function)
    beta = known_beta(policies) if args.beta is None else args.beta
    service = Service(policies, config, rule.function, draw, beta)
    print("compiling", file=sys.stderr)
    print(f"compiled in {warm_up(service):.1f} s", file=sys.stderr)
    return make_app(service)


def _checked(args: argparse.Namespace, decode):
    """Returns what can be known to be wrong before a model is loaded: the settings, the rule and the draw."""
    from dera_jax.rules.rule import check_strength
    from dera_jax.serving.config import ServeConfig
    from dera_jax.strengths import parse_strengths

    reference, aligned = models.model_names(args)
    check_count("--port", args.port, least=0, most=65535)
    check_count("--max-body", args.max_body)
    if args.beta is not None:
        check_number("--beta", args.beta, 1e-9, 1e9)
    strengths = parse_strengths(args.lambda_, len(aligned or [1]))
    if len(strengths) != 1:
        raise ValueError(f"--lambda: expected one strength, found {len(strengths)}")
    rule = load_rule(args.rule)
    check_strength(rule.function, strengths[0])
    draw = decoding.draw_of(args, rule, len(aligned or [1]))
    name = args.served_model_name or (
        "toy" if reference is None else os.path.basename(aligned[-1].rstrip("/"))
    )
    if not name or "@" in name:
        raise ValueError(f"--served-model-name: expected a name without @, found {name!r:.60}")
    limits = _range(args.lambda_range)
    rows = 8 if args.rows == "auto" else decoding.parse_rows(args.rows, 1)
    try:
        config = ServeConfig(
            name=name,
            lambda_=strengths[0],
            lambda_range=limits,
            decode=decode,
            rows=rows,
            steps=args.steps,
            queue=args.queue,
            max_body=args.max_body,
            api_key=args.api_key or os.environ.get(KEY) or None,
        )
    except ValueError as error:
        setting, _, told = str(error).partition(":")
        raise ValueError(f"{cli.option(setting)}:{told}") from None
    return config, rule, draw


def _range(text: str) -> tuple[float, float]:
    least, colon, most = text.partition(":")
    try:
        if not colon:
            raise ValueError
        return float(least), float(most)
    except ValueError:
        raise ValueError(f"--lambda-range: expected two numbers such as 0:2, found {text!r:.40}") from None
