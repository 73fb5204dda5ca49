"""The tokens of one example: the score at each position over bands that are its segments, the decision marked.

Where not all positions have scores, the line is broken. Beside the curve, for a picture, the tokens themselves: text on
the colour of its score, blue below 0 (an even chance), orange above it, in lines of so many characters. Colours end
where 98 % of the scores are within, so that one loud token does not pale the others.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

import altair as alt
import pyarrow as pa

from cliffstore.errors import ConfigError
from cliffstore.publish.charts.theme import LOW_SIZE, SEGMENTS, Chart, Size, Spec, drawn_from, with_data
from cliffstore.text import printable

MOST_TOKENS = 2_000
"""Tokens whose text is drawn; a picture of more would be too large to look at."""
_COLUMNS, _COLUMN_WIDTH, _LINE_HEIGHT = 88, 7.3, 20
_WIDEST_TOKEN = 40

Record = dict[str, object]
Layers = alt.LayerChart | alt.FacetChart


@dataclass(frozen=True, slots=True)
class Token:
    """One token; the score is None where it has none."""

    position: int
    to_decision: int
    segment: str
    token: str
    score: float | None


def tokens_of(table: pa.Table) -> list[Token]:
    """Return the lines of a table with columns position, to_decision, segment, token and score, by position."""
    fields = ("position", "to_decision", "segment", "token", "score")
    rows = table.select(fields).sort_by("position").to_pylist()
    return [Token(**{**row, "token": row["token"] or "", "score": _finite(row["score"])}) for row in rows]


def token_chart(tokens: list[Token], *, size: Size = LOW_SIZE, with_text: bool = False) -> Chart:
    """Return the chart of an example's scores by position.

    Parameters
    ----------
    tokens : of one example, by position
    with_text : the coloured tokens below the curve; then the width must be a number

    Raises
    ------
    ConfigError
        No token has a score.
    """
    scored = [token for token in tokens if token.score is not None]
    if not scored:
        raise ConfigError(f"none of {len(tokens):,} tokens has a score: there is nothing to draw")
    n_without = len(tokens) - len(scored)
    notes = [f"{n_without:,} of {len(tokens):,} tokens have no score: gaps in the curve."] if n_without else []
    curve, data = _curve(tokens, size)
    if not with_text:
        spec: Spec = curve.properties(width=size.width, height=size.height).to_dict()
        return with_data(spec, data, notes=notes)
    shown = tokens
    if len(tokens) > MOST_TOKENS:
        shown = _around_decision(tokens)
        notes.append(
            f"The text is that of {len(shown):,} of {len(tokens):,} tokens, positions {shown[0].position:,} to "
            f"{shown[-1].position:,}."
        )
    most = _reach(scored)
    words, n_lines = _lay_out(shown, most)
    width = round(_COLUMNS * _COLUMN_WIDTH)
    text = _text(most).properties(width=width, height=n_lines * _LINE_HEIGHT)
    both = alt.vconcat(curve.properties(width=width, height=size.height), text).resolve_scale(color="independent")
    return with_data(both.to_dict(), {**data, "words": words}, notes=notes)


def _reach(scored: list[Token]) -> float:
    """Return the score at which colours end, on both sides: 98 % of the tokens are within."""
    sizes = sorted(abs(token.score or 0.0) for token in scored)
    return sizes[int(0.98 * (len(sizes) - 1))] or sizes[-1] or 1.0


def _curve(tokens: list[Token], size: Size) -> tuple[Layers, dict[str, list[Record]]]:
    points: list[Record] = [
        {
            "position": token.position, "score": token.score, "token": printable(token.token, _WIDEST_TOKEN),
            "segment": token.segment, "to_decision": token.to_decision,
        }
        for token in tokens
    ]  # fmt: skip
    bands = list(_bands(tokens))
    first, last = tokens[0].position, tokens[-1].position
    title = "position (tokens from the start)"
    x = alt.X(
        "position:Q",
        title=title,
        axis=alt.Axis(format="d", tickMinStep=1, grid=False),
        scale=alt.Scale(domain=[first - 0.5, last + 0.5], nice=False),
    )
    y = alt.Y("score:Q", title="score (logits)")
    names = list(dict.fromkeys(str(band["segment"]) for band in bands))
    color = alt.Color(
        "segment:N",
        title="segment",
        scale=alt.Scale(domain=list(dict.fromkeys([*SEGMENTS, *names])), range="category"),
        legend=alt.Legend(orient="top", values=names, symbolType="square", symbolOpacity=0.5),
    )
    tooltip = [
        alt.Tooltip("token:N", title="token"),
        alt.Tooltip("score:Q", title="score (logits)", format=".3f"),
        alt.Tooltip("position:Q", title="position", format="d"),
        alt.Tooltip("to_decision:Q", title="tokens from the decision", format="d"),
        alt.Tooltip("segment:N", title="segment"),
    ]
    near = alt.selection_point(
        name="near_token", nearest=True, on="pointerover", clear="pointerout", encodings=["x"], empty=False
    )
    base = drawn_from("tokens")
    zero = drawn_from("zero")
    decision = drawn_from("decision")
    layers = [
        drawn_from("segments")
        .mark_rect(opacity=0.2)
        .encode(x=alt.X("from:Q", title=title), x2="to:Q", color=color, tooltip=["segment:N", "tokens:Q"]),
        zero.mark_rule(style="zero").encode(y=y),
        base.mark_line(style="curve", strokeWidth=1.4).encode(x=x, y=y),
        decision.mark_rule(style="decision").encode(x=x),
        decision.mark_text(style="caption", align="right", baseline="top", dx=-4).encode(
            x=x, y=alt.value(2), text=alt.value("decision")
        ),
        base.mark_point(style="curve", filled=True, size=50)
        .encode(x=x, y=y, opacity=alt.condition(near, alt.value(1), alt.value(0)), tooltip=tooltip)
        .add_params(near),
    ]
    data: dict[str, list[Record]] = {
        "tokens": points,
        "segments": bands,
        "zero": [{"score": 0}],
        "decision": [{"position": token.position} for token in tokens if token.to_decision == 0],
    }
    return alt.layer(*layers), data


def _bands(tokens: list[Token]) -> Iterator[Record]:
    """Yield each run of tokens of one segment, from edge to edge."""
    for segment, run in groupby(tokens, key=lambda token: token.segment):
        own = list(run)
        first, last = own[0].position, own[-1].position
        yield {"segment": segment, "from": first - 0.5, "to": last + 0.5, "tokens": len(own)}


def _around_decision(tokens: list[Token]) -> list[Token]:
    """Return as many tokens as are drawn: those before the decision, and what follows it."""
    decision = next((number for number, token in enumerate(tokens) if token.to_decision == 0), len(tokens) - 1)
    last = min(decision + 1 + MOST_TOKENS // 4, len(tokens))
    return tokens[max(last - MOST_TOKENS, 0) : last]


def _lay_out(tokens: list[Token], most: float) -> tuple[list[Record], int]:
    """Return tokens with their line and columns, and how many lines there are; a line ends behind a line feed."""
    words: list[Record] = []
    line = column = 0
    for token in tokens:
        text = printable(token.token, _WIDEST_TOKEN)
        width = max(sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text), 1)
        if column and column + width > _COLUMNS:
            line, column = line + 1, 0
        indent = len(text) - len(text.lstrip(" "))  # spaces at the edge of a text are not drawn
        words.append(
            {
                "line": line,
                "from": column,
                "at": column + indent,
                "to": column + width,
                "token": text,
                "score": token.score,
                "position": token.position,
                "to_decision": token.to_decision,
                "segment": token.segment,
                "strong": abs(token.score or 0.0) > 0.6 * most,
            }
        )
        column += width
        if token.token.endswith("\n"):
            line, column = line + 1, 0
    return words, line + (1 if column else 0)


def _text(most: float) -> Layers:
    x = alt.X("from:Q", title=None, axis=None, scale=alt.Scale(domain=[0, _COLUMNS], nice=False))
    at = alt.X("at:Q", title=None, axis=None, scale=alt.Scale(domain=[0, _COLUMNS], nice=False))
    y = alt.Y("line:O", title=None, axis=None)
    scale = alt.Scale(domain=[-most, most], range="diverging", interpolate="rgb", nice=False, clamp=True)
    color = alt.Color("score:Q", title="score (logits)", scale=scale,
                      legend=alt.Legend(orient="bottom", direction="horizontal", gradientLength=200))  # fmt: skip
    tooltip = ["token:N", alt.Tooltip("score:Q", format=".3f"), "position:Q", "segment:N"]
    base = drawn_from("words")
    return alt.layer(
        base.mark_rect().encode(x=x, x2="to:Q", y=y, color=color, tooltip=tooltip),
        base.transform_filter("datum.to_decision === 0").mark_rect(style="frame").encode(x=x, x2="to:Q", y=y),
        *(
            base.transform_filter(f"{'' if strong else '!'}datum.strong")
            .mark_text(style="token_on_colour" if strong else "token", align="left", baseline="middle")
            .encode(x=at, y=y, text="token:N")
            for strong in (False, True)
        ),
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and abs(value) < float("inf") else None
