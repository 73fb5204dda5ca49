"""Charts as Vega-Lite specifications: what is drawn, from tables and documents; no pixels, no store.

Each module has one chart: a pure function that returns a `Chart`. The specification is the same on light and on dark,
on a page and as a file: colours come by name (`range`, `style`) from the configuration that `theme` gives, data lie
under `datasets` by name. `pictures` makes PNG, SVG or JSON of one.
"""
