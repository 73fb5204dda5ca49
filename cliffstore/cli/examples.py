"""Examples that the help of every command ends with. A test parses each, and finds a command that has none."""

from __future__ import annotations

import typer

EXAMPLES: dict[str, tuple[str, ...]] = {
    "demo": ("demo", "demo --model Qwen/Qwen3-0.6B --output ./other"),
    "extract": (
        "extract prompts.jsonl --model Qwen/Qwen3-0.6B --store ./acts",
        "extract a.parquet b.csv --map prompt=instruction --where \"label = '1'\" --model ./model --store ./acts",
        "extract more.jsonl --append --model Qwen/Qwen3-0.6B --store ./acts",
        "extract --model ./tuned --model-alias tuned --store ./acts",
        "extract prompts.jsonl --model Qwen/Qwen3-0.6B --store s3://bucket/acts --layers 8-20 --sites resid_post,z",
    ),
    "info": ("info ./acts", "info s3://bucket/acts --config pipeline.yaml --json"),
    "verify": ("verify ./acts", "verify ./acts --sample 5%", "verify ./acts --repair --model ./model"),
    "sql": (
        'sql ./acts "SELECT label, count(*) FROM examples GROUP BY 1"',
        "sql ./acts -f query.sql -o result.parquet",
        'sql ./acts --attach base=./base "SELECT count(*) FROM base.tokens"',
    ),
    "score": ("score ./acts --probe refusal", "score ./acts --probe all"),
    "cliff": (
        "cliff ./acts --probe refusal --top 20",
        "cliff ./acts --probe refusal --probe refusal-random-0-1 --plateau median --window last:32",
    ),
    "curve": (
        "curve ./acts --probe refusal --group-by label",
        "curve ./acts --probe refusal --positions -32..0 -o curve.csv",
    ),
    "plot curve": ("plot curve ./acts --probe refusal --group-by label -o curve.svg",),
    "plot cliffs": ("plot cliffs ./acts --probe refusal --selection worst -o cliffs.png",),
    "plot layers": ("plot layers ./acts --probe refusal -o layers.png",),
    "plot tokens": ("plot tokens ./acts --probe refusal --example demo-124 -o tokens.svg",),
    "probe fit": (
        "probe fit ./acts --name refusal --label label",
        "probe fit ./acts --name refusal --positions decision,-8..-1,think --test-where \"source = 'unseen'\"",
        "probe fit ./acts --name harm --label \"label = 'harmful'\" --kind lda",
    ),
    "probe list": ("probe list ./acts",),
    "probe show": ("probe show ./acts --name refusal", "probe show ./acts --name refusal --heatmap layers.png"),
    "probe import": ("probe import ./acts direction.safetensors --name theirs --layer 20 --calibrate label",),
    "probe random": ("probe random ./acts --like refusal --n 5",),
    "probe export": ("probe export ./acts --name refusal -o refusal.safetensors",),
    "clip make": ("clip make ./acts -o clipped.jsonl --keep 100,80,60,40,20,0",),
    "clip report": ("clip report ./acts --probe refusal",),
    "generate": (
        "generate prompts.jsonl --model Qwen/Qwen3-0.6B -o answers.jsonl",
        "generate prompts.jsonl --model Qwen/Qwen3-0.6B -o answers.parquet --temperature 0.6 --top-p 0.95 --samples 4",
        "generate prompts.jsonl --endpoint http://localhost:8000/v1 --model Qwen/Qwen3-0.6B -o answers.jsonl",
    ),
    "judge": ("judge answers.jsonl -o judged.jsonl", "judge ./acts --judge rules --judge column:verdict"),
    "heads planted": ("heads planted ./planted --suppressors 3",),
    "heads trace": (
        "heads trace ./acts --probe refusal",
        "heads trace ./acts --probe refusal --group-by label --positions -8..0",
    ),
    "heads ablate": (
        "heads ablate ./acts --probe refusal --shortlist 8",
        "heads ablate ./acts --probe refusal --heads 3:1,4:0 --ablation mean",
    ),
    "heads show": ("heads show ./acts refusal-direct",),
    "heads experiment": ("heads experiment ./acts --probe refusal --shares 1,3,10 --random 20 -o ./experiment",),
    "heads attention": ("heads attention ./acts --heads 3:1,5:0",),
    "select": (
        "select ./acts --name worst --probe refusal --top 1.7%",
        "select ./acts --name mixed --probe refusal --top 700 --dedupe prompt --quota source=50%",
        "select ./acts --name chance --strategy random --top 700 --seed 1",
    ),
    "selections compare": ("selections compare ./acts worst chance",),
    "export": (
        "export ./acts --selection worst -o ./train",
        "export ./acts --selection worst -o ./train --format prompt-completion --mix 30% --mix-where \"label = '0'\"",
        "export ./acts --selection worst -o s3://bucket/train --thinking keep:40% --validation 10%",
    ),
    "report": ("report ./acts -o report.html",),
    "pipeline": (
        "pipeline refusal.yaml",
        "pipeline refusal.yaml --set extract.layers=8-20 --set select.top=1.7%",
    ),
}
"""Command -> lines, each without the name of the program."""


def add_to(app: typer.Typer, group: str = "") -> None:
    """Let the help of each command of an app, and of its groups, end with its examples."""
    for command in app.registered_commands:
        lines = EXAMPLES.get(f"{group}{command.name}", ())
        # \b: what follows, to the next empty line, is not filled
        command.epilog = "\n".join(["\b", "Examples:", *(f"  cliffstore {line}" for line in lines)]) if lines else None
    for inner in app.registered_groups:
        if inner.typer_instance is not None:
            add_to(inner.typer_instance, f"{group}{inner.name or inner.typer_instance.info.name} ")
