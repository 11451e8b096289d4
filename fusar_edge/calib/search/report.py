"""sensitivity.html: what each layer costs in INT8, what stays out of it and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusar_edge.calib.gate import stage_checks
from fusar_edge.calib.search.sensitivity import Figures, LayerCost
from fusar_edge.page import INK, SECOND, escaped, figure_axes, note, page, section, svg, table
from fusar_edge.specs import CalibRecipe

REPORT = "sensitivity.html"
SHOWN = 40
"""Layers in a picture at most; the table has all."""


def search_html(
    recipe: CalibRecipe,
    rows: Sequence[LayerCost],
    by_recipe: Mapping[str, str],
    by_search: Mapping[str, str],
    whole: Figures,
    final: Figures,
) -> str:
    """The report of a search; opens offline."""
    tile = f"{final['images']:.0f} held-out tiles, {final['tokens']:.0f} tokens"
    kept = [(name, why, "search") for name, why in by_search.items()]
    kept += [(name, why, "recipe") for name, why in by_recipe.items()]
    parts = [
        f"<h1>INT8 by layer: {escaped(recipe.name)}</h1>",
        note(f"Each figure: INT8 against FP32 on {tile}. Share: of the allowances of the recipe's [gate], their mean."),
        _status(recipe, final, by_search),
        section("Gate", _gate_table(recipe, whole, final)),
        section("Not in INT8", table(("layer", "why", "kept by"), kept, text=True) if kept else "<p>No layer.</p>"),
        section(
            "One layer in INT8, all others in FP32",
            _bars({row.layer: row.share_alone for row in rows}, by_search, "share of the allowances that it uses"),
        ),
        section(
            "One layer in FP32, all others in INT8",
            _bars(
                {row.layer: row.share_saved for row in rows}, by_search, "share of the allowances that it gives back"
            ),
        ),
        section("All layers", _layer_table(rows)),
    ]
    return page(f"INT8 by layer: {recipe.name}", parts)


def _status(recipe: CalibRecipe, final: Figures, by_search: Mapping[str, str]) -> str:
    count = len(by_search)
    text = f"{count} layer{'s' * (count != 1)} kept out of INT8 by the search, beside those of the recipe."
    good = all(check.holds for check in stage_checks(final, recipe.gate))
    return f'<p class="{"good" if good else "bad"}"><b>The gate {"holds" if good else "fails"}</b>: {escaped(text)}</p>'


def _gate_table(recipe: CalibRecipe, whole: Figures, final: Figures) -> str:
    rows = [
        (a.name, f"{'at least' if a.least else 'at most'} {a.bound:.4g}", f"{a.value:.5g}", f"{b.value:.5g}")
        for a, b in zip(stage_checks(whole, recipe.gate), stage_checks(final, recipe.gate), strict=True)
    ]
    return table(("figure", "bound", "every layer in INT8", "as chosen"), rows)


def _bars(values: Mapping[str, float], kept: Mapping[str, str], label: str) -> str:
    shown = sorted(values.items(), key=lambda item: -item[1])[:SHOWN]
    figure, axes = figure_axes(0.2 * len(shown) + 0.9)
    for place, (layer, value) in enumerate(shown):
        axes.barh(place, value, color=SECOND if layer in kept else INK, height=0.72)
    axes.set_yticks(range(len(shown)), [layer for layer, _ in shown], fontsize=7)
    axes.set(xlabel=label)
    axes.invert_yaxis()
    rest = f" ({SHOWN} of {len(values)} layers)" if len(values) > SHOWN else ""
    return svg(figure, f"{label}, by layer") + note(
        f"Largest first{rest}; the other colour: kept out of INT8 by the search."
    )


def _layer_table(rows: Sequence[LayerCost]) -> str:
    head = ("layer", "alone: share", "1 - cosine, vision", "KL, nats", "tokens", "without: given back", "KL, nats")
    return table(
        head,
        [
            (
                row.layer,
                f"{row.share_alone:.2%}",
                f"{1 - row.alone['vision_cosine']:.2e}",
                f"{row.alone['logits_kl']:.2e}",
                f"{row.alone['token_agreement']:.2%}",
                f"{row.share_saved:.2%}",
                f"{row.without['logits_kl']:.2e}",
            )
            for row in rows
        ],
    )
