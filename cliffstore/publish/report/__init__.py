"""The report of a store: one HTML file that needs nothing else.

Each module finds the values of one part of the page (`facts`, `quality`, `chosen`, `heads`, `rows`, `tokens`); `page`
puts them into `page.html` with `style.css` and the scripts, which are ES modules that `bundle` joins to one. Text of
others reaches the page through autoescape or as JSON (`payload`), and is drawn by scripts as text alone.
"""
