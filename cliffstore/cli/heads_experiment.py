"""`cliffstore heads experiment`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cliffstore.cli.output import Json, OptionsFrom, StoreUrl, open_to_read, print_json, print_table

if TYPE_CHECKING:
    from cliffstore.run.experiment.settings import ExperimentReport

_HELP = """Trace heads on half of the harmful prompts, switch the worst off on the others and on benign ones.

Measured against the unchanged model, beside random heads of the same layers: the probe's score before the answer,
refusals in generated text, logits of words that refusals and answers begin with, perplexity of benign text. With
thinking as it is, and regenerated under the change. The result is the view experiments.

Run the same command again to go on after a crash or an interrupt, or to see the table.
"""


def add_to(group: typer.Typer) -> None:
    """Add the command to the group `heads`."""
    group.command(name="experiment", help=_HELP)(experiment)


def experiment(
    store: StoreUrl,
    probe: Annotated[str, typer.Option(help="Name of a probe of the store.")],
    config: OptionsFrom = None,
    name: Annotated[str | None, typer.Option(help="Of the result. Default: <probe>-experiment.")] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", help="Folder, path or URL: table, texts and chart as files.")
    ] = None,
    trace: Annotated[
        str | None, typer.Option(help="Trace that is there already. Default: one of half of the harmful prompts.")
    ] = None,
    shares: Annotated[str, typer.Option(help="Percentages of all heads to switch off.")] = "1,3,10",
    random: Annotated[int, typer.Option(min=0, help="Random sets for each share, layer-matched.")] = 20,
    random_generate: Annotated[int, typer.Option(min=0, help="Of which so many write text, too.")] = 3,
    scale: Annotated[float, typer.Option(help="What z of these heads is multiplied by, 0 to 2.")] = 0.0,
    keep_norm: Annotated[bool, typer.Option("--keep-norm", help="Heads of a token keep their joint norm.")] = False,
    positions: Annotated[str, typer.Option(help="Where heads are off: all, template, decision, generated ...")] = "all",
    harmful_where: Annotated[str, typer.Option(help="SQL condition over examples.")] = "label = '1'",
    benign_where: Annotated[str, typer.Option(help="SQL condition over examples.")] = "label = '0'",
    limit: Annotated[int, typer.Option(min=1, help="At most so many harmful and so many benign examples.")] = 100,
    thinking: Annotated[str, typer.Option(help="fixed, regenerated or both.")] = "both",
    new_tokens: Annotated[int, typer.Option(min=1, help="Of an answer.")] = 64,
    thinking_tokens: Annotated[int, typer.Option(min=1, help="Of regenerated thinking.")] = 512,
    benign_text: Annotated[str, typer.Option(help="Column of the text whose perplexity is measured.")] = "response",
    refusal_opener: Annotated[
        list[str] | None, typer.Option("--refusal-opener", help="What refusals begin with; repeatable.")
    ] = None,
    compliance_opener: Annotated[
        list[str] | None, typer.Option("--compliance-opener", help="What answers begin with; repeatable.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples that are generated at once.")] = 16,
    model: Annotated[str | None, typer.Option(help="Where the model is, if not where the store says.")] = None,
    adapter: Annotated[str | None, typer.Option(help="Where its adapter is, if not where the store says.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    resamples: Annotated[int, typer.Option(min=0, help="Of the bootstrap over examples.")] = 1_000,
    level: Annotated[float, typer.Option(help="Share of the resampled figures that an interval holds.")] = 0.95,
    seed: Annotated[int, typer.Option(min=0, help="Of the halves, random sets and the bootstrap.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of one of the same name.")] = False,
    json: Json = False,
) -> None:
    openers = {
        key: tuple(given)
        for key, given in (("refusal_openers", refusal_opener), ("compliance_openers", compliance_opener))
        if given
    }
    with open_to_read(store, config) as opened:
        report = opened.experiment_heads(
            probe,
            name=name,
            output=output,
            model=model,
            adapter=adapter,
            device=device,
            trace=trace,
            shares=_shares(shares),
            random=random,
            random_generate=random_generate,
            scale=scale,
            keep_norm=keep_norm,
            positions=positions,
            harmful_where=harmful_where,
            benign_where=benign_where,
            limit=limit,
            thinking=thinking,
            new_tokens=new_tokens,
            thinking_tokens=thinking_tokens,
            benign_text=benign_text,
            batch_size=batch_size,
            resamples=resamples,
            level=level,
            seed=seed,
            replace=replace,
            **openers,
        )
    if json:
        print_json({"name": report.name, **report.document, "computed": report.computed, "seconds": report.seconds,
                    "files": report.files, "figures": report.rows})  # fmt: skip
        return
    _show(report)


def _shares(text: str) -> tuple[float, ...]:
    from cliffstore.errors import ConfigError

    try:
        return tuple(float(one.strip().removesuffix("%")) for one in text.split(","))
    except ValueError:
        raise ConfigError(f"--shares {text!r}: write percentages with commas between them, such as 1,3,10") from None


_COLUMNS = (
    ("harmful", "score", "score", ".3g"),
    ("harmful", "refused", "refused", ".1%"),
    ("benign", "refused", "over-refusal", ".1%"),
    ("harmful", "logit_difference", "logit difference", ".3g"),
    ("benign", "perplexity", "perplexity", ".4g"),
)
_CHANGE = ".3g"


def _show(report: ExperimentReport) -> None:
    """Print a line for the unchanged model, each share, and the random sets of each share together."""
    facts = report.document
    keys = list(dict.fromkeys((row["thinking"], row["condition"], row["share"]) for row in report.rows))
    ways = list(dict.fromkeys(thinking for thinking, _, _ in keys))
    keys.sort(key=lambda key: (ways.index(key[0]), key[2] or 0.0))
    shown = [column for column in _COLUMNS if any((row["part"], row["measure"]) == column[:2] for row in report.rows)]
    lines: list[list[object]] = []
    for thinking, condition, share in keys:
        own = [row for row in report.rows if (row["thinking"], row["condition"], row["share"]) == (
            thinking, condition, share)]  # fmt: skip
        cells = [
            _cell([row for row in own if (row["part"], row["measure"]) == (part, measure)], form, facts[part])
            for part, measure, _, form in shown
        ]
        sets = len({row["set"] for row in own})
        said = "unchanged" if share is None else f"{share:g} %" + (f", {sets} random" if condition == "random" else "")
        lines.append([thinking, said, own[0]["n_heads"], *cells])
    off = "heads off" if facts["scale"] == 0 else f"heads x {facts['scale']:g}"
    print_table(["thinking", off, "heads", *(title for _, _, title, _ in shown)], lines)
    level = facts["level"]
    assert isinstance(level, float)
    percent = f"{100 * level:g}%"
    writing = facts["random_generated"]
    some = "" if writing == facts["random"] else f" (refusals: of {writing} of them)"
    print(
        f"\nScore and logit difference: means over {facts['harmful']} harmful examples before the answer; the change "
        f"with its {percent} interval (paired bootstrap). Refused: of those, over-refusal: of {facts['benign']} benign "
        f"ones, with {percent} Wilson intervals. Random sets{some}: mean, and from least to most. n: examples that "
        "have the figure, where these are not all."
    )
    print(
        f"Logit difference: mean logit of the first tokens of refusals ({_said(facts['refusal_openers'])}) less that "
        f"of answers ({_said(facts['compliance_openers'])})."
    )
    if facts["benign_text"] is not None:
        print(f"Perplexity: of {facts['benign_text']} of benign examples.")
    print(f"Heads: {'; '.join(f'{share} %: {_heads(heads)}' for share, heads in _dict(facts['heads']).items())}")
    for file in report.files:
        print(file)


def _cell(rows: Sequence[dict[str, object]], form: str, examples: object) -> str:
    """Return the figures of one measure; how many examples have it, where fewer do than there are."""
    values = [float(str(row["value"])) for row in rows if row["value"] is not None]
    if not values:
        return "-"
    counts = [int(str(row["n"])) for row in rows]
    few, most = min(counts), max(counts)
    n = "" if few == examples else f", n = {few}" if few == most else f", n = {few} to {most}"
    return _figures(rows[0], values, form) + n


def _figures(row: dict[str, object], values: Sequence[float], form: str) -> str:
    if row["condition"] == "random":
        return f"{sum(values) / len(values):{form}} ({min(values):{form}} to {max(values):{form}})"
    if row["measure"] == "refused":
        return f"{values[0]:{form}} {_interval(row['low'], row['high'], form)}"
    if row["change"] is None:
        return f"{values[0]:{form}}"
    return (
        f"{values[0]:{form}} ({row['change']:+{_CHANGE}} {_interval(row['change_low'], row['change_high'], _CHANGE)})"
    )


def _interval(low: object, high: object, form: str) -> str:
    return "" if low is None or high is None else f"[{float(str(low)):{form}}, {float(str(high)):{form}}]"


def _dict(value: object) -> dict[str, list[str]]:
    assert isinstance(value, dict)
    return value


def _heads(heads: Sequence[str]) -> str:
    return ", ".join(heads[:8]) + (f" and {len(heads) - 8} more" if len(heads) > 8 else "")


def _said(openers: object) -> str:
    assert isinstance(openers, dict)
    firsts: dict[int, str] = {}
    for text, token in openers.items():
        firsts.setdefault(token, text.split()[0])
    return ", ".join(firsts.values())
